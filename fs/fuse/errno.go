package fuse

import (
	"context"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-backup/holdfast/fs"
)

// errnos translates statuses. ENOSYS must not appear: the kernel takes it for "never ask again".
var errnos = [len(fs.Statuses)]syscall.Errno{
	fs.StatusOK:           0,
	fs.StatusPermission:   syscall.EPERM,
	fs.StatusNotFound:     syscall.ENOENT,
	fs.StatusIO:           syscall.EIO,
	fs.StatusAccess:       syscall.EACCES,
	fs.StatusExists:       syscall.EEXIST,
	fs.StatusCrossDevice:  syscall.EXDEV,
	fs.StatusNotDir:       syscall.ENOTDIR,
	fs.StatusIsDir:        syscall.EISDIR,
	fs.StatusInvalid:      syscall.EINVAL,
	fs.StatusTooLarge:     syscall.EFBIG,
	fs.StatusNoSpace:      syscall.ENOSPC,
	fs.StatusReadOnly:     syscall.EROFS,
	fs.StatusTooManyLinks: syscall.EMLINK,
	fs.StatusNameTooLong:  syscall.ENAMETOOLONG,
	fs.StatusNotEmpty:     syscall.ENOTEMPTY,
	fs.StatusStale:        syscall.ESTALE,
	fs.StatusBadHandle:    syscall.ESTALE,
	fs.StatusNotSync:      syscall.EIO, // answers a guard, and we never send one
	fs.StatusBadCookie:    syscall.EINVAL,
	fs.StatusNotSupported: syscall.EOPNOTSUPP,
	fs.StatusServerFault:  syscall.EIO,
	// Programs either give up on EAGAIN from a plain file or spin on it, so waiting is done here (see view.again), and
	// this is for when the waiting is over.
	fs.StatusDelay: syscall.EIO,
}

// The pauses between two tries of an operation that answered fs.StatusDelay.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = time.Second
)

// view is what all nodes of a mount share.
type view struct {
	tree       fs.Tree
	readOnly   bool
	immutable  bool
	delayLimit time.Duration
	log        *slog.Logger
	faults     throttle
}

// errno translates what a change of names answered.
func (v *view) errno(ctx context.Context, op string, id fs.ID, err error) syscall.Errno {
	s := fs.StatusOf(err)
	if s == fs.StatusOK {
		return 0
	}
	if ctx.Err() != nil && s == fs.StatusDelay {
		return syscall.EINTR
	}
	e := errnos[s]
	if e == syscall.EIO { // a program is told no more than "input/output error", so the reason must not be lost
		if ok, left := v.faults.pass(time.Now()); ok {
			v.log.Error("a request failed", "op", op, "node", uint64(id), "err", err, "suppressed", left)
		}
	}
	return e
}

// again runs f, which can be repeated without harm, until it answers something else than fs.StatusDelay, the request is
// interrupted, or the delay limit passes.
func (v *view) again(ctx context.Context, op string, id fs.ID, f func() error) syscall.Errno {
	err := f()
	if fs.StatusOf(err) != fs.StatusDelay {
		return v.errno(ctx, op, id, err)
	}
	limit := time.NewTimer(v.delayLimit)
	defer limit.Stop()
	for pause := firstPause; fs.StatusOf(err) == fs.StatusDelay; pause = min(2*pause, lastPause) {
		wait := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			wait.Stop()
			return syscall.EINTR
		case <-limit.C:
			wait.Stop()
			return v.errno(ctx, op, id, err)
		case <-wait.C:
		}
		err = f()
	}
	return v.errno(ctx, op, id, err)
}

// throttle lets one message a second through: a reader that runs over a damaged image asks thousands of times.
type throttle struct {
	mu   sync.Mutex // guards the rest
	next time.Time
	left int
}

// pass tells whether to speak now, and how many were left out since the last time.
func (t *throttle) pass(now time.Time) (ok bool, left int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Before(t.next) {
		t.left++
		return false, 0
	}
	left, t.left = t.left, 0
	t.next = now.Add(time.Second)
	return true, left
}
