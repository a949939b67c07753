package engine

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	transferPoll    = 5 * time.Second // the real one looks every 10, and at what it finds in the next round
	transferEnd     = 2 * time.Second
	defaultIdle     = 60
	proxyPort       = "54323"
	ticketTries     = 10 // to withdraw a ticket that is in use
	illegalDiskTime = 5 * time.Second
)

func (e *Engine) showTransfer(t *transfer) *object {
	o := newObject("image_transfer").at(apiPath+"imagetransfers/"+t.id, t.id)
	o.set("active", flag(t.active)).set("direction", t.direction).set("format", t.format).set("inactivity_timeout", number(t.timeout))
	o.set("phase", t.phase)
	if !t.ended() && t.url != "" {
		proxy := t.url
		if u, err := url.Parse(t.url); err == nil {
			u.Host = e.opts.Name + ":" + proxyPort // no proxy runs there: a client that needs one is told so by the connection
			proxy = u.String()
		}
		o.set("proxy_url", proxy).set("shallow", flag(t.shallow)).set("timeout_policy", t.policy).set("transfer_url", t.url)
	} else {
		o.set("shallow", flag(t.shallow)).set("timeout_policy", t.policy)
	}
	o.set("transferred", number(t.transferred)).set("host", ref("hosts", e.state.host)).set("image", &object{id: t.disk})
	return o.actions("pause", "extend", "finalize", "resume", "cancel")
}

func (c *call) listTransfers() (*reply, error) {
	var rows []row
	for _, t := range c.e.state.transfers.all() {
		rows = append(rows, row{nil, func() *object { return c.e.showTransfer(t) }})
	}
	return c.collection("image_transfers", "image_transfer", rows)
}

func (c *call) getTransfer() (*reply, error) {
	t, found := c.e.state.transfers.get(c.vars["transfer"])
	if !found {
		return nil, notFound()
	}
	return ok(c.e.showTransfer(t))
}

func (c *call) addTransfer() (*reply, error) {
	x := c.body
	wanted := x.child("disk")
	if wanted == nil {
		wanted = x.child("image")
	}
	if wanted == nil && x.child("snapshot") == nil {
		return nil, &apiFault{status: http.StatusBadRequest, reason: "Input validation failed.",
			detail: "No matching signature found, make sure that mandatory attributes are provided."}
	}
	var volume DiskPlace
	if wanted == nil { // a snapshot's volume; an unknown one is answered like this
		volume = c.e.volume(x.child("snapshot").id)
		if volume.Disk == "" {
			return nil, generalFailure()
		}
		wanted = &element{id: volume.Disk}
	}
	d, found := c.e.state.disks.get(wanted.id)
	if !found {
		return nil, generalFailure()
	}
	t := &transfer{id: newID(), disk: d.id, direction: x.valueOr("direction", "upload"), format: x.valueOr("format", d.format),
		policy: x.valueOr("timeout_policy", "legacy"), phase: "initializing", timeout: defaultIdle, ticket: newID(), shallow: x.isTrue("shallow")}
	if n := x.int64("inactivity_timeout"); n > 0 {
		t.timeout = n
	}
	if b := x.child("backup"); b != nil {
		t.backup = strings.ToLower(b.id)
	}
	t.volume = volume.Image
	if err := c.canTransfer(t, d); err != nil {
		return nil, err
	}
	if t.backup == "" && t.volume == "" {
		d.status, d.hold = "locked", holdTransfer
	}
	c.e.state.transfers.put(t.id, t)
	t.job = c.newJob("Transferring Disk " + d.alias)
	v, _ := c.e.state.vmOf(d.id)
	c.e.event(evTransferBegun, "normal", about(c.correlation, v), "Image %s with disk %s was initiated by admin@internal-authz.", t.direction, d.alias)
	c.e.openTicket(c.e.ctx, t)
	return created(c.e.showTransfer(t))
}

