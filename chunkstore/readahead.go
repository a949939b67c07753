package chunkstore

import (
	"context"
	"runtime"
	"sync"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
)

// Servers read ahead: while one read is on its way to a client that reads a disk in order, what it will ask for next is
// decrypted and decoded on the processors that have nothing to do, into the cache. Whoever reads a disk from end to end
// in large pieces needs none of it, and reads past the cache.

// way says how a read goes about whole frames that are not in the cache.
type way uint8

const (
	past    way = iota // past it
	through            // through it: they may be on their way already, and a machine reads again what it has read
)

const (
	aheadWindow  = 4 << 20   // bytes that are read ahead of a stream
	aheadPiece   = 512 << 10 // of them by one goroutine at a time
	aheadStreams = 8         // that are followed in an image
	aheadAfter   = 3         // reads in order that make a stream
	aheadFlight  = 8         // reads of a stream that may be in flight, and come out of order
)

// readAhead follows the streams of reads in an image.
type readAhead struct {
	mu      sync.Mutex
	window  int64 // 0: nobody has asked; less than a piece: the cache is too small
	tick    int64
	streams [aheadStreams]stream
}

// stream is a run of reads in order. Several may be in flight, and come out of order.
type stream struct {
	next  int64 // behind the farthest read
	ahead int64 // up to where was read ahead, or is being
	reads int   // in order
	used  int64
}

// ReadAhead makes reads of the image in order be followed by reads ahead. It is called before the first read.
func (m *Image) ReadAhead() {
	// What is read ahead must not drive itself out of a small cache.
	m.ahead.window = max(1, min(aheadWindow, int64(m.r.frames.GetMaximum())/8))
}

// note takes a read of n bytes at off into account, reads ahead if it is one of a stream, and says how it should go.
func (a *readAhead) note(m *Image, off int64, n int) way {
	if a.window == 0 {
		return past
	}
	if a.window < aheadPiece || n == 0 {
		return through
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tick++
	s := a.find(off, n)
	s.used = a.tick
	end := off + int64(n)
	if end > s.next {
		s.next = end
		s.reads++
	}
	if s.reads < aheadAfter {
		return through
	}
	s.ahead = max(s.ahead, s.next)
	for to := min(s.next+a.window, m.Size()); s.ahead < to; {
		piece := min(aheadPiece, m.Size()-s.ahead)
		if !m.r.fetch(m, s.ahead, piece) {
			break // all who can are at it
		}
		s.ahead += piece
	}
	return through
}

// find returns the stream that a read at off belongs to, or else the one that was used least lately, begun anew.
func (a *readAhead) find(off int64, n int) *stream {
	near := max(aheadPiece, aheadFlight*int64(n))
	oldest := &a.streams[0]
	for i := range a.streams {
		s := &a.streams[i]
		if s.used > 0 && off >= s.next-near && off <= s.next+near {
			return s
		}
		if s.used < oldest.used {
			oldest = s
		}
	}
	*oldest = stream{next: off, ahead: off}
	return oldest
}

// fetch begins to bring a part of an image into the cache, unless as many are at it as there are processors.
func (r *Reader) fetch(m *Image, off, n int64) bool {
	select {
	case r.fetchers <- struct{}{}:
	default:
		return false
	}
	go func() {
		defer func() { <-r.fetchers }()
		// Whatever fails fails again when it is asked for, and is told of then.
		_ = m.bring(context.Background(), off, n)
		runtime.KeepAlive(m) // and with it the lease
	}()
	return true
}

// bring reads the frames of a part of the image into the cache.
func (m *Image) bring(ctx context.Context, off, n int64) error {
	for end := off + n; off < end; {
		leaf, err := m.tree.View(ctx, off/manifest.LeafSize)
		if err != nil {
			return err
		}
		base := off - off%manifest.LeafSize
		e, start := leaf.Find(int((off - base) / chunk.Grid))
		from, to := base+int64(start)*chunk.Grid, base+int64(e.End)*chunk.Grid
		if !e.IsZero() {
			for i := int((off - from) / chunk.FrameSize); from+int64(i)*chunk.FrameSize < min(to, end); i++ {
				if _, err := m.r.frame(ctx, e.ID, e.Place, i); err != nil {
					return err
				}
			}
		}
		off = to
	}
	return nil
}
