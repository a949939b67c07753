package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Bounds of what one Image keeps in memory.
const (
	tableCacheBytes   = 8 << 20 // slices of L1 and L2 tables
	clusterCacheBytes = 4 << 20 // clusters taken out of compression
	sliceBytes        = 64 << 10
)

// Image is an existing qcow2 file, read only. It needs no Close; whoever opened the reader below closes that.
type Image struct {
	r        io.ReaderAt
	fileSize int64
	h        header

	tables *cache[int64, []byte]  // by host offset of the slice
	plain  *cache[uint64, []byte] // by L2 entry, for compressed clusters
}

// Open reads the header of a self-contained qcow2 file of version 2 or 3. fileSize is the length of what r reads; it
// does not change while the image is in use, nor do the bytes.
//
// errs.Invalid: not a qcow2 file at all. errs.Unsupported: backing file, encryption, external data file, extended L2
// entries or a feature this version does not know; the error's Next says how to convert it. errs.Corrupt: the header
// contradicts itself or the file's size, or qemu has marked the image as corrupt. An image that was not closed cleanly
// (the dirty bit) is read like any other, since only its refcounts may be wrong.
func Open(r io.ReaderAt, fileSize int64) (*Image, error) {
	m := &Image{
		r: r, fileSize: fileSize,
		tables: newCache[int64](tableCacheBytes, func(b []byte) int { return len(b) }),
		plain:  newCache[uint64](clusterCacheBytes, func(b []byte) int { return len(b) }),
	}
	head := make([]byte, min(max(fileSize, 0), headerOurs))
	if err := m.readHost(head, 0); err != nil {
		return nil, errs.Wrap(opOpen, "", err)
	}
	h, err := parseHeader(head)
	if err != nil {
		return nil, err
	}
	m.h = h
	if h.l1Entries*8 > fileSize-h.l1 {
		return nil, corrupt(opOpen, fmt.Sprintf("the L1 table at %#x with %d entries does not lie within the file", h.l1, h.l1Entries))
	}
	end := min(m.ClusterSize(), fileSize)
	if h.length > end {
		return nil, corrupt(opOpen, "the file ends within the header")
	}
	area := make([]byte, end-h.length)
	if err := m.readHost(area, h.length); err != nil {
		return nil, errs.Wrap(opOpen, "", err)
	}
	if err := m.h.parseExtensions(area); err != nil {
		return nil, err
	}
	return m, nil
}

// Size returns the virtual size: the length in bytes of the disk that a guest sees.
func (m *Image) Size() int64 { return m.h.size }

// ClusterSize returns the bytes of one cluster.
func (m *Image) ClusterSize() int64 { return 1 << m.h.bits }

// ReadAt reads the disk as io.ReaderAt does. errs.Corrupt: a table entry it met points to where nothing can be, or a
// compressed cluster cannot be unpacked.
func (m *Image) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	const op = "read qcow2 image"
	if off < 0 {
		return 0, errs.Text(op, "", errs.Invalid, "negative offset")
	}
	var eof error
	if left := m.h.size - off; left < int64(len(p)) {
		p, eof = p[:max(left, 0)], io.EOF
	}
	done := 0
	for done < len(p) {
		s, err := m.sliceAt(ctx, off+int64(done))
		if err != nil {
			return done, errs.Wrap(op, "", err)
		}
		q := p[done:min(int64(len(p)), s.end-off)]
		if err := m.readSlice(ctx, &s, q, off+int64(done)); err != nil {
			return done, errs.Wrap(op, "", err)
		}
		done += len(q)
	}
	return done, eof
}

