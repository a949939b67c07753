package chunkstore

import (
	"context"

	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Status describes a store from outside.
type Status struct {
	Points       int
	DamagedPoint int   // records that cannot be read
	LogicalBytes int64 // sum of all disks' sizes
	DataBytes    int64 // of them, what is not zeros
	Packs        int64
	PackBytes    int64 // that they take on the disk, data and pages
	CompactPacks int64 // compressed again, with more care
	OpenPacks    int64 // unfinished: a backup is running, or was killed
}

// Status counts. It reads records and names, not packs.
func (r *Reader) Status(ctx context.Context) (Status, error) {
	var s Status
	points, bad := r.Points(ctx)
	if points == nil && len(bad) > 0 {
		return s, bad[0]
	}
	s.Points, s.DamagedPoint = len(points), len(bad)
	for _, p := range points {
		for _, d := range p.Disks {
			s.LogicalBytes += d.Root.Size
			s.DataBytes += d.Root.Data
		}
	}
	for _, kind := range []pack.Kind{pack.Data, pack.Meta} {
		infos, err := r.b.List(ctx, kind.String()+"/")
		if err != nil {
			return s, errs.Wrap("list packs", r.dir, err)
		}
		for _, i := range infos {
			s.PackBytes += i.Occupied
		}
		for _, h := range packsIn(kind, infos) {
			if h.number == 0 {
				continue
			}
			s.Packs++
			if !h.sealed {
				s.OpenPacks++
			}
			if h.form == compact {
				s.CompactPacks++
			}
		}
	}
	return s, nil
}
