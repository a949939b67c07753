package engine

import (
	"net/http"
	"strings"
)

// route is one method of one resource.
type route struct {
	method, pattern string
	root            string // the element the body must be
	wrapped         bool   // faults come inside the action
	handle          func(*call) (*reply, error)
}

const (
	get  = http.MethodGet
	post = http.MethodPost
	put  = http.MethodPut
	del  = http.MethodDelete
)

// routes is the API: a segment in braces is a variable.
//
// Long: one table, a line for each method.
func routes() []route {
	return []route{
		{get, "", "", false, (*call).root},
		{get, "datacenters", "", false, (*call).listCenters},
		{get, "datacenters/{center}", "", false, (*call).getCenter},
		{get, "datacenters/{center}/storagedomains", "", false, (*call).listAttachedDomains},
		{post, "datacenters/{center}/storagedomains", "storage_domain", false, (*call).attachDomain},
		{get, "datacenters/{center}/storagedomains/{domain}", "", false, (*call).getAttachedDomain},
		{del, "datacenters/{center}/storagedomains/{domain}", "", false, (*call).detachDomain},
		{post, "datacenters/{center}/storagedomains/{domain}/activate", "action", true, (*call).activateDomain},
		{post, "datacenters/{center}/storagedomains/{domain}/deactivate", "action", true, (*call).deactivateDomain},
		{get, "datacenters/{center}/storagedomains/{domain}/disks", "", false, (*call).listDomainDisks},
		{post, "datacenters/{center}/storagedomains/{domain}/disks/{disk}/register", "action", true, (*call).registerAttachedDisk},
		{get, "clusters", "", false, (*call).listClusters},
		{get, "clusters/{cluster}", "", false, (*call).getCluster},
		{get, "hosts", "", false, (*call).listHosts},
		{get, "hosts/{host}", "", false, (*call).getHost},
		{get, "networks", "", false, (*call).listNetworks},
		{get, "vnicprofiles", "", false, (*call).listProfiles},
		{get, "vnicprofiles/{profile}", "", false, (*call).getProfile},

		{get, "storageconnections", "", false, (*call).listConnections},
		{post, "storageconnections", "storage_connection", false, (*call).addConnection},
		{get, "storageconnections/{connection}", "", false, (*call).getConnection},
		{del, "storageconnections/{connection}", "", false, (*call).removeConnection},
		{get, "storagedomains", "", false, (*call).listDomains},
		{post, "storagedomains", "storage_domain", false, (*call).addDomain},
		{get, "storagedomains/{domain}", "", false, (*call).getDomain},
		{put, "storagedomains/{domain}", "storage_domain", false, (*call).updateDomain},
		{del, "storagedomains/{domain}", "", false, (*call).removeDomain},
		{get, "storagedomains/{domain}/disks", "", false, (*call).listDomainDisks},
		{post, "storagedomains/{domain}/disks", "disk", false, (*call).registerDisk},
		{get, "storagedomains/{domain}/vms", "", false, (*call).listDomainVMs},
		{get, "storagedomains/{domain}/storageconnections", "", false, (*call).listDomainConnections},
		{post, "storagedomains/{domain}/updateovfstore", "action", true, (*call).updateOVFStore},

		{get, "vms", "", false, (*call).listVMs},
		{post, "vms", "vm", false, (*call).addVM},
		{get, "vms/{vm}", "", false, (*call).getVM},
		{put, "vms/{vm}", "vm", false, (*call).updateVM},
		{del, "vms/{vm}", "", false, (*call).removeVM},
		{post, "vms/{vm}/start", "action", true, (*call).startVM},
		{post, "vms/{vm}/stop", "action", true, (*call).stopVM},
		{post, "vms/{vm}/shutdown", "action", true, (*call).shutdownVM},
		{get, "vms/{vm}/diskattachments", "", false, (*call).listAttachments},
		{post, "vms/{vm}/diskattachments", "disk_attachment", false, (*call).addAttachment},
		{get, "vms/{vm}/diskattachments/{disk}", "", false, (*call).getAttachment},
		{put, "vms/{vm}/diskattachments/{disk}", "disk_attachment", false, (*call).updateAttachment},
		{del, "vms/{vm}/diskattachments/{disk}", "", false, (*call).removeAttachment},
		{get, "vms/{vm}/nics", "", false, (*call).listNICs},
		{post, "vms/{vm}/nics", "nic", false, (*call).addNIC},
		{get, "vms/{vm}/nics/{nic}", "", false, (*call).getNIC},
		{put, "vms/{vm}/nics/{nic}", "nic", false, (*call).updateNIC},
		{del, "vms/{vm}/nics/{nic}", "", false, (*call).removeNIC},
		{get, "vms/{vm}/tags", "", false, (*call).listVMTags},
		{post, "vms/{vm}/tags", "tag", false, (*call).assignTag},
		{del, "vms/{vm}/tags/{tag}", "", false, (*call).unassignTag},
		{get, "vms/{vm}/snapshots", "", false, (*call).listSnapshots},
		{post, "vms/{vm}/snapshots", "snapshot", false, (*call).addSnapshot},
		{get, "vms/{vm}/snapshots/{snapshot}", "", false, (*call).getSnapshot},
		{del, "vms/{vm}/snapshots/{snapshot}", "", false, (*call).removeSnapshot},
		{get, "vms/{vm}/snapshots/{snapshot}/disks", "", false, (*call).listSnapshotDisks},
		{get, "vms/{vm}/backups", "", false, (*call).listBackups},
		{post, "vms/{vm}/backups", "backup", false, (*call).addBackup},
		{get, "vms/{vm}/backups/{backup}", "", false, (*call).getBackup},
		{get, "vms/{vm}/backups/{backup}/disks", "", false, (*call).listBackupDisks},
		{post, "vms/{vm}/backups/{backup}/finalize", "action", false, (*call).finalizeBackup},
		{get, "vms/{vm}/checkpoints", "", false, (*call).listCheckpoints},
		{get, "vms/{vm}/checkpoints/{checkpoint}", "", false, (*call).getCheckpoint},
		{del, "vms/{vm}/checkpoints/{checkpoint}", "", false, (*call).removeCheckpoint},
		{get, "vms/{vm}/checkpoints/{checkpoint}/disks", "", false, (*call).listCheckpointDisks},

		{get, "disks", "", false, (*call).listDisks},
		{post, "disks", "disk", false, (*call).addDisk},
		{get, "disks/{disk}", "", false, (*call).getDisk},
		{put, "disks/{disk}", "disk", false, (*call).updateDisk},
		{del, "disks/{disk}", "", false, (*call).removeDisk},
		{post, "disks/{disk}/move", "action", true, (*call).moveDisk},
		{get, "disks/{disk}/disksnapshots", "", false, (*call).listDiskSnapshots},
		{get, "imagetransfers", "", false, (*call).listTransfers},
		{post, "imagetransfers", "image_transfer", false, (*call).addTransfer},
		{get, "imagetransfers/{transfer}", "", false, (*call).getTransfer},
		{post, "imagetransfers/{transfer}/finalize", "action", false, (*call).finalizeTransfer},
		{post, "imagetransfers/{transfer}/cancel", "action", false, (*call).cancelTransfer},
		{post, "imagetransfers/{transfer}/extend", "action", false, (*call).extendTransfer},
		{post, "imagetransfers/{transfer}/pause", "action", false, (*call).pauseTransfer},
		{post, "imagetransfers/{transfer}/resume", "action", false, (*call).resumeTransfer},

		{get, "tags", "", false, (*call).listTags},
		{post, "tags", "tag", false, (*call).addTag},
		{get, "tags/{tag}", "", false, (*call).getTag},
		{del, "tags/{tag}", "", false, (*call).removeTag},
		{get, "jobs", "", false, (*call).listJobs},
		{get, "jobs/{job}", "", false, (*call).getJob},
		{get, "jobs/{job}/steps", "", false, (*call).listSteps},
		{get, "events", "", false, (*call).listEvents},
		{post, "events", "event", false, (*call).addEvent},
		{get, "events/{event}", "", false, (*call).getEvent},
		{get, "options/{option}", "", false, func(*call) (*reply, error) { return nil, notFound() }}, // none is exposed
		// Collections that are always empty here.
		{get, "vmpools", "", false, empty("vm_pools")},
		{get, "bookmarks", "", false, empty("bookmarks")},
		{get, "templates", "", false, empty("templates")},
	}
}

