package cbt

import (
	"context"
	"slices"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// finish ends a backup and waits until the engine is done with it.
func (b *backup) finish(ctx context.Context, id ovirt.ID) error {
	// Ending it twice is refused, and harmless: what counts is the phase.
	refused := b.Engine.FinalizeBackup(ctx, b.run.VM, id)
	if errs.Is(refused, errs.NotFound) {
		return nil // purged: it is over
	}
	return b.wait.Until(ctx, finishWithin, func() (bool, error) {
		got, err := b.Engine.Backup(ctx, b.run.VM, id)
		if errs.Is(err, errs.NotFound) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		switch got.Phase {
		case ovirt.BackupSucceeded, ovirt.BackupFailed:
			return true, nil
		case ovirt.BackupFinalizing:
			return false, nil
		}
		// It is not ending: an active transfer, or a lock, kept it from it. Ask again.
		if refused != nil {
			refused = b.Engine.FinalizeBackup(ctx, b.run.VM, id)
			if refused != nil && !errs.Is(refused, errs.Busy) && !errs.Is(refused, errs.Transient) && !errs.Is(refused, errs.Stale) {
				return false, refused
			}
		}
		return false, nil
	})
}

// afterCommit removes the checkpoint that the new point replaces, and the record. The point is safe: what fails here is
// told, and the record stays, for Recover to try again.
func (b *backup) afterCommit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupWithin)
	defer cancel()
	b.Report.Step("remove the old checkpoint")
	done := true
	for _, t := range b.run.Tries[:len(b.run.Tries)-1] {
		if err := b.undo(ctx, t); err != nil {
			done = false
			b.Report.Note("An earlier try's backup could not be taken away yet; the node goes on trying: " + err.Error())
		}
	}
	if b.run.Old != "" && b.run.Old != b.live.ToCheckpoint {
		if err := b.removeCheckpoint(ctx, b.run.Old); err != nil {
			done = false
			b.Report.Note("The old checkpoint could not be removed yet; the node goes on trying: " + err.Error())
		}
	}
	if err := b.removeSnapshot(ctx); err != nil {
		done = false
		b.Report.Note("The snapshot that the last point had kept could not be removed yet; the node goes on trying: " + err.Error())
	}
	if done {
		if err := b.Journal.ForgetRun(b.run.ID); err != nil && !errs.Is(err, errs.NotFound) {
			b.Report.Note("The run's record could not be removed: " + err.Error())
		}
	}
}

// removeSnapshot removes what another strategy has kept, and waits until it is merged. For a moment after it was asked for
// the engine still shows it as ok, and refuses to be asked again.
func (b *backup) removeSnapshot(ctx context.Context) error {
	if b.run.Snapshot == "" {
		return nil
	}
	return b.wait.Until(ctx, finishWithin, func() (bool, error) {
		all, err := b.Engine.Snapshots(ctx, b.run.VM)
		if err != nil {
			return false, err
		}
		i := slices.IndexFunc(all, func(s ovirt.Snapshot) bool { return s.ID == b.run.Snapshot })
		if i < 0 || all[i].Status != "ok" {
			return i < 0, nil
		}
		err = b.Engine.RemoveSnapshot(ctx, b.run.VM, b.run.Snapshot)
		if errs.Is(err, errs.Busy) || errs.Is(err, errs.NotFound) {
			err = nil
		}
		return false, err
	})
}

func (b *backup) removeCheckpoint(ctx context.Context, id ovirt.ID) error {
	return b.wait.Until(ctx, finishWithin, func() (bool, error) {
		err := b.Engine.RemoveCheckpoint(ctx, b.run.VM, id)
		if errs.Is(err, errs.Busy) {
			return false, nil
		}
		if errs.Is(err, errs.NotFound) {
			err = nil
		}
		return err == nil, err
	})
}

// clean takes everything of a failed run away from the engine and returns the error, with what is left if something is.
func (b *backup) clean(ctx context.Context, cause error) error {
	if len(b.run.Tries) == 0 {
		return cause // nothing was asked for yet
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupWithin)
	defer cancel()
	b.Report.StepFailed()
	b.Report.Step("clean up")
	for _, t := range b.run.Tries {
		if err := b.undo(ctx, t); err != nil {
			return task.Cleaned(cause, "NOT yet: backup "+string(t.ID)+" of VM "+b.run.VMName+" may still be on the engine ("+
				err.Error()+"); the node goes on trying")
		}
	}
	if err := b.Journal.ForgetRun(b.run.ID); err != nil && !errs.Is(err, errs.NotFound) {
		b.Report.Note("The run's record could not be removed: " + err.Error())
	}
	return task.Cleaned(cause, "nothing of the backup is left on the engine")
}

// undo ends a backup's transfers and the backup, and removes the checkpoint it made.
func (b *backup) undo(ctx context.Context, t RunBackup) error {
	var transfers []ovirt.Transfer
	if err := b.wait.Patiently(ctx, func() (err error) {
		transfers, err = b.Engine.Transfers(ctx, t.ID)
		return err
	}); err != nil {
		return err
	}
	for _, x := range transfers {
		if err := b.wait.Cancel(ctx, x); err != nil {
			return err
		}
	}
	var got ovirt.Backup
	err := b.wait.Patiently(ctx, func() (err error) {
		got, err = b.Engine.Backup(ctx, b.run.VM, t.ID)
		return err
	})
	if err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	if err == nil && !over(got.Phase) {
		if err := b.finish(ctx, t.ID); err != nil {
			return err
		}
	}
	return b.removeMade(ctx, t, got.ToCheckpoint)
}

// over tells whether a backup holds nothing any more.
func over(p ovirt.BackupPhase) bool { return p == ovirt.BackupSucceeded || p == ovirt.BackupFailed }

// removeMade removes the checkpoint that a backup made. Which one it is says the record, or the engine, or, if we were
// killed in between and the engine has forgotten the backup, that it was not there before and is the last of its chain
// with our backup's time; a checkpoint that may be somebody else's is left alone.
func (b *backup) removeMade(ctx context.Context, t RunBackup, to ovirt.ID) error {
	if to == "" {
		to = t.To
	}
	if to == "" || slices.Contains(t.Known, to) {
		return nil
	}
	return b.removeCheckpoint(ctx, to)
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
		if p.Labels[appliance.LabelRun] != run.ID {
			continue
		}
		point = string(p.ID)
		b.live.ToCheckpoint = ovirt.ID(p.Labels[appliance.LabelCheckpoint])
	}
	for _, t := range run.Tries {
		if point != "" && t.To == b.live.ToCheckpoint {
			continue // its checkpoint is the point's; its backup was ended before the commit
		}
		if err := b.undo(ctx, t); err != nil {
			return point, errs.Wrap("clean up after run", run.ID, err)
		}
	}
	if point != "" && run.Old != "" && run.Old != b.live.ToCheckpoint {
		if err := b.removeCheckpoint(ctx, run.Old); err != nil {
			return point, errs.Wrap("clean up after run", run.ID, err)
		}
	}
	if point != "" {
		if err := b.removeSnapshot(ctx); err != nil {
			return point, errs.Wrap("clean up after run", run.ID, err)
		}
	}
	if err := o.Journal.ForgetRun(run.ID); err != nil && !errs.Is(err, errs.NotFound) {
		return point, err
	}
	return point, nil
}
