package node

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/catalog"
	"github.com/holdfast-backup/holdfast/appliance/instant"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func (n *Node) records() ([]instant.Record, []error) {
	return catalog.List[instant.Record](n.catalog, catalog.Sessions)
}

func (n *Node) record(id string) (*instant.Record, error) {
	var r instant.Record
	return &r, n.catalog.Get(catalog.Sessions, id, &r)
}

// KeepSession implements instant.Journal.
func (n *Node) KeepSession(r instant.Record) error { return n.catalog.Put(catalog.Sessions, r.ID, r) }

// ended tells whether nothing of a session is left to serve or to clean up.
func ended(s appliance.SessionState) bool {
	return s == appliance.SessionReleased || s == appliance.SessionFailed
}

// firstExportID is the first of the sessions' exports; below are fixed ones.
const firstExportID = 16

// nextExportID returns a number that no session ever had: it is in the file handles that hosts may still hold.
func (n *Node) nextExportID() (uint32, error) {
	rs, bad := n.records()
	if len(bad) > 0 {
		return 0, bad[0]
	}
	next := uint32(firstExportID)
	for _, r := range rs {
		next = max(next, r.ExportID+1)
	}
	return next, nil
}

func (n *Node) instantOptions(ctx context.Context, manager string) (instant.Options, error) {
	c, err := n.managers.client(ctx, manager)
	if err != nil {
		return instant.Options{}, err
	}
	return instant.Options{Engine: c.Client, Exporter: n.exporter, Journal: n, Address: n.o.Address, Port: n.o.Port, Poll: n.o.Poll}, nil
}

// StartInstant implements api.Service.
func (n *Node) StartInstant(ctx context.Context, s api.InstantSpec) (appliance.Session, appliance.Task, error) {
	var noSession appliance.Session
	var noTask appliance.Task
	p, err := ResolvePoint(ctx, n.store, s.Point, time.Now())
	if err != nil {
		return noSession, noTask, err
	}
	manager, err := n.chooseManager(ctx, s.Manager, p.Labels[appliance.LabelManager])
	if err != nil {
		return noSession, noTask, err
	}
	o, err := n.instantOptions(ctx, manager)
	if err != nil {
		return noSession, noTask, err
	}
	format := string(ovirt.FormatCow)
	if s.Format == "raw" {
		format = string(ovirt.FormatRaw)
	}
	n.mu.Lock() // two sessions must not draw the same export ID
	defer n.mu.Unlock()
	exportID, err := n.nextExportID()
	if err != nil {
		return noSession, noTask, err
	}
	r, notes, err := instant.Prepare(ctx, o, instant.Request{
		Manager: manager, Point: p, Name: s.Name, Cluster: s.Cluster, PowerOn: s.PowerOn || s.MigrateTo != "", MigrateTo: s.MigrateTo, Format: format,
	}, task.NewID(), exportID)
	if err != nil {
		return noSession, noTask, err
	}
	r.Task = task.NewID()
	if err := n.KeepSession(*r); err != nil {
		return noSession, noTask, err
	}
	session := r.Session
	t, err := n.beginLocked("session/"+r.ID, n.sessionTask(r, appliance.TaskInstant), func(ctx context.Context, h *task.Handle) (map[string]any, error) {
		for _, note := range notes {
			h.Note(note)
		}
		return n.goOn(ctx, o, r, h)
	})
	return session, t, err
}

func (n *Node) sessionTask(r *instant.Record, kind appliance.TaskKind) appliance.Task {
	return appliance.Task{ID: r.Task, Kind: kind, Subject: r.VM, Manager: r.Manager, Session: r.ID}
}

// goOn carries a session from where it is to where it was asked to go.
func (n *Node) goOn(ctx context.Context, o instant.Options, r *instant.Record, h *task.Handle) (map[string]any, error) {
	ctx = ovirt.WithCorrelation(ctx, "holdfast-"+h.ID())
	began, result := time.Now(), map[string]any{"session": r.ID, "vm": r.VM}
	for {
		var err error
		switch {
		case ended(r.State) || rests(r):
			return result, nil
		case r.State == appliance.SessionRunning || r.State == appliance.SessionMigrating:
			err = instant.Migrate(ctx, o, r, h)
			if err != nil && !task.Ending(ctx) {
				r.AllTheWay = false // whoever reads of the failure decides what comes next
				if kerr := n.KeepSession(*r); kerr != nil {
					h.Note("The session's record could not be written: " + kerr.Error())
				}
			}
		case r.State == appliance.SessionMigrated || r.State == appliance.SessionRelease:
			err = instant.Release(ctx, o, r, r.RemoveVM, h)
		default:
			err = instant.SetUp(ctx, o, r, h)
			result["vm_id"], result["seconds_to_running"] = r.VMID, time.Since(began).Seconds()
		}
		if err != nil {
			return result, err
		}
	}
}

