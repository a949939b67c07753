package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

func contextCanceled(t testing.TB) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx, cancel
}

// TestWriteQemu has qemu look at what Write wrote: sizes around the borders, random sparsity, zeros said to be present.
func TestWriteQemu(t *testing.T) {
	for _, bits := range []int{9, 12, 16, 21} {
		for _, size := range append(borders(bits), 0) {
			t.Run(fmt.Sprintf("%d bits/%d", bits, size), func(t *testing.T) {
				rnd := newRand(t)
				d := &disk{}
				if size > 0 {
					d = randomDisk(rnd, size, bits, 6)
				}
				file := filepath.Join(t.TempDir(), "image.qcow2")
				writeFile(t, file, d, bits)
				checkClean(t, file)
				sameDisk(t, file, rawFile(t, d))
				m, _ := openFile(t, file)
				if m.Size() != size {
					t.Fatalf("virtual size %d", m.Size())
				}
				c := int64(1) << bits
				var got int64
				for _, x := range mapped(t, file, nil) {
					got += x.n
				}
				// No cluster of zeros takes a place, and there is no other slack.
				var want int64
				p := make([]byte, c)
				for _, r := range clusterRuns(d.runs, c, size) {
					for off := r.off; off < r.off+r.n; off += c {
						q := p[:min(c, size-off)]
						d.ReadAt(t.Context(), q, off)
						if !allZero(q) {
							want += int64(len(q))
						}
					}
				}
				if got != want {
					t.Fatalf("%d bytes are data, want %d", got, want)
				}
			})
		}
	}
}

// TestWriteSparse: 15 TiB with little data take little time, memory and space, and qemu finds no fault.
func TestWriteSparse(t *testing.T) {
	d := &disk{size: 15<<40 + 512, seed: 3}
	rnd := newRand(t)
	for at := int64(0); at < d.size; at += 40 << 30 {
		d.runs = append(d.runs, extent{at + rnd.Int64N(1<<30/512)*512, (1 + rnd.Int64N(500)) * 512})
	}
	d.runs[len(d.runs)-1] = extent{d.size - 512, 512}
	file := filepath.Join(t.TempDir(), "image.qcow2")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	writeFile(t, file, d, 16)
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
		t.Errorf("%d bytes were allocated in all", n)
	}
	if took > 20*time.Second { // a quarter of a second here
		t.Errorf("took %v", took)
	}
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := st.Sys().(*syscall.Stat_t).Blocks * 512; n > 150<<20 || st.Size() > 150<<20 {
		t.Errorf("the file has %d bytes and takes %d", st.Size(), n)
	}
	checkClean(t, file)
	m, _ := openFile(t, file)
	p, q := make([]byte, 4096), make([]byte, 4096)
	for _, r := range d.runs {
		n, _ := m.ReadAt(t.Context(), p, r.off)
		k, _ := d.ReadAt(t.Context(), q, r.off)
		if n != k || firstDifference(p, q) >= 0 {
			t.Fatalf("the data at %d differs", r.off)
		}
	}
	var data int64
	if err := m.Extents(t.Context(), 0, func(_, n int64, is bool) bool {
		if is {
			data += n
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	var want int64
	for _, r := range clusterRuns(d.runs, 65536, d.size) {
		want += r.n
	}
	if data != want {
		t.Fatalf("%d bytes are data, want %d", data, want)
	}
}

// failing fails the n-th write, which may have been done in part.
type failing struct {
	memory
	left int
}

var errDisk = errors.New("the disk is gone")

func (f *failing) WriteAt(p []byte, off int64) (int, error) {
	if f.left--; f.left < 0 {
		n, _ := f.memory.WriteAt(p[:len(p)/2], off)
		if off == 0 {
			clear(f.b[:min(len(f.b), 512)]) // of the header nothing is there: it is smaller than a sector
		}
		return n, errDisk
	}
	return f.memory.WriteAt(p, off)
}

// TestWriteFailures fails every write once: the error comes back, and what is there is not taken for an image.
func TestWriteFailures(t *testing.T) {
	d := randomDisk(rand.New(rand.NewPCG(8, 8)), 200<<10, 9, 20)
	for n := 0; ; n++ {
		f := &failing{left: n}
		err := Write(t.Context(), f, d, WriteOptions{ClusterBits: 9})
		if err == nil {
			if n < 10 {
				t.Fatalf("only %d writes", n)
			}
			break
		}
		if !errors.Is(err, errDisk) {
			t.Fatalf("write %d: %v", n, err)
		}
		if _, err := Open(f, int64(len(f.b))); err == nil {
			t.Fatalf("after write %d failed there is an image", n)
		}
	}
	ctx, cancel := contextCanceled(t)
	defer cancel()
	f := &failing{left: 1 << 20}
	wantKind(t, Write(ctx, f, d, WriteOptions{}), errs.Canceled)
	if len(f.b) != 0 {
		t.Fatal("cancelled before, and something was written")
	}
	d.fail = errs.Text("read chunk", "", errs.Corrupt, "a chunk is not what it was").WithNext("Restore another point.")
	wantKind(t, Write(t.Context(), f, d, WriteOptions{}), errs.Corrupt)
	wantKind(t, Write(t.Context(), f, &disk{size: 100}, WriteOptions{}), errs.Invalid)
	wantKind(t, Write(t.Context(), f, &disk{size: 512}, WriteOptions{ClusterBits: 30}), errs.Invalid)
	wantKind(t, Write(t.Context(), f, &growing{disk: disk{size: 1 << 20}}, WriteOptions{ClusterBits: 9}), errs.Bug)
}

// growing has more data each time it is asked.
type growing struct {
	disk
}

func (g *growing) Present(ctx context.Context, off, n int64, visit func(off, n int64) bool) error {
	g.runs = append(g.runs, extent{int64(len(g.runs)) * 4096, 4096})
	return g.disk.Present(ctx, off, n, visit)
}

// TestWriteSame: writing an image read from what was written gives the same bytes, and so does a view of it.
func TestWriteSame(t *testing.T) {
	rnd := newRand(t)
	for _, bits := range []int{9, 10, 13} {
		d := randomDisk(rnd, 300<<bits+512, bits, 20)
		var a, b memory
		if err := Write(t.Context(), &a, d, WriteOptions{ClusterBits: bits}); err != nil {
			t.Fatal(err)
		}
		m, err := Open(&a, int64(len(a.b)))
		if err != nil {
			t.Fatal(err)
		}
		if err := Write(t.Context(), &b, m, WriteOptions{ClusterBits: bits}); err != nil {
			t.Fatal(err)
		}
		// Places planned for clusters that were zero are gone the second time, so compare what is read.
		again, err := Open(&b, int64(len(b.b)))
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, d.size)
		d.ReadAt(t.Context(), want, 0)
		sameAs(t, again, want, rnd)
		v := mustView(t, again, bits)
		whole := make([]byte, v.Size())
		if _, err := v.ReadAt(t.Context(), whole, 0); err != nil {
			t.Fatal(err)
		}
		seen, err := Open(&memory{whole}, v.Size())
		if err != nil {
			t.Fatal(err)
		}
		sameAs(t, seen, want, rnd)
	}
}

var _ io.WriterAt = (*memory)(nil)
