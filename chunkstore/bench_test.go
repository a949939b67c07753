package chunkstore

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/keys"
)

// cells is a disk made of 64 KiB cells that are computed when they are read: half of each is noise and half is text,
// so that it compresses about 2:1. Cells with the same name are equal.
type cells struct {
	size  int64
	name  func(cell int64) uint64
	noise []byte
	whole bool               // noise only: nothing compresses
	seen  func(off, n int64) // called for each read; may be nil
}

const cellSize = 64 << 10

func newCells(size int64, name func(cell int64) uint64) *cells {
	c := &cells{size: size, name: name, noise: make([]byte, 4*cellSize)}
	rng := rand.New(rand.NewPCG(7, 7))
	for i := 0; i < len(c.noise); i += 8 {
		binary.LittleEndian.PutUint64(c.noise[i:], rng.Uint64())
	}
	return c
}

func (c *cells) Size() int64 { return c.size }

func (c *cells) Extents(_ context.Context, visit func(Extent) error) error {
	return visit(Extent{0, c.size, ExtentData})
}

// ReadAt implements Source. Noise is a window of fixed noise that the cell's name chooses, so that making it costs no
// more than a copy; the name stands in front, so that no two cells are equal by chance.
func (c *cells) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if c.seen != nil {
		c.seen(off, int64(len(p)))
	}
	done := 0
	for done < len(p) && off < c.size {
		cell, at := off/cellSize, int(off%cellSize)
		n := int(min(int64(cellSize-at), int64(len(p)-done), c.size-off))
		c.fill(p[done:done+n], c.name(cell), at)
		done, off = done+n, off+int64(n)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

func (c *cells) fill(p []byte, name uint64, at int) {
	shift := int(name * 2654435761 % (3 * cellSize))
	copy(p, c.noise[shift+at:])
	if from := max(at, cellSize/2); !c.whole && from < at+len(p) {
		copy(p[from-at:], textHalf[from-cellSize/2:])
	}
	if at < 8 {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], name+1)
		copy(p, b[at:])
	}
}

// textHalf is the second half of a cell that compresses.
var textHalf = strings.Repeat("Of what is written much is written again and again, and that is what makes it small. ", 400)

