package instant

import (
	"context"

	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// CheckQuiet refuses, with errs.Busy, a session whose VM may be writing: one that is not down. A VM that is gone writes
// nothing; of an engine that cannot be asked nothing is known, and its error is returned.
func CheckQuiet(ctx context.Context, e Inventory, r *Record) error {
	if r.VMID == "" {
		return nil
	}
	vm, err := e.VM(ctx, ovirt.ID(r.VMID))
	switch {
	case errs.Is(err, errs.NotFound):
		return nil
	case err != nil:
		return errs.Wrap("ask whether the VM is down", r.VM, err)
	case vm.Status != ovirt.VMDown:
		return errs.Text("keep session", r.ID, errs.Busy, "the VM "+r.VM+" is "+string(vm.Status)+", and may write").
			WithNext("Shut it down first. Or keep its disks as after a power cut, its writes held while they are read: --running.")
	}
	return nil
}
