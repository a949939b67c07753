package pack

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// makeCompact writes the chunks of r for which stays says so to a compact pack, and returns their old entries too.
func makeCompact(t testing.TB, r *Reader, o WriterOptions, stays func(i int) bool, pack func([]byte) Compressed) (*object, []DirEntry) {
	t.Helper()
	dir, err := r.Directory()
	if err != nil {
		t.Fatal(err)
	}
	o.Compact, o.PackUUID[15] = true, o.PackUUID[15]+1
	obj := &object{}
	w, err := NewWriter(obj, o)
	if err != nil {
		t.Fatal(err)
	}
	var left []DirEntry
	for i, e := range dir {
		if !stays(i) {
			continue
		}
		plain, _, err := r.ReadChunk(e.Place, e.Digest.ID(), nil)
		if err != nil {
			t.Fatal(err)
		}
		c := pack(plain)
		if err := w.Move(e.Digest, c, e.Place); err != nil {
			t.Fatal(err)
		}
		c.Release()
		left = append(left, e)
	}
	if err := w.Seal(); err != nil {
		t.Fatal(err)
	}
	return obj, left
}

func samePlaces(dir, want []DirEntry) bool {
	return slices.EqualFunc(dir, want, func(a, b DirEntry) bool {
		return a.Digest == b.Digest && a.Place == b.Place && a.PlainLen == b.PlainLen
	})
}

