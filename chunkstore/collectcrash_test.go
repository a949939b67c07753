package chunkstore

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/disk"
)

// leftover is a store with points that share much, of which one is removed, for collections that fail or are cut short.
type leftover struct {
	disk  *disk.Crash
	index string
	want  map[string][]byte
	must  []string
}

// newLeftover makes one on a disk where all is synced. With older, a collection was there before, and packs have rests.
func newLeftover(t *testing.T, older bool) *leftover {
	a, c := noise(1, 330<<10), noise(3, 200<<10)
	l := &leftover{disk: disk.NewCrash(), must: []string{"a", "c"}, want: map[string][]byte{
		"a": a, "b": slices.Concat(noise(2, 128<<10), a[64<<10:192<<10], noise(4, 192<<10)), "c": c,
		"old": slices.Concat(noise(6, 64<<10), c[:64<<10], noise(7, 64<<10)),
	}}
	l.want["again"] = slices.Concat(l.want["b"][128<<10:], noise(8, 64<<10), l.want["old"])
	makeStore(t, l.disk, "/store", fixedSuperblock())
	o := faultOptions(t, l.disk)
	l.index = o.IndexDir
	s, err := Open(t.Context(), "/store", o)
	if err != nil {
		t.Fatal(err)
	}
	points := map[string]*Point{}
	for _, name := range []string{"old", "b", "a", "c"} {
		if points[name], err = tryBackup(t.Context(), s, name, &bytesSource{data: l.want[name]}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"old", "b"} {
		if err := s.RemovePoint(t.Context(), points[name].ID); err != nil {
			t.Fatal(err)
		}
		if name == "old" && older && collectAll(t, s) == 0 {
			t.Fatal("the first collection gave nothing back")
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return l
}

func collectAll(t *testing.T, s *Store) (freed int64) {
	t.Helper()
	res, err := s.Collect(t.Context(), CollectOptions{least: 4096})
	if err != nil {
		t.Fatal(err)
	}
	if res.PacksSkipped > 0 {
		t.Errorf("%d packs were left alone", res.PacksSkipped)
	}
	return res.FreedBytes
}

// check opens what is left after a crash or a fault, goes on with it, and collects to the end.
func (l *leftover) check(t *testing.T, d disk.Disk, index string) {
	t.Helper()
	o := faultOptions(t, d)
	o.IndexDir = index
	s, err := Open(t.Context(), "/store", o)
	if err != nil {
		t.Fatal("the store does not open:", err)
	}
	checkPoints(t, s.Reader, l.want, l.must...)
	checkStore(t, s.Reader)
	l.backup(t, s, "again")
	collectAll(t, s)
	if freed := collectAll(t, s); freed != 0 {
		t.Errorf("a second collection gave back %d bytes", freed)
	}
	checkPoints(t, s.Reader, l.want, append(l.must, "again")...)
	checkStore(t, s.Reader)
	l.backup(t, s, "b")
	if err := s.resetIndex(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(t.Context(), "/store", o); err != nil {
		t.Fatal("the store does not open with a new index:", err)
	}
	defer s.Close()
	l.backup(t, s, "old")
	points, _ := s.Points(t.Context())
	for _, p := range points {
		if err := s.RemovePoint(t.Context(), p.ID); err != nil {
			t.Error(err)
		}
	}
	for _, p := range points {
		untilReleased(t, s, p.ID) // by the images that were read above
	}
	collectAll(t, s)
	for _, prefix := range []string{"data/", "meta/", "removed/", "points/"} {
		if left, err := s.b.List(t.Context(), prefix); err != nil || len(left) > 0 {
			t.Errorf("without points there is still %v, %v", left, err)
		}
	}
}

// backup makes a point whose chunks were given back, or about to be, and reads it.
func (l *leftover) backup(t *testing.T, s *Store, name string) {
	t.Helper()
	p, err := tryBackup(t.Context(), s, name, &bytesSource{data: l.want[name]}, nil)
	if err != nil {
		t.Fatal("the next backup:", err)
	}
	if got, err := readImage(t.Context(), s.Reader, p, 0); err != nil || !bytes.Equal(got, l.want[name]) {
		t.Errorf("the next backup is not what was stored: %v", err)
	}
}

// TestCrashInCollect cuts the power at every sync of a collection. The index, on another disk, is as it was then, or lost,
// or that of before the collection, or that of after it.
func TestCrashInCollect(t *testing.T) {
	for _, older := range []bool{false, true} {
		l := newLeftover(t, older)
		before := filepath.Join(memoryDir(t), "before")
		copyFolder(t, l.index, before)
		rng := rand.New(rand.NewPCG(9, 9))
		var crashes []crash
		l.disk.OnSync(func() {
			k := crash{at: len(crashes), seed: []uint64{0, 1, 2 + rng.Uint64N(1000), 2 + rng.Uint64N(1000)}[rng.IntN(4)]}
			k.disk, k.variant, k.index = l.disk.Clone(k.seed), indexVariant(rng.IntN(int(indexVariants))), filepath.Join(memoryDir(t), "index")
			switch k.variant {
			case indexNow:
				copyFolder(t, l.index, k.index)
			case indexOlder:
				copyFolder(t, before, k.index)
			}
			crashes = append(crashes, k)
		})
		o := faultOptions(t, l.disk)
		o.IndexDir = l.index
		s, err := Open(t.Context(), "/store", o)
		if err != nil {
			t.Fatal(err)
		}
		if collectAll(t, s) == 0 {
			t.Error("nothing was given back")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		l.disk.OnSync(nil)
		if len(crashes) < 15 {
			t.Fatalf("a collection has only %d syncs", len(crashes))
		}
		for i, k := range crashes {
			if (testing.Short() || raceEnabled) && i%5 != 0 {
				continue
			}
			t.Run(fmt.Sprintf("older %v/sync %d-%d-%d", older, k.at, k.seed, k.variant), func(t *testing.T) {
				if k.variant == indexAhead {
					copyFolder(t, l.index, k.index)
				}
				l.check(t, k.disk, k.index)
			})
		}
		l.check(t, l.disk, l.index)
	}
}

// TestFaultInCollect: whatever fails in a collection comes out, or is told in the log, and hurts nobody.
func TestFaultInCollect(t *testing.T) {
	l := newLeftover(t, true)
	atEveryOperation(t, l.disk, func(t *testing.T, under *disk.Crash, d disk.Disk, _ bool) error {
		o := faultOptions(t, d)
		copyFolder(t, l.index, o.IndexDir)
		s, err := Open(t.Context(), "/store", o)
		if err != nil {
			return err
		}
		_, err = s.Collect(t.Context(), CollectOptions{least: 4096})
		_ = s.Close()
		l.check(t, under, o.IndexDir)
		return err
	})
}
