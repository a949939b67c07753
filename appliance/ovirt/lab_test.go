package ovirt

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// The installation of the simulated engine.
const (
	labVM         ID = "11111111-1111-4111-8111-111111111101"
	labDisk       ID = "22222222-2222-4222-8222-222222222201"
	labDisk2      ID = "22222222-2222-4222-8222-222222222202"
	labLocal      ID = "33333333-3333-4333-8333-333333333301"
	labDomain     ID = "44444444-4444-4444-8444-444444444401"
	labSessionOne ID = "55555555-5555-4555-8555-555555555501"
	labPassword      = "holdfast"
)

// lab is a simulated engine that is a hundred times as fast as a real one, and a login to it.
type lab struct {
	*Client
	t      *testing.T
	engine *engine.Engine
	url    string
	ids    engine.IDs
	before engine.Snapshot
}

func newLab(t *testing.T) *lab {
	t.Helper()
	host := &labHost{
		tickets: map[string]bool{}, export: "10.0.0.5:/ir/1", domain: engine.DomainInfo{ID: string(labDomain), Name: "ir1", Version: 5, Available: 500 << 30},
		found: []engine.FoundDisk{{Disk: string(labSessionOne), Image: "66666666-6666-4666-8666-666666666601", Format: "cow", Size: 1 << 30, Used: 1 << 20, Alias: "web_disk", Volumes: 1}},
	}
	e, err := engine.New(engine.Options{
		Host: host, Scale: 0.01, Domains: []engine.DomainSeed{{ID: string(labLocal), Name: "local"}},
		VMs: []engine.VMSeed{{ID: string(labVM), Name: "web", MiB: 512, VCPUs: 1, Tags: []string{"gold"}, Networks: []string{"ovirtmgmt"}, Disks: []engine.DiskSeed{
			{ID: string(labDisk), Alias: "web_1", Format: "cow", Size: 1 << 30, Incremental: true}, {ID: string(labDisk2), Alias: "web_2", Format: "raw", Size: 2 << 30},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); e.Close() })
	url, err := e.Start(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, engine: e, url: url, ids: e.IDs(), before: e.Snapshot()}
	l.Client = l.dial()
	return l
}

func (l *lab) dial() *Client {
	l.t.Helper()
	c, err := Dial(l.t.Context(), Options{URL: l.url, User: testUser, Password: labPassword, CA: l.engine.CA().PEM()})
	if err != nil {
		l.t.Fatal(err)
	}
	c.pause = 50 * time.Millisecond
	return c
}

// within polls until f says so.
func (l *lab) within(what string, f func() (bool, error)) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	for {
		done, err := f()
		if err != nil {
			l.t.Fatalf("%s: %v", what, err)
		}
		if done {
			return
		}
		if sleep(ctx, 5*time.Millisecond) != nil {
			l.t.Fatalf("%s: never", what)
		}
	}
}

// must fails the test if something failed.
func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// patiently repeats what is refused because something is locked.
func (l *lab) patiently(what string, f func() error) {
	l.t.Helper()
	l.within(what, func() (bool, error) {
		err := f()
		if errs.Is(err, errs.Busy) {
			return false, nil
		}
		return err == nil, err
	})
}

func (l *lab) fault(name string) {
	l.t.Helper()
	l.must(l.engine.Fault(name))
}

// clean fails if something is left on the engine.
func (l *lab) clean() {
	l.t.Helper()
	l.within("clean up", func() (bool, error) { return len(l.engine.Leftovers(l.before)) == 0, nil })
}

func TestLabInventory(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	cert, print, err := FetchCA(ctx, l.url)
	own, _ := Fingerprint(l.engine.CA().PEM())
	if err != nil || print != own || string(cert) != string(l.engine.CA().PEM()) {
		t.Errorf("%q and %q, %v", print, own, err)
	}
	i, err := l.Info(ctx)
	if err != nil || i.Major != 4 || i.Version == "" || i.User != testUser {
		t.Errorf("%+v, %v", i, err)
	}
	dcs, err := l.DataCenters(ctx)
	if err != nil || len(dcs) != 1 || dcs[0].ID != ID(l.ids.DataCenter) || dcs[0].Name == "" || dcs[0].Status != "up" {
		t.Errorf("%+v, %v", dcs, err)
	}
	clusters, err := l.Clusters(ctx)
	if err != nil || len(clusters) != 1 || clusters[0].ID != ID(l.ids.Cluster) || clusters[0].DataCenter != dcs[0].ID || clusters[0].Version != "4.8" {
		t.Errorf("%+v, %v", clusters, err)
	}
	hosts, err := l.Hosts(ctx)
	if err != nil || len(hosts) != 1 || hosts[0].ID != ID(l.ids.Host) || hosts[0].Status != "up" || hosts[0].Cluster != clusters[0].ID {
		t.Errorf("%+v, %v", hosts, err)
	}
	domains, err := l.Domains(ctx, dcs[0].ID)
	if err != nil || len(domains) != 1 || domains[0].ID != labLocal || domains[0].Status != DomainActive || !domains[0].Master || domains[0].DataCenter != dcs[0].ID {
		t.Errorf("%+v, %v", domains, err)
	}
	vm, err := l.FindVM(ctx, "web")
	if err != nil || vm.ID != labVM || vm.MemoryMiB != 512 || len(vm.Disks) != 2 || !slices.Equal(vm.Tags, []string{"gold"}) || vm.Cluster != clusters[0].ID {
		t.Errorf("%+v, %v", vm, err)
	}
	if all, err := l.VMs(ctx); err != nil || len(all) != 1 || all[0].ID != labVM {
		t.Errorf("%+v, %v", all, err)
	}
	disks, err := l.Disks(ctx, labVM)
	if err != nil || len(disks) != 2 || !disks[0].Incremental && !disks[1].Incremental || disks[0].Domain != labLocal {
		t.Errorf("%+v, %v", disks, err)
	}
	if d, err := l.FindDomainByName(ctx, "local"); err != nil || d.ID != labLocal || d.Status != DomainActive {
		t.Errorf("%+v, %v", d, err)
	}
	if err := l.SetIncremental(ctx, labDisk2); !errs.Is(err, errs.Unsupported) {
		t.Errorf("a raw disk: %v", err)
	}
	l.must(l.PostEvent(ctx, Event{Text: "Holdfast: <tested> & found good", VM: labVM}))
	for _, id := range []ID{"nobody", vm.Cluster} {
		_, e1 := l.VM(ctx, id)
		_, e2 := l.Disk(ctx, id)
		_, e3 := l.FindDomain(ctx, id)
		_, e4 := l.Checkpoints(ctx, id)
		_, e5 := l.Transfer(ctx, id)
		for n, err := range []error{e1, e2, e3, e4, e5, l.StartVM(ctx, id), l.RemoveDisk(ctx, id), l.FinalizeTransfer(ctx, id), l.RemoveVM(ctx, id, true)} {
			if !errs.Is(err, errs.NotFound) {
				t.Errorf("%d of %s: %v", n, id, err)
			}
		}
	}
	l.must(l.Close(ctx))
}

// backup runs a backup to its end and returns it.
func (l *lab) backup(spec BackupSpec, wantIncremental bool) Backup {
	l.t.Helper()
	ctx := l.t.Context()
	var b Backup
	var err error
	l.patiently("start backup", func() error { // the last one's snapshot may still be in the way
		_, err := l.StartBackup(ctx, labVM, spec)
		return err
	})
	l.within("backup is ready", func() (bool, error) {
		b, err = l.Backup(ctx, labVM, spec.ID)
		return b.Phase == BackupReady, err
	})
	disks, err := l.BackupDisks(ctx, labVM, spec.ID)
	if err != nil || len(disks) != len(spec.Disks) || disks[0].Incremental != wantIncremental {
		l.t.Errorf("%+v, %v", disks, err)
	}
	tr, err := l.StartTransfer(ctx, TransferSpec{Disk: labDisk, Backup: spec.ID, Inactivity: time.Hour})
	l.must(err)
	l.within("transfer is ready", func() (bool, error) {
		tr, err = l.Transfer(ctx, tr.ID)
		return tr.Phase == TransferTransferring && tr.TransferURL != "" && tr.Disk == labDisk, err
	})
	l.must(l.ExtendTransfer(ctx, tr.ID))
	for _, c := range []*Client{l.Client, l.dial()} { // a new client has to find the VM
		if list, err := c.Transfers(ctx, spec.ID); err != nil || len(list) != 1 || list[0].ID != tr.ID {
			l.t.Errorf("%+v, %v", list, err)
		}
	}
	if err := l.FinalizeBackup(ctx, labVM, spec.ID); !errs.Is(err, errs.Busy) {
		l.t.Errorf("finalize with an active transfer: %v", err)
	}
	l.must(l.FinalizeTransfer(ctx, tr.ID))
	l.within("transfer has ended", func() (bool, error) {
		tr, err = l.Transfer(ctx, tr.ID)
		return tr.Phase == TransferFinishedSuccess, err
	})
	l.must(l.CancelTransfer(ctx, tr.ID)) // no effect any more
	l.must(l.FinalizeBackup(ctx, labVM, spec.ID))
	l.must(l.FinalizeBackup(ctx, labVM, spec.ID)) // harmless
	l.within("backup has ended", func() (bool, error) {
		b, err = l.Backup(ctx, labVM, spec.ID)
		return b.Phase == BackupSucceeded, err
	})
	return b
}

func TestLabBackup(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	full := l.backup(BackupSpec{ID: "77777777-7777-4777-8777-777777777701", Disks: []ID{labDisk}}, false)
	if full.ToCheckpoint == "" {
		t.Fatalf("%+v", full)
	}
	inc := l.backup(BackupSpec{ID: "77777777-7777-4777-8777-777777777702", Disks: []ID{labDisk}, From: full.ToCheckpoint}, true)
	list, err := l.Checkpoints(ctx, labVM)
	if err != nil || len(list) != 2 || list[1].ID != inc.ToCheckpoint || list[1].Parent != full.ToCheckpoint || !list[1].Valid || list[1].Created.IsZero() {
		t.Errorf("%+v, %v", list, err)
	}
	spec := BackupSpec{ID: "77777777-7777-4777-8777-777777777703", Disks: []ID{labDisk}, From: "00000000-0000-0000-0000-0000000000aa"}
	l.patiently("unknown checkpoint", func() error {
		_, err := l.StartBackup(ctx, labVM, spec)
		switch {
		case errs.Is(err, errs.Stale):
			return nil
		case err == nil:
			t.Error("unknown checkpoint: it was taken")
		}
		return err
	})
	l.fault(engine.FaultInvalidCheckpoint)
	if list, err := l.Checkpoints(ctx, labVM); err != nil || list[0].Valid {
		t.Errorf("%+v, %v", list, err)
	}
	for _, c := range list {
		l.patiently("remove checkpoint", func() error { return l.RemoveCheckpoint(ctx, labVM, c.ID) })
	}
	if err := l.RemoveCheckpoint(ctx, labVM, list[0].ID); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
	l.clean()
}

func TestLabLostAnswerOfABackup(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	spec := BackupSpec{ID: "77777777-7777-4777-8777-777777777711", Disks: []ID{labDisk}}
	l.fault(engine.FaultLostAnswer)
	b, err := l.StartBackup(ctx, labVM, spec)
	if err != nil || b.ID != spec.ID {
		t.Fatalf("%+v, %v", b, err)
	}
	if b, err := l.StartBackup(ctx, labVM, spec); err != nil || b.ID != spec.ID {
		t.Errorf("asked again: %+v, %v", b, err)
	}
	spec.ID = "77777777-7777-4777-8777-777777777712"
	if _, err := l.StartBackup(ctx, labVM, spec); !errs.Is(err, errs.Busy) {
		t.Errorf("another backup meanwhile: %v", err)
	}
	l.within("backup is ready", func() (bool, error) {
		b, err = l.Backup(ctx, labVM, b.ID)
		return b.Phase == BackupReady, err
	})
	l.must(l.FinalizeBackup(ctx, labVM, b.ID))
	l.within("backup has ended", func() (bool, error) {
		b, err = l.Backup(ctx, labVM, b.ID)
		return b.Phase == BackupSucceeded, err
	})
	l.patiently("remove checkpoint", func() error { return l.RemoveCheckpoint(ctx, labVM, b.ToCheckpoint) })
	l.clean()
}

// export makes the engine know the domain at the export, with its disk.
func (l *lab) export() (Connection, Disk) {
	l.t.Helper()
	ctx, dc := l.t.Context(), ID(l.ids.DataCenter)
	if _, err := l.FindConnection(ctx, "10.0.0.5", "/ir/1"); !errs.Is(err, errs.NotFound) {
		l.t.Error(err)
	}
	con, err := l.AddConnection(ctx, Connection{Address: "10.0.0.5", Path: "/ir/1", MountOptions: "port=2049,mountport=2049,proto=tcp,mountproto=tcp"})
	l.must(err)
	if _, err := l.AddConnection(ctx, con); !errs.Is(err, errs.Exists) {
		l.t.Errorf("the same connection again: %v", err)
	}
	d, err := l.ImportDomain(ctx, DomainSpec{Name: "holdfast-ir-1", Connection: con.ID, Host: ID(l.ids.Host), Expect: labDomain})
	if err != nil || d.ID != labDomain || d.Name != "holdfast-ir-1" {
		l.t.Fatalf("%+v, %v", d, err)
	}
	if d, err = l.FindDomain(ctx, labDomain); err != nil || d.Status != DomainUnattached {
		l.t.Errorf("%+v, %v", d, err)
	}
	l.must(l.AttachDomain(ctx, dc, labDomain))
	l.within("domain is active", func() (bool, error) {
		d, err := l.Domain(ctx, dc, labDomain)
		return d.Status == DomainActive, err
	})
	l.must(l.AttachDomain(ctx, dc, labDomain)) // harmless
	l.must(l.ActivateDomain(ctx, dc, labDomain))
	list, err := l.UnregisteredDisks(ctx, labDomain)
	if err != nil || len(list) != 1 || list[0].ID != labSessionOne {
		l.t.Fatalf("%+v, %v", list, err)
	}
	l.must(l.RegisterDisk(ctx, dc, labDomain, labSessionOne))
	disk := l.diskOK(labSessionOne)
	if disk.Incremental || disk.Domain != labDomain || disk.Format != FormatCow {
		l.t.Errorf("%+v", disk)
	}
	l.must(l.SetIncremental(ctx, labSessionOne))
	if disk = l.diskOK(labSessionOne); !disk.Incremental {
		l.t.Errorf("%+v", disk)
	}
	return con, disk
}

func (l *lab) diskOK(id ID) (d Disk) {
	l.t.Helper()
	l.within("disk is ok", func() (bool, error) {
		var err error
		d, err = l.Disk(l.t.Context(), id)
		if errs.Is(err, errs.NotFound) {
			return false, nil
		}
		return d.Status == DiskOK, err
	})
	return d
}

func TestLabSession(t *testing.T) {
	l := newLab(t)
	ctx, dc, host := t.Context(), ID(l.ids.DataCenter), ID(l.ids.Host)
	con, disk := l.export()
	ovf, err := l.VMConfig(ctx, labVM)
	l.must(err)
	ovf, err = StripOVF(ovf)
	l.must(err)
	vm, err := l.CreateVM(ctx, NewVM{Name: "web-restored", Cluster: ID(l.ids.Cluster), OVF: ovf, Description: "Holdfast session 1"})
	if err != nil || vm.ID == labVM || vm.Name != "web-restored" || len(vm.Disks) != 0 || vm.Description != "Holdfast session 1" {
		t.Fatalf("%+v, %v", vm, err)
	}
	if _, err := l.CreateVM(ctx, NewVM{Name: "web-restored", Cluster: ID(l.ids.Cluster), MemoryMiB: 256}); !errs.Is(err, errs.Exists) {
		t.Errorf("the name again: %v", err)
	}
	for range 2 { // the second time is harmless
		l.must(l.AttachDisk(ctx, vm.ID, NewAttachment{Disk: disk.ID, Interface: "virtio_scsi", Bootable: true}))
	}
	l.must(l.StartVM(ctx, vm.ID))
	l.must(l.StartVM(ctx, vm.ID)) // harmless
	l.within("VM is up", func() (bool, error) {
		v, err := l.VM(ctx, vm.ID)
		return v.Status == VMUp && v.Host == host && v.Disks[0].Bootable, err
	})
	tagged := WithCorrelation(ctx, "holdfast-move-1")
	l.fault(engine.FaultMoveBusy)
	if err := l.MoveDisk(tagged, disk.ID, labLocal); !errs.Is(err, errs.Busy) {
		t.Errorf("%v", err)
	}
	l.must(l.MoveDisk(tagged, disk.ID, labLocal))
	l.within("move has ended", func() (bool, error) {
		jobs, err := l.Jobs(ctx, "holdfast-move-1")
		if err != nil || len(jobs) == 0 || slices.ContainsFunc(jobs, func(j Job) bool { return j.Status == "started" }) {
			return false, err
		}
		d, err := l.Disk(ctx, disk.ID)
		return d.Domain == labLocal && d.Status == DiskOK, err
	})
	l.within("the move's snapshot is gone", func() (bool, error) {
		list, err := l.Snapshots(ctx, vm.ID)
		return len(list) == 1 && list[0].Type == "active", err
	})
	l.must(l.StopVM(ctx, vm.ID))
	l.within("VM is down", func() (bool, error) {
		v, err := l.VM(ctx, vm.ID)
		return v.Status == VMDown, err
	})
	l.patiently("remove VM", func() error { return l.RemoveVM(ctx, vm.ID, true) })
	l.patiently("remove disk", func() error { return l.RemoveDisk(ctx, disk.ID) })
	l.within("disk is gone", func() (bool, error) {
		_, err := l.Disk(ctx, disk.ID)
		return errs.Is(err, errs.NotFound), nil
	})
	l.release(dc, host, con)
}

// release takes the domain away again.
func (l *lab) release(dc, host ID, con Connection) {
	l.t.Helper()
	ctx := l.t.Context()
	if err := l.DetachDomain(ctx, dc, labDomain); !errs.Is(err, errs.Busy) {
		l.t.Errorf("detach an active domain: %v", err)
	}
	l.patiently("deactivate", func() error { return l.DeactivateDomain(ctx, dc, labDomain) })
	l.within("domain is in maintenance", func() (bool, error) {
		d, err := l.Domain(ctx, dc, labDomain)
		return d.Status == DomainMaintenance, err
	})
	l.must(l.DeactivateDomain(ctx, dc, labDomain)) // harmless
	l.patiently("detach", func() error { return l.DetachDomain(ctx, dc, labDomain) })
	l.patiently("remove", func() error { return l.RemoveDomain(ctx, labDomain, host) })
	if _, err := l.FindDomain(ctx, labDomain); !errs.Is(err, errs.NotFound) {
		l.t.Error(err)
	}
	if err := l.RemoveConnection(ctx, con.ID, host); err != nil && !errs.Is(err, errs.NotFound) {
		l.t.Error(err)
	}
	l.clean()
}

func TestLabImportOfNothing(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	con, err := l.AddConnection(ctx, Connection{Address: "10.0.0.5", Path: "/empty"})
	l.must(err)
	spec := DomainSpec{Name: "nothing", Connection: con.ID, Host: ID(l.ids.Host), Expect: labDomain}
	l.fault(engine.FaultDomainRefused)
	if _, err := l.ImportDomain(ctx, spec); !errs.Is(err, errs.Transient) || errs.NextStep(err) == "" {
		t.Error(err)
	}
	d, err := l.ImportDomain(ctx, spec)
	if err == nil || d.ID == "" || d.ID == labDomain || !strings.Contains(err.Error(), string(d.ID)) {
		t.Errorf("%+v, %v", d, err)
	}
	l.must(l.RemoveDomain(ctx, d.ID, ID(l.ids.Host)))
	if err := l.RemoveConnection(ctx, con.ID, ""); err != nil && !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
	l.clean()
}
