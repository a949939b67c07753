package restore

import (
	"context"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// undo takes away all that the restore made, and ends it. Each part looks first.
func (w *worker) undo(ctx context.Context) error {
	if err := w.enter(appliance.RestoreUndo); err != nil {
		return err
	}
	w.report.Detail("removing the VM")
	if err := w.removeVM(ctx); err != nil {
		return err
	}
	for i := range w.r.Disks {
		w.report.Detail("removing disk " + w.r.Disks[i].Alias)
		if err := w.clear(ctx, i); err != nil {
			return err
		}
	}
	return w.keep(func(r *Record) {
		r.State, r.OVF = appliance.RestoreFailed, ""
		if r.Problem != nil {
			r.Problem.Cleaned = undone
		}
	})
}

// removeVM takes the restore's VM away, and leaves its disks.
func (w *worker) removeVM(ctx context.Context) error {
	stopped := false
	return w.poll(ctx, vmWithin, "remove the VM", func() (bool, error) {
		vm, err := w.findOurs(ctx)
		switch {
		case errs.Is(err, errs.NotFound) || errs.Is(err, errs.Exists): // gone, never made, or not ours
			return true, nil
		case err != nil:
			return false, err
		case vm.Status == ovirt.VMDown:
			return false, gone(w.Engine.RemoveVM(ctx, vm.ID, true))
		case !stopped:
			err := w.Engine.StopVM(ctx, vm.ID)
			stopped = err == nil
			return false, err
		}
		return false, nil
	})
}

// clear sees to it that nothing is on the engine of a disk: no transfer, no disk. A cancelled upload takes its disk with
// it, some time later.
func (w *worker) clear(ctx context.Context, i int) error {
	id := ovirt.ID(w.r.Disks[i].ID)
	asked := map[ovirt.ID]bool{}
	return w.poll(ctx, diskWithin, "remove the disk", func() (bool, error) {
		live, err := w.Engine.DiskTransfers(ctx, id)
		if err != nil {
			return false, err
		}
		for _, t := range live {
			if asked[t.ID] {
				continue
			}
			if err := gone(w.Engine.CancelTransfer(ctx, t.ID)); err != nil {
				return false, err
			}
			asked[t.ID] = true
		}
		d, err := w.Engine.Disk(ctx, id)
		switch {
		case errs.Is(err, errs.NotFound):
			return len(live) == 0, nil
		case err != nil || len(live) > 0 || d.Status == ovirt.DiskLocked:
			return false, err
		}
		return false, gone(w.Engine.RemoveDisk(ctx, id))
	})
}
