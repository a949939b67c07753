// Package strategy holds what the strategies have in common: which disks of a VM can be read at all, which point they are
// compared with, how an engine is waited for, and how an image transfer is followed from its start to its end. Each
// strategy has a package of its own below; none knows another.
//
// Concurrency: nothing here has a state of its own but Source, which belongs to one run. The tests of cbt and transfer
// run all of it against engines that die, fall silent and refuse.
package strategy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/ovirt/imageio"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Reporter is told how far a run is; a task's handle is one.
type Reporter interface {
	Step(name string)
	StepFailed() // the steps that follow undo what was begun
	Detail(text string)
	Note(text string)
	Progress(p appliance.Progress)
}

// Image is an open image transfer.
type Image interface {
	// Size returns the disk's virtual size in bytes.
	Size() int64
	// Extents reports the whole image in order; dirty tells changes too.
	Extents(ctx context.Context, dirty bool, visit func(imageio.Extent) error) error
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// ReadBytes counts what came over the wire.
	ReadBytes() int64
	Close() error
}

// Store is what a run needs of the chunk store.
type Store interface {
	Points(ctx context.Context) ([]*chunkstore.Point, []error)
	Begin(when time.Time, labels map[string]string, config []byte) *chunkstore.Session
}

// Disk is a disk to be read.
type Disk struct {
	appliance.PointDisk
	Tracked     bool               // incremental backup is enabled for it
	Incremental bool               // only what changed is read
	Parent      *chunkstore.Parent // the last point's copy of it, if there is one
}

// Result says what a run did.
type Result struct {
	Point       *chunkstore.Point
	Incremental bool   // every disk was
	Reason      string // why not, if it was not
	ReadBytes   int64  // over the wire
	DirtyBytes  int64  // said to have changed, or to be data
	Stats       chunkstore.Stats
	DataBytes   int64 // of the point's disks that are not zeros
}

// Readable sorts out which of a VM's disks can be read, the boot disk first. What cannot be is told, loudly, in
// warnings; means is what cannot read it, for people. A disk that something else works on is errs.Busy.
func Readable(vm ovirt.VM, all []ovirt.Disk, means string) (disks []Disk, warnings []string, err error) {
	byID := map[ovirt.ID]ovirt.Disk{}
	for _, d := range all {
		byID[d.ID] = d
	}
	for _, a := range vm.Disks {
		d, ok := byID[a.Disk]
		switch {
		case !ok:
			continue
		case d.Storage != "" && d.Storage != "image":
			warnings = append(warnings, fmt.Sprintf("Disk %s is a %s disk: %s cannot read it. It is NOT in the backup.", d.Alias, d.Storage, means))
			continue
		case d.Shareable:
			warnings = append(warnings, fmt.Sprintf("Disk %s is shareable: %s cannot read it. It is NOT in the backup.", d.Alias, means))
			continue
		case !a.Active:
			warnings = append(warnings, fmt.Sprintf("Disk %s is not active. It is NOT in the backup.", d.Alias))
			continue
		case d.Status != ovirt.DiskOK:
			return nil, nil, errs.Text("check disk", d.Alias, errs.Busy, "it is "+string(d.Status)).
				WithNext("Something else works on the disk: run the backup again when it is done.")
		}
		disks = append(disks, Disk{Tracked: d.Incremental, PointDisk: appliance.PointDisk{
			Number: -1, ID: string(d.ID), Alias: d.Alias, Interface: a.Interface, Bootable: a.Bootable,
			Format: string(d.Format), SizeBytes: d.Provisioned,
		}})
	}
	slices.SortStableFunc(disks, func(x, y Disk) int {
		switch {
		case x.Bootable == y.Bootable:
			return 0
		case x.Bootable:
			return -1
		}
		return 1
	})
	return disks, warnings, nil
}

// Settled refuses a VM that cannot be backed up now, or ever.
func Settled(vm ovirt.VM) error {
	if vm.HostedHere {
		return errs.Text("check VM", vm.Name, errs.Unsupported, "it is the engine's own VM, which oVirt does not let be backed up this way").
			WithNext("Back the engine up with engine-backup.")
	}
	if vm.Status != ovirt.VMUp && vm.Status != ovirt.VMDown {
		return errs.Text("check VM", vm.Name, errs.Busy, "it is "+string(vm.Status)+", and has to be up or down").
			WithNext("Run the backup again when the VM has settled.")
	}
	return nil
}

// Config is what a point carries of a VM, before its disks are known, and what of it a restore cannot bring back.
func Config(vm ovirt.VM, ovf string) (c appliance.PointConfig, warnings []string) {
	if strings.Contains(ovf, "<TpmEnabled>true") || strings.Contains(ovf, "Q35_SECURE_BOOT") {
		warnings = append(warnings, "The VM has a TPM or secure boot: oVirt does not give out their state, so a restored VM begins with an empty one.")
	}
	return appliance.PointConfig{
		Version: 1, VMID: string(vm.ID), VMName: vm.Name, MemoryMiB: vm.MemoryMiB, Cluster: string(vm.Cluster), OVF: ovf,
		Tags: vm.Tags, Consistency: appliance.ConsistencyCrash,
	}, warnings
}

// Last returns a VM's last point, or nil.
func Last(ctx context.Context, s Store, manager string, vm ovirt.ID) (*chunkstore.Point, error) {
	points, bad := s.Points(ctx)
	if points == nil && len(bad) > 0 {
		return nil, bad[0]
	}
	var last *chunkstore.Point
	for _, p := range points {
		if p.Labels[appliance.LabelVMID] == string(vm) && p.Labels[appliance.LabelManager] == manager {
			last = p
		}
	}
	return last, nil
}

// Number gives each disk its number, the one it has in the last point or else the next free one, and its parent there:
// even a full read shares with the last point what is equal. It sorts them by it.
func Number(disks []Disk, last *chunkstore.Point) {
	have, next := map[string]int{}, 0
	if last != nil {
		if c, err := appliance.ParsePointConfig(last.Config); err == nil && c != nil {
			for _, d := range c.Disks {
				have[d.ID] = d.Number
			}
		}
		for _, d := range last.Disks {
			next = max(next, d.Number+1)
		}
	}
	for i := range disks {
		n, ok := have[disks[i].ID]
		if !ok {
			n = next
			next++
		}
		disks[i].Number = n
		if last == nil {
			continue
		}
		if d, err := last.Disk(n); err == nil {
			disks[i].Parent = &chunkstore.Parent{Point: last, Disk: d}
		}
	}
	slices.SortFunc(disks, func(x, y Disk) int { return x.Number - y.Number })
}
