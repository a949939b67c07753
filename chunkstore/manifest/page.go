// Package manifest keeps, for one disk at one time, which chunk lies where: a Merkle radix tree of pages that two
// points of the same disk share wherever they do not differ.
//
// Terms. A leaf page covers LeafSize of disk and lists entries that cover it exactly: each a chunk, or a run of zeros.
// An inner page has up to Fanout children; level 1 covers 2 GiB, level 2 512 GiB, level 3 128 TiB. A Ref names a page
// by ID and says where it lies; the zero Ref is a subtree of zeros and is never stored. A Root is the topmost Ref with
// the disk's exact size.
//
// Invariants:
//
//  1. A page's digest covers everything in it but the places: they are hints, and moving a chunk renames nothing.
//     Equal trees over equal cuts therefore have equal roots, whoever wrote them.
//  2. Entries of a leaf ascend, touch, and end at LeafBlocks; a zero run never follows a zero run; blocks beyond the
//     end of the disk are zeros.
//  3. A page without data is never stored; a tree is as low as its size allows.
//  4. Bytes are checked before they are believed: a page that breaks 2 or 3, or whose level is not the one its parent
//     says, is errs.Corrupt.
//
// The layout of both pages is drawn in docs/format/manifest.md. The package does no I/O of its own: pages are read
// through a Source and written through a Sink. A Tree may be used by many goroutines, a Builder by one.
package manifest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The shape of the tree. These never change.
const (
	LeafSize   = 8 << 20 // bytes of disk under a leaf
	LeafBlocks = LeafSize / chunk.Grid
	Fanout     = 256
	MaxLevel   = 4                          // level 4 covers 32 PiB
	MaxSize    = int64(LeafSize) << (8 * 4) // bytes
)

// Layout of a page; every number is little endian. These never change.
const (
	pageMagic  = "HFM1"
	headerSize = 16 // magic 4, level 1, reserved 1, count 2, reserved 8
	entrySize  = 32 // leaf: end 2, reserved 2, stored 4, pack 4, offset 4, id 16
	childSize  = 40 // inner: index 1, reserved 3, stored 4, pack 4, offset 4, data 8, id 16
	placeAt    = 4  // of the 12 bytes of the place in both
	digestTag  = 1  // first byte of what is hashed; makes its length odd, so that no chunk's content can equal it
)

// MaxPageSize is the largest page in bytes: a leaf with one entry for each block.
const MaxPageSize = headerSize + LeafBlocks*entrySize

// Entry is a stretch of a leaf. A zero ID is a run of zeros.
type Entry struct {
	End   uint16 // in blocks of chunk.Grid from the start of the leaf; the stretch begins where the one before ended
	ID    chunk.ID
	Place chunk.Place
}

// IsZero tells whether the stretch holds only zeros.
func (e Entry) IsZero() bool { return e.ID.IsZero() }

// Leaf is the content of a leaf page. nil is a leaf of zeros.
type Leaf []Entry

// DataBytes counts the bytes that are not in a run of zeros.
func (l Leaf) DataBytes() int64 {
	var n, start int64
	for _, e := range l {
		if !e.IsZero() {
			n += int64(e.End) - start
		}
		start = int64(e.End)
	}
	return n * chunk.Grid
}

// Ref names a page.
type Ref struct {
	ID    chunk.ID
	Place chunk.Place
	Data  int64 // bytes of disk below that are not in a run of zeros
}

// IsZero tells whether the subtree holds only zeros.
func (r Ref) IsZero() bool { return r.ID.IsZero() }

// Root names a whole disk.
type Root struct {
	Size   int64 // exact, in bytes
	Level  int   // of the top page; 0 is a leaf
	Digest chunk.Digest
	Place  chunk.Place
	Data   int64
}

// Ref returns the reference to the top page.
func (r Root) Ref() Ref { return Ref{r.Digest.ID(), r.Place, r.Data} }

// LevelFor returns the level of the top page of a disk.
func LevelFor(size int64) int {
	level := 0
	for span := int64(LeafSize); span < size && level < MaxLevel; span <<= 8 {
		level++
	}
	return level
}

// children is an inner page in memory.
type children [Fanout]Ref

func (c *children) data() (n int64) {
	for i := range c {
		n += c[i].Data
	}
	return n
}

func corrupt(what string, args ...any) error {
	return errs.Text("read manifest page", "", errs.Corrupt, fmt.Sprintf(what, args...))
}

func header(dst []byte, level, count int) []byte {
	var h [headerSize]byte
	copy(h[:], pageMagic)
	h[4] = byte(level)
	binary.LittleEndian.PutUint16(h[6:], uint16(count))
	return append(dst, h[:]...)
}

func putPlace(b []byte, p chunk.Place) {
	binary.LittleEndian.PutUint32(b, p.Stored)
	binary.LittleEndian.PutUint32(b[4:], p.Pack)
	binary.LittleEndian.PutUint32(b[8:], p.Offset)
}

func getPlace(b []byte) chunk.Place {
	return chunk.Place{
		Stored: binary.LittleEndian.Uint32(b), Pack: binary.LittleEndian.Uint32(b[4:]),
		Offset: binary.LittleEndian.Uint32(b[8:]),
	}
}

