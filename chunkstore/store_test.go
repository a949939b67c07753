package chunkstore

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

var passphrase = []byte("correct horse")

// testWork makes the tests' key derivation cheap.
const testWork = 10

func newStore(t *testing.T, o Options) (*Store, string, Options) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	made, err := Create(t.Context(), dir, passphrase, testWork, o)
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := keys.ParseKit(made.Kit)
	if err != nil {
		t.Fatal(err)
	}
	o.Unlock = WithMaster(m)
	if o.IndexDir == "" {
		o.IndexDir = filepath.Join(memoryDir(t), "index")
	}
	return openStore(t, dir, o), dir, o
}

func openStore(t *testing.T, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// bytesSource is a disk in memory. Blocks outside changed are unchanged; blocks of zeros are holes.
type bytesSource struct {
	data    []byte
	changed func(block int64) bool // nil: everything
	read    int64
}

func (b *bytesSource) Size() int64 { return int64(len(b.data)) }

func (b *bytesSource) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(b.data).ReadAt(p, off)
}

func (b *bytesSource) Extents(_ context.Context, visit func(Extent) error) error {
	for off := int64(0); off < b.Size(); off += chunk.Grid {
		n := min(chunk.Grid, b.Size()-off)
		kind := ExtentData
		if isZero(append(bytes.Clone(b.data[off:off+n]), make([]byte, chunk.Grid-n)...)) {
			kind = ExtentZero
		}
		if b.changed != nil && !b.changed(off/chunk.Grid) {
			kind = ExtentUnchanged
		}
		if err := visit(Extent{off, n, kind}); err != nil {
			return err
		}
	}
	return nil
}

func backup(t *testing.T, s *Store, src Source, parent *Point) (*Point, Stats) {
	t.Helper()
	x := s.Begin(time.Now(), map[string]string{"vm": "web"}, []byte("config"))
	var base *Parent
	if parent != nil {
		base = &Parent{parent, parent.Disks[0]}
	}
	if err := x.Ingest(t.Context(), 0, src, base, nil); err != nil {
		t.Fatal(err)
	}
	p, err := x.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p, x.Stats()
}

func content(t *testing.T, r *Reader, p *Point) []byte {
	t.Helper()
	img, err := r.Image(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, img.Size()+5)
	n, err := img.ReadAt(t.Context(), got, 0)
	if err != io.EOF || int64(n) != img.Size() {
		t.Fatalf("reading the image gave %d of %d bytes, %v", n, img.Size(), err)
	}
	return got[:n]
}

// scribble changes random ranges: new bytes, zeros, or bytes that stand elsewhere.
func scribble(rng *rand.Rand, data []byte, times int) map[int64]bool {
	changed := map[int64]bool{}
	for range times {
		off := rng.IntN(len(data))
		n := min(1+rng.IntN(200_000), len(data)-off)
		switch rng.IntN(3) {
		case 0:
			for i := range n {
				data[off+i] = byte(rng.Uint32())
			}
		case 1:
			clear(data[off : off+n])
		case 2:
			copy(data[off:off+n], data[rng.IntN(len(data)):])
		}
		for b := off / chunk.Grid; b <= (off+n-1)/chunk.Grid; b++ {
			changed[int64(b)] = true
		}
	}
	return changed
}

// TestHistory makes points of one disk that changes, grows and shrinks, half of them by changed ranges only, closing and
// opening the store now and then and losing the index; every point must read as it was written, for ever.
func TestHistory(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprintf("seed%d", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 5))
			s, dir, o := newStore(t, Options{PackSize: 3 << 20})
			data := make([]byte, 20<<20+rng.IntN(9000))
			var points []*Point
			var want [][]byte
			for range 8 {
				changed := scribble(rng, data, 1+rng.IntN(12))
				src := &bytesSource{data: data}
				var parent *Point
				if len(points) > 0 && rng.IntN(4) > 0 {
					parent = points[len(points)-1]
					if rng.IntN(2) == 0 {
						src.changed = func(b int64) bool { return changed[b] }
					}
				}
				if parent != nil && rng.IntN(3) == 0 {
					old := int64(len(data))
					data = append(data[:rng.IntN(len(data)/2)+len(data)/2:len(data)], make([]byte, rng.IntN(12<<20))...)
					small := min(old, int64(len(data)))
					src.data = data
					src.changed = func(b int64) bool { return changed[b] || (b+1)*chunk.Grid > small }
					// What was cut off and grown again differs from the parent wherever it lies.
					for b := small / chunk.Grid; b*chunk.Grid < int64(len(data)); b++ {
						changed[b] = true
					}
					for i := range data[:small] {
						if int64(i) < int64(len(want[len(want)-1])) && data[i] != want[len(want)-1][i] {
							changed[int64(i)/chunk.Grid] = true
						}
					}
				}
				p, _ := backup(t, s, src, parent)
				points, want = append(points, p), append(want, bytes.Clone(data))
				if rng.IntN(3) == 0 {
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
					if rng.IntN(2) == 0 {
						o.IndexDir = filepath.Join(memoryDir(t), "another")
					}
					s = openStore(t, dir, o)
				}
				for i, p := range points {
					if !bytes.Equal(content(t, s.Reader, p), want[i]) {
						t.Fatalf("point %d is not what was stored (repeat: go test ./chunkstore -run 'TestHistory/seed%d')", i, seed)
					}
				}
			}
			r, err := OpenReader(t.Context(), dir, o)
			if err != nil {
				t.Fatal(err)
			}
			listed, bad := r.Points(t.Context())
			if len(bad) > 0 || len(listed) != len(points) {
				t.Fatalf("%d points listed, %v", len(listed), bad)
			}
			for i, p := range listed {
				if !bytes.Equal(content(t, r, p), want[i]) || p.Labels["vm"] != "web" || string(p.Config) != "config" {
					t.Fatalf("listed point %d is another one", i)
				}
			}
		})
	}
}

