package qcow2

import (
	"context"
	"encoding/binary"
	"io"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// viewCacheBytes bounds the presence bits that one View keeps: at 64 KiB clusters they cover 8 TiB, and a read of the
// tables of a larger disk in order asks for each table once all the same.
const viewCacheBytes = 20 << 20

// View is a disk as a qcow2 file in the identity layout, computed as it is read. It needs no Close.
type View struct {
	src    Source
	lay    layout
	header []byte
	bits   *cache[int64, bitset] // by number of the L2 table
}

// NewView returns src as a qcow2 file with clusters of 2^clusterBits bytes; 16 is oVirt's own choice. It reads nothing.
// A size that is no multiple of 512, or too large for the clusters, is errs.Invalid.
func NewView(src Source, clusterBits int) (*View, error) {
	lay, err := plan(src.Size(), clusterBits)
	if err != nil {
		return nil, err
	}
	return &View{
		src: src, lay: lay, header: encodeHeader(&lay),
		bits: newCache[int64](viewCacheBytes, bitset.sizeBytes),
	}, nil
}

// Size returns the length of the qcow2 file in bytes.
func (v *View) Size() int64 { return v.lay.fileSize() }

// VirtualSize returns the length of the disk in bytes, as a guest sees it.
func (v *View) VirtualSize() int64 { return v.lay.size }

// DataOffset returns the file offset of the disk's first byte: the disk's byte i lies at DataOffset()+i. Everything
// before it is metadata.
func (v *View) DataOffset() int64 { return v.lay.data }

// ReadAt reads the qcow2 file as io.ReaderAt does: fewer bytes than asked for only with an error, io.EOF at the end.
func (v *View) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errs.Text("read qcow2 view", "", errs.Invalid, "negative offset")
	}
	var eof error
	if left := v.Size() - off; left < int64(len(p)) {
		p, eof = p[:max(left, 0)], io.EOF
	}
	done := 0
	for done < len(p) {
		n, err := v.readPart(ctx, p[done:], off+int64(done))
		if err != nil {
			return done, errs.Wrap("read qcow2 view", "", err)
		}
		done += n
	}
	return done, eof
}

// readPart fills a first piece of p from the one part of the file that off lies in.
func (v *View) readPart(ctx context.Context, p []byte, off int64) (int, error) {
	y := &v.lay
	cut := func(end int64) []byte { return p[:min(int64(len(p)), end-off)] }
	switch {
	case off < y.refTable:
		q := cut(y.refTable)
		k := 0
		if off < int64(len(v.header)) {
			k = copy(q, v.header[off:])
		}
		clear(q[k:])
		return len(q), nil
	case off < y.refBlocks:
		q := cut(y.refBlocks)
		fillWords(q, off-y.refTable, func(i int64) uint64 {
			if i >= y.blocks {
				return 0
			}
			return uint64(y.refBlocks + i<<y.bits)
		})
		return len(q), nil
	case off < y.l1:
		q := cut(y.l1)
		fillRefcounts(q, off-y.refBlocks, y.clusters)
		return len(q), nil
	case off < y.l2:
		q := cut(y.l2)
		fillWords(q, off-y.l1, func(i int64) uint64 {
			if i >= y.l1Size {
				return 0
			}
			return uint64(y.l2+i<<y.bits) | flagCopied
		})
		return len(q), nil
	case off < y.data:
		table := (off - y.l2) >> y.bits
		q := cut(y.l2 + (table+1)<<y.bits)
		return len(q), v.fillL2(ctx, q, off-y.l2-table<<y.bits, table)
	}
	return len(p), v.readData(ctx, p, off-y.data)
}

// fillL2 fills p with the bytes of one L2 table from rel.
func (v *View) fillL2(ctx context.Context, p []byte, rel, table int64) error {
	y := &v.lay
	present, err := v.present(ctx, table)
	if err != nil {
		return err
	}
	first := table * y.perTable()
	inUse := y.guest - first // entries beyond are 0
	base := uint64(y.data+first<<y.bits) | flagCopied
	fillWords(p, rel, func(i int64) uint64 {
		if i >= inUse {
			return 0
		}
		e := base + uint64(i)<<y.bits
		if !present.has(i) {
			e |= flagZero
		}
		return e
	})
	return nil
}

// present returns the bits of one L2 table. They are asked for once for the whole table, because a client reads a table
// in many small pieces, one after the other.
func (v *View) present(ctx context.Context, table int64) (bitset, error) {
	if b, ok := v.bits.get(table); ok {
		return b, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e := v.lay.perTable()
	b, err := presence(ctx, v.src, v.lay.bits, table*e, min(e, v.lay.guest-table*e))
	if err != nil {
		return nil, err
	}
	v.bits.put(table, b)
	return b, nil
}

// readData fills p with the disk from off; behind the disk, to the end of its last cluster, are zeros.
func (v *View) readData(ctx context.Context, p []byte, off int64) error {
	in := min(max(v.lay.size-off, 0), int64(len(p)))
	clear(p[in:])
	if in == 0 {
		return nil
	}
	return readFull(ctx, v.src, p[:in], off)
}

// NextData implements fs.HoleFinder: all metadata is data, and so is every cluster that stored data touches.
func (v *View) NextData(ctx context.Context, off int64) (int64, error) {
	if off < v.lay.data || off >= v.Size() {
		return min(off, v.Size()), nil
	}
	c := (off - v.lay.data) >> v.lay.bits
	found, err := nextPresent(ctx, v.src, v.lay.bits, c, v.lay.guest)
	if err != nil {
		return 0, errs.Wrap("find data in qcow2 view", "", err)
	}
	return max(off, v.lay.data+found<<v.lay.bits), nil
}

// NextHole implements fs.HoleFinder.
func (v *View) NextHole(ctx context.Context, off int64) (int64, error) {
	if off >= v.Size() {
		return v.Size(), nil
	}
	c := max(off-v.lay.data, 0) >> v.lay.bits
	found, err := nextAbsent(ctx, v.src, v.lay.bits, c, v.lay.guest)
	if err != nil {
		return 0, errs.Wrap("find hole in qcow2 view", "", err)
	}
	return max(off, v.lay.data+found<<v.lay.bits), nil
}

// fillWords fills p with the bytes from rel of an array of big-endian words given by their number.
func fillWords(p []byte, rel int64, word func(i int64) uint64) {
	i := rel >> 3
	if skip := rel & 7; skip != 0 {
		var w [8]byte
		binary.BigEndian.PutUint64(w[:], word(i))
		p = p[copy(p, w[skip:]):]
		i++
	}
	for len(p) >= 8 {
		binary.BigEndian.PutUint64(p, word(i))
		p = p[8:]
		i++
	}
	if len(p) > 0 {
		var w [8]byte
		binary.BigEndian.PutUint64(w[:], word(i))
		copy(p, w[:])
	}
}

// fillRefcounts fills p with the bytes from rel of an array of big-endian 16-bit words, of which the first n are 1 and
// the others 0.
func fillRefcounts(p []byte, rel, n int64) {
	clear(p)
	end := min(int64(len(p)), 2*n-rel)
	for k := int64(1) - rel&1; k < end; k += 2 { // the low bytes
		p[k] = 1
	}
}
