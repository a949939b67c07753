package engine

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	maintenanceLock = 3 * time.Second // the OVF store is written
	maintenanceTime = 7 * time.Second
	defaultSpace    = 500 * gib
)

// domainWord is a domain's status as messages say it.
func domainWord(status string) string {
	switch status {
	case "preparing_for_maintenance":
		return "Preparing For Maintenance"
	case "":
		return "Unattached"
	}
	return strings.ToUpper(status[:1]) + status[1:]
}

func (e *Engine) seedDomain(s DomainSeed, master bool) {
	if s.ID == "" {
		s.ID = newID()
	}
	if s.Path == "" {
		s.Path = "/export/" + s.Name
	}
	k := &connection{id: newID(), address: "127.0.0.1", path: s.Path, kind: "nfs"}
	e.state.connections.put(k.id, k)
	e.state.domains.put(s.ID, &domain{id: s.ID, name: s.Name, connection: k.id, center: e.state.center, status: "active", master: master,
		local: true, available: defaultSpace, used: defaultSpace})
}

// domainFields are what both views of a domain share.
func (e *Engine) domainFields(o *object, d *domain, status string) *object {
	var committed int64
	for _, other := range e.state.disks.all() {
		if other.domain == d.id {
			committed += other.size
		}
	}
	o.set("available", number(d.available)).fill(domainConstants).set("committed", number(committed)).set("master", flag(d.master))
	o.setIf("status", status).set("used", number(d.used))
	if k, found := e.state.connections.get(d.connection); found {
		storage := newObject("").set("address", k.address).setIf("mount_options", k.options).setIf("nfs_version", k.version)
		o.set("storage", storage.set("path", k.path).set("type", k.kind))
	}
	return o.set("name", d.name).set("description", d.description).set("comment", d.comment)
}

// showDomain is the view from the top, which has a status only while the domain is not attached.
func (e *Engine) showDomain(d *domain) *object {
	o := newObject("storage_domain").at(apiPath+"storagedomains/"+d.id, d.id)
	e.domainFields(o, d, d.outside)
	if d.center != "" {
		o.set("data_centers", e.centers())
	}
	o.actions("isattached", "updateovfstore", "refreshluns", "reduceluns")
	return o.link("disksnapshots", "diskprofiles", "disks", "storageconnections", "permissions", "templates", "vms")
}

func (e *Engine) centers() *object {
	return newObject("").set("", &list{item: "data_center", items: []any{ref("datacenters", e.state.center)}})
}

// showAttached is the view from the data center.
func (e *Engine) showAttached(d *domain) *object {
	o := e.domainFields(e.attachedPart(d), d, d.status)
	return o
}

// attachedPart is what actions answer: no state.
func (e *Engine) attachedPart(d *domain) *object {
	o := newObject("storage_domain").at(apiPath+"datacenters/"+e.state.center+"/storagedomains/"+d.id, d.id)
	o.set("data_center", ref("datacenters", e.state.center)).set("data_centers", e.centers())
	return o.actions("deactivate", "activate").link("disks")
}

func (c *call) domainRow(d *domain, show func(*domain) *object) row {
	status := d.status
	if d.center == "" {
		status = d.outside
	}
	return row{map[string][]string{"name": {d.name}, "id": {d.id}, "status": {status}, "type": {"data"}, "comment": {d.comment},
		"description": {d.description}, "datacenter": {"Default"}}, func() *object { return show(d) }}
}

func (c *call) listDomains() (*reply, error) {
	var rows []row
	for _, d := range c.e.state.domains.all() {
		rows = append(rows, c.domainRow(d, c.e.showDomain))
	}
	return c.collection("storage_domains", "storage_domain", rows)
}

func (c *call) listAttachedDomains() (*reply, error) {
	var rows []row
	for _, d := range c.e.state.domains.all() {
		if d.center == c.vars["center"] && d.center != "" {
			rows = append(rows, c.domainRow(d, c.e.showAttached))
		}
	}
	return c.collection("storage_domains", "storage_domain", rows)
}

