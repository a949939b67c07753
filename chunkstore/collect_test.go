package chunkstore

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/collect"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func mustCollect(t *testing.T, s *Store) *collect.Result {
	t.Helper()
	res, err := s.Collect(t.Context(), CollectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// occupiedBy returns what the packs of a store take, and how many there are.
func occupiedBy(t *testing.T, r *Reader) (n, packs int64) {
	t.Helper()
	st, err := r.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.PackBytes, st.Packs
}

// TestCollect removes points and gives their space back: of packs nobody needs all, of others what is spare. What is
// left reads as before, through this reader, through another, and after the index was built again.
func TestCollect(t *testing.T) {
	log := &logText{}
	s, dir, o := realStore(t, Options{PackSize: 2 << 20, Logger: log.logger()})
	want := map[string][]byte{"a": noise(1, 6<<20), "c": noise(3, 5<<20)}
	shared := slices.Concat(want["a"][1<<20:2<<20], noise(2, 7<<20), want["a"][4<<20:5<<20])
	want["b"] = shared
	points := map[string]*Point{}
	for _, name := range []string{"b", "a", "c"} {
		p, err := tryBackup(t.Context(), s, name, &bytesSource{data: want[name]}, nil)
		if err != nil {
			t.Fatal(err)
		}
		points[name] = p
	}
	full, _ := occupiedBy(t, s.Reader)
	if res := mustCollect(t, s); res.FreedBytes != 0 || res.Chunks+res.Pages != 0 || res.KeptChunks == 0 {
		t.Errorf("with nothing to give back: %+v", res)
	}
	if err := s.RemovePoint(t.Context(), points["b"].ID); err != nil {
		t.Fatal(err)
	}
	dry, err := s.Collect(t.Context(), CollectOptions{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if now, _ := occupiedBy(t, s.Reader); now != full {
		t.Errorf("a dry run gave back %d bytes", full-now)
	}
	res := mustCollect(t, s)
	now, _ := occupiedBy(t, s.Reader)
	// 7 MiB were b's alone; a cut is not exactly where the shared parts begin and end.
	if res.FreedBytes != full-now || res.FreedBytes < 6<<20 || res.FreedBytes > 9<<20 || res.PacksRemoved < 1 || res.PacksShrunk < 1 || res.Chunks < 7<<20/(256<<10) {
		t.Errorf("%d bytes became free, and it says %+v", full-now, res)
	}
	if d := dry.FreedBytes - res.FreedBytes; d < -64<<10 || d > 64<<10 || dry.Chunks != res.Chunks || dry.PacksRemoved != res.PacksRemoved {
		t.Errorf("a dry run said %+v, and then it was %+v", dry, res)
	}
	delete(want, "b")
	checkPoints(t, s.Reader, want, "a", "c")
	checkStore(t, s.Reader)
	if again := mustCollect(t, s); again.FreedBytes != 0 || again.Chunks != 0 {
		t.Errorf("a second collection gave back %+v", again)
	}
	if _, err := s.Point(t.Context(), points["b"].ID); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
	_ = s.Close()
	collectAgain(t, dir, o, want, shared)
	if log.has("level=WARN") || log.has("level=ERROR") {
		t.Errorf("something was wrong:\n%s", log.b.String())
	}
}

// checkStore verifies all of a store, in both ways.
func checkStore(t *testing.T, r *Reader) {
	t.Helper()
	for _, quick := range []bool{false, true} {
		v, err := r.VerifyStore(t.Context(), VerifyOptions{Quick: quick})
		if err != nil {
			t.Fatal(err)
		}
		if v.FaultCount > 0 {
			t.Errorf("%d faults, quick %v, first: %+v", v.FaultCount, quick, v.Faults[0])
		}
	}
}

// collectAgain stores and collects b again, after restarts and with new indexes.
func collectAgain(t *testing.T, dir string, o Options, want map[string][]byte, b []byte) {
	for range 3 {
		s := reopen(t, dir, o)
		checkPoints(t, s.Reader, want, "a", "c")
		p, err := tryBackup(t.Context(), s, "b", &bytesSource{data: b}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := readImage(t.Context(), s.Reader, p, 0); err != nil || !bytes.Equal(got, b) {
			t.Error("what was collected and stored again:", err)
		}
		if err := s.RemovePoint(t.Context(), p.ID); err != nil {
			t.Fatal(err)
		}
		mustCollect(t, s)
		checkStore(t, s.Reader)
		if err := s.resetIndex(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// leaves is a disk with one block of data in each of its leaves, which says what version of it this is.
type leaves []byte

func (l leaves) Size() int64 { return int64(len(l)) * manifest.LeafSize }

func (l leaves) block(n int64) []byte { return noise(uint64(n)*256+uint64(l[n])+1, chunk.Grid) }

func (l leaves) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	clear(p)
	if first := off / manifest.LeafSize * manifest.LeafSize; off == first {
		copy(p, l.block(off/manifest.LeafSize))
	}
	return len(p), nil
}

func (l leaves) Extents(_ context.Context, visit func(Extent) error) error {
	for n := range int64(len(l)) {
		at := n * manifest.LeafSize
		if err := visit(Extent{at, chunk.Grid, ExtentData}); err != nil {
			return err
		}
		if err := visit(Extent{at + chunk.Grid, manifest.LeafSize - chunk.Grid, ExtentZero}); err != nil {
			return err
		}
	}
	return nil
}

// TestCollectPages: manifests give back what only removed points needed of them, and the pages that are shared stay.
func TestCollectPages(t *testing.T) {
	s, dir, o := realStore(t, Options{})
	disk := make(leaves, 600)
	first, err := tryBackup(t.Context(), s, "first", disk, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range disk {
		if i%200 < 150 {
			disk[i]++
		}
	}
	second, err := tryBackup(t.Context(), s, "second", disk, &Parent{first, first.Disks[0]})
	if err == nil {
		err = s.RemovePoint(t.Context(), first.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	res, err := s.Collect(t.Context(), CollectOptions{least: 4096})
	if err != nil || res.PageBytes < 32<<10 || res.PacksShrunk != 2 || res.Pages != 450+4 || res.KeptPages != 600+4 {
		t.Errorf("%+v, %v", res, err)
	}
	r, err := OpenReader(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	checkStore(t, r)
	img, err := r.Image(second, 0)
	if err != nil {
		t.Fatal(err)
	}
	for n := range int64(len(disk)) {
		got := make([]byte, chunk.Grid)
		if _, err := img.ReadAt(t.Context(), got, n*manifest.LeafSize); err != nil || !bytes.Equal(got, disk.block(n)) {
			t.Fatalf("leaf %d: %v", n, err)
		}
	}
}

// TestCollectRefuses: nothing is given back while it is not known what a point needs, and one collection runs at a time.
func TestCollectRefuses(t *testing.T) {
	s, dir, _ := realStore(t, Options{CacheBytes: 1})
	var points []*Point
	for i := range uint64(3) {
		p, err := tryBackup(t.Context(), s, "x", &bytesSource{data: noise(i+1, 300<<10)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		points = append(points, p)
	}
	if err := s.RemovePoint(t.Context(), points[0].ID); err != nil {
		t.Fatal(err)
	}
	full, _ := occupiedBy(t, s.Reader)
	page := packName(pack.Meta, points[1].Disks[0].Root.Place.Pack)
	for _, name := range []string{pointName(points[1].ID), page} {
		file := filepath.Join(dir, name)
		good, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(good)
		bad[150] ^= 1
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if res, err := s.Collect(t.Context(), CollectOptions{}); !errs.Is(err, errs.Corrupt) || res.FreedBytes != 0 {
			t.Errorf("with %s damaged: %+v, %v", name, res, err)
		}
		if now, _ := occupiedBy(t, s.Reader); now != full {
			t.Errorf("with %s damaged %d bytes are gone", name, full-now)
		}
		if err := os.WriteFile(file, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.LockPoint(t.Context(), points[2].ID, time.Now().Add(time.Hour), ""); err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(dir, pointName(points[2].ID))
	if err := os.Rename(record, record+".away"); err != nil {
		t.Fatal(err)
	}
	if res, err := s.Collect(t.Context(), CollectOptions{}); !errs.Is(err, errs.Corrupt) || res.FreedBytes != 0 {
		t.Errorf("with the record of a locked point gone: %+v, %v", res, err)
	}
	if err := os.Rename(record+".away", record); err != nil {
		t.Fatal(err)
	}
	collectWaits(t, s)
}

// collectWaits gives a collection up that waits for a backup, and then lets one come to its end.
func collectWaits(t *testing.T, s *Store) {
	x := s.Begin(time.Now(), nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Collect(ctx, CollectOptions{Progress: func(p collect.Progress) {
		if p.Stage != collect.Draining {
			return
		}
		if _, err := s.Collect(t.Context(), CollectOptions{}); p.Total != 1 || !errs.Is(err, errs.Busy) {
			t.Errorf("while it waits for %d backups, another collection says %v", p.Total, err)
		}
		cancel()
	}})
	if !errs.Is(err, errs.Canceled) {
		t.Error("given up while it waits for a backup:", err)
	}
	x.Abort()
	if res := mustCollect(t, s); res.FreedBytes == 0 || res.WaitedSessions != 0 {
		t.Errorf("at last: %+v", res)
	}
	if s.Collected().IsZero() {
		t.Error("it is not known when that was")
	}
}
