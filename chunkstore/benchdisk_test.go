package chunkstore

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// diskFile is a raw image as a source: holes are zeros, the rest is data.
type diskFile struct {
	f    *os.File
	size int64
	data []Extent // only those of data
	all  int64    // bytes of data
}

// realDiskFile opens the disk that HOLDFAST_BENCH_DISK names, or skips: what is measured here depends on the data, and
// made-up data is like nobody's.
func realDiskFile(b *testing.B) *diskFile {
	b.Helper()
	name := os.Getenv("HOLDFAST_BENCH_DISK")
	if name == "" {
		b.Skip("HOLDFAST_BENCH_DISK names no raw image; `make bench-store` gives it a Debian server's")
	}
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	info, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	d := &diskFile{f: f, size: info.Size()}
	for off := int64(0); ; {
		start, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return d
		}
		if err != nil {
			b.Fatal(err)
		}
		if off, err = f.Seek(start, unix.SEEK_HOLE); err != nil {
			b.Fatal(err)
		}
		d.data, d.all = append(d.data, Extent{start, off - start, ExtentData}), d.all+off-start
	}
}

func (d *diskFile) Size() int64 { return d.size }

func (d *diskFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return d.f.ReadAt(p, off)
}

func (d *diskFile) Extents(_ context.Context, visit func(Extent) error) error {
	pos := int64(0)
	for _, e := range append(slices.Clone(d.data), Extent{d.size, 0, ExtentData}) {
		for _, e := range []Extent{{pos, e.Off - pos, ExtentZero}, e} {
			if e.Len == 0 {
				continue
			}
			if err := visit(e); err != nil {
				return err
			}
		}
		pos = e.Off + e.Len
	}
	return nil
}

// cpuTime returns the processor time that this process has used: user and system, of all its threads, the garbage
// collector's too.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// perCore reports bytes for each second of processor time.
func perCore(b *testing.B, bytes int64, cpu time.Duration) {
	b.Helper()
	b.ReportMetric(float64(bytes)/1e6/cpu.Seconds(), "cpu-MB/s")
}

// BenchmarkDisk measures a real disk by the processor time it takes: what one core does in a second.
func BenchmarkDisk(b *testing.B) {
	d := realDiskFile(b)
	b.Run("new", func(b *testing.B) { benchNew(b, d) })
	for i, digest := range Digests() {
		name := "known"
		if i > 0 {
			name += "-" + digest
		}
		b.Run(name, func(b *testing.B) { benchKnown(b, d, Options{Digest: digest}) })
	}
	s, dir, o := benchStore(b, Options{})
	p := benchIngest(b, s, d)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	b.Run("read-back", func(b *testing.B) { benchReadBack(b, dir, o, p, d) })
	b.Run("random", func(b *testing.B) { benchRandom(b, dir, o, p, d) })
}

