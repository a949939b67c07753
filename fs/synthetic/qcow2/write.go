package qcow2

import (
	"context"
	"encoding/binary"
	"io"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// DefaultClusterBits is oVirt's own cluster size: 64 KiB.
const DefaultClusterBits = 16

// WriteOptions says how Write writes.
type WriteOptions struct {
	ClusterBits int // log2 of the cluster size, 9 to 21; 0 means DefaultClusterBits
}

// writeBufferBytes is how much of the disk is read at once, where more of it is present in a row.
const writeBufferBytes = 1 << 20

// Write writes src as a self-contained qcow2 version 3 file, with a place only for clusters that are present and not
// all zeros. w is empty, or reads as zeros: ranges that are zero are not written, so that a sparse file stays sparse.
// The virtual size is src.Size() exactly.
//
// The cost follows the data and the tables for it, not the size of the disk; memory is a buffer and one L2 table. The
// header is written last, after everything else; whoever needs it durable syncs after Write. On an error w holds no
// image. errs.Invalid: the size is no multiple of 512, or too large for the clusters.
func Write(ctx context.Context, w io.WriterAt, src Source, o WriteOptions) error {
	const op = "write qcow2 image"
	bits := o.ClusterBits
	if bits == 0 {
		bits = DefaultClusterBits
	}
	lay, err := planGuest(src.Size(), bits)
	if err != nil {
		return errs.Wrap(op, "", err)
	}
	tables, data, err := count(ctx, src, &lay)
	if err != nil {
		return errs.Wrap(op, "", err)
	}
	if lay, err = lay.fit(tables, data); err != nil {
		return errs.Wrap(op, "", err)
	}
	d := writer{w: w, src: src, lay: lay, l1: entryPage{w: w, base: lay.l1}, nextTable: lay.l2, nextData: lay.data}
	d.buf = make([]byte, max(writeBufferBytes, lay.clusterSize()))
	d.table = make([]byte, lay.clusterSize())
	if err := d.writeAll(ctx); err != nil {
		return errs.Wrap(op, "", err)
	}
	return nil
}

// count returns how many L2 tables and data clusters the file may need.
func count(ctx context.Context, src Source, y *layout) (tables, data int64, err error) {
	last := int64(-1)
	err = clusters(ctx, src, y.bits, 0, y.size, func(from, to int64) bool {
		data += to - from
		a, b := max(from>>(y.bits-3), last+1), (to-1)>>(y.bits-3)
		tables += max(b-a+1, 0)
		last = b
		return ctx.Err() == nil
	})
	if err == nil {
		err = ctx.Err()
	}
	return tables, data, err
}

// writer is one Write under way.
type writer struct {
	w   io.WriterAt
	src Source
	lay layout
	l1  entryPage

	nextTable, nextData int64  // host offsets
	buf                 []byte // of the disk
	table               []byte // the L2 table being filled
}

func (d *writer) writeAll(ctx context.Context) error {
	y := &d.lay
	for c := int64(0); c < y.guest; {
		var err error
		if c, err = d.writeTables(ctx, c); err != nil {
			return err
		}
	}
	if err := d.l1.flush(); err != nil {
		return err
	}
	used := d.nextData >> y.bits // clusters that turned out zero leave the end of the plan unused
	if err := d.writeRefcounts(ctx, used); err != nil {
		return err
	}
	// Where nothing was written up to the end, the file is made as long as the tables say it is.
	if d.nextData == y.data {
		if _, err := d.w.WriteAt([]byte{0}, y.data-1); err != nil {
			return err
		}
	}
	_, err := d.w.WriteAt(encodeHeader(y), 0)
	return err
}

// writeTables writes the first L2 table at or after guest cluster c that has anything present, with its data. It
// returns the first guest cluster of the table after it.
func (d *writer) writeTables(ctx context.Context, c int64) (int64, error) {
	y := &d.lay
	c, err := nextPresent(ctx, d.src, y.bits, c, y.guest)
	if err != nil || c >= y.guest {
		return y.guest, err
	}
	e := y.perTable()
	i := c / e
	first, n := i*e, min(e, y.guest-i*e)
	present, err := presence(ctx, d.src, y.bits, first, n)
	if err != nil {
		return 0, err
	}
	if d.nextTable >= y.data {
		return 0, errChanged
	}
	clear(d.table)
	for j := present.next(0, n, true); j < n; {
		end := min(present.next(j, n, false), j+int64(len(d.buf))>>y.bits)
		if err := d.writeRun(ctx, first+j, j, end-j); err != nil {
			return 0, err
		}
		j = present.next(end, n, true)
	}
	if _, err := d.w.WriteAt(d.table, d.nextTable); err != nil {
		return 0, err
	}
	if err := d.l1.put(i, uint64(d.nextTable)|flagCopied); err != nil {
		return 0, err
	}
	d.nextTable += y.clusterSize()
	return first + e, nil
}

var errChanged = errs.Text("write qcow2 image", "", errs.Bug, "the source has more present clusters than when they were counted")

// writeRun writes n clusters from guest cluster c, whose first has entry j in the table, and fills the entries.
func (d *writer) writeRun(ctx context.Context, c, j, n int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	y := &d.lay
	size := y.clusterSize()
	p := d.buf[:n<<y.bits]
	in := min(int64(len(p)), y.size-c<<y.bits)
	if err := readFull(ctx, d.src, p[:in], c<<y.bits); err != nil {
		return err
	}
	clear(p[in:])
	start := int64(0) // of the bytes not written yet
	for k := int64(0); k < n; k++ {
		if allZero(p[k*size : (k+1)*size]) {
			if err := d.writeData(p[start : k*size]); err != nil {
				return err
			}
			start = (k + 1) * size
			continue
		}
		host := d.nextData + k*size - start
		binary.BigEndian.PutUint64(d.table[(j+k)*8:], uint64(host)|flagCopied)
	}
	return d.writeData(p[start:])
}

// writeData appends whole clusters.
func (d *writer) writeData(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if d.nextData+int64(len(p)) > d.lay.fileSize() {
		return errChanged
	}
	_, err := d.w.WriteAt(p, d.nextData)
	d.nextData += int64(len(p))
	return err
}

// writeRefcounts gives the first used clusters of the file a refcount of 1. Blocks planned but not needed are there all
// the same, and count nothing.
func (d *writer) writeRefcounts(ctx context.Context, used int64) error {
	y := &d.lay
	table := entryPage{w: d.w, base: y.refTable}
	block := make([]byte, y.clusterSize())
	for i := range y.blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := table.put(i, uint64(y.refBlocks+i<<y.bits)); err != nil {
			return err
		}
		if i*int64(len(block)) >= 2*used {
			continue
		}
		fillRefcounts(block, i*int64(len(block)), used)
		if _, err := d.w.WriteAt(block, y.refBlocks+i<<y.bits); err != nil {
			return err
		}
	}
	return table.flush()
}

// entryPage writes an array of words whose numbers ascend, through one page of memory, and leaves out pages of zeros.
type entryPage struct {
	w    io.WriterAt
	base int64 // offset of the array
	page int64 // number of the page held
	used bool
	buf  [4096]byte
}

func (t *entryPage) put(i int64, word uint64) error {
	const perPage = int64(len(t.buf)) / 8
	if page := i / perPage; page != t.page {
		if err := t.flush(); err != nil {
			return err
		}
		t.page = page
	}
	binary.BigEndian.PutUint64(t.buf[i%perPage*8:], word)
	t.used = true
	return nil
}

func (t *entryPage) flush() error {
	if !t.used {
		return nil
	}
	n := len(t.buf)
	for allZero(t.buf[n-8 : n]) { // an array may be shorter than a page, and something else follow it
		n -= 8
	}
	_, err := t.w.WriteAt(t.buf[:n], t.base+t.page*int64(len(t.buf)))
	clear(t.buf[:])
	t.used = false
	return err
}

func allZero(p []byte) bool {
	for len(p) >= 8 {
		if binary.LittleEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, v := range p {
		if v != 0 {
			return false
		}
	}
	return true
}
