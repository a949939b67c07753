package overlay

import (
	"context"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Kind says where the bytes of a range of the image come from.
type Kind uint8

// The kinds.
const (
	KindBase Kind = iota // from the base, as far as that is still visible; zeros beyond
	KindData             // written since
	KindZero             // zeroed or discarded since
)

// kinds translates the states of blocks.
var kinds = [numStates]Kind{stateBase: KindBase, stateData: KindData, stateZero: KindZero}

// Runs calls visit for the runs of one kind that make up [off, off+n), as far as that lies within the image, in order,
// until visit returns false. It is the map's own grain: a run of data begins and ends with a block of 4 KiB, whatever
// of it was written. What is written meanwhile may or may not show: see Hold.
func (o *Overlay) Runs(off, n int64, visit func(off, n int64, k Kind) bool) error {
	const op = "list what was written"
	if off < 0 || n < 0 {
		return errs.Text(op, o.dir, errs.Invalid, "negative offset or length")
	}
	for at, end := off, off+min(n, maxSize); ; {
		o.mu.RLock()
		size, closed := o.st.size, o.closed
		end = min(end, size)
		if closed || at >= end {
			o.mu.RUnlock()
			if closed {
				return errs.New(op, o.dir, errs.Stale, errClosed)
			}
			return nil
		}
		first, count := blocks(at, end)
		s, got := o.st.blocks.run(first, count)
		o.mu.RUnlock()
		to := min((first+got)*blockSize, end)
		if !visit(at, to-at, kinds[s]) {
			return nil
		}
		at = to
	}
}

// BaseLimit returns up to where the base is visible: a shrink hides what lies beyond for good.
func (o *Overlay) BaseLimit() int64 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.st.baseLimit
}

// hold is a time in which the image does not change.
type hold struct {
	idle chan struct{} // a token: nobody was writing for a moment
	over chan struct{} // closed at the end
}

// Hold keeps the image as it is until release is called: writers wait, each as long as its context lasts, and readers
// do not notice. It waits for the writers that are at work, so that what is read then is the image at one moment, as
// after a power cut in which nothing was lost. While somebody else holds the overlay it is errs.Busy.
func (o *Overlay) Hold(ctx context.Context) (release func(), err error) {
	const op = "hold overlay"
	o.mu.RLock()
	closed := o.closed
	o.mu.RUnlock()
	if closed {
		return nil, errs.New(op, o.dir, errs.Stale, errClosed)
	}
	h := &hold{idle: make(chan struct{}, 1), over: make(chan struct{})}
	if !o.held.CompareAndSwap(nil, h) {
		return nil, errs.Text(op, o.dir, errs.Busy, "it is held already")
	}
	release = func() {
		o.held.Store(nil)
		close(h.over)
	}
	// Whoever comes from here on finds the hold. Those who are in leave in their own time.
	for o.writing.Load() != 0 {
		select {
		case <-h.idle:
		case <-ctx.Done():
			release()
			return nil, errs.Wrap(op, o.dir, ctx.Err())
		}
	}
	return release, nil
}

// admit begins something that changes the image, when nobody holds it. leave ends it.
func (o *Overlay) admit(ctx context.Context) error {
	for {
		o.writing.Add(1) // before looking for a hold, as Hold is there before it looks at this
		h := o.held.Load()
		if h == nil {
			return nil
		}
		o.leave()
		select {
		case <-h.over:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (o *Overlay) leave() {
	if o.writing.Add(-1) != 0 {
		return
	}
	if h := o.held.Load(); h != nil {
		select {
		case h.idle <- struct{}{}:
		default: // a token is there already
		}
	}
}
