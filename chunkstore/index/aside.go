package index

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/disk"
)

// asideMark is what the name of a folder that was moved aside has behind the index's own; the time follows, in
// nanoseconds since 1970.
const asideMark = ".bad-"

// moveAside moves the folder away unless there is nothing in it to look at, makes a new one and locks it.
func (x *Index) moveAside() error {
	names, err := os.ReadDir(x.dir)
	if err != nil || len(names) == 0 {
		return err
	}
	if unfinished(names) {
		return x.empty(names)
	}
	aside := x.dir + asideMark + strconv.FormatInt(time.Now().UnixNano(), 10)
	if err := os.Rename(x.dir, aside); err != nil {
		return err
	}
	if err := (disk.OS{}).SyncDir(filepath.Dir(x.dir)); err != nil {
		return err
	}
	lock, err := lockFolder(x.dir)
	if err != nil {
		return err
	}
	_ = x.lock.Close()
	x.lock = lock
	return nil
}

// badgerFiles are the files that badger makes under one name, or makes before it renames them.
var badgerFiles = []string{"MANIFEST", "MANIFEST-REWRITE", "KEYREGISTRY", "REWRITE-KEYREGISTRY", "DISCARD", "LOCK"}

// unfinished tells a folder whose making was cut short: it has what badger makes first, and neither the state file,
// which is written last, nor a table. There is nothing in it to look at. A file that badger does not make is
// somebody's.
func unfinished(names []os.DirEntry) bool {
	for _, n := range names {
		switch name := n.Name(); {
		case n.IsDir():
			return false
		case slices.Contains(badgerFiles, name):
		case strings.HasSuffix(name, ".mem"), strings.HasSuffix(name, ".vlog"), name == stateName+disk.TempSuffix:
		default:
			return false
		}
	}
	return true
}

// empty removes what is in the folder, files only: whatever else lies there is not badger's.
func (x *Index) empty(names []os.DirEntry) error {
	for _, n := range names {
		if err := os.Remove(filepath.Join(x.dir, n.Name())); err != nil {
			return err
		}
	}
	return (disk.OS{}).SyncDir(x.dir)
}

// dropOlderAsides removes the folders that were moved aside from dir, but for the newest. It runs at every Open, not
// when a folder is moved aside, since a kill may come behind the move.
func dropOlderAsides(dir string) error {
	parent, prefix := filepath.Dir(dir), filepath.Base(dir)+asideMark
	all, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	var times []uint64
	for _, d := range all {
		rest, ours := strings.CutPrefix(d.Name(), prefix)
		if at, err := strconv.ParseUint(rest, 10, 64); ours && err == nil && strconv.FormatUint(at, 10) == rest {
			times = append(times, at)
		}
	}
	slices.Sort(times)
	for _, at := range times[:max(len(times)-1, 0)] {
		err = errors.Join(err, os.RemoveAll(filepath.Join(parent, prefix+strconv.FormatUint(at, 10))))
	}
	return err
}
