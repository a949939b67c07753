package transfer

import (
	"context"

	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// plan says how a disk is read.
type plan struct {
	volume ovirt.ID   // of the new snapshot: with all below it, the disk's content
	layers []ovirt.ID // above the kept snapshot, the oldest first; nil: all of the disk is read
}

// plan finds the volumes of every disk. Changes are known only where the kept snapshot's volume lies below the new one's:
// it does not after another snapshot was previewed or restored, and a disk that came meanwhile is in no kept snapshot.
//
// Snapshots are compared by their IDs and never by the volumes of another time: when a snapshot is merged the engine
// gives its volume to the next one, so that the kept snapshot may end with another volume than it did, and the content is
// still the same.
func (b *backup) plan(ctx context.Context) error {
	now, err := b.volumesOf(ctx, b.run.Snapshot)
	if err != nil {
		return err
	}
	then := map[string]ovirt.ID{}
	if b.parent != nil {
		if then, err = b.volumesOf(ctx, b.run.Old); err != nil {
			return err
		}
	}
	b.plans = map[string]plan{}
	for i := range b.disks {
		d := &b.disks[i]
		p := plan{volume: now[d.ID]}
		if p.volume == "" {
			return errs.Text("find the volume of disk", d.Alias, errs.Bug, "the engine does not show the disk in the snapshot")
		}
		d.Mode = "full"
		if b.parent != nil {
			why := ""
			if p.layers, why, err = b.layers(ctx, d.ID, p.volume, then[d.ID]); err != nil {
				return err
			}
			if why == "" && d.Parent == nil {
				why = "is not in the last point"
			}
			if d.Incremental = why == ""; d.Incremental {
				d.Mode = "incremental"
			} else {
				p.layers, b.reason = nil, "disk "+d.Alias+" "+why
			}
		}
		b.plans[d.ID] = p
	}
	return nil
}

// volumesOf returns the volumes that a snapshot ends with, by disk.
func (b *backup) volumesOf(ctx context.Context, snapshot ovirt.ID) (map[string]ovirt.ID, error) {
	var list []ovirt.SnapshotDisk
	err := b.wait.Patiently(ctx, func() (err error) {
		list, err = b.Engine.SnapshotDisks(ctx, b.VM.ID, snapshot)
		return err
	})
	out := map[string]ovirt.ID{}
	for _, d := range list {
		out[string(d.Disk)] = d.Volume
	}
	return out, err
}

// layers goes from a volume down to another one and returns what lies above that, the oldest first, or why there is no way.
func (b *backup) layers(ctx context.Context, disk string, from, to ovirt.ID) (layers []ovirt.ID, why string, err error) {
	if to == "" {
		return nil, "is not in the last point's snapshot", nil
	}
	var all []ovirt.Volume
	if err := b.wait.Patiently(ctx, func() (err error) {
		all, err = b.Engine.Volumes(ctx, ovirt.ID(disk))
		return err
	}); err != nil {
		return nil, "", err
	}
	known := map[ovirt.ID]ovirt.Volume{}
	for _, v := range all {
		known[v.ID] = v
	}
	for at := from; at != to; {
		v, ok := known[at]
		if !ok || v.Parent == "" {
			return nil, "does not lie on the last point's snapshot any more (another one was restored)", nil
		}
		if v.Format != ovirt.FormatCow { // a raw one does not tell what is its own
			return nil, "has a " + string(v.Format) + " layer, which does not tell what changed", nil
		}
		delete(known, at) // a circle ends here
		layers = append([]ovirt.ID{at}, layers...)
		at = v.Parent
	}
	if len(layers) == 0 {
		return nil, "has no layer since the last point's snapshot", nil
	}
	return layers, "", nil
}
