package disk_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/disk/disktest"
)

func create(t *testing.T, d disk.Disk, name string) disk.File {
	t.Helper()
	f, err := d.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func write(t *testing.T, f disk.File, data []byte, off int64) {
	t.Helper()
	if _, err := f.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// outcomes clones the disk with many seeds and counts what show says of each clone.
func outcomes(c *disk.Crash, show func(*disk.Crash) string) map[string]int {
	seen := map[string]int{}
	for seed := range uint64(2000) {
		seen[show(c.Clone(seed))]++
	}
	return seen
}

// wantOutcomes demands that exactly the listed outcomes occur.
func wantOutcomes(t *testing.T, got map[string]int, want ...string) {
	t.Helper()
	for _, w := range want {
		if got[w] == 0 {
			t.Errorf("%q never happened", w)
		}
	}
	for g, n := range got {
		if !slices.Contains(want, g) {
			t.Errorf("%q happened %d times", g, n)
		}
	}
}

func listing(t *testing.T, dir string) func(*disk.Crash) string {
	return func(d *disk.Crash) string {
		names, err := disktest.List(d, dir)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(names, " ")
	}
}

// TestCloneLosesSectors: every subset of the sectors of an unsynced write can survive, a synced one always does.
func TestCloneLosesSectors(t *testing.T) {
	c := disk.NewCrash()
	f := create(t, c, "/f")
	ok(t, c.SyncDir("/"))
	write(t, f, bytes.Repeat([]byte("a"), 4*512), 0)
	ok(t, f.Sync())
	write(t, f, bytes.Repeat([]byte("b"), 3*512), 256)
	got := outcomes(c, func(d *disk.Crash) string {
		text := read(t, d, "/f")
		var s strings.Builder
		for i := 0; i < len(text); i += 256 {
			if strings.Trim(text[i:i+256], text[i:i+1]) != "" {
				t.Fatalf("a sector is torn: %q", text[i:i+256])
			}
			s.WriteByte(text[i])
		}
		return s.String()
	})
	var want []string
	for m := range 16 { // the write touches four sectors, the first and the last one by half
		s := []byte("aaaaaaaa")
		for bit, at := range [][2]int{{1, 2}, {2, 4}, {4, 6}, {6, 7}} {
			if m>>bit&1 == 1 {
				for i := at[0]; i < at[1]; i++ {
					s[i] = 'b'
				}
			}
		}
		want = append(want, string(s))
	}
	wantOutcomes(t, got, want...)
}

// TestCloneLosesSizes: a file may come out long and empty, or short by a lost truncation.
func TestCloneLosesSizes(t *testing.T) {
	c := disk.NewCrash()
	f := create(t, c, "/f")
	ok(t, c.SyncDir("/"))
	write(t, f, []byte("xy"), 0)
	show := func(d *disk.Crash) string { return fmt.Sprintf("%q", read(t, d, "/f")) }
	wantOutcomes(t, outcomes(c, show), `""`, `"xy"`, `"\x00\x00"`)
	ok(t, f.Sync())
	ok(t, f.Truncate(1))
	write(t, f, []byte("z"), 2)
	wantOutcomes(t, outcomes(c, show), `"xy"`, `"x"`, `"xyz"`, `"x\x00z"`, `"xy\x00"`, `"x\x00\x00"`)
	if err := f.(disk.Puncher).Punch(0, 1); err != nil {
		t.Fatal(err)
	}
	ok(t, f.Sync())
	wantOutcomes(t, outcomes(c, show), `"\x00\x00z"`)
}

func TestClonePunches(t *testing.T) {
	c := disk.NewCrash()
	f := create(t, c, "/f")
	ok(t, c.SyncDir("/"))
	write(t, f, bytes.Repeat([]byte("x"), 2*4096), 0)
	ok(t, f.Sync())
	ok(t, f.(disk.Puncher).Punch(0, 2*4096))
	wantOutcomes(t, outcomes(c, func(d *disk.Crash) string {
		text := read(t, d, "/f")
		return fmt.Sprintf("%q", []byte{text[0], text[4096]})
	}), `"xx"`, `"\x00x"`, `"x\x00"`, `"\x00\x00"`)
}

// TestCloneLosesNames: each change of names survives by itself, removals too, and SyncDir ends that.
func TestCloneLosesNames(t *testing.T) {
	c := disk.NewCrash()
	create(t, c, "/old")
	ok(t, c.SyncDir("/"))
	create(t, c, "/new")
	ok(t, c.Remove("/old"))
	wantOutcomes(t, outcomes(c, listing(t, "/")), "", "new", "old", "new old")
	ok(t, c.SyncDir("/"))
	wantOutcomes(t, outcomes(c, listing(t, "/")), "new")
	ok(t, c.Rename("/new", "/moved"))
	wantOutcomes(t, outcomes(c, listing(t, "/")), "new", "moved")
	create(t, c, "/made")
	ok(t, c.Rename("/made", "/moved"))
	ok(t, c.SyncDir("/"))
	wantOutcomes(t, outcomes(c, listing(t, "/")), "moved")
}

// TestSyncDirTakesWhatItRestsOn: a file that came from another folder is here once this one is synced.
func TestSyncDirTakesWhatItRestsOn(t *testing.T) {
	c := disk.NewCrash()
	ok(t, c.MkdirAll("/a"))
	ok(t, c.MkdirAll("/b"))
	ok(t, c.MkdirAll("/c"))
	create(t, c, "/a/f")
	ok(t, c.Rename("/a/f", "/b/f"))
	ok(t, c.Rename("/b/f", "/c/f"))
	create(t, c, "/a/other")
	ok(t, c.SyncDir("/c"))
	wantOutcomes(t, outcomes(c, listing(t, "/c")), "f")
	wantOutcomes(t, outcomes(c, listing(t, "/b")), "")
	wantOutcomes(t, outcomes(c, listing(t, "/a")), "", "other")
}

// TestMkdirAllIsDurable: folders are there after a crash, and the hook ran around each sync.
func TestMkdirAllIsDurable(t *testing.T) {
	c := disk.NewCrash()
	hooks := 0
	c.OnSync(func() { hooks++ })
	ok(t, c.MkdirAll("/x/y/z"))
	wantOutcomes(t, outcomes(c, listing(t, "/x/y")), "z/")
	if hooks != 6 {
		t.Errorf("the hook ran %d times for three folders", hooks)
	}
}

func TestExtremeSeeds(t *testing.T) {
	c := disk.NewCrash()
	f := create(t, c, "/f")
	write(t, f, []byte("text"), 0)
	if got := listing(t, "/")(c.Clone(0)); got != "" {
		t.Errorf("seed 0 kept %q", got)
	}
	if got := read(t, c.Clone(1), "/f"); got != "text" {
		t.Errorf("seed 1 left %q", got)
	}
	ok(t, c.SyncDir("/"))
	if got := read(t, c.Clone(0), "/f"); got != "" {
		t.Errorf("seed 0 kept %q", got)
	}
	if a, b := read(t, c.Clone(9), "/f"), read(t, c.Clone(9), "/f"); a != b {
		t.Error("one seed gave two disks")
	}
	if read(t, c, "/f") != "text" {
		t.Error("cloning changed the disk")
	}
}

// TestFaultySyncLies: a caller that syncs again after a failure loses its data.
func TestFaultySyncLies(t *testing.T) {
	c := disk.NewCrash()
	fault := errors.New("fault")
	d := disk.NewFaulty(c, 3, fault)
	f := create(t, d, "/f")        // 0
	ok(t, d.SyncDir("/"))          // 1
	write(t, f, []byte("text"), 0) // 2
	if err := f.Sync(); err != fault {
		t.Fatalf("the chosen sync said %v", err)
	}
	ok(t, f.Sync())
	if got := read(t, c.Clone(0), "/f"); got != "" {
		t.Errorf("the second sync saved %q", got)
	}
	if d.Ops() != 5 {
		t.Errorf("%d operations counted, want 5", d.Ops())
	}
}

func TestFaultyShortWrite(t *testing.T) {
	c := disk.NewCrash()
	fault := errors.New("fault")
	d := disk.NewFaulty(c, 1, fault).Forever()
	f := create(t, d, "/f")
	if n, err := f.WriteAt([]byte("text"), 0); n != 2 || err != fault {
		t.Errorf("write: %d, %v", n, err)
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); err != fault {
		t.Errorf("later operations must fail too: %v", err)
	}
	if got := read(t, c, "/f"); got != "te" {
		t.Errorf("the failed write left %q", got)
	}
}
