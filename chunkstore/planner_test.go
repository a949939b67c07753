package chunkstore

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/cut"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
)

// extentSource is a disk in memory that says of itself what a test tells it to, and fails the test when a block is read
// that it said is zeros or unchanged.
type extentSource struct {
	t       *testing.T
	data    []byte
	extents []Extent
}

func (s *extentSource) Size() int64 { return int64(len(s.data)) }

func (s *extentSource) Extents(_ context.Context, visit func(Extent) error) error {
	for _, e := range s.extents {
		if err := visit(e); err != nil {
			return err
		}
	}
	return nil
}

func (s *extentSource) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	for _, e := range s.extents {
		// A whole block of the read that lies in a whole block of such an extent.
		from, to := max(off, e.Off), min(off+int64(len(p)), e.Off+e.Len)
		from, to = (from+chunk.Grid-1)/chunk.Grid*chunk.Grid, to/chunk.Grid*chunk.Grid
		if e.Kind != ExtentData && from < to {
			s.t.Errorf("%d+%d was read, of which %d+%d is of kind %d", off, len(p), e.Off, e.Len, e.Kind)
		}
	}
	return bytes.NewReader(s.data).ReadAt(p, off)
}

// next makes a new version of a disk and extents that tell the truth about it, with borders wherever they fall.
func next(t *testing.T, rng *rand.Rand, old []byte) *extentSource {
	size := len(old)
	if rng.IntN(2) == 0 {
		size = 1 + rng.IntN(3*manifest.LeafSize)
	}
	s := &extentSource{t: t, data: make([]byte, size)}
	copy(s.data, old)
	for pos := 0; pos < size; {
		n := 1 + rng.IntN([]int{5000, 300_000, 2 * manifest.LeafSize}[rng.IntN(3)])
		if rng.IntN(3) == 0 {
			n = (n + chunk.Grid - 1) / chunk.Grid * chunk.Grid
		}
		n = min(n, size-pos)
		kind := ExtentKind(rng.IntN(3))
		if kind == ExtentUnchanged {
			if n = min(n, len(old)-pos); n <= 0 {
				kind, n = ExtentZero, size-pos
			}
		}
		switch part := s.data[pos : pos+n]; kind {
		case ExtentZero:
			clear(part)
		case ExtentData:
			for range rng.IntN(4) {
				at := rng.IntN(n)
				copy(part[at:], noise(rng.Uint64(), min(n-at, 1+rng.IntN(100_000))))
			}
			if rng.IntN(4) == 0 {
				clear(part[rng.IntN(n):]) // zeros that the source does not know of
			}
		}
		s.extents = append(s.extents, Extent{int64(pos), int64(n), kind})
		pos += n
	}
	return s
}

// TestPlanner stores versions of a disk by extents that mix data, zeros and unchanged ranges, on and off the grid, with
// parents that are smaller, larger and equal, and compares with the same content stored from nothing: the same bytes
// read back, and the roots are equal, so that nothing of the parent is left beyond the end or in a hole.
func TestPlanner(t *testing.T) {
	eachCutter(t, testPlanner)
}

// eachCutter runs a test with a store for each cutter. They lie in memory, if the machine offers that: hundreds of points
// are made, and what a store does on a real disk is tested elsewhere.
func eachCutter(t *testing.T, test func(t *testing.T, s *Store)) {
	for _, name := range cut.Names() {
		t.Run(name, func(t *testing.T) {
			s, _, _ := realStoreIn(t, memoryDir(t), Options{Cutter: name})
			test(t, s)
		})
	}
}

func testPlanner(t *testing.T, s *Store) {
	seeds := uint64(14)
	if raceEnabled || testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 77))
			var parent *Point
			var old []byte
			for version := range 6 {
				src := next(t, rng, old)
				var base *Parent
				if parent != nil {
					base = &Parent{parent, parent.Disks[0]}
				}
				p, err := tryBackup(t.Context(), s, "x", src, base)
				if err != nil {
					t.Fatal(err)
				}
				got, err := readImage(t.Context(), s.Reader, p, 0)
				if err != nil || !bytes.Equal(got, src.data) {
					t.Fatalf("version %d: read back other bytes, %v (repeat: go test ./chunkstore -run '%s')", version, err, t.Name())
				}
				plain, err := tryBackup(t.Context(), s, "x", lying{&bytesSource{data: src.data}, []Extent{{0, src.Size(), ExtentData}}}, nil)
				if err != nil {
					t.Fatal(err)
				}
				if a, b := p.Disks[0].Root, plain.Disks[0].Root; a.Digest != b.Digest || a.Data != b.Data {
					t.Fatalf("version %d: stored by extents %d bytes of data, from nothing %d; equal roots: %v", version, a.Data, b.Data, a.Digest == b.Digest)
				}
				if err := dataIsData(t.Context(), s.Reader, p, src.data); err != nil {
					t.Fatal(err)
				}
				parent, old = p, src.data
			}
		})
	}
}

