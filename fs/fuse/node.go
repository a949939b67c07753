package fuse

import (
	"context"
	"fmt"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
)

// blockSize is the unit of statfs and what stat calls the preferred size.
const blockSize = 4096

// node is one node of the tree as go-fuse wants it. It holds no state of its own: every answer comes from the tree.
type node struct {
	gofs.Inode
	view *view
	n    fs.Node
}

var (
	_ gofs.NodeGetattrer  = (*node)(nil)
	_ gofs.NodeSetattrer  = (*node)(nil)
	_ gofs.NodeAccesser   = (*node)(nil)
	_ gofs.NodeStatfser   = (*node)(nil)
	_ gofs.NodeReadlinker = (*node)(nil)
	_ gofs.NodeOpener     = (*node)(nil)
	_ gofs.NodeReader     = (*node)(nil)
	_ gofs.NodeWriter     = (*node)(nil)
	_ gofs.NodeFsyncer    = (*node)(nil)
	_ gofs.NodeLseeker    = (*node)(nil)
)

// handle is an open file.
type handle struct {
	stable bool // opened with O_SYNC or O_DSYNC
}

// child returns the inode for a node of the tree, the known one if there is one, and fills in its attributes.
func (d *node) child(ctx context.Context, op string, n fs.Node, out *gofuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	var a fs.Attr
	errno := d.view.again(ctx, op, n.ID(), func(ctx context.Context) (err error) {
		a, err = n.Attr(ctx)
		return err
	})
	if errno != 0 {
		return nil, errno
	}
	stable := gofs.StableAttr{Mode: fileType(a.Kind), Ino: uint64(n.ID())}
	if stable.Reserved() {
		return nil, d.view.errno(op, n.ID(), fs.StatusServerFault) // one ID in 2^64 that go-fuse keeps for itself
	}
	fill(&out.Attr, a)
	return d.NewInode(ctx, &node{view: d.view, n: n}, stable), 0
}

func fileType(k fs.Kind) uint32 {
	switch k {
	case fs.KindDir:
		return syscall.S_IFDIR
	case fs.KindSymlink:
		return syscall.S_IFLNK
	case fs.KindFile:
		return syscall.S_IFREG
	}
	panic(fmt.Sprintf("fuse: a node of kind %d", k))
}

// typeOf is fileType for a node whose attributes were not asked for.
func typeOf(n fs.Node) uint32 {
	switch n.(type) {
	case fs.Dir:
		return syscall.S_IFDIR
	case fs.Symlink:
		return syscall.S_IFLNK
	}
	return syscall.S_IFREG
}

func fill(out *gofuse.Attr, a fs.Attr) {
	out.Ino = uint64(a.ID)
	out.Mode = fileType(a.Kind) | a.Perm
	out.Nlink = a.Nlink
	out.Owner = gofuse.Owner{Uid: a.UID, Gid: a.GID}
	out.Size = uint64(a.Size)
	out.Blocks = uint64((a.Used + 511) / 512)
	out.Blksize = blockSize
	out.SetTimes(&a.Atime, &a.Mtime, &a.Ctime)
}

// Getattr implements gofs.NodeGetattrer.
func (d *node) Getattr(ctx context.Context, _ gofs.FileHandle, out *gofuse.AttrOut) syscall.Errno {
	return d.view.again(ctx, "stat", d.n.ID(), func(ctx context.Context) error {
		a, err := d.n.Attr(ctx)
		if err == nil {
			fill(&out.Attr, a)
		}
		return err
	})
}

// Access implements gofs.NodeAccesser. With AllowOther the kernel itself checks owner and mode bits and never asks;
// without, only the user who mounted gets here, and the data is theirs. ENOSYS tells the kernel to stop asking.
func (d *node) Access(context.Context, uint32) syscall.Errno { return syscall.ENOSYS }

// Setattr implements gofs.NodeSetattrer. One request is one change of the tree: all of it or nothing.
func (d *node) Setattr(
	ctx context.Context, _ gofs.FileHandle, in *gofuse.SetAttrIn, out *gofuse.AttrOut,
) syscall.Errno {
	setter, ok := d.n.(fs.AttrSetter)
	if d.view.readOnly || !ok {
		return syscall.EROFS
	}
	var set fs.SetAttr
	if v, ok := in.GetMode(); ok {
		set.Perm = new(v & 0o7777)
	}
	if v, ok := in.GetUID(); ok {
		set.UID = &v
	}
	if v, ok := in.GetGID(); ok {
		set.GID = &v
	}
	if v, ok := in.GetSize(); ok {
		if int64(v) < 0 {
			return syscall.EFBIG
		}
		set.Size = new(int64(v))
	}
	if v, ok := in.GetATime(); ok {
		set.Atime = &v
	}
	if v, ok := in.GetMTime(); ok {
		set.Mtime = &v
	}
	return d.view.again(ctx, "setattr", d.n.ID(), func(ctx context.Context) error {
		a, err := setter.SetAttr(ctx, set, nil)
		if err == nil {
			fill(&out.Attr, a)
			out.SetTimeout(mutableTimeout)
		}
		return err
	})
}

