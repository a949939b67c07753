package overlay

import (
	"context"
	"fmt"
	"path"
	"sync"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	// flushPending changes of the map start a batch although nobody waits for one, and at maxPending writers wait: the
	// changes are held in memory, and what is never committed must not grow without end.
	flushPending = 4096
	maxPending   = 32768
)

// waiter waits for the batch that makes its range, or everything, durable.
type waiter struct {
	off, end int64
	whole    bool
	done     chan error
}

// queue is the open batch.
type queue struct {
	mu      sync.Mutex // guards waiters and stopped
	waiters []*waiter
	stopped bool
	wake    chan struct{} // holds one token when the worker has something to look at
}

func (q *queue) kick() {
	select {
	case q.wake <- struct{}{}:
	default: // a token is there already
	}
}

func (q *queue) stop() {
	q.mu.Lock()
	q.stopped = true
	q.mu.Unlock()
	q.kick()
}

// join puts w into the open batch and waits for it. When ctx ends first the change may be made durable all the same.
func (o *Overlay) join(ctx context.Context, w *waiter) error {
	w.done = make(chan error, 1)
	o.queue.mu.Lock()
	if o.queue.stopped {
		o.queue.mu.Unlock()
		return errClosed
	}
	o.queue.waiters = append(o.queue.waiters, w)
	o.queue.mu.Unlock()
	o.queue.kick()
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Commit makes every write that returned before the call durable.
func (o *Overlay) Commit(ctx context.Context) error {
	if err := o.usable(ctx); err != nil {
		return errs.Wrap("commit", o.dir, err)
	}
	return errs.Wrap("commit", o.dir, o.join(ctx, &waiter{whole: true}))
}

// work is the worker: one batch after the other until the overlay is closed.
func (o *Overlay) work() {
	for range o.queue.wake {
		o.queue.mu.Lock()
		batch, stopped := o.queue.waiters, o.queue.stopped
		o.queue.waiters = nil
		o.queue.mu.Unlock()
		if stopped && len(batch) == 0 {
			return
		}
		o.commitBatch(batch)
		if stopped {
			return
		}
	}
}

// taken is what a batch makes durable.
type taken struct {
	changes  []entry
	size     int64
	dirty    []*segment
	zeroed   []span
	payload  []byte   // empty: the map has not changed
	snapshot [][]byte // not nil: the log is to be rewritten
}

// commitBatch makes everything that was put in place so far durable, in the order that the invariants ask for, and
// answers the batch.
func (o *Overlay) commitBatch(batch []*waiter) {
	t, err := o.take()
	if err == nil {
		err = o.syncData(t)
	}
	if err == nil {
		err = o.record(t)
	}
	o.answer(batch, err)
	if err == nil {
		o.punches = append(o.punches, t.zeroed...)
		o.punch()
	}
}

// take closes the batch: what comes later is not in it. All changes it returns belong to data that is written, if not
// synced, and whose segments are among those it returns.
func (o *Overlay) take() (*taken, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.poison != nil {
		return nil, o.poison
	}
	t := &taken{changes: o.pending, size: o.st.size, zeroed: o.zeroed}
	o.pending, o.zeroed = nil, nil
	for _, s := range o.segments {
		if s.dirty {
			s.dirty = false
			t.dirty = append(t.dirty, s)
		}
	}
	logged := o.loggedSize
	for _, e := range t.changes {
		t.payload = appendEntry(t.payload, e)
		if e.kind == entryTruncate {
			logged = e.a
		}
	}
	if t.size != logged {
		t.payload = appendEntry(t.payload, entry{kind: entrySize, a: t.size})
	}
	if len(t.payload) > 0 && (o.log.broken || o.log.end > o.log.compact || len(t.payload) > maxBatchPayload) {
		t.snapshot = o.st.snapshot()
	}
	return t, nil
}

func (o *Overlay) syncData(t *taken) error {
	for _, s := range t.dirty {
		if err := s.f.Sync(); err != nil {
			return o.poisoned("sync data", err)
		}
	}
	return nil
}

// record puts the changes of a batch into the log. When there is no space for them they wait for the next batch.
func (o *Overlay) record(t *taken) error {
	if len(t.payload) == 0 {
		return nil
	}
	f := o.writeLog(t)
	o.mu.Lock()
	if f == nil {
		o.loggedSize = t.size
		o.mu.Unlock()
		return nil
	}
	if f.fatal {
		o.mu.Unlock()
		return o.poisoned("record the map", f.err)
	}
	o.pending = append(t.changes, o.pending...)
	o.zeroed = append(t.zeroed, o.zeroed...)
	o.mu.Unlock()
	return f.err
}

func (o *Overlay) writeLog(t *taken) *failure {
	if t.snapshot != nil {
		f := o.log.rewrite(t.snapshot)
		if f == nil && o.opts.compactAfter > 0 {
			o.log.compact = o.log.end + o.opts.compactAfter
		}
		if f == nil || f.fatal || o.log.broken || len(t.payload) > maxBatchPayload {
			return f
		}
		o.log.compact = o.log.end + compactMin // the old log is good; do not try again at once
	}
	return o.log.append(t.payload)
}

// answer tells every waiter how its batch went. A log without space takes nothing from those whose blocks it has
// already: their data is synced.
func (o *Overlay) answer(batch []*waiter, err error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, w := range batch {
		if err != nil && o.poison == nil && !w.whole && w.end <= o.loggedSize && !o.pendingIn(w.off, w.end) {
			w.done <- nil
			continue
		}
		w.done <- err
	}
}

// pendingIn tells whether the log lacks a change of the bytes [off, end). The caller holds mu.
func (o *Overlay) pendingIn(off, end int64) bool {
	for _, e := range o.pending {
		switch e.kind {
		case entryTruncate:
			return true
		default:
			if e.a*blockSize < end && off < (e.a+e.b)*blockSize {
				return true
			}
		}
	}
	return false
}

// poisoned ends all writing: what the disk holds of the unsynced data is unknown, and asking it again would be answered
// by a success that means nothing.
func (o *Overlay) poisoned(op string, err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.poison == nil {
		o.generation++
		o.poison = errs.New(op, o.dir, errs.KindOf(err), fmt.Errorf(
			"what was written since the last sync may be lost, writing has ended: %w", err)).
			WithNext("Check the disk under the overlay, then open it again; reading still works.")
	}
	return o.poison
}

// change notes a change of the map for the next batch. The caller holds mu and makes the change in st itself.
func (o *Overlay) change(e entry) {
	if n := len(o.pending); n > 0 && e.kind != entryTruncate {
		if last := &o.pending[n-1]; last.kind == e.kind && last.a+last.b == e.a {
			last.b += e.b
			return
		}
	}
	o.pending = append(o.pending, e)
	if len(o.pending) == flushPending {
		o.queue.kick()
	}
}

// segmentFor returns the segment with number i and makes it if it is not there.
func (o *Overlay) segmentFor(i int64) (*segment, error) {
	if s := o.existing(i); s != nil {
		return s, nil
	}
	o.making.Lock()
	defer o.making.Unlock()
	if s := o.existing(i); s != nil {
		return s, nil
	}
	name := path.Join(o.dir, segmentName(i))
	f, err := o.d.Create(name)
	if errs.Is(err, errs.Exists) { // made by an attempt whose next step failed
		f, err = o.d.OpenRW(name)
	}
	if err != nil {
		return nil, err
	}
	if err := o.d.SyncDir(o.dir); err != nil {
		_ = f.Close()
		return nil, o.poisoned("make segment", err)
	}
	s := &segment{f: f}
	o.mu.Lock()
	o.segments[i] = s
	o.mu.Unlock()
	return s, nil
}

func (o *Overlay) existing(i int64) *segment {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.segments[i]
}

// punch gives back the space of blocks that no longer hold data. It must not wait for a writer, which may itself wait
// for a slow base: what is held stays for the next batch. A failure costs space and nothing else, so it is dropped.
func (o *Overlay) punch() {
	var busy []span
	for _, p := range o.punches {
		if !o.ranges.tryLock(p) {
			busy = append(busy, p)
			continue
		}
		o.mu.RLock()
		pending := o.pendingIn(p.first*blockSize, p.end*blockSize) // a later change, with a punch of its own
		o.mu.RUnlock()
		for at := p.first; at < p.end && !pending; {
			o.mu.RLock()
			s, n := o.st.blocks.run(at, p.end-at)
			o.mu.RUnlock()
			if s != stateData {
				o.punchRun(at*blockSize, (at+n)*blockSize)
			}
			at += n
		}
		o.ranges.unlock(p)
	}
	o.punches = busy
}

func (o *Overlay) punchRun(off, end int64) {
	for off < end {
		i := off / o.seg
		to := min(end, (i+1)*o.seg)
		if s := o.existing(i); s != nil {
			if p, can := s.f.(disk.Puncher); can {
				_ = p.Punch(off-i*o.seg, to-off)
			}
		}
		off = to
	}
}
