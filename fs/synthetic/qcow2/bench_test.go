package qcow2

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
)

// flat answers at once: what is measured is this package.
type flat struct {
	size int64
	runs []extent
}

func (f *flat) Size() int64                                              { return f.size }
func (f *flat) ReadAt(_ context.Context, p []byte, _ int64) (int, error) { return len(p), nil }

// Present claims every second 64 KiB, the most ranges that a disk can have.
func (f *flat) Present(_ context.Context, off, n int64, visit func(off, n int64) bool) error {
	for o := off &^ (128<<10 - 1); o < off+n; o += 128 << 10 {
		if !visit(o, 64<<10) {
			break
		}
	}
	return nil
}

// BenchmarkViewTables reads the L2 tables of an 8 TiB disk in 4 KiB pieces, as qemu does.
func BenchmarkViewTables(b *testing.B) {
	v, err := NewView(&flat{size: 8 << 40}, 16)
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 4096)
	for _, order := range []string{"in order", "at random"} {
		b.Run(order, func(b *testing.B) {
			rnd := rand.New(rand.NewPCG(1, 1))
			pieces := v.lay.tables << 16 / 4096
			b.SetBytes(4096)
			i := int64(0)
			for b.Loop() {
				k := i % pieces
				if order == "at random" {
					k = rnd.Int64N(pieces)
				}
				if _, err := v.ReadAt(b.Context(), p, v.lay.l2+k*4096); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// BenchmarkViewData reads the data part in 1 MiB pieces.
func BenchmarkViewData(b *testing.B) {
	v, err := NewView(&flat{size: 8 << 40}, 16)
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	i := int64(0)
	for b.Loop() {
		if _, err := v.ReadAt(b.Context(), p, v.lay.data+i%(1<<22)<<20); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

// BenchmarkNewView opens an 8 TiB view and reads its header.
func BenchmarkNewView(b *testing.B) {
	p := make([]byte, 4096)
	for b.Loop() {
		v, err := NewView(&flat{size: 8 << 40}, 16)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := v.ReadAt(b.Context(), p, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkImage reads images in memory.
func BenchmarkImage(b *testing.B) {
	d := &disk{size: 64 << 20, runs: []extent{{0, 64 << 20}}}
	v, err := NewView(d, 16)
	if err != nil {
		b.Fatal(err)
	}
	whole := make([]byte, v.Size())
	if _, err := v.ReadAt(b.Context(), whole, 0); err != nil {
		b.Fatal(err)
	}
	m, err := Open(bytes.NewReader(whole), v.Size())
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int64{4096, 1 << 20} {
		b.Run(fmt.Sprintf("read %d", n), func(b *testing.B) {
			p := make([]byte, n)
			b.SetBytes(n)
			i := int64(0)
			for b.Loop() {
				if _, err := m.ReadAt(b.Context(), p, i*n%m.Size()); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
	b.Run("extents of 8 TiB", func(b *testing.B) {
		v, err := NewView(&flat{size: 8 << 40}, 16)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			m, err := Open(plainReader{v}, v.Size())
			if err != nil {
				b.Fatal(err)
			}
			if err := m.Extents(b.Context(), 0, func(int64, int64, bool) bool { return true }); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkWrite writes a disk of which every second cluster is present, and not zero.
func BenchmarkWrite(b *testing.B) {
	d := &disk{size: 64 << 20}
	for off := int64(0); off < d.size; off += 128 << 10 {
		d.runs = append(d.runs, extent{off, 64 << 10})
	}
	content := make([]byte, d.size)
	d.ReadAt(b.Context(), content, 0)
	src := &kept{disk: d, b: content}
	target := memory{make([]byte, d.size)}
	b.SetBytes(d.size / 2)
	for b.Loop() {
		if err := Write(b.Context(), &target, src, WriteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

// kept is a disk whose bytes are in memory.
type kept struct {
	*disk
	b []byte
}

func (k *kept) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return copy(p, k.b[off:]), nil
}
