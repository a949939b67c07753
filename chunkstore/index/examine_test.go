package index

import (
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
)

// TestExamineByARelativeName: a store may be named from the folder above it.
func TestExamineByARelativeName(t *testing.T) {
	dir := t.TempDir()
	x := open(t, filepath.Join(dir, "index"), small)
	var entries []Entry
	for i := range 2000 { // enough for a table
		entries = append(entries, Entry{ID: chunk.ID{byte(i), byte(i >> 8), 1}, Place: placeOf(i)})
	}
	must(t, x.Put(entries))
	must(t, x.Close())
	if tables, err := filepath.Glob(filepath.Join(dir, "index", "*.sst")); err != nil || len(tables) == 0 {
		t.Fatalf("the index has the tables %v, %v", tables, err)
	}
	t.Chdir(dir)
	if err := Examine("index", storeA); err != nil {
		t.Error(err)
	}
}
