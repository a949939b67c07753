package engine

import (
	"context"
	"errors"
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

// listSnapshotDisks shows disks as they are in a snapshot: without addresses, with the snapshot's volume.
func (c *call) listSnapshotDisks() (*reply, error) {
	_, s, err := c.snapshotOf()
	if err != nil {
		return ok(newObject("disks"))
	}
	all := &list{item: "disk"}
	for _, p := range s.volumes {
		if d, found := c.e.state.disks.get(p.Disk); found {
			frozen := *d
			frozen.image, frozen.format, frozen.leaf, frozen.mode, frozen.size, frozen.frozen = p.Image, p.Format, "", "", p.Size, true
			o := &object{name: "disk", id: d.id}
			diskFields(o, &frozen, d.incremental)
			o.set("total_size", "0").set("snapshot", &object{id: s.id})
			o.set("storage_domains", newObject("").set("", &list{item: "storage_domain", items: []any{&object{id: d.domain}}}))
			all.items = append(all.items, o.set("name", d.alias).set("description", d.description))
		}
	}
	return ok(newObject("disks").set("", all))
}

// listDiskSnapshots shows a disk's volumes, each with the one it lies on. It is unrecorded: names and parents are our
// reading of the engine's source.
func (c *call) listDiskSnapshots() (*reply, error) {
	all := &list{item: "disk_snapshot"}
	d, found := c.e.state.disks.get(c.vars["disk"])
	if !found {
		return ok(newObject("disk_snapshots"))
	}
	parent := ""
	add := func(snapshot, volume, format string, active bool) {
		o := &object{name: "disk_snapshot", id: volume}
		o.set("active", flag(active)).set("alias", d.alias).set("format", format).set("image_id", volume).set("provisioned_size", number(d.size))
		o.set("status", d.status).set("disk", ref("disks", d.id)).set("snapshot", &object{id: snapshot})
		if parent != "" {
			o.set("parent", &object{id: parent})
		}
		all.items = append(all.items, o)
		parent = volume
	}
	v, _ := c.e.state.vmOf(d.id)
	if v != nil {
		for _, s := range v.snapshots {
			for _, p := range s.volumes {
				if p.Disk == d.id {
					add(s.id, p.Image, p.Format, false)
				}
			}
		}
		if c.flag("include_active") {
			add(v.snapshots[0].id, d.volume(), d.format, true)
		}
	}
	return ok(newObject("disk_snapshots").set("", all))
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
	disks, err := c.snapshotDisks(v)
	if err != nil {
		return nil, err
	}
	s := c.e.ownSnapshot(v, c.body.value("description"), disks)
	s.memory = c.body.value("persist_memorystate") != "false"
	v.locked = true
	j := c.newJob("Creating VM Snapshot " + s.description + " for VM " + v.name)
	c.e.event(evSnapshotBegun, "normal", about(c.correlation, v), "Snapshot '%s' creation for VM '%s' was initiated by admin@internal-authz.",
		s.description, v.name)
	n := taking{vm: v, snapshot: s, job: j, tops: map[string]string{}}
	for _, id := range disks {
		if d, found := c.e.state.disks.get(id); found {
			n.places, n.tops[id] = append(n.places, d.place()), newID()
		}
	}
	c.e.background(func(ctx context.Context) { c.takeSnapshot(ctx, n) })
	return created(c.e.showSnapshot(v, s))
}

// snapshotDisks resolves which disks a snapshot is wanted of: all of the VM's, unless the request lists some.
func (c *call) snapshotDisks(v *vm) ([]string, error) {
	var disks []string
	x := c.body.child("disk_attachments")
	if x == nil {
		for _, a := range v.attachments {
			disks = append(disks, a.disk)
		}
		return disks, nil
	}
	for _, a := range x.children {
		d := a.child("disk")
		if d == nil {
			continue
		}
		if v.attachment(strings.ToLower(d.id)) == nil { // unrecorded text
			return nil, badRequest("Cannot create Snapshot. The following disks are not attached to VM: %s.", d.id)
		}
		disks = append(disks, strings.ToLower(d.id))
	}
	return disks, nil
}

// taking is a snapshot being taken.
type taking struct {
	vm       *vm
	snapshot *snapshot
	job      *job
	places   []DiskPlace
	tops     map[string]string // the disks' new volumes
}

func (c *call) takeSnapshot(ctx context.Context, n taking) {
	e := c.e
	if !e.wait(ctx, snapshotTime) {
		return
	}
	err := errors.New("the snapshot was ended by a simulated fault")
	if !e.trip(FaultSnapshotFails) {
		err = e.opts.Host.TakeSnapshot(ctx, n.vm.id, n.places, n.tops)
	}
	e.locked(func() {
		v, s := n.vm, n.snapshot
		v.locked = false
		e.endJob(n.job, err)
		if err != nil { // unrecorded: the engine takes back what it began
			e.log.Warn("no snapshot", "vm", v.name, "err", err)
			v.snapshots = slices.DeleteFunc(v.snapshots, func(o *snapshot) bool { return o == s })
			e.event(evSnapshotFailed, "error", about(c.correlation, v), "Failed to complete snapshot '%s' creation for VM '%s'.", s.description, v.name)
			return
		}
		for _, p := range n.places {
			if d, found := e.state.disks.get(p.Disk); found {
				s.volumes = append(s.volumes, p)
				d.image, d.format, d.leaf = n.tops[p.Disk], "cow", "" // the new volume is a qcow2, whatever it lies on
			}
		}
		s.status = "ok"
		e.event(evSnapshotDone, "normal", about(c.correlation, v), "Snapshot '%s' creation for VM '%s' has been completed.", s.description, v.name)
	})
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
	for _, t := range c.e.state.transfers.all() {
		if d, found := c.e.state.disks.get(t.disk); found && !t.ended() && t.volume != "" && v.attachment(d.id) != nil { // unrecorded
			return nil, lockedDisk("Cannot remove Snapshot", d)
		}
	}
	if b := c.e.state.runningBackup(v.id); b != nil { // unrecorded text
		return nil, conflict("Cannot remove Snapshot. The VM is during a backup operation.")
	}
	v.locked = true
	j := c.newJob("Removing Snapshot " + s.description + " of VM: " + v.name)
	c.e.background(func(ctx context.Context) { c.mergeSnapshot(ctx, v, s, j) })
	return complete(c.e.jobRef(j))
}

// mergeSnapshot has the host write what came after a snapshot into the snapshot's volumes. As recorded, the snapshot
// still shows as ok for a moment. The volume of the next snapshot, or the disk's own one, is the merged one then, under
// the removed snapshot's identity.
func (c *call) mergeSnapshot(ctx context.Context, v *vm, s *snapshot, j *job) {
	e := c.e
	e.wait(ctx, noticedAfter/2)
	var merges []merging
	e.locked(func() {
		s.status = "locked"
		for _, p := range s.volumes {
			merges = append(merges, e.mergingOf(v, s, p))
		}
	})
	e.wait(ctx, mergeTime)
	var err error
	for _, m := range merges {
		if err = e.opts.Host.MergeVolume(ctx, v.id, m.volume, m.child, m.above); err != nil {
			break
		}
		e.locked(func() {
			s.volumes = slices.DeleteFunc(s.volumes, func(p DiskPlace) bool { return p.Disk == m.volume.Disk })
			m.keep(m.volume)
		})
	}
	e.locked(func() {
		v.locked = false
		e.endJob(j, err)
		if err != nil { // unrecorded
			s.status = "ok"
			e.log.Warn("snapshot not removed", "vm", v.name, "err", err)
			e.event(evSnapshotNotRemoved, "error", about(c.correlation, v), "Failed to delete snapshot '%s' for VM '%s'.", s.description, v.name)
			return
		}
		v.snapshots = slices.DeleteFunc(v.snapshots, func(o *snapshot) bool { return o == s })
	})
}

// merging is a volume that gets what its child has.
type merging struct {
	volume       DiskPlace
	child, above string
	keep         func(DiskPlace) // whoever had the child has the volume from now on
}

// mergingOf finds what lies on a snapshot's volume of a disk.
func (e *Engine) mergingOf(v *vm, s *snapshot, volume DiskPlace) merging {
	m := merging{volume: volume, keep: func(DiskPlace) {}}
	d, found := e.state.disks.get(volume.Disk)
	if !found {
		return m
	}
	m.child = d.image
	m.keep = func(p DiskPlace) { d.image, d.format, d.leaf = p.Image, p.Format, "" }
	for _, next := range slices.Backward(v.snapshots[slices.Index(v.snapshots, s)+1:]) {
		i := slices.IndexFunc(next.volumes, func(p DiskPlace) bool { return p.Disk == d.id })
		if i < 0 {
			continue
		}
		m.above, m.child = m.child, next.volumes[i].Image
		m.keep = func(p DiskPlace) { next.volumes[i].Image, next.volumes[i].Format = p.Image, p.Format }
	}
	return m
}
