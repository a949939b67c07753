package ovirt

import (
	"context"
	"encoding/xml"
	"net/http"

	ovirtsdk "github.com/ovirt/go-ovirt"
)

// NICs lists a VM's network interfaces.
func (c *Client) NICs(ctx context.Context, vm ID) ([]NIC, error) {
	const op = "list NICs of VM"
	if err := checkID(op, vm); err != nil {
		return nil, err
	}
	list, err := readMany(ctx, c, get(op, string(vm), "/vms/"+string(vm)+"/nics"), "nics", ovirtsdk.XMLNicReadMany, nicWord)
	return checked(ctx, c, vm, list, err)
}

// AllNICs lists the network interfaces of all VMs.
func (c *Client) AllNICs(ctx context.Context) ([]NIC, error) {
	lists, err := readMany(ctx, c, get("list NICs", "", "/vms", "follow", "nics"), "vms", ovirtsdk.XMLVmReadMany, func(v *ovirtsdk.Vm) []NIC {
		all, ok := v.Nics()
		if !ok {
			return nil
		}
		var out []NIC
		for _, n := range all.Slice() {
			w := nicWord(n)
			w.VM = ID(or(v.Id()))
			out = append(out, w)
		}
		return out
	})
	var all []NIC
	for _, l := range lists {
		all = append(all, l...)
	}
	return all, err
}

func nicWord(n *ovirtsdk.Nic) NIC {
	w := NIC{ID: ID(or(n.Id())), Name: or(n.Name()), Profile: idOf(n.VnicProfile()), VM: idOf(n.Vm())}
	if m, ok := n.Mac(); ok {
		w.MAC = or(m.Address())
	}
	return w
}

// VNICProfiles lists the vNIC profiles, with the networks and data centers that they belong to.
func (c *Client) VNICProfiles(ctx context.Context) ([]VNICProfile, error) {
	type network struct {
		id, dc ID
		name   string
	}
	networks, err := readMany(ctx, c, get("list networks", "", "/networks"), "networks", ovirtsdk.XMLNetworkReadMany, func(n *ovirtsdk.Network) network {
		return network{ID(or(n.Id())), idOf(n.DataCenter()), or(n.Name())}
	})
	if err != nil {
		return nil, err
	}
	return readMany(ctx, c, get("list vNIC profiles", "", "/vnicprofiles"), "vnic_profiles", ovirtsdk.XMLVnicProfileReadMany, func(p *ovirtsdk.VnicProfile) VNICProfile {
		w := VNICProfile{ID: ID(or(p.Id())), Name: or(p.Name()), Network: idOf(p.Network())}
		for _, n := range networks {
			if n.id == w.Network {
				w.NetworkName, w.DataCenter = n.name, n.dc
			}
		}
		return w
	})
}

type xmlNIC struct {
	XMLName xml.Name    `xml:"nic"`
	MAC     *xmlMAC     `xml:"mac"`
	Profile *xmlProfile `xml:"vnic_profile"`
}

type xmlMAC struct {
	Address string `xml:"address"`
}

// xmlProfile without an ID takes a NIC off its network.
type xmlProfile struct {
	ID ID `xml:"id,attr,omitempty"`
}

// UpdateNIC gives a NIC its profile, or none, and its address unless that is "". An address that is taken is errs.Exists.
func (c *Client) UpdateNIC(ctx context.Context, n NIC) error {
	const op = "change NIC"
	if err := checkID(op, n.VM, n.ID); err != nil {
		return err
	}
	x := xmlNIC{Profile: &xmlProfile{n.Profile}}
	if n.MAC != "" {
		x.MAC = &xmlMAC{n.MAC}
	}
	r := post(op, n.Name, "/vms/"+string(n.VM)+"/nics/"+string(n.ID), x)
	r.method = http.MethodPut
	_, err := c.do(ctx, r)
	return err
}

type xmlTag struct {
	XMLName xml.Name `xml:"tag"`
	Name    string   `xml:"name"`
}

// TagVM gives a VM a tag. One that it has already is no error; one that the engine does not know is errs.NotFound.
func (c *Client) TagVM(ctx context.Context, vm ID, tag string) error {
	const op = "tag VM"
	if err := checkID(op, vm); err != nil {
		return err
	}
	_, err := c.do(ctx, post(op, tag, "/vms/"+string(vm)+"/tags", xmlTag{Name: tag}))
	return err
}

type xmlDescribed struct {
	XMLName     xml.Name `xml:"vm"`
	Description string   `xml:"description"`
}

// DescribeVM changes a VM's description.
func (c *Client) DescribeVM(ctx context.Context, vm ID, text string) error {
	const op = "describe VM"
	if err := checkID(op, vm); err != nil {
		return err
	}
	r := post(op, string(vm), "/vms/"+string(vm), xmlDescribed{Description: text})
	r.method = http.MethodPut
	_, err := c.do(ctx, r)
	return err
}
