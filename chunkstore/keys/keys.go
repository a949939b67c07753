// Package keys keeps the one secret of a store, its master key, and derives every other key from it.
//
// Terms. The master key is 32 random bytes, made once when the store is made. A wrapped key is the master key
// encrypted with a passphrase or with a key file, as it lies in the store; there may be several. A key file is 32 random
// bytes for programs that have nobody to ask. The recovery kit is the master key on a page for people, to be printed and
// kept away from the store.
//
// Invariants:
//
//  1. Every derived key is HKDF-SHA-256 of the master key with an info string of its own; the strings are part of the
//     format and never change. Test vectors hold them.
//  2. Nothing here prints a key: all ways of formatting a Master show its public identifier. FormatKit alone spells it.
//  3. A wrapped key that is damaged is told apart from a wrong passphrase or key file, and neither costs more memory
//     than MaxWork allows, whoever wrote the file.
//  4. A kit typed from paper with a mistake in it is refused, and the error names the row.
//
// The bytes are described in docs/format/keys.md. Functions are pure but for New, NewFile, Wrap and WrapFile,
// which draw random numbers, and may be called concurrently. Tested by frozen vectors, by a flip of every byte of a
// wrapped key and every character of a kit, and by a fuzz target for the kit.
package keys

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Master is the master key of a store.
type Master [32]byte

// The info strings of the derived keys. They never change.
const (
	infoDigest = "holdfast 1 digest"
	infoSign   = "holdfast 1 sign"
	infoPack   = "holdfast 1 pack " // followed by the 16 bytes of the pack's UUID
	infoPoint  = "holdfast 1 point"
	infoID     = "holdfast 1 id"
)

// New draws a master key.
func New() (Master, error) {
	var m Master
	if _, err := rand.Read(m[:]); err != nil {
		return Master{}, errs.New("make master key", "", errs.Bug, err)
	}
	return m, nil
}

// DigestKey returns the key of chunk digests: without it nobody can tell from a digest what a chunk holds.
func (m Master) DigestKey() [32]byte { return m.derive(infoDigest) }

// SignKey returns the key of the HMACs that authenticate pack trailers.
func (m Master) SignKey() [32]byte { return m.derive(infoSign) }

// PackKey returns the AES-256 key of one pack. A key of its own for each pack lets frames use counters as nonces.
func (m Master) PackKey(packUUID [16]byte) [32]byte { return m.derive(infoPack + string(packUUID[:])) }

// PointKey returns the key of restore point records.
func (m Master) PointKey() [32]byte { return m.derive(infoPoint) }

// ID returns the public identifier of the master key. It reveals nothing of the key and lies in every pack.
func (m Master) ID() [8]byte {
	k := m.derive(infoID)
	return [8]byte(k[:8])
}

// IsZero tells whether m was never set. A zero Master is no key.
func (m Master) IsZero() bool { return m == Master{} }

func (m Master) derive(info string) [32]byte {
	k, err := hkdf.Key(sha256.New, m[:], nil, info, 32)
	if err != nil { // only for a length HKDF cannot give, or a hash forbidden in FIPS mode: neither is the case
		panic("keys: HKDF: " + err.Error())
	}
	return [32]byte(k)
}

// String names the key by its public identifier.
func (m Master) String() string {
	id := m.ID()
	return "master key " + hex.EncodeToString(id[:])
}

// Format implements fmt.Formatter, so that no verb prints the bytes of the key.
func (m Master) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(m.String())) }

// MarshalText keeps the key out of JSON and of structured logs.
func (m Master) MarshalText() ([]byte, error) { return []byte(m.String()), nil }
