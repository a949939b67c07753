package node

import (
	"context"
	"io"
	"maps"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/overlay"
	"github.com/holdfast-backup/holdfast/fs/synthetic/qcow2"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// written is a disk of a point with what was written over it: what a session or a server has made of it.
type written struct {
	disk    chunkstore.Disk // of the point
	base    fs.Stream       // as it was published
	overlay *overlay.Overlay
}

// source returns the disk as it is now, for the store, with the point's disk as parent. Of what was not written since,
// nothing is read. A qcow2 file is read through the tables that its writers have left, not by offset. The overlay must
// not change meanwhile.
func (w written) source(ctx context.Context) (chunkstore.Source, error) {
	v, is := w.base.(*qcow2.View)
	if !is {
		return w.sized(ctx, &keptRaw{w: w, size: w.overlay.Size()})
	}
	m, err := qcow2.Open(contextReader{ctx, w.overlay}, w.overlay.Size())
	if err != nil {
		return nil, errs.New("read what was written", "", errs.KindOf(err), err).
			WithNext("Look at the disk from within the VM: what its host has written is no whole qcow2 image.")
	}
	return w.sized(ctx, &keptQcow2{w: w, image: m, view: v, size: m.Size()})
}

// resizable is a source whose end can be drawn in to the exact size of the point's disk.
type resizable interface {
	chunkstore.Source
	resize(size int64)
}

// sized gives the disk back the exact size that it had, if that lies within the last block and nobody wrote there: what
// is published is rounded up.
func (w written) sized(ctx context.Context, s resizable) (chunkstore.Source, error) {
	exact := w.disk.Root.Size
	if exact%chunk.Grid == 0 || s.Size() != exact/chunk.Grid*chunk.Grid+chunk.Grid {
		return s, nil
	}
	var end chunkstore.ExtentKind
	err := s.Extents(ctx, func(e chunkstore.Extent) error {
		if e.Off+e.Len > exact && (e.Off <= exact || e.Kind == chunkstore.ExtentData) {
			end = e.Kind
		}
		return nil
	})
	if err == nil && end != chunkstore.ExtentData {
		s.resize(exact)
	}
	return s, err
}

// extents passes runs on as extents, within the disk's new size and with nothing "unchanged" where the parent has
// nothing: the padding of the published view, or what was hidden by a shrink, is zeros.
func (w written) extents(size int64, visit func(chunkstore.Extent) error) func(off, n int64, kind chunkstore.ExtentKind) error {
	limit := w.disk.Root.Size
	if _, isView := w.base.(*qcow2.View); !isView {
		limit = min(limit, w.overlay.BaseLimit())
	}
	return func(off, n int64, kind chunkstore.ExtentKind) error {
		n = min(n, size-off)
		if kind == chunkstore.ExtentUnchanged && off+n > limit {
			if off < limit {
				if err := visit(chunkstore.Extent{Off: off, Len: limit - off, Kind: kind}); err != nil {
					return err
				}
				off, n = limit, off+n-limit
			}
			kind = chunkstore.ExtentZero
		}
		if n <= 0 {
			return nil
		}
		return visit(chunkstore.Extent{Off: off, Len: n, Kind: kind})
	}
}

// keptRaw is a disk that was published as it is.
type keptRaw struct {
	w    written
	size int64
}

func (k *keptRaw) Size() int64       { return k.size }
func (k *keptRaw) resize(size int64) { k.size = size }

func (k *keptRaw) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return k.w.overlay.ReadAt(ctx, p, off)
}

// overlayKinds translates what an overlay says.
var overlayKinds = [...]chunkstore.ExtentKind{
	overlay.KindBase: chunkstore.ExtentUnchanged, overlay.KindData: chunkstore.ExtentData, overlay.KindZero: chunkstore.ExtentZero,
}

func (k *keptRaw) Extents(_ context.Context, visit func(chunkstore.Extent) error) error {
	add, stop := k.w.extents(k.size, visit), error(nil)
	err := k.w.overlay.Runs(0, k.size, func(off, n int64, kind overlay.Kind) bool {
		stop = add(off, n, overlayKinds[kind])
		return stop == nil
	})
	if stop != nil {
		return stop
	}
	return err
}

// keptQcow2 is a disk that was published as a qcow2 file.
type keptQcow2 struct {
	w     written
	image *qcow2.Image
	view  *qcow2.View
	size  int64
}

