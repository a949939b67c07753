package cut

import (
	"bytes"

	"github.com/zeebo/xxh3"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
)

// CDC is the cutter named "cdc": content-defined cutting on the grid of 4 KiB. Chunks have at least 16 KiB, about 64 on
// average and at most 256. Whether one may end behind a block depends on that block alone, so that content which moved
// is cut as before after a chunk or two.
//
// A block of zeros is never part of a chunk: it ends the one before it, however short, and the next chunk begins with the
// first block behind it that is not. So what a disk does not hold is never stored, at the finest grain there is; on the
// disk of a Debian system that costs one short chunk in two hundred.
type CDC struct{}

var _ Cutter = CDC{}

// The sizes in bytes. These never change.
const (
	cdcMin = 16 << 10
	cdcMax = chunk.MaxSize
)

// cdcBelow is what the hash of a block must be below for a chunk to end behind it: 2^64 / 13, so that the average is 3
// blocks that cannot be the last and 13 that may. It never changes.
const cdcBelow = 0x13b13b13b13b13b1

// Name implements Cutter.
func (CDC) Name() string { return "cdc" }

// Next implements Cutter.
func (CDC) Next(off int64, data []byte) (n int, final bool) {
	checkSpan(off, data)
	if rest := Window - off%Window; rest <= int64(len(data)) {
		data, final = data[:rest], true
	}
	if isZero(data[:chunk.Grid]) {
		for n = chunk.Grid; n < len(data) && isZero(data[n:n+chunk.Grid]); n += chunk.Grid {
		}
		return n, true
	}
	for n = chunk.Grid; ; n += chunk.Grid {
		switch {
		case n == cdcMax, n >= cdcMin && xxh3.Hash(data[n-chunk.Grid:n]) < cdcBelow:
			return n, true
		case n == len(data):
			return n, final
		case isZero(data[n : n+chunk.Grid]):
			return n, true
		}
	}
}

// Resume implements Cutter. Behind a block that is still zeros a piece begins. The chunk before the zeros goes on into
// their first block if it did not end there for another reason, which only its content tells.
func (CDC) Resume(zeros, off int64) int64 {
	if off > zeros || off%Window == 0 {
		return off
	}
	return off - chunk.Grid
}

var zeroBlock [chunk.Grid]byte

// isZero tells whether a block holds only zeros. Most blocks that do not show it in their first bytes.
func isZero(block []byte) bool {
	return block[0] == 0 && bytes.Equal(block, zeroBlock[:])
}
