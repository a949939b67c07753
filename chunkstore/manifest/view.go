package manifest

import (
	"context"
	"encoding/binary"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
)

// View is a leaf page that is searched as it lies: a read of 4 KiB must not pay for decoding 128 entries. The zero View
// is a leaf of zeros. It is valid for as long as the page is not changed.
type View struct{ body []byte }

// Find returns the entry that covers a block, and the block at which it starts, as Leaf.Find does. Whatever the page
// holds, start <= block < Entry.End: on a page that broke invariant 2 the answer would be wrong, but never out of range.
func (v View) Find(block int) (Entry, int) {
	if v.body == nil {
		return Entry{End: LeafBlocks}, 0
	}
	lo, hi := 0, len(v.body)/entrySize-1 // the last entry ends at LeafBlocks: View has looked
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if v.end(mid) > block {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	start := 0
	if lo > 0 {
		start = v.end(lo - 1)
	}
	return entryAt(v.body, lo), start
}

func (v View) end(i int) int { return int(binary.LittleEndian.Uint16(v.body[i*entrySize:])) }

// View returns leaf n to be searched. Of the pages on the way only what the search touches is looked at; the Source is
// expected to have called Check.
func (t *Tree) View(ctx context.Context, n int64) (View, error) {
	ref, err := t.leafRef(ctx, n)
	if err != nil || ref.IsZero() {
		return View{}, err
	}
	page, err := t.src.Page(ctx, ref)
	if err != nil {
		return View{}, err
	}
	body, count, err := checkHeader(page, 0, entrySize)
	if err != nil {
		return View{}, err
	}
	v := View{body}
	if v.end(count-1) != LeafBlocks {
		return View{}, corrupt("leaf covers %d blocks", v.end(count-1))
	}
	return v, nil
}

// childAt finds one reference in an inner page without decoding the others.
func childAt(page []byte, level, index int) (Ref, error) {
	r, at, err := childFrom(page, level, index)
	if at != index {
		r = Ref{}
	}
	return r, err
}

// childFrom finds the first reference of an inner page whose index is at least index. It returns the index, Fanout if
// there is none.
func childFrom(page []byte, level, index int) (Ref, int, error) {
	body, n, err := checkHeader(page, level, childSize)
	if err != nil {
		return Ref{}, Fanout, err
	}
	lo, hi := 0, n
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if int(body[mid*childSize]) < index {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == n {
		return Ref{}, Fanout, nil
	}
	return refAt(body, lo), int(body[lo*childSize]), nil
}

// NextData returns the number of the first leaf from n on that has data, Leaves() if there is none. It reads no leaf.
func (t *Tree) NextData(ctx context.Context, n int64) (int64, error) {
	found, err := t.nextData(ctx, t.Root.Ref(), t.Root.Level, n)
	if err != nil || found < 0 {
		return t.Leaves(), err
	}
	return found, nil
}

// nextData searches below ref for the first leaf from n on, n counted from the start of what ref covers. -1: none.
func (t *Tree) nextData(ctx context.Context, ref Ref, level int, n int64) (int64, error) {
	if ref.IsZero() || n >= 1<<(8*level) {
		return -1, nil
	}
	if level == 0 {
		return 0, nil
	}
	page, err := t.src.Page(ctx, ref)
	if err != nil {
		return -1, err
	}
	step := int64(1) << (8 * (level - 1))
	for i := int(n / step); ; i++ {
		child, at, err := childFrom(page, level, i)
		if err != nil || at == Fanout {
			return -1, err
		}
		base := int64(at) * step
		found, err := t.nextData(ctx, child, level-1, max(0, n-base))
		if err != nil || found >= 0 {
			return base + found, err
		}
		i = at
	}
}

func refAt(body []byte, i int) Ref {
	b := body[i*childSize:]
	return Ref{Place: getPlace(b[placeAt:]), Data: int64(binary.LittleEndian.Uint64(b[16:])), ID: chunk.ID(b[24:40])}
}

// Check looks at all of an encoded page of any level. Who keeps pages for reading calls it once, when a page comes in.
func Check(page []byte) error {
	if len(page) < headerSize {
		return corrupt("no page header")
	}
	level := int(page[4])
	if level > MaxLevel {
		return corrupt("there is no level %d", level)
	}
	if level > 0 {
		var c children
		return decodeInner(page, level, &c)
	}
	body, n, err := checkHeader(page, 0, entrySize)
	if err != nil {
		return err
	}
	return checkEntries(body, n)
}
