package ovirt

import (
	"context"
	"encoding/xml"
	"net/http"
	"regexp"
	"slices"

	ovirtsdk "github.com/ovirt/go-ovirt"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// inline is what a VM's words need beyond the VM.
const inline = "disk_attachments,tags"

// VMs lists the VMs with their attachments and tags.
func (c *Client) VMs(ctx context.Context) ([]VM, error) {
	return readMany(ctx, c, get("list VMs", "", "/vms", "follow", inline), "vms", ovirtsdk.XMLVmReadMany, vmWord)
}

// VM returns a VM with its attachments and tags.
func (c *Client) VM(ctx context.Context, id ID) (VM, error) {
	const op = "look at VM"
	if err := checkID(op, id); err != nil {
		return VM{}, err
	}
	v, err := readOne(ctx, c, get(op, string(id), "/vms/"+string(id), "follow", inline), "vm", ovirtsdk.XMLVmReadOne)
	if err != nil {
		return VM{}, err
	}
	return vmWord(v), nil
}

// FindVM returns the VM of a name, which an engine has once in a data center; upper and lower case differ.
func (c *Client) FindVM(ctx context.Context, name string) (VM, error) {
	const op = "find VM"
	key, value := byName(name)
	list, err := readMany(ctx, c, get(op, name, "/vms", "follow", inline, key, value), "vms", ovirtsdk.XMLVmReadMany, vmWord)
	if err != nil {
		return VM{}, err
	}
	if i := slices.IndexFunc(list, func(v VM) bool { return v.Name == name }); i >= 0 {
		return list[i], nil
	}
	return VM{}, errs.Text(op, name, errs.NotFound, "the engine has no VM of that name, or this user may not see it")
}

// VMConfig returns a VM's configuration as an OVF document.
func (c *Client) VMConfig(ctx context.Context, id ID) (string, error) {
	const op = "read the configuration of VM"
	if err := checkID(op, id); err != nil {
		return "", err
	}
	r := get(op, string(id), "/vms/"+string(id))
	r.all = true
	v, err := readOne(ctx, c, r, "vm", ovirtsdk.XMLVmReadOne)
	if err != nil {
		return "", err
	}
	if i, ok := v.Initialization(); ok {
		if conf, ok := i.Configuration(); ok && or(conf.Data()) != "" {
			return or(conf.Data()), nil
		}
	}
	return "", errs.Text(op, string(id), errs.Bug, "the engine gave none, though it was asked for")
}

// Disks lists a VM's disks.
func (c *Client) Disks(ctx context.Context, vm ID) ([]Disk, error) {
	const op = "list disks of VM"
	if err := checkID(op, vm); err != nil {
		return nil, err
	}
	list, err := readMany(ctx, c, get(op, string(vm), "/vms/"+string(vm)+"/diskattachments", "follow", "disk"), "disk_attachments",
		ovirtsdk.XMLDiskAttachmentReadMany, func(a *ovirtsdk.DiskAttachment) Disk {
			d, ok := a.Disk()
			if !ok {
				return Disk{ID: ID(or(a.Id()))}
			}
			return diskWord(d)
		})
	return checked(ctx, c, vm, list, err)
}

// checked makes sure that an empty list is not that of a VM which does not exist: the engine answers both alike.
func checked[T any](ctx context.Context, c *Client, vm ID, list []T, err error) ([]T, error) {
	if err != nil || len(list) > 0 {
		return list, err
	}
	_, err = c.VM(ctx, vm)
	return list, err
}

// Disk returns a disk.
func (c *Client) Disk(ctx context.Context, id ID) (Disk, error) {
	const op = "look at disk"
	if err := checkID(op, id); err != nil {
		return Disk{}, err
	}
	d, err := readOne(ctx, c, get(op, string(id), "/disks/"+string(id)), "disk", ovirtsdk.XMLDiskReadOne)
	if err != nil {
		return Disk{}, err
	}
	return diskWord(d), nil
}

type xmlDisk struct {
	XMLName xml.Name `xml:"disk"`
	ID      ID       `xml:"id,attr,omitempty"`
	Backup  string   `xml:"backup,omitempty"`
}

// SetIncremental lets a disk's changes be tracked by backups. A raw disk is errs.Unsupported.
func (c *Client) SetIncremental(ctx context.Context, disk ID) error {
	const op = "enable incremental backup of disk"
	if err := checkID(op, disk); err != nil {
		return err
	}
	r := post(op, string(disk), "/disks/"+string(disk), xmlDisk{Backup: "incremental"})
	r.method = http.MethodPut
	_, err := c.do(ctx, r)
	return err
}

type xmlVM struct {
	XMLName     xml.Name `xml:"vm"`
	Name        string   `xml:"name"`
	Description string   `xml:"description,omitempty"`
	Cluster     *xmlRef  `xml:"cluster"`
	Template    *xmlName `xml:"template,omitempty"`
	Memory      int64    `xml:"memory,omitempty"`
	Init        *xmlInit `xml:"initialization,omitempty"`
}

type xmlName struct {
	Name string `xml:"name"`
}

type xmlInit struct {
	Type       string `xml:"configuration>type"`
	Data       string `xml:"configuration>data"`
	Regenerate bool   `xml:"regenerate_ids"`
}

// CreateVM makes a VM without disks. If the answer is lost the caller looks for it by name: a name that is taken is
// errs.Exists.
func (c *Client) CreateVM(ctx context.Context, n NewVM) (VM, error) {
	const op = "create VM"
	if err := checkID(op, n.Cluster); err != nil {
		return VM{}, err
	}
	x := xmlVM{Name: n.Name, Description: n.Description, Cluster: ref(n.Cluster)}
	if n.OVF != "" {
		x.Init = &xmlInit{Type: "ovf", Data: n.OVF, Regenerate: true}
	} else {
		x.Template, x.Memory = &xmlName{"Blank"}, n.MemoryMiB<<20
	}
	v, err := readOne(ctx, c, post(op, n.Name, "/vms", x), "vm", ovirtsdk.XMLVmReadOne)
	if err != nil {
		return VM{}, err
	}
	return c.VM(ctx, ID(or(v.Id()))) // the answer to an OVF leaves most out
}

type xmlAttachment struct {
	XMLName   xml.Name `xml:"disk_attachment"`
	Active    bool     `xml:"active"`
	Bootable  bool     `xml:"bootable"`
	Interface string   `xml:"interface"`
	Disk      *xmlRef  `xml:"disk"`
}

// AttachDisk attaches a disk to a VM. A disk that the VM has already stays as it is, and that is no error.
func (c *Client) AttachDisk(ctx context.Context, vm ID, a NewAttachment) error {
	const op = "attach disk"
	if err := checkID(op, vm, a.Disk); err != nil {
		return err
	}
	x := xmlAttachment{Active: true, Bootable: a.Bootable, Interface: a.Interface, Disk: ref(a.Disk)}
	_, err := c.do(ctx, post(op, string(a.Disk), "/vms/"+string(vm)+"/diskattachments", x))
	if errs.Is(err, errs.Exists) || errs.Is(err, errs.Busy) || errs.Is(err, errs.Transient) {
		v, lookErr := c.VM(ctx, vm)
		if lookErr == nil && slices.ContainsFunc(v.Disks, func(have Attachment) bool { return have.Disk == a.Disk }) {
			return nil
		}
	}
	return err
}

// DetachDisk takes a disk from a VM and keeps the disk.
func (c *Client) DetachDisk(ctx context.Context, vm, disk ID) error {
	const op = "detach disk"
	if err := checkID(op, vm, disk); err != nil {
		return err
	}
	_, err := c.do(ctx, remove(op, string(disk), "/vms/"+string(vm)+"/diskattachments/"+string(disk), "detach_only", "true"))
	return err
}

type xmlAction struct {
	XMLName xml.Name `xml:"action"`
	Force   *bool    `xml:"force,omitempty"`
	Domain  *xmlRef  `xml:"storage_domain,omitempty"`
}

var (
	runsAlready = regexp.MustCompile(`VM is in (Up|Powering Up|Wait for Launch|Reboot in Progress) status`)
	downAlready = regexp.MustCompile(`(?i)VM is not running|VM is in Down status`)
)

// StartVM starts a VM. One that runs, or is about to, is no error. It returns before the VM is up.
func (c *Client) StartVM(ctx context.Context, vm ID) error {
	return c.act(ctx, "start VM", vm, "start", runsAlready)
}

// ShutdownVM asks the guest to power off, and returns before it has.
func (c *Client) ShutdownVM(ctx context.Context, vm ID) error {
	return c.act(ctx, "shut down VM", vm, "shutdown", downAlready)
}

// StopVM pulls a VM's plug.
func (c *Client) StopVM(ctx context.Context, vm ID) error {
	return c.act(ctx, "stop VM", vm, "stop", downAlready)
}

// act has a VM do something. done are the engine's words for what was so before.
func (c *Client) act(ctx context.Context, op string, vm ID, action string, done *regexp.Regexp) error {
	if err := checkID(op, vm); err != nil {
		return err
	}
	_, err := c.do(ctx, post(op, string(vm), "/vms/"+string(vm)+"/"+action, xmlAction{}))
	if refusedWith(err, done) {
		return nil
	}
	if statusOf(err) == http.StatusInternalServerError { // an unknown VM makes the engine fall over its own null
		if _, lookErr := c.VM(ctx, vm); errs.Is(lookErr, errs.NotFound) {
			return errs.Wrap(op, string(vm), lookErr)
		}
	}
	return err
}

// RemoveVM removes a VM that is down, and its disks unless they are to be kept. Removed disks go a few seconds later.
func (c *Client) RemoveVM(ctx context.Context, vm ID, keepDisks bool) error {
	const op = "remove VM"
	if err := checkID(op, vm); err != nil {
		return err
	}
	only := ""
	if keepDisks {
		only = "true"
	}
	_, err := c.do(ctx, remove(op, string(vm), "/vms/"+string(vm), "detach_only", only))
	return err
}

// RemoveDisk removes a disk, also one that is attached to a VM which is down. It goes a few seconds later.
func (c *Client) RemoveDisk(ctx context.Context, disk ID) error {
	const op = "remove disk"
	if err := checkID(op, disk); err != nil {
		return err
	}
	_, err := c.do(ctx, remove(op, string(disk), "/disks/"+string(disk)))
	return err
}

// MoveDisk moves a disk to another storage domain, live if its VM runs. It returns when the engine has begun, which can
// take minutes: the engine waits for its lock on the VM. A disk that lies there is errs.Exists.
func (c *Client) MoveDisk(ctx context.Context, disk, domain ID) error {
	const op = "move disk"
	if err := checkID(op, disk, domain); err != nil {
		return err
	}
	r := post(op, string(disk), "/disks/"+string(disk)+"/move", xmlAction{Domain: ref(domain)})
	r.long = true
	_, err := c.do(ctx, r)
	return err
}
