package qcow2

import (
	"context"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Change says how a range of a disk compares with what a View showed of it at first.
type Change uint8

// The changes.
const (
	Unchanged Change = iota // the same bytes
	Zeroed                  // reads as zeros now
	Written                 // may hold anything: must be read
)

// Overlaid tells of a file that lies over a View which of its bytes were written since.
type Overlaid interface {
	// Runs calls visit with the runs of bytes that were written or not, which make up [off, off+n) in order, until visit
	// returns false. Runs may claim more than was written, never less.
	Runs(off, n int64, visit func(off, n int64, written bool) bool) error
}

// Changes calls visit for the runs of the disk in m, from its start to its end, in order and without gaps, until visit
// returns false: how they compare with the disk of v. m was a View once and has been written to since, by whoever
// knows the format: what o says about the file is translated through the tables that are there now. Neighbours differ
// in their change. Only tables are read; those of clusters where nothing was written are not even looked at.
//
// A run may be called Written although its bytes are what they were, never the other way round. errs.Invalid: m is no
// image that was v.
func (m *Image) Changes(ctx context.Context, v *View, o Overlaid, visit func(off, n int64, c Change) bool) error {
	const op = "find changes in qcow2 image"
	if m.h.bits != v.lay.bits {
		return errs.Text(op, "", errs.Invalid, "the clusters have another size than those of the view")
	}
	w := changeWalk{m: m, v: v, o: o, visit: visit}
	for at := int64(0); at < m.h.size && !w.stopped; {
		s, err := m.sliceAt(ctx, at)
		if err == nil {
			err = w.slice(ctx, &s, at, min(s.end, m.h.size))
		}
		if err != nil {
			return errs.Wrap(op, "", err)
		}
		at = s.end
	}
	w.add(m.h.size, 0, Unchanged) // tells of the last run
	return nil
}

// changeWalk gathers clusters and parts of them into runs.
type changeWalk struct {
	m       *Image
	v       *View
	o       Overlaid
	visit   func(off, n int64, c Change) bool
	from    int64 // start of the run that is open
	change  Change
	stopped bool
}

// add says how the n bytes from off compare. They follow those that were added last; 0 bytes end the last run.
func (w *changeWalk) add(off, n int64, c Change) {
	if (n == 0 || c != w.change) && off > w.from && !w.stopped {
		w.stopped = !w.visit(w.from, off-w.from, w.change)
		w.from = off
	}
	if off == w.from {
		w.change = c
	}
}

// written tells whether any of n bytes of the file was.
func (w *changeWalk) written(off, n int64) (any bool, err error) {
	err = w.o.Runs(off, n, func(_, _ int64, written bool) bool {
		any = any || written
		return !any
	})
	return any, err
}

// slice takes the part [at, end) of the disk, which s maps.
func (w *changeWalk) slice(ctx context.Context, s *slice, at, end int64) error {
	same, err := w.same(s, end)
	if err != nil {
		return err
	}
	if same {
		w.add(at, end-at, Unchanged)
		return nil
	}
	c := w.m.ClusterSize()
	for ; at < end && !w.stopped; at += c {
		if err := w.cluster(ctx, s, at, min(c, end-at)); err != nil {
			return err
		}
	}
	return nil
}

// same tells whether neither the table's piece nor the data that it mapped at first were touched.
func (w *changeWalk) same(s *slice, end int64) (bool, error) {
	y := &w.v.lay
	if s.raw == nil || end > y.size || s.host != y.l2+s.start>>y.bits*8 {
		return false, nil
	}
	for _, r := range [...][2]int64{{s.host, int64(len(s.raw))}, {y.data + s.start, end - s.start}} {
		if any, err := w.written(r[0], r[1]); err != nil || any {
			return false, err
		}
	}
	return true, nil
}

// cluster compares the n bytes of one cluster of the disk.
func (w *changeWalk) cluster(ctx context.Context, s *slice, at, n int64) error {
	y := &w.v.lay
	var e entry
	if s.raw != nil {
		var err error
		if e, err = w.m.entry(s, at); err != nil {
			return err
		}
	}
	held := false // the view had data there
	if at < y.size {
		present, err := w.v.present(ctx, at>>y.bits/y.perTable())
		if err != nil {
			return err
		}
		held = present.has(at >> y.bits % y.perTable())
	}
	switch {
	case e.kind == kindZero && !held && at+n <= y.size:
		w.add(at, n, Unchanged)
	case e.kind == kindZero:
		w.add(at, n, Zeroed)
	case e.kind == kindCompressed || e.host != y.data+at || at+n > y.size || !held:
		w.add(at, n, Written)
	default: // it is where it was: parts of it may be as they were
		return w.o.Runs(e.host, n, func(off, n int64, written bool) bool {
			c := Unchanged
			if written {
				c = Written
			}
			w.add(off-y.data, n, c)
			return !w.stopped
		})
	}
	return nil
}
