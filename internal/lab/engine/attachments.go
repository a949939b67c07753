package engine

import (
	"slices"
)

func (e *Engine) showAttachment(v *vm, a *attachment) *object {
	o := newObject("disk_attachment").at(apiPath+"vms/"+v.id+"/diskattachments/"+a.disk, a.disk)
	o.set("active", flag(a.active)).set("bootable", flag(a.bootable)).set("interface", a.iface).set("pass_discard", flag(a.discard))
	o.set("read_only", flag(a.readOnly)).set("uses_scsi_reservation", "false")
	return o.set("disk", ref("disks", a.disk)).set("vm", ref("vms", v.id))
}

func (c *call) listAttachments() (*reply, error) {
	all := &list{item: "disk_attachment"}
	if v, found := c.e.state.vms.get(c.vars["vm"]); found {
		for _, a := range v.attachments {
			all.items = append(all.items, c.e.showAttachment(v, a))
		}
	}
	return ok(newObject("disk_attachments").set("", all))
}

func (c *call) getAttachment() (*reply, error) {
	v, a, err := c.attachmentOf()
	if err != nil {
		return nil, err
	}
	return ok(c.e.showAttachment(v, a))
}

// addAttachment attaches a disk, or makes one first: an id means that it exists.
func (c *call) addAttachment() (*reply, error) {
	v, found := c.e.state.vms.get(c.vars["vm"])
	if !found {
		return nil, noEntity(c.vars["vm"])
	}
	x := c.body.child("disk")
	if x == nil {
		return nil, incomplete("DiskAttachment [disk.id|name] required for add")
	}
	for _, need := range []string{"interface", "bootable"} { // unrecorded text
		if c.body.value(need) == "" {
			return nil, incomplete("DiskAttachment [%s] required for add", need)
		}
	}
	a := &attachment{iface: c.body.value("interface"), bootable: c.body.isTrue("bootable"), readOnly: c.body.isTrue("read_only"),
		discard: c.body.isTrue("pass_discard"), active: c.body.value("active") != "false"}
	var d *disk
	if x.id != "" {
		if d, found = c.e.state.disks.get(x.id); !found {
			return nil, badRequest("Cannot attach Virtual Disk. The specified disk does not exist.")
		}
	}
	if err := c.canAttach(v, d, a); err != nil {
		return nil, err
	}
	if d == nil {
		made, err := c.makeDisk(x, "")
		if err != nil {
			return nil, err
		}
		d = made
	}
	a.disk = d.id
	v.attachments = append(v.attachments, a)
	return created(c.e.showAttachment(v, a))
}

func (c *call) canAttach(v *vm, d *disk, a *attachment) error {
	if a.bootable {
		for _, other := range v.attachments {
			if boot, _ := c.e.state.disks.get(other.disk); other.bootable {
				return conflict("Cannot attach Virtual Disk. Disk %s in VM %s is already marked as boot.", boot.alias, v.name)
			}
		}
	}
	if d == nil {
		return nil
	}
	holder, _ := c.e.state.vmOf(d.id)
	switch {
	case d.busy():
		return lockedDisk("Cannot attach Virtual Disk", d)
	case holder == v: // unrecorded text
		return conflict("Cannot attach Virtual Disk. The disk is already attached to VM.")
	case holder != nil && !d.shareable: // unrecorded text
		return conflict("Cannot attach Virtual Disk. Disk %s is already attached to VM %s.", d.alias, holder.name)
	}
	return nil
}

func (c *call) updateAttachment() (*reply, error) {
	v, a, err := c.attachmentOf()
	if err != nil {
		return nil, err
	}
	a.iface = c.body.valueOr("interface", a.iface)
	for path, to := range map[string]*bool{"bootable": &a.bootable, "active": &a.active, "read_only": &a.readOnly, "pass_discard": &a.discard} {
		if c.body.child(path) != nil {
			*to = c.body.isTrue(path)
		}
	}
	if x := c.body.child("disk"); x != nil && len(x.children) > 0 {
		d, _ := c.e.state.disks.get(a.disk)
		if _, err := c.changeDisk(d, x); err != nil {
			return nil, err
		}
	}
	return ok(c.e.showAttachment(v, a))
}

// removeAttachment takes a disk off its VM, hot if it runs. The disk stays unless detach_only=false. Its checkpoints do
// not: what the engine does not say, and what costs a backup its next increment.
func (c *call) removeAttachment() (*reply, error) {
	v, a, err := c.attachmentOf()
	if err != nil {
		return nil, err
	}
	d, _ := c.e.state.disks.get(a.disk)
	if b := c.e.state.runningBackup(v.id); b != nil && b.hybrid && slices.Contains(b.disks, d.id) {
		return nil, conflict("Cannot detach Virtual Disk. The disk is already configured in a snapshot. In order to detach it, " +
			"remove the disk's snapshots.")
	}
	if d.busy() {
		return nil, lockedDisk("Cannot detach Virtual Disk", d)
	}
	for _, s := range v.snapshots {
		if s.kind != "active" && slices.Contains(s.disks, d.id) {
			return nil, conflict("Cannot detach Virtual Disk. The disk is already configured in a snapshot. In order to detach it, " +
				"remove the disk's snapshots.")
		}
	}
	v.attachments = slices.DeleteFunc(v.attachments, func(other *attachment) bool { return other == a })
	v.checkpoints = slices.DeleteFunc(v.checkpoints, func(cp *checkpoint) bool { return slices.Contains(cp.disks, d.id) })
	if c.r.URL.Query().Get("detach_only") == "false" {
		c.e.deleteDisk(d, nil, diskRemoveTime)
	}
	return complete()
}
