package chunkstore

import (
	"bytes"
	"context"
	"io"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Difference is a range in which two disks differ, in bytes, and what the second of them holds there.
type Difference struct {
	Off, Len int64
	Data     bool // false: zeros
}

// Diff calls visit with the ranges in which disk b differs from disk a, in order; neighbours differ in Data. The ranges
// lie within b: what a has behind the end of b is not told of, nor are zeros that b has behind the end of a. The zero
// Disk is one of no bytes.
//
// Only the manifest's pages that differ are read, so the cost follows the difference, not the disks. Chunks are compared
// by name: a range holds the whole of the chunks that differ, and bytes in it may be equal. If exact, the data in them is
// read and compared as well, and the ranges are those of the blocks of 4 KiB that really differ. The caller holds leases
// on the points.
func (r *Reader) Diff(ctx context.Context, a, b Disk, exact bool, visit func(Difference) error) error {
	j := joiner{end: b.Root.Size, visit: visit}
	each := func(g manifest.Range) error { return j.add(g.Off, g.Len, !g.Zero) }
	if exact {
		c := comparer{a: r.image(a), b: r.image(b), j: &j}
		each = func(g manifest.Range) error { return c.compare(ctx, g.Off, min(g.Len, b.Root.Size-g.Off)) }
	}
	err := manifest.Diff(ctx, r.tree(a), r.tree(b), each)
	if err == nil {
		err = j.flush()
	}
	return errs.Wrap("compare disks", "", err)
}

// joiner joins ranges that touch and are of one kind, and cuts them at the end of the disk.
type joiner struct {
	end   int64
	open  Difference
	visit func(Difference) error
}

func (j *joiner) add(off, n int64, data bool) error {
	if n = min(n, j.end-off); n <= 0 {
		return nil
	}
	if j.open.Len > 0 && j.open.Off+j.open.Len == off && j.open.Data == data {
		j.open.Len += n
		return nil
	}
	err := j.flush()
	j.open = Difference{off, n, data}
	return err
}

func (j *joiner) flush() error {
	d := j.open
	j.open = Difference{}
	if d.Len == 0 {
		return nil
	}
	return j.visit(d)
}

// comparer compares the bytes of two images, block by block.
type comparer struct {
	a, b       *Image
	j          *joiner
	bufA, bufB [256 << 10]byte
}

func (c *comparer) compare(ctx context.Context, off, n int64) error {
	for end := off + n; off < end; {
		step := min(int64(len(c.bufA)), end-off)
		bufA, bufB := c.bufA[:step], c.bufB[:step]
		if err := readPadded(ctx, c.a, bufA, off); err != nil {
			return err
		}
		if err := readPadded(ctx, c.b, bufB, off); err != nil {
			return err
		}
		for at := int64(0); at < step; at += chunk.Grid {
			to := min(at+chunk.Grid, step)
			if !bytes.Equal(bufA[at:to], bufB[at:to]) {
				if err := c.j.add(off+at, to-at, !isZero(bufB[at:to])); err != nil {
					return err
				}
			}
		}
		off += step
	}
	return nil
}

// readPadded fills p, with zeros behind the end of the image.
func readPadded(ctx context.Context, m *Image, p []byte, off int64) error {
	n, err := m.ReadAt(ctx, p, off)
	if err != nil && err != io.EOF {
		return err
	}
	clear(p[n:])
	return nil
}
