package instant

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func prepare(t *testing.T, w *world, disks int, migrate bool) *Record {
	t.Helper()
	q := Request{Manager: "m", Point: point(disks), PowerOn: true}
	if migrate {
		q.MigrateTo = "production"
	}
	r, notes, err := Prepare(t.Context(), w.options(), q, "5e5510", 16)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(notes, "\n"), "host1") {
		t.Errorf("nobody was told which hosts must reach the node: %v", notes)
	}
	if err := w.KeepSession(*r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPrepareDrawsTheSessionUp(t *testing.T) {
	r := prepare(t, newWorld(t), 2, true)
	if r.VM != "web-restored-5e5510" || r.Cluster != "c" || r.Host != "h" || r.Target != "prod" || r.Export != "192.0.2.1:/sessions/5e5510" {
		t.Errorf("%+v", r)
	}
	if len(r.Volumes) != 2 || r.Volumes[0].Size != 12288 || r.Volumes[0].Format != "cow" || !r.Bootable[0] || r.Bootable[1] {
		t.Errorf("volumes %+v, bootable %v", r.Volumes, r.Bootable)
	}
	if r.Volumes[0].Disk == r.Volumes[1].Disk || r.Volumes[0].Image == r.Volumes[0].Disk {
		t.Error("IDs are not all different")
	}
}

func TestPrepareRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*world, *Request)
		kind  errs.Kind
	}{
		"name taken":      {func(_ *world, q *Request) { q.Name = "web" }, errs.Exists},
		"unknown cluster": {func(_ *world, q *Request) { q.Cluster = "nowhere" }, errs.NotFound},
		"unknown target":  {func(_ *world, q *Request) { q.MigrateTo = "nowhere" }, errs.NotFound},
		"no other domain": {func(w *world, _ *Request) { delete(w.domains, "prod") }, errs.Unsupported},
		"target too small": {func(w *world, q *Request) {
			w.domains["prod"].Available, q.MigrateTo = 5000, "production"
		}, errs.NoSpace},
		"broken configuration": {func(_ *world, q *Request) { q.Point.Config = []byte("{") }, errs.Corrupt},
	} {
		w := newWorld(t)
		q := Request{Manager: "m", Point: point(1)}
		c.spoil(w, &q)
		before := w.left()
		if _, _, err := Prepare(t.Context(), w.options(), q, "5e5510", 16); !errs.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
		if w.left() != before {
			t.Errorf("%s: left %s", name, w.left())
		}
	}
}

func TestWholeLife(t *testing.T) {
	w := newWorld(t)
	w.failMoves = 2
	r := prepare(t, w, 2, true)
	if err := SetUp(t.Context(), w.options(), r, w); err != nil {
		t.Fatal(err)
	}
	if r.State != appliance.SessionRunning || w.vms["vm-2"].Status != "up" || len(w.vms["vm-2"].Disks) != 2 {
		t.Fatalf("%s, %+v", r.State, w.vms["vm-2"])
	}
	if err := Release(t.Context(), w.options(), r, false, w); !errs.Is(err, errs.Busy) || errs.NextStep(err) == "" {
		t.Fatal("released under a running VM:", err)
	}
	if err := Migrate(t.Context(), w.options(), r, w); err != nil {
		t.Fatal(err)
	}
	if r.State != appliance.SessionMigrated || !r.Disks[0].Migrated || !r.Disks[1].Migrated {
		t.Fatalf("%+v", r)
	}
	if err := Release(t.Context(), w.options(), r, false, w); err != nil {
		t.Fatal(err)
	}
	if got, want := w.left(), "disk on prod, disk on prod, vm web-restored-5e5510"; got != want {
		t.Errorf("left: %s, want %s", got, want)
	}
	if r.State != appliance.SessionReleased {
		t.Error(r.State)
	}
}

func TestDiscard(t *testing.T) {
	w := newWorld(t)
	r := prepare(t, w, 2, false)
	if err := SetUp(t.Context(), w.options(), r, w); err != nil {
		t.Fatal(err)
	}
	if err := Release(t.Context(), w.options(), r, true, w); err != nil {
		t.Fatal(err)
	}
	if w.left() != "" || r.State != appliance.SessionReleased {
		t.Errorf("left: %s; %s", w.left(), r.State)
	}
}

