package chunkstore

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Verified counts what a verification looked at.
type Verified struct {
	Points, Disks, Pages, Chunks int64
	Bytes                        int64   // of chunks, uncompressed, that were read and hashed again
	Faults                       []Fault // at most maxFaults; FaultCount is the whole number
	FaultCount                   int64
}

// Fault is one thing that is not as it was stored.
type Fault struct {
	Point PointID
	Disk  int
	Off   int64 // of the disk, in bytes; -1 if the fault is not in one place
	Err   error
}

// maxFaults bounds what is remembered of a store in ruins.
const maxFaults = 1000

// errRuins stands for the errors of all bad chunks beyond maxFaults.
var errRuins = errs.Text("verify chunk", "", errs.Corrupt, "damaged, like many others")

// Verify reads everything the given points need, once, and hashes it again. Faults are collected, not returned as an
// error: one bad chunk must not hide the next. What is damaged is told of for every point that needs it. progress is told after each leaf of 8 MiB; it may be nil.
func (r *Reader) Verify(ctx context.Context, points []*Point, progress func(Verified)) (Verified, error) {
	v := verifier{r: r, pages: map[pageKey]bool{}, chunks: map[pageKey]bool{}, bad: map[pageKey]error{}, progress: progress}
	for _, p := range points {
		v.out.Points++
		for _, d := range p.Disks {
			v.out.Disks++
			if err := v.disk(ctx, p, d); err != nil {
				return v.out, errs.Wrap("verify point", string(p.ID), err)
			}
		}
	}
	return v.out, nil
}

type verifier struct {
	r        *Reader
	out      Verified
	pages    map[pageKey]bool // those looked at; true: nothing below is damaged, another point need not walk it again
	chunks   map[pageKey]bool // those looked at: 30 bytes for each, 2 GB for a store of 4 TB unique
	bad      map[pageKey]error
	progress func(Verified)
	buf      []byte
}

func (v *verifier) fault(p *Point, d Disk, off int64, err error) {
	if v.out.FaultCount++; len(v.out.Faults) < maxFaults {
		v.out.Faults = append(v.out.Faults, Fault{p.ID, d.Number, off, err})
	}
}

// disk walks one manifest by itself instead of through the tree's own walk, so that a page that cannot be read costs
// only what lies below it.
func (v *verifier) disk(ctx context.Context, p *Point, d Disk) error {
	return v.page(ctx, p, d, d.Root.Ref(), d.Root.Level, 0)
}

func (v *verifier) page(ctx context.Context, p *Point, d Disk, ref manifest.Ref, level int, leaf int64) error {
	key := pageKey{ref.ID, ref.Place}
	clean, seen := v.pages[key]
	if ref.IsZero() || clean {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if !seen {
		v.out.Pages++
	}
	before := v.out.FaultCount
	if err := v.below(ctx, p, d, ref, level, leaf); err != nil {
		return err
	}
	v.pages[key] = v.out.FaultCount == before
	return nil
}

// below reads a page and goes on to what it refers to.
func (v *verifier) below(ctx context.Context, p *Point, d Disk, ref manifest.Ref, level int, leaf int64) error {
	page, err := v.readPage(ctx, ref)
	if err == nil && level > 0 {
		var children []manifest.Child
		if children, err = manifest.Children(page, level); err == nil {
			for _, c := range children {
				if err := v.page(ctx, p, d, c.Ref, level-1, leaf+int64(c.Index)<<(8*(level-1))); err != nil {
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
		v.fault(p, d, leaf*manifest.LeafSize, err)
		return nil
	}
	return v.leaf(ctx, p, d, l, leaf*manifest.LeafSize)
}

// readPage reads a page from its pack, not from the cache, and names it again.
func (v *verifier) readPage(ctx context.Context, ref manifest.Ref) ([]byte, error) {
	var page []byte
	err := v.r.packs.use(ctx, packKey{pack.Meta, ref.Place.Pack}, func(p *pack.Reader) (err error) {
		page, _, err = p.ReadChunk(ref.Place, ref.ID, nil)
		return err
	})
	if err != nil {
		return nil, damage("verify page", ref.ID, err)
	}
	d, err := manifest.PageDigest(v.r.digestKey[:], page)
	if err == nil && d.ID() != ref.ID {
		err = errs.Text("verify page", ref.ID.String(), errs.Corrupt, "its content has another digest: "+d.String())
	}
	return page, err
}

func (v *verifier) leaf(ctx context.Context, p *Point, d Disk, l manifest.Leaf, base int64) error {
	start := int64(0)
	for _, e := range l {
		if err := ctx.Err(); err != nil {
			return err
		}
		size := (int64(e.End) - start) * chunk.Grid
		if key := (pageKey{e.ID, e.Place}); !e.IsZero() {
			if !v.chunks[key] {
				v.chunks[key] = true
				if err := damage("verify chunk", e.ID, v.chunk(ctx, e, size)); err != nil {
					if len(v.bad) >= maxFaults {
						err = errRuins
					}
					v.bad[key] = err
				}
			}
			if err := v.bad[key]; err != nil {
				v.fault(p, d, base+start*chunk.Grid, err)
			}
		}
		start = int64(e.End)
	}
	if v.progress != nil {
		v.progress(v.out)
	}
	return nil
}

func (v *verifier) chunk(ctx context.Context, e manifest.Entry, size int64) error {
	v.out.Chunks++
	return v.r.packs.use(ctx, packKey{pack.Data, e.Place.Pack}, func(p *pack.Reader) error {
		plain, _, err := p.ReadChunk(e.Place, e.ID, v.buf[:0])
		if err != nil {
			return err
		}
		v.buf = plain
		v.out.Bytes += int64(len(plain))
		h := hmac.New(sha256.New, v.r.digestKey[:])
		h.Write(plain)
		if got := chunk.Digest(h.Sum(nil)); got.ID() != e.ID || int64(len(plain)) != size {
			return errs.Text("verify chunk", e.ID.String(), errs.Corrupt,
				fmt.Sprintf("%d bytes with digest %s where %d bytes were stored", len(plain), got, size))
		}
		return nil
	})
}

// Status describes a store from outside.
type Status struct {
	Points       int
	DamagedPoint int   // records that cannot be read
	LogicalBytes int64 // sum of all disks' sizes
	DataBytes    int64 // of them, what is not zeros
	Packs        int64
	PackBytes    int64 // stored, data and pages
	OpenPacks    int64 // unfinished: a backup is running, or was killed
}

// Status counts. It reads records and names, not packs.
func (r *Reader) Status(ctx context.Context) (Status, error) {
	var s Status
	points, bad := r.Points(ctx)
	if points == nil && len(bad) > 0 {
		return s, bad[0]
	}
	s.Points, s.DamagedPoint = len(points), len(bad)
	for _, p := range points {
		for _, d := range p.Disks {
			s.LogicalBytes += d.Root.Size
			s.DataBytes += d.Root.Data
		}
	}
	for _, kind := range []pack.Kind{pack.Data, pack.Meta} {
		infos, err := r.b.List(ctx, kind.String()+"/")
		if err != nil {
			return s, errs.Wrap("list packs", r.dir, err)
		}
		for _, i := range infos {
			s.Packs++
			s.PackBytes += i.Size
			if !i.Sealed {
				s.OpenPacks++
			}
		}
	}
	return s, nil
}
