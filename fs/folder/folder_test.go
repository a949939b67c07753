package folder

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/fstest"
)

// fixedSpace keeps the suite from being disturbed by others who use the same disk.
func fixedSpace(context.Context) (fs.Space, error) {
	return fs.Space{TotalBytes: 1 << 40, FreeBytes: 1 << 39, TotalFiles: 1000, FreeFiles: 500}, nil
}

func mustOpen(t *testing.T, dir string) *Tree {
	t.Helper()
	tree, err := Open(dir, Options{Space: fixedSpace})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	return tree
}

func newDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "domain")
	makeDir(t, dir)
	return dir
}

func TestSuite(t *testing.T) {
	fstest.Test(t, func(t *testing.T) fs.Tree { return mustOpen(t, newDir(t)) })
}
