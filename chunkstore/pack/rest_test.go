package pack

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// leaving returns the directory of a pack, of which only the chunks for which stays says so are left, and the gaps.
func leaving(t *testing.T, r *Reader, stays func(i int) bool) (left []DirEntry, gaps []backend.Range) {
	t.Helper()
	all, err := r.Directory()
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range all {
		if stays(i) {
			left = append(left, e)
		}
	}
	places := make([]chunk.Place, len(left))
	for i, e := range left {
		places[i] = e.Place
	}
	gaps, n := Gaps(r.obj.Size(), places)
	for _, g := range gaps {
		n -= g.Len
	}
	if n != 0 {
		t.Errorf("Gaps adds its ranges up to %d bytes too many", n)
	}
	return left, gaps
}

// withRest opens b with a rest beside it.
func withRest(t *testing.T, b, rest []byte) *Reader {
	o := testRead
	o.Rest = func() ([]byte, error) {
		if rest == nil {
			return nil, fs.ErrNotExist
		}
		return rest, nil
	}
	return mustOpen(t, &fileLike{b}, o)
}

// TestRest gives back the space of any part of a pack: what is left is listed, read and found good, and nothing else is
// known or called damaged, whichever of the gaps a crash has left as they were.
func TestRest(t *testing.T) {
	chunks := slices.Concat(someChunks(), someChunks()[:20])
	rng := rand.New(rand.NewPCG(3, 3))
	for round := range 40 {
		obj, _ := build(t, Codec(round%int(codecs)), testOpts, chunks...)
		share := []int{0, 1, 50, 99, 100}[round%5]
		left, gaps := leaving(t, withRest(t, obj.b, nil), func(int) bool { return rng.IntN(100) < share })
		rest, err := withRest(t, obj.b, nil).EncodeRest(left)
		if err != nil {
			t.Fatal(err)
		}
		whole := bytes.Clone(obj.b)
		at := int64(0)
		for i, g := range gaps {
			if g.Off < at || g.Len <= 0 || g.Off%4096 != 0 && i < len(gaps)-1 {
				t.Fatalf("gap %+v behind %d", g, at)
			}
			at = g.Off + g.Len
			if rng.IntN(4) > 0 || i == len(gaps)-1 {
				clear(obj.b[g.Off:at])
			}
		}
		if at != int64(len(obj.b)) {
			t.Errorf("the last gap ends at %d of %d", at, len(obj.b))
		}
		checkRest(t, withRest(t, obj.b, rest), left, chunks)
		checkRest(t, withRest(t, whole, rest), left, chunks) // nothing was given back yet
		if _, err := withRest(t, obj.b, nil).Directory(); !errs.Is(err, errs.Corrupt) {
			t.Errorf("the directory of a pack that has lost its rest: %v", err)
		}
		if share == 100 && len(gaps) != 1 || share == 0 && (len(gaps) != 2 || gaps[0].Off != 4096) && len(gaps) != 1 {
			t.Errorf("%d %% are left, and the gaps are %+v", share, gaps)
		}
		if t.Failed() {
			t.Fatalf("round %d, %d of %d chunks left", round, len(left), len(chunks))
		}
	}
}

func checkRest(t *testing.T, r *Reader, left []DirEntry, chunks [][]byte) {
	t.Helper()
	dir, err := r.Directory()
	if err != nil || !slices.Equal(dir, left) {
		t.Errorf("Directory: %d entries of %d, %v", len(dir), len(left), err)
	}
	if err := r.VerifyFile(); err != nil {
		t.Error(err)
	}
	var seen []DirEntry
	if err := r.Scrub(func(e DirEntry, plain []byte, err error) error {
		if err != nil || nameOf(plain) != e.Digest {
			t.Errorf("Scrub of %v: %v", e, err)
		}
		seen = append(seen, e)
		return nil
	}); err != nil || !slices.Equal(seen, left) {
		t.Errorf("Scrub visits %d entries of %d, %v", len(seen), len(left), err)
	}
	for _, e := range left {
		i := slices.IndexFunc(chunks, func(b []byte) bool { return nameOf(b) == e.Digest })
		checkChunk(t, r, e.Place, chunks[i])
	}
}

