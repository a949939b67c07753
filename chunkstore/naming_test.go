package chunkstore

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// TestNamerVectors holds the names to values that others have computed: BLAKE3's own test vectors, and Python's hmac with
// the same key.
func TestNamerVectors(t *testing.T) {
	key := [32]byte([]byte("whats the Elvish word for friend"))
	for _, c := range []struct{ digest, plain, want string }{
		{digestBLAKE3, "", "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26"},
		{digestBLAKE3, "\x00", "6d7878dfff2f485635d39013278ae14f1454b8c0a3a2d34bc1ab38228a80c95b"},
		{digestHMAC, "", "ac5cdc92d0353395a93bf097797193a9b0ac5177806c777f945ffd6591d99e49"},
		{digestHMAC, "\x00", "cb434951f20e02b4130693e1370767e5bd051014c895229f4507dc6a6fe5bf94"},
	} {
		if d := newNamer(c.digest, key).name([]byte(c.plain)); hex.EncodeToString(d[:]) != c.want {
			t.Errorf("%s of %q is %v, want %s", c.digest, c.plain, d, c.want)
		}
	}
}

// TestStoreOptions: a store of each digest and compression keeps what it is given, finds what it has, and says what it is.
func TestStoreOptions(t *testing.T) {
	for _, digest := range Digests() {
		for _, compression := range Compressions() {
			t.Run(digest+" "+compression, func(t *testing.T) {
				t.Parallel()
				o := Options{Digest: digest, Compression: compression}
				dir := t.TempDir()
				made, err := Create(t.Context(), dir, passphrase, testWork, o)
				if err != nil {
					t.Fatal(err)
				}
				m, _, err := keys.ParseKit(made.Kit)
				if err != nil {
					t.Fatal(err)
				}
				o = Options{Unlock: WithMaster(m)} // the store knows the rest
				s, err := Open(t.Context(), dir, o)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				if sb := s.Superblock(); sb.Digest != digest || sb.Compression != compression {
					t.Errorf("the store is %+v", sb)
				}
				src := newCells(3<<20, func(cell int64) uint64 { return uint64(cell) })
				var stored [2]int64
				for i := range stored {
					x := s.Begin(time.Now(), nil, nil)
					if err := x.Ingest(t.Context(), 0, src, nil, nil); err != nil {
						t.Fatal(err)
					}
					p, err := x.Commit(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if p.Disks[0].Digest != digest {
						t.Errorf("the point says %q", p.Disks[0].Digest)
					}
					stored[i] = x.Stats().NewBytes
					if v, err := s.Verify(t.Context(), []*Point{p}, nil); err != nil || v.FaultCount != 0 {
						t.Errorf("verify: %+v, %v", v, err)
					}
				}
				if stored[0] != src.size || stored[1] != 0 {
					t.Errorf("new bytes of the first and of the second backup: %v", stored)
				}
			})
		}
	}
}

func TestUnknownOptions(t *testing.T) {
	for _, o := range []Options{{Digest: "md5"}, {Compression: "zip"}, {Cutter: "knife"}} {
		_, err := Create(t.Context(), t.TempDir(), passphrase, testWork, o)
		if !errs.Is(err, errs.Invalid) || !strings.Contains(errs.NextStep(err), "There are") {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, change := range []func(*Superblock){
		func(s *Superblock) { s.Digest = "sha3" }, func(s *Superblock) { s.Compression = "zip" },
	} {
		s := fixedSuperblock()
		change(&s)
		if err := checkKnown(s); !errs.Is(err, errs.Unsupported) || errs.NextStep(err) == "" {
			t.Errorf("%+v: %v", s, err)
		}
	}
}
