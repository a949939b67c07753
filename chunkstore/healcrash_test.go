package chunkstore

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// wound is a store with damaged chunks and a damaged page, for healing that fails or is cut short.
type wound struct {
	disk  *disk.Crash
	index string
	want  map[string][]byte
}

func newWound(t *testing.T) *wound {
	a, c := noise(1, 330<<10), noise(3, 100<<10)
	w := &wound{disk: disk.NewCrash(), want: map[string][]byte{"a": a, "b": slices.Concat(a[:256<<10], noise(2, 64<<10)), "c": c}}
	w.want["again"] = a
	makeStore(t, w.disk, "/store", fixedSuperblock())
	o := faultOptions(t, w.disk)
	w.index = o.IndexDir
	s, err := Open(t.Context(), "/store", o)
	if err != nil {
		t.Fatal(err)
	}
	var bad []Spot
	for _, name := range []string{"a", "b", "c"} {
		p := mustBackup(t, s, name, &bytesSource{data: w.want[name]}, nil)
		if name == "a" {
			chunks := chunksOf(t, s.Reader, p.Disks[0])
			bad = append(bad, chunks[1], chunks[3])
		}
		if name == "b" {
			bad = append(bad, pagePath(t, s.Reader, p.Disks[0])[0])
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, spot := range bad {
		f, err := w.disk.OpenRW("/store/" + spot.Object())
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte("rotten"), spot.Place.ByteOffset()+100)
		if err == nil {
			err = f.Sync()
		}
		if cerr := f.Close(); err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
	}
	return w
}

// run finds the damage, heals it, collects what heals while only old points need it, and collects once more without them.
// An error ends it.
func (w *wound) run(t *testing.T, d disk.Disk, o Options) error {
	s, err := Open(t.Context(), "/store", o)
	if err != nil {
		return err
	}
	defer s.Close()
	points, bad := s.Points(t.Context())
	if len(bad) > 0 {
		return bad[0]
	}
	v, err := s.Verify(t.Context(), points, nil)
	if err == nil {
		err = v.Unkept
	}
	if err != nil {
		return err
	}
	again, err := tryBackup(t.Context(), s, "again", &bytesSource{data: w.want["a"]}, nil)
	if err == nil {
		_, err = tryBackup(t.Context(), s, "b", &bytesSource{data: w.want["b"]}, nil)
	}
	if err == nil {
		err = s.RemovePoint(t.Context(), again.ID)
	}
	if err == nil {
		_, err = s.Collect(t.Context(), CollectOptions{least: 4096})
	}
	for _, p := range points {
		if err == nil && p.Labels["name"] == "a" {
			err = s.RemovePoint(t.Context(), p.ID)
		}
	}
	if err == nil {
		_, err = s.Collect(t.Context(), CollectOptions{least: 4096})
	}
	return err
}

// check opens what is left: nothing reads as something else, and what is damaged heals as if nothing had happened.
func (w *wound) check(t *testing.T, d disk.Disk, index string) {
	t.Helper()
	o := faultOptions(t, d)
	o.IndexDir = index
	s, err := Open(t.Context(), "/store", o)
	if err != nil {
		t.Fatal("the store does not open:", err)
	}
	defer s.Close()
	points, bad := s.Points(t.Context())
	if len(bad) > 0 || len(points) < 2 {
		t.Fatal("points cannot be read:", len(points), bad)
	}
	for _, p := range points {
		got, err := readImage(t.Context(), s.Reader, p, 0)
		name := p.Labels["name"]
		if err == nil && !bytes.Equal(got, w.want[name]) || err != nil && !errs.Is(err, errs.Corrupt) || err != nil && name == "c" {
			t.Fatalf("point %q: %v", name, err)
		}
	}
	if _, err := s.VerifyStore(t.Context(), VerifyOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		again := mustBackup(t, s, name, &bytesSource{data: w.want[name]}, nil)
		if err := s.RemovePoint(t.Context(), again.ID); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		hurts(t, s.Reader, points)
		for _, p := range points {
			if got, err := readImage(t.Context(), s.Reader, p, 0); err != nil || !bytes.Equal(got, w.want[p.Labels["name"]]) {
				t.Errorf("point %q is not healed: %v", p.Labels["name"], err)
			}
		}
		collectAll(t, s)
		s.frames.InvalidateAll()
		s.pages.InvalidateAll()
	}
}

// TestCrashInHeal cuts the power at every sync from the discovery of damage on until what healed it is collected.
func TestCrashInHeal(t *testing.T) {
	w := newWound(t)
	before := filepath.Join(memoryDir(t), "before")
	copyFolder(t, w.index, before)
	rng := rand.New(rand.NewPCG(11, 9))
	var crashes []crash
	w.disk.OnSync(func() {
		k := crash{at: len(crashes), seed: []uint64{0, 1, 2 + rng.Uint64N(1000), 2 + rng.Uint64N(1000)}[rng.IntN(4)]}
		k.disk, k.variant, k.index = w.disk.Clone(k.seed), indexVariant(rng.IntN(int(indexVariants))), filepath.Join(memoryDir(t), "index")
		switch k.variant {
		case indexNow:
			copyFolder(t, w.index, k.index)
		case indexOlder:
			copyFolder(t, before, k.index)
		}
		crashes = append(crashes, k)
	})
	o := faultOptions(t, w.disk)
	o.IndexDir = w.index
	if err := w.run(t, w.disk, o); err != nil {
		t.Fatal(err)
	}
	w.disk.OnSync(nil)
	if len(crashes) < 30 {
		t.Fatalf("the story has only %d syncs", len(crashes))
	}
	for i, k := range crashes {
		if (testing.Short() || raceEnabled) && i%5 != 0 {
			continue
		}
		t.Run(fmt.Sprintf("sync %d-%d-%d", k.at, k.seed, k.variant), func(t *testing.T) {
			if k.variant == indexAhead {
				copyFolder(t, w.index, k.index)
			}
			w.check(t, k.disk, k.index)
		})
	}
}

// TestFaultInHeal: whatever fails, nothing reads as something else, and the next backup heals. That damage is healed and
// cannot be written down is told in the log alone, and a collection then says what it lacks.
func TestFaultInHeal(t *testing.T) {
	w := newWound(t)
	step := 5
	if testing.Short() || raceEnabled {
		step = 40
	}
	for n := 0; ; n += step {
		c := faults[n/step%len(faults)]
		under := w.disk.Clone(1)
		d := disk.NewFaulty(under, n, c.err)
		if c.forever {
			d.Forever()
		}
		o := faultOptions(t, d)
		copyFolder(t, w.index, o.IndexDir)
		err := w.run(t, d, o)
		if d.Ops() <= n {
			if err != nil || n < 100 {
				t.Fatalf("without a fault, after %d operations: %v", d.Ops(), err)
			}
			return
		}
		if err != nil && errs.KindOf(err) != c.kind && errs.KindOf(err) != errs.Corrupt {
			t.Fatalf("operation %d failed with %v, and out came %v: %v", n, c.err, errs.KindOf(err), err)
		}
		if w.check(t, under, o.IndexDir); t.Failed() {
			t.Fatalf("with operation %d failing, %s", n, c.name)
		}
	}
}

// TestAbortHeals: a session that is given up heals with what it could seal, and with nothing else.
func TestAbortHeals(t *testing.T) {
	s, dir, o := realStore(t, Options{Cutter: "fixed-64k"})
	data := noise(1, 200<<10)
	old := mustBackup(t, s, "old", &bytesSource{data: data}, nil)
	flip(t, dir, chunksOf(t, s.Reader, old.Disks[0])[1])
	fails(t, dir, o, old)
	for _, fault := range []bool{true, false} {
		x := s.Begin(old.Time, nil, nil)
		if err := x.Ingest(t.Context(), 0, &bytesSource{data: data}, nil, nil); err != nil {
			t.Fatal(err)
		}
		x.data.failed = fault // its pack is given up
		x.Abort()
		if fault {
			hurts(t, s.Reader, []*Point{old}, old)
			fails(t, dir, o, old)
		}
	}
	hurts(t, s.Reader, []*Point{old})
	reads(t, dir, o, old, data)
}
