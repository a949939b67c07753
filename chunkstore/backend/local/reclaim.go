package local

import (
	"context"
	"errors"
	"path"
	"syscall"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// block is a multiple of the block sizes that file systems have. It rounds up the end of a file, whose last block would
// stay otherwise.
const block = 64 << 10

// sealed opens the file of a sealed object for writing.
func (l *Local) sealed(ctx context.Context, op, name string) (disk.File, string, error) {
	file, err := l.file(ctx, op, name)
	if err != nil {
		return nil, "", err
	}
	if found, err := l.has(file); err != nil {
		return nil, "", errs.Wrap(op, name, err)
	} else if !found {
		return nil, "", errs.New(op, name, errs.NotFound, nil)
	}
	f, err := l.d.OpenRW(file)
	return f, file, errs.Wrap(op, name, err)
}

// CanPunch implements backend.Reclaimer. It tries a hole behind the end of the file, which changes nothing.
func (l *Local) CanPunch(ctx context.Context, name string) error {
	const op = "try to free space of"
	f, _, err := l.sealed(ctx, op, name)
	if err != nil {
		return err
	}
	defer f.Close() // nothing was written
	size, err := disk.Size(f)
	if err != nil {
		return errs.Wrap(op, name, err)
	}
	_, links, err := disk.Occupied(f)
	if err != nil {
		return errs.Wrap(op, name, err)
	}
	if links != 1 {
		return errs.Text(op, name, errs.Unsupported, "the file has other names, which are somebody's copy")
	}
	return errs.Wrap(op, name, punch(f, backend.Range{Off: size + block, Len: block}))
}

// punch frees a range. errs.Unsupported: the file system, or its kernel, has no holes.
func punch(f disk.File, r backend.Range) error {
	p, ok := f.(disk.Puncher)
	if !ok {
		return errs.Text("free space", "", errs.Unsupported, "the disk cannot free parts of a file")
	}
	err := p.Punch(r.Off, r.Len)
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		return errs.New("free space", "", errs.Unsupported, err)
	}
	return err
}

// Punch implements backend.Reclaimer.
func (l *Local) Punch(ctx context.Context, name string, ranges []backend.Range) (freed int64, err error) {
	const op = "free space of"
	f, _, err := l.sealed(ctx, op, name)
	if err != nil {
		return 0, err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = errs.Wrap(op, name, cerr)
		}
	}()
	freed, err = punchAll(f, ranges)
	return freed, errs.Wrap(op, name, err)
}

func punchAll(f disk.File, ranges []backend.Range) (freed int64, err error) {
	size, err := disk.Size(f)
	if err != nil {
		return 0, err
	}
	before, links, err := disk.Occupied(f)
	if err != nil {
		return 0, err
	}
	if links != 1 {
		return 0, errs.Text("free space", "", errs.Unsupported, "the file has other names, which are somebody's copy")
	}
	for _, r := range ranges {
		if r.Off < 0 || r.Len <= 0 || r.Off+r.Len > size {
			return 0, errs.Text("free space", "", errs.Bug, "a range that is not in the object")
		}
		if r.Off+r.Len == size {
			r.Len += block
		}
		if err := punch(f, r); err != nil {
			return 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	after, _, err := disk.Occupied(f)
	return max(0, before-after), err
}

// Discard implements backend.Reclaimer. The file is emptied when its name is gone for good: before, a power cut could
// leave an empty one.
func (l *Local) Discard(ctx context.Context, name string) (freed int64, err error) {
	const op = "remove"
	f, file, err := l.sealed(ctx, op, name)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // the file is gone
	freed, links, err := disk.Occupied(f)
	if err != nil {
		return 0, errs.Wrap(op, name, err)
	}
	if err := l.d.Remove(file); err != nil {
		return 0, errs.Wrap(op, name, err)
	}
	if err := l.d.SyncDir(path.Dir(file)); err != nil {
		return 0, errs.Wrap(op, name, err)
	}
	if links != 1 {
		return 0, nil
	}
	_ = f.Truncate(0) // if it fails the space is free when the last reader closes the file
	return freed, nil
}
