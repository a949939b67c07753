package instant

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Deadlines for the engine's own work: they bound a hang.
const (
	attachWithin = 10 * time.Minute // an attach waits for locks on storage, about half a minute each
	vmWithin     = 10 * time.Minute
	moveWithin   = 48 * time.Hour // a large disk over a slow network
	undoWithin   = 30 * time.Minute
)

// worker carries one record through its states.
type worker struct {
	Options
	r      *Record
	report Reporter
}

func newWorker(o Options, r *Record, report Reporter) *worker {
	if o.Poll <= 0 {
		o.Poll = time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &worker{o, r, report}
}

// enter writes down which state comes next, before anything is done about it.
func (w *worker) enter(s appliance.SessionState) error {
	w.r.State = s
	if err := w.Journal.KeepSession(*w.r); err != nil {
		return err
	}
	if s != appliance.SessionFailed && s != appliance.SessionReleased { // nothing is done there any more
		w.report.Step(string(s))
	}
	return nil
}

// setup is a state and the work that leads out of it.
type setup struct {
	state appliance.SessionState
	do    func(*worker, context.Context) error
}

// setups are the states of setting up, in order. Each step looks before it asks, so that it can be repeated.
var setups = [...]setup{
	{appliance.SessionExport, (*worker).export},
	{appliance.SessionAttach, (*worker).attach},
	{appliance.SessionRegister, (*worker).register},
	{appliance.SessionCreate, (*worker).create},
	{appliance.SessionStart, (*worker).start},
}

// SetUp brings a session from wherever it is to running. If that fails it is taken apart, and the error says so; if the
// node ends meanwhile, the session stays as it is and goes on at the next start.
func SetUp(ctx context.Context, o Options, r *Record, report Reporter) error {
	w := newWorker(o, r, report)
	err := w.setUp(ctx)
	if err == nil {
		w.event(ctx, ovirt.EventNormal, fmt.Sprintf("Holdfast: VM %s runs from restore point %s (session %s).", r.VM, r.Point, r.ID))
		return nil
	}
	kind := errs.KindOf(err)
	if kind == errs.Invalid { // whoever asked was told of what made no sense: this is the engine's refusal
		kind = errs.Unsupported
	}
	err = errs.New("instant restore of", r.SourceVM, kind, err)
	if task.Ending(ctx) {
		return err
	}
	if kind == errs.Canceled && ctx.Err() != nil {
		err = task.Canceled("instant restore of", r.SourceVM)
	}
	r.Undoing, r.RemoveVM = true, true
	r.Problem = problem(err)
	w.report.StepFailed()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
	defer cancel()
	cleaned := undone
	if uerr := w.release(ctx); uerr != nil {
		cleaned = "NOT all of it (" + uerr.Error() + "); `holdfast session release " + r.ID + "` tries again, and so does the node at its next start"
		if r.Problem.Cleaned = cleaned; w.Journal.KeepSession(*r) != nil {
			w.report.Note("The session's record could not be written.")
		}
	}
	err = task.Cleaned(err, cleaned)
	w.event(ctx, ovirt.EventError, fmt.Sprintf("Holdfast: the instant restore of %s failed (session %s).", r.SourceVM, r.ID))
	return err
}

// undone is what can be said of a session that was taken apart.
const undone = "nothing of the session is left on the engine, and the restore point is unchanged"

func (w *worker) setUp(ctx context.Context) error {
	begun := w.r.State == appliance.SessionPrepare
	for _, s := range setups {
		if begun = begun || s.state == w.r.State; !begun {
			continue
		}
		if err := w.enter(s.state); err != nil {
			return err
		}
		if err := s.do(w, ctx); err != nil {
			return err
		}
	}
	return w.enter(appliance.SessionRunning)
}

func (w *worker) export(ctx context.Context) error { return w.Exporter.Open(ctx, *w.r) }

// attach makes the export a storage domain of the data center.
func (w *worker) attach(ctx context.Context) error {
	if err := w.connect(ctx); err != nil {
		return err
	}
	id := ovirt.ID(w.r.DomainID)
	d, err := w.Engine.FindDomain(ctx, id)
	if errs.Is(err, errs.NotFound) {
		w.report.Detail("the engine looks at the export")
		d, err = w.Engine.ImportDomain(ctx, ovirt.DomainSpec{Name: w.r.Domain, Connection: w.r.Connection, Host: w.r.Host})
		if err == nil && d.ID != id {
			// The host saw something else at our path: what the engine made of it is not ours to keep.
			_ = w.Engine.RemoveDomain(ctx, d.ID, w.r.Host)
			return errs.Text("import domain", w.r.Domain, errs.Transient, "the host did not see our export at "+w.r.Export).
				WithNext("Check that no other server answers there, then try again.")
		}
	}
	if err != nil {
		return err
	}
	if d, err = w.Engine.Domain(ctx, w.r.DataCenter, id); errs.Is(err, errs.NotFound) {
		w.report.Detail("attaching to the data center")
		if err := w.Engine.AttachDomain(ctx, w.r.DataCenter, id); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return w.awaitActive(ctx, id)
}

// connect has the engine know the export.
func (w *worker) connect(ctx context.Context) error {
	c, err := w.Engine.FindConnection(ctx, w.r.Address, w.r.Path)
	if errs.Is(err, errs.NotFound) {
		// Our port for everything: hosts then need no port mapper, and one hole in a firewall.
		opts := fmt.Sprintf("port=%d,mountport=%d,proto=tcp,mountproto=tcp", w.r.Port, w.r.Port)
		c, err = w.Engine.AddConnection(ctx, ovirt.Connection{Address: w.r.Address, Path: w.r.Path, MountOptions: opts})
	}
	if err != nil {
		return err
	}
	w.r.Connection = c.ID
	return w.Journal.KeepSession(*w.r)
}

func (w *worker) awaitActive(ctx context.Context, id ovirt.ID) error {
	asked := false
	return poll(ctx, w.Poll, attachWithin, "wait until the domain is active", func() (bool, error) {
		d, err := w.Engine.Domain(ctx, w.r.DataCenter, id)
		if err != nil {
			return false, err
		}
		w.report.Detail("the domain is " + string(d.Status))
		if (d.Status == ovirt.DomainMaintenance || d.Status == ovirt.DomainInactive) && !asked {
			asked = true
			return false, w.Engine.ActivateDomain(ctx, w.r.DataCenter, id)
		}
		return d.Status == ovirt.DomainActive, nil
	})
}

// register makes the disks on the domain the engine's.
func (w *worker) register(ctx context.Context) error {
	for i, v := range w.r.Volumes {
		id := ovirt.ID(v.Disk)
		w.report.Detail(fmt.Sprintf("disk %d of %d", i+1, len(w.r.Volumes)))
		if _, err := w.Engine.Disk(ctx, id); errs.Is(err, errs.NotFound) {
			if err := w.awaitUnregistered(ctx, id); err != nil {
				return err
			}
			if err := w.Engine.RegisterDisk(ctx, w.r.DataCenter, ovirt.ID(w.r.DomainID), id); err != nil && !errs.Is(err, errs.Busy) {
				return err
			}
		} else if err != nil {
			return err
		}
		d, err := w.awaitDisk(ctx, id)
		if err != nil {
			return err
		}
		// A registered disk comes without the setting; with it the VM's next backup is incremental. Raw cannot have it.
		if !d.Incremental && d.Format == ovirt.FormatCow {
			if err := w.Engine.SetIncremental(ctx, id); err != nil {
				return err
			}
			if _, err := w.awaitDisk(ctx, id); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *worker) awaitUnregistered(ctx context.Context, id ovirt.ID) error {
	return poll(ctx, w.Poll, attachWithin, "wait until the engine sees the disk", func() (bool, error) {
		list, err := w.Engine.UnregisteredDisks(ctx, ovirt.ID(w.r.DomainID))
		return slices.ContainsFunc(list, func(d ovirt.Disk) bool { return d.ID == id }), err
	})
}

func (w *worker) awaitDisk(ctx context.Context, id ovirt.ID) (d ovirt.Disk, err error) {
	err = poll(ctx, w.Poll, attachWithin, "wait for the disk", func() (bool, error) {
		d, err = w.Engine.Disk(ctx, id)
		if errs.Is(err, errs.NotFound) {
			return false, nil // registering takes effect a moment later
		}
		return err == nil && d.Status == ovirt.DiskOK, err
	})
	return d, err
}

// mark is what a session's VM carries in its description: it is how we know it again.
func (r *Record) mark() string { return "Holdfast session " + r.ID }

// create makes the VM and attaches the disks.
func (w *worker) create(ctx context.Context) error {
	vm, err := w.findOurs(ctx)
	if errs.Is(err, errs.NotFound) {
		vm, err = w.Engine.CreateVM(ctx, ovirt.NewVM{
			Name: w.r.VM, Cluster: w.r.Cluster, OVF: w.r.OVF, MemoryMiB: w.r.MemoryMiB, Description: w.r.mark(),
		})
	}
	if err != nil {
		return err
	}
	w.r.VMID = string(vm.ID)
	if err := w.Journal.KeepSession(*w.r); err != nil {
		return err
	}
	if err := poll(ctx, w.Poll, vmWithin, "wait for the VM", func() (bool, error) {
		vm, err = w.Engine.VM(ctx, vm.ID)
		return err == nil && vm.Status != "image_locked" && vm.Status != "unassigned", err
	}); err != nil {
		return err
	}
	for i, v := range w.r.Volumes {
		id := ovirt.ID(v.Disk)
		if slices.ContainsFunc(vm.Disks, func(a ovirt.Attachment) bool { return a.Disk == id }) {
			continue
		}
		a := ovirt.NewAttachment{Disk: id, Interface: w.r.Interfaces[i], Bootable: w.r.Bootable[i]}
		if err := retryBusy(ctx, w.Poll, vmWithin, func() error { return w.Engine.AttachDisk(ctx, vm.ID, a) }); err != nil {
			return err
		}
	}
	return nil
}

// findOurs finds the session's VM on the engine. A VM of that name that is not ours is errs.Exists.
func (w *worker) findOurs(ctx context.Context) (ovirt.VM, error) {
	if w.r.VMID != "" {
		return w.Engine.VM(ctx, ovirt.ID(w.r.VMID))
	}
	vm, err := w.Engine.FindVM(ctx, w.r.VM)
	if err == nil && vm.Description != w.r.mark() {
		return vm, errs.Text("create VM", w.r.VM, errs.Exists, "another VM has taken the name").WithNext("Start again with --name.")
	}
	return vm, err
}

// start starts the VM, if that was asked for, and waits until it runs.
func (w *worker) start(ctx context.Context) error {
	if !w.r.PowerOn {
		return nil
	}
	id := ovirt.ID(w.r.VMID)
	vm, err := w.Engine.VM(ctx, id)
	if err != nil {
		return err
	}
	if vm.Status == ovirt.VMDown {
		if err := retryBusy(ctx, w.Poll, vmWithin, func() error { return w.Engine.StartVM(ctx, id) }); err != nil {
			return err
		}
	}
	seen := false // the engine may show "down" for a moment after it took the order
	return poll(ctx, w.Poll, vmWithin, "wait until the VM runs", func() (bool, error) {
		vm, err := w.Engine.VM(ctx, id)
		if err != nil {
			return false, err
		}
		w.report.Detail("the VM is " + string(vm.Status))
		switch {
		case vm.Status == ovirt.VMUp || vm.Status == "powering_up":
			return true, nil
		case vm.Status == ovirt.VMDown && seen:
			return false, errs.Text("start VM", w.r.VM, errs.Transient, "it went down again at once").
				WithNext("See the VM's events in the engine: the host may not reach the export.")
		}
		seen = seen || vm.Status != ovirt.VMDown
		return false, nil
	})
}

// event tells the engine's log. That it cannot is no reason to fail.
func (w *worker) event(ctx context.Context, s ovirt.Severity, text string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	vm := ovirt.ID(w.r.VMID)
	if w.r.RemoveVM { // it is gone, or is going to be
		vm = ""
	}
	if err := w.Engine.PostEvent(ctx, ovirt.Event{Severity: s, Text: text, VM: vm}); err != nil {
		w.report.Note("The engine's event log could not be told: " + err.Error())
	}
}

// eager is how much shorter than usual the first pause of a poll is: many things are done at once.
const eager = 8

// poll calls f until it says so, with a pause between calls that grows to the usual one. What the engine refuses for a
// passing reason is asked again.
func poll(parent context.Context, pause, within time.Duration, what string, f func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(parent, within)
	defer cancel()
	for wait := pause / eager; ; wait = min(2*wait, pause) {
		done, err := f()
		if done || err != nil && !errs.KindOf(err).Retryable() {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			switch {
			case parent.Err() != nil:
				err = parent.Err()
			case err == nil:
				err = errs.Text("wait for the engine", "", errs.Transient, "it was not done within "+within.String()).
					WithNext("Look at the events and tasks in the engine.")
			}
			return errs.Wrap(what, "", err)
		}
	}
}

// retryBusy repeats what the engine refuses because something is locked.
func retryBusy(ctx context.Context, pause, within time.Duration, f func() error) error {
	return poll(ctx, pause, within, "wait for the engine's lock", func() (bool, error) {
		err := f()
		return err == nil, err
	})
}
