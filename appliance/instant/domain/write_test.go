package domain

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, name, text string) {
	t.Helper()
	must(t, os.WriteFile(name, []byte(text), 0o600))
}

func wantText(t *testing.T, name, want string) {
	t.Helper()
	if got, err := os.ReadFile(name); err != nil || string(got) != want {
		t.Errorf("%s holds %q, want %q (%v)", name, got, want, err)
	}
}

// TestWriteOnce: after the first Write the domain is the hosts'.
func TestWriteOnce(t *testing.T) {
	s := example()
	dir := filepath.Join(t.TempDir(), "root")
	must(t, Write(dir, s))
	in := func(name string) string { return filepath.Join(dir, s.UUID, name) }

	// What hosts do: attach, take a host id, update a volume, move a disk away, keep OVFs.
	put(t, in("dom_md/metadata"), "POOL_UUID=attached\n")
	put(t, in("dom_md/ids"), "host 1 lives")
	put(t, in("images/"+s.Volumes[0].Disk+"/"+s.Volumes[0].Image+".meta"), "LEGALITY=ILLEGAL\n")
	must(t, os.RemoveAll(in("images/"+s.Volumes[1].Disk)))
	must(t, os.Remove(in("dom_md/inbox")))
	must(t, os.Mkdir(in("images/ovf-store"), 0o755))
	s.Description = "" // nobody asks any more

	must(t, Write(dir, s))
	wantText(t, in("dom_md/metadata"), "POOL_UUID=attached\n")
	wantText(t, in("dom_md/ids"), "host 1 lives")
	wantText(t, in("images/"+s.Volumes[0].Disk+"/"+s.Volumes[0].Image+".meta"), "LEGALITY=ILLEGAL\n")
	wantNames(t, in("images"), s.Volumes[0].Disk, "ovf-store")
	wantNames(t, in("dom_md"), "ids", "leases", "metadata", "outbox", "xleases")

	// The engine formats the domain when it removes it.
	must(t, os.RemoveAll(in("")))
	must(t, Write(dir, s))
	wantNames(t, dir)
}

func TestWriteRefusesASecondDomain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "root")
	s := example()
	must(t, Write(dir, s))
	s.UUID = "7f1c3d2e-9b4a-4c57-8a31-5b0c9d1e2f31"
	if err := Write(dir, s); !errs.Is(err, errs.Exists) {
		t.Error("the note names another domain:", err)
	}
	must(t, os.Remove(dir+".written"))
	if err := Write(dir, s); !errs.Is(err, errs.Exists) {
		t.Error("the folder holds another domain:", err)
	}
	wantNames(t, dir, example().UUID)
}

// TestWriteFinishes: what an earlier Write left is cleared away or kept, by how far it came.
func TestWriteFinishes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "root")
	s := example()
	must(t, os.MkdirAll(dir+".new/images/x/y", 0o755))
	put(t, dir+".new/images/x/z", "half")
	put(t, dir+".written.tmp", "half a note")
	must(t, Write(dir, s))
	wantNames(t, filepath.Dir(dir), "root", "root.written")
	wantNames(t, filepath.Join(dir, s.UUID), "dom_md", "images")
	wantNames(t, filepath.Join(dir, s.UUID, "images"), s.Volumes[0].Disk, s.Volumes[1].Disk)

	// Cut between the rename and the note: nobody has seen the domain, and it is complete.
	must(t, os.Remove(dir+".written"))
	must(t, Write(dir, s))
	wantNames(t, filepath.Dir(dir), "root", "root.written")
	wantText(t, filepath.Join(dir, s.UUID, "dom_md/metadata"), goldenMetadata)
}

// smallSpec keeps the tests with many disks quick.
func smallSpec() Spec {
	s := example()
	s.Volumes = s.Volumes[:1]
	return s
}

const crashDir = "/sessions/1/domain"

func crashWriter(d disk.Disk) writer {
	return writer{disk: d, setPerm: func(string, uint32) error { return nil }, dir: crashDir}
}

// state says what of the domain is on a disk: "none", "whole", or what is wrong with it.
func state(d disk.Disk, s Spec) string {
	root := path.Join(crashDir, s.UUID)
	if _, err := d.ReadDir(root); errs.Is(err, errs.NotFound) {
		return "none"
	}
	for _, it := range s.items() {
		name := path.Join(root, it.path)
		if it.dir {
			if _, err := d.ReadDir(name); err != nil {
				return err.Error()
			}
			continue
		}
		f, err := d.Open(name)
		if err != nil {
			return err.Error()
		}
		if n, err := disk.Size(f); err != nil || n != it.size {
			return fmt.Sprintf("%s has %d bytes, not %d (%v)", name, n, it.size, err)
		}
		if it.data != nil {
			want := it.data()
			got := make([]byte, len(want))
			if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				return fmt.Sprintf("%s has another content (%v)", name, err)
			}
		}
	}
	return "whole"
}

