package node

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
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