func TestUnchangedCostsNothing(t *testing.T) {
	s, _, _ := newStore(t, Options{})
	data := make([]byte, 30<<20)
	scribble(rand.New(rand.NewPCG(1, 1)), data, 60)
	first, st := backup(t, s, &bytesSource{data: data}, nil)
	if st.NewBytes == 0 || st.StoredBytes == 0 {
		t.Fatalf("first: %+v", st)
	}
	again, st := backup(t, s, &bytesSource{data: data}, first)
	if st.NewBytes != 0 || st.StoredBytes > 2000 {
		t.Errorf("the same disk again: %+v", st)
	}
	if again.Disks[0].Root.Digest != first.Disks[0].Root.Digest {
		t.Error("the same content has another root")
	}
	other, st := backup(t, s, &bytesSource{data: data}, nil)
	if st.NewBytes != 0 {
		t.Errorf("the same disk without a parent: %+v", st)
	}
	if other.Disks[0].Root.Digest != first.Disks[0].Root.Digest {
		t.Error("the same content without a parent has another root")
	}
}

func TestSourcesThatLie(t *testing.T) {
	s, _, _ := newStore(t, Options{})
	data := make([]byte, 1<<20)
	scribble(rand.New(rand.NewPCG(1, 1)), data, 9)
	for name, src := range map[string]Source{
		"gap":       lying{&bytesSource{data: data}, []Extent{{4096, 4096, ExtentData}}},
		"short":     lying{&bytesSource{data: data}, []Extent{{0, 4096, ExtentData}}},
		"beyond":    lying{&bytesSource{data: data}, []Extent{{0, 2 << 20, ExtentData}}},
		"unchanged": lying{&bytesSource{data: data}, []Extent{{0, 1 << 20, ExtentUnchanged}}},
	} {
		x := s.Begin(time.Now(), nil, nil)
		if err := x.Ingest(t.Context(), 0, src, nil, nil); !errs.Is(err, errs.Bug) {
			t.Errorf("%s: %v", name, err)
		}
		x.Abort()
	}
	x := s.Begin(time.Now(), nil, nil)
	err := x.Ingest(t.Context(), 0, truncated{&bytesSource{data: data}}, nil, nil)
	if !errs.Is(err, errs.Corrupt) || errs.NextStep(err) == "" {
		t.Errorf("a source that ends early: %v", err)
	}
	if _, err := x.Commit(t.Context()); !errs.Is(err, errs.Invalid) {
		t.Errorf("commit without disks: %v", err)
	}
}

type lying struct {
	*bytesSource
	extents []Extent
}

func (l lying) Extents(_ context.Context, visit func(Extent) error) error {
	for _, e := range l.extents {
		if err := visit(e); err != nil {
			return err
		}
	}
	return nil
}

type truncated struct{ *bytesSource }

func (s truncated) ReadAt(context.Context, []byte, int64) (int, error) { return 0, io.EOF }

func TestHugeSparseDisk(t *testing.T) {
	s, _, _ := newStore(t, Options{})
	const size = 15 << 40
	src := &sparse{size: size, at: map[int64]byte{0: 1, 7 << 40: 2, size - 4096: 3}}
	p, st := backup(t, s, src, nil)
	if st.NewBytes != 3*smallest(s) {
		t.Errorf("new bytes %d", st.NewBytes)
	}
	img, _ := s.Image(p, 0)
	for off, b := range src.at {
		got := make([]byte, 4096)
		if _, err := img.ReadAt(t.Context(), got, off); err != nil || got[0] != b || got[4095] != b {
			t.Errorf("at %d: %v, %v", off, got[0], err)
		}
	}
	var runs int
	if err := img.Extents(t.Context(), 0, size, func(_, _ int64, data bool) bool { runs++; return true }); err != nil || runs != 5 {
		t.Errorf("%d runs, %v", runs, err)
	}
}

