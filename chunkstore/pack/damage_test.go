package pack

import (
	"bytes"
	"io"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// region is a part of a sealed pack as the damage tests name them.
type region struct {
	name     string
	from, to int64
	chunk    int // index of the chunk, or -1
}

// regions cuts a pack of chunks at the given places into its parts.
func regions(t *testing.T, b []byte, places []chunk.Place) []region {
	t.Helper()
	tr, err := decodeTrailer((*[trailerSize]byte)(b[len(b)-trailerSize:]), int64(len(b)), false)
	if err != nil {
		t.Fatal(err)
	}
	out := []region{{"header", 0, headerSize, -1}}
	for i, p := range places {
		g, err := decodeGroup(b[p.ByteOffset():])
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, region{"group header", p.ByteOffset(), p.ByteOffset() + groupSize, i})
		for f := range g.frames {
			off, length, _ := g.frame(f)
			from := p.ByteOffset() + int64(off)
			out = append(out, region{"frame", from, from + int64(length) - tagSize, i}, region{"tag", from + int64(length) - tagSize, from + int64(length), i})
		}
		end := p.ByteOffset() + int64(p.Stored)
		out = append(out, region{"padding", end, align(end), -1})
	}
	dir := int64(tr.dirOffset) * chunk.PlaceUnit
	return append(out, region{"directory", dir, dir + int64(tr.dirBytes), -1}, region{"trailer", dir + int64(tr.dirBytes), int64(len(b)), -1})
}

// TestFlipEveryByte changes each byte of a small pack in turn: every change is found and called damage, in the part
// where it is, and everything else can still be read.
func TestFlipEveryByte(t *testing.T) {
	chunks := [][]byte{content(1, 40, 8), content(2, 130, 2), content(3, 20, 8)}
	for codec := range codecs {
		obj, places := build(t, codec, testOpts, chunks...)
		at := int64(0)
		for _, reg := range regions(t, obj.b, places) {
			if reg.from != at {
				t.Fatalf("%v: %s begins at %d, not %d", codec, reg.name, reg.from, at)
			}
			for at = reg.from; at < reg.to; at++ {
				b := bytes.Clone(obj.b)
				b[at] ^= 1 << (at % 8)
				checkDamaged(t, b, reg, places, chunks)
				if t.Failed() {
					t.Fatalf("%v: byte %d in the %s of chunk %d", codec, at, reg.name, reg.chunk)
				}
			}
		}
		if at != int64(len(obj.b)) {
			t.Errorf("regions end at %d of %d", at, len(obj.b))
		}
	}
}

