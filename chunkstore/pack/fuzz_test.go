package pack

import (
	"bytes"
	"os"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The law of all structures: what decodes, encodes to the same bytes; and nothing panics.

func FuzzHeader(f *testing.F) {
	var b [headerSize]byte
	h := Header{Kind: Meta, Number: 1, Created: testOpts.Created}
	h.encode(&b)
	f.Add(b[:])
	f.Fuzz(func(t *testing.T, in []byte) {
		var b, out [headerSize]byte
		copy(b[:], in)
		sealCRC(b[:]) // or the fuzzer would search for CRCs all day
		h, err := decodeHeader(&b)
		if err != nil {
			return
		}
		if h.encode(&out); out != b {
			t.Errorf("%x became %x", b, out)
		}
	})
}

func FuzzGroup(f *testing.F) {
	obj, places := build(f, S2, testOpts, content(1, 3*chunk.FrameSize+5, 4))
	f.Add(obj.b[places[0].ByteOffset():][:groupSize])
	f.Fuzz(func(t *testing.T, in []byte) {
		var b, out [groupSize]byte
		copy(b[:], in)
		sealCRC(b[:])
		g, err := decodeGroup(b[:])
		if err != nil {
			return
		}
		if g.encode(&out); out != b {
			t.Errorf("%x became %x", b, out)
		}
		if n := g.stored(); n > maxGroup || n <= groupSize {
			t.Errorf("takes %d bytes", n)
		}
		total := uint32(0)
		for i := range g.frames {
			off, length, plain := g.frame(i)
			if off+length > g.stored() || plain == 0 || plain > chunk.FrameSize {
				t.Errorf("frame %d: %d, %d, %d", i, off, length, plain)
			}
			total += plain
		}
		if total != g.plain {
			t.Errorf("frames hold %d of %d bytes", total, g.plain)
		}
	})
}

func FuzzTrailer(f *testing.F) {
	obj, _ := build(f, None, testOpts, []byte("x"), []byte("y"))
	f.Add(obj.b[len(obj.b)-trailerSize:], int64(len(obj.b)))
	f.Fuzz(func(t *testing.T, in []byte, size int64) {
		var b, out [trailerSize]byte
		copy(b[:], in)
		sealCRC(b[:])
		tr, err := decodeTrailer(&b, size, false)
		if err != nil {
			return
		}
		if tr.encode(&out); out != b {
			t.Errorf("%x became %x", b, out)
		}
		if int64(tr.dirBytes) > size || tr.dirBytes > 64<<20 {
			t.Errorf("a directory of %d bytes in a file of %d", tr.dirBytes, size)
		}
	})
}

func FuzzDirectory(f *testing.F) {
	f.Add(encodeDirectory(nil, nil, false), int64(64), false)
	f.Add(encodeDirectory(nil, []DirEntry{
		{Digest: chunk.Digest{1}, Place: chunk.Place{Offset: 4, Stored: 100}, PlainLen: 10},
		{Digest: chunk.Digest{2}, Place: chunk.Place{Offset: 11, Stored: 200}, PlainLen: 4096},
	}, false), int64(1000), false)
	f.Add(encodeDirectory(nil, []DirEntry{
		{Digest: chunk.Digest{1}, Place: chunk.Place{Offset: 400, Stored: 100}, PlainLen: 10, at: chunk.Place{Offset: 4, Stored: 90}},
	}, true), int64(1000), true)
	f.Fuzz(func(t *testing.T, b []byte, end int64, compact bool) {
		if len(b) >= dirHeaderSize {
			b = bytes.Clone(b)
			le.PutUint32(b[8:12], crcOf(b[dirHeaderSize:]))
			sealCRC(b[:dirHeaderSize])
		}
		entries, err := decodeDirectory(b, Header{Number: 7, Compact: compact}, end)
		if err != nil {
			return
		}
		if out := encodeDirectory(nil, entries, compact); !bytes.Equal(out, b) {
			t.Errorf("%x became %x", b, out)
		}
		for _, e := range entries {
			if l := e.Lies(); l.Pack != 7 || e.Place.Pack != 7 || l.ByteOffset()+int64(l.Stored) > end {
				t.Errorf("%+v ends behind %d", e, end)
			}
		}
	})
}

// FuzzRest: what is read as a rest is what would be written, but for the signature, and lies within the pack.
func FuzzRest(f *testing.F) {
	obj, _ := build(f, None, testOpts, content(1, 50, 8), content(2, 200, 2))
	r := mustOpen(f, obj, testRead)
	all, err := r.Directory()
	if err != nil {
		f.Fatal(err)
	}
	for _, left := range [][]DirEntry{nil, all[1:], all} {
		b, err := r.EncodeRest(left)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	keyless := mustOpen(f, obj, ReaderOptions{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if b = bytes.Clone(b); len(b) >= restHeader {
			sealCRC(b[:restHeader])
		}
		left, err := keyless.decodeRest(b)
		if err != nil {
			return
		}
		out, err := r.EncodeRest(left)
		if err != nil || !bytes.Equal(out[:restSigned], b[:restSigned]) || !bytes.Equal(out[restHeader:], b[restHeader:]) {
			t.Errorf("%x became %x, %v", b, out, err)
		}
	})
}

// FuzzPack reads whatever it is given as a pack, with the key: no panic, every error has a kind, and nothing decodes
// that was not written.
func FuzzPack(f *testing.F) {
	chunks := [][]byte{content(1, 50, 8), content(2, 200, 2)}
	written := map[chunk.Digest][]byte{}
	for _, b := range chunks {
		written[nameOf(b)] = b
	}
	for codec := range codecs {
		obj, places := build(f, codec, testOpts, chunks...)
		f.Add(obj.b)
		f.Add(obj.b[:places[1].ByteOffset()+70])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Open(&fileLike{b}, testRead)
		if err != nil {
			errs.KindOf(err)
			return
		}
		_ = r.VerifyFile()
		if _, err := r.Directory(); err != nil && errs.Is(err, errs.Bug) {
			t.Errorf("Directory: %v", err)
		}
		err = r.Scrub(func(e DirEntry, plain []byte, err error) error {
			if err == nil && !bytes.Equal(plain, written[e.Digest]) {
				t.Errorf("%v was never written", e)
			}
			if err != nil && !errs.Is(err, errs.Corrupt) {
				t.Errorf("Scrub visits %v: %v", e, err)
			}
			return nil
		})
		if err != nil && errs.Is(err, errs.Bug) {
			t.Errorf("Scrub: %v", err)
		}
	})
}

// TestCorpora: a fuzz target without seeds tests nothing.
func TestCorpora(t *testing.T) {
	for _, name := range []string{"FuzzHeader", "FuzzGroup", "FuzzTrailer", "FuzzDirectory", "FuzzPack"} {
		if files, err := os.ReadDir("testdata/fuzz/" + name); err != nil || len(files) == 0 {
			t.Errorf("%s has no corpus: %v", name, err)
		}
	}
}