// benchStore makes a store for a benchmark.
func benchStore(b *testing.B, o Options) (*Store, string, Options) {
	b.Helper()
	dir := filepath.Join(b.TempDir(), "store")
	made, err := Create(b.Context(), dir, passphrase, testWork, o)
	if err != nil {
		b.Fatal(err)
	}
	m, _, err := keys.ParseKit(made.Kit)
	if err != nil {
		b.Fatal(err)
	}
	o.Unlock = WithMaster(m)
	s, err := Open(b.Context(), dir, o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	return s, dir, o
}

func benchIngest(b *testing.B, s *Store, src Source) *Point {
	b.Helper()
	x := s.Begin(time.Now(), nil, nil)
	if err := x.Ingest(b.Context(), 0, src, nil, nil); err != nil {
		b.Fatal(err)
	}
	p, err := x.Commit(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// heapPeak remembers the largest heap it saw. Its look is called by a source as it is read.
type heapPeak struct{ bytes chan uint64 }

func newHeapPeak() *heapPeak {
	h := &heapPeak{make(chan uint64, 1)}
	h.bytes <- 0
	return h
}

func (h *heapPeak) look() {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	h.bytes <- max(<-h.bytes, m.HeapAlloc)
}

func (h *heapPeak) max() uint64 {
	n := <-h.bytes
	h.bytes <- n
	return n
}

// BenchmarkIngestNew stores data that nobody has seen before, 2:1 compressible.
func BenchmarkIngestNew(b *testing.B) {
	const size = 128 << 20
	s, _, _ := benchStore(b, Options{})
	run := uint64(0)
	src := newCells(size, func(cell int64) uint64 { return run<<32 + uint64(cell) })
	peak := newHeapPeak()
	src.seen = func(off, _ int64) {
		if off%(32<<20) == 0 {
			peak.look()
		}
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		run++
		benchIngest(b, s, src)
	}
	b.ReportMetric(float64(peak.max())/(1<<20), "peak-MiB")
}

// BenchmarkIngestKnown stores, without a parent, what the store has: reading, hashing and looking up.
func BenchmarkIngestKnown(b *testing.B) {
	const size = 128 << 20
	s, _, _ := benchStore(b, Options{})
	src := newCells(size, func(cell int64) uint64 { return uint64(cell) })
	benchIngest(b, s, src)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		benchIngest(b, s, src)
	}
}

// BenchmarkIngestSparse stores a disk of 8 TiB of zeros over a parent that has a little data.
func BenchmarkIngestSparse(b *testing.B) {
	s, _, _ := benchStore(b, Options{})
	const size = 8 << 40
	first := benchIngest(b, s, &sparse{size: size, at: map[int64]byte{0: 1, 7 << 40: 2, size - 4096: 3}})
	b.ReportAllocs()
	for b.Loop() {
		x := s.Begin(time.Now(), nil, nil)
		src := lying{&bytesSource{}, []Extent{{0, size, ExtentZero}}}
		if err := x.Ingest(b.Context(), 0, resized{src, size}, &Parent{first, first.Disks[0]}, nil); err != nil {
			b.Fatal(err)
		}
		x.Abort()
	}
}

// resized is a source with another size.
type resized struct {
	Source
	size int64
}

func (r resized) Size() int64 { return r.size }

// readBench calls f with an image of 64 MiB for each of: everything in the cache, nothing in the cache.
func readBench(b *testing.B, f func(b *testing.B, img *Image)) {
	const size = 64 << 20
	s, dir, o := benchStore(b, Options{})
	p := benchIngest(b, s, newCells(size, func(cell int64) uint64 { return uint64(cell) }))
	for _, c := range []struct {
		name  string
		cache int64
	}{{"warm", 256 << 20}, {"cold", 1}} {
		b.Run(c.name, func(b *testing.B) {
			o.CacheBytes = c.cache
			r, err := OpenReader(b.Context(), dir, o)
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			img, err := r.Image(p, 0)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := img.ReadAt(b.Context(), make([]byte, size), 0); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			f(b, img)
		})
	}
}

// BenchmarkReadSequential reads in pieces of 1 MiB, as a restore or a read-ahead does.
func BenchmarkReadSequential(b *testing.B) {
	readBench(b, func(b *testing.B, img *Image) {
		const piece = 1 << 20
		buf := make([]byte, piece)
		b.SetBytes(piece)
		off := int64(0)
		for b.Loop() {
			if _, err := img.ReadAt(b.Context(), buf, off); err != nil {
				b.Fatal(err)
			}
			off = (off + piece) % img.Size()
		}
	})
}

// BenchmarkReadRandom4K reads as a running machine does, from one goroutine and from as many as there are processors.
func BenchmarkReadRandom4K(b *testing.B) {
	readBench(b, func(b *testing.B, img *Image) {
		buf := make([]byte, 4096)
		rng := rand.New(rand.NewPCG(1, 2))
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			if _, err := img.ReadAt(b.Context(), buf, rng.Int64N(img.Size()/4096)*4096); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestCellsAreWhatTheyClaim: the benchmarks' disk is deterministic, whatever the reads.
func TestCellsAreWhatTheyClaim(t *testing.T) {
	src := newCells(5*cellSize+77, func(cell int64) uint64 { return uint64(cell % 3) })
	all := make([]byte, src.size)
	if n, err := src.ReadAt(t.Context(), all, 0); n != len(all) || err != nil {
		t.Fatal(n, err)
	}
	for _, at := range []int64{0, 3, 65530, 65536, 100000, src.size - 50} {
		part := make([]byte, min(70000, src.size-at))
		if _, err := src.ReadAt(t.Context(), part, at); err != nil || string(part) != string(all[at:at+int64(len(part))]) {
			t.Errorf("reading at %d gives other bytes (%v)", at, err)
		}
	}
	if string(all[:cellSize]) != string(all[3*cellSize:4*cellSize]) || string(all[:cellSize]) == string(all[cellSize:2*cellSize]) {
		t.Error(fmt.Sprint("cells of one name differ, or cells of two names do not"))
	}
}
