// Package synthetic shows a stored disk as an image file: raw as it is, or, with fs/synthetic/qcow2, as a qcow2 file
// computed on the fly. It declares the little it needs of a store (Source) and does not know the chunk store.
//
// Terms. The published view of a disk is its content rounded up to Grid: oVirt, O_DIRECT readers and qcow2 want whole
// blocks. What lies between the exact size and the published one reads as zeros.
//
// Invariants: a view never changes, and gives equal bytes in every process that opens the same disk; zeros are answered
// without reading the source; memory does not depend on the disk's size. All methods may be called concurrently.
// Tested against plain byte slices of odd sizes.
package synthetic

import (
	"context"
	"io"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/synthetic/qcow2"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Grid is what the published size is a multiple of, in bytes.
const Grid = 4096

// Source is a stored disk.
type Source interface {
	// ReadAt reads as io.ReaderAt does.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// Size returns the exact size in bytes.
	Size() int64
	// Extents calls visit with the runs of data and of zeros that make up [off, off+n), in order and without gaps,
	// until visit returns false. Runs of data may claim more than is stored, never less.
	Extents(ctx context.Context, off, n int64, visit func(off, n int64, data bool) bool) error
}

// Format names how an image is published.
type Format string

// The formats.
const (
	FormatRaw   Format = "raw"
	FormatQcow2 Format = "qcow2"
)

// ParseFormat reads a format as people write it.
func ParseFormat(s string) (Format, error) {
	if f := Format(s); f == FormatRaw || f == FormatQcow2 {
		return f, nil
	}
	return "", errs.Text("read format", s, errs.Invalid, "an image is published as raw or as qcow2")
}

// New returns src published in a format.
func New(src Source, f Format) (fs.Stream, error) {
	raw := NewRaw(src)
	if f == FormatRaw {
		return raw, nil
	}
	return qcow2.NewView(raw, qcow2.DefaultClusterBits)
}

// Raw is the published view of a disk.
type Raw struct {
	src  Source
	grid int64 // what the size is rounded up to
}

var (
	_ fs.Stream     = Raw{}
	_ fs.HoleFinder = Raw{}
	_ qcow2.Source  = Raw{}
)

// NewRaw returns the published view of src.
func NewRaw(src Source) Raw { return Raw{src, Grid} }

// sector is the grain of sizes in a qcow2 file, in bytes.
const sector = 512

// NewSectors returns src rounded up to whole sectors only: what a file that keeps the disk's exact size needs.
func NewSectors(src Source) Raw { return Raw{src, sector} }

// Size returns the published size in bytes.
func (r Raw) Size() int64 { return (r.src.Size() + r.grid - 1) / r.grid * r.grid }

// ReadAt reads as io.ReaderAt does.
func (r Raw) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	rest := r.Size() - off
	if off < 0 {
		return 0, fs.StatusInvalid
	}
	if rest <= 0 {
		return 0, io.EOF
	}
	var end error
	if rest < int64(len(p)) {
		p, end = p[:rest], io.EOF
	}
	stored := min(int64(len(p)), max(0, r.src.Size()-off))
	if stored > 0 {
		if n, err := r.src.ReadAt(ctx, p[:stored], off); int64(n) < stored {
			if err == nil || err == io.EOF {
				err = errs.Text("read image", "", errs.Bug, "the source ended before its size")
			}
			return n, err
		}
	}
	clear(p[stored:])
	return len(p), end
}

// NextData implements fs.HoleFinder.
func (r Raw) NextData(ctx context.Context, off int64) (int64, error) {
	return r.next(ctx, off, true)
}

// NextHole implements fs.HoleFinder.
func (r Raw) NextHole(ctx context.Context, off int64) (int64, error) {
	return r.next(ctx, off, false)
}

func (r Raw) next(ctx context.Context, off int64, data bool) (int64, error) {
	at := r.Size()
	if off >= at {
		return at, nil
	}
	err := r.src.Extents(ctx, off, r.src.Size()-off, func(o, _ int64, d bool) bool {
		if d == data {
			at = o
		}
		return d != data
	})
	return at, err
}

// Present implements qcow2.Source.
func (r Raw) Present(ctx context.Context, off, n int64, visit func(off, n int64) bool) error {
	return r.src.Extents(ctx, off, n, func(o, n int64, data bool) bool { return !data || visit(o, n) })
}