// sparse is a disk of zeros with a few blocks of one byte each.
type sparse struct {
	size int64
	at   map[int64]byte
}

func (s *sparse) Size() int64 { return s.size }

func (s *sparse) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = s.at[(off+int64(i))/4096*4096]
	}
	return len(p), nil
}

func (s *sparse) Extents(_ context.Context, visit func(Extent) error) error {
	pos := int64(0)
	for _, off := range []int64{0, 7 << 40, s.size - 4096} {
		if off > pos {
			if err := visit(Extent{pos, off - pos, ExtentZero}); err != nil {
				return err
			}
		}
		if err := visit(Extent{off, 4096, ExtentData}); err != nil {
			return err
		}
		pos = off + 4096
	}
	return nil
}

func TestOpenErrors(t *testing.T) {
	s, dir, o := newStore(t, Options{})
	wrong := o
	wrong.Unlock = WithPassphrase(func() ([]byte, error) { return []byte("wrong"), nil })
	if _, err := OpenReader(t.Context(), dir, wrong); !errs.Is(err, errs.Denied) {
		t.Error("wrong passphrase:", err)
	}
	right := o
	right.Unlock = WithPassphrase(func() ([]byte, error) { return passphrase, nil })
	if r, err := OpenReader(t.Context(), dir, right); err != nil {
		t.Error("right passphrase beside a writer:", err)
	} else {
		_ = r.Close()
	}
	foreign := o
	other, _ := keys.New()
	foreign.Unlock = WithMaster(other)
	if _, err := OpenReader(t.Context(), dir, foreign); !errs.Is(err, errs.Denied) {
		t.Error("key of another store:", err)
	}
	if _, err := Open(t.Context(), dir, o); !errs.Is(err, errs.Busy) || errs.NextStep(err) == "" {
		t.Error("second writer:", err)
	}
	if _, err := Open(t.Context(), t.TempDir(), o); !errs.Is(err, errs.NotFound) {
		t.Error("no store:", err)
	}
	if _, err := Create(t.Context(), dir, passphrase, testWork, Options{}); !errs.Is(err, errs.Busy) {
		t.Error("create over an open store:", err)
	}
	_ = s.Close()
	if _, err := Create(t.Context(), dir, passphrase, testWork, Options{}); !errs.Is(err, errs.Exists) {
		t.Error("create over a store:", err)
	}
	if err := disk.Publish(disk.OS{}, filepath.Join(t.TempDir(), "x"), nil); err != nil {
		t.Fatal(err)
	}
}

func TestPointRecordDamage(t *testing.T) {
	var key [32]byte
	p := &Point{ID: NewPointID(), Time: time.Now().UTC(), Labels: map[string]string{"vm": "a"}, Disks: []Disk{{
		Number: 2, Root: manifest.Root{Size: 5000, Data: 4096, Digest: chunk.Digest{1}, Place: chunk.Place{Pack: 1, Offset: 2, Stored: 3}},
		Cutter: "fixed-64k", Digest: digestHMAC,
	}}}
	b, err := encodePoint(key, p)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodePoint(key, p.ID, b)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(p) {
		t.Fatalf("round trip: %+v, %v", got, err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if _, err := decodePoint(key, p.ID, bad); !errs.Is(err, errs.Corrupt) && !(errs.Is(err, errs.Unsupported) && (i == 4 || i == 5)) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
		if _, err := decodePoint(key, p.ID, b[:i]); !errs.Is(err, errs.Corrupt) {
			t.Fatalf("cut to %d: %v", i, err)
		}
	}
	if _, err := decodePoint(key, NewPointID(), b); !errs.Is(err, errs.Corrupt) {
		t.Fatal("under another name:", err)
	}
}

// TestExtents compares runs with the content they describe.
func TestExtents(t *testing.T) {
	s, _, _ := newStore(t, Options{})
	rng := rand.New(rand.NewPCG(3, 3))
	data := make([]byte, 40<<20+777)
	scribble(rng, data[:9<<20], 6)
	scribble(rng, data[30<<20:], 6)
	p, _ := backup(t, s, &bytesSource{data: data}, nil)
	img, _ := s.Image(p, 0)
	for range 200 {
		off := rng.Int64N(img.Size())
		n := rng.Int64N(img.Size())
		pos, last := off, -1
		err := img.Extents(t.Context(), off, n, func(o, n int64, isData bool) bool {
			kind := 0
			if isData {
				kind = 1
			}
			if o != pos || n <= 0 || kind == last {
				t.Fatalf("run %d+%d of kind %d after %d of kind %d", o, n, kind, pos, last)
			}
			if !isData && !isZero(data[o:o+n]) {
				t.Fatalf("%d+%d is called zeros", o, n)
			}
			pos, last = o+n, kind
			return true
		})
		if err != nil || pos != min(off+n, img.Size()) {
			t.Fatalf("extents of %d+%d end at %d, %v", off, n, pos, err)
		}
	}
}
