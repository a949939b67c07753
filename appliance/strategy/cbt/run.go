package cbt

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/strategy"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// defaultPoll is the pause between two looks at the engine.
const defaultPoll = time.Second

// Deadlines for the engine's own work. They bound a hang; a healthy engine needs seconds to a few minutes.
const (
	lockedWithin  = 30 * time.Second // the lock that outlives a snapshot's merge needs a few
	readyWithin   = 20 * time.Minute
	finishWithin  = 20 * time.Minute // a hybrid backup's snapshot is merged meanwhile
	cleanupWithin = 25 * time.Minute
	// inactivity is how long the daemon waits for us between two reads.
	inactivity = time.Hour
)

// Backup runs one backup and returns the committed point.
func Backup(ctx context.Context, o Options) (*strategy.Result, error) {
	o.defaults()
	b := &backup{Options: o, wait: o.waiting(), run: Run{
		ID: o.RunID, Task: o.Task, Manager: o.Manager, VM: o.VM.ID, VMName: o.VM.Name, Began: o.Now().UTC(),
	}}
	res, err := b.all(ctx)
	if err != nil {
		return nil, strategy.Failed(o.VM.Name, err, b.clean(ctx, err))
	}
	return res, nil
}

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
	if o.NewID == nil {
		o.NewID = func() ovirt.ID { return ovirt.ID(uuid.NewString()) }
	}
}

func (o *Options) waiting() strategy.Following {
	return strategy.Following{Waiting: strategy.Waiting{Poll: o.Poll, Patience: o.Patience, Report: o.Report}, Engine: o.Engine}
}

// backup is one run at work.
type backup struct {
	Options
	run      Run
	wait     strategy.Following
	disks    []strategy.Disk
	parent   *chunkstore.Point // nil: everything is read
	reason   string            // why there is no parent, or not all is incremental
	config   appliance.PointConfig
	live     ovirt.Backup
	warnings []string
}

func (b *backup) all(ctx context.Context) (*strategy.Result, error) {
	b.Report.Step("check")
	if err := b.check(ctx); err != nil {
		return nil, err
	}
	if err := b.chooseParent(ctx); err != nil {
		return nil, err
	}
	b.Report.Step("start backup")
	if err := b.start(ctx); err != nil {
		return nil, err
	}
	b.Report.Step("read disks")
	res, x, err := b.read(ctx)
	if err != nil {
		return nil, err
	}
	defer x.Abort()
	b.Report.Step("finish backup")
	if err := b.finish(ctx, b.run.Tries[len(b.run.Tries)-1].ID); err != nil {
		return nil, err
	}
	b.Report.Step("commit")
	if err := res.Commit(ctx, x); err != nil {
		return nil, err
	}
	b.afterCommit(ctx)
	return res, nil
}

// check looks at the VM and its disks, and takes its configuration.
func (b *backup) check(ctx context.Context) error {
	vm, err := b.Engine.VM(ctx, b.VM.ID)
	if err != nil {
		return err
	}
	if err := strategy.Settled(vm); err != nil {
		return err
	}
	b.VM = vm
	disks, err := b.Engine.Disks(ctx, vm.ID)
	if err != nil {
		return err
	}
	if err := b.pickDisks(disks); err != nil {
		return err
	}
	ovf, err := b.Engine.VMConfig(ctx, vm.ID)
	if err != nil {
		return err
	}
	var warnings []string
	b.config, warnings = strategy.Config(vm, ovf)
	b.warnings = append(b.warnings, warnings...)
	return nil
}

// pickDisks sorts out what can be read. What cannot be backed up at all is told, loudly; what could be, after a change of
// a setting, is an error: a backup that quietly lacks a disk is none.
func (b *backup) pickDisks(all []ovirt.Disk) (err error) {
	if b.disks, b.warnings, err = strategy.Readable(b.VM, all, "oVirt's backup API"); err != nil {
		return err
	}
	var disabled []string
	for _, d := range b.disks {
		if !d.Tracked {
			disabled = append(disabled, d.Alias)
		}
	}
	if len(disabled) > 0 {
		return errs.Text("check disks", strings.Join(disabled, ", "), errs.Unsupported, "incremental backup is not enabled").
			WithNext("In the engine, edit each of these disks and tick \"Enable Incremental Backup\" (a raw disk has to become qcow2 first), then run the backup again; or run it with --strategy transfer.")
	}
	if len(b.disks) == 0 {
		return errs.Text("check disks", b.VM.Name, errs.Unsupported, "the VM has no disk that the backup API can read").
			WithNext("Attach a disk to it in the engine, or choose another VM; `holdfast vm show " + b.VM.Name + "` lists its disks.")
	}
	return nil
}

// chooseParent finds the point to build on: the VM's last one, if its checkpoint is still there and believed in.
func (b *backup) chooseParent(ctx context.Context) error {
	last, err := strategy.Last(ctx, b.Store, b.Manager, b.VM.ID)
	if err != nil {
		return err
	}
	checkpoint := ovirt.ID("")
	if last != nil {
		checkpoint = ovirt.ID(last.Labels[appliance.LabelCheckpoint])
		b.run.Snapshot = ovirt.ID(last.Labels[appliance.LabelSnapshot])
	}
	b.run.Old = checkpoint
	strategy.Number(b.disks, last)
	switch {
	case last == nil:
		b.reason = "it is the first backup of this VM"
	case b.Full:
		b.reason = "a full backup was asked for"
	case checkpoint == "":
		b.reason = "the last point has no checkpoint"
	default:
		list, err := b.Engine.Checkpoints(ctx, b.VM.ID)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(list, func(c ovirt.Checkpoint) bool { return c.ID == checkpoint })
		switch {
		case i < 0:
			b.reason = "the engine no longer has the last point's checkpoint (a snapshot was previewed, or somebody removed it)"
		case !list[i].Valid:
			b.reason = "the engine says that the last point's checkpoint is invalid"
		default:
			b.parent = last
		}
	}
	return nil
}

