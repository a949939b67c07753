// Package cbt backs up a VM through oVirt's backup API (changed block tracking): the engine starts a backup from our last
// checkpoint, each disk is read over an image transfer, and only what changed, or is not zeros, crosses the wire.
//
// Terms are oVirt's. A run is one backup of one VM. Our checkpoint is the one that the last restore point carries as a
// label; exactly one is kept on the engine for each VM.
//
// Invariants:
//
//  1. Whatever is made on the engine is in the Run record, durably, before it is asked for; the backup carries an ID of
//     ours. Recover, with a record found after a crash, leaves nothing behind, or completes what was committed.
//  2. The engine decides for each disk whether changes are known; what we asked for decides nothing. Where they are not,
//     the disk is read in full, in the same run, and the reason is told.
//  3. The old checkpoint is removed only after the new point is committed; the new one is removed if it is not.
//  4. Transfers are ended before the backup, and the backup is ended on every path, also after a cancellation.
//  5. An engine that does not answer is waited for (Options.Patience): it restarts now and then, and what has been read so
//     far is not given up for that. What an engine refuses is not asked again, but for locks that are soon gone.
//  6. Unchanged neighbours of a change come from the parent point in our store, never over the wire; zeros are never read.
//
// The package imports the store's words and the engine client's words, and declares what it calls. Source of the order
// of calls: facts about oVirt's backup API (engine 4.5), replayed in tests by the lab's engine.
package cbt

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/ovirt/imageio"
	"github.com/holdfast-backup/holdfast/chunkstore"
)

// Backups is what the engine client does for backups.
type Backups interface {
	StartBackup(ctx context.Context, vm ovirt.ID, s ovirt.BackupSpec) (ovirt.Backup, error)
	Backup(ctx context.Context, vm, backup ovirt.ID) (ovirt.Backup, error)
	BackupDisks(ctx context.Context, vm, backup ovirt.ID) ([]ovirt.BackupDisk, error)
	FinalizeBackup(ctx context.Context, vm, backup ovirt.ID) error
}

// Checkpoints is what it does for checkpoints.
type Checkpoints interface {
	Checkpoints(ctx context.Context, vm ovirt.ID) ([]ovirt.Checkpoint, error)
	RemoveCheckpoint(ctx context.Context, vm, checkpoint ovirt.ID) error
}

// Transfers is what it does for image transfers.
type Transfers interface {
	StartTransfer(ctx context.Context, s ovirt.TransferSpec) (ovirt.Transfer, error)
	Transfer(ctx context.Context, id ovirt.ID) (ovirt.Transfer, error)
	Transfers(ctx context.Context, backup ovirt.ID) ([]ovirt.Transfer, error)
	FinalizeTransfer(ctx context.Context, id ovirt.ID) error
	CancelTransfer(ctx context.Context, id ovirt.ID) error
}

// Engine is the engine client.
type Engine interface {
	Backups
	Checkpoints
	Transfers
	VM(ctx context.Context, id ovirt.ID) (ovirt.VM, error)
	VMConfig(ctx context.Context, id ovirt.ID) (string, error)
	Disks(ctx context.Context, vm ovirt.ID) ([]ovirt.Disk, error)
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

// Reporter is told how far a run is; a task's handle is one.
type Reporter interface {
	Step(name string)
	StepFailed() // the steps that follow undo what was begun
	Detail(text string)
	Note(text string)
	Progress(p appliance.Progress)
}

// Journal keeps Run records, durably on return.
type Journal interface {
	KeepRun(r Run) error
	ForgetRun(id string) error
}

// Run is what must be known after a crash. Its JSON is a stored format.
type Run struct {
	ID      string      `json:"id"`
	Task    string      `json:"task"`
	Manager string      `json:"manager"`
	VM      ovirt.ID    `json:"vm"`
	VMName  string      `json:"vm_name"`
	Began   time.Time   `json:"began"`
	Tries   []RunBackup `json:"tries"`         // backups that may exist on the engine, the last one being worked on
	Old     ovirt.ID    `json:"old,omitempty"` // our checkpoint of the parent point; to be removed once committed
}

// RunBackup is a backup that was asked for. Its transfers are found by its ID.
type RunBackup struct {
	ID    ovirt.ID   `json:"id"`
	Known []ovirt.ID `json:"known"` // checkpoints that existed before: any other that the backup made is ours to remove
	To    ovirt.ID   `json:"to,omitempty"`
}

// Options say what to back up and with what.
type Options struct {
	Engine  Engine
	Open    func(ctx context.Context, t ovirt.Transfer) (Image, error)
	Store   Store
	Journal Journal
	Report  Reporter
	Manager string
	VM      ovirt.VM
	RunID   string
	Task    string
	Full    bool          // read everything
	Poll    time.Duration // default 1 s
	// Patience is how long an engine may not answer before the run is given up; default 300 times Poll.
	Patience time.Duration
	Now      func() time.Time
	NewID    func() ovirt.ID // default: a random UUID
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
