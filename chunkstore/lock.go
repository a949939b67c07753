package chunkstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// lockName is the file that the one writer holds a lock on. Its content, for people, says who that is.
const lockName = "lock"

// storeLock is held for as long as a store is open for writing. The kernel lets go of it when the process dies.
type storeLock struct{ f *os.File }

// lockStore takes the writer's lock. On a disk that is not the real one there is only one process, and no lock.
func lockStore(d disk.Disk, dir string) (*storeLock, error) {
	if _, real := d.(disk.OS); !real {
		return &storeLock{}, nil
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, errs.Wrap("lock", dir, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		who, _ := io.ReadAll(io.LimitReader(f, 200))
		_ = f.Close()
		name := strings.TrimSpace(string(who))
		if name == "" { // it has the lock, and has not written its name yet or has taken it out again
			name = "it is just beginning or ending"
		}
		return nil, errs.Text("lock", dir, errs.Busy, "another process writes to the store: "+name).
			WithNext("Wait until it has ended. Listing, serving, mounting and exporting work meanwhile.")
	}
	if err != nil {
		_ = f.Close()
		return nil, errs.Wrap("lock", dir, err)
	}
	line := fmt.Sprintf("%s, process %d, since %s\n", filepath.Base(os.Args[0]), os.Getpid(), time.Now().Format(time.RFC3339))
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(line), 0) // for people only
	}
	return &storeLock{f}, nil
}

// Close lets go of the lock.
func (l *storeLock) Close() error {
	if l == nil || l.f == nil {
		return nil
	}
	_ = l.f.Truncate(0)
	err := l.f.Close()
	l.f = nil
	return err
}
