package chunkstore

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// crashStory makes a few points on a disk that can crash, and keeps at every sync what a crash there might leave.
type crashStory struct {
	t        *testing.T
	rng      *rand.Rand
	disk     *disk.Crash
	indexDir string
	want     map[string][]byte // content of every point ever begun
	must     map[string]bool   // points whose Commit has returned and whose removal has not begun
	gone     map[string]bool   // points whose removal has returned
	syncs    int
	crashes  []crash
	older    string // a copy of the index from the middle of the story
}

// crash is what a power cut leaves.
type crash struct {
	at         int
	seed       uint64
	disk       *disk.Crash
	must, gone []string
	variant    indexVariant
	index      string // a copy of the index at that moment, for indexNow
}

// indexVariant is what becomes of the index, which lies on another disk.
type indexVariant int

const (
	indexNow   indexVariant = iota // as it was when the power failed
	indexGone                      // deleted
	indexOlder                     // an older copy was put back
	indexAhead                     // the store's folder is the older copy: the index knows the end of the story
	indexVariants
)

func (c *crashStory) onSync() {
	c.syncs++
	// Every moment loses all that was not synced, or keeps all, or draws; and in turn the index is treated in each way.
	seed := []uint64{0, 1, 2 + c.rng.Uint64N(1000), 2 + c.rng.Uint64N(1000)}[c.rng.IntN(4)]
	k := crash{
		at: c.syncs, seed: seed, disk: c.disk.Clone(seed), variant: indexVariant(c.rng.IntN(int(indexVariants))),
		must: slices.Sorted(maps.Keys(c.must)), gone: slices.Sorted(maps.Keys(c.gone)),
	}
	if k.variant == indexNow {
		k.index = filepath.Join(memoryDir(c.t), "index")
		copyFolder(c.t, c.indexDir, k.index)
	}
	c.crashes = append(c.crashes, k)
}

func (c *crashStory) options(d disk.Disk, index string) Options {
	return Options{Disk: d, IndexDir: index, PackSize: 100 << 10, Unlock: WithMaster(testKey)}
}

func (c *crashStory) open() *Store {
	s, err := Open(c.t.Context(), "/store", c.options(c.disk, c.indexDir))
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *crashStory) backup(s *Store, name string, src *bytesSource, parent *Parent) *Point {
	c.want[name] = slices.Clone(src.data)
	p, err := tryBackup(c.t.Context(), s, name, src, parent)
	if err != nil {
		c.t.Fatal(err)
	}
	c.must[name] = true
	return p
}

// run tells the story: a first point, one on top of it, a session that is given up, a removal, a restart, another point.
func (c *crashStory) run() {
	data := noise(c.rng.Uint64(), 330<<10)
	s := c.open()
	first := c.backup(s, "first", &bytesSource{data: data}, nil)
	c.older = filepath.Join(memoryDir(c.t), "older")
	copyFolder(c.t, c.indexDir, c.older)

	copy(data[200<<10:], noise(c.rng.Uint64(), 80<<10))
	changed := func(b int64) bool { return b >= 200<<10/chunk.Grid && b < 280<<10/chunk.Grid }
	c.backup(s, "second", &bytesSource{data: data, changed: changed}, &Parent{first, first.Disks[0]})

	x := s.Begin(time.Now(), map[string]string{"name": "given up"}, nil)
	if err := x.Ingest(c.t.Context(), 0, &bytesSource{data: noise(c.rng.Uint64(), 250<<10)}, nil, nil); err != nil {
		c.t.Fatal(err)
	}
	x.Abort()

	delete(c.must, "first")
	if err := s.RemovePoint(c.t.Context(), first.ID); err != nil {
		c.t.Fatal(err)
	}
	c.gone["first"] = true
	if err := s.Close(); err != nil {
		c.t.Fatal(err)
	}
	s = c.open()
	c.backup(s, "third", &bytesSource{data: append(data, noise(c.rng.Uint64(), 90<<10)...)}, nil)
	if err := s.Close(); err != nil {
		c.t.Fatal(err)
	}
}

