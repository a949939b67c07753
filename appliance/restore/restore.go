// Package restore copies a VM of a restore point back to an engine: a full restore. Disks are made and filled through
// ovirt-imageio, then the VM is made of the configuration that the point carries and gets them. The original VM is never
// touched: a restore makes new disks and a new VM, always.
//
// Terms. A Record is what must be known of a restore after a crash; Prepare draws it up and changes nothing, so that it is
// also the preview. A Source is a disk of the point, a Target the image transfer of the disk that is made of it.
//
// Invariants:
//
//  1. A record says what is about to be asked for before it is asked for, and every step looks first: it can be repeated
//     after a crash at any point, whether the engine carried out the last request or not.
//  2. Objects are known by what we chose: disks have IDs of ours, the VM a description that names the restore until its ID
//     is written down. Nothing that is not ours is touched.
//  3. What fails is undone: transfers are cancelled, the VM and the disks removed, and it is tried again until nothing is
//     left. Only a restore that the node's end interrupts goes on instead.
//  4. A disk is uploaded into an image that was made for it and never had other content. An upload that breaks takes the
//     disk with it (the engine does so by itself), and begins again with a new one: three times, then the restore fails.
//  5. A disk counts as uploaded when its transfer was finalised well, the engine shows it as ok, and what was written was
//     seen to be there (verify.go).
//  6. Memory is bounded: a buffer for each connection, 4 for each of the 2 disks that are uploaded at once.
//
// Tested against the simulated engine with a daemon in memory, for every failure that the engine is known for; by the
// node with the real daemon, killed at every write of the journal; and by the lab's story with a real VM.
package restore

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/ovirt/imageio"
	"github.com/holdfast-backup/holdfast/chunkstore"
)

// Inventory is what the engine client knows of the engine's surroundings.
type Inventory interface {
	Clusters(ctx context.Context) ([]ovirt.Cluster, error)
	Domains(ctx context.Context, dc ovirt.ID) ([]ovirt.Domain, error)
	VNICProfiles(ctx context.Context) ([]ovirt.VNICProfile, error)
	AllNICs(ctx context.Context) ([]ovirt.NIC, error)
	FindVM(ctx context.Context, name string) (ovirt.VM, error)
	VM(ctx context.Context, id ovirt.ID) (ovirt.VM, error)
}

// Disks is what it does with disks and their transfers.
type Disks interface {
	CreateDisk(ctx context.Context, d ovirt.NewDisk) error
	Disk(ctx context.Context, id ovirt.ID) (ovirt.Disk, error)
	RemoveDisk(ctx context.Context, disk ovirt.ID) error
	StartTransfer(ctx context.Context, s ovirt.TransferSpec) (ovirt.Transfer, error)
	Transfer(ctx context.Context, id ovirt.ID) (ovirt.Transfer, error)
	DiskTransfers(ctx context.Context, disk ovirt.ID) ([]ovirt.Transfer, error)
	FinalizeTransfer(ctx context.Context, id ovirt.ID) error
	CancelTransfer(ctx context.Context, id ovirt.ID) error
}

// Machines is what it does with VMs.
type Machines interface {
	CreateVM(ctx context.Context, v ovirt.NewVM) (ovirt.VM, error)
	DescribeVM(ctx context.Context, vm ovirt.ID, text string) error
	AttachDisk(ctx context.Context, vm ovirt.ID, a ovirt.NewAttachment) error
	NICs(ctx context.Context, vm ovirt.ID) ([]ovirt.NIC, error)
	UpdateNIC(ctx context.Context, n ovirt.NIC) error
	TagVM(ctx context.Context, vm ovirt.ID, tag string) error
	StartVM(ctx context.Context, vm ovirt.ID) error
	StopVM(ctx context.Context, vm ovirt.ID) error
	RemoveVM(ctx context.Context, vm ovirt.ID, keepDisks bool) error
	PostEvent(ctx context.Context, e ovirt.Event) error
}

// Engine is the engine client.
type Engine interface {
	Inventory
	Disks
	Machines
}

// Source is a disk of the point. A chunkstore.Image is one.
type Source interface {
	Size() int64
	Extents(ctx context.Context, off, n int64, visit func(off, n int64, data bool) bool) error
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
}

var _ Source = (*chunkstore.Image)(nil)

// Target is an image transfer that is written. An imageio.Image is one.
type Target interface {
	Size() int64
	SlowPath() bool
	WriteAt(ctx context.Context, p []byte, off int64) error
	Zero(ctx context.Context, off, n int64) error
	Flush(ctx context.Context) error
	Extents(ctx context.Context, dirty bool, visit func(imageio.Extent) error) error
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	Close() error
}

var _ Target = (*imageio.Image)(nil)

// Journal keeps records, durably on return.
type Journal interface {
	KeepRestore(r Record) error
}

// Reporter is told how far the work is; a task's handle is one.
type Reporter interface {
	Step(name string)
	StepFailed() // the steps that follow undo what was begun
	Detail(text string)
	Note(text string)
	Progress(p appliance.Progress)
}

// Options are what restores work with.
type Options struct {
	Engine  Engine
	Journal Journal
	// Source opens a disk of a point, and keeps it from being collected as long as this process lives.
	Source func(ctx context.Context, point chunkstore.PointID, disk int) (Source, error)
	// Open connects to a transfer.
	Open     func(ctx context.Context, t ovirt.Transfer) (Target, error)
	Poll     time.Duration // between two looks at the engine; default 1 s
	Patience time.Duration // for an engine that does not answer; default 15 min
	Now      func() time.Time
}

// Record is all that must be known of a restore after a crash. Its JSON is a stored format.
type Record struct {
	appliance.Restore
	ClusterID   ovirt.ID   `json:"cluster_id"`
	MemoryMiB   int64      `json:"memory_mib"`
	OVF         string     `json:"ovf,omitempty"` // stripped of its disks
	Description string     `json:"description"`   // of the VM, when all is done
	Domains     []ovirt.ID `json:"domain_ids"`    // beside Disks
	Initial     []int64    `json:"initial_bytes"` // likewise; 0 where the engine decides
	Shareable   []bool     `json:"shareable"`     // likewise
	Profiles    []ovirt.ID `json:"profile_ids"`   // beside NICs
	Made        bool       `json:"made"`          // the VM is complete, and only has to be started
}

// Ended tells whether nothing is left to do, or to undo.
func (r *Record) Ended() bool {
	return r.State == appliance.RestoreDone || r.State == appliance.RestoreFailed
}

// The ways to see that what was written is there.
const (
	VerifyExtents = "extents" // the image has data where the point has, and zeros elsewhere
	VerifyFull    = "full"    // all of it is read back and compared
)

// The ways to choose the addresses of NICs.
const (
	MACAuto = "auto" // keep them if nobody has them, else new ones
	MACKeep = "keep"
	MACNew  = "new"
)

// Request asks for a restore.
type Request struct {
	Manager  string
	Point    *chunkstore.Point
	Name     string            // of the new VM; "" for the old name, with a suffix if it is taken
	Cluster  string            // name or ID; "" for the old one
	Domain   string            // name or ID of the storage domain; "" for where each disk was
	Disks    []int             // numbers; none for all
	Networks map[string]string // by network, profile or NIC of the point: the vNIC profile, or "" for none
	MAC      string            // MACAuto, MACKeep or MACNew; "" for MACAuto
	Verify   string            // VerifyExtents or VerifyFull; "" for VerifyExtents
	PowerOn  bool
}
