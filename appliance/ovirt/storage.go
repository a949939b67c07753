package ovirt

import (
	"context"
	"encoding/xml"
	"errors"
	"regexp"
	"slices"

	ovirtsdk "github.com/ovirt/go-ovirt"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Domains lists the storage domains of a data center.
func (c *Client) Domains(ctx context.Context, dc ID) ([]Domain, error) {
	const op = "list storage domains of data center"
	if err := checkID(op, dc); err != nil {
		return nil, err
	}
	return readMany(ctx, c, get(op, string(dc), "/datacenters/"+string(dc)+"/storagedomains"), "storage_domains",
		ovirtsdk.XMLStorageDomainReadMany, domainWord)
}

// FindDomain returns a storage domain, attached or not.
func (c *Client) FindDomain(ctx context.Context, id ID) (Domain, error) {
	const op = "find storage domain"
	if err := checkID(op, id); err != nil {
		return Domain{}, err
	}
	d, err := readOne(ctx, c, get(op, string(id), "/storagedomains/"+string(id)), "storage_domain", ovirtsdk.XMLStorageDomainReadOne)
	if err != nil {
		return Domain{}, err
	}
	return c.withStatus(ctx, domainWord(d))
}

// FindDomainByName returns the storage domain of a name.
func (c *Client) FindDomainByName(ctx context.Context, name string) (Domain, error) {
	const op = "find storage domain"
	key, value := byName(name)
	list, err := readMany(ctx, c, get(op, name, "/storagedomains", key, value), "storage_domains", ovirtsdk.XMLStorageDomainReadMany, domainWord)
	if err != nil {
		return Domain{}, err
	}
	if i := slices.IndexFunc(list, func(d Domain) bool { return d.Name == name }); i >= 0 {
		return c.withStatus(ctx, list[i])
	}
	return Domain{}, errs.Text(op, name, errs.NotFound, "the engine has no storage domain of that name, or this user may not see it")
}

// withStatus completes a domain as the engine shows it outside of data centers: the status of an attached one is known
// only inside.
func (c *Client) withStatus(ctx context.Context, d Domain) (Domain, error) {
	if d.Status != "" || d.DataCenter == "" {
		return d, nil
	}
	in, err := c.Domain(ctx, d.DataCenter, d.ID)
	if errs.Is(err, errs.NotFound) { // detached in between
		d.DataCenter, d.Status = "", DomainUnattached
		return d, nil
	}
	return in, err
}

// Domain returns a storage domain of a data center, with its status there.
func (c *Client) Domain(ctx context.Context, dc, id ID) (Domain, error) {
	const op = "look at storage domain"
	if err := checkID(op, dc, id); err != nil {
		return Domain{}, err
	}
	d, err := readOne(ctx, c, get(op, string(id), inside(dc, id)), "storage_domain", ovirtsdk.XMLStorageDomainReadOne)
	if err != nil {
		return Domain{}, err
	}
	w := domainWord(d)
	w.DataCenter = dc
	return w, nil
}

func inside(dc, id ID) string { return "/datacenters/" + string(dc) + "/storagedomains/" + string(id) }

// FindConnection returns the connection to an export.
func (c *Client) FindConnection(ctx context.Context, address, path string) (Connection, error) {
	const op = "find storage connection"
	subject := address + ":" + path
	list, err := readMany(ctx, c, get(op, subject, "/storageconnections"), "storage_connections",
		ovirtsdk.XMLStorageConnectionReadMany, connectionWord)
	if err != nil {
		return Connection{}, err
	}
	if i := slices.IndexFunc(list, func(s Connection) bool { return s.Address == address && s.Path == path }); i >= 0 {
		return list[i], nil
	}
	return Connection{}, errs.Text(op, subject, errs.NotFound, "the engine does not know it")
}

type xmlConnection struct {
	XMLName      xml.Name `xml:"storage_connection"`
	Address      string   `xml:"address"`
	Path         string   `xml:"path"`
	Type         string   `xml:"type"`
	NFSVersion   string   `xml:"nfs_version"`
	MountOptions string   `xml:"mount_options,omitempty"`
}

// AddConnection has the engine know an NFS version 3 export. If the answer is lost it looks whether the engine has it.
func (c *Client) AddConnection(ctx context.Context, n Connection) (Connection, error) {
	const op = "add storage connection"
	subject := n.Address + ":" + n.Path
	x := xmlConnection{Address: n.Address, Path: n.Path, Type: "nfs", NFSVersion: "v3", MountOptions: n.MountOptions}
	s, err := readOne(ctx, c, post(op, subject, "/storageconnections", x), "storage_connection", ovirtsdk.XMLStorageConnectionReadOne)
	if errs.Is(err, errs.Transient) {
		if have, lookErr := c.FindConnection(ctx, n.Address, n.Path); lookErr == nil {
			return have, nil
		}
	}
	if err != nil {
		return Connection{}, err
	}
	n.ID = ID(or(s.Id()))
	return n, nil
}

// RemoveConnection forgets a connection that no domain uses; host, if given, unmounts it.
func (c *Client) RemoveConnection(ctx context.Context, id, host ID) error {
	const op = "remove storage connection"
	if err := checkID(op, id); err != nil {
		return err
	}
	_, err := c.do(ctx, remove(op, string(id), "/storageconnections/"+string(id), "host", string(host)))
	return err
}

type xmlDomain struct {
	XMLName xml.Name `xml:"storage_domain"`
	ID      ID       `xml:"id,attr,omitempty"`
	Import  bool     `xml:"import,omitempty"`
	Name    string   `xml:"name,omitempty"`
	Type    string   `xml:"type,omitempty"`
	Storage *xmlRef  `xml:"storage,omitempty"`
	Host    *xmlRef  `xml:"host,omitempty"`
}

// ImportDomain has a host look at an export and the engine know the data domain there. Where a host finds none the engine
// makes a new one without a word, whatever was asked for: a domain that is not the expected one is returned together with
// an error, and it is for the caller to remove it. If the answer is lost it looks whether the expected one is known.
func (c *Client) ImportDomain(ctx context.Context, s DomainSpec) (Domain, error) {
	const op = "import storage domain"
	if err := checkID(op, s.Connection, s.Host); err != nil {
		return Domain{}, err
	}
	x := xmlDomain{Import: true, Name: s.Name, Type: "data", Storage: ref(s.Connection), Host: ref(s.Host)}
	r := post(op, s.Name, "/storagedomains", x)
	r.long = true
	d, err := readOne(ctx, c, r, "storage_domain", ovirtsdk.XMLStorageDomainReadOne)
	if errs.Is(err, errs.Transient) && s.Expect != "" && !errors.As(err, new(*fault)) {
		if have, lookErr := c.FindDomain(ctx, s.Expect); lookErr == nil {
			return have, nil
		}
	}
	if err != nil {
		return Domain{}, err
	}
	w := domainWord(d)
	if s.Expect != "" && w.ID != s.Expect {
		return w, errs.Text(op, s.Name, errs.Transient, "the host did not see the expected domain: the engine has now one with the ID "+string(w.ID)).
			WithNext("Check that no other server answers at the export's address, and remove that domain.")
	}
	return w, nil
}

// AttachDomain attaches a domain to a data center; the engine activates it a while later by itself. One that is attached
// there already is no error.
func (c *Client) AttachDomain(ctx context.Context, dc, id ID) error {
	const op = "attach storage domain"
	if err := checkID(op, dc, id); err != nil {
		return err
	}
	r := post(op, string(id), "/datacenters/"+string(dc)+"/storagedomains", xmlDomain{ID: id})
	r.long = true
	_, err := c.do(ctx, r)
	if errs.Is(err, errs.Busy) || errs.Is(err, errs.Transient) { // the refusal does not say what is in the way
		if _, lookErr := c.Domain(ctx, dc, id); lookErr == nil {
			return nil
		}
	}
	return err
}

var (
	activeAlready = regexp.MustCompile(`Storage Domain's status is Active`)
	downward      = regexp.MustCompile(`Storage Domain's status is (Maintenance|Preparing)`)
)

// ActivateDomain makes a domain active, and returns before it is. An active one is no error.
func (c *Client) ActivateDomain(ctx context.Context, dc, id ID) error {
	return c.domainAction(ctx, "activate storage domain", dc, id, "activate", nil, activeAlready)
}

// DeactivateDomain brings a domain to maintenance, and returns before it is there: the engine writes to it before. One
// that is in maintenance is no error.
func (c *Client) DeactivateDomain(ctx context.Context, dc, id ID) error {
	return c.domainAction(ctx, "deactivate storage domain", dc, id, "deactivate", new(bool), downward)
}

func (c *Client) domainAction(ctx context.Context, op string, dc, id ID, action string, force *bool, done *regexp.Regexp) error {
	if err := checkID(op, dc, id); err != nil {
		return err
	}
	_, err := c.do(ctx, post(op, string(id), inside(dc, id)+"/"+action, xmlAction{Force: force}))
	if refusedWith(err, done) {
		return nil
	}
	return err
}

// DetachDomain takes a domain that is in maintenance from its data center. VMs and disks that are still on it vanish from
// the engine.
func (c *Client) DetachDomain(ctx context.Context, dc, id ID) error {
	const op = "detach storage domain"
	if err := checkID(op, dc, id); err != nil {
		return err
	}
	r := remove(op, string(id), inside(dc, id))
	r.long = true
	_, err := c.do(ctx, r)
	return err
}

// RemoveDomain has the engine forget a detached domain; its contents stay. The host lets go of the export. The engine may
// forget the connection too.
func (c *Client) RemoveDomain(ctx context.Context, id, host ID) error {
	const op = "remove storage domain"
	if err := checkID(op, id, host); err != nil {
		return err
	}
	r := remove(op, string(id), "/storagedomains/"+string(id), "host", string(host), "format", "false")
	r.long = true
	_, err := c.do(ctx, r)
	return err
}

// DestroyDomain has the engine forget a domain that nobody can reach any more, with the VMs and disks on it, without
// asking a host.
func (c *Client) DestroyDomain(ctx context.Context, id ID) error {
	const op = "destroy storage domain"
	if err := checkID(op, id); err != nil {
		return err
	}
	_, err := c.do(ctx, remove(op, string(id), "/storagedomains/"+string(id), "destroy", "true"))
	return err
}

// UnregisteredDisks lists the disks that the engine has found on an attached domain and does not know yet.
func (c *Client) UnregisteredDisks(ctx context.Context, domain ID) ([]Disk, error) {
	const op = "list unregistered disks of storage domain"
	if err := checkID(op, domain); err != nil {
		return nil, err
	}
	return readMany(ctx, c, get(op, string(domain), "/storagedomains/"+string(domain)+"/disks", "unregistered", "true"), "disks",
		ovirtsdk.XMLDiskReadMany, diskWord)
}

// RegisterDisk makes an unregistered disk known. It takes effect a moment later; the disk comes with incremental backup
// switched off. The data center is not needed by the form of the request that was recorded.
func (c *Client) RegisterDisk(ctx context.Context, _, domain, disk ID) error {
	const op = "register disk"
	if err := checkID(op, domain, disk); err != nil {
		return err
	}
	_, err := c.do(ctx, post(op, string(disk), "/storagedomains/"+string(domain)+"/disks", xmlDisk{ID: disk}, "unregistered", "true"))
	return err
}