func (c *call) canTransfer(t *transfer, d *disk) error {
	if t.backup != "" {
		b, found := c.e.state.backups.get(t.backup)
		switch {
		case !found, b.phase != "ready", b.stopping, b.modes[d.id] == "":
			return generalFailure()
		case t.format != "raw":
			return badRequest("Cannot transfer Virtual Disk. The specified format is not applicable for VM backup.")
		}
		return nil
	}
	if d.busy() {
		return lockedDisk("Cannot transfer Virtual Disk", d)
	}
	if t.volume != "" {
		return c.canTransferVolume(t, d)
	}
	if v, a := c.e.state.vmOf(d.id); v != nil && v.running() && a.active {
		return conflict("Cannot transfer Virtual Disk. The disk %s is plugged to non-Down VMs: %s", d.alias, v.name)
	}
	return nil
}

// canTransferVolume: a snapshot's volume can be read while the VM runs, by one transfer at a time (unrecorded).
func (c *call) canTransferVolume(t *transfer, d *disk) error {
	if t.direction != "download" {
		return badRequest("Cannot transfer Virtual Disk. Upload to a snapshot is not possible.")
	}
	if t.format != "raw" { // what a real engine can do besides, nobody here needs
		return badRequest("Cannot transfer Virtual Disk. The simulator gives out raw content only.")
	}
	if v, _ := c.e.state.vmOf(d.id); v == nil || c.e.busyVM(v) {
		return c.e.busyFault()
	}
	for _, o := range c.e.state.transfers.all() {
		if o.volume == t.volume && !o.ended() {
			return lockedDisk("Cannot transfer Virtual Disk", d)
		}
	}
	return nil
}

// volume finds a snapshot's volume.
func (e *Engine) volume(id string) DiskPlace {
	for _, v := range e.state.vms.all() {
		for _, s := range v.snapshots {
			for _, p := range s.volumes {
				if strings.EqualFold(p.Image, id) && s.status == "ok" {
					return p
				}
			}
		}
	}
	return DiskPlace{}
}

// openTicket makes a transfer's ticket; the caller holds the mutex, which is let go of meanwhile.
func (e *Engine) openTicket(ctx context.Context, t *transfer) {
	var address string
	var err error
	volume := e.volume(t.volume)
	e.outside(func() {
		if t.volume != "" {
			address, err = e.opts.Host.AddVolumeTicket(ctx, volume, t.shallow, t.ticket, int(t.timeout))
		} else {
			address, err = e.opts.Host.AddTicket(ctx, t.backup, t.disk, t.ticket, int(t.timeout))
		}
	})
	if err != nil {
		e.log.Warn("no ticket", "transfer", t.id, "err", err)
		e.transferOver(t, "finished_failure")
		return
	}
	if t.phase == "initializing" || t.phase == "resuming" {
		t.url, t.phase = address, "transferring"
		ticket := t.ticket
		e.background(func(ctx context.Context) { e.watchTransfer(ctx, t, ticket) })
	}
}

// watchTransfer looks after a running transfer: progress, silence, and the end that the engine decides on by itself.
func (e *Engine) watchTransfer(ctx context.Context, t *transfer, ticket string) {
	for e.wait(ctx, transferPoll) {
		idle, bytes, err := e.opts.Host.TicketIdle(ctx, ticket)
		var goOn bool
		e.locked(func() { goOn = t.phase == "transferring" && t.ticket == ticket && e.judge(t, idle, bytes, err) })
		if !goOn {
			return
		}
	}
}

// judge tells whether a transfer goes on.
func (e *Engine) judge(t *transfer, idle int, bytes int64, err error) bool {
	if err != nil {
		return true // a ticket that cannot be asked for is one that nobody extends: the client will see it
	}
	t.active = idle == 0
	t.transferred = bytes
	d, found := e.state.disks.get(t.disk)
	if found && t.direction == "download" && bytes >= d.size && idle > 0 {
		t.idlePolls++
		if t.idlePolls >= 2 {
			e.endTransfer(t, "finalizing_success", "finished_success")
			return false
		}
		return true
	}
	t.idlePolls = 0
	if int64(idle) <= t.timeout {
		return true
	}
	if t.policy == "pause" || t.policy == "legacy" && t.direction == "upload" {
		e.pauseBySystem(t)
		return false
	}
	t.phase = "cancelled_system"
	e.after(transferPoll, func() { e.endTransfer(t, "finalizing_failure", "finished_failure") })
	return false
}

