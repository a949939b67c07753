package transfer

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
)

// rig is a store and a journal around an engine.
type rig struct {
	*engine
	store *chunkstore.Store
	runs  map[string]Run
	notes []string
	ids   int
}

func newRig(t *testing.T, sizes ...int) *rig {
	t.Helper()
	dir := t.TempDir() + "/s"
	made, err := chunkstore.Create(t.Context(), dir, []byte("p"), 10, chunkstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	k, _, err := keys.ParseKit(made.Kit)
	if err != nil {
		t.Fatal(err)
	}
	s, err := chunkstore.Open(t.Context(), dir, chunkstore.Options{Unlock: chunkstore.WithMaster(k)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	r := &rig{engine: newEngine(t, sizes...), store: s, runs: map[string]Run{}}
	// What is somebody else's stays: a snapshot of all disks, and a transfer of one.
	if _, err := r.AddSnapshot(t.Context(), "vm-1", ovirt.SnapshotSpec{Description: "foreign", Disks: r.order}); err != nil {
		t.Fatal(err)
	}
	r.snapshots[0].Status, r.snapshots[0].looks = "ok", 0
	r.transfers["foreign"] = &ovirt.Transfer{ID: "foreign", Phase: ovirt.TransferPausedSystem, Disk: "disk-0", Download: true}
	return r
}

func (r *rig) KeepRun(x Run) error {
	x.Transfers = slices.Clone(x.Transfers)
	r.runs[x.ID] = x
	return nil
}
func (r *rig) ForgetRun(id string) error { delete(r.runs, id); return nil }

func (r *rig) Step(string)                 {}
func (r *rig) StepFailed()                 {}
func (r *rig) Detail(string)               {}
func (r *rig) Note(s string)               { r.notes = append(r.notes, s) }
func (r *rig) Progress(appliance.Progress) {}

func (r *rig) options(keep bool) Options {
	r.ids++
	return Options{
		Engine: r.engine, Open: r.open, Store: r.store, Journal: r, Report: r, Manager: "m", VM: ovirt.VM{ID: r.vm.ID, Name: r.vm.Name},
		RunID: fmt.Sprint("run-", r.ids), Keep: keep, Poll: time.Microsecond, Why: "it was told to",
		Now: func() time.Time { return time.Unix(int64(1e9+r.ids*60), 0) },
	}
}

// content reads a disk of a point.
func (r *rig) content(p *chunkstore.Point, number int) []byte {
	r.t.Helper()
	img, err := r.store.Image(p, number)
	if err != nil {
		r.t.Fatal(err)
	}
	b := make([]byte, img.Size())
	if _, err := img.ReadAt(context.Background(), b, 0); err != nil {
		r.t.Fatal(err)
	}
	return b
}

// settled demands that nothing is left but what others made, and the snapshot that the last point has kept.
func (r *rig) settled(when string) {
	r.t.Helper()
	if len(r.runs) > 0 {
		r.t.Fatalf("%s: records %v", when, r.runs)
	}
	for id, t := range r.transfers {
		if t.Phase == ovirt.TransferTransferring {
			r.t.Fatalf("%s: transfer %s is left", when, id)
		}
	}
	points, _ := r.store.Points(context.Background())
	want := []ovirt.ID{}
	if n := len(points); n > 0 && points[n-1].Labels[appliance.LabelSnapshot] != "" {
		want = append(want, ovirt.ID(points[n-1].Labels[appliance.LabelSnapshot]))
	}
	have := []ovirt.ID{}
	foreign := false
	for _, s := range r.snapshots {
		if s.Description == "foreign" {
			foreign = true
		} else if s.Description != "another" {
			have = append(have, s.ID)
		}
	}
	if fmt.Sprint(have) != fmt.Sprint(want) || !foreign {
		r.t.Fatalf("%s: snapshots %v, want %v; the foreign one is there: %v", when, have, want, foreign)
	}
}
