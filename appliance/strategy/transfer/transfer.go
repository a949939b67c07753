// Package transfer backs up a VM through a snapshot of its disks: the engine freezes their state in a snapshot, each disk
// is read over an image transfer of the snapshot's volume, and the snapshot is removed, or kept as what the next backup's
// changes are counted from. It works for disks that changed block tracking does not: raw ones, and those for which
// incremental backup is not enabled.
//
// Terms are oVirt's. A volume is one of the images that a disk consists of; each snapshot begins a new one. A layer is a
// volume above the kept snapshot's: what was written since that, and nothing else, is in the layers.
//
// Invariants:
//
//  1. Whatever is made on the engine is in the Run record, durably, before it is asked for. A snapshot is known by its
//     description, which has the run's ID, since its own ID is the engine's choice; a transfer by not having been there
//     before. Recover, with a record found after a crash, leaves nothing behind, or completes what was committed.
//  2. A disk's content is always read from the whole of the new snapshot. Layers only say where: so the worst that a wrong
//     answer about a layer could do is to miss a change, and what can make one wrong is excluded (see plan).
//  3. The old snapshot is removed only after the new point is committed; the new one is removed if it is not, or if
//     nothing is to be kept.
//  4. Only snapshots and transfers of our own are removed or ended: those of the record, and those that the last point
//     carries as labels.
//  5. An engine that does not answer is waited for (Options.Patience). What it refuses is not asked again, but for locks.
//
// Freezing the guest is the host's work: without memory it has the guest agent, where there is one, freeze the file
// systems before a snapshot, and thaws them whatever happens. The engine does not tell whether that worked, so that a
// point never claims it. We freeze nothing ourselves, and have nothing to thaw.
//
// Concurrency: one Backup or Recover at a time for a VM. The tests run it against an engine of the package's own that
// keeps volumes, at every call of which the node dies, and against the lab's real qemu and ovirt-imageio (appliance/node,
// internal/lab/scenario).
package transfer

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/strategy"
)

// Snapshots is what the engine client does for snapshots.
type Snapshots interface {
	AddSnapshot(ctx context.Context, vm ovirt.ID, s ovirt.SnapshotSpec) (ovirt.Snapshot, error)
	Snapshots(ctx context.Context, vm ovirt.ID) ([]ovirt.Snapshot, error)
	SnapshotDisks(ctx context.Context, vm, id ovirt.ID) ([]ovirt.SnapshotDisk, error)
	RemoveSnapshot(ctx context.Context, vm, id ovirt.ID) error
	Volumes(ctx context.Context, disk ovirt.ID) ([]ovirt.Volume, error)
}

// Transfers is what it does for image transfers.
type Transfers interface {
	strategy.Transfers
	StartTransfer(ctx context.Context, s ovirt.TransferSpec) (ovirt.Transfer, error)
	LiveTransfers(ctx context.Context) ([]ovirt.Transfer, error)
}

// Engine is the engine client.
type Engine interface {
	Snapshots
	Transfers
	Info(ctx context.Context) (ovirt.Info, error)
	VM(ctx context.Context, id ovirt.ID) (ovirt.VM, error)
	VMConfig(ctx context.Context, id ovirt.ID) (string, error)
	Disks(ctx context.Context, vm ovirt.ID) ([]ovirt.Disk, error)
	// RemoveCheckpoint is for what a backup by changed block tracking has left for a next one of its kind.
	RemoveCheckpoint(ctx context.Context, vm, checkpoint ovirt.ID) error
}

// Journal keeps Run records, durably on return.
type Journal interface {
	KeepRun(r Run) error
	ForgetRun(id string) error
}

// Run is what must be known after a crash. Its JSON is a stored format.
type Run struct {
	Strategy    string        `json:"strategy"` // "transfer"
	ID          string        `json:"id"`
	Task        string        `json:"task"`
	Manager     string        `json:"manager"`
	VM          ovirt.ID      `json:"vm"`
	VMName      string        `json:"vm_name"`
	Began       time.Time     `json:"began"`
	Description string        `json:"description"`              // of our snapshot, which nobody else's has
	Snapshot    ovirt.ID      `json:"snapshot,omitempty"`       // ours, once the engine has said which
	Keep        bool          `json:"keep"`                     // our snapshot stays when the point is committed
	Old         ovirt.ID      `json:"old_snapshot,omitempty"`   // kept by the last point; to be removed once committed
	Checkpoint  ovirt.ID      `json:"old_checkpoint,omitempty"` // likewise
	Transfers   []RunTransfer `json:"transfers,omitempty"`      // that were asked for
}

// RunTransfer is a transfer that was asked for.
type RunTransfer struct {
	Disk   ovirt.ID   `json:"disk"`
	Volume ovirt.ID   `json:"volume"`
	Known  []ovirt.ID `json:"known"`        // transfers that there were before: any other of the disk is ours
	ID     ovirt.ID   `json:"id,omitempty"` // once the engine has said it
}

// Options say what to back up and with what.
type Options struct {
	Engine   Engine
	Open     func(ctx context.Context, t ovirt.Transfer) (strategy.Image, error)
	Store    strategy.Store
	Journal  Journal
	Report   strategy.Reporter
	Manager  string
	VM       ovirt.VM
	RunID    string
	Task     string
	Why      string        // why this strategy, for the point; may be empty
	Full     bool          // read everything
	Keep     bool          // keep the snapshot, so that the next backup reads only what changes
	Poll     time.Duration // default 1 s
	Patience time.Duration // how long an engine may not answer; default 300 times Poll
	Now      func() time.Time
}

const defaultPoll = time.Second

func (o *Options) defaults() {
	if o.Poll <= 0 {
		o.Poll = defaultPoll
	}
	if o.Patience <= 0 {
		o.Patience = 300 * o.Poll
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

func (o *Options) waiting() strategy.Following {
	return strategy.Following{Waiting: strategy.Waiting{Poll: o.Poll, Patience: o.Patience, Report: o.Report}, Engine: o.Engine}
}
