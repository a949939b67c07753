package pack

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// object is a pack in memory: an Appender and an Object at once.
type object struct {
	b      []byte
	reads  int
	sealed bool
	closed bool
	fail   error // what every call answers, once set
}

func (o *object) Write(p []byte) (int, error) {
	if o.fail != nil {
		return 0, o.fail
	}
	o.b = append(o.b, p...)
	return len(p), nil
}
func (o *object) Sync() error { return o.fail }
func (o *object) Seal() error { o.sealed = true; return o.fail }
func (o *object) Close() error {
	o.closed = true
	return nil
}
func (o *object) Size() int64 { return int64(len(o.b)) }
func (o *object) ReadAt(p []byte, off int64) (int, error) {
	o.reads++
	return bytes.NewReader(o.b).ReadAt(p, off)
}

var (
	testMaster = keys.Master{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32}
	testStore  = [16]byte{0xAA, 1}
	testOpts   = WriterOptions{
		Master: testMaster, StoreUUID: testStore, PackUUID: [16]byte{0xBB, 2}, Number: 7, Kind: Data,
		Created: time.Unix(1_790_000_000, 0), Name: "packs/test",
	}
	testRead = ReaderOptions{Master: &testMaster, StoreUUID: testStore, Name: "packs/test"}
)

// content is n bytes that compress to about the given share of 8.
func content(seed uint64, n, share int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		if i%8 < share {
			b[i] = byte(r.Uint32())
		}
	}
	return b
}

func nameOf(b []byte) chunk.Digest { return chunk.Digest(sha256.Sum256(b)) }

// chunks are of every shape: small, at and around the borders of frames, compressible and not, mixed, the largest.
func someChunks() [][]byte {
	var out [][]byte
	for i, n := range []int{1, 15, 16, 4096, chunk.FrameSize - 1, chunk.FrameSize, chunk.FrameSize + 1, 3*chunk.FrameSize + 17, chunk.MaxSize} {
		for _, share := range []int{0, 3, 8} {
			out = append(out, content(uint64(i), n, share))
		}
	}
	return append(out, append(content(50, chunk.FrameSize, 8), content(51, chunk.FrameSize, 1)...))
}

// build writes a pack of the chunks and seals it.
func build(t testing.TB, codec Codec, o WriterOptions, chunks ...[]byte) (*object, []chunk.Place) {
	t.Helper()
	obj := &object{}
	w, err := NewWriter(obj, o)
	if err != nil {
		t.Fatal(err)
	}
	places := appendAll(t, w, codec, chunks...)
	if err := w.Seal(); err != nil || !obj.sealed {
		t.Fatalf("Seal: %v, sealed %v", err, obj.sealed)
	}
	return obj, places
}

func appendAll(t testing.TB, w *Writer, codec Codec, chunks ...[]byte) []chunk.Place {
	t.Helper()
	var places []chunk.Place
	for _, b := range chunks {
		c := Compress(codec, b)
		p, err := w.Append(nameOf(b), c)
		if err != nil {
			t.Fatal(err)
		}
		if p.Stored != uint32(c.StoredLen()) || c.PlainLen() != len(b) {
			t.Fatalf("place %v, StoredLen %d, PlainLen %d of %d", p, c.StoredLen(), c.PlainLen(), len(b))
		}
		c.Release()
		places = append(places, p)
	}
	return places
}

