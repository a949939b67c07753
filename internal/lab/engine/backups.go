package engine

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
)

// How long a backup takes to begin and to end. All are scaled.
const (
	scratchTime      = 4 * time.Second  // a live backup's scratch disks, a cold one's bitmaps
	freezeTime       = 15 * time.Second // until the host has begun it
	noticedAfter     = 2 * time.Second  // a hybrid backup still looks ready when it has been told to end
	classicEnd       = 4 * time.Second
	hybridMerge      = 12 * time.Second
	lockedAfterwards = 3 * time.Second // the merge's locks outlive the phase
)

func (e *Engine) showBackup(b *backup) *object {
	o := newObject("backup").at(apiPath+"vms/"+b.vm+"/backups/"+b.id, b.id).set("creation_date", b.created)
	o.setIf("from_checkpoint_id", b.from).set("modification_date", b.modified).set("phase", b.phase)
	if b.onHost || b.phase == "succeeded" { // before that the engine does not know whether it will be
		o.setIf("to_checkpoint_id", b.to)
	}
	if b.host != "" {
		o.set("host", ref("hosts", b.host))
	}
	if b.snapshot != "" {
		o.set("snapshot", &object{id: b.snapshot})
	}
	return o.set("vm", ref("vms", b.vm)).setIf("description", b.description).actions("finalize").link("disks")
}

// backupDisks shows disks as a backup has them: without addresses, with the mode that it really delivers.
func (e *Engine) backupDisks(b *backup) *list {
	all := &list{item: "disk"}
	for _, id := range b.disks {
		if d, found := e.state.disks.get(id); found {
			all.items = append(all.items, e.bareDisk(d).set("backup_mode", b.modes[id]))
		}
	}
	return all
}

func (e *Engine) bareDisk(d *disk) *object {
	o := &object{name: "disk", id: d.id}
	diskFields(o, d, d.incremental)
	o.set("total_size", "0").set("disk_profile", &object{id: d.domain})
	o.set("quota", (&object{id: quotaID}).set("data_center", &object{id: e.state.center}))
	o.set("storage_domains", newObject("").set("", &list{item: "storage_domain", items: []any{&object{id: d.domain}}}))
	return o.set("name", d.alias).set("description", d.description)
}

func (c *call) listBackups() (*reply, error) {
	all := &list{item: "backup"}
	for _, b := range c.e.state.backups.all() {
		if b.vm == c.vars["vm"] {
			all.items = append(all.items, c.e.showBackup(b))
		}
	}
	return ok(newObject("backups").set("", all))
}

func (c *call) backupOf() (*backup, error) {
	b, found := c.e.state.backups.get(c.vars["backup"])
	if !found || b.vm != c.vars["vm"] {
		return nil, notFound()
	}
	return b, nil
}

func (c *call) getBackup() (*reply, error) {
	b, err := c.backupOf()
	if err != nil {
		return nil, err
	}
	return ok(c.e.showBackup(b))
}

func (c *call) listBackupDisks() (*reply, error) {
	b, err := c.backupOf()
	if err != nil {
		return ok(newObject("disks"))
	}
	return ok(newObject("disks").set("", c.e.backupDisks(b)))
}

func (c *call) addBackup() (*reply, error) {
	v, found := c.e.state.vms.get(c.vars["vm"])
	if !found {
		return nil, noEntity(c.vars["vm"])
	}
	disks, err := c.wantedDisks(v)
	if err != nil {
		return nil, err
	}
	if err := c.canBackup(v, disks); err != nil {
		return nil, err
	}
	b := &backup{id: strings.ToLower(c.body.id), vm: v.id, description: c.body.value("description"), from: strings.ToLower(c.body.value("from_checkpoint_id")),
		to: newID(), created: now(), modified: now(), modes: map[string]string{}, correlation: c.correlation}
	if b.id == "" {
		b.id = newID()
	}
	b.hybrid = c.e.hybridByDefault() && !c.flag("legacy")
	for _, d := range disks {
		b.disks = append(b.disks, d.id)
		b.modes[d.id] = "full"
		d.status, d.hold = "locked", holdBackup
	}
	if !b.hybrid && !slices.ContainsFunc(disks, func(d *disk) bool { return d.format == "cow" }) {
		b.to = "" // nothing that could keep a bitmap
	}
	b.job = c.newJob("Backing up VM " + v.name)
	c.e.state.backups.put(b.id, b)
	c.e.event(evBackupBegun, "normal", about(c.correlation, v), "Backup %s for VM %s started (User: admin@internal-authz).", b.id, v.name)
	c.e.beginBackup(b, v, disks)
	return created(c.e.showBackup(b))
}

