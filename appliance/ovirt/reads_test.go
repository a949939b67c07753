package ovirt

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Identities in the recordings.
const (
	vm1     ID = "0b0b0b0b-1111-4222-8333-444444444401"
	disk1   ID = "0c0c0c0c-1111-4222-8333-444444444401"
	disk2   ID = "1a7a5e16-0032-4eaf-baf9-d38331d34965"
	center  ID = "485724c0-e714-11f1-9b31-02fc00000001"
	data1   ID = "91aeb024-ad15-467d-ac79-84dfe27e34d8"
	data2   ID = "f725ba82-6f5a-49cb-abc3-dcf8a677c92e"
	bk1     ID = "4447aac5-e8f2-4d7d-9410-7c5e29ed49f6"
	backup1 ID = "0d0d0d0d-1111-4222-8333-444444444401"
	host1   ID = "a0466d43-15a3-4790-9d0a-c20ed18385b4"
)

const inlined = "?follow=disk_attachments%2Ctags"

// read is a call that reads: what it asks for, what a real engine answered, and what it means to us.
type read struct {
	name, request string
	answer        answer
	call          func(ctx context.Context, c *Client) (any, error)
	want          any
}

// pick takes a part of a result, if there is one.
func pick[T any](f func(T) any) func(T, error) (any, error) {
	return func(v T, err error) (any, error) {
		if err != nil {
			return nil, err
		}
		return f(v), nil
	}
}

