package engine

import (
	"context"
	"slices"
	"strings"
)

// What a new disk occupies before anything is written: as recorded, one block.
const emptyDisk = 4096

func (e *Engine) showDisk(d *disk) *object {
	o := newObject("disk").at(apiPath+"disks/"+d.id, d.id)
	diskFields(o, d, d.incremental)
	o.set("disk_profile", ref("diskprofiles", d.domain))
	o.set("quota", ref("datacenters/"+e.state.center+"/quotas", quotaID))
	one := &list{item: "storage_domain", items: []any{ref("storagedomains", d.domain)}}
	o.set("storage_domains", newObject("").set("", one))
	o.actions("copy", "export", "move", "refreshlun", "convert", "sparsify", "reduce")
	return o.set("name", d.alias).set("description", d.description).link("disksnapshots", "permissions", "statistics")
}

// diskFields sets a disk's own members; what refers to other objects differs from place to place.
func diskFields(o *object, d *disk, incremental bool) {
	o.set("actual_size", number(d.actual)).set("alias", d.alias).set("backup", backupWord(incremental)).setIf("backup_mode", d.mode)
	o.fill(diskConstants).set("content_type", d.content).set("format", d.format).set("image_id", d.volume())
	o.set("provisioned_size", number(d.size))
	if d.format == "cow" && !d.frozen && (d.status != "locked" || d.hold != holdWork) { // while it is made, the host has not said yet which version it made
		o.set("qcow_version", "qcow2_v3")
	}
	o.set("shareable", flag(d.shareable)).set("sparse", flag(d.sparse)).set("status", d.status).set("total_size", number(d.actual))
}

func backupWord(incremental bool) string {
	if incremental {
		return "incremental"
	}
	return "none"
}

func (c *call) listDisks() (*reply, error) {
	all := c.e.state.disks.all()
	slices.SortStableFunc(all, func(a, b *disk) int { return strings.Compare(a.alias, b.alias) })
	var rows []row
	for _, d := range all {
		dom, _ := c.e.state.domains.get(d.domain)
		var names []string
		if v, _ := c.e.state.vmOf(d.id); v != nil {
			names = append(names, v.name)
		}
		rows = append(rows, row{map[string][]string{
			"name": {d.alias}, "alias": {d.alias}, "id": {d.id}, "disk_id": {d.id}, "status": {d.status}, "storage": {dom.name},
			"vm_names": names, "description": {d.description}, "format": {d.format}, "datacenter": {"Default"},
		}, func() *object { return c.e.showDisk(d) }})
	}
	return c.collection("disks", "disk", rows)
}

func (c *call) getDisk() (*reply, error) {
	d, found := c.e.state.disks.get(c.vars["disk"])
	if !found {
		return nil, notFound()
	}
	return ok(c.e.showDisk(d))
}

func (c *call) addDisk() (*reply, error) {
	d, err := c.makeDisk(c.body, c.body.id)
	if err != nil {
		return nil, err
	}
	return created(c.e.showDisk(d))
}

