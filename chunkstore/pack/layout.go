package pack

import (
	"errors"
	"hash/crc32"
	"math"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
)

// Sizes of the fixed structures in bytes. They never change.
const (
	headerSize    = 64
	groupSize     = 64
	dirHeaderSize = 16
	dirEntrySize  = 44
	compactExtra  = 8 // more in each entry of a compact pack's directory
	trailerSize   = 112
)

// The magics. They never change, and differ in more than one byte so that no single flip turns one into another.
const (
	headerMagic  = "HFP\x8a"
	groupMagic   = "CHK\x9b"
	dirMagic     = "DIR\xac"
	trailerMagic = "END\xbd"
)

// What the decoders say. The reader turns them into *errs.Error with the pack's name.
var (
	errMagic   = errors.New("the magic number is wrong")
	errCRC     = errors.New("the checksum does not match")
	errField   = errors.New("a field holds a value that is never written")
	errVersion = errors.New("the pack was written by a newer Holdfast")
)

// Header begins a pack.
type Header struct {
	Kind      Kind
	Number    uint32 // of the pack in its store; the first is 1
	Created   time.Time
	StoreUUID [16]byte
	PackUUID  [16]byte
	KeyID     [8]byte // of the master key
	Compact   bool    // it takes the place of a pack of the same number; see Writer.Move
}

// flagCompact is the flag of a compact pack's header.
const flagCompact = 1

func crcOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// sealCRC puts the CRC of b, but for its last four bytes, into those.
func sealCRC(b []byte) { le.PutUint32(b[len(b)-4:], crcOf(b[:len(b)-4])) }

func crcOK(b []byte) bool { return le.Uint32(b[len(b)-4:]) == crcOf(b[:len(b)-4]) }

func (h *Header) encode(b *[headerSize]byte) {
	copy(b[0:4], headerMagic)
	le.PutUint16(b[4:6], Version)
	b[6] = byte(h.Kind)
	b[7] = 0 // flags
	if h.Compact {
		le.PutUint16(b[4:6], compactVersion)
		b[7] = flagCompact
	}
	le.PutUint64(b[8:16], uint64(h.Created.Unix()))
	copy(b[16:32], h.StoreUUID[:])
	copy(b[32:48], h.PackUUID[:])
	copy(b[48:56], h.KeyID[:])
	le.PutUint32(b[56:60], h.Number)
	sealCRC(b[:])
}

func decodeHeader(b *[headerSize]byte) (Header, error) {
	switch {
	case string(b[0:4]) != headerMagic:
		return Header{}, errMagic
	case !crcOK(b[:]):
		return Header{}, errCRC
	case le.Uint16(b[4:6]) > compactVersion:
		return Header{}, errVersion
	}
	h := Header{Compact: le.Uint16(b[4:6]) == compactVersion, Kind: Kind(b[6]), Number: le.Uint32(b[56:60])}
	sec := le.Uint64(b[8:16])
	if le.Uint16(b[4:6]) == 0 || (h.Kind != Data && h.Kind != Meta) || (b[7] == flagCompact) != h.Compact || b[7] > flagCompact || h.Number == 0 || sec > math.MaxInt64 {
		return Header{}, errField
	}
	h.Created = time.Unix(int64(sec), 0).UTC()
	h.StoreUUID, h.PackUUID, h.KeyID = [16]byte(b[16:32]), [16]byte(b[32:48]), [8]byte(b[48:56])
	return h, nil
}

// group is the header of a group.
type group struct {
	codec  Codec
	frames int
	raw    uint16 // bit i: frame i is stored as it is
	plain  uint32 // bytes before compression
	cipher [maxFrames]uint32
	digest chunk.Digest
}

// stored returns the bytes from the start of the header to the end of the last frame.
func (g *group) stored() uint32 {
	n := uint32(groupSize)
	for _, c := range g.cipher[:g.frames] {
		n += c
	}
	return n
}

// frame returns where frame i lies, counted from the start of the group, and its bytes before compression.
func (g *group) frame(i int) (off, length, plain uint32) {
	off = groupSize
	for _, c := range g.cipher[:i] {
		off += c
	}
	return off, g.cipher[i], min(chunk.FrameSize, g.plain-uint32(i)*chunk.FrameSize)
}

