package nfstest

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-billy/v5"
	nfs "github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/file"

	"github.com/holdfast-backup/holdfast/fs"
)

// Oracle returns a handler with which go-nfs's server serves a tree: a second opinion on what a client should see.
// Everything is mounted as "/", by anybody. Its handles are numbers of paths and live as long as the handler.
func Oracle(tree fs.Tree) nfs.Handler {
	return &oracle{view: &view{tree}, numbers: map[string]uint64{}}
}

type oracle struct {
	view    *view
	mu      sync.Mutex // guards what follows
	paths   []string
	numbers map[string]uint64
}

func (o *oracle) Mount(context.Context, net.Conn, nfs.MountRequest) (nfs.MountStatus, billy.Filesystem, []nfs.AuthFlavor) {
	return nfs.MountStatusOk, o.view, []nfs.AuthFlavor{nfs.AuthFlavorUnix}
}

func (o *oracle) Change(billy.Filesystem) billy.Change { return o.view }

func (o *oracle) FSStat(ctx context.Context, _ billy.Filesystem, out *nfs.FSStat) error {
	sp, err := o.view.tree.Space(ctx)
	out.TotalSize, out.FreeSize, out.AvailableSize = uint64(sp.TotalBytes), uint64(sp.FreeBytes), uint64(sp.FreeBytes)
	out.TotalFiles, out.FreeFiles, out.AvailableFiles = uint64(sp.TotalFiles), uint64(sp.FreeFiles), uint64(sp.FreeFiles)
	return err
}

func (o *oracle) ToHandle(_ billy.Filesystem, p []string) []byte {
	key := strings.Join(p, "/")
	o.mu.Lock()
	defer o.mu.Unlock()
	n, ok := o.numbers[key]
	if !ok {
		n = uint64(len(o.paths))
		o.paths = append(o.paths, key)
		o.numbers[key] = n
	}
	return binary.BigEndian.AppendUint64(nil, n)
}

func (o *oracle) FromHandle(h []byte) (billy.Filesystem, []string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(h) != 8 || binary.BigEndian.Uint64(h) >= uint64(len(o.paths)) {
		return nil, nil, fs.StatusBadHandle
	}
	p := o.paths[binary.BigEndian.Uint64(h)]
	if p == "" {
		return o.view, []string{}, nil
	}
	return o.view, strings.Split(p, "/"), nil
}

func (o *oracle) InvalidateHandle(billy.Filesystem, []byte) error { return nil }

func (o *oracle) HandleLimit() int { return 1 << 20 }

// view is a tree as go-nfs wants a file system: by path, with the errors of package os.
type view struct{ tree fs.Tree }

var (
	_ billy.Filesystem = (*view)(nil)
	_ billy.Change     = (*view)(nil)
)

// osError gives an error the form that os.IsNotExist and its like know, which do not unwrap.
func osError(err error) error {
	switch fs.StatusOf(err) {
	case fs.StatusOK:
		return err
	case fs.StatusNotFound:
		return os.ErrNotExist
	case fs.StatusExists:
		return os.ErrExist
	case fs.StatusAccess, fs.StatusReadOnly, fs.StatusPermission:
		return os.ErrPermission
	}
	return err
}

func (v *view) find(p string) (fs.Node, error) {
	var n fs.Node = v.tree.Root()
	for _, name := range strings.FieldsFunc(p, func(r rune) bool { return r == '/' }) {
		d, ok := n.(fs.Dir)
		if !ok {
			return nil, fs.StatusNotDir
		}
		var err error
		if n, err = d.Lookup(context.Background(), name); err != nil {
			return nil, osError(err)
		}
	}
	return n, nil
}

// parent returns the folder of a path, as what a test's tree can do, and the last name.
func (v *view) parent(p string) (fs.Dir, string, error) {
	n, err := v.find(path.Dir("/" + p))
	if err != nil {
		return nil, "", err
	}
	d, ok := n.(fs.Dir)
	if !ok {
		return nil, "", fs.StatusNotDir
	}
	return d, path.Base(p), nil
}

func (v *view) Create(p string) (billy.File, error) {
	d, name, err := v.parent(p)
	if err != nil {
		return nil, err
	}
	var empty int64
	f, err := d.(fs.Maker).Create(context.Background(), name, fs.CreateUnchecked, fs.SetAttr{Size: &empty}, [8]byte{})
	return &openFile{f: f, name: p}, osError(err)
}

func (v *view) Open(p string) (billy.File, error) { return v.OpenFile(p, os.O_RDONLY, 0) }

func (v *view) OpenFile(p string, _ int, _ os.FileMode) (billy.File, error) {
	n, err := v.find(p)
	if err != nil {
		return nil, err
	}
	f, ok := n.(fs.File)
	if !ok {
		return nil, fs.StatusIsDir
	}
	return &openFile{f: f, name: p}, nil
}

func (v *view) Lstat(p string) (os.FileInfo, error) {
	n, err := v.find(p)
	if err != nil {
		return nil, err
	}
	a, err := n.Attr(context.Background())
	return info{path.Base("/" + p), a}, osError(err)
}

func (v *view) Stat(p string) (os.FileInfo, error) { return v.Lstat(p) }

