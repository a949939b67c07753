package restore

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func has(notes []string, text string) bool {
	return slices.ContainsFunc(notes, func(s string) bool { return strings.Contains(s, text) })
}

// With nothing asked for, and the original still there.
func TestPlan(t *testing.T) {
	w := newWorld(t)
	r := w.prepare(Request{Manager: "m", Point: w.point})
	if r.VM != "web-restored-abcdef" || r.Cluster != "Default" || r.State != appliance.RestorePrepare || r.Verify != VerifyExtents {
		t.Errorf("planned %+v", r.Restore)
	}
	for i, want := range []appliance.RestoreDisk{
		{Number: 0, Alias: "web_1", SizeBytes: 11<<20 + 512, Format: "cow", Sparse: true, Domain: "local", Interface: "virtio_scsi", Bootable: true},
		{Number: 3, Alias: "web_2", SizeBytes: 1 << 20, Format: "cow", Sparse: true, Domain: "local", Interface: "virtio"},
	} {
		got := r.Disks[i]
		if got.ID == "" || got.ID == webDisk || got.DataBytes != w.point.Disks[i].Root.Data {
			t.Errorf("disk %d: %+v", i, got)
		}
		if got.ID, got.DataBytes = "", 0; got != want {
			t.Errorf("disk %d: %+v, want %+v", i, got, want)
		}
	}
	if len(r.NICs) != 2 || r.NICs[0].Profile != "ovirtmgmt" || r.NICs[0].MAC != "" || r.NICs[1].Profile != "" {
		t.Errorf("NICs %+v", r.NICs)
	}
	for _, want := range []string{"A VM named web exists", "Disk web_lun is a LUN", "Disk 3 was raw", "MAC addresses are in use"} {
		if !has(r.Notes, want) {
			t.Errorf("nothing is said of %q: %q", want, r.Notes)
		}
	}
	if left := w.engine.Leftovers(w.before); len(left) > 0 || len(w.records) > 0 {
		t.Errorf("a plan made %q, and wrote %d records", left, len(w.records))
	}
	if strings.Contains(r.OVF, webDisk) {
		t.Error("the configuration still names the old disk")
	}
}

// With the original gone the VM gets its name and its addresses back.
func TestPlanWithoutTheOriginal(t *testing.T) {
	w := newWorld(t)
	if err := w.client.RemoveVM(t.Context(), webVM, false); err != nil {
		t.Fatal(err)
	}
	for gone := false; !gone; {
		_, err := w.client.VM(t.Context(), webVM)
		gone = errs.Is(err, errs.NotFound)
	}
	w.before = w.engine.Snapshot()
	r := w.prepare(Request{Manager: "m", Point: w.point, PowerOn: true})
	if r.VM != "web" || r.NICs[0].MAC == "" || r.NICs[1].MAC == "" || has(r.Notes, "MAC") {
		t.Fatalf("planned %+v", r.Restore)
	}
	if err := Run(t.Context(), w.o, r, w); err != nil {
		t.Fatal(err)
	}
	w.checkWhole(r)
	nics, err := w.client.NICs(t.Context(), ovirt.ID(r.VMID))
	if err != nil || len(nics) != 2 || nics[0].MAC != r.NICs[0].MAC || nics[1].MAC != r.NICs[1].MAC {
		t.Errorf("the NICs are %+v, want %+v; %v", nics, r.NICs, err)
	}
}

