package synthetic

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/synthetic/qcow2"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// plain is a Source over bytes; blocks of zeros are its holes.
type plain struct {
	data  []byte
	reads int
}

func (p *plain) Size() int64 { return int64(len(p.data)) }

func (p *plain) ReadAt(_ context.Context, b []byte, off int64) (int, error) {
	p.reads++
	return bytes.NewReader(p.data).ReadAt(b, off)
}

func (p *plain) isData(block int64) bool {
	b := p.data[block*Grid : min(int64(len(p.data)), (block+1)*Grid)]
	return len(bytes.Trim(b, "\x00")) > 0
}

func (p *plain) Extents(_ context.Context, off, n int64, visit func(off, n int64, data bool) bool) error {
	end := min(off+n, p.Size())
	for off < end {
		d := p.isData(off / Grid)
		to := off
		for to < end && p.isData(to/Grid) == d {
			to = (to/Grid + 1) * Grid
		}
		to = min(to, end)
		if !visit(off, to-off, d) {
			return nil
		}
		off = to
	}
	return nil
}

func random(size int, seed uint64) *plain {
	rng := rand.New(rand.NewPCG(seed, 7))
	p := &plain{data: make([]byte, size)}
	for off := 0; off < size; off += Grid {
		if rng.IntN(3) == 0 {
			for i := off; i < min(size, off+Grid); i++ {
				p.data[i] = byte(rng.Uint32())
			}
		}
	}
	return p
}

func TestRawOfOddSizes(t *testing.T) {
	for _, size := range []int{0, 1, 511, 4096, 4097, 100_001, 1 << 20} {
		p := random(size, uint64(size))
		r := NewRaw(p)
		want := append(bytes.Clone(p.data), make([]byte, int(r.Size())-size)...)
		if r.Size()%Grid != 0 || r.Size()-int64(size) >= Grid {
			t.Fatalf("%d bytes are published as %d", size, r.Size())
		}
		rng := rand.New(rand.NewPCG(1, uint64(size)))
		for range 200 {
			off, n := rng.IntN(len(want)+10), rng.IntN(20_000)
			got := make([]byte, n)
			k, err := r.ReadAt(t.Context(), got, int64(off))
			exp := want[min(off, len(want)):min(len(want), off+n)]
			if !bytes.Equal(got[:k], exp) || (k < n) != (err == io.EOF) && n > 0 {
				t.Fatalf("size %d: read %d+%d gave %d bytes, %v", size, off, n, k, err)
			}
		}
		if _, err := r.ReadAt(t.Context(), make([]byte, 1), -1); err != fs.StatusInvalid {
			t.Fatal("negative offset:", err)
		}
	}
}

func TestSectors(t *testing.T) {
	for size, want := range map[int]int64{1: 512, 512: 512, 4096: 4096, 4608: 4608, 5000: 5120} {
		r := NewSectors(random(size, 2))
		if r.Size() != want {
			t.Errorf("%d bytes are %d in sectors", size, r.Size())
		}
		if n, err := r.ReadAt(t.Context(), make([]byte, want), 0); int64(n) != want || err != nil {
			t.Error(n, err)
		}
	}
}

func TestHoles(t *testing.T) {
	p := random(1<<20+5, 3)
	r := NewRaw(p)
	for off := int64(0); off < r.Size(); off += 1000 {
		data, err := r.NextData(t.Context(), off)
		hole, err2 := r.NextHole(t.Context(), off)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		wantData, wantHole := off, off
		for wantData < int64(len(p.data)) && !p.isData(wantData/Grid) {
			wantData = (wantData/Grid + 1) * Grid
		}
		if wantData >= int64(len(p.data)) {
			wantData = r.Size()
		}
		for wantHole < int64(len(p.data)) && p.isData(wantHole/Grid) {
			wantHole = (wantHole/Grid + 1) * Grid
		}
		if wantHole >= int64(len(p.data)) {
			wantHole = r.Size()
		}
		if data != wantData || hole != wantHole {
			t.Fatalf("from %d: data at %d, hole at %d; want %d, %d", off, data, hole, wantData, wantHole)
		}
	}
	if d, err := r.NextData(t.Context(), r.Size()+9); d != r.Size() || err != nil {
		t.Fatal("beyond the end:", d, err)
	}
}

// TestQcow2HoldsTheSameDisk reads the computed file back with the reader that knows nothing of its making.
func TestQcow2HoldsTheSameDisk(t *testing.T) {
	p := random(3<<20+123, 9)
	s, err := New(p, FormatQcow2)
	if err != nil {
		t.Fatal(err)
	}
	img, err := qcow2.Open(readerAt{s}, s.Size())
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, img.Size())
	if n, err := img.ReadAt(t.Context(), got, 0); n != len(got) || err != nil && err != io.EOF {
		t.Fatal(n, err)
	}
	if int64(len(got)) != NewRaw(p).Size() || !bytes.Equal(got[:len(p.data)], p.data) || len(bytes.Trim(got[len(p.data):], "\x00")) > 0 {
		t.Fatal("the disk in the qcow2 file is another one")
	}
}

type readerAt struct{ s fs.Stream }

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	return r.s.ReadAt(context.Background(), p, off)
}

func TestShortSourceIsAnError(t *testing.T) {
	r := NewRaw(short{random(8192, 1)})
	if _, err := r.ReadAt(t.Context(), make([]byte, 8192), 0); !errs.Is(err, errs.Bug) {
		t.Fatal("a source that ends early:", err)
	}
}

type short struct{ *plain }

func (s short) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, _ := s.plain.ReadAt(ctx, p[:len(p)/2], off)
	return n, io.EOF
}

func TestParseFormat(t *testing.T) {
	for in, want := range map[string]Format{"raw": FormatRaw, "qcow2": FormatQcow2} {
		if f, err := ParseFormat(in); f != want || err != nil {
			t.Error(in, f, err)
		}
	}
	if _, err := ParseFormat("vmdk"); !errs.Is(err, errs.Invalid) {
		t.Error("vmdk:", err)
	}
}

func BenchmarkRaw(b *testing.B) {
	r := NewRaw(random(8<<20, 1))
	for _, n := range []int{4096, 1 << 20} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			p := make([]byte, n)
			for b.Loop() {
				if _, err := r.ReadAt(context.Background(), p, 1<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
