package engine

import (
	"strings"
)

// searchable collections have a second link with a query in it.
var rootLinks = strings.Fields(`clusters? datacenters? events! hosts? networks? roles storagedomains? tags bookmarks icons
	templates? instancetypes? users? groups? domains vmpools? vms? disks? jobs storageconnections vnicprofiles diskprofiles
	cpuprofiles schedulingpolicyunits schedulingpolicies permissions macpools networkfilters operatingsystems imagetransfers
	affinitylabels clusterlevels externalhostproviders externaltemplateimports externalvmimports katelloerrata
	openstackimageproviders openstacknetworkproviders openstackvolumeproviders`)

// root is the API's own entity: who made it, which version, who asks.
func (c *call) root() (*reply, error) {
	s := &c.e.state
	o := newObject("api").set("engine_backup", newObject(""))
	o.set("product_info.instance_id", s.center)
	for _, v := range [][2]string{{"build", "8"}, {"full_version", "4.5.8_master"}, {"major", "4"}, {"minor", "5"}, {"revision", "0"}} {
		o.set("product_info.version."+v[0], v[1])
	}
	o.set("special_objects.blank_template", ref("templates", nilID)).set("special_objects.root_tag", ref("tags", nilID))
	up, active := 0, 0
	for _, v := range s.vms.all() {
		if v.running() {
			up++
		}
	}
	for _, d := range s.domains.all() {
		if d.status == "active" {
			active++
		}
	}
	for _, n := range []struct {
		name          string
		active, total int
	}{{"hosts", 1, 1}, {"storage_domains", active, len(s.domains.order)}, {"users", 1, 1}, {"vms", up, len(s.vms.order)}} {
		o.set("summary."+n.name+".active", number(int64(n.active))).set("summary."+n.name+".total", number(int64(n.total)))
	}
	o.set("time", now()).set("authenticated_user", ref("users", adminID)).set("effective_user", ref("users", adminID))
	var all links
	for _, l := range rootLinks {
		name := strings.Trim(l, "?!")
		all = append(all, &object{href: apiPath + name, rel: name})
		switch {
		case strings.HasSuffix(l, "?"):
			all = append(all, &object{href: apiPath + name + "?search={query}", rel: name + "/search"})
		case strings.HasSuffix(l, "!"):
			all = append(all, &object{href: apiPath + name + ";from={event_id}?search={query}", rel: name + "/search"})
		}
	}
	return ok(o.set("link", all))
}

func (e *Engine) showCenter() *object {
	major, minor := e.level()
	o := newObject("data_center").at(apiPath+"datacenters/"+e.state.center, e.state.center)
	o.set("local", "false").set("quota_mode", "disabled").set("status", "up").set("storage_format", "v5")
	version := newObject("version").set("major", major).set("minor", minor)
	o.set("supported_versions", newObject("").set("", &list{item: "version", items: []any{version}}))
	o.set("version", version).set("mac_pool", ref("macpools", macPoolID)).actions("setmaster", "cleanfinishedtasks")
	o.set("name", "Default").set("description", "The default Data Center")
	return o.link("clusters", "networks", "storagedomains", "permissions", "quotas", "qoss", "iscsibonds")
}

func (c *call) listCenters() (*reply, error) {
	return c.collection("data_centers", "data_center", []row{{
		map[string][]string{"name": {"Default"}, "id": {c.e.state.center}, "status": {"up"}}, c.e.showCenter}})
}

func (c *call) getCenter() (*reply, error) {
	if c.vars["center"] != c.e.state.center {
		return nil, notFound()
	}
	return ok(c.e.showCenter())
}

func (e *Engine) showCluster() *object {
	major, minor := e.level()
	o := newObject("cluster").at(apiPath+"clusters/"+e.state.cluster, e.state.cluster).fill(clusterConstants)
	o.set("version", newObject("").set("major", major).set("minor", minor))
	o.actions("upgrade", "resetemulatedmachine", "syncallnetworks", "refreshglusterhealstatus")
	o.set("name", "Default").set("description", "The default server cluster").set("comment", "")
	o.set("data_center", ref("datacenters", e.state.center)).set("mac_pool", ref("macpools", macPoolID))
	return o.link("cpuprofiles", "networkfilters", "affinitygroups", "enabledfeatures", "networks", "permissions")
}