func (g *group) encode(b *[groupSize]byte) {
	copy(b[0:4], groupMagic)
	b[4] = byte(g.codec)
	b[5] = byte(g.frames)
	le.PutUint16(b[6:8], g.raw)
	le.PutUint32(b[8:12], g.plain)
	for i, c := range g.cipher {
		le.PutUint32(b[12+4*i:], c)
	}
	copy(b[28:60], g.digest[:])
	sealCRC(b[:])
}

// decodeGroup accepts only what Writer can have written: everything that follows from the header (where frames lie,
// how much memory a decode takes) is safe to use.
func decodeGroup(b []byte) (g group, err error) {
	b = b[:groupSize]
	if string(b[0:4]) != groupMagic {
		return group{}, errMagic
	}
	if !crcOK(b) {
		return group{}, errCRC
	}
	g.codec, g.frames, g.raw, g.plain = Codec(b[4]), int(b[5]), le.Uint16(b[6:8]), le.Uint32(b[8:12])
	if g.codec >= codecs || g.plain == 0 || g.plain > chunk.MaxSize || g.frames != framesOf(int(g.plain)) || g.raw>>g.frames != 0 {
		return group{}, errField
	}
	for i := range g.cipher {
		g.cipher[i] = le.Uint32(b[12+4*i:])
		if i >= g.frames {
			if g.cipher[i] != 0 {
				return group{}, errField
			}
			continue
		}
		_, length, plain := g.frame(i)
		isRaw := g.raw>>i&1 == 1
		if isRaw && length != plain+tagSize || !isRaw && (g.codec == None || length <= tagSize || length >= plain+tagSize) {
			return group{}, errField
		}
	}
	copy(g.digest[:], b[28:60])
	return g, nil
}

// framesOf returns how many frames a chunk of n bytes has.
func framesOf(n int) int { return (n + chunk.FrameSize - 1) / chunk.FrameSize }

// encodeDirectory appends the directory to dst: a header with the number of entries and a CRC of them, and the entries
// in the order the groups were written. In a compact pack each has its chunk's place and then where the chunk lies.
func encodeDirectory(dst []byte, entries []DirEntry, compact bool) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, dirHeaderSize)...)
	for _, e := range entries {
		dst = append(dst, e.Digest[:]...)
		dst = le.AppendUint32(dst, e.Place.Offset)
		dst = le.AppendUint32(dst, e.Place.Stored)
		dst = le.AppendUint32(dst, e.PlainLen)
		if compact {
			dst = le.AppendUint32(dst, e.at.Offset)
			dst = le.AppendUint32(dst, e.at.Stored)
		}
	}
	h := dst[start : start+dirHeaderSize]
	copy(h[0:4], dirMagic)
	le.PutUint32(h[4:8], uint32(len(entries)))
	le.PutUint32(h[8:12], crcOf(dst[start+dirHeaderSize:]))
	sealCRC(h)
	return dst
}

// entrySize returns the bytes of a directory's entry.
func entrySize(compact bool) int64 {
	if compact {
		return dirEntrySize + compactExtra
	}
	return dirEntrySize
}

// dirLen returns the bytes of a directory of n entries.
func dirLen(n uint32, compact bool) int64 { return dirHeaderSize + int64(n)*entrySize(compact) }

// decodeDirHeader returns the number of entries and the CRC of them.
func decodeDirHeader(b []byte) (entries, crc uint32, err error) {
	b = b[:dirHeaderSize]
	switch {
	case string(b[0:4]) != dirMagic:
		return 0, 0, errMagic
	case !crcOK(b):
		return 0, 0, errCRC
	case le.Uint32(b[4:8]) > MaxChunks:
		return 0, 0, errField
	}
	return le.Uint32(b[4:8]), le.Uint32(b[8:12]), nil
}

