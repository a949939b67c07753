package cli

import (
	"strings"
	"testing"
)

// TestRestorePlan: a person sees all that would be made, and what would not; a script gets the document.
func TestRestorePlan(t *testing.T) {
	b := boxAt(t, t.TempDir())
	said := b.ok("restore", "vm", "web", "--dry-run", "--power-on")
	for _, want := range []string{
		"VM web-restored in cluster Default of m1, from point web@latest of web", "web_Disk1: 8.0 GiB with 1.0 GiB of data, cow, on fast, virtio_scsi, boots",
		"on ovirtmgmt, with a new address", "on no network, with 56:6f:00:00:00:01", "gold", "the VM is started", "A VM named web exists.",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("the plan does not say %q:\n%s", want, said)
		}
	}
	if got := b.node.asked("StartRestore"); got != "" {
		t.Errorf("a plan was carried out: %s", got)
	}
	for _, args := range []string{"--keep-mac --new-mac", "--verify some", "--network a", "--network =b", "--network a=b --network a=c", "--disks x"} {
		b.fails(2, append([]string{"restore", "vm", "web"}, strings.Fields(args)...), "--")
	}
}

// TestRestoreWaited: what came of it, for people and for scripts.
func TestRestoreWaited(t *testing.T) {
	b := boxAt(t, t.TempDir())
	said := b.ok("restore", "vm", "web", "--wait")
	if want := "VM 8f2b9c1e-0000-4000-8000-000000000009 with 1 disk, 1.0 GiB of data, from point 3f1c9a0be4d2587a"; !strings.Contains(said, want) {
		t.Errorf("it does not say %q:\n%s", want, said)
	}
	var doc restoreJSON
	b.json(&doc, "restore", "vm", "web", "--wait")
	if doc.Restore != "0e5708e00001" || doc.Task != restoreID || doc.State != "done" || doc.VMID == "" || doc.Result["data_bytes"] != float64(1<<30) {
		t.Errorf("the document is %+v", doc)
	}
}
