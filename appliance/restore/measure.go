package restore

import (
	"context"

	"github.com/holdfast-backup/holdfast/chunkstore"
)

// cluster is qcow2's, in bytes, as vdsm makes its volumes.
const cluster = 64 << 10

// measure returns what a disk of the point takes as qcow2, in bytes: never less than the file that the host will have.
func (p *preparation) measure(ctx context.Context, d chunkstore.Disk, size int64) (int64, error) {
	src, err := p.o.Source(ctx, p.q.Point.ID, d.Number)
	if err != nil {
		return 0, err
	}
	return measure(ctx, src, size)
}

func measure(ctx context.Context, src Source, size int64) (int64, error) {
	clusters, last := int64(0), int64(-1) // last is the last one that was counted
	err := src.Extents(ctx, 0, src.Size(), func(off, n int64, data bool) bool {
		if data && n > 0 {
			first, end := max(off/cluster, last+1), (off+n-1)/cluster
			clusters += max(0, end-first+1)
			last = max(last, end)
		}
		return ctx.Err() == nil
	})
	if err == nil {
		err = ctx.Err()
	}
	return qcow2Size(clusters, size), err
}

// qcow2Size is the length of a qcow2 file with so many clusters of data: header, the tables and counters of the whole disk,
// which qemu-img counts too, and some room for bitmaps.
func qcow2Size(clusters, size int64) int64 {
	const perTable = cluster / 8 // entries of 8 bytes
	all := (size + cluster - 1) / cluster
	l2 := (all + perTable - 1) / perTable
	l1 := (l2 + perTable - 1) / perTable
	tables := l2 + l1 + 1
	const perCounter = cluster / 2 // counters of 2 bytes
	blocks := (all+tables)/perCounter + 2
	counters := blocks + (blocks+perCounter-1)/perCounter + (blocks+perTable-1)/perTable + 1
	bitmap := all/8/cluster + 2
	return (clusters + tables + counters + bitmap) * cluster
}