// makeDisk checks a request for a disk and begins to make it.
func (c *call) makeDisk(x *element, id string) (*disk, error) {
	if x.value("provisioned_size") == "" {
		return nil, incomplete("Disk [provisionedSize] required for add")
	}
	if x.value("format") == "" {
		return nil, incomplete("Disk [format] required for add")
	}
	dom, err := c.diskDomain(x)
	if err != nil {
		return nil, err
	}
	d := &disk{id: strings.ToLower(id), image: x.valueOr("image_id", newID()), alias: x.valueOr("alias", x.value("name")),
		description: x.value("description"), status: "locked", hold: holdWork, format: x.value("format"),
		sparse: x.value("sparse") != "false", size: x.int64("provisioned_size"), domain: dom.id,
		incremental: x.value("backup") == "incremental", content: "data"}
	if d.id == "" {
		d.id = newID()
	}
	if old, taken := c.e.state.disks.get(d.id); taken {
		return nil, conflict("Cannot add Virtual Disk. The selected disk ID: %s is already used by the following existing disk: %s.", d.id, old.alias)
	}
	if d.format == "raw" && d.incremental {
		return nil, conflict("Cannot add Virtual Disk. Disk configuration (RAW Sparse backup-Incremental) is incompatible with the storage domain type.")
	}
	if !d.sparse && d.size > dom.available {
		return nil, conflict("Cannot add Virtual Disk. Low disk space on Storage Domain %s.", dom.name)
	}
	if dom.status != "active" {
		return nil, conflict("Cannot add Virtual Disk. The relevant Storage Domain's status is %s.", domainWord(dom.status))
	}
	c.e.state.disks.put(d.id, d)
	j := c.newJob("Creating Virtual Disk " + d.alias)
	place := d.place()
	c.e.background(func(ctx context.Context) {
		err := c.e.opts.Host.CreateDisk(ctx, place)
		c.e.wait(ctx, diskTime)
		c.e.locked(func() {
			c.e.endJob(j, err)
			d.hold = ""
			if err != nil {
				c.e.state.disks.remove(d.id)
				c.e.event(2022, "error", about(c.correlation, nil), "Add-Disk operation failed to complete.")
				return
			}
			d.status, d.actual = "ok", emptyDisk
		})
	})
	return d, nil
}

func (c *call) diskDomain(x *element) (*domain, error) {
	named := x.all("storage_domains", "storage_domain")
	if len(named) == 0 {
		return nil, badRequest("Cannot add Virtual Disk. Storage Domain hasn't been specified.")
	}
	dom := c.e.findDomain(named[0].id, named[0].value("name"))
	if dom == nil {
		return nil, noEntity(named[0].id + named[0].value("name"))
	}
	return dom, nil
}

func (c *call) updateDisk() (*reply, error) {
	d, found := c.e.state.disks.get(c.vars["disk"])
	if !found {
		return nil, notFound()
	}
	return c.changeDisk(d, c.body)
}

// changeDisk is PUT: the answer still shows the disk as it was.
func (c *call) changeDisk(d *disk, x *element) (*reply, error) {
	size := x.int64("provisioned_size")
	switch {
	case x.value("backup") == "incremental" && d.format == "raw":
		return nil, badRequest("Cannot edit Virtual Disk. Incremental backup is not supported for RAW format disks.")
	case x.child("provisioned_size") != nil && size < d.size:
		return nil, badRequest("Cannot edit Virtual Disk. New disk size must be larger than the current disk size.")
	case d.hold == holdBackup:
		return nil, conflict("Cannot edit Virtual Disk: Disk is locked. Please try again later.")
	case d.busy():
		// The real engine forgets to fill the name in.
		return nil, conflict("Cannot edit Virtual Disk: The following disks are locked: ${diskAliases}. Please try again in a few minutes.")
	}
	before := c.e.showDisk(d).set("status", "locked")
	d.alias = x.valueOr("alias", x.valueOr("name", d.alias))
	d.description = x.valueOr("description", d.description)
	if b := x.value("backup"); b != "" {
		d.incremental = b == "incremental"
	}
	d.size = max(d.size, size)
	d.status, d.hold = "locked", holdWork
	c.e.after(stopTime, func() { d.status, d.hold = "ok", "" })
	return ok(before)
}

func (c *call) removeDisk() (*reply, error) {
	d, found := c.e.state.disks.get(c.vars["disk"])
	if !found {
		return nil, notFound()
	}
	v, _ := c.e.state.vmOf(d.id)
	switch {
	case d.busy():
		return nil, lockedDisk("Cannot remove Virtual Disk", d)
	case v != nil && v.running():
		return nil, conflict("Cannot remove Virtual Disk. At least one of the VMs is not down.")
	}
	j := c.newJob("Removing Virtual Disk " + d.alias)
	c.e.deleteDisk(d, j, diskRemoveTime)
	return complete(c.e.jobRef(j))
}

// MoveDisk and its like are in move.go.

func (e *Engine) findDomain(id, name string) *domain {
	if id != "" {
		d, _ := e.state.domains.get(id)
		return d
	}
	for _, d := range e.state.domains.all() {
		if d.name == name {
			return d
		}
	}
	return nil
}
