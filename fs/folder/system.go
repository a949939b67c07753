package folder

import (
	"context"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// use makes a system call, again as long as a signal interrupts it.
func (t *Tree) use(op, name string, call func() error) error {
	for {
		switch err := call(); err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return &os.PathError{Op: op, Path: name, Err: err}
		}
	}
}

// alter makes a system call that changes the disk.
func (t *Tree) alter(op, name string, call func() error) error {
	if t.o.hook != nil {
		if err := t.o.hook(op, name); err != nil {
			return err
		}
	}
	return t.use(op, name, call)
}

func (t *Tree) sync(f *os.File) error {
	return t.alter("fsync", f.Name(), func() error { return unix.Fsync(int(f.Fd())) })
}

func (t *Tree) datasync(f *os.File) error {
	return t.alter("fdatasync", f.Name(), func() error { return unix.Fdatasync(int(f.Fd())) })
}

func (t *Tree) unlink(in *os.File, name string, flags int) error {
	return t.alter("unlink", name, func() error { return unix.Unlinkat(int(in.Fd()), name, flags) })
}

func (t *Tree) link(from *os.File, name string, to *os.File, toName string) error {
	return t.alter("link", toName, func() error { return unix.Linkat(int(from.Fd()), name, int(to.Fd()), toName, 0) })
}

func (t *Tree) rename(from *os.File, name string, to *os.File, toName string) error {
	return t.alter("rename", toName, func() error { return unix.Renameat(int(from.Fd()), name, int(to.Fd()), toName) })
}

func (t *Tree) writeMark(f *os.File, m mark) error {
	return t.alter("setxattr", f.Name(), func() error { return unix.Fsetxattr(int(f.Fd()), markName, m.encode(), 0) })
}

// setTimes sets a file's times; those that are nil stay.
func (t *Tree) setTimes(f *os.File, set fs.SetAttr) error {
	times := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	for i, when := range []*time.Time{set.Atime, set.Mtime} {
		if when != nil {
			times[i] = unix.NsecToTimespec(when.UnixNano())
		}
	}
	return t.alter("utimens", f.Name(), func() error {
		// As futimens does; the package unix has no name for it.
		_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, f.Fd(), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
}

// openAt opens a name in a folder, which may be an O_PATH one. Whatever it is, it is not followed and not waited for.
func (t *Tree) openAt(in *os.File, name string, flags int) (*os.File, error) {
	fd := -1
	err := t.use("open", name, func() (err error) {
		flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
		fd, err = unix.Openat(int(in.Fd()), name, flags, 0o600)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// statOf returns what the system knows of an open file.
func (t *Tree) statOf(f *os.File) (st unix.Stat_t, err error) {
	err = t.use("stat", f.Name(), func() error { return unix.Fstat(int(f.Fd()), &st) })
	return st, err
}

// openNode opens the file or folder on disk that belongs to a node. The caller holds life, and says with still that it
// holds changing too.
func (t *Tree) openNode(ctx context.Context, n *node, flags int, still bool) (*os.File, error) {
	f, err := t.openOnce(n, flags)
	if err == nil || err == fs.StatusStale {
		return f, err
	}
	if !still { // a change may have moved it just now: look again when that is over
		select {
		case t.changing <- struct{}{}:
			defer func() { <-t.changing }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if f, again := t.openOnce(n, flags); again == nil || again == fs.StatusStale {
			return f, again
		}
	}
	if errs.Is(err, errs.NotFound) { // to the caller the node is there, so this is no plain "not found"
		err = errs.New("open", t.path, errs.Corrupt, err)
	}
	return nil, err
}

func (t *Tree) openOnce(n *node, flags int) (*os.File, error) {
	names, ok := t.place(n)
	if !ok {
		return nil, fs.StatusStale
	}
	if len(names) == 0 {
		return t.openAt(t.disk, ".", flags)
	}
	in := t.disk
	for _, name := range names[:len(names)-1] {
		next, err := t.openAt(in, name, unix.O_PATH|unix.O_DIRECTORY)
		if in != t.disk {
			_ = in.Close()
		}
		if err != nil {
			return nil, err
		}
		in = next
	}
	f, err := t.openAt(in, names[len(names)-1], flags)
	if in != t.disk {
		_ = in.Close()
	}
	if err != nil {
		return nil, err
	}
	st, err := t.statOf(f)
	if err == nil && (st.Ino != n.ino || st.Dev != n.dev) {
		err = errs.Text("open", f.Name(), errs.Corrupt,
			"another file lies in its place: the folder was changed from outside")
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// openDir opens a folder to change names in it. The caller holds changing.
func (t *Tree) openDir(ctx context.Context, d *dir) (*os.File, error) {
	return t.openNode(ctx, &d.node, unix.O_RDONLY|unix.O_DIRECTORY, true)
}