// Statfs implements gofs.NodeStatfser.
func (d *node) Statfs(ctx context.Context, out *gofuse.StatfsOut) syscall.Errno {
	return d.view.again(ctx, "statfs", d.n.ID(), func(ctx context.Context) error {
		s, err := d.view.tree.Space(ctx)
		if err != nil {
			return err
		}
		out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, fs.MaxName
		out.Blocks = uint64(s.TotalBytes / blockSize)
		out.Bfree = uint64(s.FreeBytes / blockSize)
		out.Bavail = out.Bfree
		out.Files, out.Ffree = uint64(s.TotalFiles), uint64(s.FreeFiles)
		return nil
	})
}

// Readlink implements gofs.NodeReadlinker.
func (d *node) Readlink(ctx context.Context) (target []byte, _ syscall.Errno) {
	l, ok := d.n.(fs.Symlink)
	if !ok {
		return nil, syscall.EINVAL
	}
	errno := d.view.again(ctx, "readlink", d.n.ID(), func(ctx context.Context) error {
		s, err := l.Readlink(ctx)
		target = []byte(s)
		return err
	})
	return target, errno
}

// Open implements gofs.NodeOpener.
func (d *node) Open(_ context.Context, flags uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	if _, ok := d.n.(fs.File); !ok {
		return nil, 0, syscall.EISDIR
	}
	_, writable := d.n.(fs.Writer)
	if flags&unix.O_ACCMODE != unix.O_RDONLY && (!writable || d.view.readOnly) {
		return nil, 0, syscall.EROFS
	}
	return &handle{stable: flags&unix.O_DSYNC != 0}, d.view.openFlags(writable), 0 // O_SYNC contains O_DSYNC
}

// openFlags says how the kernel may cache a file.
func (v *view) openFlags(writable bool) uint32 {
	switch {
	case v.immutable:
		return gofuse.FOPEN_KEEP_CACHE
	case writable && !v.readOnly:
		return gofuse.FOPEN_DIRECT_IO | gofuse.FOPEN_PARALLEL_DIRECT_WRITES
	}
	return 0
}

// Read implements gofs.NodeReader. It reads straight into go-fuse's pooled buffer: the tree lets go of it on return, and
// go-fuse takes it back after the reply is written.
func (d *node) Read(
	ctx context.Context, _ gofs.FileHandle, dest []byte, off int64,
) (gofuse.ReadResult, syscall.Errno) {
	f, ok := d.n.(fs.File)
	if !ok {
		return nil, syscall.EISDIR
	}
	n := 0
	errno := d.view.again(ctx, "read", d.n.ID(), func(ctx context.Context) (err error) {
		n, err = f.ReadAt(ctx, dest, off)
		if err == nil && n < len(dest) {
			// The kernel would fill up with zeros: a wrong answer that looks right.
			return fmt.Errorf("the tree read %d of %d bytes at %d and called that a success", n, len(dest), off)
		}
		return err
	})
	if errno != 0 {
		return nil, errno
	}
	return gofuse.ReadResultData(dest[:n]), 0
}

// Write implements gofs.NodeWriter.
func (d *node) Write(ctx context.Context, f gofs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	w, ok := d.n.(fs.Writer)
	if !ok || d.view.readOnly {
		return 0, syscall.EROFS
	}
	h, _ := f.(*handle)
	errno := d.view.again(ctx, "write", d.n.ID(), func(ctx context.Context) error {
		return w.WriteAt(ctx, data, off, h != nil && h.stable)
	})
	if errno != 0 {
		return 0, errno
	}
	return uint32(len(data)), 0
}

// Fsync implements gofs.NodeFsyncer, for files and folders. What cannot be written, and names, are durable as they are.
func (d *node) Fsync(ctx context.Context, _ gofs.FileHandle, _ uint32) syscall.Errno {
	w, ok := d.n.(fs.Writer)
	if !ok || d.view.readOnly {
		return 0
	}
	return d.view.again(ctx, "fsync", d.n.ID(), func(ctx context.Context) error { return w.Commit(ctx) })
}

// Lseek implements gofs.NodeLseeker; the kernel asks for SEEK_DATA and SEEK_HOLE only.
func (d *node) Lseek(ctx context.Context, _ gofs.FileHandle, off uint64, whence uint32) (uint64, syscall.Errno) {
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, syscall.EINVAL
	}
	if int64(off) < 0 {
		return 0, syscall.ENXIO
	}
	at, size := int64(0), int64(0)
	errno := d.view.again(ctx, "seek", d.n.ID(), func(ctx context.Context) error {
		a, err := d.n.Attr(ctx)
		if err != nil {
			return err
		}
		size = a.Size
		at, err = seek(ctx, d.n, int64(off), size, whence)
		return err
	})
	switch {
	case errno != 0:
		return 0, errno
	case int64(off) >= size, whence == unix.SEEK_DATA && at >= size:
		return 0, syscall.ENXIO // lseek(2): past the end, or only a hole up to it
	}
	return uint64(at), 0
}

// seek answers for a file that knows no holes as lseek(2) does: all data, and a hole at the end.
func seek(ctx context.Context, n fs.Node, off, size int64, whence uint32) (int64, error) {
	h, ok := n.(fs.HoleFinder)
	switch {
	case ok && whence == unix.SEEK_DATA:
		return h.NextData(ctx, off)
	case ok:
		return h.NextHole(ctx, off)
	case whence == unix.SEEK_DATA:
		return off, nil
	}
	return size, nil
}
