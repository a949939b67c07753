package control

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// shortDir returns a folder that does not exist yet, by a path that is short enough for a lab.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "l")
}

func write(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// names returns what is in a folder: nil if it is not there.
func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestOnlyAFolderOfItsOwnIsTaken(t *testing.T) {
	for _, c := range []struct {
		name string
		kind errs.Kind // 0: it is taken
		make func(dir string)
		left []string // what was there before and has to be there afterwards
	}{
		{"none", 0, func(string) {}, nil},
		{"empty", 0, func(dir string) { _ = os.Mkdir(dir, 0o755) }, nil},
		{"a log alone, of one that did not get far", 0, func(dir string) { write(t, dir, LogName) }, []string{LogName}},
		{"an earlier lab's", 0, func(dir string) {
			write(t, dir, lockName, LogName, infoName, centerName+"/ca.pem", nodeName+"/store/lock", tempName+"/x")
		}, []string{LogName, lockName}},
		{"an earlier lab's, with something in it", 0, func(dir string) {
			write(t, dir, lockName, "mine.img", nodeName+"/x")
		}, []string{"mine.img"}},
		{"somebody else's", errs.Exists, func(dir string) {
			write(t, dir, "precious", LogName)
		}, []string{"precious", LogName}},
		{"a store, which has a lock too", errs.Exists, func(dir string) {
			write(t, dir, "lock", "superblock")
		}, []string{"lock", "superblock"}},
		{"one with a folder of such a name", errs.Exists, func(dir string) {
			write(t, dir, nodeName+"/x")
		}, []string{nodeName}},
		{"a file", errs.Denied, func(dir string) { write(t, filepath.Dir(dir), filepath.Base(dir)) }, nil},
		{"a link", errs.Denied, func(dir string) { _ = os.Symlink(t.TempDir(), dir) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := shortDir(t)
			c.make(dir)
			f, err := Take(dir)
			if c.kind == 0 && err != nil || c.kind != 0 && (!errs.Is(err, c.kind) || errs.NextStep(err) == "") {
				t.Fatalf("error %v, next step %q", err, errs.NextStep(err))
			}
			var all []string
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				all = names(t, dir)
			}
			for _, name := range c.left {
				if !slices.Contains(all, name) {
					t.Errorf("%s is gone; there is %v", name, all)
				}
			}
			if err != nil {
				if len(c.left) != len(all) {
					t.Errorf("there is %v, and was %v", all, c.left)
				}
				return
			}
			defer f.Close()
			begunAnew(t, dir)
		})
	}
}

// begunAnew fails if something of an earlier lab is left in a folder.
func begunAnew(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{infoName, centerName, nodeName, filepath.Join(tempName, "x")} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if err := os.WriteFile(filepath.Join(TempDir(dir), "y"), nil, 0o600); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, LogName)); err == nil && len(b) > 0 {
		t.Errorf("the log still says %q", b)
	}
}

func TestAFolderOfAnotherUserIsNotTaken(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a folder to somebody else; `make test` runs it")
	}
	dir := shortDir(t)
	write(t, dir, lockName, LogName)
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if _, err := Take(dir); !errs.Is(err, errs.Denied) {
		t.Errorf("error %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, LogName)); err != nil || len(b) == 0 {
		t.Errorf("the log was written to: %q, %v", b, err)
	}
}

func TestAPathIsLongEnoughForTheSocketsOrRefused(t *testing.T) {
	dir := "/" + strings.Repeat("x", MaxDir-len("/"))
	if len(filepath.Join(dir, longestSocket)) != maxSocketPath {
		t.Errorf("in a folder of %d bytes the longest socket has not %d", MaxDir, maxSocketPath)
	}
	if err := Check(dir); err != nil {
		t.Errorf("%d bytes: %v", len(dir), err)
	}
	if err := Check(dir + "x"); !errs.Is(err, errs.Invalid) || errs.NextStep(err) == "" {
		t.Errorf("%d bytes: %v", len(dir)+1, err)
	}
}

func TestAFolderIsTakenOnce(t *testing.T) {
	dir := shortDir(t)
	f, err := Take(dir)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, nodeName+"/x")
	if err := Check(dir); !errs.Is(err, errs.Exists) || !strings.Contains(errs.NextStep(err), "holdfast-lab down") {
		t.Errorf("error %v, next step %q", err, errs.NextStep(err))
	}
	if _, err := Take(dir); !errs.Is(err, errs.Exists) {
		t.Errorf("error %v", err)
	}
	if got := names(t, filepath.Join(dir, nodeName)); len(got) != 1 {
		t.Errorf("the one that was refused has removed something: %v", got)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Check(dir); err != nil {
		t.Error(err)
	}
}

// TestALockThatWasRemovedIsNotBelieved: two labs must not share a folder because a third one went away meanwhile.
func TestALockThatWasRemovedIsNotBelieved(t *testing.T) {
	dir := shortDir(t)
	f, err := Take(dir)
	if err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(filepath.Join(dir, lockName)) // as one that has opened it and not locked it yet
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if _, err := claim(old); !errs.Is(err, errs.Busy) {
		t.Errorf("a lock that is held: %v", err)
	}
	if err := f.remove(); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder is still there: %v", err)
	}
	if there, err := claim(old); there || err != nil {
		t.Errorf("a lock that was removed: %v, %v", there, err)
	}
	next, err := Take(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if there, err := claim(old); there || err != nil {
		t.Errorf("a lock that was removed and made again: %v, %v", there, err)
	}
}

func TestWhatALabSaidLast(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	for _, c := range []struct{ log, problem, next string }{
		{"", "", ""},
		{"time=1 level=INFO\nholdfast-lab: it broke: because\nDo this.\n", "it broke: because", "Do this."},
		{"holdfast-lab: old\nOld.\nmore\nholdfast-lab: new\n", "new", ""},
		{"panic: oh\n\ngoroutine 1\nmain.go:1\n", "panic: oh", ""},
		{"killed\n", "killed", ""},
	} {
		if err := os.WriteFile(log, []byte(c.log), 0o600); err != nil {
			t.Fatal(err)
		}
		if problem, next := Said(log); problem != c.problem || next != c.next {
			t.Errorf("%q: %q and %q", c.log, problem, next)
		}
	}
	if problem, next := Said(log + ".gone"); problem != "" || next != "" {
		t.Errorf("without a log: %q and %q", problem, next)
	}
}
