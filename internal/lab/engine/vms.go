package engine

import (
	"net/http"
	"regexp"
	"slices"
	"strconv"
)

var (
	vmActions = []string{"cancelmigration", "commitsnapshot", "clone", "freezefilesystems", "logon", "maintenance", "previewsnapshot",
		"autopincpuandnumanodes", "reordermacaddresses", "thawfilesystems", "undosnapshot", "screenshot", "ticket", "migrate", "reboot",
		"shutdown", "start", "stop", "suspend", "reset", "export", "detach"}
	vmLinks = []string{"snapshots", "applications", "hostdevices", "reporteddevices", "sessions", "mediateddevices", "cdroms", "backups",
		"checkpoints", "diskattachments", "watchdogs", "graphicsconsoles", "nics", "numanodes", "katelloerrata", "permissions", "tags",
		"affinitylabels", "statistics"}
	vmName = regexp.MustCompile(`^[0-9A-Za-z_.-]+$`)
)

const (
	gib       = 1 << 30
	mib       = 1 << 20
	memoryMax = 4 // times the memory, what a VM may grow to
)

func (e *Engine) showVM(v *vm) *object {
	o := newObject("vm").at(apiPath+"vms/"+v.id, v.id).set("next_run_configuration_exists", "false")
	if v.running() {
		o.set("run_once", "false").set("start_time", v.started)
		if v.status != "wait_for_launch" {
			o.set("host", ref("hosts", e.state.host))
		}
	}
	o.set("status", v.status).set("stop_time", v.stopped).fill(vmConstants)
	o.set("name", v.name).set("description", v.description).set("comment", v.comment)
	o.set("cpu.topology.cores", strconv.Itoa(v.cores)).set("cpu.topology.sockets", strconv.Itoa(v.sockets))
	o.set("cpu.topology.threads", strconv.Itoa(v.threads))
	o.set("memory", number(v.memory)).set("memory_policy.guaranteed", number(v.memory)).set("memory_policy.max", number(v.memory*memoryMax))
	o.set("origin", v.origin).set("delete_protected", flag(v.protected)).set("creation_time", v.created)
	o.set("cluster", ref("clusters", e.state.cluster))
	return o.actions(vmActions...).link(vmLinks...)
}

// addContent adds what All-Content asks for: the VM's whole configuration.
func (c *call) addContent(o *object, v *vm) *object {
	if c.flag("all_content") || c.r.Header.Get("All-Content") == "true" {
		o.set("initialization.configuration.data", c.e.ovf(v)).set("initialization.configuration.type", "ovf")
	}
	return o
}

func (c *call) listVMs() (*reply, error) {
	vms := c.e.state.vms.all()
	slices.SortStableFunc(vms, func(a, b *vm) int { return compareFields([]string{a.name}, []string{b.name}) })
	var rows []row
	for _, v := range vms {
		var tags []string
		for _, id := range v.tags {
			for t, found := c.e.state.tags.get(id); found && t.id != nilID; t, found = c.e.state.tags.get(t.parent) {
				tags = append(tags, t.name)
			}
		}
		host := ""
		if v.running() {
			host = c.e.opts.HostName
		}
		rows = append(rows, row{map[string][]string{
			"name": {v.name}, "id": {v.id}, "status": {v.status}, "tag": tags, "cluster": {"Default"}, "datacenter": {"Default"},
			"description": {v.description}, "comment": {v.comment}, "host": {host}, "os": {"other"}, "type": {"server"},
			"next_run_config_exists": {"false"}, "origin": {v.origin}, "creationdate": {number(v.created.UnixMilli())},
		}, func() *object { return c.addContent(c.e.showVM(v), v) }})
	}
	return c.collection("vms", "vm", rows)
}

func (c *call) getVM() (*reply, error) {
	v, found := c.e.state.vms.get(c.vars["vm"])
	if !found {
		return nil, notFound()
	}
	return ok(c.addContent(c.e.showVM(v), v))
}

func (c *call) addVM() (*reply, error) {
	if data := c.body.value("initialization.configuration.data"); data != "" {
		return c.addVMFromOVF(data)
	}
	name := c.body.value("name")
	id, cluster := c.body.idOrName("cluster")
	switch {
	case name == "":
		return nil, incomplete("Vm [name] required for add")
	case id == "" && cluster == "":
		return nil, incomplete("Vm [cluster.id|name] required for add")
	case !c.e.isCluster(id, cluster):
		if id == "" {
			id = "Cluster: name=" + cluster
		}
		return nil, noEntity(id)
	case !vmName.MatchString(name):
		return nil, badRequest("Can not add VM. The given name contains special characters. Only lower-case and upper-case letters, " +
			"numbers, '_', '-', '.' are allowed., Attribute: vmStatic.name")
	case c.e.state.vmByName(name) != nil:
		return nil, conflict("Cannot add VM. The VM name is already in use, please choose a unique name and try again.")
	}
	if _, taken := c.e.state.vms.get(c.body.id); taken { // unrecorded text
		return nil, conflict("Cannot add VM. VM with the same identifier already exists.")
	}
	v := c.e.newVM(c.body.id, name)
	c.applyVM(v, c.body)
	c.e.state.vms.put(v.id, v)
	c.e.log.Info("VM made", "vm", v.id)
	return created(c.addContent(c.e.showVM(v), v))
}

// newVM is a VM as the Blank template makes it.
func (e *Engine) newVM(id, name string) *vm {
	if id == "" {
		id = newID()
	}
	at := now()
	return &vm{id: id, name: name, status: "down", memory: gib, sockets: 1, cores: 1, threads: 1, created: at, stopped: at, origin: "ovirt",
		snapshots: []*snapshot{{id: newID(), description: "Active VM", status: "ok", kind: "active", date: at}}}
}

