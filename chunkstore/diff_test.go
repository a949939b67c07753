package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func diff(t *testing.T, r *Reader, a, b Disk, exact bool) []Difference {
	t.Helper()
	var out []Difference
	pos, data := int64(-1), false
	err := r.Diff(t.Context(), a, b, exact, func(d Difference) error {
		if d.Len <= 0 || d.Off < pos || d.Off == pos && d.Data == data || d.Off%chunk.Grid != 0 || d.Off+d.Len > b.Root.Size {
			t.Fatalf("range %+v after one that ended at %d, of a disk of %d", d, pos, b.Root.Size)
		}
		pos, data = d.Off+d.Len, d.Data
		out = append(out, d)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestDiffModel compares two versions of a disk, of any two sizes, with a look at their bytes.
func TestDiffModel(t *testing.T) { eachCutter(t, testDiffModel) }

func testDiffModel(t *testing.T, s *Store) {
	seeds := uint64(12)
	if raceEnabled || testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 12))
		old := next(t, rng, noise(seed, 9<<20)).data
		now := next(t, rng, old).data
		var disks []Disk
		for _, data := range [][]byte{old, now} {
			p, err := tryBackup(t.Context(), s, "x", &bytesSource{data: data}, nil)
			if err != nil {
				t.Fatal(err)
			}
			disks = append(disks, p.Disks[0])
		}
		none := Disk{}
		for _, c := range []struct {
			a, b       Disk
			was, holds []byte
		}{{disks[0], disks[1], old, now}, {disks[1], disks[0], now, old}, {none, disks[1], nil, now}, {disks[0], none, old, nil}, {disks[1], disks[1], now, now}} {
			rough, exact := diff(t, s.Reader, c.a, c.b, false), diff(t, s.Reader, c.a, c.b, true)
			if want := fmt.Sprint(differences(c.was, c.holds)); fmt.Sprint(exact) != want {
				t.Fatalf("seed %d: exact\n%v, want\n%s", seed, exact, want)
			}
			if !within(exact, rough, c.holds) {
				t.Fatalf("seed %d: exact\n%v, does not lie in\n%v", seed, exact, rough)
			}
		}
	}
}

// differences looks at every block.
func differences(was, holds []byte) []Difference {
	var out []Difference
	j := joiner{end: int64(len(holds)), visit: func(d Difference) error { out = append(out, d); return nil }}
	for off := 0; off < len(holds); off += chunk.Grid {
		now := holds[off:min(off+chunk.Grid, len(holds))]
		then := make([]byte, len(now))
		if off < len(was) {
			copy(then, was[off:])
		}
		if !bytes.Equal(now, then) {
			_ = j.add(int64(off), int64(len(now)), !isZero(now)) // visit does not fail
		}
	}
	_ = j.flush()
	return out
}

// within tells whether all that differs exactly lies in the rough ranges, and whether those that are called zeros are.
func within(exact, rough []Difference, holds []byte) bool {
	in := map[int64]bool{}
	for _, d := range rough {
		if !d.Data && !isZero(holds[d.Off:d.Off+d.Len]) {
			return false
		}
		for off := d.Off; off < d.Off+d.Len; off += chunk.Grid {
			in[off] = true
		}
	}
	for _, d := range exact {
		for off := d.Off; off < d.Off+d.Len; off += chunk.Grid {
			if !in[off] {
				return false
			}
		}
	}
	return true
}

// pagesRead counts the pages of manifests that are read from the store.
type pagesRead struct {
	backend.Backend
	n int
}

func (c *pagesRead) Open(ctx context.Context, name string) (backend.Object, error) {
	o, err := c.Backend.Open(ctx, name)
	if err != nil || !strings.HasPrefix(name, "meta/") {
		return o, err
	}
	return pagesOf{o, c}, nil
}

type pagesOf struct {
	backend.Object
	c *pagesRead
}

