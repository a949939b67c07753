package chunkstore

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Image reads a disk of a point as if it were a file: every point is a full image, however little it added. It is used
// by any number of goroutines.
type Image struct {
	r     *Reader
	disk  Disk
	tree  *manifest.Tree
	lease *imageLease // nil: somebody else holds one
	ahead readAhead
}

// Size returns the disk's exact size in bytes.
func (m *Image) Size() int64 { return m.disk.Root.Size }

// DataBytes returns how many bytes of the disk lie in stored chunks; the rest is zeros.
func (m *Image) DataBytes() int64 { return m.disk.Root.Data }

// Lease takes the image's lease now instead of at the first read. errs.Stale: the point was removed.
func (m *Image) Lease(ctx context.Context) error { return m.lease.take(ctx) }

// ReadAt is as io.ReaderAt. Ranges of zeros are answered without touching the store.
func (m *Image) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errs.Text("read image", fmt.Sprint(off), errs.Invalid, "negative offset")
	}
	rest := m.Size() - off
	if rest <= 0 {
		return 0, io.EOF
	}
	var end error
	if rest < int64(len(p)) {
		p, end = p[:rest], io.EOF
	}
	if err := m.lease.take(ctx); err != nil {
		return 0, err
	}
	how := m.ahead.note(m, off, len(p))
	n, err := m.readParts(ctx, p, off, how)
	runtime.KeepAlive(m) // and with it the lease, until the last byte was read
	if err != nil {
		return n, err
	}
	return n, end
}

// A read of at least two parts is split, so that a restore decrypts and decodes on several processors. Frames are not:
// two goroutines that share one would wait for each other.
const (
	partSize = 2 * chunk.FrameSize
	maxParts = 8
)

func (m *Image) readParts(ctx context.Context, p []byte, off int64, how way) (int, error) {
	parts := min(runtime.GOMAXPROCS(0), maxParts, len(p)/partSize)
	if parts < 2 {
		return m.read(ctx, p, off, how)
	}
	type result struct {
		n   int
		err error
	}
	results := make([]result, parts)
	var wg sync.WaitGroup
	for i, from := 0, 0; i < parts; i++ {
		to := len(p)
		if i < parts-1 {
			to = len(p) * (i + 1) / parts
			to -= int((off + int64(to)) % chunk.FrameSize)
		}
		part, at := p[from:to], off+int64(from)
		wg.Go(func() { results[i].n, results[i].err = m.read(ctx, part, at, how) })
		from = to
	}
	wg.Wait()
	done := 0
	for _, r := range results {
		done += r.n
		if r.err != nil {
			return done, r.err
		}
	}
	return done, nil
}

func (m *Image) read(ctx context.Context, p []byte, off int64, how way) (int, error) {
	done := 0
	for done < len(p) {
		pos := off + int64(done)
		leaf, err := m.tree.View(ctx, pos/manifest.LeafSize)
		if err != nil {
			return done, err
		}
		n, err := m.readLeaf(ctx, leaf, p[done:], pos%manifest.LeafSize, how)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// readLeaf fills as much of p as lies in one leaf, from byte at of it on.
func (m *Image) readLeaf(ctx context.Context, leaf manifest.View, p []byte, at int64, how way) (int, error) {
	p = p[:min(int64(len(p)), manifest.LeafSize-at)]
	done := 0
	for done < len(p) {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		pos := at + int64(done)
		e, start := leaf.Find(int(pos / chunk.Grid))
		part := p[done:min(int64(len(p)), int64(done)+int64(e.End)*chunk.Grid-pos)]
		if e.IsZero() {
			clear(part)
		} else if err := m.readChunk(ctx, e, part, pos-int64(start)*chunk.Grid, (int64(e.End)-int64(start))*chunk.Grid, how); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, nil
}

// readChunk fills p from byte at of a chunk of size bytes on.
func (m *Image) readChunk(ctx context.Context, e manifest.Entry, p []byte, at, size int64, how way) error {
	for len(p) > 0 {
		n := int(at / chunk.FrameSize)
		whole := int(min(chunk.FrameSize, size-at))
		if how == past && at%chunk.FrameSize == 0 && len(p) >= whole && m.r.framePast(ctx, e, n, p[:whole]) {
			p, at = p[whole:], at+int64(whole)
			continue
		}
		f, err := m.r.frame(ctx, e.ID, e.Place, n)
		if err != nil {
			return err
		}
		skip := int(at % chunk.FrameSize)
		if skip >= len(f) {
			return errs.Text("read chunk", e.ID.String(), errs.Corrupt, "the chunk is shorter than its manifest says")
		}
		c := copy(p, f[skip:])
		p, at = p[c:], at+int64(c)
	}
	return nil
}

// Extents calls visit with the runs of data and of zeros that make up [off, off+n), in order, neighbours differing in
// data, until visit returns false. Only the manifest is read.
func (m *Image) Extents(ctx context.Context, off, n int64, visit func(off, n int64, data bool) bool) error {
	if err := m.lease.take(ctx); err != nil {
		return err
	}
	defer runtime.KeepAlive(m) // and with it the lease
	end := m.Size()
	if n < end-off { // off+n might be more than an int64 holds
		end = off + n
	}
	open, openEnd, openData := off, off, false // the run that is not yet told of
	emit := func(from, to int64, data bool) bool {
		from, to = max(from, off), min(to, end)
		if from >= to || data == openData {
			openEnd = max(openEnd, to)
			return true
		}
		told := open >= openEnd || visit(open, openEnd-open, openData)
		open, openEnd, openData = from, to, data
		return told
	}
	pos, more := off, true
	err := m.tree.WalkFrom(ctx, off/manifest.LeafSize, func(i int64, leaf manifest.Leaf) error {
		base := i * manifest.LeafSize
		if base >= end {
			return io.EOF
		}
		if more = emit(pos, base, false); !more {
			return io.EOF
		}
		if more = leafRuns(leaf, base, emit); !more {
			return io.EOF
		}
		pos = base + manifest.LeafSize
		return nil
	})
	if err != nil && err != io.EOF {
		return err
	}
	if more && emit(pos, end, false) && open < openEnd {
		visit(open, openEnd-open, openData)
	}
	return nil
}

// leafRuns reports a leaf's runs of data and zeros.
func leafRuns(leaf manifest.Leaf, base int64, emit func(from, to int64, data bool) bool) bool {
	start := int64(0)
	for i, e := range leaf {
		if i+1 < len(leaf) && leaf[i+1].IsZero() == e.IsZero() {
			continue
		}
		end := int64(e.End)
		if !emit(base+start*chunk.Grid, base+end*chunk.Grid, !e.IsZero()) {
			return false
		}
		start = end
	}
	return true
}