func (c *call) listClusters() (*reply, error) {
	return c.collection("clusters", "cluster", []row{{
		map[string][]string{"name": {"Default"}, "id": {c.e.state.cluster}, "datacenter": {"Default"}}, c.e.showCluster}})
}

func (c *call) getCluster() (*reply, error) {
	if c.vars["cluster"] != c.e.state.cluster {
		return nil, notFound()
	}
	return ok(c.e.showCluster())
}

func (e *Engine) showHost() *object {
	o := newObject("host").at(apiPath+"hosts/"+e.state.host, e.state.host)
	o.set("address", e.opts.HostAddress).fill(hostConstants).set("certificate.subject", "O=oVirt,CN="+e.opts.HostAddress)
	o.set("spm.priority", "5").set("spm.status", "spm").set("status", "up")
	active := 0
	for _, v := range e.state.vms.all() {
		if v.running() {
			active++
		}
	}
	o.set("summary.active", number(int64(active))).set("summary.migrating", "0").set("summary.total", number(int64(active)))
	o.set("version.full_version", "vdsm-4.50.5-1.el9").set("version.major", "4").set("version.minor", "50")
	o.set("cluster", ref("clusters", e.state.cluster)).actions("deactivate", "activate", "refresh")
	return o.set("name", e.opts.HostName).set("comment", "").link("nics", "storage", "permissions", "tags", "statistics")
}

func (c *call) listHosts() (*reply, error) {
	return c.collection("hosts", "host", []row{{map[string][]string{
		"name": {c.e.opts.HostName}, "id": {c.e.state.host}, "status": {"up"}, "address": {c.e.opts.HostAddress},
		"cluster": {"Default"}, "datacenter": {"Default"},
	}, c.e.showHost}})
}

func (c *call) getHost() (*reply, error) {
	if c.vars["host"] != c.e.state.host {
		return nil, notFound()
	}
	return ok(c.e.showHost())
}

// isHost tells whether a request names our host, by id or name.
func (e *Engine) isHost(id, name string) bool {
	return strings.EqualFold(id, e.state.host) || id == "" && name == e.opts.HostName
}

// isCluster tells whether a request names our cluster.
func (e *Engine) isCluster(id, name string) bool {
	return strings.EqualFold(id, e.state.cluster) || id == "" && name == "Default"
}

func (c *call) listNetworks() (*reply, error) {
	return c.collection("networks", "network", []row{{map[string][]string{"name": {"ovirtmgmt"}}, func() *object {
		o := newObject("network").at(apiPath+"networks/"+networkID, networkID).set("mtu", "0").set("stp", "false")
		o.set("usages", newObject("").set("", &list{item: "usage", items: []any{"vm", "display", "migration", "management"}}))
		o.set("data_center", ref("datacenters", c.e.state.center)).set("name", "ovirtmgmt")
		return o.set("description", "Management Network").set("comment", "").link("permissions", "vnicprofiles", "networklabels")
	}}})
}

func showProfile() *object {
	o := newObject("vnic_profile").at(apiPath+"vnicprofiles/"+profileID, profileID)
	o.set("pass_through.mode", "disabled").set("port_mirroring", "false").set("network", ref("networks", networkID))
	return o.set("network_filter", ref("networkfilters", "d2370ab4-fee3-11e9-a310-8c1645ce738e")).set("name", "ovirtmgmt").link("permissions")
}

func (c *call) listProfiles() (*reply, error) {
	return c.collection("vnic_profiles", "vnic_profile", []row{{map[string][]string{"name": {"ovirtmgmt"}}, showProfile}})
}

func (c *call) getProfile() (*reply, error) {
	if c.vars["profile"] != profileID {
		return nil, notFound()
	}
	return ok(showProfile())
}
