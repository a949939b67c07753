package chunkstore

import (
	"bytes"
	"context"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// crowd uses one store from many sides at once. All disks are made of few chunks, so that backups meet again and again
// what a collection is about to give back.
type crowd struct {
	t      *testing.T
	s      *Store
	chunks [][]byte
	mu     sync.Mutex
	points []*Point
	want   map[PointID][]byte
	done   atomic.Bool
	stale  atomic.Int64 // parents and images that were removed first
	read   atomic.Int64 // reads of points that were removed before
}

const crowdChunk = 64 << 10

func (c *crowd) any(rng *rand.Rand) *Point {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.points) == 0 {
		return nil
	}
	return c.points[rng.IntN(len(c.points))]
}

func (c *crowd) content(p *Point) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.want[p.ID]
}

// write makes points, most of them on top of others, and gives some sessions up.
func (c *crowd) write(seed uint64, rounds int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	for range rounds {
		data := make([]byte, 24*crowdChunk)
		var parent *Parent
		if p := c.any(rng); p != nil && rng.IntN(4) > 0 {
			parent = &Parent{p, p.Disks[0]}
			copy(data, c.content(p))
		}
		changed := map[int64]bool{}
		for range 1 + rng.IntN(12) {
			at := rng.IntN(24)
			copy(data[at*crowdChunk:], c.chunks[rng.IntN(len(c.chunks))])
			changed[int64(at)] = true
		}
		src := &bytesSource{data: data}
		if parent != nil && rng.IntN(2) == 0 {
			src.changed = func(block int64) bool { return changed[block*chunk.Grid/crowdChunk] }
		}
		if err := c.backup(rng, src, parent); errs.Is(err, errs.Stale) {
			c.stale.Add(1)
		} else if err != nil {
			c.t.Error(err)
			return
		}
	}
}

func (c *crowd) backup(rng *rand.Rand, src *bytesSource, parent *Parent) error {
	x := c.s.Begin(time.Now(), nil, nil)
	defer x.Abort()
	if err := x.Ingest(context.Background(), 0, src, parent, nil); err != nil {
		return err
	}
	if rng.IntN(6) == 0 {
		return nil
	}
	p, err := x.Commit(context.Background())
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.want[p.ID] = src.data
	c.points = append(c.points, p)
	return nil
}

// remove keeps the number of points down.
func (c *crowd) remove(keep int) {
	rng := rand.New(rand.NewPCG(5, 5))
	for !c.done.Load() {
		c.mu.Lock()
		var p *Point
		if len(c.points) > keep {
			i := rng.IntN(len(c.points))
			p = c.points[i]
			c.points = slices.Delete(c.points, i, i+1)
		}
		c.mu.Unlock()
		if p == nil {
			<-time.After(time.Millisecond) // until there are more
			continue
		}
		if err := c.s.RemovePoint(context.Background(), p.ID); err != nil {
			c.t.Error(err)
			return
		}
	}
}

// reads opens images, holds on to them, and reads them again and again, whatever becomes of their points.
func (c *crowd) reads(r *Reader, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	for !c.done.Load() {
		p := c.any(rng)
		if p == nil {
			continue
		}
		img, err := r.Image(p, 0)
		if err != nil {
			c.t.Error(err)
			return
		}
		want := c.content(p)
		for n := range 1 + rng.IntN(30) {
			off := rng.IntN(len(want))
			got := make([]byte, min(len(want)-off, 1+rng.IntN(4*crowdChunk)))
			_, err := img.ReadAt(context.Background(), got, int64(off))
			if n == 0 && errs.Is(err, errs.Stale) {
				c.stale.Add(1)
				break
			}
			if err != nil || !bytes.Equal(got, want[off:off+len(got)]) {
				c.t.Errorf("read %d of a point at %d: %v", n, off, err)
				return
			}
			if _, err := r.Point(context.Background(), p.ID); errs.Is(err, errs.NotFound) {
				c.read.Add(1)
			}
		}
	}
}

