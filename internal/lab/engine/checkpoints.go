package engine

import (
	"slices"
)

func showCheckpoint(v *vm, cp *checkpoint) *object {
	o := newObject("checkpoint").at(apiPath+"vms/"+v.id+"/checkpoints/"+cp.id, cp.id).set("creation_date", cp.created)
	o.setIf("parent_id", cp.parent).set("state", cp.state).set("vm", ref("vms", v.id)).setIf("description", cp.description)
	return o.link("disks")
}

func (c *call) listCheckpoints() (*reply, error) {
	all := &list{item: "checkpoint"}
	if v, found := c.e.state.vms.get(c.vars["vm"]); found {
		for _, cp := range v.checkpoints {
			all.items = append(all.items, showCheckpoint(v, cp))
		}
	}
	return ok(newObject("checkpoints").set("", all))
}

func (c *call) checkpointOf() (*vm, *checkpoint, error) {
	v, found := c.e.state.vms.get(c.vars["vm"])
	if !found {
		return nil, nil, notFound()
	}
	cp := v.checkpoint(c.vars["checkpoint"])
	if cp == nil {
		return nil, nil, notFound()
	}
	return v, cp, nil
}

func (c *call) getCheckpoint() (*reply, error) {
	v, cp, err := c.checkpointOf()
	if err != nil {
		return nil, err
	}
	return ok(showCheckpoint(v, cp))
}

func (c *call) listCheckpointDisks() (*reply, error) {
	all := &list{item: "disk"}
	if _, cp, err := c.checkpointOf(); err == nil {
		for _, id := range cp.disks {
			if d, found := c.e.state.disks.get(id); found {
				all.items = append(all.items, c.e.bareDisk(d))
			}
		}
	}
	return ok(newObject("disks").set("", all))
}

// removeCheckpoint is over when it answers. Any checkpoint of a chain may go; the next one takes its parent.
func (c *call) removeCheckpoint() (*reply, error) {
	v, cp, err := c.checkpointOf()
	if err != nil {
		return nil, err
	}
	var held []*disk
	var places []DiskPlace
	for _, id := range cp.disks {
		if d, found := c.e.state.disks.get(id); found {
			places = append(places, d.place())
			if d.busy() || v.locked {
				held = append(held, d)
			}
		}
	}
	switch {
	case len(held) > 0:
		return nil, conflict("Cannot remove checkpoint: The following disks are locked: %s. Please try again in a few minutes.", aliases(held))
	case c.e.busyVM(v):
		return nil, c.e.busyFault()
	}
	v.locked = true
	var failure error
	c.e.outside(func() { failure = c.e.opts.Host.RemoveCheckpoint(c.e.ctx, v.id, cp.id, places) })
	v.locked = false
	if failure != nil {
		cp.state = "invalid"
		c.e.event(10798, "error", about(c.correlation, v), "Failed to delete checkpoint %s of VM %s: %s", cp.id, v.name, failure)
		return nil, badRequest("%s", failure)
	}
	for _, next := range v.checkpoints {
		if next.parent == cp.id {
			next.parent = cp.parent
		}
	}
	v.checkpoints = slices.DeleteFunc(v.checkpoints, func(o *checkpoint) bool { return o == cp })
	return complete()
}
