package fs

import (
	"context"
	"sync/atomic"
	"time"
)

// Stream is the content of an image: a synthetic image, or an overlay above one. It may also implement Writer,
// HoleFinder, Truncater and Sizer; a StreamFile offers what its stream can do.
type Stream interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	Size() int64
}

// Truncater is implemented by streams whose size can be set.
type Truncater interface {
	Truncate(ctx context.Context, size int64) error
}

// Sizer is implemented by streams that know how many bytes of storage their own content takes.
type Sizer interface {
	Used() int64
}

// StreamFileOptions say how an image appears.
type StreamFileOptions struct {
	ID     ID
	Perm   uint32    // default 0o660
	When   time.Time // all three times, until something is written
	Used   int64     // bytes of storage beneath the stream; what a Sizer says is added
	Stream Stream
}

// StreamFile shows a stream as a file owned by OwnerID.
type StreamFile struct {
	o       StreamFileOptions
	written atomic.Int64 // when it was last written, Unix nanoseconds; 0 for never
}

// NewStreamFile returns the read-only file of a stream.
func NewStreamFile(o StreamFileOptions) *StreamFile {
	if o.Perm == 0 {
		o.Perm = 0o660
	}
	return &StreamFile{o: o}
}

var (
	_ File       = (*StreamFile)(nil)
	_ HoleFinder = (*StreamFile)(nil)
	_ Writer     = (*WritableStreamFile)(nil)
	_ AttrSetter = (*WritableStreamFile)(nil)
)

// ID implements Node.
func (f *StreamFile) ID() ID { return f.o.ID }

// Bulk tells a protocol layer that reads of this file may take long and must not stand in the way of small files.
func (f *StreamFile) Bulk() bool { return true }

// Attr implements Node.
func (f *StreamFile) Attr(context.Context) (Attr, error) {
	a := Attr{
		ID: f.o.ID, Kind: KindFile, Perm: f.o.Perm, Nlink: 1, UID: OwnerID, GID: OwnerID,
		Size: f.o.Stream.Size(), Used: f.o.Used, Atime: f.o.When, Mtime: f.o.When, Ctime: f.o.When,
	}
	if s, ok := f.o.Stream.(Sizer); ok {
		a.Used += s.Used()
	}
	if ns := f.written.Load(); ns != 0 {
		a.Mtime = time.Unix(0, ns)
		a.Ctime = a.Mtime
	}
	return a, nil
}

// ReadAt implements File.
func (f *StreamFile) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return f.o.Stream.ReadAt(ctx, p, off)
}

// NextData implements HoleFinder. A stream that knows no holes is all data.
func (f *StreamFile) NextData(ctx context.Context, off int64) (int64, error) {
	if h, ok := f.o.Stream.(HoleFinder); ok {
		return h.NextData(ctx, off)
	}
	return min(off, f.o.Stream.Size()), nil
}

// NextHole implements HoleFinder.
func (f *StreamFile) NextHole(ctx context.Context, off int64) (int64, error) {
	if h, ok := f.o.Stream.(HoleFinder); ok {
		return h.NextHole(ctx, off)
	}
	return f.o.Stream.Size(), nil
}

// WritableStream is a stream that takes writes.
type WritableStream interface {
	Stream
	Writer
	Truncater
}

// WritableStreamFile is a StreamFile that can be written. Its owner, mode and times cannot be changed.
type WritableStreamFile struct {
	*StreamFile
	w WritableStream
}

// NewWritableStreamFile returns the file of a stream that takes writes; o.Stream is ignored.
func NewWritableStreamFile(o StreamFileOptions, w WritableStream) *WritableStreamFile {
	o.Stream = w
	return &WritableStreamFile{NewStreamFile(o), w}
}

// WriteAt implements Writer.
func (f *WritableStreamFile) WriteAt(ctx context.Context, p []byte, off int64, stable bool) error {
	err := f.w.WriteAt(ctx, p, off, stable)
	f.written.Store(time.Now().UnixNano())
	return err
}

// Commit implements Writer.
func (f *WritableStreamFile) Commit(ctx context.Context) error { return f.w.Commit(ctx) }

// SetAttr implements AttrSetter. Clients set owner and mode to what they already are, and times; the size is the only
// change that is carried out, a different owner or mode is StatusPermission, times are accepted and ignored.
func (f *WritableStreamFile) SetAttr(ctx context.Context, set SetAttr, guard *time.Time) (Attr, error) {
	a, err := f.Attr(ctx)
	if err != nil {
		return a, err
	}
	if guard != nil && !guard.Equal(a.Ctime) {
		return a, StatusNotSync
	}
	differs := func(want *uint32, have uint32) bool { return want != nil && *want != have }
	if differs(set.Perm, a.Perm) || differs(set.UID, a.UID) || differs(set.GID, a.GID) {
		return a, StatusPermission
	}
	if set.Size != nil && *set.Size != a.Size {
		if *set.Size < 0 {
			return a, StatusInvalid
		}
		if err := f.w.Truncate(ctx, *set.Size); err != nil {
			return a, err
		}
		f.written.Store(time.Now().UnixNano())
	}
	return f.Attr(ctx)
}
