package engine

import (
	"strings"
)

// unregistered lists the images the host found that the engine does not know: only those of one volume.
func (e *Engine) unregistered(d *domain) []FoundDisk {
	var out []FoundDisk
	for _, f := range d.found {
		if _, known := e.state.disks.get(f.Disk); !known && f.Volumes <= 1 {
			out = append(out, f)
		}
	}
	return out
}

// foundDisk is an unregistered image as a disk.
func foundDisk(d *domain, f FoundDisk) *disk {
	return &disk{id: strings.ToLower(f.Disk), image: strings.ToLower(f.Image), alias: f.Alias, status: "ok", format: f.Format, sparse: true,
		size: f.Size, actual: f.Used, domain: d.id, content: "data"}
}

// showDomainDisk is a disk as its domain shows it; a registered one has more to tell.
func (e *Engine) showDomainDisk(o *disk, registered bool) *object {
	x := e.showDisk(o)
	x.set("storage_domain", ref("storagedomains", o.domain))
	if registered {
		return x
	}
	y := newObject("disk").at(x.href, x.id)
	for _, m := range x.members {
		if m.name != "disk_profile" && m.name != "quota" && m.name != "actions" && m.name != "link" {
			y.members = append(y.members, m)
		}
	}
	return y.set("total_size", "0").link("permissions", "statistics")
}

func (c *call) listDomainDisks() (*reply, error) {
	all := &list{item: "disk"}
	d, err := c.domainOf()
	if err != nil {
		return ok(newObject("disks"))
	}
	if c.flag("unregistered") {
		for _, f := range c.e.unregistered(d) {
			all.items = append(all.items, c.e.showDomainDisk(foundDisk(d, f), false))
		}
		return ok(newObject("disks").set("", all))
	}
	for _, o := range c.e.state.disks.all() {
		if o.domain == d.id {
			all.items = append(all.items, c.e.showDomainDisk(o, true))
		}
	}
	return ok(newObject("disks").set("", all))
}

// listDomainVMs lists the VMs that have a disk on a domain. Unregistered VMs are not simulated: nobody reads OVF stores
// here.
func (c *call) listDomainVMs() (*reply, error) {
	all := &list{item: "vm"}
	d, err := c.domainOf()
	if err != nil || c.flag("unregistered") {
		return ok(newObject("vms"))
	}
	for _, v := range c.e.state.vms.all() {
		for _, a := range v.attachments {
			if o, _ := c.e.state.disks.get(a.disk); o.domain == d.id {
				all.items = append(all.items, c.e.showVM(v))
				break
			}
		}
	}
	return ok(newObject("vms").set("", all))
}

// registerDisk makes a disk of an unregistered image. It comes without backup=incremental, and with a name of the
// engine's if the image has none.
func (c *call) registerDisk() (*reply, error) {
	d, err := c.domainOf()
	if err != nil {
		return nil, noEntity(c.vars["domain"])
	}
	if !c.flag("unregistered") { // unrecorded: here the real one would make a disk
		return nil, incomplete("Disk [provisionedSize] required for add")
	}
	o, err := c.register(d, c.body.id, c.body.valueOr("alias", c.body.value("name")))
	if err != nil {
		return nil, err
	}
	answer := c.e.showDomainDisk(o, true)
	answer.href = apiPath + "storagedomains/" + d.id + "/disks/" + o.id
	return created(answer.set("total_size", "0"))
}

func (c *call) registerAttachedDisk() (*reply, error) {
	d, err := c.domainOf()
	if err != nil {
		return nil, err
	}
	if _, err := c.register(d, c.vars["disk"], ""); err != nil {
		return nil, err
	}
	return complete()
}

func (c *call) register(d *domain, id, alias string) (*disk, error) {
	if d.status != "active" { // unrecorded text
		return nil, conflict("Cannot import Virtual Disk. The relevant Storage Domain's status is %s.", domainWord(d.status))
	}
	if o, known := c.e.state.disks.get(id); known && o.domain == d.id {
		if alias == "" {
			alias = o.alias
		}
		return nil, conflict("Cannot import Virtual Disk: The following disks are locked: %s. Please try again in a few minutes.", alias)
	}
	for _, f := range c.e.unregistered(d) {
		if !strings.EqualFold(f.Disk, id) {
			continue
		}
		o := foundDisk(d, f)
		if alias != "" {
			o.alias = alias
		}
		if o.alias == "" {
			o.alias = "RegisteredDisk_" + now().Format("2006-01-02_15-04-05")
		}
		c.e.state.disks.put(o.id, o)
		return o, nil
	}
	return nil, noEntity(id)
}