// applyVM takes over what a request says about a VM.
func (c *call) applyVM(v *vm, x *element) {
	v.name = x.valueOr("name", v.name)
	for path, to := range map[string]*string{"description": &v.description, "comment": &v.comment} {
		if x.child(path) != nil { // an empty one empties it
			*to = x.value(path)
		}
	}
	if n := x.int64("memory"); n > 0 {
		v.memory = n
	}
	for path, to := range map[string]*int{"cpu.topology.cores": &v.cores, "cpu.topology.sockets": &v.sockets, "cpu.topology.threads": &v.threads} {
		if n := x.int64(path); n > 0 {
			*to = int(n)
		}
	}
	if x.child("delete_protected") != nil {
		v.protected = x.isTrue("delete_protected")
	}
}

func (c *call) updateVM() (*reply, error) {
	v, found := c.e.state.vms.get(c.vars["vm"])
	if !found {
		return nil, notFound()
	}
	if name := c.body.value("name"); name != "" && name != v.name && c.e.state.vmByName(name) != nil {
		return nil, conflict("Cannot edit VM. The VM name is already in use, please choose a unique name and try again.")
	}
	c.applyVM(v, c.body)
	return ok(c.e.showVM(v))
}

func (c *call) removeVM() (*reply, error) {
	v, found := c.e.state.vms.get(c.vars["vm"])
	if !found {
		return nil, notFound()
	}
	var held []*disk
	var disks []*disk
	for _, a := range v.attachments {
		d, _ := c.e.state.disks.get(a.disk)
		disks = append(disks, d)
		if d.busy() {
			held = append(held, d)
		}
	}
	switch {
	case v.status == "image_locked": // unrecorded
		return nil, locked()
	case v.running():
		return nil, conflict("Cannot remove VM. VM is running.")
	case v.protected: // unrecorded text
		return nil, conflict("Cannot remove VM. Delete protection is enabled. In order to delete, disable Delete protection first.")
	case c.e.state.runningBackup(v.id) != nil:
		return nil, conflict("Cannot remove VM. The VM is during a backup operation.")
	case len(held) > 0:
		return nil, conflict("Cannot remove VM: The following disks are locked: %s. Please try again in a few minutes.", aliases(held))
	case c.e.busyVM(v):
		return nil, c.e.busyFault()
	}
	j := c.newJob("Removing VM " + v.name)
	if c.flag("detach_only") {
		disks = nil
	}
	if len(disks) == 0 {
		c.e.state.vms.remove(v.id)
		c.e.endJob(j, nil)
		return complete(c.e.jobRef(j))
	}
	v.status = "image_locked"
	for _, d := range disks {
		d.status, d.hold = "locked", holdWork
	}
	c.e.background(c.e.removingVM(v, disks, j))
	return complete(c.e.jobRef(j))
}

// attachmentOf finds what a request's path names.
func (c *call) attachmentOf() (*vm, *attachment, error) {
	v, found := c.e.state.vms.get(c.vars["vm"])
	if !found {
		return nil, nil, notFound()
	}
	a := v.attachment(c.vars["disk"])
	if a == nil {
		return nil, nil, notFound()
	}
	return v, a, nil
}

// AddVM puts a VM into the installation, as if it had always been there.
func (e *Engine) AddVM(s VMSeed) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.state.vmByName(s.Name) != nil {
		return badRequest("Cannot add VM. The VM name is already in use, please choose a unique name and try again.")
	}
	v := e.newVM(s.ID, s.Name)
	v.memory, v.sockets = max(s.MiB, 1)*mib, max(s.VCPUs, 1)
	if s.Running {
		v.status, v.started = "up", now()
	}
	for i, d := range s.Disks {
		e.seedDisk(v, d, i)
	}
	for i, network := range s.Networks {
		n := &nic{id: newID(), name: "nic" + strconv.Itoa(i+1), iface: "virtio", mac: e.nextMAC(), linked: true, plugged: true}
		if network != "" {
			n.profile = profileID
		}
		v.nics = append(v.nics, n)
	}
	for _, name := range s.Tags {
		t := e.tagByName(name)
		if t == nil {
			t = &tag{id: newID(), name: name, parent: nilID}
			e.state.tags.put(t.id, t)
		}
		v.tags = append(v.tags, t.id)
	}
	e.state.vms.put(v.id, v)
	return nil
}

func (e *Engine) seedDisk(v *vm, s DiskSeed, i int) {
	d := &disk{id: s.ID, image: s.Image, alias: s.Alias, status: "ok", format: s.Format, sparse: true, size: s.Size, actual: s.Actual,
		domain: s.Domain, incremental: s.Incremental, content: "data"}
	for field, missing := range map[*string]string{
		&d.id: newID(), &d.image: newID(), &d.alias: v.name + "_Disk" + strconv.Itoa(i+1), &d.format: "cow",
		&d.domain: e.state.domains.order[0], &s.Interface: "virtio_scsi",
	} {
		if *field == "" {
			*field = missing
		}
	}
	e.state.disks.put(d.id, d)
	v.attachments = append(v.attachments, &attachment{disk: d.id, iface: s.Interface, bootable: i == 0, active: true})
}

// busyVM tells whether the engine's own lock on a VM is taken: by a snapshot being made or merged, or by a fault.
func (e *Engine) busyVM(v *vm) bool { return v.locked || e.active(FaultVMLocked) }

// busyFault is the answer to a request that met such a lock. The real one gives either, and says nothing: clients must
// take both for "later".
func (e *Engine) busyFault() *apiFault {
	e.state.refusals++
	if e.state.refusals%2 == 1 {
		return locked()
	}
	return failed(http.StatusConflict, "Cannot perform the operation. Related operation is currently in progress. Please try again later.")
}
