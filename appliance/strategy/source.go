package strategy

import (
	"context"

	"github.com/holdfast-backup/holdfast/chunkstore"
)

// Source is a disk behind an image transfer, as the store reads it: the transfer shows all of the disk as it was at one
// moment, and Extents, which begins empty, says what has to be read of it.
type Source struct {
	Image   Image
	Extents Extents
}

var (
	_ chunkstore.Source = source{}
	_ chunkstore.Whole  = source{}
)

// Ingestible returns the source as the store takes it.
func (s *Source) Ingestible() chunkstore.Source { return source{s} }

type source struct{ *Source }

// ReadsUnchanged implements chunkstore.Whole.
func (source) ReadsUnchanged() bool { return true }

// Size implements chunkstore.Source.
func (s source) Size() int64 { return s.Image.Size() }

// Extents implements chunkstore.Source.
func (s source) Extents(_ context.Context, visit func(chunkstore.Extent) error) error {
	for _, e := range s.Source.Extents {
		if err := visit(e); err != nil {
			return err
		}
	}
	return nil
}

// ReadAt implements chunkstore.Source.
func (s source) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return s.Image.ReadAt(ctx, p, off)
}

// maxExtents bounds what is remembered of a disk: 24 bytes each. A disk in more pieces is read in full where they end.
const maxExtents = 4 << 20

// Extents is what is known of a disk, in order and without gaps.
type Extents []chunkstore.Extent

// Add appends an extent, joined with the one before it if both are alike.
func (x *Extents) Add(e chunkstore.Extent) {
	s := *x
	n := len(s)
	switch {
	case e.Len <= 0:
	case n > 0 && s[n-1].Kind == e.Kind && s[n-1].Off+s[n-1].Len == e.Off:
		s[n-1].Len += e.Len
	case n >= maxExtents: // what follows is read, whatever it is
		s[n-1].Kind = chunkstore.ExtentData
		s[n-1].Len = e.Off + e.Len - s[n-1].Off
	default:
		*x = append(s, e)
	}
}

// Needed returns how many bytes have to be read.
func (x Extents) Needed() (n int64) {
	for _, e := range x {
		if e.Kind == chunkstore.ExtentData {
			n += e.Len
		}
	}
	return n
}