// An address that somebody takes while disks are copied is no reason to give all of that up.
func TestAddressTakenMeanwhile(t *testing.T) {
	w := newWorld(t)
	r := w.prepare(w.request())
	nics, err := w.client.NICs(t.Context(), webVM)
	if err != nil {
		t.Fatal(err)
	}
	r.NICs[0].MAC = nics[0].MAC
	if err := Run(t.Context(), w.o, r, w); err != nil || !has(w.notes, "gets a new address") {
		t.Errorf("%v, %q", err, w.notes)
	}
	w.checkWhole(r)
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	for name, x := range map[string]struct {
		change func(q *Request)
		want   errs.Kind
		text   string // of the error or of what to do next
	}{
		"taken name":        {func(q *Request) { q.Name = "web" }, errs.Exists, "--name"},
		"name with a blank": {func(q *Request) { q.Name = "a b" }, errs.Invalid, "--name"},
		"unknown cluster":   {func(q *Request) { q.Cluster = "x" }, errs.NotFound, "Default"},
		"unknown domain":    {func(q *Request) { q.Domain = "x" }, errs.NotFound, "local, fast"},
		"unknown disk":      {func(q *Request) { q.Disks = []int{1} }, errs.NotFound, "0, 3"},
		"unknown network":   {func(q *Request) { q.Networks = map[string]string{"x": "ovirtmgmt"} }, errs.NotFound, "nic1 on ovirtmgmt"},
		"unknown profile":   {func(q *Request) { q.Networks = map[string]string{"ovirtmgmt": "x"} }, errs.NotFound, "It has: ovirtmgmt"},
		"taken addresses":   {func(q *Request) { q.MAC = MACKeep }, errs.Exists, "--new-mac"},
		"unknown addresses": {func(q *Request) { q.MAC = "x" }, errs.Invalid, "keep or new"},
		"unknown check":     {func(q *Request) { q.Verify = "x" }, errs.Invalid, "full"},
		"broken config": {func(q *Request) {
			p := *q.Point
			p.Config = []byte("{")
			q.Point = &p
		}, errs.Corrupt, ""},
	} {
		q := w.request()
		x.change(&q)
		_, err := Prepare(t.Context(), w.o, q, "abcdef012345")
		if !errs.Is(err, x.want) || !strings.Contains(err.Error()+errs.NextStep(err), x.text) {
			t.Errorf("%s: %v; next: %s", name, err, errs.NextStep(err))
		}
	}
}

// Networks can be named by the NIC, the profile or the network; nothing leaves a NIC alone.
func TestNetworks(t *testing.T) {
	w := newWorld(t)
	for from, want := range map[string][2]string{"nic2=ovirtmgmt": {"ovirtmgmt", "ovirtmgmt"}, "ovirtmgmt=": {"", ""}, "nic1=": {"", ""}, "ovirtmgmt/ovirtmgmt=ovirtmgmt/ovirtmgmt": {"ovirtmgmt", ""}} {
		q := w.request()
		k, v, _ := strings.Cut(from, "=")
		q.Networks = map[string]string{k: v}
		if r := w.prepare(q); r.NICs[0].Profile != want[0] || r.NICs[1].Profile != want[1] {
			t.Errorf("%s: %+v", from, r.NICs)
		}
	}
	var c appliance.PointConfig
	if err := json.Unmarshal(w.point.Config, &c); err != nil {
		t.Fatal(err)
	}
	c.OVF = strings.ReplaceAll(c.OVF, ">ovirtmgmt<", ">elsewhere<")
	w.point.Config, _ = json.Marshal(c)
	if r := w.prepare(w.request()); r.NICs[0].Profile != "" || !has(r.Notes, "NIC nic1 was on elsewhere") {
		t.Errorf("%+v, %q", r.NICs, r.Notes)
	}
}

// storages is an engine whose domains are of another kind.
type storages struct {
	Engine
	change func(d *ovirt.Domain)
}

func (s storages) Domains(ctx context.Context, dc ovirt.ID) ([]ovirt.Domain, error) {
	all, err := s.Engine.Domains(ctx, dc)
	for i := range all {
		s.change(&all[i])
	}
	return all, err
}

func TestFullDomain(t *testing.T) {
	w := newWorld(t)
	w.o.Engine = storages{w.client, func(d *ovirt.Domain) {
		if d.Name == "fast" {
			d.Available = 5 << 20
		}
	}}
	if _, err := Prepare(t.Context(), w.o, w.request(), "x"); !errs.Is(err, errs.NoSpace) || !strings.Contains(errs.NextStep(err), "--storage-domain") {
		t.Error(err)
	}
	q := w.request()
	q.Domain = "local"
	if _, err := Prepare(t.Context(), w.o, q, "x"); err != nil {
		t.Error(err)
	}
}

