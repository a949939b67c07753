package instant

import (
	"context"
	"fmt"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Release takes a session apart. A VM whose disks are still served is only stopped and removed if removeVM says so:
// without it, errs.Busy says what is in the way. What fails is shown and tried again.
func Release(ctx context.Context, o Options, r *Record, removeVM bool, report Reporter) error {
	w := newWorker(o, r, report)
	if !removeVM && !r.Undoing && r.State != appliance.SessionRelease {
		if err := w.checkUnused(ctx); err != nil {
			return err
		}
	}
	r.RemoveVM = r.RemoveVM || removeVM
	if err := w.release(ctx); err != nil {
		return task.Cleaned(errs.Wrap("release session", r.ID, err),
			"NOT all of it; `holdfast session release "+r.ID+"` goes on where this ended, and so does the node at its next start")
	}
	w.event(ctx, ovirt.EventNormal, fmt.Sprintf("Holdfast: session %s was released.", r.ID))
	return nil
}

// checkUnused refuses to take away what a VM stands on.
func (w *worker) checkUnused(ctx context.Context) error {
	for _, v := range w.r.Volumes {
		d, err := w.Engine.Disk(ctx, ovirt.ID(v.Disk))
		if errs.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if d.Domain == ovirt.ID(w.r.DomainID) {
			return errs.Text("release session", w.r.ID, errs.Busy, "the VM "+w.r.VM+" still has disks that this node serves").
				WithNext("Migrate them first (`holdfast session migrate " + w.r.ID + " --to DOMAIN`), or give up the VM and all it wrote with --discard.")
		}
	}
	return nil
}

// release is the undo of every state, in reverse order. Each part looks first.
func (w *worker) release(ctx context.Context) error {
	if err := w.enter(appliance.SessionRelease); err != nil {
		return err
	}
	for _, part := range []func(context.Context) error{w.removeVM, w.removeDisks, w.removeDomain, w.removeConnection} {
		// An engine that does not answer is waited for: what is left on it would be seen by every host.
		if err := w.repeat(ctx, "take the session apart", func() error { return part(ctx) }); err != nil {
			return err
		}
	}
	w.report.Detail("closing the export")
	if err := w.Exporter.Close(ctx, w.r.ID); err != nil {
		return err
	}
	end := appliance.SessionReleased
	if w.r.Undoing {
		end = appliance.SessionFailed
		if w.r.Problem != nil {
			w.r.Problem.Cleaned = undone
		}
	}
	w.r.OVF = "" // the point has it
	return w.enter(end)
}

// removeVM takes the VM away, if it is to go.
func (w *worker) removeVM(ctx context.Context) error {
	if !w.r.RemoveVM {
		return nil
	}
	vm, err := w.findOurs(ctx)
	if errs.Is(err, errs.NotFound) || errs.Is(err, errs.Exists) { // gone, never made, or not ours
		return nil
	}
	if err != nil {
		return err
	}
	w.report.Detail("removing the VM")
	stopped := false
	err = poll(ctx, w.Poll, vmWithin, "wait until the VM is down", func() (bool, error) {
		vm, err = w.Engine.VM(ctx, vm.ID)
		if errs.Is(err, errs.NotFound) {
			return true, nil
		}
		if err != nil || vm.Status == ovirt.VMDown {
			return err == nil, err
		}
		if !stopped {
			if err := w.Engine.StopVM(ctx, vm.ID); err != nil {
				return false, err
			}
			stopped = true
		}
		return false, nil
	})
	if err != nil {
		return err
	}
	// The disks are removed one by one afterwards: those that are on our domain, and no others.
	if err := retryBusy(ctx, w.Poll, vmWithin, func() error {
		err := w.Engine.RemoveVM(ctx, vm.ID, true)
		if errs.Is(err, errs.NotFound) {
			return nil
		}
		return err
	}); err != nil {
		return err
	}
	return poll(ctx, w.Poll, vmWithin, "wait until the VM is gone", func() (bool, error) {
		_, err := w.Engine.VM(ctx, vm.ID)
		if errs.Is(err, errs.NotFound) {
			return true, nil
		}
		return false, err
	})
}

// removeDisks takes the session's disks away, as far as they still lie on its domain.
func (w *worker) removeDisks(ctx context.Context) error {
	for _, v := range w.r.Volumes {
		id := ovirt.ID(v.Disk)
		err := poll(ctx, w.Poll, vmWithin, "remove the disk", func() (bool, error) {
			d, err := w.Engine.Disk(ctx, id)
			if errs.Is(err, errs.NotFound) {
				return true, nil
			}
			if err != nil {
				return false, err
			}
			if d.Domain != ovirt.ID(w.r.DomainID) && d.Domain != "" {
				return true, nil // migrated: it belongs to the VM
			}
			if d.Status == ovirt.DiskLocked {
				return false, nil
			}
			err = w.Engine.RemoveDisk(ctx, id)
			if errs.Is(err, errs.NotFound) {
				err = nil
			}
			return false, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// removeDomain has the engine let go of the domain: maintenance, detach, remove.
func (w *worker) removeDomain(ctx context.Context) error {
	id := ovirt.ID(w.r.DomainID)
	d, err := w.Engine.Domain(ctx, w.r.DataCenter, id)
	if err == nil {
		w.report.Detail("the domain goes to maintenance")
		asked := false
		if err := poll(ctx, w.Poll, attachWithin, "wait for maintenance", func() (bool, error) {
			d, err = w.Engine.Domain(ctx, w.r.DataCenter, id)
			if errs.Is(err, errs.NotFound) || err == nil && d.Status == ovirt.DomainMaintenance {
				return true, nil
			}
			if err != nil {
				return false, err
			}
			if !asked && d.Status != ovirt.DomainPreparing && d.Status != ovirt.DomainLocked {
				err := w.Engine.DeactivateDomain(ctx, w.r.DataCenter, id)
				asked = err == nil
				return false, err
			}
			return false, nil
		}); err != nil {
			return err
		}
		w.report.Detail("detaching the domain")
		if err := w.repeat(ctx, "detach the domain", func() error { return w.Engine.DetachDomain(ctx, w.r.DataCenter, id) }); err != nil {
			return err
		}
		if err := poll(ctx, w.Poll, attachWithin, "wait until the domain is detached", func() (bool, error) {
			_, err := w.Engine.Domain(ctx, w.r.DataCenter, id)
			if errs.Is(err, errs.NotFound) {
				return true, nil
			}
			return false, err
		}); err != nil {
			return err
		}
	} else if !errs.Is(err, errs.NotFound) {
		return err
	}
	if _, err := w.Engine.FindDomain(ctx, id); errs.Is(err, errs.NotFound) {
		return nil
	} else if err != nil {
		return err
	}
	w.report.Detail("removing the domain")
	return w.repeat(ctx, "remove the domain", func() error { return w.Engine.RemoveDomain(ctx, id, w.r.Host) })
}

// repeat retries what is refused for a passing reason; what is gone already is done.
func (w *worker) repeat(ctx context.Context, what string, f func() error) error {
	return poll(ctx, w.Poll, attachWithin, what, func() (bool, error) {
		err := f()
		if errs.Is(err, errs.NotFound) {
			err = nil
		}
		return err == nil, err
	})
}

// removeConnection takes away the connection; the engine may have done so with the domain.
func (w *worker) removeConnection(ctx context.Context) error {
	c, err := w.Engine.FindConnection(ctx, w.r.Address, w.r.Path)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return w.repeat(ctx, "remove the connection", func() error { return w.Engine.RemoveConnection(ctx, c.ID, w.r.Host) })
}
