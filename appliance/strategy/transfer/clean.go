package transfer

import (
	"context"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// afterCommit removes what the new point replaces, and its own snapshot unless that is to stay. The point is safe: what
// fails here is told, and the record stays, for Recover to try again.
func (b *backup) afterCommit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupWithin)
	defer cancel()
	b.Report.Step("remove snapshots")
	if b.Keep {
		b.Report.Note("A snapshot stays at the engine, from which the next backup reads what changed: \"" + b.run.Description + "\".")
	}
	if err := b.settle(ctx); err != nil {
		b.Report.Note("A snapshot could not be removed yet; the node goes on trying: " + err.Error())
		return
	}
	b.forget()
}

// settle removes what is not needed once the point is committed.
func (b *backup) settle(ctx context.Context) error {
	if !b.run.Keep {
		if err := b.removeOurs(ctx); err != nil {
			return err
		}
	}
	if b.run.Old != "" && b.run.Old != b.run.Snapshot {
		if err := b.removeSnapshot(ctx, func(s ovirt.Snapshot) bool { return s.ID == b.run.Old }); err != nil {
			return err
		}
	}
	if b.run.Checkpoint == "" {
		return nil
	}
	return b.wait.Until(ctx, mergeWithin, func() (bool, error) {
		err := b.Engine.RemoveCheckpoint(ctx, b.run.VM, b.run.Checkpoint)
		switch {
		case errs.Is(err, errs.Busy):
			return false, nil
		case errs.Is(err, errs.NotFound):
			return true, nil
		}
		return err == nil, err
	})
}

func (b *backup) forget() {
	if err := b.Journal.ForgetRun(b.run.ID); err != nil && !errs.Is(err, errs.NotFound) {
		b.Report.Note("The run's record could not be removed: " + err.Error())
	}
}

// clean takes everything of a failed run away from the engine and returns the error, with what is left if something is.
// The last point's snapshot stays: the next backup can still build on it.
func (b *backup) clean(ctx context.Context, cause error) error {
	if !b.asked {
		return cause
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupWithin)
	defer cancel()
	b.Report.StepFailed()
	b.Report.Step("clean up")
	if err := b.undo(ctx); err != nil {
		return task.Cleaned(cause, "NOT yet: the snapshot \""+b.run.Description+"\" of VM "+b.run.VMName+" may still be on the engine ("+
			err.Error()+"); the node goes on trying")
	}
	b.forget()
	return task.Cleaned(cause, "nothing of the backup is left on the engine")
}

// undo ends the run's transfers and removes its snapshot.
func (b *backup) undo(ctx context.Context) error {
	if err := b.endTransfers(ctx); err != nil {
		return err
	}
	return b.removeOurs(ctx)
}

// endTransfers gives up every transfer of the run that has not ended.
func (b *backup) endTransfers(ctx context.Context) error {
	if len(b.run.Transfers) == 0 {
		return nil
	}
	var live []ovirt.Transfer
	if err := b.wait.Patiently(ctx, func() (err error) {
		live, err = b.Engine.LiveTransfers(ctx)
		return err
	}); err != nil {
		return err
	}
	for _, r := range b.run.Transfers {
		for _, t := range live {
			if !r.made(t) {
				continue
			}
			if err := b.wait.Cancel(ctx, t); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *backup) removeOurs(ctx context.Context) error { return b.removeSnapshot(ctx, b.ours) }

// removeSnapshot removes a snapshot and waits until it is merged. Right after it was asked for the engine still shows it
// as ok, and refuses to be asked again; when a merge has failed it shows it as ok too, and has to be.
func (b *backup) removeSnapshot(ctx context.Context, which func(ovirt.Snapshot) bool) error {
	return b.wait.Until(ctx, mergeWithin, func() (bool, error) {
		s, err := b.find(ctx, which)
		if errs.Is(err, errs.NotFound) {
			return true, nil
		}
		if err != nil || s.Status == snapshotLocked {
			return false, err
		}
		if s.Status != snapshotOK { // this is for a person to end
			return false, errs.Text("remove snapshot", s.Description, errs.Busy, "it is "+s.Status).
				WithNext("Undo or commit the preview of the VM's snapshot in the engine.")
		}
		b.Report.Detail("the engine merges a snapshot")
		err = b.Engine.RemoveSnapshot(ctx, b.run.VM, s.ID)
		if errs.Is(err, errs.Busy) || errs.Is(err, errs.NotFound) {
			err = nil
		}
		return false, err
	})
}

// Recover finishes what a run left behind when the node was killed. It returns the point that the run had committed, or
// "". After an error the record stays, and Recover is called again.
func Recover(ctx context.Context, o Options, run Run) (point string, err error) {
	o.defaults()
	b := &backup{Options: o, wait: o.waiting(), run: run}
	points, bad := o.Store.Points(ctx)
	if points == nil && len(bad) > 0 {
		return "", bad[0]
	}
	for _, p := range points {
		if p.Labels[appliance.LabelRun] == run.ID {
			point = string(p.ID)
		}
	}
	finish := b.undo
	if point != "" {
		finish = b.settle // its transfers were ended before the commit
	}
	if err := finish(ctx); err != nil {
		return point, errs.Wrap("clean up after run", run.ID, err)
	}
	if err := o.Journal.ForgetRun(run.ID); err != nil && !errs.Is(err, errs.NotFound) {
		return point, err
	}
	return point, nil
}
