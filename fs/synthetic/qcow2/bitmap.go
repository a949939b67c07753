package qcow2

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Bitmap is a persistent dirty bitmap of an image: qemu's record of what was written since it was made.
type Bitmap struct {
	Name        string
	Granularity int64 // bytes that one bit stands for
	InUse       bool  // not closed properly: its content is not to be believed
	Auto        bool  // qemu goes on recording into it whenever the image is opened for writing

	table   int64 // host offset of the bitmap table
	entries int64
	known   bool // of a type, and without extra data, that this reader understands
}

// bitmapExt is the header extension that says where the bitmap directory is.
type bitmapExt struct {
	count     int64
	directory int64
	size      int64
}

const (
	bitmapInUse       = 1 << 0
	bitmapAuto        = 1 << 1
	bitmapExtraCompat = 1 << 2

	bitmapTypeDirty = 1
	bitmapAllOnes   = 1 // in a table entry without offset
	bitmapReserved  = 0xff000000000001fe

	bitmapEntryBytes = 24
	maxBitmaps       = 65535
	maxBitmapName    = 1023
	maxDirectory     = maxBitmaps * (bitmapEntryBytes + maxBitmapName + 1)
)

func parseBitmapExt(b []byte) (bitmapExt, error) {
	if len(b) < 24 {
		return bitmapExt{}, corrupt(opOpen, "the bitmaps extension is too short")
	}
	x := bitmapExt{
		count:     int64(binary.BigEndian.Uint32(b)),
		size:      int64(binary.BigEndian.Uint64(b[8:])),
		directory: int64(binary.BigEndian.Uint64(b[16:])),
	}
	return x, nil
}

const opBitmaps = "read bitmaps of qcow2 image"

// Bitmaps lists the image's persistent bitmaps. An image that a program which knows no bitmaps has written to since has
// none: what was recorded before says nothing about now.
func (m *Image) Bitmaps() ([]Bitmap, error) {
	var list []Bitmap
	if !m.h.hasBitmapsExt || m.h.autoclear&autoclearBitmaps == 0 {
		return nil, nil
	}
	x := m.h.bitmaps
	switch {
	case x.count > maxBitmaps:
		return nil, corrupt(opBitmaps, fmt.Sprintf("the header claims %d bitmaps", x.count))
	case x.directory <= 0 || x.size <= 0 || x.size > min(m.fileSize, maxDirectory) || x.directory > m.fileSize-x.size:
		return nil, corrupt(opBitmaps, fmt.Sprintf("the bitmap directory at %#x with %d bytes does not lie within the file", x.directory, x.size))
	case x.count*bitmapEntryBytes > x.size:
		return nil, corrupt(opBitmaps, fmt.Sprintf("%d bitmaps do not fit a directory of %d bytes", x.count, x.size))
	}
	section := io.NewSectionReader(m.r, x.directory, x.size)
	r := bufio.NewReaderSize(section, int(min(x.size, sliceBytes)))
	for range x.count {
		b, err := m.readBitmapEntry(r)
		if err != nil {
			return nil, errs.Wrap(opBitmaps, "", err)
		}
		list = append(list, b)
	}
	return list, nil
}

// readBitmapEntry reads one record of the directory.
func (m *Image) readBitmapEntry(r *bufio.Reader) (Bitmap, error) {
	var head [bitmapEntryBytes]byte
	if err := readDirectory(r, head[:]); err != nil {
		return Bitmap{}, err
	}
	be := binary.BigEndian
	var (
		flags   = be.Uint32(head[12:])
		grain   = head[17]
		nameLen = int(be.Uint16(head[18:]))
		extra   = int64(be.Uint32(head[20:]))
	)
	if grain < 9 || grain > 31 || nameLen == 0 || nameLen > maxBitmapName {
		return Bitmap{}, corrupt(opBitmaps, "a record of the bitmap directory makes no sense")
	}
	if _, err := io.CopyN(io.Discard, r, extra); err != nil {
		return Bitmap{}, directoryError(err)
	}
	name := make([]byte, nameLen+(8-(bitmapEntryBytes+nameLen+int(extra&7))&7)&7)
	if err := readDirectory(r, name); err != nil {
		return Bitmap{}, err
	}
	return Bitmap{
		Name: string(name[:nameLen]), Granularity: 1 << grain,
		InUse: flags&bitmapInUse != 0, Auto: flags&bitmapAuto != 0,
		table: int64(be.Uint64(head[0:])), entries: int64(be.Uint32(head[8:])),
		known: head[16] == bitmapTypeDirty && (extra == 0 || flags&bitmapExtraCompat != 0),
	}, nil
}

func readDirectory(r io.Reader, p []byte) error {
	_, err := io.ReadFull(r, p)
	return directoryError(err)
}

func directoryError(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return corrupt(opBitmaps, "the bitmap directory ends within a record")
	}
	return err
}