// benchNew stores the disk in a new store, in every way to compress. Bytes are those that were new.
func benchNew(b *testing.B, d *diskFile) {
	for i, codec := range Compressions() {
		name := codec
		if i == 0 {
			name = "default"
		}
		b.Run(name, func(b *testing.B) {
			var cpu time.Duration
			var fresh, stored int64
			for b.Loop() {
				b.StopTimer()
				s, dir, _ := benchStore(b, Options{Compression: codec})
				b.StartTimer()
				x, began := s.Begin(time.Now(), nil, nil), cpuTime(b)
				if err := x.Ingest(b.Context(), 0, d, nil, nil); err != nil {
					b.Fatal(err)
				}
				if _, err := x.Commit(b.Context()); err != nil {
					b.Fatal(err)
				}
				cpu += cpuTime(b) - began
				fresh, stored = fresh+x.Stats().NewBytes, stored+x.Stats().StoredBytes
				b.StopTimer()
				if err := errors.Join(s.Close(), os.RemoveAll(dir)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			perCore(b, fresh, cpu)
			b.ReportMetric(float64(fresh)/float64(stored), "x-smaller")
		})
	}
}

// benchKnown stores the disk again, over its parent and without one. All of it is read, and the store has all of it.
func benchKnown(b *testing.B, d *diskFile, o Options) {
	s, _, _ := benchStore(b, o)
	p := benchIngest(b, s, d)
	for _, c := range []struct {
		name   string
		parent *Parent
	}{{"parent", &Parent{p, p.Disks[0]}}, {"no-parent", nil}} {
		b.Run(c.name, func(b *testing.B) {
			var cpu time.Duration
			var known int64
			for b.Loop() {
				x, began := s.Begin(time.Now(), nil, nil), cpuTime(b)
				if err := x.Ingest(b.Context(), 0, d, c.parent, nil); err != nil {
					b.Fatal(err)
				}
				if _, err := x.Commit(b.Context()); err != nil {
					b.Fatal(err)
				}
				cpu += cpuTime(b) - began
				if x.Stats().NewBytes > 0 {
					b.Fatalf("%d bytes were new", x.Stats().NewBytes)
				}
				known += x.Stats().KnownBytes
			}
			perCore(b, known, cpu)
		})
	}
}

// benchImage opens a point's disk with a new reader, which has nothing in its caches.
func benchImage(b *testing.B, dir string, o Options, p *Point) (*Reader, *Image) {
	b.Helper()
	r, err := OpenReader(b.Context(), dir, o)
	if err != nil {
		b.Fatal(err)
	}
	img, err := r.Image(p, 0)
	if err != nil {
		b.Fatal(err)
	}
	return r, img
}

// benchReadBack reads all data in order, in pieces of 1 MiB.
func benchReadBack(b *testing.B, dir string, o Options, p *Point, d *diskFile) {
	buf := make([]byte, 1<<20)
	var cpu time.Duration
	var read int64
	for b.Loop() {
		r, img := benchImage(b, dir, o, p)
		began := cpuTime(b)
		for _, e := range d.data {
			for off := e.Off; off < e.Off+e.Len; off += int64(len(buf)) {
				n, err := img.ReadAt(b.Context(), buf[:min(int64(len(buf)), e.Off+e.Len-off)], off)
				if err != nil {
					b.Fatal(err)
				}
				read += int64(n)
			}
		}
		cpu += cpuTime(b) - began
		_ = r.Close()
	}
	perCore(b, read, cpu)
}

// spots picks places at which a piece of the data begins, the same each time.
func (d *diskFile) spots(size int64, count int) (spots []int64) {
	for random := rand.New(rand.NewPCG(1, 2)); len(spots) < count; {
		e, at := d.data[0], random.Int64N(d.all)
		for _, e = range d.data {
			if at < e.Len {
				break
			}
			at -= e.Len
		}
		if at = at / size * size; at+size <= e.Len {
			spots = append(spots, e.Off+at)
		}
	}
	return spots
}

// benchRandom reads small pieces at random places of the data: with a new reader and nothing of the store in the page
// cache, dropped by posix_fadvise; with a new reader and all of it there; and the same pieces again, from the reader's
// cache.
func benchRandom(b *testing.B, dir string, o Options, p *Point, d *diskFile) {
	const count = 2000
	o.CacheBytes = 512 << 20 // holds all that is read
	for _, c := range []struct {
		name string
		size int64
	}{{"4K", 4 << 10}, {"64K", 64 << 10}} {
		spots := d.spots(c.size, count)
		state := func(name string, before func() *Image) {
			b.Run(c.name+"-"+name, func(b *testing.B) {
				var cpu time.Duration
				var took []time.Duration
				buf := make([]byte, c.size)
				for b.Loop() {
					b.StopTimer()
					img := before()
					b.StartTimer()
					began := cpuTime(b)
					for _, off := range spots {
						at := time.Now()
						if _, err := img.ReadAt(b.Context(), buf, off); err != nil {
							b.Fatal(err)
						}
						took = append(took, time.Since(at))
					}
					cpu += cpuTime(b) - began
				}
				slices.Sort(took)
				us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
				b.ReportMetric(us(cpu)/float64(len(took)), "cpu-us/op")
				b.ReportMetric(us(took[len(took)/2]), "p50-us")
				b.ReportMetric(us(took[len(took)*99/100]), "p99-us")
			})
		}
		fresh := func() *Image {
			r, img := benchImage(b, dir, o, p)
			b.Cleanup(func() { _ = r.Close() })
			return img
		}
		state("cold", func() *Image { dropFolder(b, dir); return fresh() })
		state("from-page-cache", fresh)
		warm := fresh()
		for _, off := range spots {
			if _, err := warm.ReadAt(b.Context(), make([]byte, c.size), off); err != nil {
				b.Fatal(err)
			}
		}
		state("warm", func() *Image { return warm })
	}
}

// dropFolder takes all files of a folder out of the page cache.
func dropFolder(b *testing.B, dir string) {
	b.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Sync(); err != nil { // what is dirty stays
			return err
		}
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
	if err != nil {
		b.Fatal(err)
	}
}
