package cbt

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
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
func Backup(ctx context.Context, o Options) (*Result, error) {
	o.defaults()
	b := &backup{Options: o, run: Run{
		ID: o.RunID, Task: o.Task, Manager: o.Manager, VM: o.VM.ID, VMName: o.VM.Name, Began: o.Now().UTC(),
	}}
	res, err := b.all(ctx)
	if err != nil {
		kind := errs.KindOf(err)
		if kind == errs.Invalid { // nobody asked for anything that makes no sense: this is the engine's refusal
			kind = errs.Unsupported
		}
		return nil, errs.New("back up", o.VM.Name, kind, b.clean(ctx, err))
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

// backup is one run at work.
type backup struct {
	Options
	run      Run
	disks    []disk
	parent   *chunkstore.Point // nil: everything is read
	reason   string            // why there is no parent, or not all is incremental
	config   appliance.PointConfig
	live     ovirt.Backup
	warnings []string
}

// disk is a disk to be read.
type disk struct {
	appliance.PointDisk
	incremental bool
	parent      *chunkstore.Parent
}

func (b *backup) all(ctx context.Context) (*Result, error) {
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
	if res.Point, err = x.Commit(ctx); err != nil {
		return nil, err
	}
	res.Stats = x.Stats()
	for _, d := range res.Point.Disks {
		res.DataBytes += d.Root.Data
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
	if vm.HostedHere {
		return errs.Text("check VM", vm.Name, errs.Unsupported, "it is the engine's own VM, which oVirt does not let be backed up this way").
			WithNext("Back the engine up with engine-backup.")
	}
	if vm.Status != ovirt.VMUp && vm.Status != ovirt.VMDown {
		return errs.Text("check VM", vm.Name, errs.Busy, "it is "+string(vm.Status)+", and has to be up or down").
			WithNext("Run the backup again when the VM has settled.")
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
	if strings.Contains(ovf, "<TpmEnabled>true") || strings.Contains(ovf, "Q35_SECURE_BOOT") {
		b.warnings = append(b.warnings, "The VM has a TPM or secure boot: oVirt does not give out their state, so a restored VM begins with an empty one.")
	}
	b.config = appliance.PointConfig{
		Version: 1, VMID: string(vm.ID), VMName: vm.Name, MemoryMiB: vm.MemoryMiB, Cluster: string(vm.Cluster), OVF: ovf,
		Tags: vm.Tags, Consistency: appliance.ConsistencyCrash,
	}
	return nil
}

// pickDisks sorts out what can be read. What cannot be backed up at all is told, loudly; what could be, after a change of
// a setting, is an error: a backup that quietly lacks a disk is none.
func (b *backup) pickDisks(all []ovirt.Disk) error {
	byID := map[ovirt.ID]ovirt.Disk{}
	for _, d := range all {
		byID[d.ID] = d
	}
	var disabled []string
	for _, a := range b.VM.Disks {
		d, ok := byID[a.Disk]
		switch {
		case !ok:
			continue
		case d.Storage != "" && d.Storage != "image":
			b.warnings = append(b.warnings, fmt.Sprintf("Disk %s is a %s disk: oVirt's backup API cannot read it. It is NOT in the backup.", d.Alias, d.Storage))
			continue
		case d.Shareable:
			b.warnings = append(b.warnings, fmt.Sprintf("Disk %s is shareable: oVirt's backup API cannot read it. It is NOT in the backup.", d.Alias))
			continue
		case !a.Active:
			b.warnings = append(b.warnings, fmt.Sprintf("Disk %s is not active. It is NOT in the backup.", d.Alias))
			continue
		case d.Status != ovirt.DiskOK:
			return errs.Text("check disk", d.Alias, errs.Busy, "it is "+string(d.Status)).
				WithNext("Something else works on the disk: run the backup again when it is done.")
		case !d.Incremental:
			disabled = append(disabled, d.Alias)
			continue
		}
		b.disks = append(b.disks, disk{PointDisk: appliance.PointDisk{
			Number: -1, ID: string(d.ID), Alias: d.Alias, Interface: a.Interface, Bootable: a.Bootable,
			Format: string(d.Format), SizeBytes: d.Provisioned,
		}})
	}
	if len(disabled) > 0 {
		return errs.Text("check disks", strings.Join(disabled, ", "), errs.Unsupported, "incremental backup is not enabled").
			WithNext("In the engine, edit each of these disks and tick \"Enable Incremental Backup\" (a raw disk has to become qcow2 first), then run the backup again.")
	}
	if len(b.disks) == 0 {
		return errs.Text("check disks", b.VM.Name, errs.Unsupported, "the VM has no disk that the backup API can read").
			WithNext("Attach a disk to it in the engine, or choose another VM; `holdfast vm show " + b.VM.Name + "` lists its disks.")
	}
	slices.SortStableFunc(b.disks, func(x, y disk) int { // the boot disk first
		switch {
		case x.Bootable == y.Bootable:
			return 0
		case x.Bootable:
			return -1
		}
		return 1
	})
	return nil
}

// chooseParent finds the point to build on: the VM's last one, if its checkpoint is still there and believed in.
func (b *backup) chooseParent(ctx context.Context) error {
	points, bad := b.Store.Points(ctx)
	if points == nil && len(bad) > 0 {
		return bad[0]
	}
	var last *chunkstore.Point
	for _, p := range points {
		if p.Labels[appliance.LabelVMID] == string(b.VM.ID) && p.Labels[appliance.LabelManager] == b.Manager {
			last = p
		}
	}
	checkpoint := ovirt.ID("")
	if last != nil {
		checkpoint = ovirt.ID(last.Labels[appliance.LabelCheckpoint])
	}
	b.run.Old = checkpoint
	b.number(last)
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
	// Even a full read shares with the last point what is equal: known chunks are recognised there first.
	for i := range b.disks {
		if last == nil {
			continue
		}
		if d, err := last.Disk(b.disks[i].Number); err == nil {
			b.disks[i].parent = &chunkstore.Parent{Point: last, Disk: d}
		}
	}
	return nil
}

// number gives each disk its number: the one it has in the last point, else the next free one.
func (b *backup) number(last *chunkstore.Point) {
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
	for i := range b.disks {
		n, ok := have[b.disks[i].ID]
		if !ok {
			n = next
			next++
		}
		b.disks[i].Number = n
	}
	slices.SortFunc(b.disks, func(x, y disk) int { return x.Number - y.Number })
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
	err := b.poll(ctx, lockedWithin, func() (bool, error) {
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
	err := b.poll(ctx, readyWithin, func() (done bool, err error) {
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
	if err := b.patient(ctx, func() (err error) {
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
		d.incremental = b.parent != nil && can[d.ID] && d.parent != nil
		d.Mode = "full"
		if d.incremental {
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

// labels are what the point is found by.
func (b *backup) labels() map[string]string {
	l := map[string]string{
		appliance.LabelVM: b.VM.Name, appliance.LabelVMID: string(b.VM.ID), appliance.LabelManager: b.Manager,
		appliance.LabelStrategy: appliance.StrategyCBT, appliance.LabelRun: b.run.ID,
		appliance.LabelSource: b.Manager + ", VM " + b.VM.Name, appliance.LabelConsistency: b.config.Consistency,
		appliance.LabelCheckpoint: string(b.live.ToCheckpoint), appliance.LabelMode: "incremental",
	}
	if b.reason != "" {
		l[appliance.LabelMode] = "full"
	}
	if b.parent != nil {
		l[appliance.LabelParent] = string(b.parent.ID)
	}
	return l
}

// begin starts the store's session with everything that is known before the first byte.
func (b *backup) begin() (*chunkstore.Session, error) {
	for _, d := range b.disks {
		b.config.Disks = append(b.config.Disks, d.PointDisk)
	}
	b.config.Warnings = b.warnings
	for _, w := range b.warnings {
		b.Report.Note(w)
	}
	raw, err := json.Marshal(b.config)
	if err != nil {
		return nil, errs.New("keep configuration", b.VM.Name, errs.Bug, err)
	}
	when := b.live.Created
	if when.IsZero() {
		when = b.Now()
	}
	return b.Store.Begin(when, b.labels(), raw), nil
}
