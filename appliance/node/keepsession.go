package node

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/instant"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// StartKeep implements api.Service.
func (n *Node) StartKeep(ctx context.Context, id string, running bool) (appliance.Task, error) {
	var none appliance.Task
	const op = "keep session"
	r, err := n.record(id)
	if err != nil {
		return none, err
	}
	if r.State != appliance.SessionRunning {
		return none, errs.Text(op, id, errs.Stale, "it is "+string(r.State)+", and has to be running: only then does this node have all that the VM wrote")
	}
	for _, d := range r.Disks {
		if d.Migrated {
			return none, errs.Text(op, id, errs.Stale, fmt.Sprintf("disk %d has moved to production storage, with what was written to it", d.Number)).
				WithNext("Migrate the others too, then back the VM up: holdfast vm backup " + r.VM)
		}
	}
	o, err := n.instantOptions(ctx, r.Manager)
	if err != nil {
		return none, err
	}
	if !running {
		if err := instant.CheckQuiet(ctx, o.Engine, r); err != nil {
			return none, err
		}
	}
	t := n.sessionTask(r, appliance.TaskKeep)
	t.ID = task.NewID() // not the record's: nothing of this goes on after a restart
	return n.begin("session/"+id, t, func(ctx context.Context, h *task.Handle) (map[string]any, error) {
		out, err := n.keepSession(ctx, r, h)
		return out, errs.Wrap(op, id, err)
	})
}

// keepSession makes a point of what a session's disks are at one moment. The VM's writes are held meanwhile, also if it
// was down when it was asked: somebody may start it.
func (n *Node) keepSession(ctx context.Context, r *instant.Record, h *task.Handle) (map[string]any, error) {
	parent, err := n.store.Point(ctx, chunkstore.PointID(r.Point))
	if err != nil {
		return nil, err
	}
	config, err := keptConfig(parent, r)
	if err != nil {
		return nil, err
	}
	h.Step("hold writes")
	disks, release, err := n.exporter.hold(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	defer release()
	held := time.Now()
	var dirty int64
	for _, w := range disks {
		dirty += w.overlay.Used()
	}
	h.Step("store what was written")
	h.Detail(fmt.Sprintf("%d MiB were written since the session began", dirty>>20))
	labels := map[string]string{
		appliance.LabelVM: r.VM, appliance.LabelVMID: r.VMID, appliance.LabelManager: r.Manager,
		appliance.LabelSource: "session " + r.ID, appliance.LabelConsistency: appliance.ConsistencyCrash, appliance.LabelRun: h.ID(),
	}
	p, st, err := keepPoint(ctx, n.store, keeping{parent: parent, disks: disks, labels: labels, config: config, now: time.Now(),
		progress: func(done, total int64, st chunkstore.Stats) {
			h.Progress(appliance.Progress{DoneBytes: done, TotalBytes: total, ReadBytes: st.NewBytes + st.KnownBytes, NewBytes: st.NewBytes})
		}})
	if err != nil {
		return nil, err
	}
	n.log.Info("session kept", "session", r.ID, "point", p.ID, "vm", r.VM)
	return map[string]any{
		"session": r.ID, "point": string(p.ID), "vm": r.VM, "written_bytes": dirty, "new_bytes": st.NewBytes,
		"known_bytes": st.KnownBytes, "stored_bytes": st.StoredBytes, "seconds_held": time.Since(held).Seconds(),
	}, nil
}

// keptConfig is the configuration of the new point: that of the old one, of the VM that the session made.
func keptConfig(parent *chunkstore.Point, r *instant.Record) ([]byte, error) {
	c, err := appliance.ParsePointConfig(parent.Config)
	if err != nil {
		return nil, errs.New("read configuration of point", string(parent.ID), errs.Corrupt, err)
	}
	if c == nil {
		return nil, nil
	}
	c.VMID, c.VMName, c.Consistency = r.VMID, r.VM, appliance.ConsistencyCrash
	for i := range c.Disks {
		c.Disks[i].Mode = "incremental"
		for k, number := range r.Numbers {
			if c.Disks[i].Number == number {
				c.Disks[i].ID = r.Volumes[k].Disk
			}
		}
	}
	return json.Marshal(c)
}

// hold keeps all disks of a session as they are until release is called. The session must not be closed before.
func (e *exporter) hold(ctx context.Context, session string) (disks map[int]written, release func(), err error) {
	e.mu.Lock()
	x := e.open[session]
	e.mu.Unlock()
	if x == nil {
		return nil, nil, errs.Text("hold disks", session, errs.Stale, "the session is not served")
	}
	var held []func()
	release = func() {
		for _, f := range held {
			f()
		}
	}
	disks = map[int]written{}
	for number, s := range x.disks {
		var free func()
		if err = x.alone(ctx, number, s); err == nil {
			free, err = s.Hold(ctx)
		}
		if err != nil {
			release()
			return nil, nil, errs.Wrap("hold disk", fmt.Sprint(number), err)
		}
		held = append(held, free)
		disks[number] = written{s.disk, s.base, s.Overlay}
	}
	return disks, release, nil
}

// alone refuses a disk that is not all that its VM sees: one that has moved, or that lies under snapshots, whose volumes
// are files of their own beside it.
func (x *exported) alone(ctx context.Context, number int, s *served) error {
	for _, g := range x.tree.Grafts() {
		if g.Key != graftKey(number) {
			continue
		}
		if g.Gone || s.gone {
			return errs.Text("read disk", g.Path, errs.Stale, "its hosts have removed it: it has moved to another storage")
		}
		var dir fs.Node = x.tree.Root()
		for name := range strings.SplitSeq(path.Dir(g.Path), "/") {
			d, is := dir.(fs.Dir)
			if !is {
				return errs.Text("read disk", g.Path, errs.Bug, "it lies in no folder")
			}
			var err error
			if dir, err = d.Lookup(ctx, name); err != nil {
				return errs.Wrap("read disk", g.Path, err)
			}
		}
		var other string
		volume := path.Base(g.Path)
		if err := dir.(fs.Dir).List(ctx, 0, func(e fs.Entry) bool {
			if base, isMeta := strings.CutSuffix(e.Name, ".meta"); isMeta && base != volume {
				other = base
			}
			return other == ""
		}); err != nil {
			return errs.Wrap("read disk", g.Path, err)
		}
		if other != "" {
			return errs.Text("read disk", g.Path, errs.Unsupported, "the VM has a snapshot of it, volume "+other).
				WithNext("Remove the VM's snapshots in the engine, then try again.")
		}
		return nil
	}
	return errs.Text("read disk", fmt.Sprint(number), errs.Bug, "it has no file")
}