func (o pagesOf) ReadAt(p []byte, off int64) (int, error) {
	if off > 0 { // not the pack's header
		o.c.n++
	}
	return o.Object.ReadAt(p, off)
}

// TestDiffCostFollowsTheDifference: of two points of a disk of 6 TiB with 1500 leaves of data, only the pages on the way
// to what differs are read: four for each point and change that lies by itself.
func TestDiffCostFollowsTheDifference(t *testing.T) {
	s, dir, o := realStoreIn(t, memoryDir(t), Options{})
	const size, leaves, apart = 6 << 40, 1500, 4 << 30
	src := &spread{size: size, apart: apart, n: leaves, between: ExtentZero, fill: 1}
	first, err := tryBackup(t.Context(), s, "x", src, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, changed := range []int64{0, 1, 5, 200} {
		change := &spread{size: size, apart: apart * leaves / max(changed, 1), n: changed, between: ExtentUnchanged, fill: 2}
		p, err := tryBackup(t.Context(), s, "x", change, &Parent{first, first.Disks[0]})
		if err != nil {
			t.Fatal(err)
		}
		r, err := OpenReader(t.Context(), dir, Options{Unlock: o.Unlock})
		if err != nil {
			t.Fatal(err)
		}
		c := &pagesRead{Backend: r.b}
		r.b = c
		ranges := 0
		if err := r.Diff(t.Context(), first.Disks[0], p.Disks[0], false, func(d Difference) error {
			if d.Len != chunk.Grid || !d.Data {
				t.Errorf("range %+v", d)
			}
			ranges++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d changes: %d pages", changed, c.n)
		if ranges != int(changed) || c.n > 8*int(changed) {
			t.Errorf("%d changes: %d ranges, %d pages were read", changed, ranges, c.n)
		}
	}
}

// spread is a disk of which n blocks, so far apart, are data, all of one byte.
type spread struct {
	size, apart, n int64
	between        ExtentKind
	fill           byte
}

func (s *spread) Size() int64 { return s.size }

func (s *spread) ReadAt(_ context.Context, p []byte, _ int64) (int, error) {
	for i := range p {
		p[i] = s.fill
	}
	return len(p), nil
}

func (s *spread) Extents(_ context.Context, visit func(Extent) error) error {
	pos := int64(0)
	for i := range s.n {
		off := i * s.apart
		if off > pos {
			if err := visit(Extent{pos, off - pos, s.between}); err != nil {
				return err
			}
		}
		if err := visit(Extent{off, chunk.Grid, ExtentData}); err != nil {
			return err
		}
		pos = off + chunk.Grid
	}
	return visit(Extent{pos, s.size - pos, s.between})
}

func TestDiffStops(t *testing.T) {
	s, _, _ := realStoreIn(t, memoryDir(t), Options{})
	p, err := tryBackup(t.Context(), s, "x", &bytesSource{data: noise(1, 1<<20)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	stop := errs.Text("visit", "", errs.Busy, "enough")
	for _, exact := range []bool{false, true} {
		if err := s.Diff(t.Context(), Disk{}, p.Disks[0], exact, func(Difference) error { return stop }); !errors.Is(err, stop) || !errs.Is(err, errs.Busy) {
			t.Errorf("exact %v: visit's error became %v", exact, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Diff(ctx, Disk{}, p.Disks[0], exact, func(Difference) error { return nil }); !errs.Is(err, errs.Canceled) {
			t.Errorf("exact %v, cancelled: %v", exact, err)
		}
	}
	gone := p.Disks[0]
	gone.Root.Place.Pack = 99
	if err := s.Diff(t.Context(), gone, p.Disks[0], false, nil); err != nil {
		t.Error("equal roots were looked at:", err)
	}
	gone.Root.Digest[0]++
	if err := s.Diff(t.Context(), gone, p.Disks[0], false, nil); !errs.Is(err, errs.Corrupt) {
		t.Error("a page that is not there:", err)
	}
}