// TestPowerCut cuts the power before and after every sync: no disk shows a part of a domain, and the next Write finishes.
func TestPowerCut(t *testing.T) {
	s := smallSpec()
	seeds := []uint64{0, 1, 2, 3, 5, 8}
	if testing.Short() {
		seeds = []uint64{0, 2}
	}
	d := disk.NewCrash()
	seen := map[string]int{}
	cuts := 0
	d.OnSync(func() {
		cuts++
		for _, seed := range seeds {
			after := d.Clone(seed)
			found := state(after, s)
			seen[found]++
			if found != "none" && found != "whole" {
				t.Errorf("cut %d, seed %d: %s", cuts, seed, found)
			}
			if cuts%(3*step()) != 0 && found == "none" {
				continue // what is left of a domain that was begun differs little from cut to cut
			}
			if err := crashWriter(after).write(s); err != nil {
				t.Errorf("cut %d, seed %d: the next Write: %v", cuts, seed, err)
			}
			if found := state(after.Clone(0), s); found != "whole" {
				t.Errorf("cut %d, seed %d: after the next Write: %s", cuts, seed, found)
			}
		}
	})
	must(t, crashWriter(d).write(s))
	if seen["none"] == 0 || seen["whole"] == 0 || cuts < 20 {
		t.Errorf("%d cuts saw %v", cuts, seen)
	}
}

// step is how far a test goes from one operation that fails to the next.
func step() int {
	if testing.Short() {
		return 7
	}
	return 1
}

// TestFormattedStaysAway: the note is durable before hosts can do anything, also if the Write that made it was cut.
func TestFormattedStaysAway(t *testing.T) {
	s := smallSpec()
	for n := 0; ; n += step() {
		d := disk.NewCrash()
		f := disk.NewFaulty(d, n, errors.New("dead")).Forever()
		_ = crashWriter(f).write(s)
		must(t, crashWriter(d).write(s))
		must(t, crashWriter(d).removeAll(path.Join(crashDir, s.UUID)))
		must(t, d.SyncDir(crashDir))
		after := d.Clone(0)
		must(t, crashWriter(after).write(s))
		if found := state(after, s); found != "none" {
			t.Errorf("cut at operation %d, written, formatted, power cut, written: %s", n, found)
		}
		if f.Ops() <= n {
			return
		}
	}
}

// TestFaults fails every operation, once or from there on as in a process that is killed. Write says so, and the next
// one finishes.
func TestFaults(t *testing.T) {
	s := smallSpec()
	broken := errors.New("broken")
	for n := 0; ; n += step() {
		d := disk.NewCrash()
		f := disk.NewFaulty(d, n, broken)
		if n%2 == 1 {
			f.Forever()
		}
		err := crashWriter(f).write(s)
		reached := f.Ops() > n
		if reached != errors.Is(err, broken) || !reached && err != nil {
			t.Errorf("operation %d fails, and Write returns %v", n, err)
		}
		if found := state(d, s); found != "none" && found != "whole" {
			t.Errorf("operation %d fails: %s", n, found)
		}
		must(t, crashWriter(d).write(s))
		if found := state(d.Clone(0), s); found != "whole" {
			t.Errorf("operation %d fails, next Write: %s", n, found)
		}
		if !reached {
			if n < 40 {
				t.Errorf("only %d operations", n)
			}
			return
		}
	}
}

// TestModesThatCannotBeSet are errors, and nothing is shown.
func TestModesThatCannotBeSet(t *testing.T) {
	s := smallSpec()
	broken := errors.New("broken")
	for n := 0; n <= len(s.items()); n += step() {
		d := disk.NewCrash()
		w, calls := crashWriter(d), 0
		w.setPerm = func(string, uint32) error {
			calls++
			if calls > n {
				return broken
			}
			return nil
		}
		if err := w.write(s); !errors.Is(err, broken) {
			t.Errorf("call %d: %v", n, err)
		}
		if found := state(d, s); found != "none" {
			t.Errorf("call %d: %s", n, found)
		}
	}
}
