// Package cut decides where a disk's content is split into pieces: chunks, and runs of zeros. A Cutter is a pure function
// of the bytes and of their offset on the disk, so equal content at equal offsets is always cut alike.
//
// Two cutters are known. CDC, the default of new stores, cuts where the content says so: content that moved by any
// number of blocks is cut into the same chunks again, so that the same files on another machine are found. Fixed64K cuts
// at every 64 KiB.
//
// Invariants: every piece is a multiple of chunk.Grid long, and at most chunk.MaxSize unless it is zeros; pieces cover
// the span exactly; no piece crosses a multiple of Window, so that a change is cut anew at most to the end of the window
// it lies in. Cutting needs no memory of what came before a piece: whoever begins where a piece ends gets the pieces that
// follow it. That is what lets a backup of changes cut only around them and still arrive at the cut of the whole disk.
//
// The name of the cutter is recorded with every disk of a restore point (docs/format/point.md): a store may hold points
// cut in different ways, and any exact cover can be read, whoever cut it. What a name means never changes;
// docs/format/cutting.md defines it, with vectors.
//
// The package does no I/O. Cutters have no state and may be used concurrently.
package cut

import (
	"strings"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Window is the distance in bytes at which every cutter starts anew. It never changes.
const Window = 4 << 20

// Cutter splits spans of a disk. Offsets and lengths are in bytes and multiples of chunk.Grid.
type Cutter interface {
	// Name is what a point's record says: part of the format.
	Name() string
	// Next returns the length of the first piece of data, which begins at byte off of the disk, where a piece begins. The
	// piece is final if it would be the same whatever came behind data; if not, its length is that of data, and more of
	// the disk is needed to tell. A run of zeros may be final wherever data ends: it can be ended anywhere.
	Next(off int64, data []byte) (n int, final bool)
	// Resume returns where cutting has to begin again when the block at off, where there were zeros, is zeros no longer.
	// The run of zeros began at zeros, where a piece ended; from there on up to off nothing has changed. An offset
	// before zeros means that the piece which ended there is to be cut again too: it may go on now.
	Resume(zeros, off int64) int64
}

// Cut calls emit with the length of each piece of data, which begins at byte off of the disk.
func Cut(c Cutter, off int64, data []byte, emit func(n int)) {
	for len(data) > 0 {
		n, _ := c.Next(off, data)
		emit(n)
		off += int64(n)
		data = data[n:]
	}
}

// cutters are all that there are, the default first.
var cutters = []Cutter{CDC{}, Fixed64K}

// Default is the name of the cutter that new stores get.
const Default = "cdc"

// Names lists the cutters, the default first.
func Names() []string {
	var out []string
	for _, c := range cutters {
		out = append(out, c.Name())
	}
	return out
}

// ByName finds the cutter that a record names.
func ByName(name string) (Cutter, error) {
	for _, c := range cutters {
		if c.Name() == name {
			return c, nil
		}
	}
	return nil, errs.Text("find cutter", name, errs.Unsupported, "this version of Holdfast knows only "+strings.Join(Names(), " and ")).
		WithNext("Use the version that made the store, or a newer one.")
}

// checkSpan panics if a span is not on the grid: nothing of ours makes such spans.
func checkSpan(off int64, data []byte) {
	if off < 0 || off%chunk.Grid != 0 || len(data) == 0 || len(data)%chunk.Grid != 0 {
		panic("cut: span is empty or not on the grid")
	}
}
