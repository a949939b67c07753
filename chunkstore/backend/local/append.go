package local

import (
	"context"
	"fmt"
	"path"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Append implements backend.Backend.
func (l *Local) Append(ctx context.Context, name string) (backend.Appender, error) {
	const op = "append to"
	file, err := l.file(ctx, op, name)
	if err != nil {
		return nil, err
	}
	if err := l.free(op, name, file); err != nil {
		return nil, err
	}
	folder := path.Dir(file)
	if err := l.d.MkdirAll(folder); err != nil {
		return nil, errs.Wrap(op, name, err)
	}
	f, err := l.d.Create(file + openSuffix)
	if err != nil {
		return nil, errs.Wrap(op, name, err)
	}
	// The name has to be durable before the first Sync promises anything.
	if err := l.d.SyncDir(folder); err != nil {
		_ = f.Close() // nothing was written
		return nil, errs.Wrap(op, name, err)
	}
	return &appender{d: l.d, f: f, name: name, file: file}, nil
}

// Resume implements backend.Resumer.
func (l *Local) Resume(ctx context.Context, name string, keep int64) (backend.Appender, error) {
	const op = "resume"
	file, err := l.file(ctx, op, name)
	if err != nil {
		return nil, err
	}
	if found, err := l.has(file); err != nil {
		return nil, errs.Wrap(op, name, err)
	} else if found {
		return nil, errs.Text(op, name, errs.Exists, "the object is sealed")
	}
	if found, err := l.has(file + openSuffix); err != nil {
		return nil, errs.Wrap(op, name, err)
	} else if !found {
		return nil, errs.New(op, name, errs.NotFound, nil)
	}
	f, err := l.d.OpenRW(file + openSuffix)
	if err != nil {
		return nil, errs.Wrap(op, name, err)
	}
	if err := cut(f, keep); err != nil {
		_ = f.Close() // the error says more
		return nil, errs.Wrap(op, name, err)
	}
	return &appender{d: l.d, f: f, name: name, file: file, off: keep}, nil
}

// cut shortens f to keep bytes, durably: what is written next must never be mixed with what was there.
func cut(f disk.File, keep int64) error {
	size, err := disk.Size(f)
	if err != nil {
		return err
	}
	if keep < 0 || keep > size {
		return errs.Text("cut", "", errs.Invalid, fmt.Sprintf("cannot keep %d of %d bytes", keep, size))
	}
	if keep == size {
		return nil
	}
	if err := f.Truncate(keep); err != nil {
		return err
	}
	return f.Sync()
}

// appender writes an unsealed object.
type appender struct {
	d    disk.Disk
	f    disk.File
	name string
	file string // of the sealed object
	off  int64
	err  error // the first failure; everything after it answers with it
	done bool  // closed, by Seal or by Close
}

// begin says whether the appender may still do something.
func (a *appender) begin(op string) error {
	if a.err != nil {
		return errs.Wrap(op, a.name, a.err)
	}
	if a.done {
		return errs.Text(op, a.name, errs.Bug, "the object is sealed or closed")
	}
	return nil
}

// fail poisons the appender.
func (a *appender) fail(op string, err error) error {
	a.err = errs.Wrap(op, a.name, err)
	return a.err
}

// Write implements backend.Appender.
func (a *appender) Write(p []byte) (int, error) {
	const op = "append to"
	if err := a.begin(op); err != nil {
		return 0, err
	}
	n, err := a.f.WriteAt(p, a.off)
	a.off += int64(n)
	if err != nil {
		return n, a.fail(op, err)
	}
	return n, nil
}

// Sync implements backend.Appender.
func (a *appender) Sync() error {
	const op = "sync"
	if err := a.begin(op); err != nil {
		return err
	}
	if err := a.f.Sync(); err != nil {
		return a.fail(op, err)
	}
	return nil
}

// Seal implements backend.Appender.
func (a *appender) Seal() error {
	const op = "seal"
	if err := a.begin(op); err != nil {
		return err
	}
	if err := a.f.Sync(); err != nil {
		return a.fail(op, err)
	}
	if err := a.d.Rename(a.file+openSuffix, a.file); err != nil {
		return a.fail(op, err)
	}
	if err := a.d.SyncDir(path.Dir(a.file)); err != nil {
		return a.fail(op, err)
	}
	a.done = true
	return errs.Wrap(op, a.name, a.f.Close())
}

// Close implements backend.Appender.
func (a *appender) Close() error {
	if a.done {
		return nil
	}
	a.done = true
	return errs.Wrap("close", a.name, a.f.Close())
}