func (c *call) domainOf() (*domain, error) {
	d, found := c.e.state.domains.get(c.vars["domain"])
	if center, inside := c.vars["center"]; !found || inside && (d.center == "" || d.center != center) {
		return nil, notFound()
	}
	return d, nil
}

func (c *call) getDomain() (*reply, error) {
	d, err := c.domainOf()
	if err != nil {
		return nil, err
	}
	return ok(c.e.showDomain(d))
}

func (c *call) getAttachedDomain() (*reply, error) {
	d, err := c.domainOf()
	if err != nil {
		return nil, err
	}
	return ok(c.e.showAttached(d))
}

// addDomain creates or imports: what lies at the export decides, not what the request says. A client must look at the id
// that comes back.
func (c *call) addDomain() (*reply, error) {
	hostID, hostName := c.body.idOrName("host")
	name := c.body.value("name")
	switch {
	case hostID == "" && hostName == "":
		return nil, incomplete("StorageDomain [host.id|name] required for add")
	case !c.e.isHost(hostID, hostName):
		return nil, noEntity(hostID + hostName)
	case name != "" && c.e.findDomain("", name) != nil:
		return nil, conflict("Cannot add Storage. The Storage Domain name is already in use.")
	}
	k, inline, err := c.storageOf()
	if err != nil {
		return nil, err
	}
	var info *DomainInfo
	notMounted := badRequest("Problem while trying to mount target")
	refused := error(notMounted)
	if !c.e.trip(FaultDomainRefused) {
		c.e.outside(func() { info, refused = c.e.opts.Host.ProbeDomain(c.e.ctx, k.export(), k.mountOptions()) })
	}
	if refused != nil && strings.Contains(refused.Error(), "MountError") { // the engine keeps the host's reason to itself
		c.e.log.Warn("not mounted", "export", k.export(), "err", refused)
		refused = notMounted
	}
	if refused != nil {
		if inline {
			c.e.state.connections.remove(k.id)
		}
		return nil, refused
	}
	if info == nil { // nothing there: a new, empty domain, which only the engine knows
		info = &DomainInfo{ID: newID(), Available: defaultSpace}
	}
	if _, known := c.e.state.domains.get(info.ID); known { // unrecorded text
		return nil, conflict("Cannot add Storage. The Storage Domain already exists.")
	}
	if name == "" {
		name = info.Name
	}
	d := &domain{id: strings.ToLower(info.ID), name: name, connection: k.id, outside: "unknown", comment: c.body.value("comment"),
		description: c.body.value("description"), available: info.Available, used: info.Used}
	c.e.state.domains.put(d.id, d)
	answer := c.e.showDomain(d)
	d.outside = "unattached"
	return created(answer)
}

// storageOf finds the connection a request names, or makes the one it describes.
func (c *call) storageOf() (k *connection, inline bool, err error) {
	x := c.body.child("storage")
	if x == nil { // unrecorded text
		return nil, false, incomplete("StorageDomain [storage] required for add")
	}
	if x.id == "" {
		k, err = c.e.makeConnection(x, "StorageDomain")
		return k, true, err
	}
	k, found := c.e.state.connections.get(x.id)
	if !found {
		return nil, false, noEntity(x.id)
	}
	if user := c.e.connectionUser(k.id); user != "" { // unrecorded text
		return nil, false, conflict("Cannot add Storage. Storage connection %s is already in use by %s.", k.id, user)
	}
	return k, false, nil
}

func (c *call) updateDomain() (*reply, error) {
	d, err := c.domainOf()
	if err != nil {
		return nil, err
	}
	d.name = c.body.valueOr("name", d.name)
	d.comment = c.body.valueOr("comment", d.comment)
	d.description = c.body.valueOr("description", d.description)
	return ok(c.e.showDomain(d))
}

const inaccessible = "The relevant Storage Domain is inaccessible.\n-Please handle Storage Domain issues and retry the operation."

