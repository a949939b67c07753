package pack

import (
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/backend/local"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/disk"
)

// benchChunks are like what a disk of a system gives: 64 KiB on average, a third or so after compression.
func benchChunks() [][]byte {
	var out [][]byte
	for i := range 200 {
		out = append(out, content(uint64(i), []int{16, 32, 64, 80, 128}[i%5]<<10, 3))
	}
	return out
}

// benchPack is a sealed pack in a file.
func benchPack(b *testing.B, codec Codec) (*Reader, []chunk.Place, []chunk.ID) {
	b.Helper()
	l := local.New(disk.OS{}, filepath.Join(b.TempDir(), "store"))
	a, err := l.Append(b.Context(), testName)
	if err != nil {
		b.Fatal(err)
	}
	w, err := NewWriter(a, testOpts)
	if err != nil {
		b.Fatal(err)
	}
	chunks := benchChunks()
	places := appendAll(b, w, codec, chunks...)
	if err := w.Seal(); err != nil {
		b.Fatal(err)
	}
	var ids []chunk.ID
	for _, c := range chunks {
		ids = append(ids, nameOf(c).ID())
	}
	obj, err := l.Open(b.Context(), testName)
	if err != nil {
		b.Fatal(err)
	}
	r := mustOpen(b, obj, testRead)
	b.Cleanup(func() { _ = r.Close() })
	return r, places, ids
}

// cpuTime reports the processor time of each operation besides the wall clock, which means little on a busy machine. The
// caller defers what it returns.
func cpuTime(b *testing.B) func() {
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start := used()
	return func() { b.ReportMetric(float64((used()-start).Nanoseconds())/1000/float64(b.N), "cpu-us/op") }
}

// BenchmarkRandomRead reads 4 KiB at random, which is a frame: what a miss of the frame cache costs.
func BenchmarkRandomRead(b *testing.B) {
	for codec := range codecs {
		b.Run(codec.String(), func(b *testing.B) {
			r, places, ids := benchPack(b, codec)
			rnd := rand.New(rand.NewPCG(1, 2))
			dst := make([]byte, 0, chunk.FrameSize)
			b.ReportAllocs()
			b.SetBytes(4096)
			defer cpuTime(b)()
			for b.Loop() {
				k := rnd.IntN(len(places))
				if _, err := r.ReadFrame(places[k], ids[k], 0, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReadChunk reads whole chunks, as a restore does.
func BenchmarkReadChunk(b *testing.B) {
	for codec := range codecs {
		b.Run(codec.String(), func(b *testing.B) {
			r, places, ids := benchPack(b, codec)
			dst := make([]byte, 0, chunk.MaxSize)
			b.ReportAllocs()
			b.SetBytes(64 << 10) // on average
			defer cpuTime(b)()
			for i := 0; b.Loop(); i++ {
				k := i % len(places)
				if _, _, err := r.ReadChunk(places[k], ids[k], dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkAppend compresses and appends, on one core, to a backend that costs nothing.
func BenchmarkAppend(b *testing.B) {
	for codec := range codecs {
		b.Run(codec.String(), func(b *testing.B) {
			chunks := benchChunks()
			w := benchWriter(b)
			b.ReportAllocs()
			b.SetBytes(64 << 10) // on average
			defer cpuTime(b)()
			for i := 0; b.Loop(); i++ {
				if w.Size() > TargetSize {
					w = benchWriter(b)
				}
				c := Compress(codec, chunks[i%len(chunks)])
				if _, err := w.Append(chunk.Digest{1}, c); err != nil {
					b.Fatal(err)
				}
				c.Release()
			}
		})
	}
}

// BenchmarkVerify is the quick scrub, BenchmarkScrub the one that decodes.
func BenchmarkVerify(b *testing.B) {
	r, _, _ := benchPack(b, Zstd)
	b.SetBytes(r.obj.Size())
	defer cpuTime(b)()
	for b.Loop() {
		if err := r.VerifyFile(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkScrub(b *testing.B) {
	r, _, _ := benchPack(b, Zstd)
	b.SetBytes(r.obj.Size())
	defer cpuTime(b)()
	for b.Loop() {
		if err := r.Scrub(func(DirEntry, []byte, error) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func benchWriter(b *testing.B) *Writer {
	b.Helper()
	w, err := NewWriter(discard{}, testOpts)
	if err != nil {
		b.Fatal(err)
	}
	return w
}

// discard is an Appender that keeps nothing.
type discard struct{}

var _ backend.Appender = discard{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Sync() error                 { return nil }
func (discard) Seal() error                 { return nil }
func (discard) Close() error                { return nil }
