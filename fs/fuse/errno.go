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

// interruptGrace is how long an operation may still take after its caller was interrupted. Most signals mean nothing for
// a read (Go programs get some by the hundred, a progress timer sends others), and programs do not expect EINTR from a
// file; a caller that was killed must not hang for long either.
const interruptGrace = time.Second

// view is what all nodes of a mount share.
type view struct {
	tree       fs.Tree
	readOnly   bool
	immutable  bool
	delayLimit time.Duration
	log        *slog.Logger
	faults     throttle
}

// errno translates what the tree answered.
func (v *view) errno(op string, id fs.ID, err error) syscall.Errno {
	e := errnos[fs.StatusOf(err)]
	if e == syscall.EIO { // a program is told no more than "input/output error", so the reason must not be lost
		if ok, left := v.faults.pass(time.Now()); ok {
			v.log.Error("a request failed", "op", op, "node", uint64(id), "err", err, "suppressed", left)
		}
	}
	return e
}

// whole returns the context for a change of names. It does not end by an interruption: nobody could tell whether the
// change was made.
func (v *view) whole(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), v.delayLimit)
}

// again runs f, which can be repeated without harm, until it answers something else than fs.StatusDelay or the delay
// limit passes. An interruption ends the try that runs; one more decides.
func (v *view) again(ctx context.Context, op string, id fs.ID, f func(context.Context) error) syscall.Errno {
	err := f(ctx)
	if fs.StatusOf(err) != fs.StatusDelay {
		return v.errno(op, id, err)
	}
	limit := time.NewTimer(v.delayLimit)
	defer limit.Stop()
	for pause := firstPause; fs.StatusOf(err) == fs.StatusDelay; pause = min(2*pause, lastPause) {
		wait := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			wait.Stop()
			return v.lastTry(ctx, op, id, f)
		case <-limit.C:
			wait.Stop()
			return v.errno(op, id, err)
		case <-wait.C:
		}
		err = f(ctx)
	}
	return v.errno(op, id, err)
}

// lastTry answers an interrupted request: with the truth if that can be had soon, else with EINTR.
func (v *view) lastTry(ctx context.Context, op string, id fs.ID, f func(context.Context) error) syscall.Errno {
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), interruptGrace)
	defer cancel()
	err := f(grace)
	if fs.StatusOf(err) == fs.StatusDelay {
		return syscall.EINTR
	}
	return v.errno(op, id, err)
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