// attachDomain is over when it answers: the domain is active then, and its images are known.
func (c *call) attachDomain() (*reply, error) {
	id, name := c.body.id, c.body.value("name")
	d := c.e.findDomain(id, name)
	switch {
	case c.vars["center"] != c.e.state.center:
		return nil, noEntity(c.vars["center"])
	case d == nil:
		return nil, noEntity(id + name)
	case d.center != "" || d.outside != "unattached":
		return nil, conflict("Cannot attach Storage. %s", inaccessible)
	}
	j := c.newJob("Attaching Storage Domain " + d.name + " to Data Center Default")
	d.outside = "locked"
	err := errors.New("Cannot attach Storage: simulated fault")
	var found []FoundDisk
	if !c.e.trip(FaultAttachFails) {
		c.e.outside(func() {
			if err = c.e.opts.Host.AttachDomain(c.e.ctx, d.id, c.e.state.center); err == nil {
				found, err = c.e.opts.Host.ScanDisks(c.e.ctx, d.id)
			}
		})
	}
	c.e.endJob(j, err)
	d.outside = "unattached"
	if err != nil {
		c.e.event(evDomainAttachFailed, "error", func(ev *event) { ev.correlation, ev.domain = c.correlation, d.id },
			"Failed to attach Storage Domain %s to Data Center Default: %s. (User: admin@internal-authz)", d.name, err)
		return nil, badRequest("%s", err)
	}
	d.center, d.status, d.outside, d.found = c.e.state.center, "active", "", found
	c.e.event(evDomainAttached, "normal", func(ev *event) { ev.correlation, ev.domain = c.correlation, d.id },
		"Storage Domain %s was attached to Data Center Default by admin@internal-authz", d.name)
	return created(c.e.showAttached(d))
}

func (c *call) activateDomain() (*reply, error) {
	d, err := c.domainOf()
	if err != nil {
		return nil, err
	}
	if d.status != "maintenance" && d.status != "inactive" {
		return nil, conflict("Cannot activate Storage. The relevant Storage Domain's status is %s.", domainWord(d.status))
	}
	d.status = "locked"
	if !d.local {
		c.e.outside(func() { err = c.e.opts.Host.AttachDomain(c.e.ctx, d.id, d.center) })
	}
	if err != nil {
		d.status = "inactive"
		return nil, badRequest("%s", err)
	}
	d.status = "active"
	j := c.newJob("Activating Storage Domain " + d.name)
	c.e.endJob(j, nil)
	return complete(append(c.echo(), c.e.jobRef(j), member{"storage_domain", c.e.attachedPart(d)})...)
}

func (c *call) deactivateDomain() (*reply, error) {
	d, err := c.domainOf()
	if err != nil {
		return nil, err
	}
	if d.status != "active" && d.status != "inactive" {
		return nil, conflict("Cannot deactivate Storage. The relevant Storage Domain's status is %s.", domainWord(d.status))
	}
	var users []string
	for _, v := range c.e.state.vms.all() {
		for _, a := range v.attachments {
			if o, _ := c.e.state.disks.get(a.disk); o.domain == d.id && v.running() {
				users = append(users, v.name)
			}
			if o, _ := c.e.state.disks.get(a.disk); o.domain == d.id && o.busy() { // unrecorded text
				return nil, conflict("Cannot deactivate Storage while there are running tasks on this Storage.\n-Please wait until tasks will finish and try again.")
			}
		}
	}
	if len(users) > 0 && !d.master { // unrecorded text
		return nil, conflict("Cannot deactivate Storage. The following VMs are running from it: %s.", strings.Join(slices.Compact(users), ", "))
	}
	j := c.newJob("Deactivating Storage Domain " + d.name)
	d.status = "locked"
	c.e.background(func(ctx context.Context) {
		c.e.wait(ctx, maintenanceLock)
		c.e.locked(func() { d.status = "preparing_for_maintenance" })
		err := c.e.opts.Host.DeactivateDomain(ctx, d.id)
		c.e.wait(ctx, maintenanceTime)
		c.e.locked(func() {
			c.e.endJob(j, err)
			d.status = "maintenance"
			if err != nil {
				c.e.log.Warn("domain not deactivated", "domain", d.id, "err", err)
				d.status = "inactive"
			}
		})
	})
	return complete(append(c.echo(), c.e.jobRef(j), member{"storage_domain", c.e.attachedPart(d)})...)
}

