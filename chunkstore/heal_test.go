package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// wholeSource is a bytesSource that can be read everywhere.
type wholeSource struct{ bytesSource }

func (*wholeSource) ReadsUnchanged() bool { return true }

// chunksOf lists the spots of a disk's chunks, in order.
func chunksOf(t testing.TB, r *Reader, d Disk) (out []Spot) {
	t.Helper()
	err := r.tree(d).Walk(context.Background(), func(_ int64, l manifest.Leaf) error {
		for _, e := range l {
			if !e.IsZero() {
				out = append(out, Spot{pack.Data, e.ID, e.Place})
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// flip changes a byte in the middle of a spot.
func flip(t testing.TB, dir string, s Spot) {
	t.Helper()
	name := filepath.Join(dir, s.Object())
	b, err := os.ReadFile(name)
	if err == nil {
		b[s.Place.ByteOffset()+int64(s.Place.Stored)-20] ^= 4
		err = os.WriteFile(name, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// fresh opens the store for reading with nothing in any cache.
func fresh(t testing.TB, dir string, o Options) *Reader {
	t.Helper()
	r, err := OpenReader(context.Background(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// hurts demands that exactly these points are known to be hit.
func hurts(t *testing.T, r *Reader, points []*Point, want ...*Point) map[PointID]Hurt {
	t.Helper()
	got, err := r.Hurts(t.Context(), points)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range points {
		if h, hit := got[p.ID]; hit != slices.Contains(want, p) || hit && (h.Bytes == 0 || h.Since.IsZero()) {
			t.Errorf("point %q is hit: %v, %+v", p.Labels["name"], hit, h)
		}
	}
	return got
}

// reads demands that a point reads as what was stored, in a new process.
func reads(t *testing.T, dir string, o Options, p *Point, want []byte) {
	t.Helper()
	r := fresh(t, dir, o)
	defer r.Close()
	if got, err := readImage(t.Context(), r, p, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("point %q does not read as what was stored: %v", p.Labels["name"], err)
	}
}

func fails(t *testing.T, dir string, o Options, p *Point) {
	t.Helper()
	r := fresh(t, dir, o)
	defer r.Close()
	if _, err := readImage(t.Context(), r, p, 0); !errs.Is(err, errs.Corrupt) {
		t.Errorf("point %q reads: %v", p.Labels["name"], err)
	}
}

func mustBackup(t *testing.T, s *Store, name string, src Source, parent *Point) *Point {
	t.Helper()
	var base *Parent
	if parent != nil {
		base = &Parent{parent, parent.Disks[0]}
	}
	p, err := tryBackup(t.Context(), s, name, src, base)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestReadQuarantines: damage that a read meets is known from then on, to every process, and no backup builds on it. The
// next backup with the content heals every point that had it, and nothing more is needed to read them.
func TestReadQuarantines(t *testing.T) {
	s, dir, o := realStore(t, Options{Cutter: "fixed-64k"})
	a := noise(1, 300<<10)
	b := slices.Concat(a[:128<<10], noise(2, 64<<10))
	pa, pb := mustBackup(t, s, "a", &bytesSource{data: a}, nil), mustBackup(t, s, "b", &bytesSource{data: b}, nil)
	pc := mustBackup(t, s, "c", &bytesSource{data: noise(3, 70<<10)}, nil)
	points := []*Point{pa, pb, pc}
	bad := chunksOf(t, s.Reader, pa.Disks[0])[1]
	flip(t, dir, bad)
	hurts(t, s.Reader, points)
	fails(t, dir, o, pa)
	got := hurts(t, s.Reader, points, pa, pb)
	if got[pa.ID].Bytes != 64<<10 || got[pb.ID].Bytes != 64<<10 {
		t.Errorf("%+v and %+v are hit, want one chunk of 64 KiB each", got[pa.ID], got[pb.ID])
	}
	hurts(t, fresh(t, dir, o), points, pa, pb)
	x := mustBackup(t, s, "d", &bytesSource{data: a}, nil)
	if at, ok, err := s.index.Get(bad.ID); err != nil || !ok || at == bad.Place {
		t.Errorf("the index has %v, %v, %v", at, ok, err)
	}
	if in := chunksOf(t, s.Reader, x.Disks[0])[1]; in.Place == bad.Place || in.ID != bad.ID {
		t.Error("a new point was built on a damaged chunk")
	}
	for _, r := range []*Reader{s.Reader, fresh(t, dir, o)} {
		hurts(t, r, append(points, x))
	}
	reads(t, dir, o, pa, a)
	reads(t, dir, o, pb, b)
	for range 2 {
		if v, err := fresh(t, dir, o).VerifyStore(t.Context(), VerifyOptions{}); err != nil || v.FaultCount != 0 || v.Healed != 1 || v.Quarantined != 0 {
			t.Errorf("%d faults, first %v; %d healed, %d new; %v", v.FaultCount, v.Faults, v.Healed, v.Quarantined, err)
		}
		if v := checkVerify(t, fresh(t, dir, o), points, 0); v.Healed != 1 {
			t.Errorf("%d chunks are healed, want 1", v.Healed)
		}
	}
}

// TestIndexForgets: neither the index as it is nor one that is made anew knows a damaged chunk.
func TestIndexForgets(t *testing.T) {
	s, dir, o := realStore(t, Options{Cutter: "fixed-64k"})
	p := mustBackup(t, s, "a", &bytesSource{data: noise(1, 200<<10)}, nil)
	bad := chunksOf(t, s.Reader, p.Disks[0])[2]
	flip(t, dir, bad)
	fails(t, dir, o, p)
	for _, how := range []string{"while it is open", "opened again", "made anew"} {
		switch how {
		case "while it is open":
			s.Begin(p.Time, nil, nil).Abort()
		case "opened again":
			_ = s.Close()
			s = reopen(t, dir, o)
		default:
			_ = s.Close()
			if err := os.RemoveAll(o.IndexDir); err != nil {
				t.Fatal(err)
			}
			s = reopen(t, dir, o)
		}
		if _, ok, err := s.index.Get(bad.ID); ok || err != nil {
			t.Errorf("%s, the index has the damaged chunk: %v", how, err)
		}
		if other := chunksOf(t, s.Reader, p.Disks[0])[0]; how == "made anew" {
			if at, ok, err := s.index.Get(other.ID); !ok || at != other.Place {
				t.Errorf("%s, the index lacks another chunk of the pack: %v", how, err)
			}
		}
	}
}

// TestIncrementalHeals: what is damaged of the parent is read from the source, as far as that can be, and nothing else.
func TestIncrementalHeals(t *testing.T) {
	for _, cutter := range Cutters() {
		for _, known := range []bool{true, false} {
			t.Run(cutter+map[bool]string{true: ", known", false: ", not known"}[known], func(t *testing.T) { incrementalHeals(t, cutter, known) })
		}
	}
}

func incrementalHeals(t *testing.T, cutter string, known bool) {
	s, dir, o := realStore(t, Options{Cutter: cutter, PackSize: 300 << 10})
	data := slices.Concat(noise(1, 600<<10), make([]byte, 9<<20), noise(5, 200<<10))
	old := mustBackup(t, s, "old", &bytesSource{data: data}, nil)
	flip(t, dir, chunksOf(t, s.Reader, old.Disks[0])[1])
	flip(t, dir, chunksOf(t, s.Reader, old.Disks[0])[2])
	if known {
		fails(t, dir, o, old)
		checkVerify(t, fresh(t, dir, o), []*Point{old}, -1)
	}
	s.frames.InvalidateAll()
	next := slices.Clone(data)
	copy(next[4096:], noise(9, 4096)) // beside the damage, so that cutting anew needs to read it
	changed := func(b int64) bool { return b == 1 }
	blind := mustBackup(t, s, "blind", &wholeSource{bytesSource{data: next, changed: changed}}, old)
	if !known { // it met some of the damage; the next backup heals what was taken over without a look
		checkVerify(t, fresh(t, dir, o), []*Point{old, blind}, -1)
		blind = mustBackup(t, s, "blind", &wholeSource{bytesSource{data: next, changed: func(int64) bool { return false }}}, blind)
	}
	hurts(t, s.Reader, []*Point{old, blind})
	reads(t, dir, o, old, data)
	reads(t, dir, o, blind, next)
}

// TestCannotReread: a source that cannot be read where it is unchanged leaves the damage, and the new point says so.
func TestCannotReread(t *testing.T) {
	s, dir, o := realStore(t, Options{Cutter: "fixed-64k"})
	data := noise(1, 300<<10)
	old := mustBackup(t, s, "old", &bytesSource{data: data}, nil)
	flip(t, dir, chunksOf(t, s.Reader, old.Disks[0])[3])
	fails(t, dir, o, old)
	next := slices.Clone(data)
	copy(next, noise(2, 4096))
	p := mustBackup(t, s, "next", &bytesSource{data: next, changed: func(b int64) bool { return b == 0 }}, old)
	hurts(t, s.Reader, []*Point{old, p}, old, p)
	fails(t, dir, o, p)
	full := mustBackup(t, s, "full", &bytesSource{data: next}, p)
	hurts(t, s.Reader, []*Point{old, p, full})
	reads(t, dir, o, old, data)
	reads(t, dir, o, p, next)
}

// TestPageHeals: a page that is damaged costs what is below it, until the next backup writes the same page.
func TestPageHeals(t *testing.T) {
	size := int64(3 << 30) // three levels of pages
	data := noise(1, 200<<10)
	for name, level := range map[string]int{"leaf": 0, "level 1": 1, "top": 2} {
		t.Run(name, func(t *testing.T) {
			s, dir, o := realStore(t, Options{})
			src := func(version uint64) *patchSource {
				return &patchSource{size: size, data: map[int64][]byte{0: data, 2<<30 + 4096: noise(version, 8192), 20 << 20: data[:8192]}}
			}
			old := mustBackup(t, s, "old", src(2), nil)
			page := pagePath(t, s.Reader, old.Disks[0])[level]
			flip(t, dir, page)
			if v := checkVerify(t, fresh(t, dir, o), []*Point{old}, -1); v.FaultCount == 0 || v.Quarantined != 1 {
				t.Errorf("%d faults, %d in quarantine", v.FaultCount, v.Quarantined)
			}
			hurts(t, s.Reader, []*Point{old}, old)
			s.pages.InvalidateAll()
			if _, err := s.Collect(t.Context(), CollectOptions{}); !errs.Is(err, errs.Corrupt) {
				t.Error("a collection does not know what a point needs, and says:", err)
			}
			next := src(3)
			next.changed = func(off int64) bool { return off >= 2<<30 }
			p := mustBackup(t, s, "next", next, old)
			if next.read > 2<<30+1<<20 {
				t.Errorf("%d bytes were read", next.read)
			}
			samePatches(t, fresh(t, dir, o), p, next)
			if level == 0 { // the others are not written again: their content changed
				hurts(t, s.Reader, []*Point{old, p})
				samePatches(t, fresh(t, dir, o), old, src(2))
			} else {
				again := mustBackup(t, s, "again", src(2), nil)
				hurts(t, s.Reader, []*Point{old, p, again})
				samePatches(t, fresh(t, dir, o), old, src(2))
			}
		})
	}
}

// pagePath lists the pages on the way to the first leaf, by level.
func pagePath(t *testing.T, r *Reader, d Disk) (out []Spot) {
	t.Helper()
	for ref, level := d.Root.Ref(), d.Root.Level; ; level-- {
		out = slices.Insert(out, 0, Spot{pack.Meta, ref.ID, ref.Place})
		if level == 0 {
			return out
		}
		page, err := r.Page(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		children, err := manifest.Children(page, level)
		if err != nil {
			t.Fatal(err)
		}
		ref = children[0].Ref
	}
}

// patchSource is a large disk of zeros with some data, on the grid.
type patchSource struct {
	size    int64
	data    map[int64][]byte
	changed func(off int64) bool // by leaf; nil: everything
	read    int64
}

func (*patchSource) ReadsUnchanged() bool { return true }

func (p *patchSource) Size() int64 { return p.size }

func (p *patchSource) Extents(_ context.Context, visit func(Extent) error) error {
	for off := int64(0); off < p.size; off += manifest.LeafSize {
		n := min(manifest.LeafSize, p.size-off)
		kind := ExtentZero
		for at := range p.data {
			if at >= off && at < off+n {
				kind = ExtentData
			}
		}
		if p.changed != nil && !p.changed(off) {
			kind = ExtentUnchanged
		}
		if err := visit(Extent{off, n, kind}); err != nil {
			return err
		}
	}
	return nil
}

func (p *patchSource) ReadAt(_ context.Context, b []byte, off int64) (int, error) {
	clear(b)
	for at, d := range p.data {
		if at < off+int64(len(b)) && at+int64(len(d)) > off {
			if at >= off {
				copy(b[at-off:], d)
			} else {
				copy(b, d[off-at:])
			}
		}
	}
	return len(b), nil
}

// samePatches compares a point with the source it was made of, where that has data.
func samePatches(t *testing.T, r *Reader, p *Point, src *patchSource) {
	t.Helper()
	img, err := r.Image(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	for at, d := range src.data {
		got := make([]byte, len(d)+chunk.Grid)
		want := append(slices.Clone(d), make([]byte, chunk.Grid)...)
		if _, err := img.ReadAt(t.Context(), got, at); err != nil || !bytes.Equal(got, want) {
			t.Errorf("point %q is not what was stored at %d: %v", p.Labels["name"], at, err)
		}
	}
}

// TestLostPackHeals: a pack that is gone is known as a whole, and is given up for nothing less.
func TestLostPackHeals(t *testing.T) {
	s, dir, o := realStore(t, Options{Cutter: "fixed-64k"})
	data := noise(1, 500<<10)
	old := mustBackup(t, s, "old", &bytesSource{data: data}, nil)
	other := mustBackup(t, s, "other", &bytesSource{data: noise(2, 100<<10)}, nil)
	name := filepath.Join(dir, chunksOf(t, s.Reader, old.Disks[0])[0].Object())
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	remove := func() {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		s.packs.forget(packKey{pack.Data, chunksOf(t, s.Reader, old.Disks[0])[0].Place.Pack})
		s.dirs.InvalidateAll()
		s.frames.InvalidateAll()
	}
	remove()
	fails(t, dir, o, old)
	if h := hurts(t, s.Reader, []*Point{old, other}, old)[old.ID]; h.Bytes != old.Disks[0].Root.Data {
		t.Errorf("%d bytes are hit, want all of the disk", h.Bytes)
	}
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	reads(t, dir, o, old, data) // at once: what can be read is read
	if v, err := fresh(t, dir, o).VerifyStore(t.Context(), VerifyOptions{}); err != nil || v.FaultCount != 0 || v.Lifted == 0 {
		t.Errorf("put back: %d faults, %d lifted, %v", v.FaultCount, v.Lifted, err)
	}
	hurts(t, s.Reader, []*Point{old, other})
	if left, err := s.b.List(t.Context(), quarantinePrefix); err != nil || len(left) > 0 {
		t.Errorf("what is good again is still in quarantine: %v, %v", left, err)
	}
	remove()
	again := mustBackup(t, s, "again", &bytesSource{data: data}, old)
	hurts(t, s.Reader, []*Point{old, other, again})
	reads(t, dir, o, old, data)
	reads(t, dir, o, again, data)
}

// TestHealAgain: what healed a chunk is damaged in its turn, and healed again, and all of it is collected in the end.
func TestHealAgain(t *testing.T) {
	s, dir, o := realStore(t, Options{Cutter: "fixed-64k"})
	data := noise(1, 200<<10)
	old := mustBackup(t, s, "old", &bytesSource{data: data}, nil)
	bad := chunksOf(t, s.Reader, old.Disks[0])[1]
	for round := range 3 {
		flip(t, dir, bad)
		s.frames.InvalidateAll()
		fails(t, dir, o, old)
		p := mustBackup(t, s, "again", &bytesSource{data: data}, nil)
		if err := s.RemovePoint(t.Context(), p.ID); err != nil {
			t.Fatal(err)
		}
		collectAll(t, s) // the copy that heals is in no manifest any more
		reads(t, dir, o, old, data)
		hurts(t, s.Reader, []*Point{old})
		at, ok, err := s.index.Get(bad.ID)
		if !ok || err != nil || at == bad.Place {
			t.Fatalf("round %d: the index has %v, %v, %v", round, at, ok, err)
		}
		bad.Place = at
	}
	if err := s.RemovePoint(t.Context(), old.ID); err != nil {
		t.Fatal(err)
	}
	collectAll(t, s)
	for _, prefix := range []string{"data/", "meta/", quarantinePrefix} {
		if left, err := s.b.List(t.Context(), prefix); err != nil || len(left) > 0 {
			t.Errorf("without points there is still %v, %v", left, err)
		}
	}
}

// TestUnreadableRecord: a record of damage that cannot be read hurts nobody, keeps a collection from giving back what may
// be needed, and is made anew by a verification.
func TestUnreadableRecord(t *testing.T) {
	s, dir, o := realStore(t, Options{Cutter: "fixed-64k"})
	data := noise(1, 200<<10)
	old := mustBackup(t, s, "old", &bytesSource{data: data}, nil)
	bad := chunksOf(t, s.Reader, old.Disks[0])[1]
	flip(t, dir, bad)
	fails(t, dir, o, old)
	p := mustBackup(t, s, "again", &bytesSource{data: data}, nil)
	name := filepath.Join(dir, quarantineName(bad.key()))
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for at := range b {
		flipped := slices.Clone(b)
		flipped[at] ^= 0x10
		if err := os.WriteFile(name, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := fresh(t, dir, o).loadQuarantine(t.Context(), bad.key()); !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.Unsupported) {
			t.Fatalf("byte %d flipped: %v", at, err)
		}
	}
	if _, err := s.damage.reread(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.frames.InvalidateAll()
	fails(t, dir, o, old)
	reads(t, dir, o, p, data)
	if _, err := s.Collect(t.Context(), CollectOptions{}); !errs.Is(err, errs.Corrupt) || errs.NextStep(err) == "" {
		t.Error("a collection does not know what heals, and says:", err)
	}
	v, err := fresh(t, dir, o).VerifyStore(t.Context(), VerifyOptions{})
	if err != nil || !slices.ContainsFunc(v.Faults, func(f Fault) bool { return f.Object == quarantineName(bad.key()) }) {
		t.Errorf("%v does not name the record: %v", v.Faults, err)
	}
	_ = s.Close()
	s = reopen(t, dir, o) // finds the copy by its name
	hurts(t, s.Reader, []*Point{old, p})
	reads(t, dir, o, old, data)
	collectAll(t, s)
	reads(t, dir, o, old, data)
}

// TestReadOnlyStore: damage is told of where it cannot be written down.
func TestReadOnlyStore(t *testing.T) {
	s, dir, o := realStore(t, Options{Cutter: "fixed-64k"})
	p := mustBackup(t, s, "a", &bytesSource{data: noise(1, 200<<10)}, nil)
	flip(t, dir, chunksOf(t, s.Reader, p.Disks[0])[1])
	if err := os.WriteFile(filepath.Join(dir, "quarantine"), nil, 0o600); err != nil { // where a folder has to be
		t.Fatal(err)
	}
	fails(t, dir, o, p)
	v, err := fresh(t, dir, o).VerifyStore(t.Context(), VerifyOptions{})
	if err != nil || v.FaultCount != 1 || v.Unkept == nil || errors.Is(v.Unkept, os.ErrNotExist) {
		t.Errorf("%d faults, %v, %v", v.FaultCount, v.Unkept, err)
	}
}