func checkDamaged(t *testing.T, b []byte, reg region, places []chunk.Place, chunks [][]byte) {
	t.Helper()
	r, err := Open(&fileLike{b}, testRead)
	if reg.name == "header" {
		if !errs.Is(err, errs.Corrupt) {
			t.Errorf("Open: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := r.VerifyFile(); !errs.Is(err, errs.Corrupt) {
		t.Errorf("VerifyFile: %v", err)
	}
	_, err = r.Directory()
	if inDir := reg.name == "directory" || reg.name == "trailer"; inDir != errs.Is(err, errs.Corrupt) {
		t.Errorf("Directory: %v", err)
	}
	for i, want := range chunks {
		got, _, err := r.ReadChunk(places[i], nameOf(want).ID(), nil)
		_, ferr := r.ReadFrame(places[i], nameOf(want).ID(), 0, nil)
		if i == reg.chunk {
			if !errs.Is(err, errs.Corrupt) || !errs.Is(ferr, errs.Corrupt) {
				t.Errorf("chunk %d: %v, %v", i, err, ferr)
			}
		} else if err != nil || ferr != nil || !bytes.Equal(got, want) {
			t.Errorf("chunk %d: %v, %v", i, err, ferr)
		}
	}
	checkDamagedPasses(t, r, reg, places, chunks)
}

// checkDamagedPasses: a walk names the range it had to skip, a scrub the chunk.
func checkDamagedPasses(t *testing.T, r *Reader, reg region, places []chunk.Place, chunks [][]byte) {
	t.Helper()
	var damage []Damage
	groups := 0
	if err := r.Walk(func(DirEntry) error { groups++; return nil }, func(d Damage) error { damage = append(damage, d); return nil }); err != nil {
		t.Errorf("Walk: %v", err)
	}
	if reg.name == "group header" {
		p := places[reg.chunk]
		end := align(p.ByteOffset() + int64(p.Stored))
		if groups != len(chunks)-1 || len(damage) != 1 || damage[0] != (Damage{Off: p.ByteOffset(), Len: end - p.ByteOffset()}) {
			t.Errorf("Walk: %d groups, %+v", groups, damage)
		}
	} else if groups != len(chunks) || len(damage) != 0 && reg.name != "directory" {
		t.Errorf("Walk: %d groups, %+v", groups, damage)
	}
	good := 0
	err := r.Scrub(func(e DirEntry, plain []byte, err error) error {
		switch {
		case err == nil:
			good++
			if nameOf(plain) != e.Digest {
				t.Errorf("Scrub: %v has another content", e)
			}
		case !errs.Is(err, errs.Corrupt):
			t.Errorf("Scrub: %v", err)
		case reg.chunk >= 0 && (e.Place != places[reg.chunk] || e.Digest != nameOf(chunks[reg.chunk])):
			t.Errorf("Scrub blames %v, %v", e, err)
		case reg.chunk < 0 && reg.name != "directory":
			t.Errorf("Scrub finds damage in the %s: %v", reg.name, err)
		}
		return nil
	})
	want := len(chunks)
	if reg.chunk >= 0 {
		want--
	}
	if inDir := reg.name == "directory" || reg.name == "trailer"; good != want || inDir != errs.Is(err, errs.Corrupt) {
		t.Errorf("Scrub: %d good chunks of %d, %v", good, want, err)
	}
}

// TestCutSealed shortens a sealed pack to every length: no chunk is wrong, and what is missing is called damage.
func TestCutSealed(t *testing.T) {
	chunks := [][]byte{content(1, 100, 8), content(2, 301, 2)}
	obj, places := build(t, S2, testOpts, chunks...)
	for n := range len(obj.b) {
		r, err := Open(&fileLike{obj.b[:n]}, testRead)
		if n < headerSize {
			if !errs.Is(err, errs.Corrupt) {
				t.Errorf("%d bytes: Open: %v", n, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Directory(); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%d bytes: Directory: %v", n, err)
		}
		for i, want := range chunks {
			got, _, err := r.ReadChunk(places[i], nameOf(want).ID(), nil)
			whole := int64(n) >= places[i].ByteOffset()+int64(places[i].Stored)
			if whole != (err == nil) || whole && !bytes.Equal(got, want) || !whole && !errs.Is(err, errs.Corrupt) {
				t.Errorf("%d bytes: chunk %d: %v", n, i, err)
			}
		}
		good := 0
		err = r.Scrub(func(_ DirEntry, _ []byte, err error) error {
			if err == nil {
				good++
			}
			return nil
		})
		if !errs.Is(err, errs.Corrupt) || good > 2 {
			t.Errorf("%d bytes: Scrub: %d, %v", n, good, err)
		}
	}
}

// TestFlipInLargeChunk: damage in one frame leaves the other frames readable.
func TestFlipInLargeChunk(t *testing.T) {
	b := content(1, chunk.MaxSize, 3)
	for codec := range codecs {
		obj, places := build(t, codec, testOpts, b)
		g, err := decodeGroup(obj.b[places[0].ByteOffset():])
		if err != nil {
			t.Fatal(err)
		}
		off, length, _ := g.frame(2)
		obj.b[places[0].ByteOffset()+int64(off+length/2)] ^= 4
		r := mustOpen(t, obj, testRead)
		for i := range 4 {
			got, err := r.ReadFrame(places[0], nameOf(b).ID(), i, nil)
			if i == 2 && !errs.Is(err, errs.Corrupt) || i != 2 && (err != nil || !bytes.Equal(got, b[i*chunk.FrameSize:][:chunk.FrameSize])) {
				t.Errorf("%v: frame %d: %v", codec, i, err)
			}
		}
		if got, _, err := r.ReadChunk(places[0], nameOf(b).ID(), nil); got != nil || !errs.Is(err, errs.Corrupt) {
			t.Errorf("%v: chunk: %v", codec, err)
		}
	}
}

// TestFramesCannotMove: a group copied to another place, or given the frames of another, opens nowhere.
func TestFramesCannotMove(t *testing.T) {
	a, b := content(1, 200, 8), content(2, 200, 8)
	obj, places := build(t, None, testOpts, a, b)
	from, to := places[0].ByteOffset(), places[1].ByteOffset()
	moved := bytes.Clone(obj.b)
	copy(moved[to:], moved[from:from+int64(places[0].Stored)])
	r := mustOpen(t, &fileLike{moved}, testRead)
	p := places[0]
	p.Offset = places[1].Offset
	if _, _, err := r.ReadChunk(p, nameOf(a).ID(), nil); !errs.Is(err, errs.Corrupt) {
		t.Errorf("moved group: %v", err)
	}
	swapped := bytes.Clone(obj.b)
	copy(swapped[to+groupSize:], obj.b[from+groupSize:from+int64(places[0].Stored)])
	r = mustOpen(t, &fileLike{swapped}, testRead)
	if _, _, err := r.ReadChunk(places[1], nameOf(b).ID(), nil); !errs.Is(err, errs.Corrupt) {
		t.Errorf("swapped frames: %v", err)
	}
	renamed := bytes.Clone(obj.b) // a digest changed by somebody who knows how to compute a CRC
	renamed[from+30] ^= 1
	sealCRC(renamed[from : from+groupSize])
	r = mustOpen(t, &fileLike{renamed}, testRead)
	want := nameOf(a)
	want[2] ^= 1
	if _, _, err := r.ReadChunk(places[0], want.ID(), nil); !errs.Is(err, errs.Corrupt) {
		t.Errorf("changed digest: %v", err)
	}
}

// TestForgedDirectory: whoever can write the file but has no key cannot make us believe in chunks that are not there.
func TestForgedDirectory(t *testing.T) {
	a := content(1, 200, 8)
	obj, places := build(t, None, testOpts, a)
	real := DirEntry{Digest: nameOf(a), Place: places[0], PlainLen: 200}
	forged := DirEntry{Digest: chunk.Digest{66}, Place: places[0], PlainLen: 200}
	tr, err := decodeTrailer((*[trailerSize]byte)(obj.b[len(obj.b)-trailerSize:]), int64(len(obj.b)), false)
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(e DirEntry, flags uint16) *Reader {
		b := encodeDirectory(bytes.Clone(obj.b[:int64(tr.dirOffset)*chunk.PlaceUnit]), []DirEntry{e}, false)
		f := tr
		f.flags = flags
		var tb [trailerSize]byte
		f.encode(&tb)
		return mustOpen(t, &fileLike{append(b, tb[:]...)}, testRead)
	}
	if _, err := rewrite(forged, 0).Directory(); !errs.Is(err, errs.Corrupt) {
		t.Errorf("forged: %v", err)
	}
	if dir, err := rewrite(forged, flagUnsigned).Directory(); err != nil || len(dir) != 0 {
		t.Errorf("forged and called unsigned: %v, %v", dir, err)
	}
	if dir, err := rewrite(real, flagUnsigned).Directory(); err != nil || len(dir) != 1 || dir[0] != real {
		t.Errorf("unsigned: %v, %v", dir, err)
	}
	if _, err := rewrite(real, flagRecovered).Directory(); !errs.Is(err, errs.Corrupt) {
		t.Errorf("a flag changed: %v", err)
	}
}

func TestNewerTrailer(t *testing.T) {
	obj, _ := build(t, None, testOpts, []byte("x"))
	b := obj.b[len(obj.b)-trailerSize:]
	le.PutUint16(b[4:6], Version+1)
	sealCRC(b)
	if _, err := mustOpen(t, obj, testRead).Directory(); !errs.Is(err, errs.Unsupported) {
		t.Error(err)
	}
}

// badSector is an object with bytes the device cannot read.
type badSector struct {
	fileLike
	from, to int64
	err      error
}

func (o *badSector) ReadAt(p []byte, off int64) (int, error) {
	if off < o.to && off+int64(len(p)) > o.from {
		n := max(0, o.from-off)
		_, _ = o.fileLike.ReadAt(p[:n], off) // inside the file
		return int(n), o.err
	}
	return o.fileLike.ReadAt(p, off)
}

// TestBadSector: a device that cannot read a sector costs the chunks in it and no other.
func TestBadSector(t *testing.T) {
	var chunks [][]byte
	for i := range 50 {
		chunks = append(chunks, content(uint64(i), 3000, 8))
	}
	obj, places := build(t, None, testOpts, chunks...)
	bad := &badSector{fileLike{obj.b}, 20 * sector, 21 * sector, syscall.EIO}
	r := mustOpen(t, bad, testRead)
	touched := 0
	for _, p := range places {
		if p.ByteOffset() < bad.to && p.ByteOffset()+int64(p.Stored) > bad.from {
			touched++
		}
	}
	good, lost := 0, map[chunk.Digest]bool{}
	err := r.Scrub(func(e DirEntry, plain []byte, err error) error {
		if err == nil {
			good++
		} else {
			lost[e.Digest] = true
		}
		return nil
	})
	if err != nil || good != len(chunks)-touched || len(lost) != touched || lost[chunk.Digest{}] {
		t.Errorf("%d good, %d lost, %d touched, %v", good, len(lost), touched, err)
	}
	err = r.Walk(func(DirEntry) error { return nil }, func(d Damage) error {
		if d.Zero {
			t.Errorf("unreadable bytes are called zeros: %+v", d)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := r.VerifyFile(); !errs.Is(err, errs.Corrupt) {
		t.Errorf("VerifyFile: %v", err)
	}
	bad.err = syscall.ECONNRESET // not damage: the pass must not go on as if it were
	if err := r.Walk(func(DirEntry) error { return nil }, nil); !errs.Is(err, errs.Transient) {
		t.Errorf("Walk over a broken connection: %v", err)
	}
	bad.err = io.ErrUnexpectedEOF
	if err := r.Walk(func(DirEntry) error { return nil }, nil); !errs.Is(err, errs.Bug) {
		t.Errorf("Walk with an error of no kind: %v", err)
	}
}

// TestHoles: space that was given back shows as a range of zeros.
func TestHoles(t *testing.T) {
	chunks := [][]byte{content(1, 5000, 8), content(2, 5000, 8), content(3, 5000, 8)}
	obj, places := build(t, None, testOpts, chunks...)
	from, to := places[1].ByteOffset(), places[2].ByteOffset()
	clear(obj.b[from:to])
	var damage []Damage
	err := mustOpen(t, obj, testRead).Walk(func(DirEntry) error { return nil }, func(d Damage) error { damage = append(damage, d); return nil })
	if err != nil || len(damage) != 1 || damage[0] != (Damage{from, to - from, true}) {
		t.Errorf("%+v, %v", damage, err)
	}
}