// TestFailuresAreTakenApart has each kind of call fail for good while a session is set up.
func TestFailuresAreTakenApart(t *testing.T) {
	for _, call := range []string{"Open", "AddConnection", "ImportDomain", "AttachDomain", "UnregisteredDisks", "RegisterDisk", "SetIncremental", "CreateVM", "AttachDisk", "StartVM"} {
		w := newWorld(t)
		r := prepare(t, w, 2, false)
		w.failAt = call
		err := SetUp(t.Context(), w.options(), r, w)
		if !errs.Is(err, errs.Unsupported) || r.State != appliance.SessionFailed || r.Problem == nil {
			t.Errorf("%s fails: %v, state %s", call, err, r.State)
		}
		if w.left() != "" {
			t.Errorf("%s fails: left %s", call, w.left())
		}
	}
	w := newWorld(t)
	w.strange = true
	r := prepare(t, w, 1, false)
	if err := SetUp(t.Context(), w.options(), r, w); !errs.Is(err, errs.Transient) || w.left() != "" {
		t.Errorf("another domain at our path: %v, left %s", err, w.left())
	}
}

func TestFailedMoveKeepsServing(t *testing.T) {
	w := newWorld(t)
	w.failMoves = maxMoves
	r := prepare(t, w, 1, true)
	if err := SetUp(t.Context(), w.options(), r, w); err != nil {
		t.Fatal(err)
	}
	if err := Migrate(t.Context(), w.options(), r, w); !errs.Is(err, errs.Transient) {
		t.Fatal(err)
	}
	if r.State != appliance.SessionRunning || len(w.exported) != 1 {
		t.Fatalf("%s, exported %d", r.State, len(w.exported))
	}
	if err := Migrate(t.Context(), w.options(), r, w); err != nil || r.State != appliance.SessionMigrated {
		t.Fatal("again:", err, r.State)
	}
}

// TestDeathAtEveryCall kills the node at each call it makes in a session's life, before and after the call took effect,
// and lets the next start go on from the record.
func TestDeathAtEveryCall(t *testing.T) {
	for _, late := range []bool{false, true} {
		for n := 1; ; n++ {
			if !lifeWithDeath(t, n, late) {
				if n < 30 {
					t.Fatalf("a life took only %d calls", n)
				}
				break
			}
		}
	}
}

func lifeWithDeath(t *testing.T, n int, late bool) (died bool) {
	t.Helper()
	when := fmt.Sprintf("death at call %d (late %v)", n, late)
	w := newWorld(t)
	r := prepare(t, w, 2, true)
	w.calls, w.dieAt, w.dieLate = 0, n, late
	for round := range 3 {
		err := live(t, w, r)
		if err == nil {
			break
		}
		if !errors.Is(err, errDead) {
			t.Fatalf("%s: %v", when, err)
		}
		if round > 0 {
			t.Fatalf("%s: dead twice", when)
		}
		died, w.dieAt = true, 0
		again := w.records[r.ID]
		r = &again
		// A dying node finds that everything fails and begins to undo; a killed one does not. What counts is the record.
		if r.Undoing && r.State != appliance.SessionFailed {
			if err := Release(t.Context(), w.options(), r, true, w); err != nil {
				t.Fatalf("%s: undoing: %v", when, err)
			}
		}
		if r.State == appliance.SessionFailed {
			if w.left() != "" {
				t.Fatalf("%s: failed, and left %s", when, w.left())
			}
			return true
		}
	}
	if got, want := w.left(), "disk on prod, disk on prod, vm web-restored-5e5510"; got != want {
		t.Fatalf("%s: left %s, want %s", when, got, want)
	}
	return died
}

// live carries a session from its record to its release.
func live(t *testing.T, w *world, r *Record) error {
	for {
		switch r.State {
		case appliance.SessionReleased, appliance.SessionFailed:
			return nil
		case appliance.SessionRunning, appliance.SessionMigrating:
			if err := Migrate(t.Context(), w.options(), r, w); err != nil {
				return err
			}
		case appliance.SessionMigrated, appliance.SessionRelease:
			if err := Release(t.Context(), w.options(), r, r.RemoveVM, w); err != nil {
				return err
			}
		default:
			if err := SetUp(t.Context(), w.options(), r, w); err != nil {
				return err
			}
		}
	}
}
