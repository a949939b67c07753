package folder

import (
	"context"
	"errors"
	"io"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
)

// bulkBytes is the length from which on a file is taken for a disk that hosts made: nothing that their monitors read is
// that long. (The longest, the mailboxes, have 16 MiB.)
const bulkBytes = 32 << 20

// file is a regular file, or a graft.
type file struct {
	node
	length  atomic.Int64             // the size when it was last looked at
	grafted atomic.Bool              // it is a graft; never unset
	stream  atomic.Pointer[attached] // nil unless it is a graft with a stream
	open    *openFile                // guarded by fds.mu
}

var (
	_ fs.File       = (*file)(nil)
	_ fs.Writer     = (*file)(nil)
	_ fs.AttrSetter = (*file)(nil)
	_ fs.HoleFinder = (*file)(nil)
)

// Bulk tells a protocol layer whether the file is a disk's image.
func (f *file) Bulk() bool { return f.grafted.Load() || f.length.Load() >= bulkBytes }

// begin is the beginning of an operation on the content: it returns the stream of a graft, nil for a real file.
func (f *file) begin(ctx context.Context, off int64) (*attached, error) {
	if err := f.enter(ctx); err != nil {
		return nil, err
	}
	if off < 0 {
		return nil, fs.StatusInvalid
	}
	if !f.grafted.Load() {
		return nil, nil
	}
	if a := f.stream.Load(); a != nil {
		return a, nil
	}
	if f.gone.Load() { // since it was asked above
		return nil, fs.StatusStale
	}
	return nil, fs.StatusDelay
}

// with runs use on the open file.
func (f *file) with(ctx context.Context, use func(*openFile) error) error {
	f.t.life.RLock()
	defer f.t.life.RUnlock()
	of, err := f.t.fds.acquire(ctx, f)
	if err != nil {
		return err
	}
	defer f.t.fds.release(of)
	return use(of)
}

// Attr implements fs.Node.
func (f *file) Attr(ctx context.Context) (fs.Attr, error) {
	s, err := f.begin(ctx, 0)
	if err != nil {
		return fs.Attr{}, err
	}
	var size, used int64
	if s != nil {
		size, used = s.figures()
	} else if err := f.with(ctx, func(of *openFile) error {
		st, err := f.t.statOf(of.File)
		size, used = st.Size, st.Blocks*512
		return err
	}); err != nil {
		return fs.Attr{}, err
	}
	f.length.Store(size)
	f.t.mu.RLock()
	defer f.t.mu.RUnlock()
	if f.gone.Load() {
		return fs.Attr{}, fs.StatusStale
	}
	a := f.attr()
	a.Size, a.Used = size, used
	return a, nil
}

// SetAttr implements fs.AttrSetter.
func (f *file) SetAttr(ctx context.Context, set fs.SetAttr, guard *time.Time) (fs.Attr, error) {
	if _, err := f.begin(ctx, 0); err != nil {
		return fs.Attr{}, err
	}
	return f.t.setAttr(ctx, f, set, guard, setter{size: f.truncate})
}

// truncate sets the size, durably.
func (f *file) truncate(ctx context.Context, size int64) error {
	s, err := f.begin(ctx, size)
	if err != nil {
		return err
	}
	if s != nil {
		if err := s.Truncate(ctx, size); err != nil {
			return err
		}
		return s.Commit(ctx)
	}
	return f.with(ctx, func(of *openFile) error {
		err := f.t.alter("truncate", of.Name(), func() error { return unix.Ftruncate(int(of.Fd()), size) })
		if err != nil {
			return err
		}
		return f.t.sync(of.File)
	})
}

// ReadAt implements fs.File.
func (f *file) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	s, err := f.begin(ctx, off)
	if err != nil {
		return 0, err
	}
	if s != nil {
		return s.ReadAt(ctx, p, off)
	}
	err = f.with(ctx, func(of *openFile) (err error) {
		n, err = of.ReadAt(p, off)
		return err
	})
	return n, err
}

