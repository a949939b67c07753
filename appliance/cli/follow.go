package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// justTask makes a task its own document.
func justTask(t appliance.Task) any { return t }

// begun prints a task that was started and is not waited for; doc is the JSON document.
func (a *app) begun(t appliance.Task, doc any) error {
	return a.print(doc, func(w io.Writer) {
		if t.Session != "" {
			fmt.Fprintf(w, "Session %s\n", t.Session)
		}
		fmt.Fprintf(w, "Task %s: %s has begun, and goes on by itself.\n", t.ID, taskName(t))
		fmt.Fprintf(w, "Watch it: %s\n", a.commandLine("task", "watch", t.ID))
	})
}

// await follows a task to its end, prints what came out, and makes an error of a task that did not succeed. The JSON
// document, which doc makes of the ended task, is printed in any case; the table, only of success.
func (a *app) await(ctx context.Context, s api.Service, t appliance.Task, doc func(appliance.Task) any) error {
	t, err := a.follow(ctx, s, t, nil)
	if err != nil {
		return err
	}
	switch {
	case a.output == "json":
		err = a.print(doc(t), nil)
	case t.State == appliance.TaskSucceeded:
		err = a.print(nil, func(w io.Writer) { a.summary(ctx, w, s, t) })
	}
	if err != nil {
		return err
	}
	return a.outcome(t)
}

// outcome makes an error of a task that has not succeeded. What was cleaned up is told before it.
func (a *app) outcome(t appliance.Task) error {
	if t.State == appliance.TaskSucceeded {
		return nil
	}
	show := "See what it did and what it left: " + a.commandLine("task", "show", t.ID)
	if t.Problem != nil && t.Problem.Cleaned != "" {
		a.note("Cleaned up: " + plain(t.Problem.Cleaned))
	}
	if t.State == appliance.TaskCanceled {
		return errs.Text("wait for task", t.ID, errs.Canceled, taskName(t)+" was canceled").WithNext(show)
	}
	p := t.Problem
	if p == nil {
		return errs.Text("wait for task", t.ID, errs.Bug, taskName(t)+" failed, and the node does not say why").
			WithNext("Look at the node's log (journalctl -u holdfastd), and please report this.")
	}
	next := p.Remedy
	if next == "" {
		next = nodeNexts[task.KindOfCode(p.Code)] + " " + show
	}
	return &errs.Error{Op: p.Title, Kind: task.KindOfCode(p.Code), Err: errors.New(p.Cause), Next: next}
}

// follow shows on stderr how far a task is until it has ended, and returns it. each, if it is not nil, is given every
// state instead. When ctx ends the task goes on, and the error says how to get back to it.
func (a *app) follow(
	ctx context.Context, s api.Service, t appliance.Task, each func(appliance.Task) error,
) (appliance.Task, error) {
	inner, cancel := context.WithCancel(ctx)
	states, ended := make(chan appliance.Task), make(chan error, 1)
	go func() {
		ended <- s.WatchTask(inner, t.ID, func(t appliance.Task) error {
			select {
			case states <- t:
				return nil
			case <-inner.Done():
				return inner.Err()
			}
		})
	}()
	v := &view{a: a, bar: a.progress()}
	tick := time.NewTicker(v.bar.every)
	var failed error
	for {
		select {
		case t = <-states:
			if each == nil {
				v.show(t)
			} else if failed == nil {
				if failed = each(t); failed != nil {
					cancel()
				}
			}
			continue
		case <-tick.C:
			if each == nil {
				v.show(t)
			}
			continue
		case err := <-ended:
			tick.Stop()
			cancel()
			v.bar.done()
			if failed != nil { // the reader of our output is gone
				return t, failed
			}
			return t, a.cameBack(ctx, t, err)
		}
	}
}

// cameBack makes an error of a watching that did not see the task's end.
func (a *app) cameBack(ctx context.Context, t appliance.Task, err error) error {
	const op = "watch task"
	watch := a.commandLine("task", "watch", t.ID)
	switch {
	case t.State != "" && t.State.Ended():
		return nil
	case ctx.Err() != nil:
		return errs.New(op, t.ID, errs.Canceled, errors.New("interrupted; the task goes on without this command")).
			WithNext("Watch it again: " + watch + "   End it: " + a.commandLine("task", "cancel", t.ID))
	case err != nil && t.State == "":
		return err // it was never seen: the node's own words are better
	case err == nil:
		err = errs.Text("listen to node", "", errs.Transient, "it stopped telling before the task had ended")
	}
	next := "The task does not need this command, it goes on while the node runs. Watch it again: " + watch
	if look := errs.NextStep(err); look != "" { // the node itself may be gone
		next = look + " " + next
	}
	return errs.New(op, t.ID, errs.KindOf(err), err).WithNext(next)
}

// view shows a task on stderr: a line for each note and for each step that has ended, and a changing one for the step
// that runs.
type view struct {
	a            *app
	bar          *progress
	steps, notes int // how many of them have been told
}

func (v *view) show(t appliance.Task) {
	for ; v.notes < len(t.Notes); v.notes++ {
		v.say("note: " + plain(t.Notes[v.notes]))
	}
	for ; v.steps < len(t.Steps) && t.Steps[v.steps].Ended != nil; v.steps++ {
		v.say(v.a.stepText(t, t.Steps[v.steps]))
	}
	if v.steps < len(t.Steps) && !t.State.Ended() {
		v.bar.show(func() string { return "  " + v.a.stepText(t, t.Steps[len(t.Steps)-1]) })
	}
}

// say prints a line that stays.
func (v *view) say(line string) {
	v.bar.done()
	v.a.note("  " + line)
}

// percent says how much of a step is done.
func percent(p *appliance.Progress) string {
	if p.TotalBytes <= 0 {
		return size(p.DoneBytes)
	}
	return fmt.Sprintf("%d %%", 100*min(p.DoneBytes, p.TotalBytes)/p.TotalBytes)
}

// progressText says how far a step is: bytes, rate and time left as far as they are known. The node's own clock is
// behind both, so that ours may be wrong.
func progressText(p *appliance.Progress) string {
	text := percent(p)
	if p.TotalBytes > 0 {
		text += fmt.Sprintf(", %s of %s", size(p.DoneBytes), size(p.TotalBytes))
	}
	if left := p.TotalBytes - p.DoneBytes; p.SecondsLeft > 0 && left > 0 {
		text += fmt.Sprintf(", %s/s, about %s left", size(int64(float64(left)/p.SecondsLeft)), rest(max(1, p.SecondsLeft)))
	}
	return text
}

// rest writes a length of time that still changes.
func rest(seconds float64) string {
	if seconds < 100 {
		return fmt.Sprintf("%.0f s", seconds)
	}
	return span(time.Duration(seconds * float64(time.Second)))
}