func mustOpen(t testing.TB, obj backend.Object, o ReaderOptions) *Reader {
	t.Helper()
	r, err := Open(obj, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRoundTrip(t *testing.T) {
	for codec := range codecs {
		t.Run(codec.String(), func(t *testing.T) {
			chunks := someChunks()
			obj, places := build(t, codec, testOpts, chunks...)
			r := mustOpen(t, obj, testRead)
			if h := r.Header(); h.Number != 7 || h.Kind != Data || h.StoreUUID != testStore || !h.Created.Equal(testOpts.Created) || h.KeyID != testMaster.ID() {
				t.Errorf("header %+v", h)
			}
			for i, want := range chunks {
				checkChunk(t, r, places[i], want)
			}
			checkListings(t, r, places, chunks)
			if err := r.VerifyFile(); err != nil {
				t.Error(err)
			}
		})
	}
}

// checkChunk reads one chunk in all ways there are.
func checkChunk(t *testing.T, r *Reader, p chunk.Place, want []byte) {
	t.Helper()
	id := nameOf(want).ID()
	prefix := []byte("kept")
	got, d, err := r.ReadChunk(p, id, prefix)
	if err != nil || d != nameOf(want) || !bytes.Equal(got, append(prefix, want...)) {
		t.Fatalf("ReadChunk %v: %d bytes, %v, %v", p, len(got), d, err)
	}
	for i := range framesOf(len(want)) {
		frame := want[i*chunk.FrameSize : min(len(want), (i+1)*chunk.FrameSize)]
		got, err := r.ReadFrame(p, id, i, prefix)
		if err != nil || !bytes.Equal(got, append(prefix, frame...)) {
			t.Fatalf("ReadFrame %v %d: %d bytes, %v", p, i, len(got), err)
		}
		// A cache keeps what comes, with all its room.
		if got, err := r.ReadFrame(p, id, i, nil); err != nil || cap(got) > len(frame)+len(frame)/4+8<<10 {
			t.Errorf("frame %d of %d bytes came with room for %d, %v", i, len(frame), cap(got), err)
		}
	}
	for _, i := range []int{-1, framesOf(len(want))} {
		if _, err := r.ReadFrame(p, id, i, nil); !errs.Is(err, errs.Invalid) {
			t.Errorf("frame %d: %v", i, err)
		}
	}
	for _, stored := range []uint32{0, 1, groupSize, p.Stored - 1, p.Stored + 1, 1 << 31} { // the hint's length is not trusted
		q := p
		q.Stored = stored
		if got, _, err := r.ReadChunk(q, id, nil); err != nil || !bytes.Equal(got, want) {
			t.Errorf("ReadChunk with stored %d: %v", stored, err)
		}
		if _, err := r.ReadFrame(q, id, 0, nil); err != nil {
			t.Errorf("ReadFrame with stored %d: %v", stored, err)
		}
	}
}

// checkListings compares Directory, Walk and Scrub with what was written.
func checkListings(t *testing.T, r *Reader, places []chunk.Place, chunks [][]byte) {
	t.Helper()
	var want []DirEntry
	for i, b := range chunks {
		want = append(want, DirEntry{Digest: nameOf(b), Place: places[i], PlainLen: uint32(len(b))})
	}
	dir, err := r.Directory()
	if err != nil || fmt.Sprint(dir) != fmt.Sprint(want) {
		t.Errorf("Directory: %v, %v", dir, err)
	}
	var walked []DirEntry
	err = r.Walk(func(e DirEntry) error { walked = append(walked, e); return nil },
		func(d Damage) error { return fmt.Errorf("damage %+v", d) })
	if err != nil || fmt.Sprint(walked) != fmt.Sprint(want) {
		t.Errorf("Walk: %v, %v", walked, err)
	}
	i := 0
	err = r.Scrub(func(e DirEntry, plain []byte, err error) error {
		if err != nil || e != want[i] || !bytes.Equal(plain, chunks[i]) {
			t.Errorf("Scrub %d: %v, %v", i, e, err)
		}
		i++
		return nil
	})
	if err != nil || i != len(want) {
		t.Errorf("Scrub visited %d of %d: %v", i, len(want), err)
	}
}

// TestReads counts reads: what a place knows must not be asked of the disk.
func TestReads(t *testing.T) {
	small, large := content(1, 40<<10, 8), content(2, chunk.MaxSize, 8)
	obj, places := build(t, None, testOpts, small, large)
	r := mustOpen(t, obj, testRead)
	for _, c := range []struct {
		name string
		want int
		read func() error
	}{
		{"whole chunk", 1, func() error { _, _, err := r.ReadChunk(places[1], nameOf(large).ID(), nil); return err }},
		{"frame of a small chunk", 1, func() error { _, err := r.ReadFrame(places[0], nameOf(small).ID(), 0, nil); return err }},
		{"frame of a large chunk", 2, func() error { _, err := r.ReadFrame(places[1], nameOf(large).ID(), 2, nil); return err }},
	} {
		obj.reads = 0
		if err := c.read(); err != nil || obj.reads != c.want {
			t.Errorf("%s: %d reads, want %d; %v", c.name, obj.reads, c.want, err)
		}
	}
}

// TestReadsAllocateNothing holds the hot path to zero allocations once pools are warm.
func TestReadsAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector empties pools at random")
	}
	for codec := range codecs {
		b := content(3, chunk.MaxSize, 2)
		obj, places := build(t, codec, testOpts, b)
		r := mustOpen(t, &fileLike{obj.b}, testRead)
		dst := make([]byte, 0, chunk.MaxSize)
		n := testing.AllocsPerRun(100, func() {
			if _, err := r.ReadFrame(places[0], nameOf(b).ID(), 1, dst); err != nil {
				t.Fatal(err)
			}
			if _, _, err := r.ReadChunk(places[0], nameOf(b).ID(), dst); err != nil {
				t.Fatal(err)
			}
		})
		if n >= 1 {
			t.Errorf("%v: %v allocations for two reads", codec, n)
		}
	}
}