// verify finds nothing wrong, whatever goes on.
func (c *crowd) verify(r *Reader) {
	for quick := false; !c.done.Load(); quick = !quick {
		v, err := r.VerifyStore(context.Background(), VerifyOptions{Quick: quick})
		if err != nil || v.FaultCount > 0 {
			c.t.Errorf("%d faults, quick %v, %+v, %v", v.FaultCount, quick, v.Faults, err)
			return
		}
	}
}

// TestCollectInACrowd collects again and again while backups, removals and reads of two processes' kind go on.
func TestCollectInACrowd(t *testing.T) {
	s, dir, o := realStore(t, Options{PackSize: 300 << 10, CacheBytes: 1})
	c := &crowd{t: t, s: s, want: map[PointID][]byte{}}
	for i := range uint64(40) {
		c.chunks = append(c.chunks, noise(i+1, crowdChunk))
	}
	other, err := OpenReader(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	rounds := 100
	if testing.Short() || raceEnabled {
		rounds = 30
	}
	var writers, others sync.WaitGroup
	for w := range uint64(3) {
		writers.Go(func() { c.write(w, rounds) })
	}
	others.Go(func() { c.remove(5) })
	for i, r := range []*Reader{other, s.Reader, other} {
		others.Go(func() { c.reads(r, uint64(i)) })
	}
	others.Go(func() { c.verify(other) })
	var runs, freed, reused, shrunk int64
	others.Go(func() {
		for !c.done.Load() {
			res, err := s.Collect(context.Background(), CollectOptions{least: 4096})
			if err != nil {
				t.Error(err)
				return
			}
			runs, freed, reused, shrunk = runs+1, freed+res.FreedBytes, reused+res.Reused, shrunk+int64(res.PacksShrunk)
		}
	})
	var compacted int
	others.Go(func() {
		for !c.done.Load() {
			res, err := s.Compact(context.Background(), CompactOptions{worth: 200})
			if err != nil || res.Damaged > 0 {
				t.Error(res, err)
				return
			}
			compacted += res.Packs
		}
	})
	writers.Wait()
	c.done.Store(true)
	others.Wait()
	t.Logf("%d packs were made compact", compacted)
	if compacted == 0 {
		t.Error("none was")
	}
	t.Logf("%d collections gave back %d MiB and made holes in %d packs; %d chunks were reused at the last moment; %d stale, %d reads of removed points",
		runs, freed>>20, shrunk, reused, c.stale.Load(), c.read.Load())
	if runs < 3 || freed == 0 || shrunk == 0 {
		t.Error("hardly anything was collected")
	}
	c.atTheEnd(dir, o, other)
}

// atTheEnd looks at what is left, with this index and a new one; then removes all, and nothing may be left.
func (c *crowd) atTheEnd(dir string, o Options, other *Reader) {
	_ = other.Close() // its images hold leases until somebody looks for them
	if err := c.s.Close(); err != nil {
		c.t.Fatal(err)
	}
	for _, index := range []string{o.IndexDir, filepath.Join(memoryDir(c.t), "new")} {
		o.IndexDir = index
		s := reopen(c.t, dir, o)
		points, bad := s.Points(c.t.Context())
		if len(bad) > 0 || len(points) != len(c.points) {
			c.t.Fatalf("%d points of %d, %v", len(points), len(c.points), bad)
		}
		for _, p := range points {
			if got, err := readImage(c.t.Context(), s.Reader, p, 0); err != nil || !bytes.Equal(got, c.want[p.ID]) {
				c.t.Errorf("point %s: %v", p.ID, err)
			}
		}
		checkStore(c.t, s.Reader)
		data := slices.Concat(c.chunks[:20]...)
		p, err := tryBackup(c.t.Context(), s, "after", &bytesSource{data: data}, nil)
		if err != nil {
			c.t.Fatal(err)
		}
		c.points, c.want[p.ID] = append(c.points, p), data
		_ = s.Close()
	}
	s := reopen(c.t, dir, o)
	for _, p := range c.points {
		if err := s.RemovePoint(c.t.Context(), p.ID); err != nil {
			c.t.Error(err)
		}
	}
	res := mustCollect(c.t, s)
	if n, packs := occupiedBy(c.t, s.Reader); n != 0 || packs != 0 {
		c.t.Errorf("without points there are %d bytes in %d packs, after %+v", n, packs, res)
	}
}
