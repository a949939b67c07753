// Package local keeps the store's objects as files in one folder, through the disk seam only.
//
// Terms. The root is the folder; an object's name is its path below it. A long object that is not sealed lies under
// its name with ".open" behind it, a small one that Put has not finished with ".tmp".
//
// Invariants:
//
//  1. What Put, Sync, Seal, Remove and Replace have acknowledged is there after a power cut: data is synced before a
//     name appears, and the folder, with each new parent, is synced before the call returns.
//  2. A name is never overwritten, but by Replace. The check and the rename are two steps: the store's lock, which
//     lets one writer in, makes them one.
//  3. After the first error an Appender does nothing any more: the state of data that a failed sync should have
//     covered is unknown for ever.
//  4. Files that are not of our making (names we would not give) are neither listed nor touched.
//  5. Space of a file that has other names as well is not given back: they belong to somebody else's copy.
//  6. The cost of List follows the prefix: folders beside it are not read.
//
// A Local may be used by many goroutines, one name by one writer. It is held to the suite in chunkstore/storetest on
// the real disk, and to invariants 1 and 3 by a disk that fails every n-th operation and one that crashes at every
// sync.
package local

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// openSuffix ends the file of an unsealed object. It never changes.
const openSuffix = ".open"

const maxName = 200

// Local is a backend in a folder.
type Local struct {
	d    disk.Disk
	root string
}

var (
	_ backend.Backend   = (*Local)(nil)
	_ backend.Resumer   = (*Local)(nil)
	_ backend.Replacer  = (*Local)(nil)
	_ backend.Sweeper   = (*Local)(nil)
	_ backend.Reclaimer = (*Local)(nil)
)

// New returns the backend in the folder root of d. The folder is made by the first write that needs it.
func New(d disk.Disk, root string) *Local { return &Local{d: d, root: path.Clean(root)} }

// file returns where the object lies once it is whole, after a look at its name. It also answers for ctx: a call whose
// context is done starts nothing.
func (l *Local) file(ctx context.Context, op, name string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", errs.New(op, name, errs.Canceled, err)
	}
	if !validName(name) {
		return "", errs.Text(op, name, errs.Invalid, "not the name of an object")
	}
	return path.Join(l.root, name), nil
}

// validName tells whether name is one an object may have: elements of [a-z0-9._-], none of them hidden or with an
// ending that has a meaning here.
func validName(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' || !validChars(part) {
			return false
		}
		if strings.HasSuffix(part, openSuffix) || strings.HasSuffix(part, disk.TempSuffix) {
			return false
		}
	}
	return true
}

func validChars(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// open opens the file of an object for reading. A folder is no object.
func (l *Local) open(file string) (disk.File, error) {
	f, err := l.d.Open(file)
	if err != nil {
		if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.EISDIR) {
			err = fs.ErrNotExist // an object stands where a folder would be, or the other way round
		}
		return nil, err
	}
	var one [1]byte
	if _, err := f.ReadAt(one[:], 0); errors.Is(err, syscall.EISDIR) {
		_ = f.Close() // opened for reading only
		return nil, fs.ErrNotExist
	}
	return f, nil
}

