package qcow2

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/fuzztest"
)

// FuzzImage: whatever the bytes, no panic, no hang, no memory but what the file is worth, and no error but those that damage may show as.
func FuzzImage(f *testing.F) {
	for _, name := range seeds(f) {
		f.Add(seed(f, name))
	}
	var m memory
	d := &disk{size: 20 << 10, runs: []extent{{0, 512}, {9000 &^ 511, 2048}}}
	if err := Write(f.Context(), &m, d, WriteOptions{ClusterBits: 9}); err != nil {
		f.Fatal(err)
	}
	f.Add(m.b)
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var err error
		// The caches of an image, the disk that is read, and what is allocated once more because a cache gave it away.
		fuzztest.Bounded(t, len(b), 32<<20, 64, func() { _, err = readAll(ctx, b, 1<<20) })
		if ctx.Err() != nil {
			t.Fatal("a walk does not end")
		}
		if err != nil && !isDamage(err) {
			t.Fatal(err)
		}
	})
}

// FuzzView: any piece of a view is what the same piece of the whole is, and the view is an image of its disk.
func FuzzView(f *testing.F) {
	f.Add(uint16(3), uint8(0), []byte{1, 0, 7}, uint32(0), uint16(512))
	f.Add(uint16(130), uint8(1), []byte{0, 0xff}, uint32(1500), uint16(4097))
	f.Add(uint16(0), uint8(2), []byte{}, uint32(1), uint16(9))
	f.Fuzz(func(t *testing.T, sectors uint16, extra uint8, present []byte, off uint32, n uint16) {
		d := &disk{size: int64(sectors) * 512, seed: uint64(off)}
		for i := int64(0); i < int64(len(present)*8) && i < int64(sectors); i++ {
			if present[i/8]>>(i%8)&1 == 1 {
				d.runs = append(d.runs, extent{i * 512, 512})
			}
		}
		v := mustView(t, d, 9+int(extra%4))
		whole := make([]byte, v.Size())
		if k, err := v.ReadAt(t.Context(), whole, 0); k != len(whole) || err != nil {
			t.Fatal(k, err)
		}
		p := make([]byte, n)
		k, err := v.ReadAt(t.Context(), p, int64(off))
		want := whole[min(int64(off), v.Size()):min(int64(off)+int64(n), v.Size())]
		if !bytes.Equal(p[:k], want) || err != nil && err != io.EOF {
			t.Fatalf("%d bytes at %d: %d, %v", n, off, k, err)
		}
		m, err := Open(&memory{whole}, v.Size())
		if err != nil {
			t.Fatal(err)
		}
		got, content := make([]byte, d.size), make([]byte, d.size)
		d.ReadAt(t.Context(), content, 0)
		if _, err := m.ReadAt(t.Context(), got, 0); err != nil && err != io.EOF || !bytes.Equal(got, content) {
			t.Fatalf("the disk differs: %v", err)
		}
	})
}
