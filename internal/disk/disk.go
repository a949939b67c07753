// Package disk is the seam between Holdfast and the disks it lives on: every byte the store, an overlay or a journal
// keeps goes through a Disk. Three implementations exist: OS (the real one), Crash (in memory; can be cloned as a power
// cut might have left it) and Faulty (a wrapper that fails chosen operations).
//
// What a caller may rely on, and what the crash disk takes away when a caller relies on more:
//
//  1. Data written with WriteAt is durable only after Sync of that file returned nil. Before that any subset of the
//     unsynced writes, at sector grain, may survive a crash.
//  2. A name (created, renamed, removed) is durable only after SyncDir of its folder returned nil. Before that each
//     change of names may independently survive or not: also a removal.
//  3. After a failed Sync the state of the unsynced data is unknown for ever: the file is poisoned and is never synced
//     again by the caller.
//  4. Rename replaces the target atomically.
//
// Publish is the one durable way to make a whole small file. The package knows no format. Paths are slash-separated
// and as the operating system takes them. All methods may be called from several goroutines at once.
package disk

import (
	"io"
	"io/fs"
	"path"
	"syscall"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// File is an open file. WriteAt extends it as needed; a gap reads as zeros.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
	Truncate(size int64) error
}

// Sizer is implemented by files that know their size; all Disks here return such files. Use Size.
type Sizer interface {
	// Size returns the length in bytes.
	Size() (int64, error)
}

// Puncher is implemented by files that can give back the space of a range, which then reads as zeros.
type Puncher interface {
	// Punch frees [off, off+n). A range may extend past the end; the size does not change.
	Punch(off, n int64) error
}

// Occupier is implemented by files that know what they take on their disk. Use Occupied.
type Occupier interface {
	// Occupied returns the bytes that the file takes, holes left out, and how many names it has.
	Occupied() (n int64, links int, err error)
}

// Disk is a file system as far as Holdfast uses one. It has more than five methods: docs/adr/0001 says why.
type Disk interface {
	// Open opens an existing file for reading.
	Open(name string) (File, error)
	// OpenRW opens an existing file for reading and writing.
	OpenRW(name string) (File, error)
	// Create makes a new file, mode 0600 before the umask, and fails with fs.ErrExist if the name is taken.
	Create(name string) (File, error)
	// Rename moves a file over whatever the new name holds.
	Rename(oldName, newName string) error
	// Remove deletes a file or an empty folder.
	Remove(name string) error
	// MkdirAll makes a folder and its parents, mode 0700, and syncs the parent of each folder it made.
	MkdirAll(name string) error
	// ReadDir lists a folder sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// SyncDir makes the names in a folder durable.
	SyncDir(name string) error
}

// Size returns the length of an open file in bytes.
func Size(f File) (int64, error) {
	if s, ok := f.(Sizer); ok {
		return s.Size()
	}
	return 0, errs.Text("size of file", "", errs.Bug, "the file does not implement disk.Sizer")
}

// Occupied returns the bytes that an open file takes on its disk, and how many names it has.
func Occupied(f File) (n int64, links int, err error) {
	if o, ok := f.(Occupier); ok {
		return o.Occupied()
	}
	return 0, 0, errs.Text("measure file", "", errs.Bug, "the file does not implement disk.Occupier")
}

// OccupiedBy returns the bytes that a file in a list takes on its disk, or its size where the disk does not say.
func OccupiedBy(i fs.FileInfo) int64 {
	switch st := i.Sys().(type) {
	case *syscall.Stat_t:
		return st.Blocks * 512
	case occupied:
		return int64(st)
	}
	return i.Size()
}

// ReadFile returns a whole file, refusing one that is larger than limit bytes.
func ReadFile(d Disk, name string, limit int64) ([]byte, error) {
	f, err := d.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := Size(f)
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, errs.Text("read file", name, errs.Corrupt, "larger than anything we write there")
	}
	buf := make([]byte, n)
	if _, err := f.ReadAt(buf, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return buf, nil
}

// TempSuffix ends the names of files that Publish has not finished; they are garbage after a crash.
const TempSuffix = ".tmp"

// Publish makes data the content of name, durably and atomically: write beside it, check the length, sync, close,
// rename, sync the folder. After an error the old content (or absence) of name is still there or, if only the last
// sync failed, either of the two. Only one Publish of a name may run at a time.
func Publish(d Disk, name string, data []byte) error {
	tmp := name + TempSuffix
	if err := d.Remove(tmp); err != nil && !errs.Is(err, errs.NotFound) {
		return errs.Wrap("publish", name, err)
	}
	if err := writeWhole(d, tmp, data); err != nil {
		_ = d.Remove(tmp) // best effort: a leftover is removed by the next Publish
		return errs.Wrap("publish", name, err)
	}
	if err := d.Rename(tmp, name); err != nil {
		_ = d.Remove(tmp)
		return errs.Wrap("publish", name, err)
	}
	return errs.Wrap("publish", name, d.SyncDir(path.Dir(name)))
}

func writeWhole(d Disk, name string, data []byte) error {
	f, err := d.Create(name)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		var n int64
		if n, err = Size(f); err == nil && n != int64(len(data)) {
			err = errs.Text("write", name, errs.Corrupt, "the file is not as long as what was written")
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
