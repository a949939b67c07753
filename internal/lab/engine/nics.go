package engine

import (
	"fmt"
	"slices"
)

func showNIC(v *vm, n *nic) *object {
	o := newObject("nic").at(apiPath+"vms/"+v.id+"/nics/"+n.id, n.id)
	o.set("interface", n.iface).set("linked", flag(n.linked)).set("mac.address", n.mac).set("plugged", flag(n.plugged)).set("synced", "true")
	if n.profile != "" {
		o.set("vnic_profile", ref("vnicprofiles", n.profile))
	}
	o.actions("deactivate", "activate").set("name", n.name).set("vm", ref("vms", v.id))
	return o.link("reporteddevices", "networkfilterparameters", "statistics")
}

// nextMAC hands out the pool's addresses in order.
func (e *Engine) nextMAC() string {
	n := e.state.nextMAC
	e.state.nextMAC++
	return fmt.Sprintf("56:6f:7a:1a:%02x:%02x", n>>8&0xff, n&0xff)
}

// macUsed finds the NIC that has an address.
func (e *Engine) macUsed(mac string) bool {
	for _, v := range e.state.vms.all() {
		for _, n := range v.nics {
			if n.mac == mac {
				return true
			}
		}
	}
	return false
}

func (c *call) listNICs() (*reply, error) {
	all := &list{item: "nic"}
	if v, found := c.e.state.vms.get(c.vars["vm"]); found {
		for _, n := range v.nics {
			all.items = append(all.items, showNIC(v, n))
		}
	}
	return ok(newObject("nics").set("", all))
}

func (c *call) nicOf() (*vm, *nic, error) {
	v, found := c.e.state.vms.get(c.vars["vm"])
	if !found {
		return nil, nil, notFound()
	}
	for _, n := range v.nics {
		if n.id == c.vars["nic"] {
			return v, n, nil
		}
	}
	return nil, nil, notFound()
}

func (c *call) getNIC() (*reply, error) {
	v, n, err := c.nicOf()
	if err != nil {
		return nil, err
	}
	return ok(showNIC(v, n))
}

func (c *call) addNIC() (*reply, error) {
	v, found := c.e.state.vms.get(c.vars["vm"])
	if !found {
		return nil, noEntity(c.vars["vm"])
	}
	if c.body.value("name") == "" {
		return nil, incomplete("Nic [name] required for add")
	}
	n := &nic{id: newID(), iface: "virtio", linked: true, plugged: true, mac: c.body.value("mac.address")}
	if n.mac == "" {
		n.mac = c.e.nextMAC()
	}
	c.applyNIC(n)
	v.nics = append(v.nics, n)
	return created(showNIC(v, n))
}

func (c *call) applyNIC(n *nic) {
	n.name = c.body.valueOr("name", n.name)
	n.iface = c.body.valueOr("interface", n.iface)
	for path, to := range map[string]*bool{"linked": &n.linked, "plugged": &n.plugged} {
		if c.body.child(path) != nil {
			*to = c.body.isTrue(path)
		}
	}
	if p := c.body.child("vnic_profile"); p != nil {
		n.profile = p.id // an empty element takes the NIC off its network
	}
}

func (c *call) updateNIC() (*reply, error) {
	v, n, err := c.nicOf()
	if err != nil {
		return nil, err
	}
	if mac := c.body.value("mac.address"); mac != "" && mac != n.mac {
		if c.e.macUsed(mac) { // unrecorded text
			return nil, conflict("Cannot edit Interface. The MAC Address %s is already in use.", mac)
		}
		n.mac = mac
	}
	c.applyNIC(n)
	return ok(showNIC(v, n))
}

func (c *call) removeNIC() (*reply, error) {
	v, n, err := c.nicOf()
	if err != nil {
		return nil, err
	}
	v.nics = slices.DeleteFunc(v.nics, func(other *nic) bool { return other == n })
	return complete()
}