// On block storage a qcow2 volume has to be as long from the start as it will be, and a raw one cannot be sparse.
func TestBlockStorage(t *testing.T) {
	w := newWorld(t)
	w.o.Engine = storages{w.client, func(d *ovirt.Domain) { d.StorageType = "iscsi" }}
	w.point.Config = []byte(strings.Replace(string(w.point.Config), `"format":"raw"`, `"format":"raw","shareable":true`, 1))
	r := w.prepare(w.request())
	if r.Initial[0] < r.Disks[0].DataBytes || !r.Disks[0].Sparse || r.Disks[1].Sparse || r.Initial[1] != 0 {
		t.Errorf("planned %+v, initial sizes %v", r.Disks, r.Initial)
	}
	if err := Run(t.Context(), w.o, r, w); err != nil {
		t.Fatal(err)
	}
	w.checkWhole(r)
}

// A point made of an image file has no configuration.
func TestPointOfAnImageFile(t *testing.T) {
	w := newWorld(t)
	w.point.Config = nil
	r := w.prepare(w.request())
	if !has(r.Notes, "carries no VM configuration") {
		t.Errorf("%q", r.Notes)
	}
	if err := Run(t.Context(), w.o, r, w); err != nil {
		t.Fatal(err)
	}
	if vm := w.checkWhole(r); vm.MemoryMiB != defaultMemoryMiB {
		t.Errorf("%+v", vm)
	}
}

// sparse is a large disk with data in some places, of which only the extents are asked.
type sparse struct {
	size int64
	data []run
}

func (s sparse) Size() int64 { return s.size }

func (s sparse) Extents(_ context.Context, _, _ int64, visit func(off, n int64, data bool) bool) error {
	for _, x := range s.data {
		if !visit(x.off, x.n, true) {
			return nil
		}
	}
	return nil
}

func (s sparse) ReadAt(context.Context, []byte, int64) (int, error) {
	panic("nothing is read to measure")
}

// TestMeasure: what we ask for is never less than qemu-img says it takes, and not much more.
func TestMeasure(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is not installed")
	}
	for name, s := range map[string]sparse{
		"empty": {1 << 30, nil}, "tiny": {512, []run{{0, 512, true}}},
		"pieces": {64 << 30, []run{{0, 4096, true}, {8192, 4096, true}, {65536*3 - 1, 2, true}, {10 << 30, 3 << 20, true}, {64<<30 - 512, 512, true}}},
		"large":  {2 << 40, []run{{1 << 40, 1 << 20, true}}},
		"much":   {8 << 30, []run{{0, 8 << 30, true}}},
	} {
		got, err := measure(t.Context(), s, s.size)
		if err != nil {
			t.Fatal(err)
		}
		want := measured(t, s)
		if got < want || got > want+want/8+(2<<20) {
			t.Errorf("%s: %d bytes, and qemu-img says %d", name, got, want)
		}
	}
}

// measured asks qemu-img how long a qcow2 file of a disk is. The file system's holes tell it where data is.
func measured(t *testing.T, s sparse) int64 {
	t.Helper()
	file := filepath.Join(t.TempDir(), "raw")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(s.size); err != nil {
		t.Fatal(err)
	}
	var bytes int64
	for _, x := range s.data {
		bytes += x.n
	}
	args := []string{"measure", "--output=json", "-O", "qcow2", "-f", "raw", file}
	if bytes == s.size {
		args = []string{"measure", "--output=json", "-O", "qcow2", "-o", "preallocation=full", "-f", "raw", file}
	} else {
		for _, x := range s.data {
			if _, err := f.WriteAt(slices.Repeat([]byte{1}, int(x.n)), x.off); err != nil {
				t.Fatal(err)
			}
		}
	}
	out, err := exec.CommandContext(t.Context(), "qemu-img", args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		Required int64
	}
	if err := json.Unmarshal(out, &m); err != nil || m.Required == 0 {
		t.Fatalf("%s, %v", out, err)
	}
	return m.Required
}
