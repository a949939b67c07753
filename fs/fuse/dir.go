package fuse

import (
	"context"
	"math"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
)

var (
	_ gofs.NodeLookuper       = (*node)(nil)
	_ gofs.NodeOpendirHandler = (*node)(nil)
	_ gofs.NodeCreater        = (*node)(nil)
	_ gofs.NodeMkdirer        = (*node)(nil)
	_ gofs.NodeSymlinker      = (*node)(nil)
	_ gofs.NodeLinker         = (*node)(nil)
	_ gofs.NodeUnlinker       = (*node)(nil)
	_ gofs.NodeRmdirer        = (*node)(nil)
	_ gofs.NodeRenamer        = (*node)(nil)

	_ gofs.FileReaddirenter = (*listing)(nil)
	_ gofs.FileLookuper     = (*listing)(nil)
	_ gofs.FileSeekdirer    = (*listing)(nil)
)

// Lookup implements gofs.NodeLookuper: the tree is asked each time the kernel asks.
func (d *node) Lookup(ctx context.Context, name string, out *gofuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	dir, ok := d.n.(fs.Dir)
	if !ok {
		return nil, syscall.ENOTDIR
	}
	if err := fs.CheckName(name); err != nil {
		return nil, d.view.errno("lookup", d.n.ID(), err)
	}
	var n fs.Node
	errno := d.view.again(ctx, "lookup", d.n.ID(), func(ctx context.Context) (err error) {
		n, err = dir.Lookup(ctx, name)
		return err
	})
	if errno != 0 {
		return nil, errno
	}
	return d.child(ctx, "lookup", n, out)
}

// OpendirHandle implements gofs.NodeOpendirHandler.
func (d *node) OpendirHandle(context.Context, uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	dir, ok := d.n.(fs.Dir)
	if !ok {
		return nil, 0, syscall.ENOTDIR
	}
	flags := uint32(0)
	if d.view.immutable {
		flags = gofuse.FOPEN_CACHE_DIR | gofuse.FOPEN_KEEP_CACHE
	}
	return &listing{parent: d, dir: dir}, flags, 0
}

const (
	// batch is how many entries are fetched at a time: a reply of the kernel's size holds about as many with attributes.
	batch = 128
	// dots is how many offsets "." and ".." take, so an entry's offset is its cookie plus dots.
	dots = 2
)

// listing is an open folder. An offset names the entry after which to go on, by its cookie, so a listing can be resumed
// anywhere while entries come and go. go-fuse calls it under a lock, one call at a time.
type listing struct {
	parent *node
	dir    fs.Dir
	after  uint64 // offset of the last entry given out
	ahead  []fs.Entry
	last   fs.Entry // the last one given out; zero for "." and ".."
}

// Readdirent implements gofs.FileReaddirenter.
func (l *listing) Readdirent(ctx context.Context) (*gofuse.DirEntry, syscall.Errno) {
	if l.after < dots {
		dot := gofuse.DirEntry{Name: ".", Mode: syscall.S_IFDIR, Ino: uint64(l.dir.ID())}
		if l.after == 1 {
			dot.Name = ".."
			if _, up := l.parent.Parent(); up != nil {
				dot.Ino = up.StableAttr().Ino
			}
		}
		l.after++
		l.last, dot.Off = fs.Entry{}, l.after
		return &dot, 0
	}
	if len(l.ahead) == 0 {
		if errno := l.fetch(ctx); errno != 0 || len(l.ahead) == 0 {
			return nil, errno
		}
	}
	l.last, l.ahead = l.ahead[0], l.ahead[1:]
	if l.last.Cookie > math.MaxInt64-dots {
		return nil, syscall.EOVERFLOW // the kernel's offsets are signed
	}
	l.after = l.last.Cookie + dots
	return &gofuse.DirEntry{
		Name: l.last.Name, Mode: typeOf(l.last.Node), Ino: uint64(l.last.Node.ID()), Off: l.after,
	}, 0
}

func (l *listing) fetch(ctx context.Context) syscall.Errno {
	errno := l.parent.view.again(ctx, "readdir", l.dir.ID(), func(ctx context.Context) error {
		l.ahead = l.ahead[:0]
		return l.dir.List(ctx, l.after-dots, func(e fs.Entry) bool {
			l.ahead = append(l.ahead, e)
			return len(l.ahead) < batch
		})
	})
	if errno != 0 {
		l.ahead = nil // part of a listing that failed
	}
	return errno
}

// Lookup implements gofs.FileLookuper: the node came with the entry, so the tree is asked for its attributes only.
func (l *listing) Lookup(ctx context.Context, name string, out *gofuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	if l.last.Node != nil && l.last.Name == name {
		return l.parent.child(ctx, "readdir", l.last.Node, out)
	}
	return l.parent.Lookup(ctx, name, out) // go-fuse repeats part of a reply that was interrupted
}

// Seekdir implements gofs.FileSeekdirer.
func (l *listing) Seekdir(_ context.Context, off uint64) syscall.Errno {
	l.after, l.ahead, l.last = off, nil, fs.Entry{}
	return 0
}

// maker returns the folder's Maker, if changes are allowed.
func (d *node) maker() (fs.Maker, syscall.Errno) {
	if m, ok := d.n.(fs.Maker); ok && !d.view.readOnly {
		return m, 0
	}
	return nil, syscall.EROFS
}