// pauseBySystem stops a transfer until somebody resumes or cancels it.
func (e *Engine) pauseBySystem(t *transfer) {
	t.phase = "paused_system"
	e.withdraw(t.ticket)
}

// withdraw removes a ticket in the background.
func (e *Engine) withdraw(ticket string) {
	e.background(func(ctx context.Context) {
		if err := e.opts.Host.RemoveTicket(ctx, ticket); err != nil {
			e.log.Warn("ticket not removed", "err", err)
		}
	})
}

// endTransfer goes through the last phases: a ticket that is in use is asked for again until it is free.
func (e *Engine) endTransfer(t *transfer, through, end string) {
	if t.ended() || strings.HasPrefix(t.phase, "finalizing") {
		return
	}
	t.phase = through
	ticket := t.ticket
	e.background(func(ctx context.Context) {
		for range ticketTries {
			err := e.opts.Host.RemoveTicket(ctx, ticket)
			if err == nil {
				break
			}
			e.log.Warn("ticket not removed", "transfer", t.id, "err", err)
			if !e.wait(ctx, transferPoll) {
				return
			}
		}
		e.wait(ctx, transferEnd)
		e.locked(func() { e.transferOver(t, end) })
	})
}

// transferOver is the end. A failed or cancelled upload takes its disk with it.
func (e *Engine) transferOver(t *transfer, end string) {
	t.phase, t.active, t.url = end, false, ""
	success := end == "finished_success"
	d, found := e.state.disks.get(t.disk)
	if found && t.backup == "" && t.volume == "" {
		d.status, d.hold = "ok", ""
		if t.direction == "upload" && !success {
			d.status, d.hold = "illegal", holdWork
			e.after(illegalDiskTime, func() { e.deleteDisk(d, nil, diskRemoveTime) })
		}
	}
	var err error
	keep := e.opts.Keep
	code, severity := evTransferFinished, "normal"
	if !success {
		err, keep, code, severity = generalFailure(), 2*keep, evTransferFailed, "error"
	}
	e.endJob(t.job, err)
	e.event(code, severity, nil, "Image %s of disk %s ended: %s.", t.direction, t.disk, end)
	e.forget(keep, func() { e.state.transfers.remove(t.id) })
}

// An action on an unknown transfer is answered as if it had been done.

func (c *call) finalizeTransfer() (*reply, error) {
	if t, found := c.e.state.transfers.get(c.vars["transfer"]); found {
		c.e.endTransfer(t, "finalizing_success", "finished_success")
	}
	return complete()
}

func (c *call) cancelTransfer() (*reply, error) {
	t, found := c.e.state.transfers.get(c.vars["transfer"])
	if found && !t.ended() && !strings.HasPrefix(t.phase, "finalizing") {
		t.phase = "cancelled_user"
		c.e.after(transferEnd/4, func() { c.e.endTransfer(t, "finalizing_cleanup", "finished_cleanup") })
	}
	return complete()
}

func (c *call) extendTransfer() (*reply, error) { return complete() }

func (c *call) pauseTransfer() (*reply, error) {
	t, found := c.e.state.transfers.get(c.vars["transfer"])
	if found && t.direction == "download" {
		return nil, badRequest("Cannot pause image download as it's handled by the client. Note that it can be canceled if you wish to stop it.")
	}
	if found && t.phase == "transferring" {
		t.phase = "paused_user"
		c.e.withdraw(t.ticket)
	}
	return complete()
}

func (c *call) resumeTransfer() (*reply, error) {
	t, found := c.e.state.transfers.get(c.vars["transfer"])
	if !found {
		return complete()
	}
	if !strings.HasPrefix(t.phase, "paused") {
		return nil, conflict("Cannot resume image transfer as it's not in a paused state.")
	}
	t.phase, t.ticket = "resuming", newID()
	c.e.background(func(ctx context.Context) {
		if c.e.wait(ctx, transferEnd/4) {
			c.e.locked(func() { c.e.openTicket(ctx, t) })
		}
	})
	return complete()
}
