package chunkstore

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
)

// settle waits until nobody reads ahead any more.
func settle(r *Reader) {
	for range cap(r.fetchers) {
		r.fetchers <- struct{}{}
	}
	for range cap(r.fetchers) {
		<-r.fetchers
	}
}

// aheadImage is an image of a disk of noise.
func aheadImage(t *testing.T, size int, cache int64) (*Image, []byte) {
	t.Helper()
	s, dir, o := realStore(t, Options{})
	data := noise(3, size)
	p, err := tryBackup(t.Context(), s, "a", &bytesSource{data: data}, nil)
	if err != nil {
		t.Fatal(err)
	}
	o.CacheBytes = cache
	r, err := OpenReader(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	img, err := r.Image(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	return img, data
}

func mustRead(t *testing.T, img *Image, data []byte, off, n int) {
	t.Helper()
	got := make([]byte, n)
	if m, err := img.ReadAt(t.Context(), got, int64(off)); m != n || err != nil || !bytes.Equal(got, data[off:off+n]) {
		t.Fatalf("read of %d at %d: %d, %v", n, off, m, err)
	}
}

// cached counts the bytes of decoded frames in the cache.
func cached(r *Reader) (n int) {
	r.frames.CleanUp()
	for _, f := range r.frames.All() {
		n += len(f)
	}
	return n
}

// border is what a read past the cache may leave in it all the same: the frames that its ends, and those of its
// parts, lie in.
const border = (maxParts + 1) * chunk.FrameSize

// TestReadAhead: reads in order are followed by what comes next, no farther than a window, and come through the cache.
func TestReadAhead(t *testing.T) {
	img, data := aheadImage(t, 24<<20, 64<<20)
	img.ReadAhead()
	const piece = 1 << 20
	for i := range aheadAfter - 1 {
		mustRead(t, img, data, i*piece, piece)
	}
	settle(img.r)
	if n := cached(img.r); n > (aheadAfter-1)*(piece+border) {
		t.Errorf("before there is a stream %d bytes are cached", n)
	}
	for i := aheadAfter - 1; i*piece < len(data); i++ {
		mustRead(t, img, data, i*piece, piece)
		settle(img.r)
		if n := cached(img.r); n > (i+1)*piece+aheadWindow+border {
			t.Fatalf("at %d %d bytes are cached", i*piece, n)
		}
	}
	if n := cached(img.r); n < len(data)*3/4 {
		t.Errorf("of %d bytes read in order only %d came through the cache", len(data), n)
	}
}

// TestNoReadAhead: what is read at random, in a small cache, or without being asked to, is not followed by anything.
func TestNoReadAhead(t *testing.T) {
	for _, c := range []struct {
		name   string
		cache  int64
		ask    bool
		stride int
		piece  int
	}{
		{"not asked", 64 << 20, false, 1, 1 << 20}, {"small cache", 3 << 20, true, 1, 1 << 20},
		{"backwards", 64 << 20, true, -1, 1 << 20}, {"far apart", 64 << 20, true, 11, 64 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			piece := c.piece
			img, data := aheadImage(t, 19<<20, c.cache)
			if c.ask {
				img.ReadAhead()
			}
			n := len(data) / piece
			for i := range n / 2 {
				mustRead(t, img, data, ((i*c.stride)%n+n)%n*piece, piece)
			}
			settle(img.r)
			most := n / 2 * border
			if c.ask {
				most = n / 2 * (piece + border)
			}
			if got := cached(img.r); got > most {
				t.Errorf("%d bytes are cached", got)
			}
			for _, s := range img.ahead.streams {
				if s.reads >= aheadAfter {
					t.Errorf("the stream %+v was followed", s)
				}
			}
		})
	}
}

// TestReadAheadOfMany: many readers, in order and not, in flight together, get what is there.
func TestReadAheadOfMany(t *testing.T) {
	img, data := aheadImage(t, 12<<20, 8<<20)
	img.ReadAhead()
	var wg sync.WaitGroup
	for w := range 12 {
		wg.Go(func() {
			n := 4096 * (1 + w*5)
			for off := w * 4096; off+n <= len(data); off += n {
				got := make([]byte, n)
				if _, err := img.ReadAt(context.Background(), got, int64(off)); err != nil || !bytes.Equal(got, data[off:off+n]) {
					t.Errorf("read of %d at %d: %v", n, off, err)
					return
				}
			}
		})
	}
	wg.Wait()
	settle(img.r)
}
