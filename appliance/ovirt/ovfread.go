package ovirt

import (
	"encoding/xml"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Machine is what a restore has to know of a VM's OVF. Everything else in it is for the engine alone.
type Machine struct {
	Description string
	NICs        []MachineNIC
	Domains     map[ID]ID // of disks: the storage domain each lay on
	TPM         bool      // it had one: what was kept in it is not part of an OVF
	SecureBoot  bool      // likewise its variables
}

// MachineNIC is a network interface of an OVF.
type MachineNIC struct {
	Name    string
	MAC     string
	Network string // name; "" for none
	Profile string // name of the vNIC profile
}

// nicResource is the ResourceType of a network interface in an OVF.
const nicResource = "10"

// ovfDocument is what Machine is read from. Elements are found by their names without prefix, as the engine reads them.
type ovfDocument struct {
	Content struct {
		Description string
		BiosType    string
		Sections    []struct {
			Items []struct {
				Type     string `xml:"ResourceType"`
				Name     string
				MAC      string `xml:"MACAddress"`
				Network  string `xml:"Connection"`
				Profile  string `xml:"OtherResourceType"`
				Device   string
				Resource string `xml:"HostResource"`
				Storage  string `xml:"StorageId"`
			} `xml:"Item"`
		} `xml:"Section"`
	}
}

// secureBootBIOS is the BiosType of Q35 with Secure Boot (the API's model, BiosType).
const secureBootBIOS = "4"

// ReadOVF reads a VM's OVF.
func ReadOVF(ovf string) (Machine, error) {
	var doc ovfDocument
	if err := xml.Unmarshal([]byte(ovf), &doc); err != nil {
		return Machine{}, errs.New("read OVF", "", errs.Invalid, err).WithNext("The VM's configuration is not one that the engine wrote.")
	}
	m := Machine{Description: doc.Content.Description, Domains: map[ID]ID{}, SecureBoot: strings.TrimSpace(doc.Content.BiosType) == secureBootBIOS}
	for _, s := range doc.Content.Sections {
		for _, i := range s.Items {
			switch strings.TrimSpace(i.Type) {
			case nicResource:
				m.NICs = append(m.NICs, MachineNIC{Name: i.Name, MAC: strings.ToLower(i.MAC), Network: i.Network, Profile: i.Profile})
			case diskResource:
				disk, _, _ := strings.Cut(i.Resource, "/")
				m.Domains[ID(strings.ToLower(disk))] = ID(strings.ToLower(i.Storage))
			}
			m.TPM = m.TPM || strings.EqualFold(i.Device, "tpm")
		}
	}
	return m, nil
}
