package node

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/catalog"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/restore"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/datacenter"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// TestKilledRestores copies a VM back with the real ovirt-imageio, killed at writes of the journal; each time the node
// comes back it goes on, and the VM is there once, with the very disk that was backed up.
func TestKilledRestores(t *testing.T) {
	y := newYard(t)
	if _, err := y.api.StartBackup(t.Context(), api.BackupSpec{VM: "web1"}); err != nil {
		t.Fatal(err)
	}
	y.settle()
	y.before = y.center.Engine.Snapshot()
	moments(t, 6, func(t *testing.T, n int, late bool) bool {
		y.t = t
		y.kill()
		y.start(n, late)
		name := fmt.Sprintf("copied-%d-%v", n, late)
		verify := "extents"
		if late {
			verify = "full"
		}
		_, _, err := y.api.StartRestore(t.Context(), api.RestoreSpec{Point: "web1@latest", Name: name, StorageDomain: datacenter.Spare, Verify: verify, PowerOn: true})
		if err != nil && !errs.Is(err, errs.Transient) {
			t.Fatal(err)
		}
		reached := y.untilDead(err)
		y.start(0, false)
		tasks := y.settle()
		y.checkRestore(name, n < 2 || n == 2 && !late)
		if s := tasks[0].State; s != appliance.TaskSucceeded && n > 2 {
			t.Errorf("the last task is %s: %+v", s, tasks[0].Problem)
		}
		return reached
	})
}

// checkRestore sees that a restored VM is there, alone and whole, and takes it away. Nothing may be there of one that
// nobody was told of.
func (y *yard) checkRestore(name string, never bool) {
	y.t.Helper()
	all, err := y.api.ListRestores(y.t.Context())
	if err != nil {
		y.t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(r appliance.Restore) bool { return r.VM == name })
	if never {
		if left := y.left(); len(left) > 0 || i >= 0 && all[i].State != appliance.RestoreFailed {
			y.t.Errorf("left on the engine: %s; %+v", strings.Join(left, "; "), all)
		}
		return
	}
	if i < 0 || all[i].State != appliance.RestoreDone {
		y.t.Fatalf("the restore is %+v", all)
	}
	if left := y.left("vm", "attachment", "disk"); len(left) > 0 || len(y.left()) != 3 {
		y.t.Errorf("left on the engine: %s", strings.Join(y.left(), "; "))
	}
	vm, err := y.engine.VM(y.t.Context(), ovirt.ID(all[i].VMID))
	if err != nil {
		y.t.Fatal(err)
	}
	if len(vm.Disks) != 1 || string(vm.Disks[0].Disk) != all[i].Disks[0].ID || !vm.Disks[0].Bootable || vm.Description != "" {
		y.t.Errorf("the VM is %+v", vm)
	}
	d, err := y.engine.Disk(y.t.Context(), vm.Disks[0].Disk)
	if err != nil {
		y.t.Fatal(err)
	}
	if d.Format != ovirt.FormatCow || !d.Incremental || d.Status != ovirt.DiskOK || d.Provisioned != all[i].Disks[0].SizeBytes {
		y.t.Errorf("the disk is %+v", d)
	}
	y.sameDisk(d)
	y.removeVM(vm.ID)
}

// sameDisk compares a disk with that of the VM that was backed up, byte by byte, as qemu reads them.
func (y *yard) sameDisk(d ovirt.Disk) {
	y.t.Helper()
	path := y.center.Host.Path(engine.DiskPlace{Domain: string(d.Domain), Disk: string(d.ID), Image: string(d.Image)})
	out, err := exec.CommandContext(y.t.Context(), "qemu-img", "compare", "-U", path, y.center.Host.Path(y.center.VMs[0].Disk)).CombinedOutput()
	if err != nil {
		y.t.Errorf("the disk differs: %v: %s", err, out)
	}
}

// A name is taken from the moment at which somebody began to restore a VM of it.
func TestNamesOfRestores(t *testing.T) {
	n, _ := newNode(t)
	r := &restore.Record{Restore: appliance.Restore{ID: "r1", VM: "web", Manager: "m", Task: "t1", State: appliance.RestoreUpload}}
	if err := n.KeepRestore(*r); err != nil {
		t.Fatal(err)
	}
	if err := n.nameIsFree(r); !errs.Is(err, errs.Exists) || !strings.Contains(errs.NextStep(err), "t1") {
		t.Error(err)
	}
	other := *r
	other.Manager = "m2"
	if err := n.nameIsFree(&other); err != nil {
		t.Error("on another engine:", err)
	}
	r.State = appliance.RestoreFailed
	if err := n.KeepRestore(*r); err != nil {
		t.Fatal(err)
	}
	if err := n.nameIsFree(r); err != nil {
		t.Error("after its end:", err)
	}
}

// What was written down and never begun does not begin by itself at the next start; what had ended is told as it ended.
func TestRestoresAfterAStart(t *testing.T) {
	n, again := newNode(t)
	for _, r := range []restore.Record{
		{Restore: appliance.Restore{ID: "r1", VM: "a", Manager: "m", Task: "t1", State: appliance.RestorePrepare}, OVF: "x"},
		{Restore: appliance.Restore{ID: "r2", VM: "b", Manager: "m", Task: "t2", State: appliance.RestoreDone, VMID: "v"}},
		{Restore: appliance.Restore{ID: "r3", VM: "c", Manager: "m", Task: "t3", State: appliance.RestoreFailed, Problem: &appliance.Problem{Code: "no-space"}}},
	} {
		if err := n.KeepRestore(r); err != nil {
			t.Fatal(err)
		}
		if r.ID == "r1" {
			continue
		}
		if err := n.catalog.Put(catalog.Tasks, r.Task, appliance.Task{ID: r.Task, Kind: appliance.TaskRestore, State: appliance.TaskRunning}); err != nil {
			t.Fatal(err)
		}
	}
	n = again()
	r, err := n.GetRestore(t.Context(), "r1")
	if err != nil || r.State != appliance.RestoreFailed || r.Problem == nil || r.Problem.Remedy == "" {
		t.Errorf("%+v, %v", r, err)
	}
	done, err := n.GetTask(t.Context(), "t2")
	if err != nil || done.State != appliance.TaskSucceeded || done.Result["vm_id"] != "v" {
		t.Errorf("%+v, %v", done, err)
	}
	failed, err := n.GetTask(t.Context(), "t3")
	if err != nil || failed.State != appliance.TaskFailed || failed.Problem == nil || failed.Problem.Code != "no-space" {
		t.Errorf("%+v, %v", failed, err)
	}
	if list, err := n.ListTasks(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("%d tasks, %v", len(list), err)
	}
}