// WriteAt implements fs.Writer.
func (f *file) WriteAt(ctx context.Context, p []byte, off int64, stable bool) error {
	s, err := f.begin(ctx, off)
	switch {
	case err != nil:
		return err
	case off > math.MaxInt64-int64(len(p)):
		return fs.StatusTooLarge
	case len(p) == 0:
		return nil
	case s != nil:
		err = s.WriteAt(ctx, p, off, stable)
		f.touch(true)
		return err
	}
	return f.with(ctx, func(of *openFile) error {
		if !stable {
			stable = !f.t.fds.dirty(of)
		}
		err := f.t.alter("write", of.Name(), func() error {
			_, err := of.WriteAt(p, off)
			return err
		})
		f.touch(true)                                   // also of a failed write a part may be there
		if err != nil || !stable && f.t.fds.dirty(of) { // again: a commit may have come in between
			return err
		}
		return f.t.datasync(of.File)
	})
}

// Commit implements fs.Writer.
func (f *file) Commit(ctx context.Context) error {
	s, err := f.begin(ctx, 0)
	if err != nil {
		return err
	}
	if s != nil {
		return s.Commit(ctx)
	}
	return f.with(ctx, func(of *openFile) error {
		writes := f.t.fds.writes(of)
		err := f.t.datasync(of.File)
		f.t.fds.synced(of, writes)
		return err
	})
}

// NextData implements fs.HoleFinder.
func (f *file) NextData(ctx context.Context, off int64) (int64, error) {
	return f.seek(ctx, off, unix.SEEK_DATA, fs.HoleFinder.NextData, func(off, size int64) int64 { return min(off, size) })
}

// NextHole implements fs.HoleFinder.
func (f *file) NextHole(ctx context.Context, off int64) (int64, error) {
	return f.seek(ctx, off, unix.SEEK_HOLE, fs.HoleFinder.NextHole, func(_, size int64) int64 { return size })
}

// seek asks the system, or the stream, or answers plain for a stream that knows no holes.
func (f *file) seek(
	ctx context.Context, off int64, whence int,
	ask func(fs.HoleFinder, context.Context, int64) (int64, error), plain func(off, size int64) int64,
) (at int64, err error) {
	s, err := f.begin(ctx, off)
	if err != nil {
		return 0, err
	}
	if s != nil {
		if h, ok := s.WritableStream.(fs.HoleFinder); ok {
			return ask(h, ctx, off)
		}
		return plain(off, s.Size()), nil
	}
	err = f.with(ctx, func(of *openFile) error {
		st, err := f.t.statOf(of.File)
		if err != nil {
			return err
		}
		at = st.Size
		if off >= at {
			return nil
		}
		found, err := of.Seek(off, whence) // the position that it moves is used by nobody
		if errors.Is(err, unix.ENXIO) {
			return nil // no data from here on
		}
		at = min(found, at)
		return err
	})
	return at, err
}

// symlink is a symbolic link: a marked file that holds the target.
type symlink struct {
	node
	size int64 // of the target; never changes
}

var (
	_ fs.Symlink    = (*symlink)(nil)
	_ fs.AttrSetter = (*symlink)(nil)
)

// maxTarget is the longest target in bytes.
const maxTarget = 4095

// Attr implements fs.Node.
func (l *symlink) Attr(ctx context.Context) (fs.Attr, error) {
	if err := l.enter(ctx); err != nil {
		return fs.Attr{}, err
	}
	l.t.mu.RLock()
	defer l.t.mu.RUnlock()
	a := l.attr()
	a.Size = l.size
	return a, nil
}

// SetAttr implements fs.AttrSetter.
func (l *symlink) SetAttr(ctx context.Context, set fs.SetAttr, guard *time.Time) (fs.Attr, error) {
	return l.t.setAttr(ctx, l, set, guard, setter{bad: fs.StatusInvalid})
}

// Readlink implements fs.Symlink.
func (l *symlink) Readlink(ctx context.Context) (string, error) {
	if err := l.enter(ctx); err != nil {
		return "", err
	}
	l.t.life.RLock()
	defer l.t.life.RUnlock()
	f, err := l.t.openNode(ctx, &l.node, unix.O_RDONLY, false)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxTarget))
	return string(b), err
}