// checkCompact reads a compact pack in every way by the places that its chunks had.
func checkCompact(t *testing.T, r *Reader, left []DirEntry, content map[chunk.Digest][]byte) {
	t.Helper()
	if dir, err := r.Directory(); err != nil || !samePlaces(dir, left) {
		t.Errorf("Directory: %d of %d entries, %v", len(dir), len(left), err)
	}
	for _, e := range left {
		want, id := content[e.Digest], e.Digest.ID()
		if got, d, err := r.ReadChunk(e.Place, id, nil); err != nil || d != e.Digest || !bytes.Equal(got, want) {
			t.Errorf("ReadChunk of %v: %v", e.Place, err)
		}
		last := (len(want) - 1) / chunk.FrameSize
		if got, err := r.ReadFrame(e.Place, id, last, nil); err != nil || !bytes.Equal(got, want[last*chunk.FrameSize:]) {
			t.Errorf("ReadFrame of %v: %v", e.Place, err)
		}
		if n, err := r.Group(e.Place, id); err != nil || int(n) != len(want) {
			t.Errorf("Group of %v: %d, %v", e.Place, n, err)
		}
	}
	var seen, heads []DirEntry
	err := r.Scrub(func(e DirEntry, plain []byte, err error) error {
		if err != nil || !bytes.Equal(plain, content[e.Digest]) {
			t.Errorf("Scrub of %v: %v", e.Place, err)
		}
		seen = append(seen, e)
		return nil
	})
	if err != nil || !samePlaces(seen, left) {
		t.Errorf("Scrub: %d of %d chunks, %v", len(seen), len(left), err)
	}
	err = r.Headers(func(e DirEntry, err error) error {
		heads = append(heads, e)
		return err
	})
	if err != nil || !samePlaces(heads, left) {
		t.Errorf("Headers: %d of %d chunks, %v", len(heads), len(left), err)
	}
	for name, f := range map[string]func() error{"VerifyFile": r.VerifyFile, "Padding": r.Padding} {
		if err := f(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCompactPack moves any part of a pack, and then gives back parts of that.
func TestCompactPack(t *testing.T) {
	chunks := someChunks()
	content := map[chunk.Digest][]byte{}
	for _, b := range chunks {
		content[nameOf(b)] = b
	}
	for round := range 12 {
		obj, _ := build(t, Codec(round%int(codecs)), testOpts, chunks...)
		old := mustOpen(t, &fileLike{obj.b}, testRead)
		made, left := makeCompact(t, old, testOpts, func(i int) bool { return i%(1+round%4) == 0 }, CompressBest)
		r := withRest(t, made.b, nil)
		if !r.Header().Compact || r.Header().Number != testOpts.Number {
			t.Fatalf("header %+v", r.Header())
		}
		checkCompact(t, r, left, content)
		if _, _, err := r.ReadChunk(chunk.Place{Pack: testOpts.Number, Offset: 4, Stored: 99}, chunk.ID{9, 9}, nil); !errs.Is(err, errs.Stale) {
			t.Errorf("a chunk that is not there: %v", err)
		}
		dir, _ := r.Directory()
		var stay []DirEntry
		var lie []chunk.Place
		for i, e := range dir {
			if i%2 == 0 {
				stay, lie = append(stay, e), append(lie, e.Lies())
			}
		}
		rest, err := r.EncodeRest(stay)
		if err != nil || int64(len(rest)) != RestSize(len(stay), true) {
			t.Fatal(len(rest), err)
		}
		gaps, _ := Gaps(int64(len(made.b)), lie)
		clearRanges(made.b, gaps)
		checkCompact(t, withRest(t, made.b, rest), stay, content)
		if t.Failed() {
			t.Fatalf("round %d, %d chunks", round, len(left))
		}
	}
}

func clearRanges(b []byte, ranges []backend.Range) {
	for _, g := range ranges {
		clear(b[g.Off : g.Off+g.Len])
	}
}

// TestCompactDamage flips every byte of a small compact pack: what is read is right or an error, and no more is lost than
// the flip hits; a damaged directory costs nothing.
func TestCompactDamage(t *testing.T) {
	chunks := [][]byte{content(1, 90, 0), content(2, 200, 3), content(3, 64, 8)}
	obj, _ := build(t, Zstd, testOpts, chunks...)
	made, left := makeCompact(t, mustOpen(t, &fileLike{obj.b}, testRead), testOpts, func(int) bool { return true }, CompressBest)
	for at := range made.b {
		b := bytes.Clone(made.b)
		b[at] ^= 0x10
		r, err := Open(&fileLike{b}, testRead)
		if err != nil {
			if at >= headerSize {
				t.Errorf("byte %d: %v", at, err)
			}
			continue
		}
		bad := 0
		for i, e := range left {
			got, _, err := r.ReadChunk(e.Place, e.Digest.ID(), nil)
			switch {
			case err == nil && bytes.Equal(got, chunks[i]):
			case errs.Is(err, errs.Corrupt) || errs.Is(err, errs.Stale):
				bad++
			default:
				t.Errorf("byte %d, chunk %d: %v", at, i, err)
			}
		}
		inGroups := at >= headerSize && at < headerSize+int(made.stored(t))
		if bad > 1 || bad == 1 && !inGroups || at < headerSize {
			t.Errorf("byte %d costs %d chunks", at, bad)
		}
		if err := r.Padding(); bad == 0 && err == nil && r.VerifyFile() == nil {
			t.Errorf("the flip of byte %d is not found", at)
		}
	}
}

// stored returns the bytes between the header and the directory.
func (o *object) stored(t *testing.T) int64 {
	tr, err := decodeTrailer((*[trailerSize]byte)(o.b[len(o.b)-trailerSize:]), int64(len(o.b)), true)
	if err != nil {
		t.Fatal(err)
	}
	return int64(tr.dirOffset)*chunk.PlaceUnit - headerSize
}

// TestMoveInOrder: a compact pack takes only what its directory can say.
func TestMoveInOrder(t *testing.T) {
	o := testOpts
	o.Compact = true
	w, err := NewWriter(&object{}, o)
	if err != nil {
		t.Fatal(err)
	}
	c := Compress(None, []byte("x"))
	defer c.Release()
	if _, err := w.Append(chunk.Digest{1}, c); !errs.Is(err, errs.Bug) {
		t.Errorf("Append: %v", err)
	}
	if err := w.Move(chunk.Digest{1}, c, chunk.Place{Pack: 7, Offset: 50, Stored: 99}); err != nil {
		t.Error(err)
	}
	for _, p := range []chunk.Place{{Pack: 7, Offset: 50, Stored: 99}, {Pack: 8, Offset: 90, Stored: 99}} {
		if err := w.Move(chunk.Digest{2}, c, p); !errs.Is(err, errs.Bug) {
			t.Errorf("Move to %v: %v", p, err)
		}
	}
	plain, err := NewWriter(&object{}, testOpts)
	if err != nil {
		t.Fatal(err)
	}
	if err := plain.Move(chunk.Digest{1}, c, chunk.Place{Pack: 7, Offset: 50, Stored: 99}); !errs.Is(err, errs.Bug) {
		t.Errorf("Move to a pack that is not compact: %v", err)
	}
}

// TestCompactVector: the vector in testdata is read, and is what we write.
func TestCompactVector(t *testing.T) {
	src := mustOpen(t, &fileLike{writeVector(t, None, true)}, ReaderOptions{Master: (*keys.Master)(&vectorOpts.Master)})
	made, left := makeCompact(t, src, vectorOpts, func(i int) bool { return i != 1 }, func(b []byte) Compressed { return Compress(None, b) })
	want, err := os.ReadFile("testdata/none.compact")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(made.b, want) {
		t.Error("a compact pack is not written as it was")
	}
	r := mustOpen(t, &fileLike{want}, ReaderOptions{Master: (*keys.Master)(&vectorOpts.Master)})
	content := map[chunk.Digest][]byte{}
	for k, b := range vectorChunks() {
		content[vectorDigest(k)] = b
	}
	checkCompact(t, r, left, content)
}
