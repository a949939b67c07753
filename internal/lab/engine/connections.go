package engine

import (
	"strings"
)

func showConnection(k *connection) *object {
	o := newObject("storage_connection").at(apiPath+"storageconnections/"+k.id, k.id).set("address", k.address)
	o.setIf("mount_options", k.options).setIf("nfs_retrans", k.retrans).setIf("nfs_timeo", k.timeo).setIf("nfs_version", k.version)
	return o.set("path", k.path).set("type", k.kind)
}

func (c *call) listConnections() (*reply, error) {
	all := &list{item: "storage_connection"}
	for _, k := range c.e.state.connections.all() {
		all.items = append(all.items, showConnection(k))
	}
	return ok(newObject("storage_connections").set("", all))
}

func (c *call) getConnection() (*reply, error) {
	k, found := c.e.state.connections.get(c.vars["connection"])
	if !found {
		return nil, notFound()
	}
	return ok(showConnection(k))
}

func (c *call) addConnection() (*reply, error) {
	k, err := c.e.makeConnection(c.body, "StorageConnection")
	if err != nil {
		return nil, err
	}
	return created(showConnection(k))
}

// makeConnection registers an export; each one only once.
func (e *Engine) makeConnection(x *element, what string) (*connection, error) {
	for _, need := range []string{"type", "address", "path"} {
		if x.value(need) == "" { // unrecorded text
			return nil, incomplete("%s [%s] required for add", what, need)
		}
	}
	k := &connection{id: newID(), address: x.value("address"), path: x.value("path"), kind: x.value("type"), version: x.value("nfs_version"),
		options: x.value("mount_options"), timeo: x.value("nfs_timeo"), retrans: x.value("nfs_retrans")}
	if !strings.HasPrefix(k.path, "/") {
		return nil, badRequest("Mount path is illegal, please use [IP:/path or FQDN:/path] convention.")
	}
	for _, old := range e.state.connections.all() {
		if old.export() == k.export() {
			return nil, conflict("Cannot add Storage Connection. Storage connection %s already exists for %s.", old.id, e.connectionUser(old.id))
		}
	}
	e.state.connections.put(k.id, k)
	return k, nil
}

// connectionUser names the domains that lie at a connection.
func (e *Engine) connectionUser(id string) string {
	var names []string
	for _, d := range e.state.domains.all() {
		if d.connection == id {
			names = append(names, d.name)
		}
	}
	return strings.Join(names, ", ")
}

func (c *call) removeConnection() (*reply, error) {
	k, found := c.e.state.connections.get(c.vars["connection"])
	if !found {
		return nil, notFound()
	}
	if user := c.e.connectionUser(k.id); user != "" {
		return nil, conflict("Cannot remove Storage Connection. Storage connection parameters are used by the following storage domains : %s.", user)
	}
	c.e.state.connections.remove(k.id)
	return complete()
}

// mountOptions is what vdsm would mount an export with, beyond what it always says.
func (k *connection) mountOptions() string {
	var all []string
	if v, found := strings.CutPrefix(k.version, "v"); found {
		all = append(all, "nfsvers="+strings.ReplaceAll(v, "_", "."))
	}
	for _, o := range [][2]string{{"timeo", k.timeo}, {"retrans", k.retrans}} {
		if o[1] != "" {
			all = append(all, o[0]+"="+o[1])
		}
	}
	if k.options != "" {
		all = append(all, k.options)
	}
	return strings.Join(all, ",")
}
