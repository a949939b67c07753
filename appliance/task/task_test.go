package task

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/catalog"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func newRunner(t *testing.T, d disk.Disk) *Runner {
	t.Helper()
	c, err := catalog.Open(d, "/state")
	if err != nil {
		t.Fatal(err)
	}
	r := New(Options{Catalog: c})
	t.Cleanup(r.Close)
	return r
}

func TestLifeOfATask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := disk.NewCrash()
		r := newRunner(t, d)
		defer r.Close()
		started, err := r.Start(appliance.Task{Kind: appliance.TaskBackup, Subject: "web"}, func(ctx context.Context, h *Handle) (map[string]any, error) {
			h.Step("read")
			time.Sleep(4 * time.Second)
			h.Progress(appliance.Progress{DoneBytes: 10, TotalBytes: 30})
			time.Sleep(time.Second)
			h.Note("a note")
			h.Step("store")
			return map[string]any{"point": "p"}, nil
		})
		if err != nil || started.ID == "" || started.State != appliance.TaskRunning {
			t.Fatal(started, err)
		}
		var seen []string
		err = r.Watch(t.Context(), started.ID, func(s appliance.Task) error {
			line := fmt.Sprint(s.State, " ", len(s.Steps))
			if s.Progress != nil {
				line += fmt.Sprintf(" %d/%d %.0f s", s.Progress.DoneBytes, s.Progress.TotalBytes, s.Progress.SecondsLeft)
			}
			seen = append(seen, line)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		// States that pass in no time may be seen or not; the one that lasts, and the end, always are.
		lasting := slices.Index(seen, "running 1 10/30 8 s")
		if lasting < 0 || seen[len(seen)-1] != "succeeded 2" || !slices.IsSorted(seen) {
			t.Errorf("seen %v", seen)
		}
		end, err := r.Wait(t.Context(), started.ID)
		if err != nil || end.State != appliance.TaskSucceeded || end.Result["point"] != "p" || fmt.Sprint(end.Notes) != "[a note]" {
			t.Fatal(end, err)
		}
		for _, s := range end.Steps {
			if s.Ended == nil || s.Failed {
				t.Errorf("step %+v", s)
			}
		}
		if again := newRunner(t, d.Clone(0)); len(again.Interrupted()) != 0 {
			t.Error("an ended task is interrupted")
		} else if list, bad := again.List(); len(list) != 1 || len(bad) != 0 || list[0].Result["point"] != "p" {
			t.Error("after a power cut:", list, bad)
		}
	})
}

func TestFailuresCancelsAndPanics(t *testing.T) {
	r := newRunner(t, disk.NewCrash())
	run := func(f func(context.Context, *Handle) (map[string]any, error), then func(id string)) appliance.Task {
		s, err := r.Start(appliance.Task{Kind: appliance.TaskBackup}, f)
		if err != nil {
			t.Fatal(err)
		}
		if then != nil {
			then(s.ID)
		}
		end, err := r.Wait(t.Context(), s.ID)
		if err != nil {
			t.Fatal(err)
		}
		return end
	}
	failed := run(func(context.Context, *Handle) (map[string]any, error) {
		return nil, errs.Text("open engine", "e1", errs.Denied, "wrong password").WithNext("Mend it.")
	}, nil)
	if p := failed.Problem; failed.State != appliance.TaskFailed || p == nil || p.Code != "denied" || p.Title != "open engine e1" || p.Cause != "wrong password" || p.Remedy != "Mend it." {
		t.Errorf("%+v", failed.Problem)
	}
	cancelled := run(func(ctx context.Context, h *Handle) (map[string]any, error) {
		h.Step("wait")
		<-ctx.Done()
		return nil, errs.Wrap("wait", "", ctx.Err())
	}, func(id string) {
		if err := r.Cancel(id); err != nil {
			t.Error(err)
		}
	})
	if cancelled.State != appliance.TaskCanceled || !cancelled.Steps[0].Failed || cancelled.Problem.Cause != wasCanceled {
		t.Errorf("%+v", cancelled)
	}
	if err := r.Cancel(cancelled.ID); !errs.Is(err, errs.Stale) {
		t.Error("cancelling an ended task:", err)
	}
	if err := r.Cancel("nobody"); !errs.Is(err, errs.NotFound) {
		t.Error("cancelling no task:", err)
	}
	panicked := run(func(context.Context, *Handle) (map[string]any, error) { panic("ouch") }, nil)
	if panicked.State != appliance.TaskFailed || panicked.Problem.Code != "internal" {
		t.Errorf("%+v", panicked)
	}
}

