package chunkstore

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// changes is a disk of which only some blocks have changed, and no others can be read.
type changes struct {
	data  []byte
	dirty map[int64]bool // blocks
}

func (c *changes) Size() int64 { return int64(len(c.data)) }

func (c *changes) Extents(_ context.Context, visit func(Extent) error) error {
	for off := int64(0); off < c.Size(); off += chunk.Grid {
		kind := ExtentUnchanged
		if n := min(chunk.Grid, c.Size()-off); c.dirty[off/chunk.Grid] {
			if kind = ExtentData; isZero(c.data[off : off+n]) {
				kind = ExtentZero
			}
		}
		if err := visit(Extent{off, min(chunk.Grid, c.Size()-off), kind}); err != nil {
			return err
		}
	}
	return nil
}

// ReadAt implements Source.
func (c *changes) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	for b := off / chunk.Grid; b*chunk.Grid < off+int64(len(p)); b++ {
		if !c.dirty[b] {
			return 0, fmt.Errorf("block %d is read and has not changed", b)
		}
	}
	return bytes.NewReader(c.data).ReadAt(p, off)
}

// write changes a part of the disk.
func (c *changes) write(off int, b []byte) {
	copy(c.data[off:], b)
	for at := off / chunk.Grid * chunk.Grid; at < off+len(b); at += chunk.Grid {
		c.dirty[int64(at)/chunk.Grid] = true
	}
}