// decodeDirectory reads a whole directory of a pack; end is where groups end. The entries are in order and do not
// overlap, or it is no directory of ours.
func decodeDirectory(b []byte, h Header, end int64) ([]DirEntry, error) {
	if len(b) < dirHeaderSize {
		return nil, errField
	}
	n, crc, err := decodeDirHeader(b)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != dirLen(n, h.Compact) {
		return nil, errField
	}
	b = b[dirHeaderSize:]
	if crcOf(b) != crc {
		return nil, errCRC
	}
	out := make([]DirEntry, n)
	size := int(entrySize(h.Compact))
	place := func(r []byte) chunk.Place {
		return chunk.Place{Pack: h.Number, Offset: le.Uint32(r), Stored: le.Uint32(r[4:])}
	}
	named, lying := row{next: headerSize, end: end}, row{next: headerSize, end: end}
	if h.Compact {
		named.end = MaxSize // in a file that is no more
	}
	for i := range out {
		r := b[i*size:][:size]
		e := DirEntry{Digest: chunk.Digest(r[0:32]), Place: place(r[32:40]), PlainLen: le.Uint32(r[40:44])}
		if h.Compact {
			e.at = place(r[44:52])
		}
		if !named.take(e.Place) || !lying.take(e.Lies()) || e.PlainLen == 0 || e.PlainLen > chunk.MaxSize {
			return nil, errField
		}
		out[i] = e
	}
	return out, nil
}

// row checks that places follow one another.
type row struct{ next, end int64 }

func (o *row) take(p chunk.Place) bool {
	ok := p.ByteOffset() >= o.next && p.Stored > groupSize && p.Stored <= maxGroup
	o.next = align(p.ByteOffset() + int64(p.Stored))
	return ok && o.next <= o.end
}

// trailer ends a sealed pack.
type trailer struct {
	flags     uint16
	chunks    uint32
	dirOffset uint32 // in PlaceUnits
	dirBytes  uint32
	plain     uint64   // bytes of all chunks before compression
	stored    uint64   // bytes of all groups, without padding
	sum       [32]byte // SHA-256 of everything before the trailer
	mac       [32]byte // HMAC-SHA-256 with the sign key of everything in the trailer before it and of the directory
	rest      bool     // not in the file: a rest was found, which replaces trailer and directory; nothing else is set
}

// The flags of a trailer. Bits never change.
const (
	flagRecovered = 1 << 0 // sealed by recovery, not by the writer
	flagUnsigned  = 1 << 1 // recovery had no key: mac is zero, and readers trust the directory only after a look at the frames
)

const trailerSigned = 72 // the bytes of the trailer that mac covers

func (t *trailer) encode(b *[trailerSize]byte) {
	*b = [trailerSize]byte{}
	copy(b[0:4], trailerMagic)
	le.PutUint16(b[4:6], Version)
	le.PutUint16(b[6:8], t.flags)
	le.PutUint32(b[8:12], t.chunks)
	le.PutUint32(b[12:16], t.dirOffset)
	le.PutUint32(b[16:20], t.dirBytes)
	le.PutUint64(b[24:32], t.plain)
	le.PutUint64(b[32:40], t.stored)
	copy(b[40:72], t.sum[:])
	copy(b[72:104], t.mac[:])
	sealCRC(b[:])
}

// decodeTrailer reads the trailer of a pack of the given size.
func decodeTrailer(b *[trailerSize]byte, size int64, compact bool) (trailer, error) {
	switch {
	case string(b[0:4]) != trailerMagic:
		return trailer{}, errMagic
	case !crcOK(b[:]):
		return trailer{}, errCRC
	case le.Uint16(b[4:6]) > Version:
		return trailer{}, errVersion
	}
	t := trailer{
		flags: le.Uint16(b[6:8]), chunks: le.Uint32(b[8:12]),
		dirOffset: le.Uint32(b[12:16]), dirBytes: le.Uint32(b[16:20]),
		plain: le.Uint64(b[24:32]), stored: le.Uint64(b[32:40]),
		sum: [32]byte(b[40:72]), mac: [32]byte(b[72:104]),
	}
	if le.Uint16(b[4:6]) == 0 || t.flags > flagRecovered|flagUnsigned || t.chunks > MaxChunks ||
		le.Uint32(b[20:24]) != 0 || le.Uint32(b[104:108]) != 0 ||
		int64(t.dirBytes) != dirLen(t.chunks, compact) || t.dirOffset < headerSize/chunk.PlaceUnit ||
		int64(t.dirOffset)*chunk.PlaceUnit+int64(t.dirBytes)+trailerSize != size {
		return trailer{}, errField
	}
	return t, nil
}
