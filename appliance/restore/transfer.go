package restore

import (
	"context"

	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// makeDisk has the engine make an empty disk and waits until it is there.
func (w *worker) makeDisk(ctx context.Context, i int) error {
	d := w.r.Disks[i]
	id := ovirt.ID(d.ID)
	spec := ovirt.NewDisk{
		ID: id, Alias: d.Alias, Description: w.r.mark(), Domain: w.r.Domains[i], Format: ovirt.DiskFormat(d.Format), Sparse: d.Sparse, Size: d.SizeBytes,
		Initial: w.r.Initial[i], Incremental: d.Format == string(ovirt.FormatCow), Shareable: w.r.Shareable[i],
	}
	if err := w.patient(ctx, diskWithin, "make the disk", func() error {
		err := w.Engine.CreateDisk(ctx, spec)
		if errs.Is(err, errs.Exists) { // the ID is ours: an answer was lost
			err = nil
		}
		return err
	}); err != nil {
		return err
	}
	return w.poll(ctx, diskWithin, "wait for the disk", func() (bool, error) {
		x, err := w.Engine.Disk(ctx, id)
		if errs.Is(err, errs.NotFound) {
			return false, errs.Text("make the disk", d.Alias, errs.Stale, "the engine could not make it").
				WithNext("See the engine's events: the storage domain may be full or away.")
		}
		if err == nil && x.Status == ovirt.DiskIllegal {
			return false, errs.Text("make the disk", d.Alias, errs.Stale, "the engine calls it illegal").WithNext("See the engine's events.")
		}
		return err == nil && x.Status == ovirt.DiskOK, err
	})
}

// transfer asks for an upload and waits until it can be written.
func (w *worker) transfer(ctx context.Context, disk ovirt.ID) (t ovirt.Transfer, err error) {
	asked := false
	err = w.patient(ctx, transferWithin, "start the upload", func() (err error) {
		if asked { // if the answer was lost, there may be one
			live, err := w.Engine.DiskTransfers(ctx, disk)
			if err != nil {
				return err
			}
			if len(live) > 0 {
				t = live[0]
				return nil
			}
		}
		asked = true
		t, err = w.Engine.StartTransfer(ctx, ovirt.TransferSpec{Disk: disk, Upload: true, Inactivity: inactivity})
		return err
	})
	if err != nil {
		return t, err
	}
	err = w.poll(ctx, transferWithin, "start the upload", func() (bool, error) {
		if t.Phase == ovirt.TransferTransferring && t.TransferURL != "" || broken(t.Phase) {
			return true, nil
		}
		got, err := w.Engine.Transfer(ctx, t.ID)
		if err == nil {
			t = got
		}
		return false, err
	})
	if err == nil && broken(t.Phase) {
		err = errs.Text("start the upload", string(t.ID), errs.Stale, "the engine's transfer is "+string(t.Phase)).
			WithNext("See the engine's events, and that ovirt-imageio runs on the host.")
	}
	return t, err
}

// broken tells whether a transfer will not become a good one.
func broken(p ovirt.TransferPhase) bool {
	switch p {
	case ovirt.TransferCancelledSystem, ovirt.TransferPausedSystem, ovirt.TransferFinishedFailure, ovirt.TransferFinishedCleanup,
		"finalizing_failure", "finalizing_cleanup", "cancelled_user", "paused_user":
		return true
	}
	return false
}

// finish finalises an upload and waits until the engine has seen that the image is sound, and lets go of the disk.
func (w *worker) finish(ctx context.Context, id, disk ovirt.ID) error {
	err := w.patient(ctx, transferWithin, "finalize the upload", func() error { return w.Engine.FinalizeTransfer(ctx, id) })
	if gone(err) != nil {
		return err
	}
	if err := w.poll(ctx, transferWithin, "wait for the end of the upload", func() (bool, error) {
		t, err := w.Engine.Transfer(ctx, id)
		switch {
		case errs.Is(err, errs.NotFound): // the engine has forgotten it: what became of it is seen by the disk
			return true, nil
		case err == nil && broken(t.Phase):
			return false, errs.Text("finalize the upload", string(id), errs.Stale, "the engine's transfer is "+string(t.Phase)).
				WithNext("See the engine's events, and vdsm's log on the host.")
		}
		return t.Phase == ovirt.TransferFinishedSuccess, err
	}); err != nil {
		return err
	}
	return w.poll(ctx, transferWithin, "wait for the disk", func() (bool, error) {
		d, err := w.Engine.Disk(ctx, disk)
		if err == nil && d.Status == ovirt.DiskIllegal {
			return false, errs.Text("finalize the upload", string(id), errs.Stale, "the engine calls the disk illegal").WithNext("See the engine's events.")
		}
		return err == nil && d.Status == ovirt.DiskOK, err
	})
}