// detachDomain takes a domain out of its data center, and its VMs and disks with it.
func (c *call) detachDomain() (*reply, error) {
	d, err := c.domainOf()
	if err != nil {
		return nil, err
	}
	switch d.status {
	case "maintenance":
	case "locked", "preparing_for_maintenance":
		return nil, conflict("Cannot detach Storage. Related operation is currently in progress. Please try again later.")
	default:
		return nil, conflict("Cannot detach Storage. The relevant Storage Domain's status is %s.", domainWord(d.status))
	}
	d.status = "locked"
	c.e.outside(func() { err = c.e.opts.Host.DetachDomain(c.e.ctx, d.id) })
	if err != nil {
		d.status = "maintenance"
		return nil, badRequest("%s", err)
	}
	c.e.forgetContents(d)
	d.center, d.status, d.outside, d.found = "", "", "unattached", nil
	j := c.newJob("Detaching Storage Domain " + d.name + " from Data Center Default")
	c.e.endJob(j, nil)
	return complete(c.e.jobRef(j))
}

// forgetContents drops a domain's disks, and the VMs that have one there.
func (e *Engine) forgetContents(d *domain) {
	for _, o := range e.state.disks.all() {
		if o.domain != d.id {
			continue
		}
		if v, _ := e.state.vmOf(o.id); v != nil {
			e.state.vms.remove(v.id)
		}
		e.state.disks.remove(o.id)
	}
}

func (c *call) removeDomain() (*reply, error) {
	d, err := c.domainOf()
	if err != nil {
		return nil, err
	}
	destroy := c.flag("destroy")
	host := c.param("host")
	switch {
	case destroy && d.center != "" && d.status != "maintenance":
		return nil, conflict("Cannot destroy Storage. The relevant Storage Domain's status is %s.", domainWord(d.status))
	case !destroy && host == "":
		return nil, &apiFault{status: http.StatusBadRequest, reason: "host parameter is missing"}
	case !destroy && !c.e.isHost(host, "") && !c.e.isHost("", host):
		return nil, noEntity(host)
	case !destroy && d.center != "":
		return nil, conflict("Cannot remove Storage. %s", inaccessible)
	}
	format := !destroy && c.param("format") == "true"
	c.e.outside(func() {
		if format {
			err = c.e.opts.Host.FormatDomain(c.e.ctx, d.id)
		}
		if err == nil {
			err = c.e.opts.Host.ForgetDomain(c.e.ctx, d.id)
		}
	})
	if err != nil && !destroy { // a destroyed domain is forgotten whatever has become of it
		return nil, badRequest("%s", err)
	}
	c.e.forgetContents(d)
	c.e.state.domains.remove(d.id)
	c.e.state.connections.remove(d.connection)
	j := c.newJob("Removing Storage Domain " + d.name)
	c.e.endJob(j, nil)
	return complete(c.e.jobRef(j))
}

func (c *call) listDomainConnections() (*reply, error) {
	all := &list{item: "storage_connection"}
	if d, err := c.domainOf(); err == nil {
		if k, found := c.e.state.connections.get(d.connection); found {
			all.items = append(all.items, showConnection(k))
		}
	}
	return ok(newObject("storage_connections").set("", all))
}

func (c *call) updateOVFStore() (*reply, error) {
	d, err := c.domainOf()
	if err != nil {
		return nil, err
	}
	j := c.newJob("Updating the OVF store of " + d.name)
	c.e.endJob(j, nil)
	return complete(c.e.jobRef(j))
}
