package local

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/storetest"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func TestBackend(t *testing.T) {
	storetest.TestBackend(t, func(t *testing.T) backend.Backend {
		return New(disk.OS{}, filepath.Join(t.TempDir(), "store"))
	})
}

// TestStrayFiles puts in the folder what others leave there. None of it is listed, and all of it is still there.
func TestStrayFiles(t *testing.T) {
	root := t.TempDir()
	l := New(disk.OS{}, root)
	if err := l.Put(t.Context(), "packs/a", nil); err != nil {
		t.Fatal(err)
	}
	strays := []string{"lost+found/x", ".hidden", "packs/.nfs0001", "packs/README", "packs/b.tmp", "packs/c.tmp/d", "packs/e.open/f", "packs/ä", "packs/.x/y"}
	for _, s := range strays {
		file := filepath.Join(root, s)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(root, "packs/link")); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"", "packs/", "packs/c", "packs/b"} {
		got, err := l.List(t.Context(), prefix)
		if err != nil || len(got) > 1 || len(got) == 1 && got[0].Name != "packs/a" {
			t.Errorf("List %q: %v, %v", prefix, got, err)
		}
	}
	for _, name := range []string{"packs/b.tmp", "packs/e.open"} {
		if err := l.Remove(t.Context(), name); !errs.Is(err, errs.Invalid) {
			t.Errorf("Remove %s: %v", name, err)
		}
	}
	for _, s := range strays {
		if got, err := os.ReadFile(filepath.Join(root, s)); err != nil || string(got) != s {
			t.Errorf("%s: %q, %v", s, got, err)
		}
	}
}

// TestPutRemovesItsLeftover: what an earlier life of the same Put left is replaced, not taken for the object.
func TestPutRemovesItsLeftover(t *testing.T) {
	root := t.TempDir()
	l := New(disk.OS{}, root)
	if err := os.WriteFile(filepath.Join(root, "a.tmp"), []byte("half of it"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Open(t.Context(), "a"); !errs.Is(err, errs.NotFound) {
		t.Errorf("Open: %v", err)
	}
	if err := l.Put(t.Context(), "a", []byte("all")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadDir(root); err != nil || len(got) != 1 || got[0].Name() != "a" {
		t.Errorf("%v, %v", got, err)
	}
}

// readDirs is a disk that notes which folders are read.
type readDirs struct {
	disk.OS
	seen []string
}

func (d *readDirs) ReadDir(name string) ([]os.DirEntry, error) {
	d.seen = append(d.seen, filepath.Base(name))
	return d.OS.ReadDir(name)
}

// TestListCost: only folders that can hold a name with the prefix are read.
func TestListCost(t *testing.T) {
	d := &readDirs{}
	l := New(d, filepath.Join(t.TempDir(), "root"))
	for _, name := range []string{"packs/00/a", "packs/01/b", "points/x/c"} {
		if err := l.Put(t.Context(), name, nil); err != nil {
			t.Fatal(err)
		}
	}
	for prefix, want := range map[string][]string{
		"packs/00/": {"00"},
		"packs/01":  {"packs", "01"},
		"po":        {"root", "points", "x"},
		"none":      {"root"},
	} {
		d.seen = nil
		if _, err := l.List(t.Context(), prefix); err != nil || !slices.Equal(d.seen, want) {
			t.Errorf("List %q read %v, want %v; %v", prefix, d.seen, want, err)
		}
	}
}

// TestSweep takes away unfinished files of a folder, and nothing else.
func TestSweep(t *testing.T) {
	root := t.TempDir()
	l := New(disk.OS{}, root)
	if err := l.Sweep(t.Context(), "points"); err != nil {
		t.Errorf("without a folder: %v", err)
	}
	if err := l.Put(t.Context(), "points/a", nil); err != nil {
		t.Fatal(err)
	}
	stay := []string{"points/a", "points/README.tmp", "points/.x.tmp", "points/b.open", "other.tmp", "points/dir.tmp/x"}
	for _, s := range append([]string{"points/a.tmp", "points/0123.tmp"}, stay...) {
		file := filepath.Join(root, s)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Sweep(t.Context(), "points"); err != nil {
		t.Fatal(err)
	}
	for _, s := range stay {
		if _, err := os.Stat(filepath.Join(root, s)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(root, "points/[a0]*.tmp")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