// TestRestDamaged flips every byte of a rest: it is damage, and so is every chunk of the rest that is gone.
func TestRestDamaged(t *testing.T) {
	chunks := [][]byte{content(1, 9000, 8), content(2, 130, 2), content(3, 20, 8)}
	obj, places := build(t, Zstd, testOpts, chunks...)
	left, gaps := leaving(t, withRest(t, obj.b, nil), func(i int) bool { return i > 0 })
	rest, err := withRest(t, obj.b, nil).EncodeRest(left)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range gaps {
		clear(obj.b[g.Off : g.Off+g.Len])
	}
	for i := range rest {
		bad := bytes.Clone(rest)
		bad[i] ^= 1 << (i % 8)
		r := withRest(t, obj.b, bad)
		for what, err := range map[string]error{"Directory": second(r.Directory()), "VerifyFile": r.VerifyFile(),
			"Scrub": r.Scrub(func(DirEntry, []byte, error) error { return nil })} {
			if !errs.Is(err, errs.Corrupt) {
				t.Errorf("byte %d flipped: %s says %v", i, what, err)
			}
		}
		checkChunk(t, r, places[1], chunks[1])
	}
	for n := range rest {
		if _, err := withRest(t, obj.b, rest[:n:n]).Directory(); !errs.Is(err, errs.Corrupt) {
			t.Errorf("a rest of %d bytes: %v", n, err)
		}
	}
	b := bytes.Clone(obj.b)
	b[places[2].ByteOffset()+groupSize] ^= 1
	r := withRest(t, b, rest)
	if err := r.VerifyFile(); !errs.Is(err, errs.Corrupt) {
		t.Errorf("VerifyFile of a damaged chunk that is left: %v", err)
	}
	bad := 0
	if err := r.Scrub(func(e DirEntry, _ []byte, err error) error {
		if err != nil && e.Place == places[2] {
			bad++
		}
		return nil
	}); err != nil || bad != 1 {
		t.Errorf("Scrub finds %d bad chunks, %v", bad, err)
	}
}

func second[A any](_ A, err error) error { return err }

// TestForeignRest: a rest of another pack, of a newer version, or one that names what cannot be, is not used.
func TestForeignRest(t *testing.T) {
	obj, _ := build(t, Zstd, testOpts, content(1, 9000, 8))
	r := withRest(t, obj.b, nil)
	left, _ := leaving(t, r, func(int) bool { return true })
	other := testOpts
	other.PackUUID[5]++
	foreign, _ := build(t, Zstd, other, content(1, 9000, 8))
	of, err := withRest(t, foreign.b, nil).EncodeRest(left)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := withRest(t, obj.b, of).Directory(); !errs.Is(err, errs.Corrupt) {
		t.Errorf("the rest of another pack: %v", err)
	}
	newer, err := r.EncodeRest(left)
	if err != nil {
		t.Fatal(err)
	}
	le.PutUint16(newer[4:6], restVersion+1)
	sealCRC(newer[:restHeader])
	if _, err := withRest(t, obj.b, newer).Directory(); !errs.Is(err, errs.Unsupported) {
		t.Errorf("a newer rest: %v", err)
	}
	for _, bad := range [][]DirEntry{
		{left[0], left[0]}, {{Digest: left[0].Digest, Place: chunk.Place{Pack: 7, Offset: 1 << 20, Stored: 100}, PlainLen: 10}},
	} {
		if _, err := r.EncodeRest(bad); !errs.Is(err, errs.Bug) {
			t.Errorf("EncodeRest of %v: %v", bad, err)
		}
	}
	o := testRead
	o.Rest = func() ([]byte, error) {
		return nil, fmt.Errorf("unplugged: %w", errs.Text("read", "", errs.Transient, "x"))
	}
	if _, err := mustOpen(t, obj, o).Directory(); !errs.Is(err, errs.Transient) {
		t.Errorf("a rest that cannot be read: %v", err)
	}
	o = ReaderOptions{Rest: func() ([]byte, error) { return of, nil }}
	if _, err := mustOpen(t, foreign, o).Directory(); err != nil {
		t.Errorf("without a key: %v", err)
	}
}

// TestRestVector: a rest is written as it was, and read.
func TestRestVector(t *testing.T) {
	b, err := os.ReadFile("testdata/none.pack")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/none.rest")
	if err != nil {
		t.Fatal(err)
	}
	o := ReaderOptions{Master: &vectorOpts.Master, StoreUUID: vectorOpts.StoreUUID}
	left, gaps := leaving(t, mustOpen(t, &fileLike{b}, o), func(i int) bool { return i == 1 || i == 3 })
	if got, err := mustOpen(t, &fileLike{b}, o).EncodeRest(left); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a rest is not written as it was: %x, %v", got, err)
	}
	o.Rest = func() ([]byte, error) { return want, nil }
	if got, err := mustOpen(t, &fileLike{b}, o).Directory(); err != nil || !slices.Equal(got, left) {
		t.Errorf("it lists %v, %v", got, err)
	}
	if len(gaps) != 1 || gaps[0] != (backend.Range{Off: int64(len(b)) - trailerSize, Len: trailerSize}) {
		t.Errorf("gaps %+v: the pack is smaller than one block, and only its trailer is to go", gaps)
	}
}
