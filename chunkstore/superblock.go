package chunkstore

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// superblockName is the object that every store has. It never changes.
const superblockName = "superblock"

// Superblock says what a store is: the one object that is readable without the key. docs/format/store.md.
type Superblock struct {
	Format      string    `json:"format"` // "holdfast-store"
	Version     int       `json:"version"`
	UUID        UUID      `json:"uuid"`
	Created     time.Time `json:"created"`
	KeyID       string    `json:"key_id"`      // 16 hexadecimal digits; tells a wrong key from a damaged store
	Digest      string    `json:"digest"`      // how chunks are named: one of Digests
	Cutter      string    `json:"cutter"`      // how disks are cut: a name of package cut
	Compression string    `json:"compression"` // of new chunks: "zstd", "s2" or "none"
	MAC         string    `json:"mac"`         // HMAC-SHA-256 of this object with an empty mac, under the sign key
}

// UUID is 16 random bytes, printed as 32 hexadecimal digits.
type UUID [16]byte

// NewUUID draws one.
func NewUUID() UUID {
	var u UUID
	_, _ = rand.Read(u[:])
	return u
}

// String returns 32 hexadecimal digits.
func (u UUID) String() string { return hex.EncodeToString(u[:]) }

// MarshalText implements encoding.TextMarshaler.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *UUID) UnmarshalText(b []byte) error {
	if n, err := hex.Decode(u[:], b); err != nil || n != len(u) || len(b) != 32 {
		return fmt.Errorf("%q is not 32 hexadecimal digits", b)
	}
	return nil
}

// The values of the superblock this version writes. Later ones may be added; these never change.
const (
	storeFormat  = "holdfast-store"
	storeVersion = 1
)

// codecs are the compressions of new chunks, the default first.
var codecs = []pack.Codec{pack.Zstd, pack.S2, pack.None}

// Compressions lists the ways in which a store can compress chunks, by the names that Options.Compression takes, the
// default first.
func Compressions() (names []string) {
	for _, c := range codecs {
		names = append(names, c.String())
	}
	return names
}

func codecByName(name string) (pack.Codec, error) {
	if i := slices.Index(Compressions(), name); i >= 0 {
		return codecs[i], nil
	}
	return 0, errs.Text("find compression", name, errs.Unsupported, "this version of Holdfast knows only "+strings.Join(Compressions(), ", ")).
		WithNext("Use the version that made the store, or a newer one.")
}

func (s Superblock) mac(k keys.Master) (string, error) {
	s.MAC = ""
	b, err := json.Marshal(s)
	if err != nil {
		return "", errs.New("encode superblock", s.UUID.String(), errs.Bug, err)
	}
	sign := k.SignKey()
	h := hmac.New(sha256.New, sign[:])
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil)), nil
}

// encode signs the superblock.
func (s Superblock) encode(k keys.Master) ([]byte, error) {
	var err error
	if s.MAC, err = s.mac(k); err != nil {
		return nil, err
	}
	return json.MarshalIndent(s, "", "  ")
}

// check compares what was read with the key that opened the store.
func (s Superblock) check(k keys.Master) error {
	if id := k.ID(); hex.EncodeToString(id[:]) != s.KeyID {
		return errs.Text("open store", "", errs.Denied, "the key belongs to another store").
			WithNext("Use the recovery kit or the passphrase of store " + s.UUID.String() + ".")
	}
	mac, err := s.mac(k)
	if err != nil {
		return err
	}
	if !hmac.Equal([]byte(mac), []byte(s.MAC)) {
		return errs.Text("open store", superblockName, errs.Corrupt, "its signature is wrong: somebody or something changed it").
			WithNext("Put back the superblock from a copy of the store.")
	}
	return nil
}

// readSuperblock reads and checks all that can be checked without the key.
func readSuperblock(ctx context.Context, b backend.Backend, dir string) (Superblock, error) {
	var s Superblock
	raw, err := readObject(ctx, b, superblockName, 64<<10)
	if errs.Is(err, errs.NotFound) {
		return s, errs.Text("open store", dir, errs.NotFound, "there is no Holdfast store in this folder").
			WithNext("Check the path (--store or HOLDFAST_STORE), or make a store with `holdfast init DIR`.")
	}
	if err != nil {
		return s, errs.Wrap("open store", dir, err)
	}
	if err := json.Unmarshal(raw, &s); err != nil || s.Format != storeFormat {
		return s, errs.Text("open store", dir, errs.Corrupt, "the superblock is not readable").
			WithNext("Put back the file `superblock` from a copy of the store; nothing else is known to be damaged.")
	}
	if s.Version != storeVersion {
		return s, errs.Text("open store", dir, errs.Unsupported, fmt.Sprintf("store version %d", s.Version)).
			WithNext("It was made by a newer Holdfast: use that one.")
	}
	return s, errs.Wrap("open store", dir, checkKnown(s))
}

// checkKnown fails with errs.Unsupported if the store asks for what this version does not know. The cutter is looked at
// by those who write: what others have cut can be read.
func checkKnown(s Superblock) error {
	if err := checkDigest(s.Digest); err != nil {
		return err
	}
	_, err := codecByName(s.Compression)
	return err
}

// readObject reads a small object whole.
func readObject(ctx context.Context, b backend.Backend, name string, limit int64) ([]byte, error) {
	o, err := b.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	if o.Size() > limit {
		return nil, errs.Text("read", name, errs.Corrupt, "larger than anything we write there")
	}
	buf := make([]byte, o.Size())
	if n, err := o.ReadAt(buf, 0); n != len(buf) {
		if err == nil || err == io.EOF {
			return nil, errs.Text("read", name, errs.Corrupt, "it became shorter while it was read")
		}
		return nil, errs.Wrap("read", name, err)
	}
	return buf, nil
}
