package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// How long things take on a real engine, mostly because it looks at its hosts every few seconds. All are scaled.
const (
	startTime     = 15 * time.Second
	stopTime      = 3 * time.Second
	watchInterval = 3 * time.Second
	spaceRounds   = 10 // of them between two looks at the domains' space

	diskTime       = 9 * time.Second
	diskRemoveTime = 8 * time.Second
	snapshotTime   = 19 * time.Second
	mergeTime      = 40 * time.Second
)

// statusWords are a VM's states as messages say them.
var statusWords = map[string]string{
	"up": "Up", "down": "Down", "wait_for_launch": "Wait for Launch", "powering_up": "Powering up", "powering_down": "Powering down",
	"image_locked": "Image Locked", "paused": "Paused",
}

// actionVM finds the VM of an action; an unknown one makes the engine stumble.
func (c *call) actionVM(command string) (*vm, error) {
	v, found := c.e.state.vms.get(c.vars["vm"])
	if !found {
		return nil, &apiFault{status: 500, reason: "Operation Failed", detail: fmt.Sprintf("java.lang.NullPointerException: Cannot invoke "+
			`"org.ovirt.engine.core.common.businessentities.VM.getStatus()" because the return value of `+
			`"org.ovirt.engine.core.bll.%s.getVm()" is null`, command)}
	}
	return v, nil
}

// vmPart is the VM as an action's answer shows it: its actions and links, nothing of its state.
func (e *Engine) vmPart(v *vm) member {
	return member{"vm", newObject("vm").at(apiPath+"vms/"+v.id, v.id).actions(vmActions...).link(vmLinks...)}
}

func (c *call) startVM() (*reply, error) {
	v, err := c.actionVM("RunVmCommand")
	if err != nil {
		return nil, err
	}
	if err := c.canStart(v); err != nil {
		c.e.event(evRunFailed, "error", about(c.correlation, v), "Failed to run VM %s due to a failed validation: %s (User: admin@internal-authz).",
			v.name, asFault(err).detail)
		return nil, err
	}
	spec := VMSpec{ID: v.id, Name: v.name, MiB: v.memory / mib, VCPUs: v.sockets * v.cores * v.threads}
	// The first disk boots: those that may come first, in the order they were attached.
	for _, bootable := range []bool{true, false} {
		for _, a := range v.attachments {
			if d, _ := c.e.state.disks.get(a.disk); a.active && a.bootable == bootable {
				spec.Disks, spec.Ifaces = append(spec.Disks, d.place()), append(spec.Ifaces, a.iface)
			}
		}
	}
	j := c.newJob("Launching VM " + v.name)
	v.status, v.started, v.seen = "wait_for_launch", now(), false
	c.e.background(func(ctx context.Context) {
		began := time.Now()
		err := c.e.opts.Host.StartVM(ctx, spec)
		if err == nil {
			// What the host took is part of what a start takes.
			c.e.wait(ctx, max(0, startTime-c.e.unscaled(time.Since(began))))
		}
		c.e.locked(func() {
			c.e.endJob(j, err)
			if err != nil {
				v.status, v.stopped = "down", now()
				c.e.event(119, "error", about(c.correlation, v), "VM %s is down with error. Exit message: %s.", v.name, err)
				return
			}
			if v.status == "wait_for_launch" {
				v.status = "up"
				c.e.event(evVMStarted, "normal", about(c.correlation, v), "VM %s started on Host %s", v.name, c.e.opts.HostName)
			}
		})
	})
	return complete(c.e.jobRef(j), c.e.vmPart(v))
}

// unscaled turns time that really passed into recorded time.
func (e *Engine) unscaled(d time.Duration) time.Duration {
	return time.Duration(float64(d) / e.opts.Scale)
}

func (c *call) canStart(v *vm) error {
	if v.running() {
		return conflict("Cannot run VM because the VM is in %s status.", statusWords[v.status])
	}
	if v.status == "image_locked" || c.e.busyVM(v) {
		return c.e.busyFault()
	}
	if b := c.e.state.runningBackup(v.id); b != nil && !b.hybrid {
		return conflict("Cannot run VM. The VM is during a backup operation.")
	}
	var held []*disk
	for _, a := range v.attachments {
		d, _ := c.e.state.disks.get(a.disk)
		if d.status == "locked" {
			held = append(held, d)
		}
		if dom, _ := c.e.state.domains.get(d.domain); dom.status != "active" {
			return conflict("Cannot run VM. The relevant Storage Domain's status is %s.", domainWord(dom.status))
		}
	}
	if len(held) > 0 {
		return conflict("Cannot run VM: The following disks are locked: %s. Please try again in a few minutes.", aliases(held))
	}
	return nil
}

