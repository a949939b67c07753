package node

import (
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/instant"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func TestPointsThatMayNotBeRemoved(t *testing.T) {
	n, _ := newNode(t)
	used, locked, free := keep(t, n.store, "used", noon, 0), keep(t, n.store, "locked", noon, 0), keep(t, n.store, "free", noon, 0)
	s := instant.Record{Session: appliance.Session{ID: "5e5510000000", State: appliance.SessionRunning, Point: string(used.ID)}}
	if err := n.KeepSession(s); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	p, err := n.LockPoint(t.Context(), api.LockSpec{Point: "locked@latest", Until: until, Reason: "audit"})
	if err != nil || p.Point != string(locked.ID) || p.LockedUntil == nil || !p.LockedUntil.Equal(until) {
		t.Fatalf("%+v, %v", p, err)
	}
	if _, err := n.RemovePoint(t.Context(), "used@latest"); !errs.Is(err, errs.Busy) || errs.NextStep(err) == "" {
		t.Error("a point that a VM runs from:", err)
	}
	if _, err := n.RemovePoint(t.Context(), string(locked.ID)); !errs.Is(err, errs.Denied) || errs.NextStep(err) == "" {
		t.Error("a point that is locked:", err)
	}
	if p, err := n.RemovePoint(t.Context(), "free@latest"); err != nil || p.Point != string(free.ID) || p.VM != "free" {
		t.Errorf("a point that is free: %+v, %v", p, err)
	}
	s.State = appliance.SessionReleased
	if err := n.KeepSession(s); err != nil {
		t.Fatal(err)
	}
	if _, err := n.RemovePoint(t.Context(), "used@latest"); err != nil {
		t.Error("after the session:", err)
	}
	left, bad := n.ListPoints(t.Context())
	if len(bad) > 0 || len(left) != 1 || left[0].Point != string(locked.ID) || left[0].LockedUntil == nil {
		t.Errorf("left: %+v, %v", left, bad)
	}
	i, err := n.GetStore(t.Context())
	if err != nil || i.Believed == nil || i.Doubtful || i.UUID != n.store.Superblock().UUID.String() {
		t.Errorf("%+v, %v", i, err)
	}
	if i, err = n.ConfirmClock(t.Context()); err != nil || i.Believed == nil {
		t.Errorf("confirmed: %+v, %v", i, err)
	}
}
