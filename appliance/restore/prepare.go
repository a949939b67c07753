package restore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// sector is what a disk's size is a multiple of, in bytes.
const sector = 512

// defaultMemoryMiB is what a VM without a known configuration gets.
const defaultMemoryMiB = 1024

// Prepare checks a request and draws up the record of a new restore. It changes nothing, here or on the engine: what it
// returns is also the preview.
func Prepare(ctx context.Context, o Options, q Request, id string) (*Record, error) {
	p := preparation{o: o, q: q}
	if err := p.all(ctx, id); err != nil {
		return nil, errs.Wrap("prepare restore of", q.Point.Labels[appliance.LabelVM], err)
	}
	return &p.r, nil
}

type preparation struct {
	o       Options
	q       Request
	r       Record
	config  *appliance.PointConfig
	machine ovirt.Machine
	dc      ovirt.ID
}

func (p *preparation) note(format string, args ...any) {
	p.r.Notes = append(p.r.Notes, fmt.Sprintf(format, args...))
}

func (p *preparation) all(ctx context.Context, id string) error {
	now := time.Now
	if p.o.Now != nil {
		now = p.o.Now
	}
	p.r.Restore = appliance.Restore{
		ID: id, State: appliance.RestorePrepare, Manager: p.q.Manager, Point: string(p.q.Point.ID), SourceVM: p.q.Point.Labels[appliance.LabelVM],
		PowerOn: p.q.PowerOn, Verify: p.q.Verify, Created: now().UTC(), Disks: []appliance.RestoreDisk{}, NICs: []appliance.RestoreNIC{},
	}
	if p.r.Verify == "" {
		p.r.Verify = VerifyExtents
	}
	for _, step := range []func(context.Context) error{p.read, p.chooseName, p.chooseCluster, p.chooseDisks, p.chooseNetworks} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// read reads the configuration that the point carries.
func (p *preparation) read(context.Context) (err error) {
	if p.r.Verify != VerifyExtents && p.r.Verify != VerifyFull {
		return errs.Text("choose how to verify", p.r.Verify, errs.Invalid, "it is extents or full")
	}
	if p.config, err = appliance.ParsePointConfig(p.q.Point.Config); err != nil {
		return errs.New("read configuration of point", string(p.q.Point.ID), errs.Corrupt, err)
	}
	if p.config == nil { // a point made from an image file
		p.config = &appliance.PointConfig{VMName: p.q.Point.Labels[appliance.LabelVM], MemoryMiB: defaultMemoryMiB}
		p.note("The point carries no VM configuration: the VM is made with %d MiB of memory and no network.", defaultMemoryMiB)
	}
	p.r.Notes = append(p.r.Notes, p.config.Warnings...)
	p.r.MemoryMiB, p.r.Tags = p.config.MemoryMiB, p.config.Tags
	if p.config.OVF == "" {
		return nil
	}
	if p.machine, err = ovirt.ReadOVF(p.config.OVF); err != nil {
		return err
	}
	if p.machine.TPM {
		p.note("The VM had a TPM: what was kept in it is not in the backup. A disk that is unlocked by it needs its recovery key.")
	}
	if p.machine.SecureBoot {
		p.note("The VM used Secure Boot: its firmware's variables (keys that were added, boot entries) begin anew.")
	}
	p.r.Description = p.machine.Description
	p.r.OVF, err = ovirt.StripOVF(p.config.OVF)
	return err
}

// chooseName finds a name that is free.
func (p *preparation) chooseName(ctx context.Context) error {
	name, renamed, err := ovirt.FreeVMName(ctx, p.o.Engine, p.q.Name, p.config.VMName, p.r.ID)
	if err != nil {
		return err
	}
	if renamed {
		p.note("A VM named %s exists, and stays as it is: the restored one is called %s.", p.config.VMName, name)
	}
	p.r.VM = name
	return nil
}

func (p *preparation) chooseCluster(ctx context.Context) error {
	clusters, err := p.o.Engine.Clusters(ctx)
	if err != nil {
		return err
	}
	chosen, err := ovirt.ChooseCluster(clusters, p.q.Cluster, p.config.Cluster)
	if err != nil {
		return err
	}
	p.r.ClusterID, p.r.Cluster, p.dc = chosen.ID, chosen.Name, chosen.DataCenter
	return nil
}

// list names things for a person.
func list[T any](all []T, name func(T) string) string {
	names := make([]string, len(all))
	for i, x := range all {
		names[i] = name(x)
	}
	return strings.Join(names, ", ")
}

// chooseDisks draws the disks' IDs and finds a place for each.
func (p *preparation) chooseDisks(ctx context.Context) error {
	domains, err := p.o.Engine.Domains(ctx, p.dc)
	if err != nil {
		return err
	}
	// A domain of a session of ours is nothing to restore to.
	domains = slices.DeleteFunc(domains, func(d ovirt.Domain) bool {
		return d.Type != "data" || d.Status != ovirt.DomainActive || strings.HasPrefix(d.Name, "holdfast-")
	})
	for _, n := range p.q.Disks {
		if _, err := p.q.Point.Disk(n); err != nil {
			return errs.Text("choose disks", fmt.Sprint(n), errs.NotFound, "the point has no such disk").
				WithNext("It has: " + list(p.q.Point.Disks, func(d chunkstore.Disk) string { return fmt.Sprint(d.Number) }) + ".")
		}
	}
	need := map[ovirt.ID]int64{}
	for _, d := range p.q.Point.Disks {
		if len(p.q.Disks) > 0 && !slices.Contains(p.q.Disks, d.Number) {
			p.note("Disk %d is left out, as it was asked for.", d.Number)
			continue
		}
		if err := p.addDisk(ctx, d, domains, need); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(p.r.Disks, func(d appliance.RestoreDisk) bool { return d.Bootable }) && len(p.r.Disks) > 0 {
		p.r.Disks[0].Bootable = true
	}
	for _, d := range domains {
		if d.Available < need[d.ID] {
			return errs.Text("choose storage", d.Name, errs.NoSpace, fmt.Sprintf("the disks need %d MiB, and it has %d MiB free", need[d.ID]>>20, d.Available>>20)).
				WithNext("Choose another with --storage-domain, or make room.")
		}
	}
	return nil
}

// addDisk plans one disk, and adds to need what it takes on its domain.
func (p *preparation) addDisk(ctx context.Context, d chunkstore.Disk, domains []ovirt.Domain, need map[ovirt.ID]int64) error {
	pd := appliance.PointDisk{Alias: fmt.Sprintf("%s_Disk%d", p.r.VM, d.Number+1), Interface: "virtio_scsi", Bootable: d.Number == p.q.Point.Disks[0].Number}
	if i := slices.IndexFunc(p.config.Disks, func(x appliance.PointDisk) bool { return x.Number == d.Number }); i >= 0 {
		pd = p.config.Disks[i]
	}
	dom, err := p.chooseDomain(domains, pd)
	if err != nil {
		return err
	}
	block := dom.StorageType == "iscsi" || dom.StorageType == "fcp"
	x := appliance.RestoreDisk{
		Number: d.Number, ID: uuid.NewString(), Alias: pd.Alias, SizeBytes: (d.Root.Size + sector - 1) / sector * sector, DataBytes: d.Root.Data,
		Format: string(ovirt.FormatCow), Sparse: true, Domain: dom.Name, Interface: pd.Interface, Bootable: pd.Bootable,
	}
	takes, initial := d.Root.Data, int64(0)
	switch {
	case pd.Shareable: // the engine takes no other shareable disk
		x.Format, x.Sparse = string(ovirt.FormatRaw), !block
		if block {
			takes = x.SizeBytes
		}
	case pd.Format == string(ovirt.FormatRaw):
		p.note("Disk %d was raw: it becomes qcow2, so that its changes can be tracked by backups.", d.Number)
	}
	if x.Format == string(ovirt.FormatCow) {
		if takes, err = p.measure(ctx, d, x.SizeBytes); err != nil {
			return err
		}
		if block { // else the upload would end where the volume does
			initial = takes
		}
	}
	need[dom.ID] += takes
	p.r.Disks = append(p.r.Disks, x)
	p.r.Domains = append(p.r.Domains, dom.ID)
	p.r.Initial = append(p.r.Initial, initial)
	p.r.Shareable = append(p.r.Shareable, pd.Shareable)
	return nil
}

// chooseDomain finds the storage domain of a disk: the one that was asked for, else where it was, else the only one.
func (p *preparation) chooseDomain(domains []ovirt.Domain, d appliance.PointDisk) (ovirt.Domain, error) {
	const op = "choose storage"
	next := "Name one with --storage-domain: " + list(domains, func(d ovirt.Domain) string { return d.Name }) + "."
	was := p.machine.Domains[ovirt.ID(strings.ToLower(d.ID))]
	want := p.q.Domain
	if want == "" {
		want = string(was)
	}
	for _, x := range domains {
		if x.Name == want || string(x.ID) == want {
			return x, nil
		}
	}
	switch {
	case len(domains) == 0:
		return ovirt.Domain{}, errs.Text(op, want, errs.Unsupported, "the data center has no active data domain").WithNext("Activate a storage domain first.")
	case p.q.Domain != "":
		return ovirt.Domain{}, errs.Text(op, want, errs.NotFound, "the data center has no active data domain of that name").WithNext(next)
	case len(domains) == 1:
		return domains[0], nil
	}
	return ovirt.Domain{}, errs.Text(op, d.Alias, errs.Invalid, "the storage domain that the disk was on is not there, and there are several").WithNext(next)
}
