package restore

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// mark is what a restore's VM carries in its description until it is complete: it is how we know it again.
func (r *Record) mark() string { return "Holdfast restore " + r.ID }

// create makes the VM and gives it what it had.
func (w *worker) create(ctx context.Context) error {
	vm, err := w.makeVM(ctx)
	if err != nil {
		return err
	}
	if err := w.keep(func(r *Record) { r.VMID = string(vm.ID) }); err != nil {
		return err
	}
	if err := w.poll(ctx, vmWithin, "wait for the VM", func() (bool, error) {
		vm, err = w.Engine.VM(ctx, vm.ID)
		return err == nil && vm.Status == ovirt.VMDown, err
	}); err != nil {
		return err
	}
	for _, part := range []func(context.Context, ovirt.VM) error{w.attach, w.connect, w.tag, w.describe} {
		if err := part(ctx, vm); err != nil {
			return err
		}
	}
	return w.keep(func(r *Record) { r.Made = true })
}

// makeVM makes the VM, or finds the one that was made before.
func (w *worker) makeVM(ctx context.Context) (vm ovirt.VM, err error) {
	w.report.Detail("the engine makes the VM")
	err = w.patient(ctx, vmWithin, "make the VM", func() error {
		if vm, err = w.findOurs(ctx); !errs.Is(err, errs.NotFound) || w.r.VMID != "" {
			return err
		}
		vm, err = w.Engine.CreateVM(ctx, ovirt.NewVM{
			Name: w.r.VM, Cluster: w.r.ClusterID, OVF: w.r.OVF, MemoryMiB: w.r.MemoryMiB, Description: w.r.mark(),
		})
		return err
	})
	return vm, err
}

// findOurs finds the restore's VM on the engine. A VM of that name that is not ours is errs.Exists.
func (w *worker) findOurs(ctx context.Context) (ovirt.VM, error) {
	if w.r.VMID != "" {
		return w.Engine.VM(ctx, ovirt.ID(w.r.VMID))
	}
	vm, err := w.Engine.FindVM(ctx, w.r.VM)
	if err == nil && vm.Description != w.r.mark() {
		return vm, errs.Text("make the VM", w.r.VM, errs.Exists, "another VM has taken the name").WithNext("Start again with --name.")
	}
	return vm, err
}

// attach gives the VM its disks, in the order they had.
func (w *worker) attach(ctx context.Context, vm ovirt.VM) error {
	for i, d := range w.r.Disks {
		id := ovirt.ID(d.ID)
		if slices.ContainsFunc(vm.Disks, func(a ovirt.Attachment) bool { return a.Disk == id }) {
			continue
		}
		w.report.Detail(fmt.Sprintf("attaching disk %d of %d", i+1, len(w.r.Disks)))
		a := ovirt.NewAttachment{Disk: id, Interface: d.Interface, Bootable: d.Bootable}
		if err := w.patient(ctx, vmWithin, "attach the disk", func() error { return w.Engine.AttachDisk(ctx, vm.ID, a) }); err != nil {
			return err
		}
	}
	return nil
}

// connect puts the VM's NICs onto their networks.
func (w *worker) connect(ctx context.Context, vm ovirt.VM) error {
	if len(w.r.NICs) == 0 {
		return nil
	}
	w.report.Detail("connecting the VM's NICs")
	var have []ovirt.NIC
	if err := w.patient(ctx, vmWithin, "list the VM's NICs", func() (err error) {
		have, err = w.Engine.NICs(ctx, vm.ID)
		return err
	}); err != nil {
		return err
	}
	for i, want := range w.r.NICs {
		k := slices.IndexFunc(have, func(n ovirt.NIC) bool { return n.Name == want.Name })
		if k < 0 {
			w.report.Note("The engine made the VM without NIC " + want.Name + ": add it by hand.")
			continue
		}
		n := have[k]
		if n.Profile == w.r.Profiles[i] && (want.MAC == "" || strings.EqualFold(n.MAC, want.MAC)) {
			continue
		}
		change := ovirt.NIC{ID: n.ID, VM: vm.ID, Name: n.Name, MAC: want.MAC, Profile: w.r.Profiles[i]}
		put := func() error { return w.Engine.UpdateNIC(ctx, change) }
		err := w.patient(ctx, vmWithin, "connect the NIC", put)
		if errs.Is(err, errs.Exists) && change.MAC != "" { // somebody took the address meanwhile
			w.report.Note("NIC " + want.Name + " gets a new address: " + change.MAC + " is in use now.")
			change.MAC = ""
			err = w.patient(ctx, vmWithin, "connect the NIC", put)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tag gives the VM its tags. They are not in an OVF.
func (w *worker) tag(ctx context.Context, vm ovirt.VM) error {
	for _, name := range w.r.Tags {
		err := w.patient(ctx, vmWithin, "tag the VM", func() error { return w.Engine.TagVM(ctx, vm.ID, name) })
		if errs.Is(err, errs.NotFound) {
			w.report.Note("The engine has no tag " + name + " any more: the VM goes without it.")
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// describe gives the VM the description it had. From here on it is known by its ID alone.
func (w *worker) describe(ctx context.Context, vm ovirt.VM) error {
	return w.patient(ctx, vmWithin, "describe the VM", func() error { return w.Engine.DescribeVM(ctx, vm.ID, w.r.Description) })
}

// start starts the VM and waits until it runs.
func (w *worker) start(ctx context.Context) error {
	id := ovirt.ID(w.r.VMID)
	if err := w.patient(ctx, vmWithin, "start the VM", func() error { return w.Engine.StartVM(ctx, id) }); err != nil {
		return err
	}
	seen := false // the engine may show "down" for a moment after it took the order
	return w.poll(ctx, vmWithin, "wait until the VM runs", func() (bool, error) {
		vm, err := w.Engine.VM(ctx, id)
		if err != nil {
			return false, err
		}
		w.report.Detail("the VM is " + string(vm.Status))
		switch {
		case vm.Status == ovirt.VMUp || vm.Status == "powering_up":
			return true, nil
		case vm.Status == ovirt.VMDown && seen:
			return false, errs.Text("start the VM", w.r.VM, errs.Unsupported, "it went down again at once").WithNext("See the VM's events in the engine.")
		}
		seen = seen || vm.Status != ovirt.VMDown
		return false, nil
	})
}
