package qcow2

import (
	"context"
	"io"
	"math/bits"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Source is a disk whose stored parts are known. *Image is one as well.
type Source interface {
	// ReadAt reads as io.ReaderAt does. Bytes that no present range covers read as zeros.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// Size returns the disk's length in bytes, a multiple of 512: whoever has another size pads it before. It never
	// changes.
	Size() int64
	// Present calls visit for the ranges within [off, off+n) that stored data touches, in ascending order, until visit
	// returns false. Ranges may stick out at both ends, may touch, and may claim more than is stored, never less. The
	// cost should follow what is stored there and not n: the whole disk is asked for in one call.
	//
	// visit does not call back into the Source.
	Present(ctx context.Context, off, n int64, visit func(off, n int64) bool) error
}

// bitset holds one bit per guest cluster of one L2 table: set is present.
type bitset []uint64

func newBitset(n int64) bitset    { return make(bitset, (n+63)/64) }
func (b bitset) has(i int64) bool { return b[i>>6]&(1<<(uint64(i)&63)) != 0 }
func (b bitset) set(i int64)      { b[i>>6] |= 1 << (uint64(i) & 63) }
func (b bitset) sizeBytes() int   { return len(b) * 8 }
func (b bitset) setRange(i, to int64) { // sets [i, to), whole words where it can
	for i < to {
		if i&63 == 0 && to-i >= 64 {
			b[i>>6] = ^uint64(0)
			i += 64
			continue
		}
		b.set(i)
		i++
	}
}

// next returns the first index in [i, n) whose bit is as wanted, or n.
func (b bitset) next(i, n int64, want bool) int64 {
	for i < n {
		w := b[i>>6]
		if !want {
			w = ^w
		}
		w >>= uint64(i) & 63
		if w != 0 {
			return min(i+int64(bits.TrailingZeros64(w)), n)
		}
		i = (i | 63) + 1
	}
	return n
}

// clusters calls visit for runs [from, to) of cluster numbers that are present in [off, off+n) of src. Runs ascend,
// never overlap and have absent clusters between them. off is a multiple of the cluster size.
func clusters(ctx context.Context, src Source, cb int, off, n int64, visit func(from, to int64) bool) error {
	var (
		first   = off >> cb
		limit   = ceilShift(off+n, cb)
		from    = int64(-1)
		to      int64
		ordered = true
		stopped bool
	)
	err := src.Present(ctx, off, n, func(o, m int64) bool {
		if m <= 0 {
			return true
		}
		a, b := max(o>>cb, first), min(ceilShift(o+m, cb), limit)
		switch {
		case a >= b:
			return true
		case from < 0:
			from, to = a, b
		case a < from:
			ordered = false
			return false
		case a <= to:
			to = max(to, b)
		default:
			if !visit(from, to) {
				stopped = true
				return false
			}
			from, to = a, b
		}
		return true
	})
	switch {
	case err != nil:
		return err
	case !ordered:
		return errs.Text("find present clusters", "", errs.Bug, "the source gave its ranges out of order")
	case from >= 0 && !stopped:
		visit(from, to)
	}
	return nil
}

// presence returns the bits of n clusters from cluster number first.
func presence(ctx context.Context, src Source, cb int, first, n int64) (bitset, error) {
	b := newBitset(n)
	off := first << cb
	size := min(n<<cb, src.Size()-off)
	err := clusters(ctx, src, cb, off, size, func(from, to int64) bool {
		b.setRange(from-first, to-first)
		return true
	})
	return b, err
}

// nextPresent returns the first present cluster at or after c, or limit when there is none before limit.
func nextPresent(ctx context.Context, src Source, cb int, c, limit int64) (int64, error) {
	found := limit
	off := c << cb
	if c >= limit {
		return limit, nil
	}
	// Not through clusters: that would wait for the end of the first run, which may be the whole disk.
	err := src.Present(ctx, off, src.Size()-off, func(o, m int64) bool {
		if m <= 0 || o+m <= off {
			return true
		}
		found = min(max(o>>cb, c), limit)
		return false
	})
	return found, err
}

// nextAbsent returns the first absent cluster at or after c, or limit when there is none before limit.
func nextAbsent(ctx context.Context, src Source, cb int, c, limit int64) (int64, error) {
	if c >= limit {
		return limit, nil
	}
	found, off := c, c<<cb
	err := clusters(ctx, src, cb, off, src.Size()-off, func(from, to int64) bool {
		if from == c {
			found = to
		}
		return false
	})
	return min(found, limit), err
}

// readFull fills p from src. A source that ends early is a broken one: the caller stays within its Size.
func readFull(ctx context.Context, src Source, p []byte, off int64) error {
	n, err := src.ReadAt(ctx, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return errs.Text("read disk", "", errs.Bug, "the source ended before its size")
	}
	return err
}
