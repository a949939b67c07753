package pack

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// A rest says what is left of a pack of which space was given back: a directory that lies beside the pack and replaces
// the one in it. It is there, durably, before the first byte of the pack is given back, so that at no moment a directory
// knows a chunk that is gone. docs/format/pack.md draws it. These never change.
const (
	restMagic   = "RST\xce"
	restVersion = 1
	restHeader  = 64
	restSigned  = 24 // the bytes of the header that mac covers
)

// MaxRest bounds a rest in bytes.
const MaxRest = restHeader + dirHeaderSize + MaxChunks*(dirEntrySize+compactExtra)

// RestSize returns the bytes of a rest with n entries.
func RestSize(n int, compact bool) int64 { return restHeader + dirLen(uint32(n), compact) }

// EncodeRest makes the rest of a sealed pack in which only the given entries, in the order of the directory, are left.
func (r *Reader) EncodeRest(left []DirEntry) ([]byte, error) {
	const op = "write directory of"
	if r.aead == nil {
		return nil, errs.Text(op, r.name, errs.Denied, "no key was given")
	}
	b := make([]byte, restHeader, RestSize(len(left), r.header.Compact))
	b = encodeDirectory(b, left, r.header.Compact)
	head := b[:restHeader]
	copy(head[0:4], restMagic)
	le.PutUint16(head[4:6], restVersion)
	copy(head[8:24], r.header.PackUUID[:])
	mac := r.restMAC(b)
	copy(head[24:56], mac[:])
	sealCRC(head)
	if _, err := r.decodeRest(b); err != nil {
		return nil, errs.New(op, r.name, errs.Bug, err)
	}
	return b, nil
}

func (r *Reader) restMAC(b []byte) [32]byte {
	m := hmac.New(sha256.New, r.signKey[:])
	m.Write(b[:restSigned])
	m.Write(b[restHeader:])
	return [32]byte(m.Sum(nil))
}

var errForeignRest = errors.New("it is that of another pack, or its signature is wrong")

func (r *Reader) decodeRest(b []byte) ([]DirEntry, error) {
	if len(b) < restHeader {
		return nil, errField
	}
	head := b[:restHeader]
	switch {
	case string(head[0:4]) != restMagic:
		return nil, errMagic
	case !crcOK(head):
		return nil, errCRC
	case le.Uint16(head[4:6]) > restVersion:
		return nil, errVersion
	case le.Uint16(head[4:6]) == 0 || le.Uint16(head[6:8]) != 0 || le.Uint32(head[56:60]) != 0:
		return nil, errField
	case [16]byte(head[8:24]) != r.header.PackUUID:
		return nil, errForeignRest
	}
	if mac := r.restMAC(b); r.aead != nil && !hmac.Equal(mac[:], head[24:56]) {
		return nil, errForeignRest
	}
	return decodeDirectory(b[restHeader:], r.header, r.obj.Size())
}

// rest returns the entries of the pack's rest, if it has one.
func (r *Reader) rest(op string) (left []DirEntry, found bool, err error) {
	if r.loadRest == nil {
		return nil, false, nil
	}
	b, err := r.loadRest()
	if errs.Is(err, errs.NotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, errs.Wrap(op, r.name, err)
	}
	left, err = r.decodeRest(b)
	if errors.Is(err, errVersion) {
		return nil, false, errs.New(op, r.name, errs.Unsupported, err).WithNext("Use the newest Holdfast with this store.")
	}
	if err != nil {
		return nil, false, errs.New(op, r.name, errs.Corrupt, fmt.Errorf("the directory beside it: %w", err))
	}
	return left, true, nil
}

// verifyRest looks at the tags of all chunks that are left: a pack with holes has no checksum of the whole.
func (r *Reader) verifyRest(op string, left []DirEntry) error {
	if r.aead == nil {
		return errs.Text(op, r.name, errs.Denied, "no key was given")
	}
	want := len(left)
	good, err := r.confirm(op, left)
	if err == nil && len(good) != want {
		err = corrupt(op, r.name, fmt.Sprintf("%d of %d chunks are damaged", want-len(good), want))
	}
	return err
}

// punchGrain is the block of file systems. Only whole blocks are given back: no byte of a block is written in which a
// chunk lies that is needed.
const punchGrain = 4096

// Gaps returns the ranges of a sealed pack of size bytes that can be given back when only chunks that lie at the given places are
// left, in the order of the directory, and how many bytes they hold. The last one ends with the file: the pack's own directory
// must not be found any more by somebody who has lost the rest.
func Gaps(size int64, left []chunk.Place) (gaps []backend.Range, n int64) {
	from := int64(headerSize)
	add := func(to int64) {
		first, end := (from+punchGrain-1)&^(punchGrain-1), to&^(punchGrain-1)
		if first < end {
			gaps = append(gaps, backend.Range{Off: first, Len: end - first})
			n += end - first
		}
	}
	for _, p := range left {
		add(p.ByteOffset())
		from = p.ByteOffset() + int64(p.Stored)
	}
	first := min((from+punchGrain-1)&^(punchGrain-1), size-trailerSize)
	return append(gaps, backend.Range{Off: first, Len: size - first}), n + size - first
}
