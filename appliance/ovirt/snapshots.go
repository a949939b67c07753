package ovirt

import (
	"context"
	"encoding/xml"
	"slices"

	ovirtsdk "github.com/ovirt/go-ovirt"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

type xmlSnapshot struct {
	XMLName     xml.Name     `xml:"snapshot"`
	Description string       `xml:"description"`
	Memory      bool         `xml:"persist_memorystate"` // the engine's default is true
	Disks       []xmlOnlyRef `xml:"disk_attachments>disk_attachment"`
}

type xmlOnlyRef struct {
	Disk xmlRef `xml:"disk"`
}

// AddSnapshot takes a snapshot, and returns before it is there: its status is "locked" until then. Where a guest agent
// runs, the host has it freeze the guest's file systems for the moment, and thaws them whatever happens; the engine does
// not say whether that worked. If the answer is lost the snapshot may exist: Snapshots finds it by its description.
func (c *Client) AddSnapshot(ctx context.Context, vm ID, s SnapshotSpec) (Snapshot, error) {
	const op = "take snapshot of VM"
	if err := checkID(op, append([]ID{vm}, s.Disks...)...); err != nil {
		return Snapshot{}, err
	}
	if len(s.Disks) == 0 { // an empty list means all of them
		return Snapshot{}, errs.Text(op, string(vm), errs.Invalid, "no disk was named")
	}
	x := xmlSnapshot{Description: s.Description}
	for _, d := range s.Disks {
		x.Disks = append(x.Disks, xmlOnlyRef{*ref(d)})
	}
	got, err := readOne(ctx, c, post(op, string(vm), "/vms/"+string(vm)+"/snapshots", x), "snapshot", ovirtsdk.XMLSnapshotReadOne)
	if err != nil {
		return Snapshot{}, err
	}
	return snapshotWord(got), nil
}

// SnapshotDisks lists the disks of a snapshot, each with the volume that it ends with.
func (c *Client) SnapshotDisks(ctx context.Context, vm, id ID) ([]SnapshotDisk, error) {
	const op = "list disks of snapshot"
	if err := checkID(op, vm, id); err != nil {
		return nil, err
	}
	return readMany(ctx, c, get(op, string(id), "/vms/"+string(vm)+"/snapshots/"+string(id)+"/disks"), "disks", ovirtsdk.XMLDiskReadMany,
		func(d *ovirtsdk.Disk) SnapshotDisk { return SnapshotDisk{ID(or(d.Id())), ID(or(d.ImageId()))} })
}

// Volumes lists a disk's volumes, in no order, the one that is written to included.
func (c *Client) Volumes(ctx context.Context, disk ID) ([]Volume, error) {
	const op = "list volumes of disk"
	if err := checkID(op, disk); err != nil {
		return nil, err
	}
	return readMany(ctx, c, get(op, string(disk), "/disks/"+string(disk)+"/disksnapshots", "include_active", "true"), "disk_snapshots",
		ovirtsdk.XMLDiskSnapshotReadMany, volumeWord)
}

// Snapshot returns a VM's snapshot.
func (c *Client) Snapshot(ctx context.Context, vm, id ID) (Snapshot, error) {
	const op = "look at snapshot"
	if err := checkID(op, vm, id); err != nil {
		return Snapshot{}, err
	}
	all, err := c.Snapshots(ctx, vm)
	if err != nil {
		return Snapshot{}, err
	}
	i := slices.IndexFunc(all, func(s Snapshot) bool { return s.ID == id })
	if i < 0 {
		return Snapshot{}, errs.Text(op, string(id), errs.NotFound, "the VM has none of that ID")
	}
	return all[i], nil
}

// Snapshots lists a VM's snapshots.
func (c *Client) Snapshots(ctx context.Context, vm ID) ([]Snapshot, error) {
	const op = "list snapshots of VM"
	if err := checkID(op, vm); err != nil {
		return nil, err
	}
	list, err := readMany(ctx, c, get(op, string(vm), "/vms/"+string(vm)+"/snapshots"), "snapshots", ovirtsdk.XMLSnapshotReadMany, snapshotWord)
	return checked(ctx, c, vm, list, err)
}

// RemoveSnapshot has the engine merge a snapshot, and returns before it has; for a moment it still shows it as "ok".
func (c *Client) RemoveSnapshot(ctx context.Context, vm, id ID) error {
	const op = "remove snapshot"
	if err := checkID(op, vm, id); err != nil {
		return err
	}
	_, err := c.do(ctx, remove(op, string(id), "/vms/"+string(vm)+"/snapshots/"+string(id), "async", "true"))
	return err
}
