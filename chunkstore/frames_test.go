package chunkstore

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
)

// counted is a backend that counts what is read of the objects below data/.
type counted struct {
	backend.Backend
	calls, bytes atomic.Int64
}

func (c *counted) Open(ctx context.Context, name string) (backend.Object, error) {
	o, err := c.Backend.Open(ctx, name)
	if err != nil || len(name) < 5 || name[:5] != "data/" {
		return o, err
	}
	return countedObject{o, c}, nil
}

type countedObject struct {
	backend.Object
	c *counted
}

func (o countedObject) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.Object.ReadAt(p, off)
	o.c.calls.Add(1)
	o.c.bytes.Add(int64(n))
	return n, err
}

// TestSmallReadsCostOneFrame: chunks are up to 256 KiB long, but whoever reads 4 KiB of one pays for a frame of 64, on
// disk and in the cache, wherever in the chunk they lie.
func TestSmallReadsCostOneFrame(t *testing.T) {
	s, dir, o := realStore(t, Options{})
	data := append(noise(1, 8<<20), bytes.Repeat([]byte{1}, 4<<20)...) // the second part: chunks of 256 KiB that compress
	p, err := tryBackup(t.Context(), s, "x", &bytesSource{data: data}, nil)
	if err != nil {
		t.Fatal(err)
	}
	long := 0
	for off, e := range entries(t, s, p) {
		size := int64(e.End)*chunk.Grid - off%manifest.LeafSize
		if e.IsZero() || size <= chunk.FrameSize {
			continue
		}
		long++
		for at := int64(0); at < size; at += 7 * chunk.Grid {
			r, err := OpenReader(t.Context(), dir, Options{Unlock: o.Unlock, CacheBytes: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			c := &counted{Backend: r.b}
			r.b = c
			img, err := r.Image(p, 0)
			if err != nil {
				t.Fatal(err)
			}
			readBlock(t, img, data, off) // opens the pack
			bytes, calls := c.bytes.Load(), c.calls.Load()
			readBlock(t, img, data, off+at)
			bytes, calls = c.bytes.Load()-bytes, c.calls.Load()-calls
			if limit := int64(chunk.FrameSize + 200); bytes > limit || calls > 2 || at < chunk.FrameSize && calls > 0 {
				t.Fatalf("4 KiB at %d of a chunk of %d: %d bytes in %d reads, want at most %d in 2", at, size, bytes, calls, limit)
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if long < 30 {
		t.Fatalf("only %d chunks are longer than a frame", long)
	}
}

func readBlock(t *testing.T, img *Image, data []byte, off int64) {
	t.Helper()
	var b [chunk.Grid]byte
	if _, err := img.ReadAt(t.Context(), b[:], off); err != nil || !bytes.Equal(b[:], data[off:off+chunk.Grid]) {
		t.Fatalf("at %d: other bytes, %v", off, err)
	}
}
