package transfer

import (
	"context"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/strategy"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Deadlines for the engine's own work. They bound a hang; a healthy engine needs seconds to a few minutes, but for a
// merge, which takes as long as it takes to write what a guest has written meanwhile.
const (
	lockedWithin   = 30 * time.Second
	snapshotWithin = 20 * time.Minute
	mergeWithin    = 2 * time.Hour
	cleanupWithin  = 3 * time.Hour
	// inactivity is how long the daemon waits for us between two reads.
	inactivity = time.Hour
)

// A snapshot's states; in preview is another.
const (
	snapshotOK     = "ok"
	snapshotLocked = "locked"
)

// Backup runs one backup and returns the committed point.
func Backup(ctx context.Context, o Options) (*strategy.Result, error) {
	o.defaults()
	b := &backup{Options: o, wait: o.waiting(), run: Run{
		Strategy: appliance.StrategyTransfer, ID: o.RunID, Task: o.Task, Manager: o.Manager, VM: o.VM.ID, VMName: o.VM.Name,
		Began: o.Now().UTC(), Description: "Holdfast run " + o.RunID, Keep: o.Keep,
	}}
	res, err := b.all(ctx)
	if err != nil {
		return nil, strategy.Failed(o.VM.Name, err, b.clean(ctx, err))
	}
	return res, nil
}

// backup is one run at work.
type backup struct {
	Options
	wait     strategy.Following
	run      Run
	asked    bool // for a snapshot: there may be something to be cleaned up
	disks    []strategy.Disk
	plans    map[string]plan   // by disk
	parent   *chunkstore.Point // nil: everything is read
	reason   string            // why there is no parent, or not all is incremental
	taken    time.Time         // when the snapshot was asked for
	config   appliance.PointConfig
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
	b.Report.Step("take snapshot")
	if err := b.takeSnapshot(ctx); err != nil {
		return nil, err
	}
	if err := b.plan(ctx); err != nil {
		return nil, err
	}
	b.Report.Step("read disks")
	res, x, err := b.read(ctx)
	if err != nil {
		return nil, err
	}
	defer x.Abort()
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
	all, err := b.Engine.Disks(ctx, vm.ID)
	if err != nil {
		return err
	}
	if b.disks, b.warnings, err = strategy.Readable(vm, all, "a snapshot"); err != nil {
		return err
	}
	if len(b.disks) == 0 {
		return errs.Text("check disks", vm.Name, errs.Unsupported, "the VM has no disk that a snapshot can be taken of").
			WithNext("Attach a disk to it in the engine, or choose another VM; `holdfast vm show " + vm.Name + "` lists its disks.")
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

// chooseParent finds the point to build on: the VM's last one, if it has kept its snapshot and that is still there.
func (b *backup) chooseParent(ctx context.Context) error {
	last, err := strategy.Last(ctx, b.Store, b.Manager, b.VM.ID)
	if err != nil {
		return err
	}
	if last != nil {
		b.run.Old = ovirt.ID(last.Labels[appliance.LabelSnapshot])
		b.run.Checkpoint = ovirt.ID(last.Labels[appliance.LabelCheckpoint])
	}
	strategy.Number(b.disks, last)
	switch {
	case last == nil:
		b.reason = "it is the first backup of this VM"
	case b.Full:
		b.reason = "a full backup was asked for"
	case b.run.Old == "":
		b.reason = "no snapshot was kept for the last point"
	default:
		if b.reason, err = b.untrusted(ctx); err == nil && b.reason == "" {
			b.parent = last
		}
	}
	return err
}

// untrusted says why the kept snapshot cannot be what changes are counted from, or "".
func (b *backup) untrusted(ctx context.Context) (string, error) {
	info, err := b.Engine.Info(ctx)
	if err != nil {
		return "", err
	}
	// What qemu's and imageio's versions of that time say of a layer does not tell ranges that a guest has zeroed from
	// those that it has not touched.
	if info.Major < 4 || info.Major == 4 && info.Minor < 5 {
		return "the engine is " + info.Version + ": only from 4.5 on can what a snapshot's layer holds be told for sure", nil
	}
	s, err := b.find(ctx, func(s ovirt.Snapshot) bool { return s.ID == b.run.Old })
	switch {
	case errs.Is(err, errs.NotFound):
		return "the engine no longer has the last point's snapshot (somebody removed it)", nil
	case err == nil && s.Status != snapshotOK:
		return "the last point's snapshot is " + s.Status + ", not " + snapshotOK, nil
	}
	return "", err
}

// find returns the first snapshot of the VM that is meant.
func (b *backup) find(ctx context.Context, meant func(ovirt.Snapshot) bool) (ovirt.Snapshot, error) {
	all, err := b.Engine.Snapshots(ctx, b.run.VM)
	if err != nil {
		return ovirt.Snapshot{}, err
	}
	if i := slices.IndexFunc(all, meant); i >= 0 {
		return all[i], nil
	}
	return ovirt.Snapshot{}, errs.Text("find snapshot of VM", b.run.VMName, errs.NotFound, "the engine does not have it")
}

// ours tells whether a snapshot is this run's.
func (b *backup) ours(s ovirt.Snapshot) bool {
	return s.ID == b.run.Snapshot && s.ID != "" || s.Description == b.run.Description
}

// takeSnapshot takes a snapshot of the disks that are read, and of no other, and waits until it is there.
func (b *backup) takeSnapshot(ctx context.Context) error {
	spec := ovirt.SnapshotSpec{Description: b.run.Description}
	for _, d := range b.disks {
		spec.Disks = append(spec.Disks, ovirt.ID(d.ID))
	}
	if err := b.Journal.KeepRun(b.run); err != nil {
		return err
	}
	b.asked = true
	if err := b.ask(ctx, spec); err != nil {
		return err
	}
	if err := b.Journal.KeepRun(b.run); err != nil {
		return err
	}
	return b.wait.Until(ctx, snapshotWithin, func() (bool, error) {
		s, err := b.find(ctx, b.ours)
		if errs.Is(err, errs.NotFound) {
			return false, errs.Text("take snapshot of VM", b.VM.Name, errs.Busy, "the engine began it and gave it up").
				WithNext("Look at the VM's events in the engine (a full storage domain is the usual cause), then run the backup again.")
		}
		if err == nil {
			b.Report.Detail("the snapshot is " + s.Status)
		}
		return err == nil && s.Status == snapshotOK, err
	})
}

// ask has the engine take the snapshot. If the answer is lost it looks first whether it is there before it asks again. A
// lock of the engine's own, as after the merge of another snapshot, is waited for: not for long.
func (b *backup) ask(ctx context.Context, spec ovirt.SnapshotSpec) error {
	var locked error
	lost := false
	err := b.wait.Until(ctx, lockedWithin, func() (bool, error) {
		if lost {
			switch s, err := b.find(ctx, b.ours); {
			case err == nil:
				b.run.Snapshot = s.ID
				return true, nil
			case !errs.Is(err, errs.NotFound):
				return false, err
			}
		}
		b.taken = b.Now().UTC()
		s, err := b.Engine.AddSnapshot(ctx, b.VM.ID, spec)
		lost = err != nil
		if locked = nil; errs.Is(err, errs.Busy) {
			locked = err
			b.Report.Detail("waiting for the engine's lock on the VM: " + err.Error())
			return false, nil
		}
		b.run.Snapshot = s.ID
		return err == nil, err
	})
	if err != nil && locked != nil && ctx.Err() == nil {
		return locked
	}
	return err
}

// begin starts the store's session with everything that is known before the first byte.
func (b *backup) begin() (*chunkstore.Session, error) {
	about := strategy.About{
		Strategy: appliance.StrategyTransfer, Why: b.Why, Run: b.run.ID, Manager: b.Manager, VM: b.VM, Config: b.config,
		Disks: b.disks, Warnings: b.warnings, Reason: b.reason, Parent: b.parent,
	}
	labels := about.Labels()
	if b.Keep {
		labels[appliance.LabelSnapshot] = string(b.run.Snapshot)
	}
	config, err := about.Configuration(b.Report)
	if err != nil {
		return nil, err
	}
	if b.reason != "" {
		b.Report.Note("Full: " + b.reason + ".")
	}
	return b.Store.Begin(b.taken, labels, config), nil
}
