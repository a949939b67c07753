package collect

import (
	"context"
	"slices"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// List implements Packs.
func (w *world) List(context.Context) (out []Pack, err error) {
	if err := w.step(); err != nil {
		return nil, err
	}
	newest := w.last
	for _, begun := range w.sessions {
		newest = min(newest, begun)
	}
	for _, id := range w.sortedPacks() {
		if p := w.packs[id]; p.sealed && id.number <= newest {
			out = append(out, Pack{Kind: id.kind, Number: id.number, Size: int64(p.end) * chunk.PlaceUnit, HasRest: p.shrunk})
		}
	}
	return out, w.step()
}

// Directory implements Packs.
func (w *world) Directory(_ context.Context, p Pack) ([]Chunk, error) {
	if err := w.step(); err != nil {
		return nil, err
	}
	return slices.Clone(w.packs[packID{p.Kind, p.Number}].chunks), nil
}

// CanShrink implements Space.
func (w *world) CanShrink(_ context.Context, p Pack) error {
	if w.packs[packID{p.Kind, p.Number}].rigid {
		return errs.Text("shrink", "", errs.Unsupported, "no holes")
	}
	return w.step()
}

// Gain implements Space.
func (w *world) Gain(_ Pack, all, left []Chunk) (n int64, holes int) {
	return int64(len(all)-len(left)) * least / 2, 1
}

// Shrink implements Space.
func (w *world) Shrink(_ context.Context, p Pack, left []Chunk) (freed int64, holes int, err error) {
	if err := w.step(); err != nil {
		return 0, 0, err
	}
	s := w.packs[packID{p.Kind, p.Number}]
	was := s.chunks
	s.chunks, s.shrunk = slices.Clone(left), true
	if err := w.step(); err != nil { // killed between the rest and the holes
		return 0, 0, err
	}
	for _, c := range was {
		if !slices.Contains(left, c) {
			w.gone[c.Place] = true
		}
	}
	return 1, 1, w.step()
}

// Remove implements Space.
func (w *world) Remove(_ context.Context, p Pack) (int64, error) {
	if err := w.step(); err != nil {
		return 0, err
	}
	w.drop(packID{p.Kind, p.Number})
	return 1, w.step()
}

// Forget implements Index.
func (w *world) Forget(number uint32, ids []chunk.ID) error {
	if err := w.step(); err != nil {
		return err
	}
	w.packs[packID{Data, number}].marked = false
	for _, id := range ids {
		if w.index[id].Pack == number {
			delete(w.index, id)
		}
	}
	return w.step()
}

// Learn implements Index.
func (w *world) Learn(number uint32, chunks []Chunk, left int) error {
	if err := w.step(); err != nil {
		return err
	}
	for _, c := range chunks {
		w.index[c.ID] = c.Place
	}
	p := w.packs[packID{Data, number}]
	if p.marked = true; left != len(p.chunks) {
		w.failf("pack %d is marked with %d chunks and has %d", number, left, len(p.chunks))
	}
	return w.step()
}

// Unfinished implements Journal.
func (w *world) Unfinished() []Pack { return w.intended }

// Intend implements Journal.
func (w *world) Intend(_ context.Context, packs []Pack) error {
	w.intended = slices.Clone(packs)
	return w.step()
}

// End implements Journal.
func (w *world) End(context.Context) error {
	w.intended = nil
	return w.step()
}
