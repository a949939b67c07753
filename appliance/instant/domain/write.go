package domain

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// What stands beside the export's root while a domain is written, and after.
const (
	newExt  = ".new"     // a folder with a domain that is not complete
	noteExt = ".written" // the note that the domain was written
)

// noteFormat is the whole note. Stored: never change.
const noteFormat = "holdfast domain 1\n%s\n"

// Write lays the domain out in the folder dir, the export's root, which it makes if necessary. It does so once: when a
// Write of this domain into dir returned nil before, later ones change nothing, whatever hosts did to it, and whatever
// else s says by now. A Write that was cut is finished by the next one. Beside dir it keeps dir.written and, until it is
// done, dir.new; they belong to dir and go with it.
//
// Everything is durable when Write returns nil. errs.Invalid is a wrong s, errs.Exists another domain in dir. Only one
// Write of a dir may run at a time, and no host may see dir before one has returned nil.
func Write(dir string, s Spec) error {
	return writer{disk: disk.OS{}, setPerm: setPerm, dir: path.Clean(dir)}.write(s)
}

// writer writes into one folder.
type writer struct {
	disk    disk.Disk
	setPerm func(name string, perm uint32) error // of a file or a folder, durably
	dir     string
}

func (w writer) write(s Spec) error {
	const op = "write storage domain"
	written, err := w.written(s)
	switch {
	case err != nil:
		return errs.Wrap(op, w.dir, err)
	case written:
		// The Write that put the note there may have been cut before the note's name was durable; if it got lost after
		// hosts have removed the domain, the domain would come back.
		return errs.Wrap(op, w.dir, w.disk.SyncDir(path.Dir(w.dir)))
	}
	if err := s.check(); err != nil {
		return errs.Wrap(op, w.dir, err)
	}
	return errs.Wrap(op, w.dir, w.build(s))
}

// written reads the note.
func (w writer) written(s Spec) (bool, error) {
	note, err := disk.ReadFile(w.disk, w.dir+noteExt, 4096)
	switch {
	case errs.Is(err, errs.NotFound):
		return false, nil
	case err != nil:
		return false, err
	case !bytes.Equal(note, fmt.Appendf(nil, noteFormat, s.UUID)):
		return false, errs.Text("find storage domain", s.UUID, errs.Exists, "another one was written here")
	}
	return true, nil
}

// build makes the domain. The order is what makes it one step for whoever looks: everything below the new folder is
// durable before the rename, and the rename before the note.
func (w writer) build(s Spec) error {
	if err := w.disk.MkdirAll(w.dir); err != nil {
		return err
	}
	if err := w.setPerm(w.dir, 0o755); err != nil { // qemu, which is not the owner, must get in
		return err
	}
	there, err := w.has(s.UUID)
	if err != nil {
		return err
	}
	temp, final := w.dir+newExt, path.Join(w.dir, s.UUID)
	if err := w.removeAll(temp); err != nil {
		return err
	}
	if !there {
		if err := w.makeAll(temp, s.items()); err != nil {
			return err
		}
		if err := w.disk.Rename(temp, final); err != nil {
			return err
		}
	}
	if err := w.disk.SyncDir(w.dir); err != nil {
		return err
	}
	return disk.Publish(w.disk, w.dir+noteExt, fmt.Appendf(nil, noteFormat, s.UUID))
}

// has tells whether the domain is in the root, and refuses a root with another one: hosts see only one in an export.
func (w writer) has(domain string) (bool, error) {
	entries, err := w.disk.ReadDir(w.dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.Name() == domain {
			return true, nil
		}
		if e.IsDir() {
			return false, errs.Text("find storage domain", domain, errs.Exists, "the folder holds "+e.Name())
		}
	}
	return false, nil
}

// makeAll makes the items below the folder root, durably. The root's own name is not durable yet.
func (w writer) makeAll(root string, all []item) error {
	var dirs []string
	for _, it := range all {
		name := path.Join(root, it.path)
		if it.dir {
			dirs = append(dirs, name)
		}
		if err := w.makeOne(name, it); err != nil {
			return err
		}
	}
	for _, dir := range dirs {
		if err := w.disk.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

func (w writer) makeOne(name string, it item) error {
	if it.dir {
		if err := w.disk.MkdirAll(name); err != nil {
			return err
		}
		return w.setPerm(name, it.perm)
	}
	f, err := w.disk.Create(name)
	if err != nil {
		return err
	}
	if err = f.Truncate(it.size); err == nil && it.data != nil {
		_, err = f.WriteAt(it.data(), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return w.setPerm(name, it.perm)
}

// removeAll removes what an earlier Write did not finish.
func (w writer) removeAll(dir string) error {
	entries, err := w.disk.ReadDir(dir)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	for _, e := range entries {
		if err != nil {
			break
		}
		name := path.Join(dir, e.Name())
		if e.IsDir() {
			err = w.removeAll(name)
		} else {
			err = w.disk.Remove(name)
		}
	}
	if err != nil {
		return err
	}
	return w.disk.Remove(dir)
}

// setPerm sets a mode on the real disk, whatever the umask, and makes it durable: syncing a file's data, as disk.File
// does, need not write its mode.
func setPerm(name string, perm uint32) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	err = f.Chmod(fs.FileMode(perm))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