func (k *keptQcow2) Size() int64       { return k.size }
func (k *keptQcow2) resize(size int64) { k.size = size }

func (k *keptQcow2) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return k.image.ReadAt(ctx, p, off)
}

// qcow2Kinds translates what the image says.
var qcow2Kinds = [...]chunkstore.ExtentKind{
	qcow2.Unchanged: chunkstore.ExtentUnchanged, qcow2.Zeroed: chunkstore.ExtentZero, qcow2.Written: chunkstore.ExtentData,
}

func (k *keptQcow2) Extents(ctx context.Context, visit func(chunkstore.Extent) error) error {
	add, stop := k.w.extents(k.size, visit), error(nil)
	err := k.image.Changes(ctx, k.view, overlaid{k.w.overlay}, func(off, n int64, c qcow2.Change) bool {
		stop = add(off, n, qcow2Kinds[c])
		return stop == nil
	})
	if stop != nil {
		return stop
	}
	return err
}

// overlaid tells a qcow2 image what was written of its file.
type overlaid struct{ o *overlay.Overlay }

// Runs implements qcow2.Overlaid. What was cut off the file once counts as written, and so does all past its end.
func (w overlaid) Runs(off, n int64, visit func(off, n int64, written bool) bool) error {
	end, more, limit := off+n, true, w.o.BaseLimit()
	err := w.o.Runs(off, n, func(o, k int64, kind overlay.Kind) bool {
		off = o + k
		if kind == overlay.KindBase && o < limit {
			first := min(k, limit-o)
			more = visit(o, first, false)
			o, k = o+first, k-first
		}
		if more && k > 0 {
			more = visit(o, k, true)
		}
		return more
	})
	if err == nil && more && off < end {
		visit(off, end-off, true)
	}
	return err
}

// contextReader reads an overlay as an io.ReaderAt.
type contextReader struct {
	ctx context.Context
	o   *overlay.Overlay
}

var _ io.ReaderAt = contextReader{}

func (r contextReader) ReadAt(p []byte, off int64) (int, error) { return r.o.ReadAt(r.ctx, p, off) }

// untouched is a disk that is what it was in the parent.
type untouched struct{ size int64 }

func (u untouched) Size() int64 { return u.size }

func (u untouched) Extents(_ context.Context, visit func(chunkstore.Extent) error) error {
	if u.size == 0 {
		return nil
	}
	return visit(chunkstore.Extent{Len: u.size, Kind: chunkstore.ExtentUnchanged})
}

func (u untouched) ReadAt(context.Context, []byte, int64) (int, error) {
	return 0, errs.Text("read disk", "", errs.Bug, "it has not changed, and is not to be read")
}

// keeping is a new point to be made of an old one and what was written over it.
type keeping struct {
	parent   *chunkstore.Point
	disks    map[int]written // by number; those that are not here are what they were
	labels   map[string]string
	config   []byte
	now      time.Time
	progress func(done, total int64, st chunkstore.Stats) // may be nil
}

// keepPoint makes the point. What the store has of it already is shared.
func keepPoint(ctx context.Context, s *chunkstore.Store, k keeping) (*chunkstore.Point, chunkstore.Stats, error) {
	labels := maps.Clone(k.labels)
	labels[appliance.LabelStrategy] = appliance.StrategyKeep
	labels[appliance.LabelParent] = string(k.parent.ID)
	labels[appliance.LabelMode] = "incremental"
	x := s.Begin(k.now, labels, k.config)
	defer x.Abort()
	var done, total int64
	for _, d := range k.parent.Disks {
		total += d.Root.Size
	}
	for _, d := range k.parent.Disks {
		var src chunkstore.Source = untouched{d.Root.Size}
		if w, has := k.disks[d.Number]; has {
			var err error
			if src, err = w.source(ctx); err != nil {
				return nil, chunkstore.Stats{}, err
			}
		}
		err := x.Ingest(ctx, d.Number, src, &chunkstore.Parent{Point: k.parent, Disk: d}, func(p chunkstore.Progress) {
			if k.progress != nil {
				k.progress(min(done+p.DoneBytes, total), total, p.Stats)
			}
		})
		if err != nil {
			return nil, chunkstore.Stats{}, err
		}
		done += d.Root.Size
	}
	p, err := x.Commit(ctx)
	return p, x.Stats(), err
}