// TestWhatFailedAndWhatWasUndone: the step that failed is shown as such, not the one that cleaned up after it.
func TestWhatFailedAndWhatWasUndone(t *testing.T) {
	r := newRunner(t, disk.NewCrash())
	started, err := r.Start(appliance.Task{Kind: appliance.TaskBackup}, func(_ context.Context, h *Handle) (map[string]any, error) {
		h.Step("begin")
		h.Step("read")
		h.StepFailed()
		h.Step("clean up")
		cause := errs.Text("read disk", "d", errs.Stale, "it is gone").WithNext("Try again.")
		return nil, errs.Wrap("back up", "web", Cleaned(cause, "nothing is left"))
	})
	if err != nil {
		t.Fatal(err)
	}
	end, err := r.Wait(t.Context(), started.ID)
	if err != nil {
		t.Fatal(err)
	}
	var failed []string
	for _, s := range end.Steps {
		if s.Failed {
			failed = append(failed, s.Name)
		}
		if s.Ended == nil {
			t.Errorf("step %s has no end", s.Name)
		}
	}
	if !slices.Equal(failed, []string{"read"}) {
		t.Errorf("failed steps: %v", failed)
	}
	want := appliance.Problem{Code: "stale", Title: "back up web", Cause: "read disk d: it is gone", Cleaned: "nothing is left", Remedy: "Try again."}
	if end.Problem == nil || *end.Problem != want {
		t.Errorf("problem %+v, want %+v", end.Problem, want)
	}
	outside := Cleaned(errs.Wrap("back up", "web", errs.Text("read disk", "d", errs.Stale, "it is gone").WithNext("Try again.")), "nothing is left")
	if p := ProblemOf(outside); *p != want {
		t.Errorf("problem %+v, want %+v", p, want)
	}
}

func TestInterruptedTasksAreSettled(t *testing.T) {
	d := disk.NewCrash()
	r := newRunner(t, d)
	began := make(chan struct{})
	s, err := r.Start(appliance.Task{Kind: appliance.TaskInstant}, func(ctx context.Context, h *Handle) (map[string]any, error) {
		h.Step("export")
		close(began)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	<-began
	after := newRunner(t, d.Clone(0))
	left := after.Interrupted()
	if len(left) != 1 || left[0].ID != s.ID || len(left[0].Steps) != 1 {
		t.Fatalf("%+v", left)
	}
	if err := after.Settle(left[0], appliance.TaskFailed, &appliance.Problem{Code: "canceled"}); err != nil {
		t.Fatal(err)
	}
	if got, err := after.Get(s.ID); err != nil || got.State != appliance.TaskFailed || !got.Steps[0].Failed || len(after.Interrupted()) != 0 {
		t.Fatalf("%+v %v", got, err)
	}
}

// TestANodeThatEndsLeavesItsTasksToTheNext: cancelled by the node's end, a task is not cancelled in the record.
func TestANodeThatEndsLeavesItsTasksToTheNext(t *testing.T) {
	d := disk.NewCrash()
	r := newRunner(t, d)
	s, err := r.Start(appliance.Task{Kind: appliance.TaskInstant}, func(ctx context.Context, h *Handle) (map[string]any, error) {
		h.Step("export")
		<-ctx.Done()
		if !Ending(ctx) {
			t.Error("the end of the node looks like somebody's wish")
		}
		return nil, ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if left := newRunner(t, d).Interrupted(); len(left) != 1 || left[0].ID != s.ID || left[0].State != appliance.TaskRunning {
		t.Errorf("left for the next start: %+v", left)
	}
	if Ending(t.Context()) {
		t.Error("nothing ends here")
	}
}

func TestManyWatchers(t *testing.T) {
	r := newRunner(t, disk.NewCrash())
	goOn := make(chan struct{})
	s, err := r.Start(appliance.Task{}, func(_ context.Context, h *Handle) (map[string]any, error) {
		<-goOn
		for i := range 1000 {
			h.Progress(appliance.Progress{DoneBytes: int64(i)})
		}
		return nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			last := appliance.TaskRunning
			if err := r.Watch(t.Context(), s.ID, func(s appliance.Task) error { last = s.State; return nil }); err != nil || last != appliance.TaskSucceeded {
				t.Error(last, err)
			}
		})
	}
	close(goOn)
	wg.Wait()
	if len(r.watch) != 0 {
		t.Error("watchers are left")
	}
	stop := errors.New("enough")
	if err := r.Watch(t.Context(), s.ID, func(appliance.Task) error { return stop }); err != stop {
		t.Error(err)
	}
}

func TestCodesAreTotalAndDistinct(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range errs.Kinds {
		c := Code(k)
		if c == "" || seen[c] || KindOfCode(c) != k {
			t.Errorf("%v has the code %q", k, c)
		}
		seen[c] = true
	}
	if KindOfCode("nonsense") != errs.Bug || ProblemOf(nil) != nil {
		t.Error("unknown things")
	}
}
