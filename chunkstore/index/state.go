package index

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"path/filepath"

	"github.com/holdfast-backup/holdfast/internal/disk"
)

// FormatVersion is the version of the index folder. A folder of another version is not converted but built anew.
const FormatVersion = 1

// The state file: magic (8), format version as uint32, reserved (4), store UUID (16), last acknowledged sequence as
// uint64, reserved (4), CRC-32C of all before it; little-endian. Magic and length never change.
const (
	stateName  = "holdfast.state"
	stateMagic = "HFINDEX\x00"
	stateSize  = 48
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// state is the content of the state file.
type state struct {
	version uint32
	store   [16]byte
	acked   uint64
}

func (s state) encode() []byte {
	b := make([]byte, stateSize)
	copy(b, stateMagic)
	binary.LittleEndian.PutUint32(b[8:], s.version)
	copy(b[16:], s.store[:])
	binary.LittleEndian.PutUint64(b[32:], s.acked)
	binary.LittleEndian.PutUint32(b[stateSize-4:], crc32.Checksum(b[:stateSize-4], castagnoli))
	return b
}

func decodeState(b []byte) (s state, err error) {
	if len(b) != stateSize || string(b[:8]) != stateMagic {
		return s, errors.New("not a state file")
	}
	if crc32.Checksum(b[:stateSize-4], castagnoli) != binary.LittleEndian.Uint32(b[stateSize-4:]) {
		return s, errors.New("wrong checksum")
	}
	s.version = binary.LittleEndian.Uint32(b[8:])
	copy(s.store[:], b[16:])
	s.acked = binary.LittleEndian.Uint64(b[32:])
	return s, nil
}

// stateFile is the open state file.
type stateFile struct {
	f disk.File
	s state
}

// acknowledge notes that a transaction is durable. The note itself is not synced, on purpose: it is there to find a
// log that lost its end, and a note that is too old only finds less. It survives the death of the process, and one
// sector is never half written.
func (sf *stateFile) acknowledge(seq uint64) error {
	sf.s.acked = seq
	_, err := sf.f.WriteAt(sf.s.encode(), 0)
	return err
}

func (sf *stateFile) close() error {
	err := sf.f.Sync()
	if cerr := sf.f.Close(); err == nil {
		err = cerr
	}
	return err
}

func createState(dir string, s state) (*stateFile, error) {
	if err := disk.Publish(disk.OS{}, filepath.Join(dir, stateName), s.encode()); err != nil {
		return nil, err
	}
	return openState(dir, s)
}

func openState(dir string, s state) (*stateFile, error) {
	f, err := disk.OS{}.OpenRW(filepath.Join(dir, stateName))
	if err != nil {
		return nil, err
	}
	return &stateFile{f, s}, nil
}
