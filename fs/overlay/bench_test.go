package overlay

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/disk"
)

const benchSize = 256 << 20

// zeroBase is a base of any size that costs nothing to read.
type zeroBase struct{ memBase }

func (zeroBase) Size() int64 { return benchSize }

func benchOverlay(b *testing.B, filled bool) *Overlay {
	b.Helper()
	o, err := Create(ctx, disk.OS{}, b.TempDir()+"/o", zeroBase{}, Options{Identity: "b"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = o.Close() })
	if filled {
		p := make([]byte, 1<<20)
		for off := int64(0); off < benchSize; off += int64(len(p)) {
			if err := o.WriteAt(ctx, p, off, false); err != nil {
				b.Fatal(err)
			}
		}
		if err := o.Commit(ctx); err != nil {
			b.Fatal(err)
		}
	}
	return o
}

// BenchmarkWrite writes blocks at random places; "new" ones have to be mapped, "old" ones are.
func BenchmarkWrite(b *testing.B) {
	for _, c := range []struct {
		size, writers int
		stable, old   bool
	}{
		{4096, 1, true, false}, {4096, 1, true, true}, {4096, 16, true, false}, {4096, 16, true, true},
		{4096, 1, false, true}, {4096, 16, false, true}, {1 << 20, 1, true, true}, {1 << 20, 4, true, true},
		{1 << 20, 4, false, true},
	} {
		name := fmt.Sprintf("bytes=%d/writers=%d/stable=%v/mapped=%v", c.size, c.writers, c.stable, c.old)
		b.Run(name, func(b *testing.B) {
			o := benchOverlay(b, c.old)
			b.SetBytes(int64(c.size))
			b.ResetTimer()
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for w := range c.writers {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(uint64(w), 1))
					p := make([]byte, c.size)
					for left.Add(-1) >= 0 {
						off := r.Int64N(benchSize/int64(c.size)) * int64(c.size)
						if err := o.WriteAt(ctx, p, off, c.stable); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, size := range []int{4096, 1 << 20} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			o := benchOverlay(b, true)
			b.SetBytes(int64(size))
			r := rand.New(rand.NewPCG(1, 1))
			p := make([]byte, size)
			b.ResetTimer()
			for b.Loop() {
				if _, err := o.ReadAt(ctx, p, r.Int64N(benchSize/int64(size))*int64(size)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
