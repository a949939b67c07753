package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
)

// shownEnded is how many ended tasks or sessions a table shows without --all; they are kept for good.
const shownEnded = 20

const allUsage = "show all in the table, not only the newest of those that have ended; JSON always has all"

func (a *app) taskCommand() *cobra.Command {
	var all bool
	list := &cobra.Command{
		Use: "list", Short: "List what the node does and did, newest last", Args: exactly(0, "no arguments"),
		RunE: a.withNode(func(c *cobra.Command, s api.Service, _ []string) error { return a.listTasks(c.Context(), s, all) }),
	}
	list.Flags().BoolVar(&all, "all", false, allUsage)
	show := &cobra.Command{
		Use: "show ID", Short: "Show a task: its steps, notes, result or problem", Args: exactly(1, "a task's ID"),
		RunE: a.withTask(func(ctx context.Context, s api.Service, id string) error {
			t, err := s.GetTask(ctx, id)
			if err != nil {
				return err
			}
			return a.print(t, func(w io.Writer) { a.taskTable(w, t) })
		}),
	}
	watch := &cobra.Command{
		Use: "watch ID", Short: "Follow a task until it has ended", Args: exactly(1, "a task's ID"),
		Long: "Follow a task until it has ended. With -o json each change is one line: the task as it is then. The exit code\n" +
			"is that of the task. Ctrl-C ends the watching, not the task.",
		RunE: a.withTask(func(ctx context.Context, s api.Service, id string) error { return a.watchTask(ctx, s, id) }),
	}
	cancel := &cobra.Command{
		Use: "cancel ID", Short: "Ask a task to end", Args: exactly(1, "a task's ID"),
		Long: "Ask a task to end. What it began is undone first, which may take a while: an instant restore that is not ready\n" +
			"is taken apart again. A VM whose migration is canceled goes on running; what has not moved goes on being served.",
		RunE: a.withTask(func(ctx context.Context, s api.Service, id string) error { return a.cancelTask(ctx, s, id) }),
	}
	return group("task", "Look at what the node does and did", list, show, watch, cancel)
}

// withTask makes a command's function of one that works on the task that its argument names.
func (a *app) withTask(f func(ctx context.Context, s api.Service, id string) error) runE {
	return a.withNode(func(c *cobra.Command, s api.Service, args []string) error {
		id, err := findTask(c.Context(), s, args[0])
		if err != nil {
			return err
		}
		return f(c.Context(), s, id)
	})
}

func (a *app) listTasks(ctx context.Context, s api.Service, all bool) error {
	list, err := s.ListTasks(ctx)
	if err != nil {
		return err
	}
	list = append([]appliance.Task{}, list...)
	slices.SortStableFunc(list, func(x, y appliance.Task) int {
		return cmp.Or(x.Started.Compare(y.Started), cmp.Compare(x.ID, y.ID))
	})
	ids := make([]string, len(list))
	for i, t := range list {
		ids[i] = t.ID
	}
	shown := list
	if !all {
		shown = newest(list, func(t appliance.Task) bool { return t.State.Ended() })
	}
	if err := a.print(list, func(w io.Writer) {
		if len(list) == 0 {
			fmt.Fprintln(w, "The node has done nothing yet. Back a VM up with `holdfast backup run VM`.")
			return
		}
		fmt.Fprintln(w, "TASK\tKIND\tVM\tSTATE\tSTARTED\tTOOK\tDETAIL")
		digits := shortest(ids)
		for _, t := range shown {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", short(t.ID, digits), dash(string(t.Kind)),
				dash(t.Subject), dash(string(t.State)), a.local(t.Started), a.took(t), taskDetail(t))
		}
	}); err != nil {
		return err
	}
	a.hidden(len(list)-len(shown), "task")
	return nil
}

// newest leaves of a list, oldest first, those that have not ended, and the last ones that have.
func newest[T any](list []T, ended func(T) bool) (out []T) {
	n := 0
	for _, one := range slices.Backward(list) {
		if ended(one) {
			if n++; n > shownEnded {
				continue
			}
		}
		out = append(out, one)
	}
	slices.Reverse(out)
	return out
}

// hidden tells a reader of a table that there is more.
func (a *app) hidden(n int, noun string) {
	if n > 0 && a.output != "json" {
		a.note(count(int64(n), "older "+noun) + " not shown: use --all.")
	}
}

// took says how long a task has taken.
func (a *app) took(t appliance.Task) string {
	if t.Ended != nil {
		return span(t.Ended.Sub(t.Started))
	}
	return span(a.Now().Sub(t.Started))
}

// taskDetail is the one thing of a task that a list has room for.
func taskDetail(t appliance.Task) string {
	switch {
	case t.Problem != nil:
		return cut(dash(t.Problem.Cause), 60)
	case len(t.Steps) == 0 || t.State.Ended():
		return "-"
	case t.Progress != nil:
		return plain(t.Steps[len(t.Steps)-1].Name) + ": " + percent(t.Progress)
	}
	return plain(t.Steps[len(t.Steps)-1].Name)
}

// kindNames are the kinds of tasks in sentences.
var kindNames = map[appliance.TaskKind]string{
	appliance.TaskBackup: "backup", appliance.TaskInstant: "instant restore",
	appliance.TaskMigrate: "migration", appliance.TaskRelease: "release", appliance.TaskCollect: "collection",
	appliance.TaskKeep: "keeping", appliance.TaskRestore: "restore",
}

// taskName says what a task is about: "backup of web".
func taskName(t appliance.Task) string {
	name := kindNames[t.Kind]
	if name == "" {
		name = "task " + plain(string(t.Kind)) // of a newer node
	}
	if t.Subject != "" {
		name += " of " + plain(t.Subject)
	}
	return name
}