// Dirty calls visit for the ranges of the disk that the named bitmap has as dirty, in order and never touching, until
// visit returns false. errs.NotFound: no such bitmap. errs.Stale: the bitmap was not closed properly, or another program
// has written to the image since; whoever wanted the changes needs everything.
func (m *Image) Dirty(ctx context.Context, name string, visit func(off, n int64) bool) error {
	const op = "read dirty bitmap"
	b, err := m.bitmap(name)
	if err != nil {
		return err
	}
	c := m.ClusterSize()
	count := m.h.size / b.Granularity // bits
	if m.h.size%b.Granularity != 0 {
		count++
	}
	size := ceilShift(count, 3)
	switch {
	case b.entries != ceilShift(size, m.h.bits):
		return errs.Wrap(op, name, corrupt(op, fmt.Sprintf("its table has %d entries, the disk needs %d", b.entries, ceilShift(size, m.h.bits))))
	case b.entries > 0 && (b.table <= 0 || b.table&(c-1) != 0 || b.table > m.fileSize-b.entries*8):
		return errs.Wrap(op, name, corrupt(op, fmt.Sprintf("its table at %#x does not lie within the file", b.table)))
	}
	w := dirtyWalk{m: m, grain: b.Granularity, count: count, visit: visit, start: -1, clustersLeft: ceilShift(m.fileSize, m.h.bits)}
	more := true
	for at := int64(0); more && at < b.entries; at += sliceBytes / 8 {
		part := make([]byte, min(b.entries-at, sliceBytes/8)*8)
		if err := m.readHost(part, b.table+at*8); err != nil {
			return errs.Wrap(op, name, err)
		}
		if more, err = w.table(ctx, part, at); err != nil {
			return errs.Wrap(op, name, err)
		}
	}
	if more {
		w.clean(count)
	}
	return nil
}

// bitmap finds a bitmap whose content can be believed.
func (m *Image) bitmap(name string) (Bitmap, error) {
	const op = "read dirty bitmap"
	if m.h.hasBitmapsExt && m.h.autoclear&autoclearBitmaps == 0 {
		return Bitmap{}, errs.Text(op, name, errs.Stale, "a program that knows no bitmaps has written to the image since")
	}
	list, err := m.Bitmaps()
	if err != nil {
		return Bitmap{}, err
	}
	for _, b := range list {
		switch {
		case b.Name != name:
		case b.InUse:
			return Bitmap{}, errs.Text(op, name, errs.Stale, "the bitmap was not closed properly, writes may be missing from it")
		case !b.known:
			return Bitmap{}, errs.Text(op, name, errs.Unsupported, "the bitmap is of a type this version does not know")
		default:
			return b, nil
		}
	}
	return Bitmap{}, errs.Text(op, name, errs.NotFound, "the image has no such bitmap")
}

// dirtyWalk turns bits into ranges.
type dirtyWalk struct {
	m     *Image
	grain int64
	count int64 // bits in the bitmap
	visit func(off, n int64) bool
	start int64 // first bit of the range that is open, or -1

	clustersLeft int64
}

// table takes a part of the bitmap table whose first entry has number first.
func (w *dirtyWalk) table(ctx context.Context, part []byte, first int64) (more bool, err error) {
	c := w.m.ClusterSize()
	for i := int64(0); i < int64(len(part)/8); i++ {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		e := binary.BigEndian.Uint64(part[i*8:])
		host := int64(e & offsetMask)
		from := (first + i) * c * 8
		to := min(from+c*8, w.count)
		switch {
		case e&bitmapReserved != 0, host != 0 && e&bitmapAllOnes != 0:
			return false, corrupt(opBitmaps, fmt.Sprintf("entry %d of the bitmap table is %#x and has reserved bits set", first+i, e))
		case e == bitmapAllOnes:
			w.dirty(from)
			more = true
		case e == 0:
			more = w.clean(from)
		default:
			more, err = w.data(host, from, to)
		}
		if err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// data takes the bits [from, to) that lie at host.
func (w *dirtyWalk) data(host, from, to int64) (more bool, err error) {
	size := ceilShift(to-from, 3)
	if host&(w.m.ClusterSize()-1) != 0 || host > w.m.fileSize-size {
		return false, corrupt(opBitmaps, fmt.Sprintf("the bits at %#x do not lie within the file", host))
	}
	if w.clustersLeft--; w.clustersLeft < 0 {
		return false, corrupt(opBitmaps, "the bitmap names more clusters than the file has")
	}
	var buf [4096]byte
	for at := int64(0); at < size; at += int64(len(buf)) {
		b := buf[:min(size-at, int64(len(buf)))]
		if err := w.m.readHost(b, host+at); err != nil {
			return false, err
		}
		if !w.bits(b, from+at*8, to) {
			return false, nil
		}
	}
	return true, nil
}

// bits takes bits from number first on, those from number limit on excepted.
func (w *dirtyWalk) bits(b []byte, first, limit int64) bool {
	for i, v := range b {
		at := first + int64(i)*8
		if v == 0 && w.start < 0 || v == 0xff && w.start >= 0 {
			continue
		}
		for at < min(first+int64(i)*8+8, limit) {
			// The lowest bit is the first; skip to where the sort changes.
			rest := v >> (uint(at) & 7)
			if w.start >= 0 {
				rest = ^rest & (0xff >> (uint(at) & 7))
			}
			if rest == 0 {
				break
			}
			at += int64(bits.TrailingZeros8(rest))
			if at >= limit {
				break
			}
			if w.start < 0 {
				w.dirty(at)
			} else if !w.clean(at) {
				return false
			}
		}
	}
	return true
}

// dirty says that bits from number at on are set.
func (w *dirtyWalk) dirty(at int64) {
	if w.start < 0 {
		w.start = at
	}
}

// clean says that bits from number at on are not set.
func (w *dirtyWalk) clean(at int64) bool {
	if w.start < 0 {
		return true
	}
	off := w.start * w.grain
	n := min(at*w.grain, w.m.h.size) - off
	w.start = -1
	return w.visit(off, n)
}
