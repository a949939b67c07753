package chunkstore

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// A lease says that somebody reads a point, and keeps what the point needs from being collected, also when the point is
// removed meanwhile. It is a shared lock of the kernel's (an open file description lock) on one byte of the superblock's
// file: which byte follows from the point's ID. So it needs no permission to write, holds on a store that is mounted
// read-only, and ends with its process, however that ends. A collection asks the kernel whether a byte is locked.
//
// A lease counts from the moment at which the point's record was seen with the lock held: a collection looks at locks
// after the record is gone, so it either finds the lock, or the reader finds no record.
type leases struct {
	file string // whose bytes are locked; "" where there is only one process
	log  *slog.Logger
	seen func(context.Context, PointID) error // errs.NotFound: the point has no record

	mu   sync.Mutex // guards the rest; held during calls that lock, which wait for nobody
	f    *os.File   // nil until the first lease
	off  bool       // there are no locks to be had, or the reader is closed
	held map[PointID]*lease
}

// lease is what one Reader holds of a point.
type lease struct {
	n    int
	sure bool // the record was seen with the lock held
}

// take takes a lease. errs.Stale: the point was removed.
func (l *leases) take(ctx context.Context, id PointID) error {
	l.mu.Lock()
	h := l.held[id]
	if h == nil {
		if err := l.lock(id, unix.F_RDLCK); err != nil {
			l.mu.Unlock()
			return errs.Wrap("read point", string(id), err)
		}
		h = &lease{}
		l.held[id] = h
	}
	h.n++
	sure := h.sure
	l.mu.Unlock()
	if sure {
		return nil
	}
	err := l.seen(ctx, id)
	if err == nil {
		l.mu.Lock()
		h.sure = true
		l.mu.Unlock()
		return nil
	}
	l.release(id)
	if errs.Is(err, errs.NotFound) {
		return errs.Text("read point", string(id), errs.Stale, "it was removed").WithNext("See `holdfast point list` for what there is.")
	}
	return errs.Wrap("read point", string(id), err)
}

func (l *leases) release(id PointID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.held[id]
	if h == nil {
		return // the reader was closed
	}
	if h.n--; h.n > 0 {
		return
	}
	delete(l.held, id)
	if err := l.lock(id, unix.F_UNLCK); err != nil {
		l.log.Warn("a lease on a point cannot be given back, its space stays until this process ends", "point", string(id), "err", err)
	}
}

// close gives all leases back.
func (l *leases) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.held)
	l.off = true
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

// lock changes the lock on a point's byte. l.mu is held.
func (l *leases) lock(id PointID, kind int16) error {
	f, err := l.open()
	if f == nil || err != nil {
		return err
	}
	lk := unix.Flock_t{Type: kind, Whence: 0, Start: byteOf(id), Len: 1}
	return l.judge(unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk))
}

// open returns the file to lock, nil if there are no locks. l.mu is held.
func (l *leases) open() (*os.File, error) {
	if l.off || l.file == "" {
		return nil, nil
	}
	if l.f != nil {
		return l.f, nil
	}
	f, err := os.OpenFile(l.file, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	l.f = f
	return f, nil
}

// judge passes over the errors of file systems that have no locks: what is on them can be read all the same.
func (l *leases) judge(err error) error {
	for _, none := range []error{unix.ENOLCK, unix.ENOSYS, unix.EOPNOTSUPP, unix.EINVAL} {
		if errors.Is(err, none) {
			l.log.Warn("the store's file system has no locks: points that are read are not kept from a collection", "file", l.file, "err", err)
			l.off = true
			return nil
		}
	}
	if err != nil {
		return os.NewSyscallError("lock", err)
	}
	return nil
}

// ours returns the points that this Reader holds leases on.
func (l *leases) ours() map[PointID]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[PointID]bool, len(l.held))
	for id := range l.held {
		out[id] = true
	}
	return out
}

// leased tells whether anybody, this Reader or another, holds a lease on the point.
func (l *leases) leased(id PointID) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[id] != nil {
		return true, nil
	}
	f, err := l.open()
	if err != nil {
		return false, err
	}
	if f == nil {
		return false, nil
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: byteOf(id), Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return false, l.judge(err)
	}
	return lk.Type != unix.F_UNLCK, nil
}

// byteOf is the byte that stands for a point. Two points in one byte would only be kept longer than needed.
func byteOf(id PointID) int64 {
	b, err := hex.DecodeString(string(id))
	if err != nil || len(b) != 8 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(b) >> 2) // the end of a range has to fit as well
}

// Lease keeps what a point needs from being collected until release is called or the Reader is closed, even if the
// point is removed meanwhile. errs.Stale: the point was removed already.
func (r *Reader) Lease(ctx context.Context, id PointID) (release func(), err error) {
	if !id.Valid() {
		return nil, errs.Text("read point", string(id), errs.Invalid, "a point's ID is 16 lower-case hexadecimal digits")
	}
	if err := r.leases.take(ctx, id); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { r.leases.release(id) }), nil
}

// seePoint fails with errs.NotFound if the point has no record.
func (r *Reader) seePoint(ctx context.Context, id PointID) error {
	o, err := r.b.Open(ctx, pointName(id))
	if err != nil {
		return err
	}
	return o.Close()
}

// imageLease is the lease of an Image, taken at its first read.
type imageLease struct {
	l    *leases
	id   PointID
	held atomic.Bool
	mu   sync.Mutex // held while the lease is taken
}

func (l *imageLease) take(ctx context.Context) error {
	if l == nil || l.held.Load() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held.Load() {
		return nil
	}
	if err := l.l.take(ctx, l.id); err != nil {
		return err
	}
	l.held.Store(true)
	return nil
}

// release runs when nobody can read the image any more.
func (l *imageLease) release() {
	if l.held.Load() {
		l.l.release(l.id)
	}
}
