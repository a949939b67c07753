// Package cut decides where a disk's content is split into chunks. A Cutter is a pure function of the bytes and of
// their offset on the disk, so equal content at equal offsets is always cut alike.
//
// Invariants: every piece is a multiple of chunk.Grid and at most chunk.MaxSize long; pieces cover the span exactly;
// no piece crosses a multiple of Window, so that a change re-cuts only the window it lies in. The name of the cutter
// is recorded with every disk of a restore point (docs/format/point.md): a store may hold points cut in different ways,
// and any exact cover can be read, whoever cut it.
//
// The package does no I/O. Cutters have no state and may be used concurrently.
package cut

import (
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Window is the distance in bytes at which every cutter starts anew. It never changes.
const Window = 4 << 20

// Cutter splits spans of a disk.
type Cutter interface {
	// Name is what a point's record says: part of the format.
	Name() string
	// Cut calls emit with the length of each piece of the span data, which begins at byte off of the disk. off and
	// len(data) are multiples of chunk.Grid.
	Cut(off int64, data []byte, emit func(n int))
}

// Fixed cuts at every multiple of its size.
type Fixed struct{ size int64 }

// Fixed64K is the cutter named "fixed-64k".
var Fixed64K = Fixed{size: 64 << 10}

var _ Cutter = Fixed{}

// Name implements Cutter.
func (Fixed) Name() string { return "fixed-64k" }

// Cut implements Cutter. A span that begins or ends inside a cell gets shorter pieces there.
func (f Fixed) Cut(off int64, data []byte, emit func(n int)) {
	if off%chunk.Grid != 0 || len(data)%chunk.Grid != 0 {
		panic("cut: span is not on the grid")
	}
	for len(data) > 0 {
		n := min(f.size-off%f.size, int64(len(data)))
		emit(int(n))
		off += n
		data = data[n:]
	}
}

// ByName finds the cutter that a record names.
func ByName(name string) (Cutter, error) {
	if name == Fixed64K.Name() {
		return Fixed64K, nil
	}
	return nil, errs.Text("find cutter", name, errs.Unsupported, "this version of Holdfast does not know it").
		WithNext("Use the version that made the store, or a newer one.")
}
