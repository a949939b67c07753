package engine

import (
	"slices"
	"strings"
)

func (e *Engine) showSnapshot(v *vm, s *snapshot) *object {
	o := newObject("snapshot").at(apiPath+"vms/"+v.id+"/snapshots/"+s.id, s.id)
	o.set("date", s.date).set("persist_memorystate", flag(s.memory)).set("snapshot_status", s.status).set("snapshot_type", s.kind)
	if s.kind != "active" {
		o.set("vm", ref("vms", v.id))
	}
	o.actions("restore").set("description", s.description)
	if s.kind == "active" {
		return o.set("link", links{})
	}
	return o.link("cdroms", "disks", "nics")
}

func (c *call) listSnapshots() (*reply, error) {
	all := &list{item: "snapshot"}
	if v, found := c.e.state.vms.get(c.vars["vm"]); found {
		for _, s := range v.snapshots {
			all.items = append(all.items, c.e.showSnapshot(v, s))
		}
	}
	return ok(newObject("snapshots").set("", all))
}

func (c *call) snapshotOf() (*vm, *snapshot, error) {
	v, found := c.e.state.vms.get(c.vars["vm"])
	if !found {
		return nil, nil, notFound()
	}
	for _, s := range v.snapshots {
		if s.id == c.vars["snapshot"] {
			return v, s, nil
		}
	}
	return nil, nil, notFound()
}

func (c *call) getSnapshot() (*reply, error) {
	v, s, err := c.snapshotOf()
	if err != nil {
		return nil, err
	}
	return ok(c.e.showSnapshot(v, s))
}

// ownSnapshot is one that the engine takes for itself. As recorded, the new snapshot gets the id of the active one, which
// gets a new id.
func (e *Engine) ownSnapshot(v *vm, description string, disks []string) *snapshot {
	active := v.snapshots[0]
	s := &snapshot{id: active.id, description: description, status: "locked", kind: "regular", date: now(), disks: slices.Clone(disks)}
	active.id = newID()
	v.snapshots = append(v.snapshots, s)
	return s
}

func (c *call) addSnapshot() (*reply, error) {
	v, found := c.e.state.vms.get(c.vars["vm"])
	if !found {
		return nil, noEntity(c.vars["vm"])
	}
	if b := c.e.state.runningBackup(v.id); b != nil && !b.hybrid {
		return nil, conflict("Cannot create Snapshot. The VM is during a backup operation.")
	}
	for _, s := range v.snapshots {
		if s.status == "locked" {
			return nil, conflict("Cannot create Snapshot. Snapshot is currently being created for VM %s.", v.name)
		}
	}
	if c.e.busyVM(v) {
		return nil, c.e.busyFault()
	}
	var disks []string
	for _, a := range v.attachments {
		disks = append(disks, a.disk)
	}
	if x := c.body.child("disk_attachments"); x != nil {
		disks = nil
		for _, a := range x.children {
			if d := a.child("disk"); d != nil {
				disks = append(disks, strings.ToLower(d.id))
			}
		}
	}
	s := c.e.ownSnapshot(v, c.body.value("description"), disks)
	s.memory = c.body.value("persist_memorystate") != "false"
	v.locked = true
	j := c.newJob("Creating VM Snapshot " + s.description + " for VM " + v.name)
	c.e.event(evSnapshotBegun, "normal", about(c.correlation, v), "Snapshot '%s' creation for VM '%s' was initiated by admin@internal-authz.",
		s.description, v.name)
	c.e.after(snapshotTime, func() {
		for _, id := range disks {
			if d, found := c.e.state.disks.get(id); found {
				d.leaf = newID()
			}
		}
		s.status, v.locked = "ok", false
		c.e.endJob(j, nil)
		c.e.event(evSnapshotDone, "normal", about(c.correlation, v), "Snapshot '%s' creation for VM '%s' has been completed.", s.description, v.name)
	})
	return created(c.e.showSnapshot(v, s))
}

func (c *call) removeSnapshot() (*reply, error) {
	v, s, err := c.snapshotOf()
	if err != nil {
		return nil, err
	}
	switch {
	case s.kind == "active": // unrecorded text
		return nil, badRequest("Cannot remove Snapshot. Removing the VM active Snapshot is not allowed.")
	case s.status != "ok" || c.e.busyVM(v):
		return nil, c.e.busyFault()
	}
	s.status, v.locked = "locked", true
	j := c.newJob("Removing Snapshot " + s.description + " of VM: " + v.name)
	c.e.after(mergeTime, func() {
		v.locked = false
		v.snapshots = slices.DeleteFunc(v.snapshots, func(o *snapshot) bool { return o == s })
		c.e.endJob(j, nil)
	})
	return complete(c.e.jobRef(j))
}
