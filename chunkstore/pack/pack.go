// Package pack writes and reads packs: the files that hold the store's chunks and manifest pages.
//
// Terms. A pack is an append-once file: a header, then groups, then, once it is sealed, a directory and a trailer. A
// group is one chunk (or page): a plaintext header and one to four frames. A frame is at most 64 KiB of the chunk,
// compressed or raw, encrypted and authenticated on its own, so that a small read costs one small read and one small
// decode.
//
// Invariants:
//
//  1. A pack alone, with the master key, is enough to rebuild every index entry that points into it.
//  2. No nonce is used twice: the key is the pack's own, the nonce is the group's offset and the frame's number, a
//     pack is only ever appended to, and recovery never appends a frame.
//  3. A frame authenticates its group's header, digest and place included: frames cannot be exchanged between groups
//     or moved within the pack, and a digest read from a header is true as soon as one frame of the group opened.
//  4. What is damaged is found and called errs.Corrupt. A place that holds another chunk is errs.Stale: a hint that is
//     old, not damage.
//  5. Group headers are self-delimiting and can be found again behind damage without a key.
//  6. A chunk's place is for ever. When a pack is made compact (compact.go), the new file says which places its chunks
//     had, and is asked for those.
//  7. Space is only given back (holes in the file) of chunks that no directory names any more: a rest, a new directory
//     beside the pack, is durable before. What is left is neither moved nor written again.
//  8. Memory is bounded whatever the file says: nothing is allocated by a length that was not checked.
//
// The bytes are described in docs/format/pack.md. A Writer belongs to one goroutine; Compress may run in many. A Reader
// may be used by many. Tested by golden vectors in testdata, by a flip of every byte and a cut at every length of a
// small pack, by fuzz targets for every structure, and on disks that fail and crash.
package pack

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"hash/crc32"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Version is the version of the format that is written. Readers refuse newer ones.
const Version = 1

// compactVersion is that of a compact pack's header: whoever knows only version 1 has to refuse it.
const compactVersion = 2

// TargetSize is the size in bytes at which the store seals a pack and begins the next. Packs of any size up to MaxSize
// are valid.
const TargetSize = 64 << 20

// MaxSize and MaxChunks bound a pack, and so the memory its directory takes: 44 MiB at most.
const (
	MaxSize   = 1 << 30
	MaxChunks = 1 << 20
)

// Kind says what a pack holds. Numbers never change.
type Kind uint8

// The kinds of packs. Data and pages lie apart, so that reading manifests does not drag data through the cache.
const (
	Data Kind = 1 // chunks of disks
	Meta Kind = 2 // pages of manifests
)

// String returns the kind's name for people.
func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case Meta:
		return "meta"
	}
	return "unknown"
}

const (
	maxFrames = chunk.MaxSize / chunk.FrameSize
	tagSize   = 16
	// maxGroup is the most bytes a group can take, without padding.
	maxGroup = groupSize + maxFrames*(chunk.FrameSize+tagSize)
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// DirEntry is a chunk as the directory or a walk knows it.
type DirEntry struct {
	Digest   chunk.Digest
	Place    chunk.Place // where manifests and the index say it is
	PlainLen uint32      // bytes before compression

	at chunk.Place // in a compact pack, where it is in the file; else zero
}

// Lies returns where the chunk is in the file: at its place, but in a compact pack.
func (e *DirEntry) Lies() chunk.Place {
	if e.at.IsZero() {
		return e.Place
	}
	return e.at
}

// align rounds n up to the next place a group may begin.
func align(n int64) int64 { return (n + chunk.PlaceUnit - 1) &^ (chunk.PlaceUnit - 1) }

// newAEAD returns the cipher of one pack's frames.
func newAEAD(m *keys.Master, packUUID [16]byte) cipher.AEAD {
	k := m.PackKey(packUUID)
	b, err := aes.NewCipher(k[:])
	if err != nil {
		panic("pack: AES-256: " + err.Error()) // the key has 32 bytes
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic("pack: GCM: " + err.Error()) // the cipher has 16-byte blocks
	}
	return g
}

// putNonce writes the nonce of a frame: the offset of its group in PlaceUnits, then its number.
func putNonce(n *[12]byte, offset uint32, frame int) {
	le.PutUint64(n[0:8], uint64(offset))
	le.PutUint32(n[8:12], uint32(frame))
}

// corrupt returns the error for a damaged pack.
func corrupt(op, name, why string) error {
	return errs.Text(op, name, errs.Corrupt, why)
}
