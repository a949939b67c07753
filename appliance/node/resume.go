package node

import (
	"context"
	"sort"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/instant"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// retryPause is how long the node waits before it tries again to clean up at an engine that cannot be reached.
const retryPause = time.Minute

// resume picks up what the node left when it ended or was killed. First of all the sessions are served again, for VMs
// wait for their disks; what needs an engine goes on in the background, in tasks that people can see.
func (n *Node) resume(ctx context.Context) error {
	rs, bad := n.records()
	for _, err := range bad {
		n.log.Error("a session's record cannot be read: it is not served", "err", err)
	}
	for i := range rs {
		r := &rs[i]
		if ended(r.State) || r.State == appliance.SessionPrepare {
			continue
		}
		if err := n.exporter.Open(ctx, *r); err != nil {
			n.log.Error("a session cannot be served", "session", r.ID, "err", err)
		}
	}
	interrupted := map[string]appliance.Task{}
	for _, t := range n.tasks.Interrupted() {
		interrupted[t.ID] = t
	}
	runs, bad := n.runs()
	for _, err := range bad {
		n.log.Error("a run's record cannot be read: look on the engine for a backup that was left", "err", err)
	}
	for _, r := range runs {
		t, had := interrupted[r.Task]
		delete(interrupted, r.Task)
		n.clearing(r)
		n.wg.Go(func() { n.recoverRun(n.background, r, t, had) })
	}
	for i := range rs {
		if err := n.resumeSession(&rs[i], interrupted); err != nil {
			n.log.Error("a session cannot go on", "session", rs[i].ID, "err", err)
		}
	}
	restores, bad := n.restores()
	for _, err := range bad {
		n.log.Error("a restore's record cannot be read: look on the engine for what it made", "err", err)
	}
	for i := range restores {
		if err := n.resumeRestore(&restores[i], interrupted); err != nil {
			n.log.Error("a restore cannot go on", "restore", restores[i].ID, "err", err)
		}
	}
	for _, t := range interrupted { // they had begun nothing that is written down
		p := &appliance.Problem{Code: task.Code(errs.Canceled), Title: string(t.Kind) + " of " + t.Subject,
			Cause: "the node ended while it was at work", Cleaned: "nothing is left on the engine", Remedy: "Start it again."}
		if err := n.tasks.Settle(t, appliance.TaskFailed, p); err != nil {
			n.log.Error("an interrupted task cannot be settled", "task", t.ID, "err", err)
		}
	}
	return nil
}

// clearing keeps new backups of a VM waiting until an old one is cleared away.
func (n *Node) clearing(r runDoc) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.busy[vmObject(r.Manager, string(r.VM))] = work{task: r.Task, clearing: true}
}

// recoverRun takes away what a backup left on the engine that was killed, or could not clean up, again and again until it
// is gone.
func (n *Node) recoverRun(ctx context.Context, r runDoc, t appliance.Task, hadTask bool) {
	defer func() {
		n.mu.Lock()
		delete(n.busy, vmObject(r.Manager, string(r.VM)))
		n.mu.Unlock()
	}()
	p := &appliance.Problem{Code: task.Code(errs.Canceled), Title: "back up " + r.VMName, Cause: "the node ended while the backup ran"}
	for {
		point, err := n.recoverOnce(ctx, r)
		if err == nil {
			if hadTask {
				n.settleRun(t, p, point)
			}
			return
		}
		n.log.Warn("a backup is not cleaned up yet", "run", r.ID, "vm", r.VMName, "err", err)
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return // the next start goes on
		}
	}
}

func (n *Node) recoverOnce(ctx context.Context, r runDoc) (point string, err error) {
	c, err := n.managers.client(ctx, r.Manager)
	if err != nil {
		return "", err
	}
	return n.recoverAs(ovirt.WithCorrelation(ctx, "holdfast-"+r.ID), c, r)
}

func (n *Node) settleRun(t appliance.Task, p *appliance.Problem, point string) {
	state := appliance.TaskFailed
	if point != "" {
		t.Result, state, p = map[string]any{"point": point}, appliance.TaskSucceeded, nil
		t.Notes = append(t.Notes, "The node ended after the point was committed; what was left to be done is done.")
	} else {
		p.Cleaned = "what the backup had made is removed; nothing is left on the engine"
		p.Remedy = "Run the backup again."
	}
	if err := n.tasks.Settle(t, state, p); err != nil {
		n.log.Error("an interrupted task cannot be settled", "task", t.ID, "err", err)
	}
}

// silent is the reporter of work that belongs to no task.
type silent struct{}

func (silent) Step(string)                 {}
func (silent) StepFailed()                 {}
func (silent) Detail(string)               {}
func (silent) Note(string)                 {}
func (silent) Progress(appliance.Progress) {}

// resumeSession goes on with a session where it was. Setting up, migrating and releasing go forward, in a new task.
func (n *Node) resumeSession(r *instant.Record, interrupted map[string]appliance.Task) error {
	old, had := interrupted[r.Task]
	delete(interrupted, r.Task)
	if ended(r.State) || rests(r) {
		switch { // the task's last words were not written down any more
		case had && r.State == appliance.SessionFailed:
			return n.tasks.Settle(old, appliance.TaskFailed, r.Problem)
		case had:
			return n.tasks.Settle(old, appliance.TaskSucceeded, nil)
		}
		return nil
	}
	kind := appliance.TaskInstant
	switch r.State {
	case appliance.SessionMigrating:
		kind = appliance.TaskMigrate
	case appliance.SessionRelease:
		kind = appliance.TaskRelease
	}
	r.Task = task.NewID()
	if err := n.KeepSession(*r); err != nil {
		return err
	}
	t, err := n.begin("session/"+r.ID, n.sessionTask(r, kind), func(ctx context.Context, h *task.Handle) (map[string]any, error) {
		h.Note("The node had ended; this goes on where it was.")
		return n.carryOn(ctx, r, h)
	})
	if err == nil && had {
		p := &appliance.Problem{Code: task.Code(errs.Canceled), Title: string(old.Kind) + " of " + old.Subject,
			Cause: "the node ended while it was at work", Remedy: "It goes on as task " + t.ID + "."}
		err = n.tasks.Settle(old, appliance.TaskFailed, p)
	}
	return err
}

// carryOn does the rest of a session's work, waiting for an engine that cannot be reached.
func (n *Node) carryOn(ctx context.Context, r *instant.Record, h *task.Handle) (map[string]any, error) {
	var o instant.Options
	if err := n.reach(ctx, h, func() (err error) {
		o, err = n.instantOptions(ctx, r.Manager)
		return err
	}); err != nil {
		return nil, err
	}
	return n.goOn(ctx, o, r, h)
}

// reach logs in to an engine, for as long as that takes.
func (n *Node) reach(ctx context.Context, h *task.Handle, login func() error) error {
	for {
		err := login()
		if err == nil || !errs.KindOf(err).Retryable() {
			return err
		}
		h.Detail("the engine cannot be reached, trying again: " + err.Error())
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sortSessions puts sessions in the order in which they were made.
func sortSessions(s []appliance.Session) {
	sort.SliceStable(s, func(i, j int) bool { return s[i].Created.Before(s[j].Created) })
}