// entries returns a whole disk's stretches with their borders in bytes.
func entries(t *testing.T, s *Store, p *Point) map[int64]manifest.Entry {
	t.Helper()
	out := map[int64]manifest.Entry{}
	err := s.tree(p.Disks[0]).Walk(t.Context(), func(n int64, l manifest.Leaf) error {
		start := int64(0)
		for _, e := range l {
			out[n*manifest.LeafSize+start*chunk.Grid] = e
			start = int64(e.End)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRecutIsLocal changes one block in the middle of a disk again and again. Each time a few chunks around it are new,
// their unchanged parts come from the store, and all others stay the same, down to their place.
func TestRecutIsLocal(t *testing.T) { eachCutter(t, testRecutIsLocal) }

func testRecutIsLocal(t *testing.T, s *Store) {
	src := &changes{data: noise(1, 16<<20)}
	clear(src.data[5<<20 : 6<<20])
	clear(src.data[11<<20 : 11<<20+40<<10])
	parent, err := tryBackup(t.Context(), s, "x", &bytesSource{data: src.data}, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := entries(t, s, parent)
	worst := 0
	for seed := range uint64(150) {
		src.dirty = map[int64]bool{}
		rng := rand.New(rand.NewPCG(seed, 8))
		at := rng.IntN(len(src.data)/chunk.Grid) * chunk.Grid
		if rng.IntN(3) == 0 {
			at = []int{5 << 20, 6<<20 - chunk.Grid, 6 << 20, 5<<20 - chunk.Grid, 11 << 20, 8 << 20, 4<<20 - chunk.Grid}[rng.IntN(7)]
		}
		block := noise(seed+50, chunk.Grid)
		if rng.IntN(4) == 0 {
			clear(block)
		}
		src.write(at, block)
		p, err := tryBackup(t.Context(), s, "x", src, &Parent{parent, parent.Disks[0]})
		if err != nil {
			t.Fatal(err)
		}
		now := entries(t, s, p)
		other := 0
		for off, e := range now {
			if before[off] != e {
				other++
			}
		}
		worst = max(worst, other)
		parent, before = p, now
	}
	if worst > 8 {
		t.Errorf("a change of one block made %d stretches new", worst)
	}
	if got, err := readImage(t.Context(), s.Reader, parent, 0); err != nil || !bytes.Equal(got, src.data) {
		t.Errorf("the last point holds other bytes, %v", err)
	}
	whole, err := tryBackup(t.Context(), s, "x", &bytesSource{data: src.data}, nil)
	if err != nil || whole.Disks[0].Root.Digest != parent.Disks[0].Root.Digest {
		t.Errorf("after 150 changes the disk is not cut as when it is stored from nothing (%v)", err)
	}
}

// TestGenerations is a model of a machine that is backed up again and again: writes small and large, zeros, trims,
// growth, for many generations, of which each reads as the model says, for ever.
func TestGenerations(t *testing.T) { eachCutter(t, testGenerations) }

func testGenerations(t *testing.T, s *Store) {
	seeds, generations := uint64(3), 30
	if raceEnabled || testing.Short() {
		seeds, generations = 1, 10
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 9))
		src := &changes{data: make([]byte, 20<<20+rng.IntN(9000)), dirty: map[int64]bool{}}
		src.write(0, noise(seed, 6<<20))
		for b := range int64(len(src.data)/chunk.Grid + 1) {
			src.dirty[b] = true
		}
		var parent *Parent
		var points []*Point
		var want [][]byte
		for g := range generations {
			p, err := tryBackup(t.Context(), s, "x", src, parent)
			if err != nil {
				t.Fatalf("generation %d: %v (repeat: go test ./chunkstore -run '%s')", g, err, t.Name())
			}
			parent = &Parent{p, p.Disks[0]}
			points, want = append(points, p), append(want, bytes.Clone(src.data))
			src.dirty = map[int64]bool{}
			age(rng, src)
		}
		for g, p := range points {
			if got, err := readImage(t.Context(), s.Reader, p, 0); err != nil || !bytes.Equal(got, want[g]) {
				t.Fatalf("generation %d of seed %d reads as something else, %v (repeat: go test ./chunkstore -run '%s')", g, seed, err, t.Name())
			}
		}
		last := len(points) - 1
		whole, err := tryBackup(t.Context(), s, "x", &bytesSource{data: want[last]}, nil)
		if err != nil || whole.Disks[0].Root.Digest != points[last].Disks[0].Root.Digest {
			t.Errorf("seed %d: the last generation is not cut as when it is stored from nothing (%v)", seed, err)
		}
		checkVerify(t, s.Reader, points, 0)
	}
}

// age writes to a disk as a machine does between two backups.
func age(rng *rand.Rand, src *changes) {
	for range 1 + rng.IntN(30) {
		n := 1 + rng.IntN([]int{512, chunk.Grid, 100_000, 3 << 20}[rng.IntN(4)])
		at := rng.IntN(len(src.data))
		if rng.IntN(2) == 0 { // as file systems do
			at, n = at/chunk.Grid*chunk.Grid, (n+chunk.Grid-1)/chunk.Grid*chunk.Grid
		}
		n = min(n, len(src.data)-at)
		switch rng.IntN(5) {
		case 0:
			src.write(at, make([]byte, n))
		case 1:
			src.write(at, slices.Clone(src.data[rng.IntN(len(src.data)-n+1):][:n]))
		default:
			src.write(at, noise(rng.Uint64(), n+8)[:n])
		}
	}
	if rng.IntN(6) == 0 {
		old := len(src.data)
		src.data = append(src.data, make([]byte, rng.IntN(6<<20))...)
		for b := old / chunk.Grid; b*chunk.Grid < len(src.data); b++ {
			src.dirty[int64(b)] = true
		}
	}
}

// TestParentIsAskedFirst reads a whole disk again, of which a little has changed: what stands in its old place is
// recognised by the parent alone, and the index is asked for the rest only.
func TestParentIsAskedFirst(t *testing.T) { eachCutter(t, testParentIsAskedFirst) }

func testParentIsAskedFirst(t *testing.T, s *Store) {
	data := noise(3, 32<<20)
	parent, first := backup(t, s, &bytesSource{data: data}, nil)
	if first.LookUps != first.NewChunks || first.NewChunks < 128 {
		t.Errorf("the first backup made %d look-ups for %d chunks", first.LookUps, first.NewChunks)
	}
	_, again := backup(t, s, &bytesSource{data: data}, parent)
	if again.LookUps != 0 || again.KnownBytes != int64(len(data)) {
		t.Errorf("an unchanged disk: %d look-ups, %d bytes known", again.LookUps, again.KnownBytes)
	}
	copy(data[10<<20:], noise(4, 1<<20))
	_, changed := backup(t, s, &bytesSource{data: data}, parent)
	if n := changed.NewChunks; n == 0 || n > 80 || changed.LookUps < n || changed.LookUps > n+2 {
		t.Errorf("1 MiB changed: %d look-ups, %d new chunks", changed.LookUps, n)
	}
	_, orphan := backup(t, s, &bytesSource{data: data}, nil)
	if orphan.LookUps < first.LookUps-80 || orphan.NewBytes != 0 {
		t.Errorf("without a parent: %d look-ups, %d bytes new", orphan.LookUps, orphan.NewBytes)
	}
}

// TestUnknownCutter: a store that a later version cuts in its own way can be read, but not written.
func TestUnknownCutter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	super := fixedSuperblock()
	super.Cutter = "from-the-future"
	makeStore(t, disk.OS{}, dir, super)
	o := Options{Unlock: WithMaster(testKey), IndexDir: filepath.Join(memoryDir(t), "index")}
	r, err := OpenReader(t.Context(), dir, o)
	if err != nil {
		t.Fatal("reading:", err)
	}
	_ = r.Close()
	if _, err := Open(t.Context(), dir, o); !errs.Is(err, errs.Unsupported) || errs.NextStep(err) == "" {
		t.Error("writing:", err)
	}
	if _, err := Create(t.Context(), filepath.Join(dir, "..", "new"), passphrase, testWork, Options{Cutter: "from-the-future"}); !errs.Is(err, errs.Invalid) {
		t.Error("making:", err)
	}
}

// TestRecutOverDamage: a change in a chunk whose unchanged part cannot be read fails as damage of the parent, and does
// not ask the source for what it does not know to be readable; all of the disk read anew is stored without the parent.
func TestRecutOverDamage(t *testing.T) {
	s, dir, o := realStore(t, Options{CacheBytes: 1})
	src := &changes{data: noise(1, 2<<20), dirty: map[int64]bool{}}
	parent, err := tryBackup(t.Context(), s, "x", &bytesSource{data: src.data}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, packName(pack.Data, 1))
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[64+64+500]++ // in the first chunk's first frame
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, dir, o)
	src.write(2*chunk.Grid, noise(2, chunk.Grid))
	if _, err := tryBackup(t.Context(), s, "x", src, &Parent{parent, parent.Disks[0]}); !errs.Is(err, errs.Corrupt) || errs.NextStep(err) == "" {
		t.Errorf("over a damaged chunk: %v", err)
	}
	if _, err := tryBackup(t.Context(), s, "x", &bytesSource{data: src.data}, &Parent{parent, parent.Disks[0]}); err != nil {
		t.Errorf("all of it: %v", err)
	}
}
