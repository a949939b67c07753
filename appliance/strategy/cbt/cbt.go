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

	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/strategy"
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
	strategy.Transfers
	StartTransfer(ctx context.Context, s ovirt.TransferSpec) (ovirt.Transfer, error)
	Transfers(ctx context.Context, backup ovirt.ID) ([]ovirt.Transfer, error)
}

// Engine is the engine client.
type Engine interface {
	Backups
	Checkpoints
	Transfers
	VM(ctx context.Context, id ovirt.ID) (ovirt.VM, error)
	VMConfig(ctx context.Context, id ovirt.ID) (string, error)
	Disks(ctx context.Context, vm ovirt.ID) ([]ovirt.Disk, error)
	Snapshots(ctx context.Context, vm ovirt.ID) ([]ovirt.Snapshot, error)
	RemoveSnapshot(ctx context.Context, vm, id ovirt.ID) error
}

// Image is an open image transfer.
type Image = strategy.Image

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
	// Snapshot was kept by a backup of another strategy for its next one, and is to be removed once committed.
	Snapshot ovirt.ID `json:"old_snapshot,omitempty"`
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
	Store   strategy.Store
	Journal Journal
	Report  strategy.Reporter
	Manager string
	VM      ovirt.VM
	RunID   string
	Task    string
	Why     string        // why this strategy, for the point; may be empty
	Full    bool          // read everything
	Poll    time.Duration // default 1 s
	// Patience is how long an engine may not answer before the run is given up; default 300 times Poll.
	Patience time.Duration
	Now      func() time.Time
	NewID    func() ovirt.ID // default: a random UUID
}
