package node

import (
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// packBytes returns what the packs of a node's store take.
func packBytes(t *testing.T, s *chunkstore.Store) int64 {
	t.Helper()
	st, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.PackBytes
}

// TestStartCollect gives space back as a task, one at a time, that can be canceled while it waits for a backup.
func TestStartCollect(t *testing.T) {
	n, _ := newNode(t)
	gone := keep(t, n.store, "gone", noon, 0)
	if _, err := n.RemovePoint(t.Context(), string(gone.ID)); err != nil {
		t.Fatal(err)
	}
	full := packBytes(t, n.store)
	x := n.store.Begin(noon, nil, nil)
	waits := func(task appliance.Task) {
		t.Helper()
		err := n.WatchTask(t.Context(), task.ID, func(now appliance.Task) error {
			if k := len(now.Steps); now.State.Ended() || k > 0 && now.Steps[k-1].Name == "waiting for backups that run" {
				return errs.Text("watch", "", errs.Canceled, "seen")
			}
			return nil
		})
		if !errs.Is(err, errs.Canceled) {
			t.Fatal(err)
		}
	}
	first, err := n.StartCollect(t.Context(), api.CollectSpec{})
	if err != nil || first.Kind != appliance.TaskCollect {
		t.Fatalf("%+v, %v", first, err)
	}
	waits(first)
	if _, err := n.StartCollect(t.Context(), api.CollectSpec{DryRun: true}); !errs.Is(err, errs.Busy) || errs.NextStep(err) == "" {
		t.Error("a second one at the same time:", err)
	}
	if err := n.CancelTask(t.Context(), first.ID); err != nil {
		t.Error(err)
	}
	if ended, err := n.tasks.Wait(t.Context(), first.ID); err != nil || ended.State != appliance.TaskCanceled {
		t.Errorf("canceled: %+v, %v", ended, err)
	}
	if now := packBytes(t, n.store); now != full {
		t.Errorf("%d of %d bytes are left after that", now, full)
	}
	second, err := n.StartCollect(t.Context(), api.CollectSpec{})
	if err != nil {
		t.Fatal(err)
	}
	waits(second)
	x.Abort()
	ended, err := n.tasks.Wait(t.Context(), second.ID)
	if err != nil || ended.State != appliance.TaskSucceeded || ended.Result["freed_bytes"] != float64(full) || len(ended.Steps) != 5 {
		t.Errorf("%+v, %v; %d bytes were to be freed", ended, err, full)
	}
	if now := packBytes(t, n.store); now != 0 {
		t.Errorf("%d bytes are left", now)
	}
}

// TestCollectByItself: a node gives space back without being asked.
func TestCollectByItself(t *testing.T) {
	n, _ := newNode(t)
	gone := keep(t, n.store, "gone", noon, 0)
	if _, err := n.RemovePoint(t.Context(), string(gone.ID)); err != nil {
		t.Fatal(err)
	}
	n.o.CollectEvery = 50 * time.Millisecond
	n.wg.Go(func() { n.collectByItself(n.background) })
	for late := time.After(20 * time.Second); packBytes(t, n.store) > 0; {
		select {
		case <-late:
			t.Fatal("nothing was given back")
		case <-time.After(5 * time.Millisecond):
		}
	}
	list, err := n.ListTasks(t.Context())
	if err != nil || len(list) == 0 || list[0].Kind != appliance.TaskCollect {
		t.Errorf("%+v, %v", list, err)
	}
}