// reads are all of them, and some twice.
// Long: one table, as long as the API.
func reads(t *testing.T) []read {
	at := func(s string) time.Time {
		d, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	rec := func(file, name, root string) answer { return recorded(t, file, name, root) }
	wantVM := VM{
		ID: vm1, Name: "vm1", Status: VMDown, Cluster: "486acb42-e714-11f1-a2cc-02fc00000001", MemoryMiB: 1024,
		Disks: []Attachment{
			{Disk: disk1, Interface: "virtio_scsi", Bootable: true, Active: true}, {Disk: disk2, Interface: "virtio", Active: true},
		},
	}
	inc := Disk{
		ID: disk1, Image: "aaeca740-3297-4936-9668-66cf0614bb85", Alias: "vm1_disk1", Status: DiskOK, Format: FormatCow, Provisioned: 1 << 30,
		Actual: 4096, Domain: data1, Storage: "image", Incremental: true, ContentType: "data",
	}
	moved, locked := inc, inc
	moved.Domain = data2
	locked.Status, locked.Actual, locked.Image = DiskLocked, 0, ""
	attached := Domain{
		ID: data2, Name: "data2", Type: "data", Status: DomainActive, StorageType: "nfs", Available: 536870912000, Used: 536870912000, Format: "v5", DataCenter: center,
	}
	unattached := attached
	unattached.ID, unattached.Name, unattached.Status, unattached.DataCenter = data1, "data1", DomainUnattached, ""
	const backupPath = "/vms/" + string(bk1) + "/backups/" + string(backup1)
	ready := Backup{
		ID: backup1, Phase: BackupReady, ToCheckpoint: "99f27803-0372-4de0-9df6-0ac4bd975959", Snapshot: "94a1146d-5ce3-45e6-8d83-26eb317ba5c1",
		Created: at("2026-11-23T08:41:19.645Z"),
	}
	const image = "https://localhost:5432"
	return []read{
		{"info", "GET ", rec("login.txt", "api json", "api"), func(ctx context.Context, c *Client) (any, error) { return c.Info(ctx) },
			Info{Version: "4.5.8_master", Major: 4, Minor: 5, User: testUser}},
		{"VM", "GET /vms/" + string(vm1) + inlined, rec("machines.txt", "vm", "vm"), func(ctx context.Context, c *Client) (any, error) { return c.VM(ctx, vm1) }, wantVM},
		{"VM in the engine's own XML", "GET /vms/" + string(vm1) + inlined, rec("machines.txt", "vm xml", ""),
			func(ctx context.Context, c *Client) (any, error) {
				return pick(func(v VM) any { return v.Name })(c.VM(ctx, vm1))
			}, "vm1"},
		{"disks", "GET /vms/" + string(vm1) + "/diskattachments?follow=disk", rec("machines.txt", "attachments", "disk_attachments"),
			func(ctx context.Context, c *Client) (any, error) { return c.Disks(ctx, vm1) }, []Disk{inc}},
		{"disk", "GET /disks/" + string(disk1), rec("machines.txt", "disk xml", ""), func(ctx context.Context, c *Client) (any, error) { return c.Disk(ctx, disk1) }, moved},
		{"locked disk", "GET /disks/" + string(disk1), rec("machines.txt", "disk locked", "disk"), func(ctx context.Context, c *Client) (any, error) {
			return pick(func(d Disk) any { d.Actual, d.Image = 0, ""; return d })(c.Disk(ctx, disk1))
		}, locked},
		{"snapshots", "GET /vms/" + string(bk1) + "/snapshots", rec("machines.txt", "snapshots xml", ""), func(ctx context.Context, c *Client) (any, error) { return c.Snapshots(ctx, bk1) },
			[]Snapshot{
				{"710fbd85-e6be-4362-a999-6b474d5e0e9f", "Active VM", "ok", "active"},
				{"94a1146d-5ce3-45e6-8d83-26eb317ba5c1", "Auto-generated for Backup VM", "ok", "regular"},
			}},
		{"jobs", "GET /jobs?search=correlation_id%3Dhf-snap-1", rec("machines.txt", "job started", "jobs"), func(ctx context.Context, c *Client) (any, error) {
			return pick(func(l []Job) any { return []any{len(l), l[0].Status, l[0].Description} })(c.Jobs(ctx, "hf-snap-1"))
		}, []any{1, "started", "Creating VM Snapshot hf-snap-1 for VM vm1"}},
		{"ended job", "GET /jobs?search=correlation_id%3Dx", rec("machines.txt", "job finished", "jobs"), func(ctx context.Context, c *Client) (any, error) {
			return pick(func(l []Job) any { return l[0].Status })(c.Jobs(ctx, "x"))
		}, "finished"},
		{"escaped text", "GET /jobs?search=correlation_id%3Dx", rec("machines.txt", "jobs xml", ""), func(ctx context.Context, c *Client) (any, error) {
			return pick(func(l []Job) any { return l[1] })(c.Jobs(ctx, "x"))
		}, Job{"544a72c7-a58a-4b50-a348-24148d818be9", "Connecting Host <UNKNOWN> to Storage server", "failed"}},
		{"hosts", "GET /hosts", rec("storage.txt", "hosts xml", ""), func(ctx context.Context, c *Client) (any, error) { return c.Hosts(ctx) },
			[]Host{{ID: host1, Name: "host1", Address: "localhost"}}},
		{"clusters", "GET /clusters", rec("storage.txt", "clusters xml", ""), func(ctx context.Context, c *Client) (any, error) { return c.Clusters(ctx) },
			[]Cluster{{ID: "486acb42-e714-11f1-a2cc-02fc00000001", Name: "Default"}}},
		{"data centers", "GET /datacenters", rec("storage.txt", "data center", "data_centers"), func(ctx context.Context, c *Client) (any, error) { return c.DataCenters(ctx) },
			[]DataCenter{{Status: "up"}}},
		{"no domains", "GET /datacenters/x/storagedomains", xmlOK("<storage_domains/>"), func(ctx context.Context, c *Client) (any, error) { return c.Domains(ctx, "x") }, []Domain{}},
		{"domain", "GET /datacenters/" + string(center) + "/storagedomains/" + string(data2), rec("storage.txt", "attached", ""),
			func(ctx context.Context, c *Client) (any, error) { return c.Domain(ctx, center, data2) }, attached},
		{"unattached domain", "GET /storagedomains/" + string(data1), rec("storage.txt", "unattached", "storage_domain"),
			func(ctx context.Context, c *Client) (any, error) { return c.FindDomain(ctx, data1) }, unattached},
		{"connection", "GET /storageconnections", rec("storage.txt", "connections", ""), func(ctx context.Context, c *Client) (any, error) {
			return c.FindConnection(ctx, "127.0.0.1", "/export/data2")
		},
			Connection{ID: "56154250-670e-431c-b812-1b8167069eb1", Address: "127.0.0.1", Path: "/export/data2"}},
		{"unregistered disks", "GET /storagedomains/" + string(data2) + "/disks?unregistered=true", rec("storage.txt", "unregistered", "disks"), func(ctx context.Context, c *Client) (any, error) {
			return pick(func(l []Disk) any { return []any{len(l), l[1]} })(c.UnregisteredDisks(ctx, data2))
		}, []any{2, Disk{
			ID: "9d590fd5-0014-431d-b099-ead92376d9c8", Image: "ba56a2c3-4083-4d65-b7d3-b967714a0794", Alias: "float_on_d2", Status: DiskOK, Format: FormatCow,
			Provisioned: 1 << 30, Actual: 4096, Domain: data2, Storage: "image", ContentType: "data",
		}}},
		{"ready backup", "GET " + backupPath, rec("backups.txt", "ready", ""), func(ctx context.Context, c *Client) (any, error) { return c.Backup(ctx, bk1, backup1) }, ready},
		{"live backup", "GET /vms/v/backups/b", rec("backups.txt", "classic", ""), func(ctx context.Context, c *Client) (any, error) {
			return pick(func(b Backup) any { return []any{b.Host, b.Snapshot} })(c.Backup(ctx, "v", "b"))
		}, []any{host1, ID("")}},
		{"disks of a full backup", "GET " + backupPath + "/disks", rec("backups.txt", "disks full", "disks"), func(ctx context.Context, c *Client) (any, error) { return c.BackupDisks(ctx, bk1, backup1) },
			[]BackupDisk{{"b5c95765-8fa8-47e7-8429-f2c9408e3011", false}, {"bce719ca-02d0-4e3e-af21-3091cae8b692", false}}},
		{"disks of an incremental backup", "GET " + backupPath + "/disks", rec("backups.txt", "disks incremental", "disks"), func(ctx context.Context, c *Client) (any, error) { return c.BackupDisks(ctx, bk1, backup1) },
			[]BackupDisk{{"b5c95765-8fa8-47e7-8429-f2c9408e3011", true}}},
		{"checkpoints", "GET /vms/" + string(bk1) + "/checkpoints", rec("backups.txt", "checkpoints xml", ""), func(ctx context.Context, c *Client) (any, error) {
			return pick(func(l []Checkpoint) any { return l[:2] })(c.Checkpoints(ctx, bk1))
		}, []Checkpoint{
			{"e435c290-bed1-4b5e-be90-7923b53e787b", "", at("2026-11-23T08:43:17.232Z"), true},
			{"fa6893c6-2d7d-4ad0-a2c8-990f67826a8c", "e435c290-bed1-4b5e-be90-7923b53e787b", at("2026-11-23T08:46:35.580Z"), true},
		}},
		{"transfer", "GET /imagetransfers/1c9228d5-0c47-4af4-952f-60f4783417bf", rec("backups.txt", "transfer again", "image_transfer"),
			func(ctx context.Context, c *Client) (any, error) {
				return c.Transfer(ctx, "1c9228d5-0c47-4af4-952f-60f4783417bf")
			},
			Transfer{"1c9228d5-0c47-4af4-952f-60f4783417bf", TransferTransferring, "5e3d4bb7-08a9-4bb8-af27-7c20f248dee5",
				image + "2/images/a8cc8dd4-de6c-413f-a15f-12397d753c5f", image + "3/images/a8cc8dd4-de6c-413f-a15f-12397d753c5f", true}},
		{"disks of a snapshot", "GET /vms/v/snapshots/s/disks", rec("machines.txt", "snapshot disks", "disks"),
			func(ctx context.Context, c *Client) (any, error) { return c.SnapshotDisks(ctx, "v", "s") }, []SnapshotDisk{
				{"1a7a5e16-0032-4eaf-baf9-d38331d34965", "de37f268-e9a5-45ea-84f6-c807d291aff5"}, {disk1, "aaeca740-3297-4936-9668-66cf0614bb85"}}},
	}
}

func TestReads(t *testing.T) {
	for _, x := range reads(t) {
		t.Run(x.name, func(t *testing.T) {
			s := newScript(t).on(x.request, x.answer)
			got, err := x.call(t.Context(), s.dial())
			if err != nil || !reflect.DeepEqual(got, x.want) {
				t.Errorf("%v\ngot  %+v\nwant %+v", err, got, x.want)
			}
			s.instead(x.request, answer{status: 404})
			if _, err := x.call(t.Context(), s.dial()); !errs.Is(err, errs.NotFound) {
				t.Errorf("404: %v", err)
			}
			s.instead(x.request, refused(403, "[User is not authorized to perform this action.]"))
			if _, err := x.call(t.Context(), s.dial()); !errs.Is(err, errs.Denied) || errs.NextStep(err) == "" {
				t.Errorf("403: %v", err)
			}
		})
	}
}

func TestFindVM(t *testing.T) {
	body := recorded(t, "machines.txt", "vm", "vm").body
	other := strings.ReplaceAll(body, "<name>vm1</name>", "<name>VM1</name>")
	s := newScript(t)
	c, ctx := s.dial(), t.Context()
	s.on("GET /vms"+inlined+"&search=name%3Dvm1", xmlOK("<vms>"+other+body+"</vms>"), xmlOK("<vms>"+other+"</vms>"), xmlOK("<vms/>"))
	if v, err := c.FindVM(ctx, "vm1"); err != nil || v.Name != "vm1" {
		t.Errorf("%+v, %v", v, err)
	}
	for range 2 {
		if _, err := c.FindVM(ctx, "vm1"); !errs.Is(err, errs.NotFound) {
			t.Error(err)
		}
	}
	// Names that the search language could misread are searched for by us.
	odd := strings.ReplaceAll(body, "<name>vm1</name>", "<name>a b or name=*</name>")
	s.on("GET /vms"+inlined, xmlOK("<vms>"+body+odd+"</vms>"))
	if v, err := c.FindVM(ctx, "a b or name=*"); err != nil || v.Name != "a b or name=*" {
		t.Errorf("%+v, %v", v, err)
	}
	for _, name := range []string{"or", "*", "vm1*", ""} {
		if _, err := c.FindVM(ctx, name); !errs.Is(err, errs.NotFound) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if l, err := c.VMs(ctx); err != nil || len(l) != 2 {
		t.Errorf("%v, %v", l, err)
	}
}

func TestHostedEngineAndTags(t *testing.T) {
	s := newScript(t)
	s.on("GET /vms"+inlined, xmlOK(`<vms><vm id="a"><origin>managed_hosted_engine</origin><tags><tag id="1"><name>gold</name></tag><tag id="2"><name>x</name></tag></tags>`+
		`<host id="h"/><status>up</status></vm><vm id="b"><origin>ovirt</origin></vm></vms>`))
	l, err := s.dial().VMs(t.Context())
	if err != nil || !l[0].HostedHere || l[1].HostedHere || !reflect.DeepEqual(l[0].Tags, []string{"gold", "x"}) || l[0].Host != "h" || l[0].Status != VMUp {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestVMConfig(t *testing.T) {
	ovf := ovfs(t)["08-vm1.ovf.xml"]
	var b strings.Builder
	asXML(&b, "vm", map[string]any{"id": "v", "initialization": map[string]any{"configuration": map[string]any{"data": ovf, "type": "ovf"}}})
	s := newScript(t).on("GET /vms/v", xmlOK(b.String()), xmlOK(`<vm id="v"/>`))
	c := s.dial()
	got, err := c.VMConfig(t.Context(), "v")
	if err != nil || got != ovf {
		t.Errorf("%v, %q", err, got)
	}
	if h := s.requests()[0].header.Get("All-Content"); h != "true" {
		t.Errorf("All-Content is %q", h)
	}
	if _, err := c.VMConfig(t.Context(), "v"); err == nil {
		t.Error("no configuration is no error")
	}
}

// The engine answers 200 with an empty list for the parts of a VM that does not exist.
func TestPartsOfNoVM(t *testing.T) {
	s := newScript(t)
	c, ctx := s.dial(), t.Context()
	s.on("GET /vms/v/diskattachments?follow=disk", xmlOK("<disk_attachments/>")).on("GET /vms/v/snapshots", xmlOK("<snapshots/>")).
		on("GET /vms/v/checkpoints", xmlOK("<checkpoints/>")).on("GET /vms/v/backups/b/disks", xmlOK("<disks/>"))
	s.on("GET /vms/v"+inlined, answer{status: 404}).on("GET /vms/v/backups/b", answer{status: 404})
	_, e1 := c.Disks(ctx, "v")
	_, e2 := c.Snapshots(ctx, "v")
	_, e3 := c.Checkpoints(ctx, "v")
	_, e4 := c.BackupDisks(ctx, "v", "b")
	for i, err := range []error{e1, e2, e3, e4} {
		if !errs.Is(err, errs.NotFound) {
			t.Errorf("%d: %v", i, err)
		}
	}
	s.instead("GET /vms/v"+inlined, xmlOK(`<vm id="v"/>`))
	if l, err := c.Checkpoints(ctx, "v"); err != nil || len(l) != 0 {
		t.Errorf("a VM without checkpoints: %v, %v", l, err)
	}
}

func TestDomainByNameAndStatus(t *testing.T) {
	s := newScript(t)
	c, ctx := s.dial(), t.Context()
	outside := recorded(t, "storage.txt", "attached from outside", "")
	inside := "GET /datacenters/" + string(center) + "/storagedomains/" + string(data2)
	s.on("GET /storagedomains?search=name%3Ddata2", xmlOK("<storage_domains>"+outside.body+"</storage_domains>"))
	s.on("GET /storagedomains/"+string(data2), outside)
	s.on(inside, recorded(t, "storage.txt", "attached", ""))
	if d, err := c.FindDomainByName(ctx, "data2"); err != nil || d.ID != data2 || d.Status != DomainActive || d.DataCenter != center {
		t.Errorf("%+v, %v", d, err)
	}
	if d, err := c.FindDomain(ctx, data2); err != nil || d.Status != DomainActive {
		t.Errorf("%+v, %v", d, err)
	}
	s.instead(inside, answer{status: 404})
	if d, err := c.FindDomain(ctx, data2); err != nil || d.Status != DomainUnattached || d.DataCenter != "" {
		t.Errorf("detached in between: %+v, %v", d, err)
	}
	s.on("GET /storagedomains?search=name%3Ddata3", xmlOK("<storage_domains>"+outside.body+"</storage_domains>"))
	if _, err := c.FindDomainByName(ctx, "data3"); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
	s.on("GET /storageconnections", recorded(t, "storage.txt", "connections", ""))
	if _, err := c.FindConnection(ctx, "127.0.0.1", "/export/data2/"); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if _, err := c.Jobs(ctx, "ä"); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
}
