package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/catalog"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/ovirt/imageio"
	"github.com/holdfast-backup/holdfast/appliance/restore"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func (n *Node) restores() ([]restore.Record, []error) {
	return catalog.List[restore.Record](n.catalog, catalog.Restores)
}

// KeepRestore implements restore.Journal.
func (n *Node) KeepRestore(r restore.Record) error { return n.catalog.Put(catalog.Restores, r.ID, r) }

func (n *Node) restoreOptions(ctx context.Context, manager string) (restore.Options, error) {
	c, err := n.managers.client(ctx, manager)
	if err != nil {
		return restore.Options{}, err
	}
	return restore.Options{
		Engine: c.Client, Journal: n, Poll: n.o.Poll, Source: n.restoreSource,
		Open: func(ctx context.Context, t ovirt.Transfer) (restore.Target, error) {
			return imageio.Dial(ctx, imageio.Options{TransferURL: t.TransferURL, ProxyURL: t.ProxyURL, CA: c.ca, Write: true, Logger: n.log})
		},
	}, nil
}

// restoreSource opens a disk of a point, which is read once from end to end.
func (n *Node) restoreSource(ctx context.Context, id chunkstore.PointID, disk int) (restore.Source, error) {
	p, err := n.store.Point(ctx, id)
	if err != nil {
		return nil, err
	}
	img, err := n.store.Image(p, disk)
	if err != nil {
		return nil, err
	}
	img.ReadAhead()
	return img, nil
}

// prepareRestore checks what was asked for and draws up the record.
func (n *Node) prepareRestore(ctx context.Context, s api.RestoreSpec) (*restore.Record, restore.Options, error) {
	var o restore.Options
	p, err := ResolvePoint(ctx, n.store, s.Point, time.Now())
	if err != nil {
		return nil, o, err
	}
	manager, err := n.chooseManager(ctx, s.Manager, p.Labels[appliance.LabelManager])
	if err != nil {
		return nil, o, err
	}
	if o, err = n.restoreOptions(ctx, manager); err != nil {
		return nil, o, err
	}
	r, err := restore.Prepare(ctx, o, restore.Request{
		Manager: manager, Point: p, Name: s.Name, Cluster: s.Cluster, Domain: s.StorageDomain, Disks: s.Disks, Networks: s.Networks,
		MAC: s.MAC, Verify: s.Verify, PowerOn: s.PowerOn,
	}, task.NewID())
	return r, o, err
}

// PlanRestore implements api.Service.
func (n *Node) PlanRestore(ctx context.Context, s api.RestoreSpec) (appliance.Restore, error) {
	r, _, err := n.prepareRestore(ctx, s)
	if err != nil {
		return appliance.Restore{}, err
	}
	r.ID, r.Task = "", ""
	for i := range r.Disks {
		r.Disks[i].ID = "" // the restore itself will draw others
	}
	return r.Restore, nil
}

// StartRestore implements api.Service.
func (n *Node) StartRestore(ctx context.Context, s api.RestoreSpec) (appliance.Restore, appliance.Task, error) {
	r, o, err := n.prepareRestore(ctx, s)
	if err != nil {
		return appliance.Restore{}, appliance.Task{}, err
	}
	n.mu.Lock() // two restores must not choose the same name
	defer n.mu.Unlock()
	if err := n.nameIsFree(r); err != nil {
		return appliance.Restore{}, appliance.Task{}, err
	}
	r.Task = task.NewID()
	if err := n.KeepRestore(*r); err != nil {
		return appliance.Restore{}, appliance.Task{}, err
	}
	shown := r.Restore
	t, err := n.beginLocked(restoreObject(r), restoreTask(r), func(ctx context.Context, h *task.Handle) (map[string]any, error) {
		for _, note := range r.Notes {
			h.Note(note)
		}
		return n.restore(ctx, o, r, h)
	})
	if err != nil { // it must not begin by itself later
		err = errors.Join(err, n.dropRestore(r))
	}
	return shown, t, err
}

// nameIsFree refuses a name that another restore is going to use: the engine would only see that when all disks are there.
func (n *Node) nameIsFree(r *restore.Record) error {
	all, bad := n.restores()
	if len(bad) > 0 {
		return bad[0]
	}
	for _, x := range all {
		if x.VM == r.VM && x.Manager == r.Manager && !x.Ended() {
			return errs.Text("name VM", r.VM, errs.Exists, "task "+x.Task+" is restoring a VM of that name").
				WithNext("Choose another name with --name, or wait for it: holdfast task watch " + x.Task)
		}
	}
	return nil
}

// dropRestore ends a restore that nothing was made for.
func (n *Node) dropRestore(r *restore.Record) error {
	r.State, r.OVF = appliance.RestoreFailed, ""
	r.Problem = &appliance.Problem{Code: task.Code(errs.Canceled), Title: "restore VM " + r.SourceVM, Cause: "it was never begun",
		Cleaned: "nothing was made", Remedy: "Start it again."}
	return n.KeepRestore(*r)
}

func restoreObject(r *restore.Record) string { return "restore/" + r.ID }

