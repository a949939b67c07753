package chunkstore

import (
	"context"
	"fmt"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Verified counts what a verification looked at.
type Verified struct {
	Points, Disks, Pages, Chunks int64
	Packs                        int64   // of a verification of the whole store
	Bytes                        int64   // of chunks, uncompressed, that were read and hashed again
	Faults                       []Fault // at most maxFaults; FaultCount is the whole number
	FaultCount                   int64
	Quarantined                  int64 // chunks and pages that were found damaged, which was not known
	Healed                       int64 // that are damaged, and lie elsewhere too, as good as they were
	Lifted                       int64 // that were in quarantine, and are good again
	Unkept                       error // why what was found could not be written down; nil if it was
}

// Fault is one thing that is not as it was stored, and one range of a disk that it hits. What hits several ranges is
// several faults. The range is that of a whole chunk or page: of a chunk of several frames some may still be readable.
type Fault struct {
	Point PointID // "": no point is hit
	Disk  int
	Off   int64 // of the disk, in bytes; -1 if the fault is not in one place of a disk
	Len   int64
	Spot  Spot // zero if it is no chunk and no page
	// Object is the damaged object of the store: a pack, a record, a key, the index.
	Object string
	Err    error
}

// A Spot is where a manifest says a chunk (pack.Data) or a page (pack.Meta) lies.
type Spot struct {
	Kind  pack.Kind
	ID    chunk.ID
	Place chunk.Place
}

// Object names the pack.
func (s Spot) Object() string { return packName(s.Kind, s.Place.Pack) }

// what says for people what lies there.
func (s Spot) what() string {
	if s.Kind == pack.Meta {
		return "page"
	}
	return "chunk"
}

// maxFaults bounds what is remembered of a store in ruins.
const maxFaults = 1000

// errRuins stands for the errors of all bad chunks beyond maxFaults.
var errRuins = errs.Text("verify chunk", "", errs.Corrupt, "damaged, like many others")

// Verify reads everything the given points need, once, and hashes it again. Faults are collected, not returned as an
// error: one bad chunk must not hide the next. What is damaged is told of for every point that needs it. progress is
// told after each leaf of 8 MiB; it may be nil.
func (r *Reader) Verify(ctx context.Context, points []*Point, progress func(Verified)) (Verified, error) {
	return r.verifyPoints(ctx, points, false, progress)
}

// VerifyQuick is Verify, but looks at headers instead of the content of chunks: it finds what is missing, not what has
// rotted. Pages are read whole.
func (r *Reader) VerifyQuick(ctx context.Context, points []*Point, progress func(Verified)) (Verified, error) {
	return r.verifyPoints(ctx, points, true, progress)
}

func (r *Reader) verifyPoints(ctx context.Context, points []*Point, quick bool, progress func(Verified)) (Verified, error) {
	v := newVerifier(r, progress)
	look := v.read
	if quick {
		look = v.glance
	}
	v.chunk = func(ctx context.Context, s Spot, size int64) error {
		v.out.Chunks++
		return look(ctx, s, size)
	}
	for _, p := range points {
		if err := v.point(ctx, p); err != nil {
			return v.out, errs.Wrap("verify point", string(p.ID), err)
		}
	}
	v.keep(ctx)
	return v.out, nil
}

// verifier walks the manifests of points, and asks chunk for each chunk that it meets.
type verifier struct {
	r        *Reader
	out      Verified
	pages    map[pageKey]bool // those looked at; true: nothing below is damaged, another point need not walk it again
	chunks   map[Spot]error   // what chunk said: 60 bytes for each, 1 GB for a store of 1 TB unique
	chunk    func(ctx context.Context, s Spot, size int64) error
	cheap    bool // chunk is, and only what is bad is remembered
	ruins    int
	found    []Spot        // damaged, and not written down yet
	healed   map[Spot]bool // what was read in place of what is damaged
	progress func(Verified)
	buf      []byte
}

func newVerifier(r *Reader, progress func(Verified)) *verifier {
	return &verifier{r: r, pages: map[pageKey]bool{}, chunks: map[Spot]error{}, healed: map[Spot]bool{}, progress: progress}
}

func (v *verifier) fault(f Fault) {
	if v.out.FaultCount++; len(v.out.Faults) < maxFaults {
		v.out.Faults = append(v.out.Faults, f)
	}
}

// point passes over a point that was removed meanwhile: what it needed may be gone.
func (v *verifier) point(ctx context.Context, p *Point) error {
	release, err := v.r.Lease(ctx, p.ID)
	if errs.Is(err, errs.Stale) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	v.out.Points++
	for _, d := range p.Disks {
		v.out.Disks++
		w := diskWalk{v, p, d}
		if err := w.page(ctx, d.Root.Ref(), d.Root.Level, 0); err != nil {
			return err
		}
	}
	return nil
}

// diskWalk walks one manifest by itself instead of through the tree's own walk, so that a page that cannot be read costs
// only what lies below it.
type diskWalk struct {
	*verifier
	p *Point
	d Disk
}

// hit notes a fault at a range of the disk, which ends with the disk.
func (w diskWalk) hit(s Spot, off, n int64, err error) {
	w.fault(Fault{w.p.ID, w.d.Number, off, max(0, min(n, w.d.Root.Size-off)), s, s.Object(), err})
}

func (w diskWalk) page(ctx context.Context, ref manifest.Ref, level int, leaf int64) error {
	key := pageKey{ref.ID, ref.Place}
	clean, seen := w.pages[key]
	if ref.IsZero() || clean {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if !seen {
		w.out.Pages++
	}
	before := w.out.FaultCount
	if err := w.below(ctx, ref, level, leaf); err != nil {
		return err
	}
	w.pages[key] = w.out.FaultCount == before
	return nil
}

// below reads a page and goes on to what it refers to.
func (w diskWalk) below(ctx context.Context, ref manifest.Ref, level int, leaf int64) error {
	s := Spot{pack.Meta, ref.ID, ref.Place}
	page, err := w.readPage(ctx, s)
	if err == nil && level > 0 {
		var children []manifest.Child
		if children, err = manifest.Children(page, level); err == nil {
			for _, c := range children {
				if err := w.page(ctx, c.Ref, level-1, leaf+int64(c.Index)<<(8*(level-1))); err != nil {
					return err
				}
			}
			return nil
		}
	}
	var l manifest.Leaf
	if err == nil {
		l, err = manifest.DecodeLeaf(page)
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.hit(s, leaf*manifest.LeafSize, manifest.LeafSize<<(8*level), err)
		return nil
	}
	return w.leaf(ctx, l, leaf*manifest.LeafSize)
}

func (w diskWalk) leaf(ctx context.Context, l manifest.Leaf, base int64) error {
	start := int64(0)
	for _, e := range l {
		if err := ctx.Err(); err != nil {
			return err
		}
		off, size := base+start*chunk.Grid, (int64(e.End)-start)*chunk.Grid
		start = int64(e.End)
		if e.IsZero() {
			continue
		}
		s := Spot{pack.Data, e.ID, e.Place}
		if err := w.ask(ctx, s, size); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			w.hit(s, off, size, err)
		}
	}
	if w.progress != nil {
		w.progress(w.out)
	}
	return nil
}

// ask asks chunk, once for each spot.
func (v *verifier) ask(ctx context.Context, s Spot, size int64) error {
	err, seen := v.chunks[s]
	if seen {
		return err
	}
	if err = v.chunk(ctx, s, size); err != nil {
		if ctx.Err() != nil {
			return err
		}
		err = v.mend(ctx, s, err, func(at Spot) error { return v.chunk(ctx, at, size) })
	}
	if err != nil {
		if v.ruins++; v.ruins > maxFaults {
			err = errRuins
		}
	}
	if err != nil || !v.cheap {
		v.chunks[s] = err
	}
	return err
}

// readPage reads a page from its pack, not from the cache, and names it again.
func (v *verifier) readPage(ctx context.Context, s Spot) (page []byte, err error) {
	read := func(s Spot) (err error) {
		page, err = v.readPageAt(ctx, s)
		return err
	}
	if err = read(s); err != nil && ctx.Err() == nil {
		err = v.mend(ctx, s, err, read)
	}
	return page, err
}

func (v *verifier) readPageAt(ctx context.Context, s Spot) ([]byte, error) {
	var page []byte
	err := v.r.packs.use(ctx, packKey{pack.Meta, s.Place.Pack}, func(p *pack.Reader) (err error) {
		page, _, err = p.ReadChunk(s.Place, s.ID, nil)
		return err
	})
	if err != nil {
		return nil, damage("verify page", s.ID, err)
	}
	return page, v.r.checkPage(s.ID, page)
}

// read reads a chunk from its pack and names it again.
func (v *verifier) read(ctx context.Context, s Spot, size int64) error {
	err := v.r.packs.use(ctx, packKey{pack.Data, s.Place.Pack}, func(p *pack.Reader) error {
		plain, _, err := p.ReadChunk(s.Place, s.ID, v.buf[:0])
		if err != nil {
			return err
		}
		v.buf = plain
		v.out.Bytes += int64(len(plain))
		if int64(len(plain)) != size {
			return wrongSize(int64(len(plain)), size)
		}
		return v.r.checkChunk(s.ID, plain)
	})
	return damage("verify chunk", s.ID, err)
}

// glance looks at the header of a chunk.
func (v *verifier) glance(ctx context.Context, s Spot, size int64) error {
	err := v.r.packs.use(ctx, packKey{pack.Data, s.Place.Pack}, func(p *pack.Reader) error {
		n, err := p.Group(s.Place, s.ID)
		if err == nil && int64(n) != size {
			err = wrongSize(int64(n), size)
		}
		return err
	})
	return damage("verify chunk", s.ID, err)
}

func wrongSize(got, want int64) error {
	return errs.Text("compare", "", errs.Corrupt, fmt.Sprintf("%d bytes where %d bytes were stored", got, want))
}

// checkPage tells whether a page has the content that it is named after, and the form of a page.
func (r *Reader) checkPage(id chunk.ID, page []byte) error {
	d, err := manifest.PageDigest(r.digestKey[:], page)
	if err == nil {
		err = otherDigest("verify page", id, d)
	}
	if err == nil {
		err = manifest.Check(page)
	}
	return err
}

// checkChunk tells whether a chunk has the content that it is named after.
func (r *Reader) checkChunk(id chunk.ID, plain []byte) error {
	return otherDigest("verify chunk", id, r.nameOf(plain))
}

func otherDigest(op string, id chunk.ID, d chunk.Digest) error {
	if d.ID() == id {
		return nil
	}
	return errs.Text(op, id.String(), errs.Corrupt, "its content has another digest: "+d.String())
}