// readSlice fills p with the disk from off, all of which the slice s maps.
func (m *Image) readSlice(ctx context.Context, s *slice, p []byte, off int64) error {
	if s.raw == nil {
		clear(p)
		return nil
	}
	c := m.ClusterSize()
	for len(p) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		in := off & (c - 1)
		e, err := m.entry(s, off-in)
		if err != nil {
			return err
		}
		n := min(int64(len(p)), c-in)
		switch e.kind {
		case kindZero:
			clear(p[:n])
		case kindCompressed:
			err = m.readCompressed(p[:n], e.raw, in)
		case kindData:
			// Clusters that follow each other in the file too are one read.
			for n < int64(len(p)) {
				next, err := m.entry(s, off+n)
				if err != nil {
					return err
				}
				if next.kind != kindData || next.host != e.host+in+n {
					break
				}
				n = min(int64(len(p)), n+c)
			}
			err = m.readHost(p[:n], e.host+in)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// Extents calls visit for the runs of the disk from off to its end, in order and without gaps, until visit returns
// false. A run with data false is zero: not allocated, or a zero cluster. Neighbours differ in data. The first run
// starts at off. The tables are read, the data is not.
func (m *Image) Extents(ctx context.Context, off int64, visit func(off, n int64, data bool) bool) error {
	return m.extents(ctx, off, m.h.size, visit)
}

// Present implements Source, so that an image can be shown or written anew.
func (m *Image) Present(ctx context.Context, off, n int64, visit func(off, n int64) bool) error {
	return m.extents(ctx, off, min(off+n, m.h.size), func(o, n int64, data bool) bool {
		return !data || visit(o, n)
	})
}

func (m *Image) extents(ctx context.Context, off, end int64, visit func(off, n int64, data bool) bool) error {
	const op = "list extents of qcow2 image"
	if off < 0 {
		return errs.Text(op, "", errs.Invalid, "negative offset")
	}
	w := extentWalk{m: m, from: off, visit: visit, tablesLeft: m.fileSize >> m.h.bits}
	for at := off; at < end; {
		s, err := m.sliceAt(ctx, at)
		if err != nil {
			return errs.Wrap(op, "", err)
		}
		more, err := w.slice(&s, at, min(s.end, end))
		if err != nil || !more {
			return errs.Wrap(op, "", err)
		}
		at = s.end
	}
	if w.from < end {
		visit(w.from, end-w.from, w.data)
	}
	return nil
}

// extentWalk gathers clusters into runs.
type extentWalk struct {
	m     *Image
	visit func(off, n int64, data bool) bool
	from  int64 // start of the run that is open
	data  bool  // its sort
	begun bool  // data is set

	lastIndex  int64 // L1 entry of the table seen last, plus 1
	tablesLeft int64
}

// slice takes the part [at, end) of the disk that s maps. It returns false when visit wants no more.
func (w *extentWalk) slice(s *slice, at, end int64) (more bool, err error) {
	if s.raw == nil {
		return w.run(at, false), nil
	}
	if s.index+1 != w.lastIndex {
		// Tables of one disk are never shared, so there are at most as many as the file has clusters. Without this a
		// small damaged file could name one table millions of times.
		if w.lastIndex = s.index + 1; w.tablesLeft == 0 {
			return false, corrupt(opWalk, "the L1 table names more L2 tables than the file has room for")
		}
		w.tablesLeft--
	}
	c := w.m.ClusterSize()
	for at < end {
		e, err := w.m.entry(s, at&^(c-1))
		if err != nil {
			return false, err
		}
		if !w.run(at, e.kind != kindZero) {
			return false, nil
		}
		at = at&^(c-1) + c
	}
	return true, nil
}

// run says that the disk from at is data or not.
func (w *extentWalk) run(at int64, data bool) bool {
	if w.begun && data != w.data {
		if !w.visit(w.from, at-w.from, w.data) {
			return false
		}
		w.from = at
	}
	w.data, w.begun = data, true
	return true
}

// slice is a piece of an L2 table, and the part [start, end) of the disk that it maps.
type slice struct {
	index      int64  // of the table in L1
	host       int64  // where raw lies in the file
	raw        []byte // entries; nil when there is no table: all is zero
	start, end int64
}

// sliceAt finds the piece of an L2 table that maps off, which lies within the disk.
func (m *Image) sliceAt(ctx context.Context, off int64) (slice, error) {
	if err := ctx.Err(); err != nil {
		return slice{}, err
	}
	tableBits := 2*m.h.bits - 3 // of the bytes that one L2 table maps
	i := off >> tableBits
	raw, err := m.table(m.h.l1, m.h.l1Entries*8, i*8&^(sliceBytes-1))
	if err != nil {
		return slice{}, fmt.Errorf("L1 table: %w", err)
	}
	e := binary.BigEndian.Uint64(raw[i*8&(sliceBytes-1):])
	start := i << tableBits
	host := int64(e & offsetMask)
	s := slice{index: i, start: start, end: start + 1<<tableBits}
	switch {
	case e&l1Reserved != 0:
		return slice{}, corrupt(opWalk, fmt.Sprintf("L1 entry %d is %#x and has reserved bits set", i, e))
	case host == 0:
		return s, nil
	case host&(m.ClusterSize()-1) != 0 || host+m.ClusterSize() > m.fileSize:
		return slice{}, corrupt(opWalk, fmt.Sprintf("L1 entry %d is %#x: no L2 table can be there", i, e))
	}
	at := (off - start) >> m.h.bits * 8 &^ (sliceBytes - 1)
	if s.raw, err = m.table(host, m.ClusterSize(), at); err != nil {
		return slice{}, fmt.Errorf("L2 table %d: %w", i, err)
	}
	s.host = host + at
	s.start = start + at/8<<m.h.bits
	s.end = s.start + int64(len(s.raw)/8)<<m.h.bits
	return s, nil
}

// table returns the slice that starts at byte at of the table at host, which has size bytes and lies within the file.
func (m *Image) table(host, size, at int64) ([]byte, error) {
	if b, ok := m.tables.get(host + at); ok {
		return b, nil
	}
	b := make([]byte, min(size-at, sliceBytes))
	if err := m.readHost(b, host+at); err != nil {
		return nil, err
	}
	m.tables.put(host+at, b)
	return b, nil
}

const opWalk = "walk tables"

// The sorts of L2 entries.
const (
	kindZero = iota
	kindData
	kindCompressed
)

type entry struct {
	kind int
	host int64 // of kindData
	raw  uint64
}

// entry decodes and checks the entry for the cluster that starts at off, which s maps.
func (m *Image) entry(s *slice, off int64) (entry, error) {
	raw := binary.BigEndian.Uint64(s.raw[(off-s.start)>>m.h.bits*8:])
	if raw == 0 {
		return entry{}, nil
	}
	if raw&flagCompressed != 0 {
		return entry{kind: kindCompressed, raw: raw}, nil
	}
	e := entry{kind: kindData, host: int64(raw & offsetMask), raw: raw}
	need := min(m.ClusterSize(), m.h.size-off) // qemu may end a file with the disk's last byte
	switch {
	case raw&l2Reserved != 0, raw&flagZero != 0 && m.h.version < 3:
		return entry{}, corrupt(opWalk, fmt.Sprintf("the L2 entry of disk offset %#x is %#x and has reserved bits set", off, raw))
	case e.host&(m.ClusterSize()-1) != 0:
		return entry{}, corrupt(opWalk, fmt.Sprintf("the L2 entry of disk offset %#x is %#x: not at a cluster", off, raw))
	case raw&flagZero != 0 || e.host == 0:
		e.kind = kindZero
	case e.host+need > m.fileSize:
		return entry{}, corrupt(opWalk, fmt.Sprintf("the data of disk offset %#x is said to lie at %#x, outside the file", off, e.host))
	}
	return e, nil
}

// readHost fills p from the file. The caller has checked that p lies within it.
func (m *Image) readHost(p []byte, off int64) error {
	n, err := m.r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errs.Text("read file", "", errs.Corrupt, fmt.Sprintf("it ends at %#x, before the size it was opened with", off+int64(n)))
	}
	return fmt.Errorf("read file at %#x: %w", off, err)
}