// rests tells whether a session stays as it is until somebody asks for something.
func rests(r *instant.Record) bool {
	return !r.AllTheWay && (r.State == appliance.SessionRunning || r.State == appliance.SessionMigrated)
}

// chooseManager finds the engine to restore to.
func (n *Node) chooseManager(ctx context.Context, asked, of string) (string, error) {
	if asked != "" {
		return asked, nil
	}
	all, err := n.ListManagers(ctx)
	if err != nil {
		return "", err
	}
	for _, m := range all {
		if m.Name == of {
			return of, nil
		}
	}
	if len(all) == 1 {
		return all[0].Name, nil
	}
	return "", errs.Text("choose manager", of, errs.NotFound, "the engine that the point came from is not known to this node").
		WithNext("Name one with --manager, or add it with `holdfast manager add`.")
}

// show completes a record with what only the running node knows.
func (n *Node) show(r *instant.Record) appliance.Session {
	s := r.Session
	for i := range s.Disks {
		read, dirty := n.exporter.Traffic(s.ID, s.Disks[i].Number)
		if read > 0 || dirty > 0 {
			s.Disks[i].ReadBytes, s.Disks[i].DirtyBytes = read, dirty
		}
	}
	return s
}

// ListSessions implements api.Service. Newest last, as they were made.
func (n *Node) ListSessions(context.Context) ([]appliance.Session, error) {
	rs, bad := n.records()
	for _, err := range bad {
		n.log.Error("a session's record cannot be read", "err", err)
	}
	out := make([]appliance.Session, 0, len(rs))
	for i := range rs {
		out = append(out, n.show(&rs[i]))
	}
	sortSessions(out)
	return out, nil
}

// GetSession implements api.Service.
func (n *Node) GetSession(_ context.Context, id string) (appliance.Session, error) {
	r, err := n.record(id)
	if err != nil {
		return appliance.Session{}, err
	}
	return n.show(r), nil
}

// StartMigrate implements api.Service.
func (n *Node) StartMigrate(ctx context.Context, id, to string) (appliance.Task, error) {
	var none appliance.Task
	const op = "migrate session"
	r, err := n.record(id)
	if err != nil {
		return none, err
	}
	if r.State != appliance.SessionRunning {
		return none, errs.Text(op, id, errs.Stale, "it is "+string(r.State)+", and has to be running")
	}
	o, err := n.instantOptions(ctx, r.Manager)
	if err != nil {
		return none, err
	}
	if to != "" {
		if r.Target, r.MigrateTo, err = instant.FindTarget(ctx, o.Engine, r.DataCenter, to); err != nil {
			return none, errs.Wrap(op, id, err)
		}
	}
	r.Task = task.NewID()
	return n.begin("session/"+id, n.sessionTask(r, appliance.TaskMigrate), func(ctx context.Context, h *task.Handle) (map[string]any, error) {
		err := instant.Migrate(ovirt.WithCorrelation(ctx, "holdfast-"+h.ID()), o, r, h)
		return map[string]any{"session": r.ID}, err
	})
}

// StartRelease implements api.Service.
func (n *Node) StartRelease(ctx context.Context, id string, discard bool) (appliance.Task, error) {
	var none appliance.Task
	r, err := n.record(id)
	if err != nil {
		return none, err
	}
	if ended(r.State) {
		return none, errs.Text("release session", id, errs.Stale, "it is "+string(r.State)+" already")
	}
	o, err := n.instantOptions(ctx, r.Manager)
	if err != nil {
		return none, err
	}
	r.Task = task.NewID()
	return n.begin("session/"+id, n.sessionTask(r, appliance.TaskRelease), func(ctx context.Context, h *task.Handle) (map[string]any, error) {
		err := instant.Release(ovirt.WithCorrelation(ctx, "holdfast-"+h.ID()), o, r, discard, h)
		return map[string]any{"session": r.ID}, err
	})
}
