package overlay

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// The bytes of the map log; docs/format/overlay.md describes them. All of these are stored: never change.
const (
	logMagic      = "HFOVLMAP"
	logVersion    = 1
	sectorSize    = 512
	sectorHeader  = 24
	sectorPayload = sectorSize - sectorHeader
	flagLast      = 1 // the sector ends its batch
	maxIdentity   = 256

	// maxBatchPayload bounds the memory that reading a log needs, and what a batch may carry.
	maxBatchPayload = 4096 * sectorPayload
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errUnsupported marks logs of a version that this code does not know; all other failures to parse are damage.
var errUnsupported = errors.New("written by a newer version")

// header is the first sector of a log.
type header struct {
	identity        string
	baseSize        int64
	segmentBytes    int64
	snapshotSectors int64 // this many sectors after the header were published with it: none may be missing
}

func (h *header) encode() []byte {
	b := make([]byte, sectorSize)
	copy(b[4:], logMagic)
	le := binary.LittleEndian
	le.PutUint16(b[12:], logVersion)
	le.PutUint16(b[14:], uint16(len(h.identity)))
	le.PutUint64(b[16:], uint64(h.baseSize))
	le.PutUint64(b[24:], uint64(h.segmentBytes))
	le.PutUint64(b[32:], uint64(h.snapshotSectors))
	copy(b[40:], h.identity)
	le.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return b
}

func decodeHeader(b []byte) (header, error) {
	le := binary.LittleEndian
	if string(b[4:12]) != logMagic {
		return header{}, errors.New("the file does not begin like a map log")
	}
	if le.Uint32(b) != crc32.Checksum(b[4:], castagnoli) {
		return header{}, errors.New("the header's checksum is wrong")
	}
	if v := le.Uint16(b[12:]); v != logVersion {
		return header{}, fmt.Errorf("version %d: %w", v, errUnsupported)
	}
	n := int(le.Uint16(b[14:]))
	if n > maxIdentity {
		return header{}, errors.New("the header's identity is too long")
	}
	h := header{
		identity: string(b[40 : 40+n]), baseSize: int64(le.Uint64(b[16:])), segmentBytes: int64(le.Uint64(b[24:])),
		snapshotSectors: int64(le.Uint64(b[32:])),
	}
	if h.baseSize < 0 || h.baseSize > maxSize || !validSegment(h.segmentBytes) || h.snapshotSectors < 0 {
		return header{}, errors.New("the header's figures make no sense")
	}
	return h, nil
}

func validSegment(n int64) bool { return n >= blockSize && n <= maxSize && n%blockSize == 0 }

// appendSectors appends one batch, cut into sectors that each carry their place in it, so that one that never reached
// the disk is told from one that was damaged there.
func appendSectors(to []byte, seq uint64, payload []byte) []byte {
	le := binary.LittleEndian
	for i := uint32(0); ; i++ {
		var s [sectorSize]byte
		n := copy(s[sectorHeader:], payload)
		payload = payload[n:]
		le.PutUint16(s[4:], uint16(n))
		if len(payload) == 0 {
			le.PutUint16(s[6:], flagLast)
		}
		le.PutUint64(s[8:], seq)
		le.PutUint32(s[16:], i)
		le.PutUint32(s[:], crc32.Checksum(s[4:], castagnoli))
		to = append(to, s[:]...)
		if len(payload) == 0 {
			return to
		}
	}
}

// sectors tells how many sectors a batch takes.
func sectors(payload []byte) int64 {
	return max(1, int64(len(payload)+sectorPayload-1)/sectorPayload)
}

// sector is one sector as parsed. zero means that nothing was ever written there.
type sector struct {
	zero, last bool
	seq        uint64
	index      uint32
	payload    []byte
}

func decodeSector(b []byte) (sector, error) {
	le := binary.LittleEndian
	if allZero(b) {
		return sector{zero: true}, nil
	}
	n, flags := int(le.Uint16(b[4:])), le.Uint16(b[6:])
	if le.Uint32(b) != crc32.Checksum(b[4:], castagnoli) {
		return sector{}, errors.New("the checksum is wrong")
	}
	if n > sectorPayload || flags > flagLast || le.Uint32(b[20:]) != 0 || flags == 0 && n != sectorPayload {
		return sector{}, errors.New("the sector's figures make no sense")
	}
	return sector{
		last: flags == flagLast, seq: le.Uint64(b[8:]), index: le.Uint32(b[16:]),
		payload: b[sectorHeader : sectorHeader+n],
	}, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// logContent is what a log says.
type logContent struct {
	header header
	state  *mapState
	end    int64  // the first free sector
	seq    uint64 // of the next batch
	torn   bool   // sectors of an unfinished batch lie at or behind end
}

// readLog parses a whole log. A batch that is not complete at the end is dropped: its writers were never answered.
// Whatever else is not as written is an error.
func readLog(r io.Reader) (*logContent, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	b := make([]byte, sectorSize)
	if more, err := readSector(br, b); err != nil {
		return nil, err
	} else if !more {
		return nil, errors.New("the file is empty")
	}
	h, err := decodeHeader(b)
	if err != nil {
		return nil, err
	}
	c := &logContent{header: h, state: &mapState{}, end: 1, seq: 1}
	var batch []byte
	next := uint32(0) // index of the sector expected next
	ended := false    // a sector that was never written has been seen
	for at := int64(1); ; at++ {
		more, err := readSector(br, b)
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
		s, err := decodeSector(b)
		switch {
		case err != nil:
		case s.zero:
			ended = true
			continue
		case ended && s.seq == c.seq && at > h.snapshotSectors:
			c.torn = true
			continue
		case ended || s.seq != c.seq || s.index != next:
			err = errors.New("the sector is out of order: one before it is lost")
		case len(batch)+len(s.payload) > maxBatchPayload:
			err = errors.New("the batch is longer than any that is written")
		}
		if err != nil {
			return nil, fmt.Errorf("sector %d: %w", at, err)
		}
		batch = append(batch, s.payload...)
		next++
		if !s.last {
			continue
		}
		if err := decodeEntries(batch, c.state.apply); err != nil {
			return nil, fmt.Errorf("sector %d: %w", at, err)
		}
		batch, next = batch[:0], 0
		c.end, c.seq = at+1, c.seq+1
	}
	if c.end <= h.snapshotSectors {
		return nil, fmt.Errorf("sector %d: the log is shorter than when it was published", c.end)
	}
	c.torn = c.torn || next > 0
	return c, nil
}

// readSector reads the next sector; a part of one at the end of the file counts as if zeros followed.
func readSector(r io.Reader, b []byte) (more bool, err error) {
	n, err := io.ReadFull(r, b)
	clear(b[n:])
	if err == io.EOF {
		return false, nil
	}
	if err == io.ErrUnexpectedEOF {
		err = nil
	}
	return true, err
}