func (v *view) Rename(from, to string) error {
	d, name, err := v.parent(from)
	if err != nil {
		return err
	}
	toDir, toName, err := v.parent(to)
	if err != nil {
		return err
	}
	return osError(d.(fs.Remover).Rename(context.Background(), name, toDir, toName))
}

func (v *view) Remove(p string) error {
	d, name, err := v.parent(p)
	if err != nil {
		return err
	}
	err = d.(fs.Remover).Remove(context.Background(), name)
	if fs.StatusOf(err) == fs.StatusIsDir {
		err = d.(fs.Remover).RemoveDir(context.Background(), name)
	}
	return osError(err)
}

func (v *view) Join(elem ...string) string { return path.Join(elem...) }

func (v *view) TempFile(string, string) (billy.File, error) { return nil, fs.StatusNotSupported }

func (v *view) ReadDir(p string) ([]os.FileInfo, error) {
	n, err := v.find(p)
	if err != nil {
		return nil, err
	}
	d, ok := n.(fs.Dir)
	if !ok {
		return nil, fs.StatusNotDir
	}
	var out []os.FileInfo
	err = d.List(context.Background(), 0, func(e fs.Entry) bool {
		a, err := e.Node.Attr(context.Background())
		if err == nil {
			out = append(out, info{e.Name, a})
		}
		return true
	})
	return out, osError(err)
}

func (v *view) MkdirAll(p string, perm os.FileMode) error {
	d, name, err := v.parent(p)
	if err != nil {
		return err
	}
	bits := uint32(perm.Perm())
	_, err = d.(fs.Maker).Mkdir(context.Background(), name, fs.SetAttr{Perm: &bits})
	return osError(err)
}

func (v *view) Symlink(target, p string) error {
	d, name, err := v.parent(p)
	if err != nil {
		return err
	}
	_, err = d.(fs.Maker).Symlink(context.Background(), name, target, fs.SetAttr{})
	return osError(err)
}

func (v *view) Readlink(p string) (string, error) {
	n, err := v.find(p)
	if err != nil {
		return "", err
	}
	l, ok := n.(fs.Symlink)
	if !ok {
		return "", fs.StatusInvalid
	}
	return l.Readlink(context.Background())
}

func (v *view) Chroot(string) (billy.Filesystem, error) { return nil, fs.StatusNotSupported }

func (v *view) Root() string { return "/" }

func (v *view) set(p string, s fs.SetAttr) error {
	n, err := v.find(p)
	if err != nil {
		return err
	}
	_, err = n.(fs.AttrSetter).SetAttr(context.Background(), s, nil)
	return osError(err)
}

func (v *view) Chmod(p string, mode os.FileMode) error {
	bits := uint32(mode.Perm())
	return v.set(p, fs.SetAttr{Perm: &bits})
}

func (v *view) Lchown(p string, uid, gid int) error {
	u, g := uint32(uid), uint32(gid)
	return v.set(p, fs.SetAttr{UID: &u, GID: &g})
}

func (v *view) Chown(p string, uid, gid int) error { return v.Lchown(p, uid, gid) }

func (v *view) Chtimes(p string, atime, mtime time.Time) error {
	return v.set(p, fs.SetAttr{Atime: &atime, Mtime: &mtime})
}

// info is a fs.Attr as os.FileInfo; go-nfs takes the rest from Sys.
type info struct {
	name string
	attr fs.Attr
}

func (i info) Name() string { return i.name }
func (i info) Size() int64  { return i.attr.Size }
func (i info) Mode() os.FileMode {
	mode := os.FileMode(i.attr.Perm) & os.ModePerm
	switch i.attr.Kind {
	case fs.KindDir:
		mode |= os.ModeDir
	case fs.KindSymlink:
		mode |= os.ModeSymlink
	}
	return mode
}
func (i info) ModTime() time.Time { return i.attr.Mtime }
func (i info) IsDir() bool        { return i.attr.Kind == fs.KindDir }
func (i info) Sys() any {
	return &file.FileInfo{Nlink: i.attr.Nlink, UID: i.attr.UID, GID: i.attr.GID, Fileid: uint64(i.attr.ID)}
}

// openFile is a file with a position.
type openFile struct {
	f    fs.File
	name string
	at   int64
}

func (f *openFile) Name() string { return f.name }

func (f *openFile) Write(p []byte) (int, error) {
	if err := f.f.(fs.Writer).WriteAt(context.Background(), p, f.at, true); err != nil {
		return 0, osError(err)
	}
	f.at += int64(len(p))
	return len(p), nil
}

func (f *openFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.at)
	f.at += int64(n)
	return n, err
}

func (f *openFile) ReadAt(p []byte, off int64) (int, error) {
	return f.f.ReadAt(context.Background(), p, off)
}

func (f *openFile) Seek(off int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, fs.StatusNotSupported
	}
	f.at = off
	return off, nil
}

func (f *openFile) Truncate(size int64) error {
	_, err := f.f.(fs.AttrSetter).SetAttr(context.Background(), fs.SetAttr{Size: &size}, nil)
	return osError(err)
}

func (f *openFile) Close() error  { return nil }
func (f *openFile) Lock() error   { return nil }
func (f *openFile) Unlock() error { return nil }