func empty(root string) func(*call) (*reply, error) {
	return func(*call) (*reply, error) { return ok(newObject(root)) }
}

// match finds the methods of a path and fills the call's variables.
func (c *call) match(path string) map[string]*route {
	methods := map[string]*route{}
	for i := range c.e.routes {
		r := &c.e.routes[i]
		if vars, ok := r.match(path); ok {
			c.vars = vars
			methods[r.method] = r
		}
	}
	return methods
}

func (r *route) match(path string) (map[string]string, bool) {
	want, have := strings.Split(r.pattern, "/"), strings.Split(path, "/")
	if len(want) != len(have) {
		return nil, false
	}
	vars := map[string]string{}
	for i, w := range want {
		switch {
		case strings.HasPrefix(w, "{"):
			vars[strings.Trim(w, "{}")] = strings.ToLower(have[i])
		case w != have[i]:
			return nil, false
		}
	}
	return vars, true
}

// service and verb name a method as the engine's documentation does, for the texts that refer to it.
func (r *route) service() string {
	parts := strings.Split(r.pattern, "/")
	service := parts[0]
	for _, p := range parts {
		if !strings.HasPrefix(p, "{") {
			service = p
		}
	}
	return service
}

func (r *route) verb() string {
	if r.method == put {
		return "update"
	}
	return "add"
}
