package disk

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"
)

// OS is the real disk. The zero value works on paths as the process sees them.
type OS struct{}

var _ Disk = OS{}

// Open implements Disk.
func (OS) Open(name string) (File, error) { return openOS(name, os.O_RDONLY) }

// OpenRW implements Disk.
func (OS) OpenRW(name string) (File, error) { return openOS(name, os.O_RDWR) }

// Create implements Disk.
func (OS) Create(name string) (File, error) { return openOS(name, os.O_RDWR|os.O_CREATE|os.O_EXCL) }

func openOS(name string, flags int) (File, error) {
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return &osFile{f}, nil
}

// Rename implements Disk.
func (OS) Rename(oldName, newName string) error { return os.Rename(oldName, newName) }

// Remove implements Disk.
func (OS) Remove(name string) error { return os.Remove(name) }

// ReadDir implements Disk.
func (OS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

// MkdirAll implements Disk.
func (o OS) MkdirAll(name string) error {
	st, err := os.Stat(name)
	if err == nil {
		if !st.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: name, Err: unix.ENOTDIR}
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := path.Dir(name)
	if parent != name {
		if err := o.MkdirAll(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return o.SyncDir(parent)
}

// SyncDir implements Disk.
func (OS) SyncDir(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

type osFile struct{ *os.File }

// Sync makes the data durable; fdatasync also writes the size when it changed, which is all that a reader needs.
func (f *osFile) Sync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// Size implements Sizer.
func (f *osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Punch implements Puncher.
func (f *osFile) Punch(off, n int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	return os.NewSyscallError("fallocate", err)
}

// Occupied implements Occupier.
func (f *osFile) Occupied() (int64, int, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return st.Size(), 1, nil
	}
	return sys.Blocks * 512, int(sys.Nlink), nil
}
