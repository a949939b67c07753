package instant

import (
	"context"
	"fmt"
	"strings"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// problem tells an error as people get it.
func problem(err error) *appliance.Problem { return task.ProblemOf(err) }

// maxMoves is how often a disk's move is begun before it is given up: the engine aborts one that meets another
// operation.
const maxMoves = 5

// Migrate moves the session's disks to production storage, one after the other, while the VM runs. A disk that cannot be
// moved goes on being served; the session stays as it is, and Migrate can be called again.
func Migrate(ctx context.Context, o Options, r *Record, report Reporter) error {
	w := newWorker(o, r, report)
	if r.Target == "" {
		return errs.Text("migrate session", r.ID, errs.Invalid, "no storage to migrate to was named").WithNext("Name one with --to.")
	}
	if err := w.enter(appliance.SessionMigrating); err != nil {
		return err
	}
	for i := range r.Volumes {
		if err := w.move(ctx, i); err != nil {
			if task.Ending(ctx) {
				return err // the engine goes on moving, and the next start goes on watching
			}
			w.report.StepFailed()
			back := w.enter(appliance.SessionRunning)
			err = errs.Wrap("migrate disk", r.Volumes[i].Alias, err)
			if back != nil {
				return back
			}
			err = task.Cleaned(err, "the disk goes on being served by this node, the VM runs, and nothing was lost; `holdfast session migrate "+r.ID+"` tries again")
			w.event(ctx, ovirt.EventWarning, fmt.Sprintf("Holdfast: a disk of %s could not be migrated (session %s).", r.VM, r.ID))
			return err
		}
	}
	if err := w.enter(appliance.SessionMigrated); err != nil {
		return err
	}
	w.event(ctx, ovirt.EventNormal, fmt.Sprintf("Holdfast: the disks of %s were migrated to %s (session %s).", r.VM, r.MigrateTo, r.ID))
	return nil
}

// move moves one disk and proves that it is there.
func (w *worker) move(ctx context.Context, i int) error {
	id := ovirt.ID(w.r.Volumes[i].Disk)
	for n := range maxMoves {
		there, err := w.arrived(ctx, id)
		if err != nil {
			return err
		}
		if there {
			w.r.Disks[i].Migrated, w.r.MoveTag = true, ""
			return w.Journal.KeepSession(*w.r)
		}
		if w.r.MoveTag == "" { // else a move of ours is under way, from before a crash
			w.r.MoveTag = fmt.Sprintf("holdfast-%s-%d-%s", w.r.ID, i, task.NewID())[:min(36, len(w.r.ID)+24)]
			if err := w.Journal.KeepSession(*w.r); err != nil {
				return err
			}
			w.report.Detail(fmt.Sprintf("disk %d of %d to %s, try %d", i+1, len(w.r.Volumes), w.r.MigrateTo, n+1))
			tagged := ovirt.WithCorrelation(ctx, w.r.MoveTag)
			if err := retryBusy(ctx, w.Poll, vmWithin, func() error { return w.Engine.MoveDisk(tagged, id, w.r.Target) }); err != nil {
				return err
			}
		}
		failed, err := w.awaitMove(ctx, i)
		if err != nil {
			return err
		}
		w.r.MoveTag = ""
		if failed != "" {
			w.report.Note("The engine gave the move up: " + failed)
		}
	}
	return errs.Text("move disk", string(id), errs.Transient, fmt.Sprintf("the engine gave up %d times", maxMoves)).
		WithNext("See the VM's events in the engine.")
}

// arrived tells whether a disk lies on the target, whole: the engine shows the new place before the move is over, so the
// disk's status and the move's own snapshot count too.
func (w *worker) arrived(ctx context.Context, id ovirt.ID) (bool, error) {
	d, err := w.Engine.Disk(ctx, id)
	if err != nil || d.Domain != w.r.Target || d.Status != ovirt.DiskOK {
		return false, err
	}
	return w.noMoveSnapshot(ctx)
}

func (w *worker) noMoveSnapshot(ctx context.Context) (bool, error) {
	list, err := w.Engine.Snapshots(ctx, ovirt.ID(w.r.VMID))
	if err != nil {
		return false, err
	}
	for _, s := range list {
		if strings.Contains(s.Description, "Auto-generated for Live Storage Migration") {
			return false, nil
		}
	}
	return true, nil
}

// awaitMove follows a move to its end. It returns why the engine gave it up, or "".
func (w *worker) awaitMove(ctx context.Context, i int) (failed string, err error) {
	id := ovirt.ID(w.r.Volumes[i].Disk)
	seenJob, quiet := false, 0
	err = poll(ctx, w.Poll, moveWithin, "wait for the move", func() (bool, error) {
		w.moveProgress(i)
		jobs, err := w.Engine.Jobs(ctx, w.r.MoveTag)
		if err != nil {
			return false, err
		}
		running, bad := false, ""
		for _, j := range jobs {
			seenJob = true
			switch j.Status {
			case "started", "":
				running = true
			case "failed", "aborted":
				bad = j.Description + ": " + j.Status
			}
		}
		if running {
			return false, nil
		}
		there, err := w.arrived(ctx, id)
		if err != nil || there {
			return there, err
		}
		d, err := w.Engine.Disk(ctx, id)
		if err != nil || d.Status != ovirt.DiskOK {
			quiet = 0
			return false, err // the engine still tidies up
		}
		if bad != "" {
			failed = bad
			return true, nil
		}
		// No job and a disk at rest where it was: the engine never began, or has forgotten. Look a few more times first.
		if quiet++; quiet > quietLooks {
			failed = "the engine shows neither a task nor a move"
			if seenJob {
				failed = "the engine's task ended without moving the disk"
			}
			return true, nil
		}
		return false, nil
	})
	return failed, err
}

// quietLooks is how often nothing may be seen of a move before it counts as never begun.
const quietLooks = 18

// moveProgress estimates how far the copy is. The engine gives no bytes; but what the host has read of the disk from us
// since the move began is what it has copied.
func (w *worker) moveProgress(i int) {
	read, dirty := w.Exporter.Traffic(w.r.ID, w.r.Disks[i].Number)
	if w.r.Disks[i].ReadBytes == 0 || w.r.Disks[i].ReadBytes > read {
		w.r.Disks[i].ReadBytes = read
	}
	w.r.Disks[i].DirtyBytes = dirty
	total := w.r.Disks[i].DataBytes + dirty
	w.report.Progress(appliance.Progress{DoneBytes: min(read-w.r.Disks[i].ReadBytes, total), TotalBytes: total})
}