// wantedDisks resolves what a request wants backed up.
func (c *call) wantedDisks(v *vm) ([]*disk, error) {
	wanted := c.body.all("disks", "disk")
	if len(wanted) == 0 {
		return nil, mandatory("backup.disks")
	}
	var disks []*disk
	var unknown []string
	attached := true
	for _, x := range wanted {
		d, found := c.e.state.disks.get(x.id)
		if !found {
			unknown = append(unknown, x.id)
			continue
		}
		a := v.attachment(d.id)
		attached = attached && a != nil
		if a != nil && !a.active { // unrecorded text
			return nil, badRequest("Cannot backup VM. The following disks are not active: %s. Please activate them and try again.", d.alias)
		}
		disks = append(disks, d)
	}
	if len(unknown) > 0 {
		return nil, badRequest("Cannot backup VM. The following disk(s) ID(s) does not exist: %s.", strings.Join(unknown, ", "))
	}
	if !attached {
		return nil, generalFailure()
	}
	return disks, nil
}

func (c *call) canBackup(v *vm, disks []*disk) error {
	if v.status == "image_locked" || c.e.busyVM(v) {
		return c.e.busyFault()
	}
	for _, d := range disks {
		switch {
		case d.hold == holdBackup:
			return conflict("Cannot backup VM: Disk is locked. Please try again later.")
		case d.busy():
			return conflict("Cannot backup VM: The following disks are locked: %s. Please try again in a few minutes.", d.alias)
		}
	}
	if v.status != "up" && v.status != "down" {
		return conflict("Cannot backup VM. The Virtual Machine should be in Up or Down status.")
	}
	if c.e.state.runningBackup(v.id) != nil { // unrecorded text
		return conflict("Cannot backup VM. The VM is during a backup operation.")
	}
	if from := strings.ToLower(c.body.value("from_checkpoint_id")); from != "" {
		cp := v.checkpoint(from)
		if cp == nil {
			return badRequest("Cannot backup VM. Checkpoint ID %s doesn't exist.", from)
		}
		if cp.state == "invalid" { // unrecorded text
			return badRequest("Cannot backup VM. Checkpoint ID %s is invalid.", from)
		}
	}
	if _, taken := c.e.state.backups.get(c.body.id); taken && c.body.id != "" { // unrecorded text
		return badRequest("Cannot backup VM. Backup ID %s already exists.", c.body.id)
	}
	return nil
}

func (v *vm) checkpoint(id string) *checkpoint {
	for _, cp := range v.checkpoints {
		if cp.id == id {
			return cp
		}
	}
	return nil
}

// beginBackup sets a backup going in one of its three ways. The caller holds the mutex.
func (e *Engine) beginBackup(b *backup, v *vm, disks []*disk) {
	running := v.running()
	switch {
	case b.hybrid:
		b.phase = "starting"
		s := e.ownSnapshot(v, "Auto-generated for Backup VM", b.disks)
		s.byBackup = true
		b.snapshot = s.id
		v.locked = true
	case running:
		b.phase, b.host = "initializing", e.state.host
	default:
		b.phase, b.host = "initializing", nilID
	}
	places := make([]DiskPlace, len(disks))
	for i, d := range disks {
		places[i] = d.place()
	}
	lost := b.from != "" && e.trip(FaultLostCheckpoint)
	e.background(func(ctx context.Context) {
		if !b.hybrid {
			e.wait(ctx, scratchTime)
		}
		if !b.hybrid && running {
			e.locked(func() { e.phase(b, "starting") })
		}
		if running || b.hybrid {
			e.wait(ctx, freezeTime)
		}
		err := errors.New("Bitmap does not exist: " + b.from)
		var incremental map[string]bool
		if !lost {
			incremental, err = e.opts.Host.StartBackup(ctx, b.vm, b.id, b.from, b.to, places, b.hybrid)
		}
		e.locked(func() { e.backupBegun(b, v, disks, incremental, err) })
	})
}

// phase moves a backup on, unless it has ended meanwhile.
func (e *Engine) phase(b *backup, phase string) {
	if !b.ended() {
		b.phase, b.modified = phase, now()
	}
}

func (e *Engine) backupBegun(b *backup, v *vm, disks []*disk, incremental map[string]bool, err error) {
	if b.hybrid {
		v.locked = false
		for _, s := range v.snapshots {
			if s.id == b.snapshot {
				s.status = "ok"
			}
		}
	}
	b.onHost = err == nil
	if err != nil || b.ended() || b.stopping {
		e.failBackup(b, v, err)
		return
	}
	from := v.checkpoint(b.from)
	var kept []string
	for _, d := range disks {
		if b.hybrid {
			d.status = "ok" // still held
			d.leaf = newID()
		}
		if from != nil && incremental[d.id] && slices.Contains(from.disks, d.id) {
			b.modes[d.id] = "incremental"
		}
		d.mode = b.modes[d.id]
		if d.format == "cow" {
			kept = append(kept, d.id)
		}
	}
	if b.to != "" {
		cp := &checkpoint{id: b.to, state: "created", description: b.description, created: now(), disks: kept}
		if n := len(v.checkpoints); n > 0 {
			cp.parent = v.checkpoints[n-1].id
		}
		v.checkpoints = append(v.checkpoints, cp)
	}
	e.phase(b, "ready")
}

