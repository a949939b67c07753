// Package chunk holds the words that all parts of the chunk store share: the Digest that names a chunk, the ID that
// index and manifest keep of it, and the Place where it lies. It does no I/O and imports nothing of ours.
package chunk

import (
	"encoding/hex"
	"fmt"
)

// Grid is the alignment of every cut in bytes: chunk borders, extents and the published size of a disk are multiples
// of it. It never changes.
const Grid = 4096

// MaxSize is the largest chunk in bytes before compression. It never changes.
const MaxSize = 256 << 10

// FrameSize is the largest independently readable part of a chunk in bytes before compression. It never changes.
const FrameSize = 64 << 10

// Digest is the keyed name of a chunk's or a page's content, 32 bytes, as kept in packs. The zero Digest names the
// content that is all zeros, which is never stored.
type Digest [32]byte

// ID is the first half of a Digest, as kept in the index and in manifests, where space counts: 128 keyed bits.
type ID [16]byte

// ID shortens the digest.
func (d Digest) ID() ID { return ID(d[:16]) }

// IsZero tells whether d names all-zero content.
func (d Digest) IsZero() bool { return d == Digest{} }

// String returns 64 hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero tells whether the ID is that of all-zero content.
func (id ID) IsZero() bool { return id == ID{} }

// String returns 32 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// PlaceUnit is the alignment of chunks within a pack in bytes. It never changes.
const PlaceUnit = 16

// Place says where a chunk lies. In a manifest it is a hint: the pack may have been rewritten since, which shows when
// the digest found there is another one.
type Place struct {
	Pack   uint32 // the pack's number in the store; the first is 1
	Offset uint32 // of the chunk's header, in PlaceUnits from the start of the pack
	Stored uint32 // bytes from the start of the header to the end of the last frame
}

// IsZero tells whether p is no place at all.
func (p Place) IsZero() bool { return p == Place{} }

// ByteOffset returns the offset of the chunk's header in bytes.
func (p Place) ByteOffset() int64 { return int64(p.Offset) * PlaceUnit }

// String returns pack:offset+stored, the last two in bytes.
func (p Place) String() string { return fmt.Sprintf("%08x:%d+%d", p.Pack, p.ByteOffset(), p.Stored) }