func restoreTask(r *restore.Record) appliance.Task {
	return appliance.Task{ID: r.Task, Kind: appliance.TaskRestore, Subject: r.VM, Manager: r.Manager}
}

// restore carries a restore to its end. Its point cannot be collected meanwhile.
func (n *Node) restore(ctx context.Context, o restore.Options, r *restore.Record, h *task.Handle) (map[string]any, error) {
	ctx = ovirt.WithCorrelation(ctx, "holdfast-"+h.ID())
	if r.State != appliance.RestoreUndo {
		release, err := n.store.Lease(ctx, chunkstore.PointID(r.Point))
		if task.Ending(ctx) && err != nil {
			return nil, err
		}
		if err != nil { // the point is gone: what was made of it goes too
			r.State, r.Problem = appliance.RestoreUndo, task.ProblemOf(err)
		} else {
			defer release()
		}
	}
	began := time.Now()
	err := restore.Run(ctx, o, r, h)
	n.afterRestore(ctx, r)
	return restoreResult(r, time.Since(began)), err
}

// restoreResult is the result of a restore's task. Its keys are promises to scripts.
func restoreResult(r *restore.Record, took time.Duration) map[string]any {
	var data int64
	for _, d := range r.Disks {
		data += d.DataBytes
	}
	out := map[string]any{"restore": r.ID, "vm": r.VM, "point": r.Point}
	if r.State == appliance.RestoreDone {
		out["vm_id"], out["disks"], out["data_bytes"], out["seconds"] = r.VMID, len(r.Disks), data, took.Seconds()
	}
	return out
}

// afterRestore takes over what a restore could not clean up.
func (n *Node) afterRestore(ctx context.Context, r *restore.Record) {
	if task.Ending(ctx) || r.State != appliance.RestoreUndo {
		return // the next start does it, or there is nothing to do
	}
	left := *r
	left.Disks = slices.Clone(r.Disks)
	n.wg.Go(func() { n.clearRestore(n.background, &left) })
}

// clearRestore takes away what a failed restore left on the engine, again and again until it is gone.
func (n *Node) clearRestore(ctx context.Context, r *restore.Record) {
	for !r.Ended() {
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return // the next start goes on
		}
		o, err := n.restoreOptions(ctx, r.Manager)
		if err == nil {
			err = restore.Run(ovirt.WithCorrelation(ctx, "holdfast-"+r.ID), o, r, silent{})
		}
		if !r.Ended() {
			n.log.Warn("a failed restore is not cleaned up yet", "op", "restore", "vm", r.VM, "err", err)
		}
	}
}

// ListRestores implements api.Service. Newest last, as they were made.
func (n *Node) ListRestores(context.Context) ([]appliance.Restore, error) {
	rs, bad := n.restores()
	for _, err := range bad {
		n.log.Error("a restore's record cannot be read", "err", err)
	}
	out := make([]appliance.Restore, 0, len(rs))
	for _, r := range rs {
		out = append(out, r.Restore)
	}
	slices.SortStableFunc(out, func(a, b appliance.Restore) int { return a.Created.Compare(b.Created) })
	return out, nil
}

// GetRestore implements api.Service.
func (n *Node) GetRestore(_ context.Context, id string) (appliance.Restore, error) {
	var r restore.Record
	err := n.catalog.Get(catalog.Restores, id, &r)
	return r.Restore, err
}

// resumeRestore goes on with a restore where it was, in a new task: forward, or with taking it apart.
func (n *Node) resumeRestore(r *restore.Record, interrupted map[string]appliance.Task) error {
	old, had := interrupted[r.Task]
	delete(interrupted, r.Task)
	if r.Ended() {
		switch { // the task's last words were not written down any more
		case had && r.Problem != nil:
			return n.tasks.Settle(old, appliance.TaskFailed, r.Problem)
		case had:
			old.Result = restoreResult(r, time.Since(old.Started))
			return n.tasks.Settle(old, appliance.TaskSucceeded, nil)
		}
		return nil
	}
	if r.State == appliance.RestorePrepare && !had {
		return n.dropRestore(r) // nobody was told that it begins: whoever asked may have asked again
	}
	r.Task = task.NewID()
	if err := n.KeepRestore(*r); err != nil {
		return err
	}
	t, err := n.begin(restoreObject(r), restoreTask(r), func(ctx context.Context, h *task.Handle) (map[string]any, error) {
		h.Note("The node had ended; this goes on where it was.")
		var o restore.Options
		if err := n.reach(ctx, h, func() (err error) {
			o, err = n.restoreOptions(ctx, r.Manager)
			return err
		}); err != nil {
			return nil, err
		}
		return n.restore(ctx, o, r, h)
	})
	if err == nil && had {
		p := &appliance.Problem{Code: task.Code(errs.Canceled), Title: string(old.Kind) + " of " + old.Subject,
			Cause: "the node ended while it was at work", Remedy: "It goes on as task " + t.ID + "."}
		err = n.tasks.Settle(old, appliance.TaskFailed, p)
	}
	return err
}