// encodeLeaf appends the page of a leaf that holds data.
func encodeLeaf(dst []byte, l Leaf) []byte {
	dst = header(dst, 0, len(l))
	for _, e := range l {
		var b [entrySize]byte
		binary.LittleEndian.PutUint16(b[:], e.End)
		putPlace(b[placeAt:], e.Place)
		copy(b[16:], e.ID[:])
		dst = append(dst, b[:]...)
	}
	return dst
}

// encodeInner appends the page of an inner node that holds data.
func encodeInner(dst []byte, level int, c *children) []byte {
	at := len(dst)
	dst = header(dst, level, 0)
	count := 0
	for i, r := range c {
		if r.IsZero() {
			continue
		}
		count++
		var b [childSize]byte
		b[0] = byte(i)
		putPlace(b[placeAt:], r.Place)
		binary.LittleEndian.PutUint64(b[16:], uint64(r.Data))
		copy(b[24:], r.ID[:])
		dst = append(dst, b[:]...)
	}
	binary.LittleEndian.PutUint16(dst[at+6:], uint16(count))
	return dst
}

// checkHeader returns the body of a page of the given level and the number of records in it.
func checkHeader(page []byte, level, recordSize int) ([]byte, int, error) {
	if len(page) < headerSize || string(page[:4]) != pageMagic {
		return nil, 0, corrupt("no page header")
	}
	if int(page[4]) != level {
		return nil, 0, corrupt("level %d where level %d belongs", page[4], level)
	}
	n := int(binary.LittleEndian.Uint16(page[6:]))
	body := page[headerSize:]
	if n == 0 || len(body) != n*recordSize {
		return nil, 0, corrupt("%d bytes for %d records", len(body), n)
	}
	return body, n, nil
}

func entryAt(body []byte, i int) Entry {
	b := body[i*entrySize:]
	return Entry{End: binary.LittleEndian.Uint16(b), Place: getPlace(b[placeAt:]), ID: chunk.ID(b[16:32])}
}

// DecodeLeaf reads a leaf page and checks invariant 2.
func DecodeLeaf(page []byte) (Leaf, error) {
	body, n, err := checkHeader(page, 0, entrySize)
	if err != nil {
		return nil, err
	}
	if err := checkEntries(body, n); err != nil {
		return nil, err
	}
	l := make(Leaf, n)
	for i := range l {
		l[i] = entryAt(body, i)
	}
	return l, nil
}

// checkEntries holds the entries of a leaf to invariant 2.
func checkEntries(body []byte, n int) error {
	if n > LeafBlocks {
		return corrupt("%d entries in a leaf", n)
	}
	last, lastZero, data := uint16(0), false, false
	for i := range n {
		e := entryAt(body, i)
		blocks := int(e.End) - int(last)
		if blocks <= 0 || e.End > LeafBlocks {
			return corrupt("entry %d ends at block %d after %d", i, e.End, last)
		}
		if e.IsZero() && lastZero || !e.IsZero() && blocks*chunk.Grid > chunk.MaxSize {
			return corrupt("entry %d is no legal stretch", i)
		}
		last, lastZero, data = e.End, e.IsZero(), data || !e.IsZero()
	}
	if last != LeafBlocks || !data {
		return corrupt("leaf covers %d blocks, has data: %v", last, data)
	}
	return nil
}

// decodeInner reads an inner page into c and checks its records.
func decodeInner(page []byte, level int, c *children) error {
	body, n, err := checkHeader(page, level, childSize)
	if err != nil {
		return err
	}
	*c = children{}
	last := -1
	for i := range n {
		b := body[i*childSize:]
		r := refAt(body, i)
		span := int64(LeafSize) << (8 * (level - 1))
		if int(b[0]) <= last || r.IsZero() || r.Data <= 0 || r.Data > span {
			return corrupt("child %d of a level %d page is not legal", i, level)
		}
		last = int(b[0])
		c[b[0]] = r
	}
	return nil
}

// PageDigest names a page: HMAC-SHA-256 with the store's digest key over a tag byte and the page with every place
// zeroed. page must be an encoded page; only its header is checked.
func PageDigest(key []byte, page []byte) (chunk.Digest, error) {
	if len(page) < headerSize || string(page[:4]) != pageMagic {
		return chunk.Digest{}, corrupt("no page header")
	}
	record := childSize
	if page[4] == 0 {
		record = entrySize
	}
	bare := append(make([]byte, 0, len(page)+1), digestTag)
	bare = append(bare, page...)
	for at := 1 + headerSize; at+record <= len(bare); at += record {
		clear(bare[at+placeAt : at+placeAt+12])
	}
	h := hmac.New(sha256.New, key)
	h.Write(bare)
	return chunk.Digest(h.Sum(nil)), nil
}

// Child is a reference in an inner page.
type Child struct {
	Index int // 0 to Fanout-1
	Ref   Ref
}

// Children returns the references of an inner page of the given level, for those who walk a tree in their own way.
func Children(page []byte, level int) ([]Child, error) {
	var c children
	if err := decodeInner(page, level, &c); err != nil {
		return nil, err
	}
	var out []Child
	for i, r := range c {
		if !r.IsZero() {
			out = append(out, Child{i, r})
		}
	}
	return out, nil
}