// start begins the backup; if the checkpoint turns out to be lost, a full one, once.
func (b *backup) start(ctx context.Context) error {
	err := b.try(ctx)
	if err == nil || b.parent == nil || !checkpointLost(err) {
		return err
	}
	b.Report.Note("The changes since the last point are not known (" + err.Error() + "): everything is read.")
	if err := b.undo(ctx, b.run.Tries[len(b.run.Tries)-1]); err != nil {
		return err
	}
	b.parent, b.reason = nil, "the changes since the last point were lost"
	return b.try(ctx)
}

// checkpointLost tells whether an incremental backup failed for a reason that a full one does not have. A backup that
// started and then failed is one: the engine does not say why.
func checkpointLost(err error) bool { return errs.Is(err, errs.Stale) }

func (b *backup) try(ctx context.Context) error {
	spec := ovirt.BackupSpec{ID: b.NewID(), Description: "Holdfast run " + b.run.ID}
	if b.parent != nil {
		spec.From = b.run.Old
	}
	for _, d := range b.disks {
		spec.Disks = append(spec.Disks, ovirt.ID(d.ID))
	}
	known, err := b.Engine.Checkpoints(ctx, b.VM.ID)
	if err != nil {
		return err
	}
	t := RunBackup{ID: spec.ID}
	for _, c := range known {
		t.Known = append(t.Known, c.ID)
	}
	b.run.Tries = append(b.run.Tries, t)
	if err := b.Journal.KeepRun(b.run); err != nil {
		return err
	}
	if err := b.ask(ctx, spec); err != nil {
		return err
	}
	if b.live, err = b.awaitReady(ctx, spec.ID); err != nil {
		return err
	}
	b.run.Tries[len(b.run.Tries)-1].To = b.live.ToCheckpoint
	if err := b.Journal.KeepRun(b.run); err != nil {
		return err
	}
	return b.modes(ctx)
}

// ask has the engine start a backup. A lock of the engine's own, as after the merge of a snapshot, is waited for: not for
// long, since somebody may wait for us.
func (b *backup) ask(ctx context.Context, spec ovirt.BackupSpec) error {
	var locked error
	err := b.wait.Until(ctx, lockedWithin, func() (bool, error) {
		_, err := b.Engine.StartBackup(ctx, b.VM.ID, spec)
		if locked = nil; errs.Is(err, errs.Busy) {
			locked = err
			b.Report.Detail("waiting for the engine's lock on the VM: " + err.Error())
			return false, nil
		}
		return err == nil, err
	})
	if err != nil && locked != nil && ctx.Err() == nil {
		return locked
	}
	return err
}

func (b *backup) awaitReady(ctx context.Context, id ovirt.ID) (ovirt.Backup, error) {
	var got ovirt.Backup
	err := b.wait.Until(ctx, readyWithin, func() (done bool, err error) {
		if got, err = b.Engine.Backup(ctx, b.VM.ID, id); err != nil {
			return false, err
		}
		b.Report.Detail("the engine's backup is " + string(got.Phase))
		return got.Phase == ovirt.BackupReady || over(got.Phase) || got.Phase == ovirt.BackupFinalizing, nil
	})
	if err == nil && got.Phase != ovirt.BackupReady {
		kind := errs.Transient
		if b.parent != nil {
			kind = errs.Stale
		}
		return got, errs.Text("start backup", string(id), kind, "the engine's backup ended before it was ready").
			WithNext("Look at the VM's events in the engine, then run the backup again.")
	}
	return got, err
}

// modes asks what each disk can deliver.
func (b *backup) modes(ctx context.Context) error {
	var list []ovirt.BackupDisk
	if err := b.wait.Patiently(ctx, func() (err error) {
		list, err = b.Engine.BackupDisks(ctx, b.VM.ID, b.live.ID)
		return err
	}); err != nil {
		return err
	}
	can := map[string]bool{}
	for _, d := range list {
		can[string(d.Disk)] = d.Incremental
	}
	for i := range b.disks {
		d := &b.disks[i]
		d.Incremental = b.parent != nil && can[d.ID] && d.Parent != nil
		d.Mode = "full"
		if d.Incremental {
			d.Mode = "incremental"
		} else if b.parent != nil {
			b.reason = "the engine does not know what changed on disk " + d.Alias
		}
	}
	if b.reason != "" {
		b.Report.Note("Full: " + b.reason + ".")
	}
	return nil
}

// begin starts the store's session with everything that is known before the first byte.
func (b *backup) begin() (*chunkstore.Session, error) {
	about := strategy.About{
		Strategy: appliance.StrategyCBT, Why: b.Why, Run: b.run.ID, Manager: b.Manager, VM: b.VM, Config: b.config,
		Disks: b.disks, Warnings: b.warnings, Reason: b.reason, Parent: b.parent,
	}
	labels := about.Labels()
	labels[appliance.LabelCheckpoint] = string(b.live.ToCheckpoint)
	config, err := about.Configuration(b.Report)
	if err != nil {
		return nil, err
	}
	when := b.live.Created
	if when.IsZero() {
		when = b.Now()
	}
	return b.Store.Begin(when, labels, config), nil
}
