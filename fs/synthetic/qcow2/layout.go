package qcow2

import (
	"fmt"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The format's numbers. They never change: qemu reads them.
const (
	magic       = 0x514649fb // "QFI" and 0xfb
	headerV2    = 72         // bytes of a version 2 header
	headerV3Min = 104        // bytes of the shortest version 3 header
	headerOurs  = 112        // what we write: with the compression type

	minClusterBits = 9
	maxClusterBits = 21

	flagCopied     = 1 << 63            // refcount is exactly 1: may be written in place
	flagCompressed = 1 << 62            // L2 only
	flagZero       = 1                  // L2 only, version 3
	offsetMask     = 0x00fffffffffffe00 // of L1, L2 and bitmap table entries
	l1Reserved     = 0x7f000000000001ff
	l2Reserved     = 0x3f000000000001fe

	refcountOrder = 4 // 1<<4 bits each, what every qemu writes
)

// Bounds that qemu sets itself; a file beyond them would be refused by it, so we neither make nor read one.
const (
	maxL1Bytes       = 32 << 20
	maxRefTableBytes = 8 << 20
	maxHostBytes     = 1 << 56 // what the offset field of a table entry can express
)

// layout says where the parts of a file are that has all its refcounts at 1 and its parts in this order: header,
// refcount table, refcount blocks, L1, L2 tables, data. All in bytes unless named otherwise.
type layout struct {
	bits     int   // log2 of C
	size     int64 // V
	clusters int64 // clusters in the file: N
	guest    int64 // guest clusters: n
	blocks   int64 // refcount blocks: R
	l1Size   int64 // L1 entries: L, fixed by V
	tables   int64 // L2 tables with a place

	refTable, refBlocks, l1, l2, data int64 // offsets
}

func (y *layout) clusterSize() int64 { return 1 << y.bits }

// perTable returns E, the guest clusters that one L2 table maps.
func (y *layout) perTable() int64 { return 1 << (y.bits - 3) }

// fileSize returns N*C.
func (y *layout) fileSize() int64 { return y.clusters << y.bits }

// refTableClusters returns T.
func (y *layout) refTableClusters() int64 { return (y.refBlocks - y.refTable) >> y.bits }

// plan lays out a disk of size bytes, with a place for every cluster of it.
func plan(size int64, bits int) (layout, error) {
	y, err := planGuest(size, bits)
	if err != nil {
		return layout{}, err
	}
	return y.fit(y.l1Size, y.guest)
}

// planGuest checks size and bits and computes what depends on them alone.
func planGuest(size int64, bits int) (layout, error) {
	const op = "lay out qcow2 image"
	switch {
	case bits < minClusterBits || bits > maxClusterBits:
		return layout{}, errs.Text(op, "", errs.Invalid, fmt.Sprintf("cluster bits %d are not within %d to %d",
			bits, minClusterBits, maxClusterBits))
	case size < 0 || size%512 != 0:
		return layout{}, errs.Text(op, "", errs.Invalid, fmt.Sprintf("the disk has %d bytes, not a multiple of 512", size))
	case size > maxHostBytes:
		return layout{}, tooLarge(size, bits)
	}
	y := layout{bits: bits, size: size, guest: ceilShift(size, bits)}
	y.l1Size = ceilShift(y.guest, bits-3)
	if y.l1Size*8 > maxL1Bytes {
		return layout{}, tooLarge(size, bits)
	}
	return y, nil
}

// fit finds places for so many L2 tables and data clusters. The refcounts count their own clusters too, so this repeats
// until nothing changes: each round only grows, and by less than the one before.
func (y layout) fit(tables, data int64) (layout, error) {
	c := int64(1) << y.bits
	l1 := ceilShift(8*y.l1Size, y.bits)
	n := 1 + l1 + tables + data
	var r, t int64
	for {
		r = ceilShift(n, y.bits-1) // 2^(bits-1) refcounts of 16 bit fill a block
		t = ceilShift(8*r, y.bits)
		sum := 1 + t + r + l1 + tables + data
		if sum == n {
			break
		}
		n = sum
	}
	if t*c > maxRefTableBytes || n > maxHostBytes>>y.bits {
		return layout{}, tooLarge(y.size, y.bits)
	}
	y.clusters, y.blocks, y.tables = n, r, tables
	y.refTable = c
	y.refBlocks = y.refTable + t*c
	y.l1 = y.refBlocks + r*c
	y.l2 = y.l1 + l1*c
	y.data = y.l2 + tables*c
	return y, nil
}

func tooLarge(size int64, bits int) error {
	return errs.Text("lay out qcow2 image", "", errs.Invalid,
		fmt.Sprintf("a disk of %d bytes is too large for clusters of %d bytes", size, 1<<bits)).
		WithNext("Use larger clusters: 64 KiB (16 bits) reach 2 PiB.")
}

// ceilShift returns v / 2^bits, rounded up, without overflow for v >= 0.
func ceilShift(v int64, bits int) int64 {
	q := v >> bits
	if v&(1<<bits-1) != 0 {
		q++
	}
	return q
}
