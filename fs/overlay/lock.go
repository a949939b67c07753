package overlay

import (
	"path"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

const lockName = "lock"

// lockDir holds the overlay's folder against other openers for as long as the returned file is open; the kernel lets
// go of it when the process dies in any way. Disks that live in this process only have nothing to lock.
func lockDir(d disk.Disk, dir string) (disk.File, error) {
	name := path.Join(dir, lockName)
	f, err := d.OpenRW(name)
	if errs.Is(err, errs.NotFound) {
		f, err = d.Create(name)
		if errs.Is(err, errs.Exists) { // another opener was between the two calls
			f, err = d.OpenRW(name)
		}
	}
	if err != nil {
		return nil, err
	}
	real, is := f.(interface{ Fd() uintptr })
	if !is {
		return f, nil
	}
	for {
		err = unix.Flock(int(real.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EINTR {
			break
		}
	}
	switch err {
	case nil:
		return f, nil
	case unix.EWOULDBLOCK:
		err = errs.Text("lock", name, errs.Busy, "another process has this overlay open").
			WithNext("End the session that uses it, or wait until its daemon has stopped.")
	}
	_ = f.Close()
	return nil, err
}
