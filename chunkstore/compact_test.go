package chunkstore

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/disk"
)

// prose is n bytes that compress, better with care than in haste, and hold no two equal chunks.
func prose(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 4))
	var words [300][]byte
	for i := range words {
		words[i] = fmt.Appendf(nil, "%x ", rng.Uint64()>>(8*(1+rng.IntN(6))))
	}
	b := make([]byte, 0, n+32)
	for len(b) < n {
		b = append(b, words[min(rng.IntN(len(words)), rng.IntN(len(words)))]...)
	}
	return b[:n]
}

func mustCompact(t *testing.T, s *Store, o CompactOptions) CompactResult {
	t.Helper()
	res, err := s.Compact(t.Context(), o)
	if err != nil || res.Damaged > 0 {
		t.Fatal(res, err)
	}
	return res
}

// TestCompact makes packs compact while an older reader goes on, and goes on with backups, removals, collections and a
// new index.
func TestCompact(t *testing.T) {
	s, dir, o := realStore(t, Options{PackSize: 1 << 20, CacheBytes: 1})
	data := map[string][]byte{"a": prose(1, 5<<20), "b": prose(2, 3<<20)}
	points := map[string]*Point{}
	for name, b := range data {
		p, err := tryBackup(t.Context(), s, name, &bytesSource{data: b}, nil)
		if err != nil {
			t.Fatal(err)
		}
		points[name] = p
	}
	other, err := OpenReader(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	checkPoints(t, other, data, "a", "b")
	if res := mustCompact(t, s, CompactOptions{MinAge: time.Hour}); res.Packs != 0 {
		t.Errorf("packs that are too young: %+v", res)
	}
	before, packs := occupiedBy(t, s.Reader)
	told := 0
	res := mustCompact(t, s, CompactOptions{Progress: func(r CompactResult) { told = r.Looked }})
	after, _ := occupiedBy(t, s.Reader)
	if res.Packs == 0 || res.Freed() <= 0 || before-after != res.Freed() || told != res.Total || int64(res.Total) > packs {
		t.Errorf("%+v: %d bytes in %d packs before, %d after, told of %d", res, before, packs, after, told)
	}
	t.Logf("%d packs came down to %d %%", res.Packs, 100*res.AfterBytes/res.BeforeBytes)
	if again := mustCompact(t, s, CompactOptions{}); again.Packs != 0 {
		t.Errorf("a second time: %+v", again)
	}
	st, err := s.Status(t.Context())
	if err != nil || st.CompactPacks != int64(res.Packs) || st.Packs < int64(res.Packs) {
		t.Errorf("status: %+v, %v", st, err)
	}
	onCompact(t, s, other, data["a"], points["b"])
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	o.IndexDir = filepath.Join(memoryDir(t), "new")
	s = reopen(t, dir, o)
	checkCompacted(t, s, other, data["a"])
}

// onCompact goes on with compact packs: a backup that finds all, then without a point.
func onCompact(t *testing.T, s *Store, other *Reader, a []byte, b *Point) {
	t.Helper()
	checkCompacted(t, s, other, a)
	if err := s.RemovePoint(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	untilReleased(t, s, b.ID)
	if res := mustCollect(t, s); res.Chunks == 0 || res.PacksSkipped > 0 {
		t.Errorf("a collection of compact packs: %+v", res)
	}
	checkCompacted(t, s, other, a)
}

// checkCompacted reads everything, through this store and through a reader from before, and backs point a up again.
func checkCompacted(t *testing.T, s *Store, other *Reader, a []byte) {
	t.Helper()
	x := s.Begin(time.Now(), map[string]string{"name": "a"}, nil)
	if err := x.Ingest(t.Context(), 0, &bytesSource{data: a}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Commit(t.Context()); err != nil || x.Stats().NewBytes != 0 {
		t.Errorf("what lies in compact packs is not found: %+v, %v", x.Stats(), err)
	}
	for _, r := range []*Reader{other, s.Reader} {
		points, bad := r.Points(t.Context())
		for _, p := range points {
			got, err := readImage(t.Context(), r, p, 0)
			if err != nil || p.Labels["name"] == "a" && !bytes.Equal(got, a) {
				t.Errorf("point %v: %v", p.Labels, err)
			}
		}
		if len(points) < 2 || len(bad) > 0 {
			t.Errorf("%d points, %v", len(points), bad)
		}
	}
	checkStore(t, s.Reader)
}

// TestCompactNotWorthIt: what does not compress stays as it is, and is not tried twice.
func TestCompactNotWorthIt(t *testing.T) {
	s, _, _ := realStore(t, Options{PackSize: 1 << 20})
	if _, err := tryBackup(t.Context(), s, "a", &bytesSource{data: noise(1, 2<<20)}, nil); err != nil {
		t.Fatal(err)
	}
	for _, total := range []int{2, 0} {
		if res := mustCompact(t, s, CompactOptions{}); res.Packs != 0 || res.Total != total {
			t.Errorf("%+v, want %d packs looked at", res, total)
		}
	}
	infos, err := s.b.List(t.Context(), "data/")
	if err != nil || len(infos) != 2 {
		t.Errorf("something is left: %v, %v", infos, err)
	}
}

// TestCompactLeavesDamage: a pack with damage in it is left alone, so that nothing damaged gets a new signature.
func TestCompactLeavesDamage(t *testing.T) {
	s, dir, o := realStore(t, Options{PackSize: 1 << 20, CacheBytes: 1})
	if _, err := tryBackup(t.Context(), s, "a", &bytesSource{data: prose(1, 6<<20)}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, packName(pack.Data, 1))
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 4
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, dir, o)
	res, err := s.Compact(t.Context(), CompactOptions{})
	if err != nil || res.Damaged != 1 || res.Packs != res.Total-1 {
		t.Errorf("%+v, %v", res, err)
	}
	if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, b) {
		t.Errorf("the damaged pack was touched: %v", err)
	}
}

// TestCompactEnds: what is cut short by its context or by a full disk leaves everything as it was.
func TestCompactEnds(t *testing.T) {
	l := newLeftover(t, false)
	o := faultOptions(t, l.disk)
	o.IndexDir = l.index
	s, err := Open(t.Context(), "/store", o)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	if res := mustCompact(t, s, CompactOptions{worth: 200, Continue: func() bool { asked++; return asked < 2 }}); res.Packs != 1 {
		t.Errorf("asked %d times: %+v", asked, res)
	}
	_ = s.Close()
	l.check(t, l.disk, l.index)
}

// TestCrashInCompact cuts the power at every sync of a compaction.
func TestCrashInCompact(t *testing.T) {
	for _, older := range []bool{false, true} {
		l := newLeftover(t, older)
		rng := rand.New(rand.NewPCG(9, 9))
		var crashes []crash
		l.disk.OnSync(func() {
			k := crash{at: len(crashes), seed: []uint64{0, 1, 2 + rng.Uint64N(1000), 2 + rng.Uint64N(1000)}[rng.IntN(4)]}
			k.disk, k.variant, k.index = l.disk.Clone(k.seed), indexVariant(rng.IntN(2)), filepath.Join(memoryDir(t), "index")
			if k.variant == indexNow {
				copyFolder(t, l.index, k.index)
			}
			crashes = append(crashes, k)
		})
		o := faultOptions(t, l.disk)
		o.IndexDir = l.index
		s, err := Open(t.Context(), "/store", o)
		if err != nil {
			t.Fatal(err)
		}
		if mustCompact(t, s, CompactOptions{worth: 200, Workers: 1}).Packs < 5 {
			t.Error("hardly anything was done")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		l.disk.OnSync(nil)
		for i, k := range crashes {
			if (testing.Short() || raceEnabled) && i%5 != 0 {
				continue
			}
			t.Run(fmt.Sprintf("older %v/sync %d-%d-%d", older, k.at, k.seed, k.variant), func(t *testing.T) {
				l.check(t, k.disk, k.index)
			})
		}
		l.check(t, l.disk, l.index)
	}
}

// TestFaultInCompact: whatever fails in a compaction comes out, or is told of as damage, and hurts nobody.
func TestFaultInCompact(t *testing.T) {
	l := newLeftover(t, true)
	atEveryOperation(t, l.disk, func(t *testing.T, under *disk.Crash, d disk.Disk, _ bool) error {
		o := faultOptions(t, d)
		copyFolder(t, l.index, o.IndexDir)
		s, err := Open(t.Context(), "/store", o)
		if err != nil {
			return err
		}
		asked := 0 // two packs say it all
		_, err = s.Compact(t.Context(), CompactOptions{worth: 200, Workers: 1, Continue: func() bool { asked++; return asked < 3 }})
		_ = s.Close()
		l.check(t, under, o.IndexDir)
		return err
	})
}