func (a *app) taskTable(w io.Writer, t appliance.Task) {
	fmt.Fprintf(w, "Task\t%s\n", t.ID)
	fmt.Fprintf(w, "What\t%s\n", taskName(t))
	if t.Manager != "" {
		fmt.Fprintf(w, "Manager\t%s\n", plain(t.Manager))
	}
	if t.Session != "" {
		fmt.Fprintf(w, "Session\t%s\n", t.Session)
	}
	fmt.Fprintf(w, "State\t%s\n", dash(string(t.State)))
	fmt.Fprintf(w, "Started\t%s\n", a.local(t.Started))
	if t.Ended != nil {
		fmt.Fprintf(w, "Ended\t%s, after %s\n", a.local(*t.Ended), a.took(t))
	}
	for i, s := range t.Steps {
		fmt.Fprintf(w, "Step %d\t%s\n", i+1, a.stepText(t, s))
	}
	for _, n := range t.Notes {
		fmt.Fprintf(w, "Note\t%s\n", plain(n))
	}
	resultTable(w, t)
	problemTable(w, t.Problem)
}

// problemTable writes what went wrong, if anything did.
func problemTable(w io.Writer, p *appliance.Problem) {
	if p == nil {
		return
	}
	fmt.Fprintf(w, "What failed\t%s\n", dash(p.Title))
	fmt.Fprintf(w, "Why\t%s\n", dash(p.Cause))
	if p.Cleaned != "" {
		fmt.Fprintf(w, "Cleaned up\t%s\n", plain(p.Cleaned))
	}
	if p.Remedy != "" {
		fmt.Fprintf(w, "What to do\t%s\n", plain(p.Remedy))
	}
}

// stepText says what a step did or does.
func (a *app) stepText(t appliance.Task, s appliance.Step) string {
	text := plain(s.Name)
	switch {
	case s.Failed && s.Ended != nil:
		text += ": failed after " + span(s.Ended.Sub(s.Started))
	case s.Ended != nil:
		return text + ": done in " + span(s.Ended.Sub(s.Started))
	case t.Progress != nil:
		text += ": " + progressText(t.Progress)
	default:
		text += ": " + rest(max(0, a.Now().Sub(s.Started)).Seconds()) + " so far"
	}
	if s.Detail != "" {
		text += " (" + plain(s.Detail) + ")"
	}
	return text
}

// backupResult is the result of a backup, as appliance/node writes it.
type backupResult struct {
	Point       string  `json:"point"`
	Incremental bool    `json:"incremental"`
	Reason      string  `json:"reason"`
	Read        int64   `json:"read_bytes"`
	Dirty       int64   `json:"dirty_bytes"`
	New         int64   `json:"new_bytes"`
	Known       int64   `json:"known_bytes"`
	Stored      int64   `json:"stored_bytes"`
	Data        int64   `json:"data_bytes"`
	Ratio       float64 `json:"dedup_ratio"`
}

// resultTable writes what came out of a task.
func resultTable(w io.Writer, t appliance.Task) {
	if t.Kind == appliance.TaskCollect && t.Result != nil {
		if r, err := collected(t); err == nil {
			collectedTable(w, r)
			return
		}
	}
	if t.Kind == appliance.TaskRestore && t.Result != nil {
		restoredTable(w, t)
		return
	}
	if t.Kind != appliance.TaskBackup {
		for _, k := range slices.Sorted(maps.Keys(t.Result)) {
			fmt.Fprintf(w, "%s\t%s\n", plain(k), plain(fmt.Sprint(t.Result[k])))
		}
		return
	}
	var r backupResult
	if b, err := json.Marshal(t.Result); err != nil || json.Unmarshal(b, &r) != nil || r.Point == "" {
		return
	}
	fmt.Fprintf(w, "Point\t%s\n", plain(r.Point))
	mode := "full"
	if r.Incremental {
		mode = "incremental"
	}
	if r.Reason != "" {
		mode += ": " + plain(r.Reason)
	}
	fmt.Fprintf(w, "Mode\t%s\n", mode)
	if r.Incremental {
		fmt.Fprintf(w, "Changed\t%s, as the engine counts\n", size(r.Dirty))
	}
	fmt.Fprintf(w, "Read\t%s\n", size(r.Read))
	fmt.Fprintf(w, "New\t%s\n", size(r.New))
	fmt.Fprintf(w, "Stored\t%s\n", size(r.Stored))
	if r.Ratio > 0 {
		fmt.Fprintf(w, "Data to stored\t%.1f : 1\n", r.Ratio)
	}
}

// watchTask follows a task for somebody who asked for just that.
func (a *app) watchTask(ctx context.Context, s api.Service, id string) error {
	if a.output != "json" {
		return a.await(ctx, s, appliance.Task{ID: id}, justTask)
	}
	t, err := a.follow(ctx, s, appliance.Task{ID: id}, func(t appliance.Task) error { return a.print(t, nil) })
	if err != nil {
		return err
	}
	return a.outcome(t)
}

func (a *app) cancelTask(ctx context.Context, s api.Service, id string) error {
	if err := s.CancelTask(ctx, id); err != nil {
		return err
	}
	t, err := s.GetTask(ctx, id)
	if err != nil {
		t = appliance.Task{ID: id, State: appliance.TaskRunning, Started: time.Time{}}
	}
	return a.print(t, func(w io.Writer) {
		fmt.Fprintf(w, "Task %s was asked to end. It ends when what it began is undone.\n", id)
		fmt.Fprintf(w, "Watch it: %s\n", a.commandLine("task", "watch", id))
	})
}
