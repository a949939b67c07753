package restore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// op is what errors say was being done.
const op = "restore VM"

// worker carries one record through its states.
type worker struct {
	Options
	report Reporter
	moved  []atomic.Int64 // of each disk, bytes of data that were uploaded
	mu     sync.Mutex     // guards r while several disks are worked on; held while it is written down
	r      *Record
}

func newWorker(o Options, r *Record, report Reporter) *worker {
	if o.Poll <= 0 {
		o.Poll = time.Second
	}
	if o.Patience <= 0 {
		o.Patience = 15 * time.Minute
	}
	return &worker{Options: o, r: r, report: report, moved: make([]atomic.Int64, len(r.Disks))}
}

// keep changes the record and writes it down.
func (w *worker) keep(change func(r *Record)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w.r)
	return w.Journal.KeepRestore(*w.r)
}

// enter writes down which state comes next, before anything is done about it.
func (w *worker) enter(s appliance.RestoreState) error {
	if err := w.keep(func(r *Record) { r.State = s }); err != nil {
		return err
	}
	if !w.r.Ended() { // nothing is done there any more
		w.report.Step(string(s))
	}
	return nil
}

// step is a state and the work that leads out of it.
type step struct {
	state appliance.RestoreState
	do    func(*worker, context.Context) error
}

// steps are the states of a restore that have work to do, in order. Each looks before it asks, so that it can be repeated.
var steps = [...]step{
	{appliance.RestoreUpload, (*worker).upload},
	{appliance.RestoreCreate, (*worker).create},
	{appliance.RestoreStart, (*worker).start},
}

// Run carries a restore from wherever it is to its end. If it fails everything is undone, and the error says so; if the
// node ends meanwhile, the restore stays as it is and goes on at the next start. A VM that is complete and could not be
// started is an error too, and stays.
func Run(ctx context.Context, o Options, r *Record, report Reporter) error {
	w := newWorker(o, r, report)
	if r.State == appliance.RestoreUndo {
		return w.undoAgain(ctx)
	}
	err := w.run(ctx)
	if err == nil {
		w.event(ctx, ovirt.EventNormal, fmt.Sprintf("Holdfast: VM %s was restored from restore point %s.", r.VM, r.Point))
		return nil
	}
	kind := errs.KindOf(err)
	if kind == errs.Invalid { // whoever asked was told of what made no sense: this is the engine's refusal
		kind = errs.Unsupported
	}
	err = errs.New(op, r.SourceVM, kind, err)
	if task.Ending(ctx) {
		return err
	}
	if kind == errs.Canceled && ctx.Err() != nil {
		err = task.Canceled(op, r.SourceVM)
	}
	report.StepFailed()
	if r.Made {
		return w.notStarted(ctx, err)
	}
	r.Problem = task.ProblemOf(err)
	return w.failed(ctx, err)
}

func (w *worker) run(ctx context.Context) error {
	begun := w.r.State == appliance.RestorePrepare
	for _, s := range steps {
		if begun = begun || s.state == w.r.State; !begun {
			continue
		}
		if s.state == appliance.RestoreStart && !w.r.PowerOn {
			continue
		}
		if err := w.enter(s.state); err != nil {
			return err
		}
		if err := s.do(w, ctx); err != nil {
			return err
		}
	}
	return w.keep(func(r *Record) { r.State, r.OVF = appliance.RestoreDone, "" }) // the point has the configuration
}

// notStarted ends a restore whose VM is all there, and down.
func (w *worker) notStarted(ctx context.Context, err error) error {
	err = task.Cleaned(err, "nothing was undone: the VM "+w.r.VM+" is restored whole, and only has to be started")
	kerr := w.keep(func(r *Record) { r.State, r.OVF, r.Problem = appliance.RestoreDone, "", task.ProblemOf(err) })
	w.event(ctx, ovirt.EventWarning, fmt.Sprintf("Holdfast: VM %s was restored, and could not be started.", w.r.VM))
	if kerr != nil {
		return errors.Join(err, kerr)
	}
	return err
}

// undone is what can be said of a restore that was taken apart.
const undone = "nothing of the restore is left on the engine, and the restore point is unchanged"

// failed takes everything apart after an error, and says with it how far that came.
func (w *worker) failed(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
	defer cancel()
	cleaned := undone
	if uerr := w.undo(ctx); uerr != nil {
		cleaned = "NOT all of it (" + uerr.Error() + "); the node tries again until nothing is left"
	}
	w.event(ctx, ovirt.EventError, fmt.Sprintf("Holdfast: the restore of %s failed.", w.r.SourceVM))
	return task.Cleaned(err, cleaned)
}

// undoAgain goes on with taking apart what failed before.
func (w *worker) undoAgain(ctx context.Context) error {
	p := w.r.Problem
	if p == nil { // it was written down with the state
		p = &appliance.Problem{Code: task.Code(errs.Bug), Cause: "the reason was not written down"}
	}
	err := errs.New(op, w.r.SourceVM, task.KindOfCode(p.Code), errors.New(p.Cause)).WithNext(p.Remedy)
	if uerr := w.undo(ctx); uerr != nil {
		return task.Cleaned(err, "NOT all of it ("+uerr.Error()+"); the node tries again until nothing is left")
	}
	return task.Cleaned(err, undone)
}

// event tells the engine's log. That it cannot is no reason to fail.
func (w *worker) event(ctx context.Context, s ovirt.Severity, text string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	vm := ovirt.ID(w.r.VMID)
	if w.r.State != appliance.RestoreDone { // it is gone, or is going to be
		vm = ""
	}
	if err := w.Engine.PostEvent(ctx, ovirt.Event{Severity: s, Text: text, VM: vm}); err != nil {
		w.report.Note("The engine's event log could not be told: " + err.Error())
	}
}
