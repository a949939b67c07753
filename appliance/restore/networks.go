package restore

import (
	"context"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// chooseNetworks finds a vNIC profile and an address for each NIC.
func (p *preparation) chooseNetworks(ctx context.Context) error {
	for from := range p.q.Networks {
		if !slices.ContainsFunc(p.machine.NICs, func(n ovirt.MachineNIC) bool { return names(n, from) }) {
			return errs.Text("map network", from, errs.NotFound, "the VM of the point has no NIC on such a network").
				WithNext("It has: " + list(p.machine.NICs, func(n ovirt.MachineNIC) string { return n.Name + " on " + profileName(n.Network, n.Profile) }) + ".")
		}
	}
	if len(p.machine.NICs) == 0 {
		return nil
	}
	all, err := p.o.Engine.VNICProfiles(ctx)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(x ovirt.VNICProfile) bool { return x.DataCenter != p.dc })
	for _, n := range p.machine.NICs {
		profile, err := p.profileOf(n, all)
		if err != nil {
			return err
		}
		x := appliance.RestoreNIC{Name: n.Name, MAC: n.MAC}
		if profile.ID != "" {
			x.Profile = profileName(profile.NetworkName, profile.Name)
		}
		p.r.NICs = append(p.r.NICs, x)
		p.r.Profiles = append(p.r.Profiles, profile.ID)
	}
	return p.chooseAddresses(ctx)
}

// profileName writes a vNIC profile as people name it.
func profileName(network, profile string) string {
	switch {
	case network == "":
		return "no network"
	case profile == "" || profile == network:
		return network
	}
	return network + "/" + profile
}

// names tells whether a text names a NIC of the point, by itself or by what it hangs on.
func names(n ovirt.MachineNIC, text string) bool {
	return text != "" && (text == n.Name || text == n.Network || text == n.Profile || text == n.Network+"/"+n.Profile)
}

// profileOf finds the profile for a NIC; the zero one leaves it without a network.
func (p *preparation) profileOf(n ovirt.MachineNIC, all []ovirt.VNICProfile) (ovirt.VNICProfile, error) {
	const op = "map network"
	want, mapped := "", false
	for _, from := range []string{n.Name, n.Network + "/" + n.Profile, n.Profile, n.Network} { // the most exact first
		if to, ok := p.q.Networks[from]; ok && !mapped && from != "" {
			want, mapped = to, true
		}
	}
	if !mapped {
		if n.Network == "" {
			return ovirt.VNICProfile{}, nil
		}
		for _, x := range all {
			if x.NetworkName == n.Network && (x.Name == n.Profile || n.Profile == "") {
				return x, nil
			}
		}
		p.note("NIC %s was on %s, which this data center does not have: it is left without a network. --network can name another.", n.Name, profileName(n.Network, n.Profile))
		return ovirt.VNICProfile{}, nil
	}
	if want == "" {
		return ovirt.VNICProfile{}, nil
	}
	var found []ovirt.VNICProfile
	for _, x := range all {
		if string(x.ID) == want || x.Name == want || x.NetworkName+"/"+x.Name == want || x.NetworkName == want && x.Name == x.NetworkName {
			found = append(found, x)
		}
	}
	there := list(all, func(x ovirt.VNICProfile) string { return profileName(x.NetworkName, x.Name) })
	switch len(found) {
	case 0:
		return ovirt.VNICProfile{}, errs.Text(op, want, errs.NotFound, "the data center has no such vNIC profile").WithNext("It has: " + there + ".")
	case 1:
		return found[0], nil
	}
	return ovirt.VNICProfile{}, errs.Text(op, want, errs.Invalid, "several vNIC profiles are called that").WithNext("Say NETWORK/PROFILE: " + there + ".")
}

// chooseAddresses decides between the old addresses and new ones. Two VMs of one address on one network would both lose.
func (p *preparation) chooseAddresses(ctx context.Context) error {
	var taken []string
	if p.q.MAC != MACNew {
		all, err := p.o.Engine.AllNICs(ctx)
		if err != nil {
			return err
		}
		for _, n := range p.r.NICs {
			if slices.ContainsFunc(all, func(x ovirt.NIC) bool { return n.MAC != "" && strings.EqualFold(x.MAC, n.MAC) }) {
				taken = append(taken, n.MAC)
			}
		}
	}
	switch {
	case p.q.MAC != "" && p.q.MAC != MACAuto && p.q.MAC != MACKeep && p.q.MAC != MACNew:
		return errs.Text("choose MAC addresses", p.q.MAC, errs.Invalid, "it is auto, keep or new")
	case p.q.MAC == MACKeep && len(taken) > 0:
		return errs.Text("keep MAC addresses", strings.Join(taken, ", "), errs.Exists, "another VM has them").
			WithNext("Let the engine draw new ones (--new-mac), or remove the other VM's NICs first.")
	case p.q.MAC == MACNew || len(taken) > 0:
		for i := range p.r.NICs {
			p.r.NICs[i].MAC = ""
		}
		if len(taken) > 0 {
			p.note("The VM's MAC addresses are in use (%s): the engine draws new ones.", strings.Join(taken, ", "))
		}
	}
	return nil
}
