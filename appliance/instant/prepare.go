package instant

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/instant/domain"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// grid is what a published disk's size is a multiple of, in bytes: vdsm rounds so, and a child of an odd size would be
// longer than its base.
const grid = 4096

// Prepare checks a request and draws up the record of a new session. It changes nothing, here or on the engine. notes
// are what a person should know before going on.
func Prepare(ctx context.Context, o Options, q Request, id string, exportID uint32) (r *Record, notes []string, err error) {
	p := preparation{o: o, q: q}
	if err := p.all(ctx, id, exportID); err != nil {
		return nil, nil, errs.Wrap("prepare instant restore of", q.Point.Labels[appliance.LabelVM], err)
	}
	return &p.r, p.notes, nil
}

type preparation struct {
	o     Options
	q     Request
	r     Record
	notes []string
}

func (p *preparation) all(ctx context.Context, id string, exportID uint32) error {
	config, err := appliance.ParsePointConfig(p.q.Point.Config)
	if err != nil {
		return errs.New("read configuration of point", string(p.q.Point.ID), errs.Corrupt, err)
	}
	if config == nil {
		// A point made from an image file: a plain VM with its disk.
		config = &appliance.PointConfig{VMName: p.q.Point.Labels[appliance.LabelVM], MemoryMiB: defaultMemoryMiB}
		p.notes = append(p.notes, fmt.Sprintf("The point carries no VM configuration: the VM is made with %d MiB of memory and no network.", defaultMemoryMiB))
	}
	p.notes = append(p.notes, config.Warnings...)
	now := time.Now
	if p.o.Now != nil {
		now = p.o.Now
	}
	p.r = Record{
		Session: appliance.Session{
			ID: id, State: appliance.SessionPrepare, Manager: p.q.Manager, Point: string(p.q.Point.ID),
			SourceVM: p.q.Point.Labels[appliance.LabelVM], Domain: domainPrefix + id, DomainID: uuid.NewString(),
			Created: now().UTC(), MigrateTo: p.q.MigrateTo,
		},
		PowerOn: p.q.PowerOn, AllTheWay: p.q.MigrateTo != "", Address: p.o.Address, Port: p.o.Port, Path: "/sessions/" + id, ExportID: exportID,
		MemoryMiB: config.MemoryMiB,
	}
	p.r.Export = p.r.Address + ":" + p.r.Path
	if err := p.chooseName(ctx, config); err != nil {
		return err
	}
	if err := p.choosePlace(ctx, config); err != nil {
		return err
	}
	if err := p.chooseTarget(ctx); err != nil {
		return err
	}
	if config.OVF != "" {
		if p.r.OVF, err = ovirt.StripOVF(config.OVF); err != nil {
			return err
		}
	}
	return p.volumes(config, now())
}

// defaultMemoryMiB is what a VM without a known configuration gets.
const defaultMemoryMiB = 1024

// chooseName finds a name that is free.
func (p *preparation) chooseName(ctx context.Context, c *appliance.PointConfig) error {
	name, renamed, err := ovirt.FreeVMName(ctx, p.o.Engine, p.q.Name, c.VMName, p.r.ID)
	if err != nil {
		return err
	}
	if renamed {
		p.notes = append(p.notes, "The VM "+c.VMName+" exists: the restored one is called "+name+", with new MAC addresses.")
	}
	p.r.VM = name
	return nil
}

// choosePlace finds the cluster, its data center, and a host to look at the export.
func (p *preparation) choosePlace(ctx context.Context, c *appliance.PointConfig) error {
	clusters, err := p.o.Engine.Clusters(ctx)
	if err != nil {
		return err
	}
	chosen, err := ovirt.ChooseCluster(clusters, p.q.Cluster, c.Cluster)
	if err != nil {
		return err
	}
	p.r.Cluster, p.r.DataCenter = chosen.ID, chosen.DataCenter
	return p.chooseHost(ctx, clusters)
}

// chooseHost picks an Up host of the data center, and tells of all that will have to reach this node.
func (p *preparation) chooseHost(ctx context.Context, clusters []ovirt.Cluster) error {
	hosts, err := p.o.Engine.Hosts(ctx)
	if err != nil {
		return err
	}
	var up []string
	for _, h := range hosts {
		i := slices.IndexFunc(clusters, func(c ovirt.Cluster) bool { return c.ID == h.Cluster })
		if i < 0 || clusters[i].DataCenter != p.r.DataCenter || h.Status != "up" {
			continue
		}
		up = append(up, h.Name)
		if p.r.Host == "" || h.Cluster == p.r.Cluster {
			p.r.Host = h.ID
		}
	}
	if p.r.Host == "" {
		return errs.Text("choose host", "", errs.Transient, "no host of the data center is up").WithNext("Bring a host up first.")
	}
	p.notes = append(p.notes, fmt.Sprintf("Every host that is up must reach %s on port %d (TCP): %s. A host that cannot becomes non-operational.",
		p.r.Address, p.r.Port, strings.Join(up, ", ")))
	return nil
}