func (d *node) remover() (fs.Remover, syscall.Errno) {
	if r, ok := d.n.(fs.Remover); ok && !d.view.readOnly {
		return r, 0
	}
	return nil, syscall.EROFS
}

// Create implements gofs.NodeCreater. The owner of what is made is the tree's to choose: everything in a storage domain
// belongs to 36:36, whoever makes it.
func (d *node) Create(
	ctx context.Context, name string, flags, mode uint32, out *gofuse.EntryOut,
) (*gofs.Inode, gofs.FileHandle, uint32, syscall.Errno) {
	m, errno := d.maker()
	if errno != 0 {
		return nil, nil, 0, errno
	}
	ctx, cancel := d.view.whole(ctx)
	defer cancel()
	// The kernel believes that the name is free. If another protocol was faster, the file is opened as it is.
	set, how := fs.SetAttr{Perm: new(mode & 0o7777)}, fs.CreateUnchecked
	if flags&unix.O_EXCL != 0 {
		how = fs.CreateGuarded
	}
	if flags&unix.O_TRUNC != 0 {
		set.Size = new(int64)
	}
	f, err := m.Create(ctx, name, how, set, [8]byte{})
	if errno := d.view.errno("create", d.n.ID(), err); errno != 0 {
		return nil, nil, 0, errno
	}
	inode, errno := d.child(ctx, "create", f, out)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	_, writable := f.(fs.Writer)
	return inode, &handle{stable: flags&unix.O_DSYNC != 0}, d.view.openFlags(writable), 0
}

// Mkdir implements gofs.NodeMkdirer.
func (d *node) Mkdir(ctx context.Context, name string, mode uint32, out *gofuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	m, errno := d.maker()
	if errno != 0 {
		return nil, errno
	}
	ctx, cancel := d.view.whole(ctx)
	defer cancel()
	sub, err := m.Mkdir(ctx, name, fs.SetAttr{Perm: new(mode & 0o7777)})
	if errno := d.view.errno("mkdir", d.n.ID(), err); errno != 0 {
		return nil, errno
	}
	return d.child(ctx, "mkdir", sub, out)
}

// Symlink implements gofs.NodeSymlinker.
func (d *node) Symlink(
	ctx context.Context, target, name string, out *gofuse.EntryOut,
) (*gofs.Inode, syscall.Errno) {
	m, errno := d.maker()
	if errno != 0 {
		return nil, errno
	}
	ctx, cancel := d.view.whole(ctx)
	defer cancel()
	l, err := m.Symlink(ctx, name, target, fs.SetAttr{})
	if errno := d.view.errno("symlink", d.n.ID(), err); errno != 0 {
		return nil, errno
	}
	return d.child(ctx, "symlink", l, out)
}

// Link implements gofs.NodeLinker.
func (d *node) Link(
	ctx context.Context, target gofs.InodeEmbedder, name string, out *gofuse.EntryOut,
) (*gofs.Inode, syscall.Errno) {
	m, errno := d.maker()
	if errno != 0 {
		return nil, errno
	}
	ctx, cancel := d.view.whole(ctx)
	defer cancel()
	t := target.(*node) // this package makes no other kind
	if errno := d.view.errno("link", d.n.ID(), m.Link(ctx, t.n, name)); errno != 0 {
		return nil, errno
	}
	return d.child(ctx, "link", t.n, out)
}

// Unlink implements gofs.NodeUnlinker.
func (d *node) Unlink(ctx context.Context, name string) syscall.Errno {
	r, errno := d.remover()
	if errno != 0 {
		return errno
	}
	ctx, cancel := d.view.whole(ctx)
	defer cancel()
	return d.view.errno("unlink", d.n.ID(), r.Remove(ctx, name))
}

// Rmdir implements gofs.NodeRmdirer.
func (d *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	r, errno := d.remover()
	if errno != 0 {
		return errno
	}
	ctx, cancel := d.view.whole(ctx)
	defer cancel()
	return d.view.errno("rmdir", d.n.ID(), r.RemoveDir(ctx, name))
}

// Rename implements gofs.NodeRenamer. Exchanging two names is not something a tree can do. That a target is missing
// (RENAME_NOREPLACE) is checked before and not in one step with the rename, since trees have no such call; within this
// mount the kernel's own locks make it one step.
func (d *node) Rename(
	ctx context.Context, name string, parent gofs.InodeEmbedder, newName string, flags uint32,
) syscall.Errno {
	r, errno := d.remover()
	if errno != 0 {
		return errno
	}
	ctx, cancel := d.view.whole(ctx)
	defer cancel()
	to, ok := parent.(*node).n.(fs.Dir)
	if !ok {
		return syscall.ENOTDIR
	}
	switch flags {
	case 0:
	case unix.RENAME_NOREPLACE:
		_, err := to.Lookup(ctx, newName)
		if err == nil {
			return syscall.EEXIST
		}
		if fs.StatusOf(err) != fs.StatusNotFound {
			return d.view.errno("rename", d.n.ID(), err)
		}
	default:
		return syscall.EINVAL
	}
	return d.view.errno("rename", d.n.ID(), r.Rename(ctx, name, to, newName))
}
