// Package imagefile reads a disk image that lies in a file (raw, sparse or not, or qcow2) as a source of extents for
// the chunk store.
//
// Holes are never read: SEEK_HOLE tells them for raw files, the tables for qcow2. If a qcow2 image carries a persistent
// dirty bitmap that began when the parent point was made, only what the bitmap says is read; the name
// "holdfast-<point>" is how a bitmap says which point that is. A bitmap that was not closed properly is not believed.
//
// A file must not change while it is read: Unchanged reports errs.Stale if it did. Every byte that is really read from the
// file, tables included, is counted. A Source may be read by many goroutines.
package imagefile

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/fs/synthetic/qcow2"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Format is how the bytes of a file make up a disk.
type Format string

// The formats that can be read.
const (
	Auto  Format = "" // by the first bytes
	Raw   Format = "raw"
	Qcow2 Format = "qcow2"
)

// BitmapName is the name of the dirty bitmap that holds the changes since a point.
func BitmapName(point chunkstore.PointID) string { return "holdfast-" + string(point) }

// Source is an open image file.
type Source struct {
	path   string
	file   *os.File
	size   int64 // of the disk
	format Format
	image  *qcow2.Image // nil for raw
	bitmap string       // of image; "" for all
	since  int64        // size of the parent's disk, when bitmap is used
	before stamp
	read   atomic.Int64
}

var (
	_ chunkstore.Source = (*Source)(nil)
	_ chunkstore.Whole  = (*Source)(nil)
)

// ReadsUnchanged implements chunkstore.Whole: the file is there as a whole.
func (s *Source) ReadsUnchanged() bool { return true }

// stamp is what changes when a file is written.
type stamp struct {
	size  int64
	mtime time.Time
}

// Open opens an image file. errs.NotFound, errs.Denied, errs.Invalid (no image can be in it), errs.Corrupt and
// errs.Unsupported (qcow2 with a backing file, for instance) say what is wrong with it.
func Open(path string, format Format) (*Source, error) {
	s, err := open(path, format)
	if err != nil {
		return nil, errs.Wrap("open image", path, err)
	}
	return s, nil
}

func open(path string, format Format) (*Source, error) {
	// Not blocking: a pipe that nobody writes to must not hold us up before we have seen that it is one.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, errs.Text("open", path, errs.NotFound, "there is no such file").WithNext("Check the path of the image.")
		}
		return nil, err
	}
	s := &Source{path: path, file: f}
	if err := s.start(format); err != nil {
		_ = f.Close()
		return nil, err
	}
	return s, nil
}

func (s *Source) start(format Format) error {
	st, err := s.file.Stat()
	if err != nil {
		return err
	}
	block := st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	if !st.Mode().IsRegular() && !block {
		return errs.Text("read", s.path, errs.Invalid, "it is neither a file nor a block device")
	}
	fileSize, err := s.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	s.before = stamp{fileSize, st.ModTime()}
	if fileSize == 0 {
		return errs.Text("read", s.path, errs.Invalid, "it is empty, so there is no disk in it")
	}
	magic := make([]byte, 4)
	if _, err := s.ReadAtFile(magic, 0); err != nil && err != io.EOF {
		return err
	}
	isQcow2 := string(magic) == "QFI\xfb"
	switch {
	case format == Qcow2 && !isQcow2:
		return errs.Text("read", s.path, errs.Invalid, "it is not a qcow2 image").
			WithNext("Leave --format away, or say --format raw.")
	case format == Qcow2 || format == Auto && isQcow2:
		s.format = Qcow2
		if s.image, err = qcow2.Open(fileReader{s}, fileSize); err != nil {
			return err
		}
		s.size = s.image.Size()
	case format == Raw || format == Auto:
		s.format, s.size = Raw, fileSize
	default:
		return errs.Text("read", s.path, errs.Invalid, "unknown format "+string(format)).WithNext("The formats are raw and qcow2.")
	}
	if s.size == 0 {
		return errs.Text("read", s.path, errs.Invalid, "the disk in it has no bytes")
	}
	return nil
}

// fileReader is the file below a qcow2 image.
type fileReader struct{ s *Source }

func (r fileReader) ReadAt(p []byte, off int64) (int, error) { return r.s.ReadAtFile(p, off) }

// ReadAtFile reads the file's own bytes, and counts them.
func (s *Source) ReadAtFile(p []byte, off int64) (int, error) {
	n, err := s.file.ReadAt(p, off)
	s.read.Add(int64(n))
	return n, err
}

// Format tells how the file was understood.
func (s *Source) Format() Format { return s.format }

// ReadBytes returns how many bytes were read from the file so far.
func (s *Source) ReadBytes() int64 { return s.read.Load() }

// Size implements chunkstore.Source.
func (s *Source) Size() int64 { return s.size }