func (c *call) stopVM() (*reply, error) {
	return c.endVM("StopVmCommand", "stop", "Powering off VM ", c.e.opts.Host.StopVM)
}

func (c *call) shutdownVM() (*reply, error) {
	return c.endVM("ShutdownVmCommand", "shutdown", "Shutting down VM ", c.e.opts.Host.ShutdownVM)
}

func (c *call) endVM(command, verb, title string, end func(context.Context, string) error) (*reply, error) {
	v, err := c.actionVM(command)
	if err != nil {
		return nil, err
	}
	b := c.e.state.runningBackup(v.id)
	switch {
	case !v.running(): // unrecorded text
		return nil, conflict("Cannot %s VM. VM is not running.", verb)
	case b != nil && !b.hybrid:
		return nil, conflict("Cannot %s VM. The VM is during a backup operation.", verb)
	case b != nil && verb == "stop" || c.e.busyVM(v) && verb == "stop":
		return nil, locked()
	}
	j := c.newJob(title + v.name)
	before := v.status
	v.status = "powering_down"
	c.e.background(func(ctx context.Context) {
		err := end(ctx, v.id)
		c.e.wait(ctx, stopTime)
		c.e.locked(func() {
			c.e.endJob(j, err)
			if v.status != "powering_down" {
				return
			}
			if err != nil {
				v.status = before
				c.e.log.Warn("VM did not end", "vm", v.id, "err", err)
				return
			}
			c.e.vmIsDown(v, c.correlation)
		})
	})
	return complete(c.e.jobRef(j), c.e.vmPart(v))
}

func (e *Engine) vmIsDown(v *vm, correlation string) {
	v.status, v.stopped, v.seen = "down", now(), false
	e.event(evVMDown, "normal", about(correlation, v), "VM %s is down. Exit message: User shut down from within the guest", v.name)
}

// watchVMs notices VMs that ended by themselves: those the host has once shown running.
func (e *Engine) watchVMs(ctx context.Context) {
	for round := 0; e.wait(ctx, watchInterval); round++ {
		if round%spaceRounds == 0 {
			e.measureDomains(ctx)
		}
		running := e.opts.Host.RunningVMs()
		e.locked(func() {
			for _, v := range e.state.vms.all() {
				here := slices.ContainsFunc(running, func(id string) bool { return strings.EqualFold(id, v.id) })
				switch {
				case here:
					v.seen = true
				case v.seen && v.status == "up":
					e.vmIsDown(v, "")
				}
			}
		})
	}
}

// measureDomains asks the host for the space of the domains that are active. What it does not know stays as it was.
func (e *Engine) measureDomains(ctx context.Context) {
	var ids []string
	e.locked(func() {
		for _, d := range e.state.domains.all() {
			if d.status == "active" {
				ids = append(ids, d.id)
			}
		}
	})
	for _, id := range ids {
		available, used, err := e.opts.Host.DomainSpace(ctx, id)
		if err != nil {
			continue
		}
		e.locked(func() {
			if d, found := e.state.domains.get(id); found {
				d.available, d.used = available, used
			}
		})
	}
}

// removingVM deletes a VM's disks and then the VM.
func (e *Engine) removingVM(v *vm, disks []*disk, j *job) func(context.Context) {
	places := make([]DiskPlace, len(disks))
	for i, d := range disks {
		places[i] = d.place()
	}
	return func(ctx context.Context) {
		var failed error
		for _, p := range places {
			if err := e.opts.Host.RemoveDisk(ctx, p); err != nil {
				failed = err
				e.log.Warn("disk not removed", "disk", p.Disk, "err", err)
			}
		}
		e.wait(ctx, diskRemoveTime)
		e.locked(func() {
			for _, d := range disks {
				e.state.disks.remove(d.id)
			}
			e.state.vms.remove(v.id)
			e.endJob(j, failed)
		})
	}
}
