package chunkstore

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"hash"
	"slices"
	"strings"

	"github.com/zeebo/blake3"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The ways in which a store can name chunks, as superblock and point records spell them. These never change. Both are
// keyed: without the digest key nobody can tell from a name what a chunk holds. Pages of manifests are always named by
// HMAC-SHA-256. docs/adr/0005 says why BLAKE3 is the default.
const (
	digestBLAKE3 = "blake3"
	digestHMAC   = "hmac-sha256"
)

// Digests lists the ways in which a store can name chunks, by the names that Options.Digest takes, the default first.
func Digests() []string { return []string{digestBLAKE3, digestHMAC} }

// checkDigest fails with errs.Unsupported if name is none of Digests.
func checkDigest(name string) error {
	if slices.Contains(Digests(), name) {
		return nil
	}
	return errs.Text("find digest", name, errs.Unsupported, "this version of Holdfast knows only "+strings.Join(Digests(), " and ")).
		WithNext("Use the version that made the store, or a newer one.")
}

// namer names contents. It belongs to one goroutine.
type namer struct{ h hash.Hash }

// newNamer panics if digest is none of Digests: whoever opens a store has checked.
func newNamer(digest string, key [32]byte) namer {
	switch digest {
	case digestBLAKE3:
		h, err := blake3.NewKeyed(key[:])
		if err != nil {
			panic("chunkstore: BLAKE3: " + err.Error()) // the key has 32 bytes
		}
		return namer{h}
	case digestHMAC:
		return namer{hmac.New(sha256.New, key[:])}
	}
	panic(fmt.Sprintf("chunkstore: there is no digest %q", digest))
}

func (n namer) name(plain []byte) (d chunk.Digest) {
	n.h.Reset()
	n.h.Write(plain)
	n.h.Sum(d[:0])
	return d
}

// nameOf returns the name of a chunk's content.
func (r *Reader) nameOf(plain []byte) chunk.Digest {
	n := r.namers.Get().(namer)
	defer r.namers.Put(n)
	return n.name(plain)
}
