package chunkstore

import (
	"context"
	"fmt"
	"io"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// worker reads, cuts, names and compresses leaves, one after the other.
type worker struct {
	in *ingest
	namer
	buf []byte // the leaf's content, as far as it was read
}

func newWorker(in *ingest) *worker {
	return &worker{in: in, namer: newNamer(in.x.s.super.Digest, in.x.s.digestKey), buf: make([]byte, manifest.LeafSize)}
}

// leaf turns a job into pieces.
func (w *worker) leaf(ctx context.Context, j *job) ([]piece, error) {
	if j.kinds == nil {
		return nil, nil
	}
	r := recut{w: w, kinds: j.kinds, base: j.n * manifest.LeafSize}
	var err error
	if r.old, err = w.in.oldLeaf(ctx, j.n); err != nil {
		return nil, err
	}
	if err := r.run(ctx); err != nil {
		release(r.out)
		return nil, err
	}
	return r.out, nil
}

// recut makes a leaf of the old leaf and of what has changed since: the cut that the whole new leaf would have, though
// only what lies around the changes is read.
//
// A change makes dirty the old chunk it lies in. Cutting begins where the first dirty chunk did, which is an edge still,
// for nothing before it has changed; and it goes on, past the last dirty chunk if need be, until a piece ends where an
// old one does. From there on old and new are cut alike, up to the next change. What is read beyond the changes is
// content of the parent point and comes from the store. Should the old leaf have been cut in another way, the result is
// an exact cover all the same; old and new then meet at the window's end at the latest.
//
// All positions are blocks of the leaf.
type recut struct {
	w     *worker
	kinds *blockKinds
	old   manifest.Leaf
	base  int64 // of the leaf, in bytes of the disk
	out   []piece
	done  int // blocks that out covers
}

func (r *recut) run(ctx context.Context) error {
	for {
		from := r.nextDirty(r.done)
		if from < manifest.LeafBlocks {
			from = max(r.begin(from), r.done)
		}
		r.keep(from)
		if from == manifest.LeafBlocks {
			return nil
		}
		if err := r.span(ctx, from); err != nil {
			return err
		}
	}
}

// unit returns the stretch from block b on that is clean or dirty as a whole: the rest of an old chunk, or blocks of an
// old run of zeros. A chunk is dirty if anything in it may have changed, a run of zeros only where it may have ended.
func (r *recut) unit(b int) (end int, dirty bool) {
	e, start := r.old.Find(b)
	if !e.IsZero() {
		return int(e.End), r.touched(start, int(e.End))
	}
	dirty = !r.zeros(b)
	for end = b + 1; end < int(e.End) && r.zeros(end) != dirty; end++ {
	}
	return end, dirty
}

// zeros tells whether a block of an old run of zeros is zeros still.
func (r *recut) zeros(b int) bool { return r.kinds[b] == ExtentUnchanged || r.kinds[b] == ExtentZero }

// touched tells whether an old chunk may have changed.
func (r *recut) touched(start, end int) bool {
	for b := start; b < end; b++ {
		if r.kinds[b] != ExtentUnchanged {
			return true
		}
	}
	return false
}

// nextDirty returns the first block from b on that begins a dirty unit.
func (r *recut) nextDirty(b int) int {
	for b < manifest.LeafBlocks {
		end, dirty := r.unit(b)
		if dirty {
			return b
		}
		b = end
	}
	return b
}

// dirty tells whether the unit at b is dirty. At the leaf's end there is none.
func (r *recut) dirty(b int) bool {
	if b == manifest.LeafBlocks {
		return false
	}
	_, dirty := r.unit(b)
	return dirty
}

// begin returns where cutting has to begin if the unit at b is the first dirty one.
func (r *recut) begin(b int) int {
	e, start := r.old.Find(b)
	if !e.IsZero() {
		return start
	}
	at := r.w.in.x.s.cutter.Resume(r.base+int64(start)*chunk.Grid, r.base+int64(b)*chunk.Grid)
	b = int((at - r.base) / chunk.Grid)
	if b < start {
		_, b = r.old.Find(b)
	}
	return b
}

// keep takes over what is old up to a block.
func (r *recut) keep(end int) {
	for r.done < end {
		e, _ := r.old.Find(r.done)
		r.done = min(int(e.End), end)
		r.out = append(r.out, piece{end: r.done, id: e.ID, place: e.Place})
	}
}

// zeroStep is how much of a run of zeros in the old leaf is given to the cutter at once, in blocks: enough for any cutter
// to see that it is one, and a small part of a large hole.
const zeroStep = (64 << 10) / chunk.Grid

// span cuts anew from a block on until old and new meet.
func (r *recut) span(ctx context.Context, from int) error {
	filled, err := r.fill(ctx, from)
	for err == nil {
		if r.done < filled {
			n, final := r.w.in.x.s.cutter.Next(r.base+int64(r.done)*chunk.Grid, r.bytes(r.done, filled))
			if final {
				r.add(ctx, r.done+n/chunk.Grid)
				continue
			}
		} else if !r.dirty(filled) {
			return nil
		}
		filled, err = r.fill(ctx, filled)
	}
	return err
}

func (r *recut) bytes(from, to int) []byte { return r.w.buf[from*chunk.Grid : to*chunk.Grid] }

// fill reads on from block b and returns up to where.
func (r *recut) fill(ctx context.Context, b int) (to int, err error) {
	for to = r.more(b); b < to; {
		end := b + 1
		for end < to && r.kinds[end] == r.kinds[b] {
			end++
		}
		if err := r.w.in.read(ctx, r.kinds[b], r.bytes(b, end), r.base+int64(b)*chunk.Grid); err != nil {
			return to, err
		}
		b = end
	}
	return to, nil
}

// more returns how far to read on from b: over all that is dirty without a gap, so that the source is read in large
// pieces, or else over one clean unit, of a run of zeros no more than a step.
func (r *recut) more(b int) int {
	end, dirty := r.unit(b)
	if !dirty {
		if e, _ := r.old.Find(b); e.IsZero() {
			end = min(end, b-b%zeroStep+zeroStep)
		}
		return end
	}
	for end < manifest.LeafBlocks {
		next, dirty := r.unit(end)
		if !dirty {
			break
		}
		end = next
	}
	return end
}

// add appends the piece that was cut up to a block.
func (r *recut) add(ctx context.Context, end int) {
	start := r.done
	r.done = end
	if e, s := r.old.Find(start); s == start {
		if to, dirty := r.unit(start); to == end && !dirty { // an old chunk that was only looked at
			r.out = append(r.out, piece{end: end, id: e.ID, place: e.Place})
			return
		}
	}
	r.out = append(r.out, r.w.piece(ctx, r.old, start, r.bytes(start, end)))
}

// read fills part with one stretch of blocks of one kind, from byte off of the disk on. What lies beyond the end of the
// disk is zeros.
func (in *ingest) read(ctx context.Context, kind ExtentKind, part []byte, off int64) error {
	if kind == ExtentZero {
		clear(part)
		return nil
	}
	if rest := in.size - off; rest < int64(len(part)) {
		clear(part[max(rest, 0):])
		part = part[:max(rest, 0)]
	}
	if len(part) == 0 {
		return nil
	}
	if kind == ExtentUnchanged || kind == extentCut {
		err := in.readOld(ctx, part, off)
		if err != nil {
			err = in.mendOld(ctx, part, off, err)
		}
		return err
	}
	return in.readSource(ctx, part, off)
}

// readSource fills part with content of the source.
func (in *ingest) readSource(ctx context.Context, part []byte, off int64) error {
	n, err := in.src.ReadAt(ctx, part, off)
	if n == len(part) {
		return nil
	}
	if err == io.EOF || err == nil {
		return errs.Text("read source", fmt.Sprintf("at byte %d", off), errs.Corrupt,
			fmt.Sprintf("it ended after %d of %d bytes", n, len(part))).
			WithNext("The disk changed or was cut while it was read: check the source, then run the backup again.")
	}
	return errs.Wrap("read source", fmt.Sprintf("at byte %d", off), err)
}

// readOld fills part with content of the parent point.
func (in *ingest) readOld(ctx context.Context, part []byte, off int64) error {
	n, err := in.oldImage.ReadAt(ctx, part, off)
	if n == len(part) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = errs.Text("read image", "", errs.Bug, fmt.Sprintf("it ended after %d of %d bytes", n, len(part)))
	}
	e := errs.New("read the parent point", fmt.Sprintf("at byte %d", off), errs.KindOf(err), err)
	if e.Kind == errs.Corrupt {
		e.Next = "`holdfast store verify` shows what is damaged. A full backup of the disk does not read the parent."
	}
	return e
}

// piece names one chunk's content and compresses it if nobody has seen it before.
func (w *worker) piece(ctx context.Context, old manifest.Leaf, start int, data []byte) piece {
	p := piece{end: start + len(data)/chunk.Grid, size: len(data)}
	if isZero(data) {
		return p
	}
	p.digest = w.name(data)
	p.id = p.digest.ID()
	if e, s := old.Find(start); s == start && int(e.End) == p.end && e.ID == p.id && w.in.x.holdsOld(ctx, p.id, e.Place) {
		p.place, p.known = e.Place, true
		return p
	}
	if place, ok := w.in.x.known(ctx, p.id); ok {
		p.place, p.known = place, true
		return p
	}
	p.fresh = true
	p.data = pack.Compress(w.in.x.s.codec, data)
	return p
}

var zeros [chunk.Grid]byte

func isZero(data []byte) bool {
	for len(data) > 0 {
		n := min(len(data), len(zeros))
		if string(data[:n]) != string(zeros[:n]) {
			return false
		}
		data = data[n:]
	}
	return true
}