// check opens what a crash left and goes on with it.
func (c *crashStory) check(t *testing.T, k crash) {
	index := filepath.Join(memoryDir(t), "index")
	switch k.variant {
	case indexNow:
		index = k.index
	case indexOlder:
		copyFolder(t, c.older, index)
	case indexAhead:
		copyFolder(t, c.indexDir, index)
	}
	log := &logText{}
	o := c.options(k.disk, index)
	o.Logger = log.logger()
	s, err := Open(t.Context(), "/store", o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const lost = "the index knows packs that do not exist"
	if k.variant == indexNow && log.has(lost) {
		t.Error("a chunk was indexed before its pack was there for good")
	}
	checkPoints(t, s.Reader, c.want, k.must...)
	points, _ := s.Points(t.Context())
	for _, p := range points {
		if slices.Contains(k.gone, p.Labels["name"]) {
			t.Errorf("point %q was removed and is back", p.Labels["name"])
		}
	}
	want := maps.Clone(c.want)
	want["after"] = append(slices.Clone(c.want["third"]), noise(k.seed, 70<<10)...)
	if _, err := tryBackup(t.Context(), s, "after", &bytesSource{data: want["after"]}, nil); err != nil {
		t.Fatal("the next backup:", err)
	}
	checkPoints(t, s.Reader, want, append(k.must, "after")...)
	status, err := s.Status(t.Context())
	if err != nil || status.OpenPacks > 0 {
		t.Errorf("%d unfinished packs are left, %v", status.OpenPacks, err)
	}
}

// TestCrash cuts the power at every sync of a story. The index lies on another disk and is as it was then, or lost, or
// older, or newer than the store. What was acknowledged must be there, and the next backup must work.
func TestCrash(t *testing.T) {
	seeds := uint64(2)
	if testing.Short() || raceEnabled {
		seeds = 1
	}
	for seed := range seeds {
		c := &crashStory{
			t: t, rng: rand.New(rand.NewPCG(seed, 11)), disk: disk.NewCrash(), indexDir: filepath.Join(memoryDir(t), "index"),
			want: map[string][]byte{}, must: map[string]bool{}, gone: map[string]bool{},
		}
		makeStore(t, c.disk, "/store", fixedSuperblock())
		c.disk.OnSync(c.onSync)
		c.open().Close() // an index to copy from the first sync on
		c.run()
		c.disk.OnSync(nil)
		if c.syncs < 60 {
			t.Fatalf("the story has only %d syncs", c.syncs)
		}
		for _, k := range c.crashes {
			t.Run(fmt.Sprintf("seed%d/sync%d-%d-%d", seed, k.at, k.seed, k.variant), func(t *testing.T) { c.check(t, k) })
		}
	}
}

// TestCrashDuringCreate: what a Create that was cut short leaves is a store, or a folder in which one can be made.
func TestCrashDuringCreate(t *testing.T) {
	c := disk.NewCrash()
	var clones []*disk.Crash
	c.OnSync(func() {
		for seed := range uint64(6) {
			clones = append(clones, c.Clone(seed))
		}
	})
	if _, err := Create(t.Context(), "/a/store", passphrase, testWork, Options{Disk: c}); err != nil {
		t.Fatal(err)
	}
	stores := 0
	for i, k := range clones {
		_, err := Create(t.Context(), "/a/store", passphrase, testWork, Options{Disk: k})
		if err != nil && !errs.Is(err, errs.Exists) {
			t.Fatalf("clone %d: %v", i, err)
		}
		if err != nil {
			stores++
		}
		r, err := OpenReader(t.Context(), "/a/store", Options{Disk: k, Unlock: WithPassphrase(func() ([]byte, error) { return passphrase, nil })})
		if err != nil {
			t.Fatalf("clone %d cannot be opened by its passphrase: %v", i, err)
		}
		_ = r.Close()
	}
	if stores == 0 || stores == len(clones) {
		t.Errorf("%d of %d clones held a store: one side was not tried", stores, len(clones))
	}
	if _, err := OpenReader(t.Context(), "/a/store", Options{Disk: c.Clone(0), Unlock: WithPassphrase(func() ([]byte, error) { return passphrase, nil })}); err != nil {
		t.Error("Create had returned:", err)
	}
}
