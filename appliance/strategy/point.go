package strategy

import (
	"context"
	"encoding/json"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// About is what is known of a point before its first byte is read.
type About struct {
	Strategy string
	Why      string // that strategy was chosen, or ""
	Run      string
	Manager  string
	VM       ovirt.VM
	Config   appliance.PointConfig // without disks and warnings
	Disks    []Disk
	Warnings []string
	Reason   string            // why not all of it is incremental, or ""
	Parent   *chunkstore.Point // nil: everything is read
}

// Labels are what the point is found by. A strategy adds what it keeps on the engine for the next one.
func (a About) Labels() map[string]string {
	l := map[string]string{
		appliance.LabelVM: a.VM.Name, appliance.LabelVMID: string(a.VM.ID), appliance.LabelManager: a.Manager,
		appliance.LabelStrategy: a.Strategy, appliance.LabelRun: a.Run,
		appliance.LabelSource: a.Manager + ", VM " + a.VM.Name, appliance.LabelConsistency: a.Config.Consistency,
		appliance.LabelMode: "incremental",
	}
	if a.Why != "" {
		l[appliance.LabelStrategyReason] = a.Why
	}
	if a.Reason != "" {
		l[appliance.LabelMode], l[appliance.LabelModeReason] = "full", a.Reason
	}
	if a.Parent != nil {
		l[appliance.LabelParent] = string(a.Parent.ID)
	}
	return l
}

// Configuration returns what the point carries of the VM, and tells the warnings in it.
func (a About) Configuration(report Reporter) ([]byte, error) {
	c := a.Config
	for _, d := range a.Disks {
		c.Disks = append(c.Disks, d.PointDisk)
	}
	c.Warnings = a.Warnings
	for _, w := range a.Warnings {
		report.Note(w)
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, errs.New("keep configuration", a.VM.Name, errs.Bug, err)
	}
	return raw, nil
}

// Commit commits the session's point and counts what it holds.
func (r *Result) Commit(ctx context.Context, x *chunkstore.Session) (err error) {
	if r.Point, err = x.Commit(ctx); err != nil {
		return err
	}
	r.Stats = x.Stats()
	for _, d := range r.Point.Disks {
		r.DataBytes += d.Root.Data
	}
	return nil
}

// Failed says that a run has failed for a reason, and what has come of it.
func Failed(vm string, reason, outcome error) error {
	kind := errs.KindOf(reason)
	if kind == errs.Invalid { // nobody asked for anything that makes no sense: this is the engine's refusal
		kind = errs.Unsupported
	}
	return errs.New("back up", vm, kind, outcome)
}