// fileLike is an Object that allocates nothing.
type fileLike struct{ b []byte }

func (f *fileLike) Size() int64  { return int64(len(f.b)) }
func (f *fileLike) Close() error { return nil }
func (f *fileLike) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.b)) {
		return 0, io.EOF
	}
	n := copy(p, f.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func TestConcurrentReads(t *testing.T) {
	chunks := someChunks()
	obj, places := build(t, Zstd, testOpts, chunks...)
	r := mustOpen(t, &fileLike{obj.b}, testRead)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 60 {
				k := (g*31 + i) % len(chunks)
				got, _, err := r.ReadChunk(places[k], nameOf(chunks[k]).ID(), nil)
				if err != nil || !bytes.Equal(got, chunks[k]) {
					t.Errorf("chunk %d: %v", k, err)
				}
				if _, err := r.ReadFrame(places[k], nameOf(chunks[k]).ID(), 0, nil); err != nil {
					t.Errorf("frame of %d: %v", k, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestStale(t *testing.T) {
	a, b := content(1, 5000, 8), content(2, 5000, 8)
	obj, places := build(t, None, testOpts, a, b)
	r := mustOpen(t, obj, testRead)
	if _, _, err := r.ReadChunk(places[0], nameOf(b).ID(), nil); !errs.Is(err, errs.Stale) {
		t.Errorf("another chunk: %v", err)
	}
	if _, err := r.ReadFrame(places[1], nameOf(a).ID(), 0, nil); !errs.Is(err, errs.Stale) {
		t.Errorf("another chunk: %v", err)
	}
	q := places[0]
	q.Pack = 8
	if _, _, err := r.ReadChunk(q, nameOf(a).ID(), nil); !errs.Is(err, errs.Invalid) {
		t.Errorf("another pack: %v", err)
	}
	q = places[0]
	q.Offset++
	if _, _, err := r.ReadChunk(q, nameOf(a).ID(), nil); !errs.Is(err, errs.Corrupt) {
		t.Errorf("no header: %v", err)
	}
	q.Offset = 1 << 31
	if _, _, err := r.ReadChunk(q, nameOf(a).ID(), nil); !errs.Is(err, errs.Corrupt) {
		t.Errorf("behind the end: %v", err)
	}
	clear(obj.b[places[0].ByteOffset():places[1].ByteOffset()])
	if _, _, err := r.ReadChunk(places[0], nameOf(a).ID(), nil); !errs.Is(err, errs.Stale) {
		t.Errorf("given back: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	obj, _ := build(t, None, testOpts, []byte("x"))
	other := keys.Master{9}
	newer := bytes.Clone(obj.b)
	le.PutUint16(newer[4:6], compactVersion+1)
	sealCRC(newer[:headerSize])
	for _, c := range []struct {
		name string
		b    []byte
		o    ReaderOptions
		want errs.Kind
	}{
		{"another store", obj.b, ReaderOptions{Master: &testMaster, StoreUUID: [16]byte{1}}, errs.Invalid},
		{"another key", obj.b, ReaderOptions{Master: &other}, errs.Denied},
		{"a newer version", newer, testRead, errs.Unsupported},
		{"an empty file", nil, testRead, errs.Corrupt},
		{"half a header", obj.b[:40], testRead, errs.Corrupt},
		{"no pack", bytes.Repeat([]byte("no pack "), 20), testRead, errs.Corrupt},
	} {
		_, err := Open(&object{b: c.b}, c.o)
		if !errs.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.want != errs.Corrupt && errs.NextStep(err) == "" {
			t.Errorf("%s: no next step", c.name)
		}
	}
}

func TestWithoutKey(t *testing.T) {
	b := content(1, 5000, 8)
	obj, places := build(t, None, testOpts, b)
	r := mustOpen(t, obj, ReaderOptions{})
	if dir, err := r.Directory(); err != nil || len(dir) != 1 {
		t.Errorf("Directory: %v, %v", dir, err)
	}
	if _, _, err := r.ReadChunk(places[0], nameOf(b).ID(), nil); !errs.Is(err, errs.Denied) {
		t.Errorf("ReadChunk: %v", err)
	}
	if err := r.Scrub(func(DirEntry, []byte, error) error { return nil }); !errs.Is(err, errs.Denied) {
		t.Errorf("Scrub: %v", err)
	}
	if err := r.VerifyFile(); err != nil {
		t.Errorf("VerifyFile: %v", err)
	}
}

// TestEmptyPack: a run that found nothing new may seal a pack without chunks.
func TestEmptyPack(t *testing.T) {
	obj, _ := build(t, None, testOpts)
	r := mustOpen(t, obj, testRead)
	checkListings(t, r, nil, nil)
	if err := r.VerifyFile(); err != nil {
		t.Error(err)
	}
}

func TestWriterIsPoisoned(t *testing.T) {
	obj := &object{}
	w, err := NewWriter(obj, testOpts)
	if err != nil {
		t.Fatal(err)
	}
	obj.fail = errs.Text("write", "", errs.NoSpace, "full")
	c := Compress(None, []byte("x"))
	defer c.Release()
	if _, err := w.Append(chunk.Digest{1}, c); err != nil {
		t.Fatal(err) // only gathered
	}
	if err := w.Sync(); !errs.Is(err, errs.NoSpace) {
		t.Errorf("Sync: %v", err)
	}
	obj.fail = nil
	size := len(obj.b)
	if _, err := w.Append(chunk.Digest{1}, c); !errs.Is(err, errs.NoSpace) {
		t.Errorf("Append after a failure: %v", err)
	}
	if err := w.Seal(); !errs.Is(err, errs.NoSpace) || len(obj.b) != size || obj.sealed {
		t.Errorf("Seal after a failure: %v", err)
	}
	for range 2 {
		if err := w.Abort(); err != nil || !obj.closed {
			t.Errorf("Abort: %v", err)
		}
	}
	if err := w.Sync(); err == nil {
		t.Error("Sync after Abort succeeds")
	}
}

func TestWriterRefuses(t *testing.T) {
	for name, change := range map[string]func(*WriterOptions){
		"no key":    func(o *WriterOptions) { o.Master = keys.Master{} },
		"no number": func(o *WriterOptions) { o.Number = 0 },
		"no kind":   func(o *WriterOptions) { o.Kind = 0 },
		"no uuid":   func(o *WriterOptions) { o.PackUUID = [16]byte{} },
		"no time":   func(o *WriterOptions) { o.Created = time.Time{} },
	} {
		o := testOpts
		change(&o)
		if _, err := NewWriter(&object{}, o); !errs.Is(err, errs.Bug) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := &object{fail: errs.Text("write", "", errs.NoSpace, "full")}
	if _, err := NewWriter(broken, testOpts); !errs.Is(err, errs.NoSpace) || broken.closed {
		t.Errorf("a broken appender: %v", err)
	}
	w, err := NewWriter(&object{}, testOpts)
	if err != nil {
		t.Fatal(err)
	}
	w.dir = make([]DirEntry, MaxChunks)
	c := Compress(None, []byte("x"))
	defer c.Release()
	if _, err := w.Append(chunk.Digest{1}, c); !errs.Is(err, errs.Invalid) {
		t.Errorf("a chunk too many: %v", err)
	}
	w.dir, w.flushed = nil, MaxSize-maxGroup+1
	if _, err := w.Append(chunk.Digest{1}, c); !errs.Is(err, errs.Invalid) {
		t.Errorf("a byte too many: %v", err)
	}
}

func TestStopsWhenToldTo(t *testing.T) {
	obj, places := build(t, None, testOpts, someChunks()[:5]...)
	stop := errors.New("stop")
	obj.b[places[1].ByteOffset()] ^= 1
	r := mustOpen(t, obj, testRead)
	if err := r.Walk(func(DirEntry) error { return stop }, nil); err != stop {
		t.Errorf("Walk: %v", err)
	}
	if err := r.Walk(func(DirEntry) error { return nil }, func(Damage) error { return stop }); err != stop {
		t.Errorf("Walk: %v", err)
	}
	if err := r.Walk(func(DirEntry) error { return nil }, nil); err != nil {
		t.Errorf("Walk: %v", err)
	}
	if err := r.Scrub(func(_ DirEntry, _ []byte, err error) error {
		if err != nil {
			return stop
		}
		return nil
	}); err != stop {
		t.Errorf("Scrub: %v", err)
	}
}