// chooseTarget finds the storage to migrate to, and sees that there is a data domain besides ours: ours must never become
// the only one, and master with it.
func (p *preparation) chooseTarget(ctx context.Context) error {
	domains, err := activeDomains(ctx, p.o.Engine, p.r.DataCenter)
	if err != nil {
		return err
	}
	if len(domains) == 0 {
		return errs.Text("check storage", string(p.r.DataCenter), errs.Unsupported, "the data center has no active data domain: ours would become its master").
			WithNext("Activate a storage domain first.")
	}
	if p.q.MigrateTo == "" {
		return nil
	}
	d, err := pickDomain(domains, p.q.MigrateTo)
	if err != nil {
		return err
	}
	var need int64
	for _, d := range p.q.Point.Disks {
		need += d.Root.Data
	}
	if d.Available < need {
		return errs.Text("choose storage", d.Name, errs.NoSpace,
			fmt.Sprintf("the disks hold %d MiB, and it has %d MiB free", need>>20, d.Available>>20)).
			WithNext("Choose another with --migrate-to, or make room.")
	}
	p.r.Target, p.r.MigrateTo = d.ID, d.Name
	return nil
}

// FindTarget finds an active data domain by name or ID, for a session that has to go there.
func FindTarget(ctx context.Context, e Inventory, dc ovirt.ID, nameOrID string) (ovirt.ID, string, error) {
	domains, err := activeDomains(ctx, e, dc)
	if err != nil {
		return "", "", err
	}
	d, err := pickDomain(domains, nameOrID)
	return d.ID, d.Name, err
}

// domainPrefix begins the names of our own domains: they are nothing to migrate to.
const domainPrefix = "holdfast-"

func activeDomains(ctx context.Context, e Inventory, dc ovirt.ID) ([]ovirt.Domain, error) {
	all, err := e.Domains(ctx, dc)
	return slices.DeleteFunc(all, func(d ovirt.Domain) bool {
		return d.Type != "data" || d.Status != ovirt.DomainActive || strings.HasPrefix(d.Name, domainPrefix)
	}), err
}

func pickDomain(domains []ovirt.Domain, nameOrID string) (ovirt.Domain, error) {
	names := make([]string, len(domains))
	for i, d := range domains {
		if d.Name == nameOrID || string(d.ID) == nameOrID {
			return d, nil
		}
		names[i] = d.Name
	}
	return ovirt.Domain{}, errs.Text("choose storage", nameOrID, errs.NotFound, "the data center has no active data domain of that name").
		WithNext("There are: " + strings.Join(names, ", ") + ".")
}

// volumes draws the IDs of the session's disks.
func (p *preparation) volumes(c *appliance.PointConfig, now time.Time) error {
	for _, d := range p.q.Point.Disks {
		i := slices.IndexFunc(c.Disks, func(x appliance.PointDisk) bool { return x.Number == d.Number })
		pd := appliance.PointDisk{Number: d.Number, Alias: fmt.Sprintf("%s_Disk%d", p.r.VM, d.Number+1), Interface: "virtio_scsi", Bootable: d.Number == p.q.Point.Disks[0].Number}
		if i >= 0 {
			pd = c.Disks[i]
		}
		format := p.q.Format
		if format == "" {
			format = string(ovirt.FormatCow)
		}
		if pd.Shareable {
			format = string(ovirt.FormatRaw) // the engine takes no other shareable disk
		}
		p.r.Volumes = append(p.r.Volumes, domain.Volume{
			Disk: uuid.NewString(), Image: uuid.NewString(), Size: (d.Root.Size + grid - 1) / grid * grid, Format: format,
			Alias: pd.Alias, Created: now.UTC(),
		})
		p.r.Numbers = append(p.r.Numbers, d.Number)
		p.r.Interfaces = append(p.r.Interfaces, pd.Interface)
		p.r.Bootable = append(p.r.Bootable, pd.Bootable)
		p.r.Disks = append(p.r.Disks, appliance.SessionDisk{
			Number: d.Number, ID: p.r.Volumes[len(p.r.Volumes)-1].Disk, SizeBytes: d.Root.Size, DataBytes: d.Root.Data, Format: format,
		})
	}
	if !slices.Contains(p.r.Bootable, true) && len(p.r.Bootable) > 0 {
		p.r.Bootable[0] = true
	}
	return nil
}
