package engine

import (
	"context"
	"errors"
	"slices"
	"time"
)

// How a live move is seen: its own snapshot first, the place changes before the end, the merge comes last.
const (
	coldMoveTime = 20 * time.Second
	moveSnapshot = 19 * time.Second
	moveMerge    = 40 * time.Second
)

// deleteDisk removes a disk in the background. The caller has checked that nothing holds it.
func (e *Engine) deleteDisk(d *disk, j *job, takes time.Duration) {
	d.status, d.hold = "locked", holdWork
	place := d.place()
	e.background(func(ctx context.Context) {
		err := e.opts.Host.RemoveDisk(ctx, place)
		e.wait(ctx, takes)
		e.locked(func() {
			e.endJob(j, err)
			if err != nil {
				d.status, d.hold = "illegal", ""
				e.log.Warn("disk not removed", "disk", d.id, "err", err)
				return
			}
			e.dropDisk(d)
		})
	})
}

// dropDisk forgets a disk and its place in a VM.
func (e *Engine) dropDisk(d *disk) {
	if v, a := e.state.vmOf(d.id); v != nil {
		v.attachments = slices.DeleteFunc(v.attachments, func(other *attachment) bool { return other == a })
	}
	e.state.disks.remove(d.id)
}

func (c *call) moveDisk() (*reply, error) {
	d, found := c.e.state.disks.get(c.vars["disk"])
	if !found {
		return nil, notFound()
	}
	id, name := c.body.idOrName("storage_domain")
	target := c.e.findDomain(id, name)
	v, _ := c.e.state.vmOf(d.id)
	switch {
	case id == "" && name == "":
		return nil, incomplete("Action [storageDomain.id|name] required for move")
	case target == nil:
		return nil, noEntity(id + name)
	case c.e.trip(FaultMoveBusy):
		return nil, conflict("Cannot move Virtual Disk. The VM is performing an operation on a Snapshot. Please wait for the operation to " +
			"finish, and try again.")
	case d.busy():
		return nil, lockedDisk("Cannot move Virtual Disk", d)
	case target.id == d.domain:
		return nil, badRequest("Cannot move Virtual Disk. The source and target storage domains are the same.")
	case target.status != "active":
		return nil, conflict("Cannot move Virtual Disk. The relevant Storage Domain's status is %s.", domainWord(target.status))
	case v != nil && c.e.busyVM(v):
		return nil, c.e.busyFault()
	}
	d.status, d.hold = "locked", holdMove
	j := c.newJob("Moving Virtual Disk " + d.alias + " to " + target.name)
	c.e.event(evMoveBegun, "normal", about(c.correlation, v), "User admin@internal-authz moving disk %s to domain %s.", d.alias, target.name)
	live := v != nil && v.running()
	fails := c.e.trip(FaultMoveFails)
	from := d.place()
	c.e.background(func(ctx context.Context) { c.moving(ctx, moving{d, from, v, target, j, live, fails}) })
	part := newObject("disk").at(apiPath+"disks/"+d.id, d.id)
	part.actions("copy", "export", "move", "refreshlun", "convert", "sparsify", "reduce").link("disksnapshots", "permissions", "statistics")
	return complete(append([]member{{"disk", part}}, c.echo()...)...)
}

// moving is one move of a disk.
type moving struct {
	disk        *disk
	from        DiskPlace
	vm          *vm // nil for a floating disk
	target      *domain
	job         *job
	live, fails bool
}

// moving does the work: with a running VM it shows the engine's own snapshot, and locks the VM while it comes and goes.
func (c *call) moving(ctx context.Context, m moving) {
	e, d, v, target, j, live := c.e, m.disk, m.vm, m.target, m.job, m.live
	var own *snapshot
	if live {
		e.locked(func() {
			own = e.ownSnapshot(v, d.alias+" Auto-generated for Live Storage Migration", []string{d.id})
			v.locked = true
		})
		e.wait(ctx, moveSnapshot)
		e.locked(func() { own.status, v.locked = "ok", false })
	}
	vmID := ""
	if live {
		vmID = v.id
	}
	var place DiskPlace
	err := errors.New("the copy was ended by a simulated fault")
	if !m.fails {
		place, err = e.opts.Host.MoveDisk(ctx, vmID, m.from, target.id, func(done, total int64) {
			e.log.Debug("moving", "disk", d.id, "bytes", done, "of", total)
		})
	}
	e.locked(func() {
		if err == nil { // the place is true before the end: it proves nothing
			d.domain, d.image, d.format, d.leaf = place.Domain, place.Image, place.Format, ""
		}
	})
	if live {
		e.locked(func() { own.status, v.locked = "locked", true })
		e.wait(ctx, moveMerge)
	} else {
		e.wait(ctx, coldMoveTime)
	}
	e.locked(func() {
		if live {
			v.locked = false
			v.snapshots = slices.DeleteFunc(v.snapshots, func(s *snapshot) bool { return s == own })
		}
		d.status, d.hold = "ok", ""
		e.endJob(j, err)
		if err != nil {
			e.event(evMoveFailed, "error", about(c.correlation, v), "User admin@internal-authz have failed to move disk %s to domain %s.", d.alias, target.name)
			e.log.Warn("disk not moved", "disk", d.id, "err", err)
			return
		}
		e.event(evMoved, "normal", about(c.correlation, v), "User admin@internal-authz finished moving disk %s to domain %s.", d.alias, target.name)
	})
}
