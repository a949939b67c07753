package chunkstore

import (
	"context"

	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Whole is implemented by Sources that can read also what they call unchanged. Where the parent's copy is damaged, that
// is done: the content is the same, and heals every point that had the damaged one.
type Whole interface {
	// ReadsUnchanged tells whether ReadAt returns the disk's content everywhere.
	ReadsUnchanged() bool
}

// rereads tells whether the source can be asked for what the parent should have.
func (in *ingest) rereads() bool {
	w, ok := in.src.(Whole)
	return ok && w.ReadsUnchanged()
}

// seekLost finds what of the parent is damaged and has to come from the source. If the source cannot give it, it stays
// damaged in the new point too, which is known of it as of all others.
func (in *ingest) seekLost(ctx context.Context, parent Disk) error {
	if !in.rereads() {
		return nil
	}
	lost, err := in.x.s.lostRanges(ctx, parent)
	if errs.Is(err, errs.Corrupt) { // a record of damage; what is damaged is met, then
		in.x.s.log.Error("what is damaged of the parent is not known", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	in.lost = lost
	for _, l := range lost {
		if l.pages {
			in.rebuild = true // nothing can be shared by way of a page that cannot be read: every leaf is put anew
		}
	}
	return nil
}

// extents is the source's Extents, but for what is unchanged and lost: that is data to be read.
func (in *ingest) extents(ctx context.Context, visit func(Extent) error) error {
	return in.src.Extents(ctx, func(e Extent) error {
		for e.Kind == ExtentUnchanged && e.Len > 0 {
			i := lostAt(in.lost, e.Off)
			if i == len(in.lost) || in.lost[i].off >= e.Off+e.Len {
				break
			}
			part := Extent{e.Off, min(e.Len, in.lost[i].end-e.Off), ExtentData}
			if in.lost[i].off > e.Off {
				part.Len, part.Kind = in.lost[i].off-e.Off, ExtentUnchanged
			}
			if err := visit(part); err != nil {
				return err
			}
			e.Off, e.Len = e.Off+part.Len, e.Len-part.Len
			if e.Len == 0 {
				return nil
			}
		}
		return visit(e)
	})
}

// oldLeaf returns a leaf of the parent, nil if the parent has none or it cannot be read: then all of it is data.
func (in *ingest) oldLeaf(ctx context.Context, n int64) (manifest.Leaf, error) {
	if in.old == nil || n >= in.old.Leaves() {
		return nil, nil
	}
	if i := lostAt(in.lost, n*manifest.LeafSize); i < len(in.lost) && in.lost[i].pages && in.lost[i].off <= n*manifest.LeafSize {
		return nil, nil
	}
	return in.old.Leaf(ctx, n)
}

// mendOld fills part with what the parent should have, after a read of the parent has failed with cause.
func (in *ingest) mendOld(ctx context.Context, part []byte, off int64, cause error) error {
	if !errs.Is(cause, errs.Corrupt) || !in.rereads() {
		return cause
	}
	return in.readSource(ctx, part, off)
}

// mayMend tells whether it is worth to try once more after damage stood in the way: what was found of it is written down
// by now, and the source can be read in its place.
func (x *Session) mayMend(ctx context.Context, src Source, parent *Parent) bool {
	in := ingest{x: x, src: src}
	if err := in.seekLost(ctx, parent.Disk); err != nil {
		x.s.log.Warn("what is damaged of the parent cannot be told", "point", string(parent.Point.ID), "err", err)
	}
	return len(in.lost) > 0
}