// UseBitmap makes the source read only what changed since a point of this disk, if the image carries the bitmap that
// began with it. Otherwise it says why not, in a sentence for people, and everything is read.
func (s *Source) UseBitmap(point chunkstore.PointID, diskSize int64) (used bool, why string, err error) {
	if s.image == nil {
		return false, "a raw file does not record what changes", nil
	}
	if diskSize > s.size {
		return false, "the disk is smaller than it was", nil
	}
	bitmaps, err := s.image.Bitmaps()
	if err != nil {
		return false, "", err
	}
	name := BitmapName(point)
	for _, b := range bitmaps {
		if b.Name != name {
			continue
		}
		if b.InUse {
			return false, "the bitmap " + name + " was not closed properly", nil
		}
		if !b.Auto {
			return false, "the bitmap " + name + " is disabled: it did not record all changes", nil
		}
		// A look that stops at the first range tells whether it can be believed at all.
		err := s.image.Dirty(context.Background(), name, func(int64, int64) bool { return false })
		if errs.Is(err, errs.Stale) || errs.Is(err, errs.Unsupported) {
			return false, "the bitmap " + name + " cannot be used (" + err.Error() + ")", nil
		}
		if err != nil {
			return false, "", err
		}
		s.bitmap, s.since = name, diskSize
		return true, "", nil
	}
	return false, "the image has no bitmap named " + name, nil
}

// ReadAt implements chunkstore.Source.
func (s *Source) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if s.image != nil {
		return s.image.ReadAt(ctx, p, off)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return s.ReadAtFile(p, off)
}

// Extents implements chunkstore.Source.
func (s *Source) Extents(ctx context.Context, visit func(chunkstore.Extent) error) error {
	switch {
	case s.image == nil:
		return s.rawExtents(ctx, visit)
	case s.bitmap == "":
		return s.imageExtents(ctx, 0, s.size, visit)
	}
	pos := int64(0)
	step := func(off, end int64) error { // [pos, off) is unchanged, [off, end) is not
		off = max(off, pos)
		if off > pos {
			if err := visit(chunkstore.Extent{Off: pos, Len: off - pos, Kind: chunkstore.ExtentUnchanged}); err != nil {
				return err
			}
		}
		pos = max(off, end)
		return s.imageExtents(ctx, off, end, visit)
	}
	var failed error
	err := s.image.Dirty(ctx, s.bitmap, func(off, n int64) bool {
		// The part behind the parent's end is dealt with below, whatever the bitmap says of it.
		if off < s.since {
			failed = step(off, min(off+n, s.since))
		}
		return failed == nil && off < s.since
	})
	if err = errors.Join(failed, err); err != nil {
		return err
	}
	return step(s.since, s.size)
}

// imageExtents reports the data and the zeros of [off, end).
func (s *Source) imageExtents(ctx context.Context, off, end int64, visit func(chunkstore.Extent) error) error {
	if off >= end {
		return nil
	}
	var failed error
	err := s.image.Extents(ctx, off, func(o, n int64, data bool) bool {
		kind := chunkstore.ExtentZero
		if data {
			kind = chunkstore.ExtentData
		}
		failed = visit(chunkstore.Extent{Off: o, Len: min(n, end-o), Kind: kind})
		return failed == nil && o+n < end
	})
	if failed != nil {
		return failed
	}
	return err
}

func (s *Source) rawExtents(ctx context.Context, visit func(chunkstore.Extent) error) error {
	pos := int64(0)
	for pos < s.size {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := unix.Seek(int(s.file.Fd()), pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data, err = s.size, nil
		}
		if errors.Is(err, unix.EINVAL) { // a file system or a device that tells no holes
			return visit(chunkstore.Extent{Off: pos, Len: s.size - pos, Kind: chunkstore.ExtentData})
		}
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		if data = min(data, s.size); data > pos {
			if err := visit(chunkstore.Extent{Off: pos, Len: data - pos, Kind: chunkstore.ExtentZero}); err != nil {
				return err
			}
		}
		if data == s.size {
			return nil
		}
		hole, err := unix.Seek(int(s.file.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		hole = min(hole, s.size)
		if err := visit(chunkstore.Extent{Off: data, Len: hole - data, Kind: chunkstore.ExtentData}); err != nil {
			return err
		}
		pos = hole
	}
	return nil
}

// Unchanged returns errs.Stale if the file was written since it was opened.
func (s *Source) Unchanged() error {
	st, err := os.Stat(s.path)
	if err != nil {
		return errs.Wrap("look again at image", s.path, err)
	}
	size, err := s.file.Seek(0, io.SeekEnd)
	if err != nil {
		return errs.Wrap("look again at image", s.path, err)
	}
	own, err := s.file.Stat()
	if err != nil {
		return errs.Wrap("look again at image", s.path, err)
	}
	if !os.SameFile(st, own) || size != s.before.size || !own.ModTime().Equal(s.before.mtime) {
		return errs.Text("read image", s.path, errs.Stale, "the file was written while it was read; nothing was kept").
			WithNext("Shut down the machine that uses the disk, then run the import again.")
	}
	return nil
}

// Close closes the file.
func (s *Source) Close() error { return s.file.Close() }