// failBackup ends a backup that did not come to be. A bitmap that is not there costs a live backup's VM its whole chain
// of checkpoints; a hybrid one's checkpoint becomes invalid (unrecorded).
func (e *Engine) failBackup(b *backup, v *vm, err error) {
	text := "it was told to end before it had begun"
	if err != nil {
		text = err.Error()
	}
	e.log.Warn("backup failed", "backup", b.id, "err", text)
	if strings.Contains(text, "Bitmap does not exist") {
		e.event(evFullBackupNeeded, "error", about(b.correlation, v), "Backup %s for VM %s failed: a full backup of the VM is needed "+
			"(User: admin@internal-authz).", b.id, v.name)
		if b.hybrid {
			if cp := v.checkpoint(b.from); cp != nil {
				cp.state = "invalid"
			}
		} else {
			v.checkpoints = nil
		}
	} else {
		e.event(evBackupFailed, "error", about(b.correlation, v), "Backup %s for VM %s failed: %s (User: admin@internal-authz).", b.id, v.name, text)
	}
	onHost := b.onHost
	e.background(func(ctx context.Context) {
		if onHost {
			if err := e.opts.Host.StopBackup(ctx, b.vm, b.id); err != nil {
				e.log.Warn("backup not stopped", "backup", b.id, "err", err)
			}
		}
		e.locked(func() { e.backupOver(b, v, "failed") })
	})
}

// backupOver lets go of all that a backup held.
func (e *Engine) backupOver(b *backup, v *vm, phase string) {
	if b.ended() {
		return
	}
	b.phase, b.modified = phase, now()
	for _, id := range b.disks {
		if d, found := e.state.disks.get(id); found && d.hold == holdBackup {
			d.status, d.hold = "ok", ""
		}
	}
	v.snapshots = slices.DeleteFunc(v.snapshots, func(s *snapshot) bool { return s.byBackup && s.id == b.snapshot })
	keep := e.opts.Keep
	var err error
	if phase == "failed" {
		keep, err = 2*keep, errors.New("failed")
	}
	e.endJob(b.job, err)
	e.forget(keep, func() { e.state.backups.remove(b.id) })
}

func (c *call) finalizeBackup() (*reply, error) {
	b, err := c.backupOf()
	if err != nil {
		return nil, err
	}
	v, found := c.e.state.vms.get(b.vm)
	switch {
	case !found:
		return nil, notFound()
	case b.ended():
		return nil, badRequest("vm '%s' backup '%s' is already in '%s' phase, no need to stop the backup again", b.vm, b.id, b.phase)
	case b.stopping:
		return nil, badRequest("vm '%s' backup '%s' is already stopped, no need to stop the backup again", b.vm, b.id)
	}
	for _, t := range c.e.state.transfers.all() {
		if t.backup == b.id && !t.ended() {
			return nil, conflict("Cannot stop VM backup. There is an active image transfer for VM backup")
		}
	}
	b.stopping = true
	c.e.event(evBackupFinalized, "normal", about(c.correlation, v), "Backup %s for VM %s stopped (User: admin@internal-authz).", b.id, v.name)
	if b.phase == "ready" { // otherwise backupBegun sees that it is to end
		c.e.endBackup(b, v)
	}
	return complete()
}

func (e *Engine) endBackup(b *backup, v *vm) {
	if !b.hybrid {
		e.phase(b, "finalizing")
	}
	e.background(func(ctx context.Context) {
		if b.hybrid {
			e.wait(ctx, noticedAfter)
			e.locked(func() {
				e.phase(b, "finalizing")
				v.locked = true
				for _, s := range v.snapshots {
					if s.id == b.snapshot {
						s.status = "locked"
					}
				}
			})
		}
		err := e.opts.Host.StopBackup(ctx, b.vm, b.id)
		if b.hybrid {
			e.wait(ctx, hybridMerge)
		} else {
			e.wait(ctx, classicEnd)
		}
		e.locked(func() { e.backupEnded(b, v, err) })
		if b.hybrid {
			e.wait(ctx, lockedAfterwards)
			e.locked(func() { v.locked = false })
		}
	})
}

func (e *Engine) backupEnded(b *backup, v *vm, err error) {
	if err != nil {
		e.event(10795, "error", about(b.correlation, v), "Failed to finalize backup %s for VM %s: %s", b.id, v.name, err)
		e.backupOver(b, v, "failed")
		return
	}
	if b.hybrid {
		for _, id := range b.disks {
			if d, found := e.state.disks.get(id); found {
				d.leaf = newID()
			}
		}
	}
	e.backupOver(b, v, "succeeded")
	e.event(evBackupSucceeded, "normal", about(b.correlation, v), "Backup %s for VM %s completed successfully (User: admin@internal-authz).", b.id, v.name)
}