// has tells whether file is there.
func (l *Local) has(file string) (bool, error) {
	f, err := l.open(file)
	if errs.Is(err, errs.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

// free fails with errs.Exists if the object is there, whole or not.
func (l *Local) free(op, name, file string) error {
	for _, f := range [...]string{file, file + openSuffix} {
		found, err := l.has(f)
		if err != nil {
			return errs.Wrap(op, name, err)
		}
		if found {
			return errs.New(op, name, errs.Exists, nil)
		}
	}
	return nil
}

// Put implements backend.Backend. After an error of the last sync the object may be there or not.
func (l *Local) Put(ctx context.Context, name string, data []byte) error {
	const op = "put"
	file, err := l.file(ctx, op, name)
	if err != nil {
		return err
	}
	if err := l.free(op, name, file); err != nil {
		return err
	}
	return errs.Wrap(op, name, l.publish(file, data))
}

// Replace implements backend.Replacer.
func (l *Local) Replace(ctx context.Context, name string, data []byte) error {
	const op = "replace"
	file, err := l.file(ctx, op, name)
	if err != nil {
		return err
	}
	return errs.Wrap(op, name, l.publish(file, data))
}

func (l *Local) publish(file string, data []byte) error {
	if err := l.d.MkdirAll(path.Dir(file)); err != nil {
		return err
	}
	return disk.Publish(l.d, file, data)
}

// Open implements backend.Backend.
func (l *Local) Open(ctx context.Context, name string) (backend.Object, error) {
	const op = "open"
	file, err := l.file(ctx, op, name)
	if err != nil {
		return nil, err
	}
	f, err := l.open(file)
	if errs.Is(err, errs.NotFound) {
		f, err = l.open(file + openSuffix)
	}
	if errs.Is(err, errs.NotFound) {
		f, err = l.open(file) // it was sealed between the two looks
	}
	if err != nil {
		return nil, errs.Wrap(op, name, err)
	}
	size, err := disk.Size(f)
	if err != nil {
		_ = f.Close() // opened for reading only
		return nil, errs.Wrap(op, name, err)
	}
	return &object{File: f, size: size}, nil
}

// object is an open file with the size it had when it was opened.
type object struct {
	disk.File
	size int64
}

// Size implements backend.Object.
func (o *object) Size() int64 { return o.size }

// List implements backend.Backend.
func (l *Local) List(ctx context.Context, prefix string) ([]backend.Info, error) {
	const op = "list"
	if err := ctx.Err(); err != nil {
		return nil, errs.New(op, prefix, errs.Canceled, err)
	}
	folder, begin := path.Split(prefix)
	below := strings.TrimSuffix(folder, "/")
	if !validChars(begin) || folder != "" && !validName(below) {
		return nil, errs.Text(op, prefix, errs.Invalid, "not the beginning of an object's name")
	}
	var out []backend.Info
	if err := l.list(ctx, below, begin, &out); err != nil {
		return nil, errs.Wrap(op, prefix, err)
	}
	slices.SortFunc(out, func(a, b backend.Info) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// list adds the objects below folder whose next element begins with begin.
func (l *Local) list(ctx context.Context, folder, begin string, out *[]backend.Info) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := l.d.ReadDir(path.Join(l.root, folder))
	if errs.Is(err, errs.NotFound) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), begin) {
			continue
		}
		name := path.Join(folder, e.Name())
		if e.IsDir() {
			if !validName(name) {
				continue
			}
			if err := l.list(ctx, name, "", out); err != nil {
				return err
			}
			continue
		}
		name, isOpen := strings.CutSuffix(name, openSuffix)
		if !e.Type().IsRegular() || !validName(name) || (begin != "" && !strings.HasPrefix(path.Base(name), begin)) {
			continue
		}
		st, err := e.Info()
		if errs.Is(err, errs.NotFound) {
			continue // removed, or sealed, since the folder was read
		}
		if err != nil {
			return err
		}
		*out = append(*out, backend.Info{Name: name, Size: st.Size(), Occupied: disk.OccupiedBy(st), Sealed: !isOpen})
	}
	return nil
}

// Remove implements backend.Backend.
func (l *Local) Remove(ctx context.Context, name string) error {
	const op = "remove"
	file, err := l.file(ctx, op, name)
	if err != nil {
		return err
	}
	for _, f := range [...]string{file, file + openSuffix} {
		found, err := l.has(f) // Remove of a folder would delete it if it is empty
		if err != nil {
			return errs.Wrap(op, name, err)
		}
		if !found {
			continue
		}
		if err := l.d.Remove(f); err != nil {
			return errs.Wrap(op, name, err)
		}
		return errs.Wrap(op, name, l.d.SyncDir(path.Dir(f)))
	}
	return errs.New(op, name, errs.NotFound, nil)
}

// Sweep implements backend.Sweeper: it removes the files that a killed Put had not finished. Folders below are not
// looked into. That a removal may be undone by a power cut costs nothing.
func (l *Local) Sweep(ctx context.Context, folder string) error {
	const op = "sweep"
	dir, err := l.file(ctx, op, folder)
	if err != nil {
		return err
	}
	entries, err := l.d.ReadDir(dir)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return errs.Wrap(op, folder, err)
	}
	for _, e := range entries {
		name, unfinished := strings.CutSuffix(e.Name(), disk.TempSuffix)
		if !unfinished || !e.Type().IsRegular() || !validName(name) {
			continue
		}
		if err := l.d.Remove(path.Join(dir, e.Name())); err != nil && !errs.Is(err, errs.NotFound) {
			return errs.Wrap(op, folder, err)
		}
	}
	return nil
}