// dataIsData checks that what the image calls zeros is.
func dataIsData(ctx context.Context, r *Reader, p *Point, want []byte) error {
	img, err := r.Image(p, 0)
	if err != nil {
		return err
	}
	var bad error
	err = img.Extents(ctx, 0, 1<<62, func(off, n int64, data bool) bool {
		if !data && !isZero(want[off:off+n]) {
			bad = fmt.Errorf("%d+%d is called zeros", off, n)
		}
		return bad == nil
	})
	if err != nil {
		return err
	}
	return bad
}

// TestShrinkWithinABlock: what the parent had behind the new end is not kept, though the block it lies in is unchanged.
func TestShrinkWithinABlock(t *testing.T) { eachCutter(t, testShrinkWithinABlock) }

func testShrinkWithinABlock(t *testing.T, s *Store) {
	data := noise(4, 300<<10)
	first, err := tryBackup(t.Context(), s, "x", &bytesSource{data: data}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{1, 4095, 61<<10 + 7, 64<<10 - 1, 200<<10 + 1} {
		src := lying{&bytesSource{data: data[:size]}, []Extent{{0, size, ExtentUnchanged}}}
		p, err := tryBackup(t.Context(), s, "x", src, &Parent{first, first.Disks[0]})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := readImage(t.Context(), s.Reader, p, 0); err != nil || !bytes.Equal(got, data[:size]) {
			t.Errorf("cut to %d bytes: other content, %v", size, err)
		}
		plain, err := tryBackup(t.Context(), s, "x", &bytesSource{data: data[:size]}, nil)
		if err != nil || plain.Disks[0].Root.Digest != p.Disks[0].Root.Digest {
			t.Errorf("cut to %d bytes: the root is not that of the same content stored from nothing (%v)", size, err)
		}
	}
}

// TestHoleOverParent: zeros over a parent take its data away, and only that is looked at.
func TestHoleOverParent(t *testing.T) { eachCutter(t, testHoleOverParent) }

func testHoleOverParent(t *testing.T, s *Store) {
	const size = 3 << 40
	first, err := tryBackup(t.Context(), s, "x", &sparse{size: size, at: map[int64]byte{0: 1, 7 << 40: 2, size - 4096: 3}}, nil)
	if err == nil {
		t.Fatal("a source beyond its own end was taken")
	}
	src := &sparseTree{size: size, data: map[int64]int64{0: 8192, 700 << 30: 4096, size - 4096: 4096}}
	if first, err = tryBackup(t.Context(), s, "x", src, nil); err != nil {
		t.Fatal(err)
	}
	leaves := 0
	x := s.Begin(first.Time, nil, nil)
	gone := lying{&bytesSource{}, []Extent{{0, size - 4096, ExtentZero}, {size - 4096, 4096, ExtentUnchanged}}}
	err = x.Ingest(t.Context(), 0, resized{gone, size}, &Parent{first, first.Disks[0]}, func(Progress) { leaves++ })
	if err != nil {
		t.Fatal(err)
	}
	p, err := x.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if p.Disks[0].Root.Data != smallest(s) || leaves > 4 {
		t.Errorf("%d bytes of data are left, %d leaves were looked at", p.Disks[0].Root.Data, leaves)
	}
	img, _ := s.Image(p, 0)
	for off, want := range map[int64]byte{0: 0, 700 << 30: 0, size - 4096: 1} {
		var b [4096]byte
		if _, err := img.ReadAt(t.Context(), b[:], off); err != nil || b[0] != want {
			t.Errorf("at %d: %d, %v", off, b[0], err)
		}
	}
}

// smallest returns the bytes of disk that a single block of data takes in a store.
func smallest(s *Store) int64 {
	if s.cutter.Name() == "cdc" {
		return chunk.Grid
	}
	return 64 << 10
}

// sparseTree is a disk of zeros with a few stretches of ones.
type sparseTree struct {
	size int64
	data map[int64]int64
}

func (s *sparseTree) Size() int64 { return s.size }

func (s *sparseTree) ReadAt(_ context.Context, p []byte, _ int64) (int, error) {
	copy(p, bytes.Repeat([]byte{1}, len(p)))
	return len(p), nil
}

func (s *sparseTree) Extents(_ context.Context, visit func(Extent) error) error {
	pos := int64(0)
	for _, off := range []int64{0, 700 << 30, s.size - 4096} {
		if off > pos {
			if err := visit(Extent{pos, off - pos, ExtentZero}); err != nil {
				return err
			}
		}
		if err := visit(Extent{off, s.data[off], ExtentData}); err != nil {
			return err
		}
		pos = off + s.data[off]
	}
	return nil
}
