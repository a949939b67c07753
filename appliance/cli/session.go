package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
)

// instantCommand is `restore instant`.
func (a *app) instantCommand() *cobra.Command {
	var i api.InstantSpec
	var wait bool
	c := &cobra.Command{
		Use: "instant VM[@WHEN]", Short: "Run a VM straight from its backup",
		Args: exactly(1, "a VM, with @ and the time of the point if it is not the newest"),
		Long: "Run a VM straight from a restore point, without copying it first: the node serves its disks, and the restore\n" +
			"point is never changed. The new VM is one session; its disks can move to production storage while it runs\n" +
			"(--migrate-to now, or `holdfast session migrate` later).\n\n" +
			"WHEN is latest (default), a time in UTC (2026-09-14, 2026-09-14T02, 2026-09-14T02:30: the newest point in it),\n" +
			"or an age (-3d: the newest that is at least so old; m, h, d, w). A point's ID does as well.",
		RunE: a.withNode(func(c *cobra.Command, s api.Service, args []string) (err error) {
			if i.Format != "" && i.Format != "qcow2" && i.Format != "raw" {
				return usage(c.CommandPath(), "--format "+i.Format+": the format is qcow2 or raw")
			}
			if i.Point, err = pointOf(c.Context(), s, args[0]); err != nil {
				return err
			}
			return a.instant(c.Context(), s, i, wait)
		}),
	}
	f := c.Flags()
	f.StringVar(&i.Name, "name", "", "name of the new VM (default: the old one, with a suffix if that is taken)")
	f.StringVar(&i.Cluster, "cluster", "", "cluster of the new VM, by name or ID (default: the old one)")
	f.BoolVar(&i.PowerOn, "power-on", false, "start the VM; --migrate-to does that too")
	f.StringVar(&i.MigrateTo, "migrate-to", "", "storage domain, by name or ID, to move the disks to as soon as the VM runs")
	f.StringVar(&i.Format, "format", "qcow2", "how the disks are served: qcow2 or raw")
	f.StringVar(&i.Manager, "manager", "", "the manager to restore to (default: the one the point came from)")
	f.BoolVar(&wait, "wait", false, "wait until it has ended, and show how far it is")
	return c
}

// pointOf makes of a text what the node takes for a point: a machine's name alone means its newest point.
func pointOf(ctx context.Context, s api.Service, text string) (string, error) {
	points, bad := s.ListPoints(ctx)
	if len(points) == 0 && len(bad) > 0 {
		return "", bad[0]
	}
	named := func(p api.Point) bool { return p.VM == text }
	begun := func(p api.Point) bool { return text != "" && strings.HasPrefix(p.Point, strings.ToLower(text)) }
	switch {
	case slices.ContainsFunc(points, named): // also a name with an @ in it
		return text + "@latest", nil
	case strings.LastIndex(text, "@") > 0 || slices.ContainsFunc(points, begun):
		return text, nil
	}
	return text + "@latest", nil // the node's refusal names the machines that it has points of
}

// instantJSON is the document of an instant restore. Session and Task are IDs, as the other commands take them. Its
// fields are promises to scripts.
type instantJSON struct {
	Session string                 `json:"session"`
	Task    string                 `json:"task"`
	State   appliance.SessionState `json:"state"` // of the session
	VM      string                 `json:"vm"`
	VMID    string                 `json:"vm_id,omitempty"`
	Point   string                 `json:"point"`
	Domain  string                 `json:"domain"`
	Export  string                 `json:"export"`
	Result  map[string]any         `json:"result,omitempty"`
	Problem *appliance.Problem     `json:"problem,omitempty"`
}

func newInstantJSON(s appliance.Session, t appliance.Task) instantJSON {
	return instantJSON{
		Session: s.ID, Task: t.ID, State: s.State, VM: s.VM, VMID: s.VMID, Point: s.Point, Domain: s.Domain, Export: s.Export,
		Result: t.Result, Problem: t.Problem,
	}
}

func (a *app) instant(ctx context.Context, s api.Service, i api.InstantSpec, wait bool) error {
	session, t, err := s.StartInstant(ctx, i)
	if err != nil {
		return err
	}
	if !wait {
		return a.begun(t, newInstantJSON(session, t))
	}
	return a.await(ctx, s, t, func(t appliance.Task) any {
		if now, err := s.GetSession(ctx, session.ID); err == nil {
			session = now
		} else {
			a.note("holdfast: the session is shown as it was at first: " + plain(err.Error()))
		}
		return newInstantJSON(session, t)
	})
}

func (a *app) sessionCommand() *cobra.Command {
	var all, wait, discard bool
	var to string
	list := &cobra.Command{
		Use: "list", Short: "List the VMs that run from their backups, newest last", Args: exactly(0, "no arguments"),
		RunE: a.withNode(func(c *cobra.Command, s api.Service, _ []string) error { return a.listSessions(c.Context(), s, all) }),
	}
	list.Flags().BoolVar(&all, "all", false, allUsage)
	show := &cobra.Command{
		Use: "show ID", Short: "Show a session: its VM, its disks, and where they are", Args: exactly(1, "a session's ID"),
		RunE: a.withSession(func(ctx context.Context, s api.Service, id string) error {
			x, err := s.GetSession(ctx, id)
			if err != nil {
				return err
			}
			return a.print(x, func(w io.Writer) { a.sessionTable(w, x) })
		}),
	}
	// after starts a task of a session and shows it.
	after := func(start starter) runE {
		return a.withSession(func(ctx context.Context, s api.Service, id string) error {
			t, err := start(ctx, s, id)
			if err != nil {
				return err
			}
			if wait {
				return a.await(ctx, s, t, justTask)
			}
			return a.begun(t, t)
		})
	}
	migrate := &cobra.Command{
		Use: "migrate ID --to DOMAIN", Short: "Move a session's disks to production storage while the VM runs",
		Args: exactly(1, "a session's ID"),
		RunE: after(func(ctx context.Context, s api.Service, id string) (appliance.Task, error) {
			return s.StartMigrate(ctx, id, to)
		}),
	}
	migrate.Flags().StringVar(&to, "to", "", "storage domain, by name or ID (default: the one that was named before)")
	release := &cobra.Command{
		Use: "release ID", Short: "End a session: take away what was made for it", Args: exactly(1, "a session's ID"),
		Long: "End a session: its storage domain, with what is left on it, is taken away from the engine, and nothing is\n" +
			"served for it any more. A VM whose disks have moved stays as it is. While disks of the VM are still served, only\n" +
			"--discard ends the session: the VM is stopped and removed, and what it wrote is lost. The restore point stays.",
		RunE: after(func(ctx context.Context, s api.Service, id string) (appliance.Task, error) {
			return s.StartRelease(ctx, id, discard)
		}),
	}
	release.Flags().BoolVar(&discard, "discard", false, "stop and remove the VM, and give up what it wrote")
	keep := keepSessionCommand(after)
	for _, c := range []*cobra.Command{migrate, release, keep} {
		c.Flags().BoolVar(&wait, "wait", false, "wait until it has ended, and show how far it is")
	}
	return group("session", "Work with VMs that run from their backups", list, show, migrate, keep, release)
}

// starter starts a task of a session.
type starter = func(ctx context.Context, s api.Service, id string) (appliance.Task, error)

// keepSessionCommand is `session keep`; after makes its function of what starts the task.
func keepSessionCommand(after func(starter) runE) *cobra.Command {
	var running bool
	c := &cobra.Command{
		Use: "keep ID", Short: "Make a restore point of what a session's disks are now", Args: exactly(1, "a session's ID"),
		Long: "Make a new restore point of the disks of a session as they are now, with all that the VM has written. Only what\n" +
			"was written is read. The session goes on. The VM has to be down; with --running it need not be: its writes are\n" +
			"held while its disks are read, which it sees as a slow disk, and they are kept as after a power cut.",
		RunE: after(func(ctx context.Context, s api.Service, id string) (appliance.Task, error) {
			return s.StartKeep(ctx, id, running)
		}),
	}
	c.Flags().BoolVar(&running, "running", false, "also while the VM is not down")
	return c
}

// withSession makes a command's function of one that works on the session that its argument names.
func (a *app) withSession(f func(ctx context.Context, s api.Service, id string) error) runE {
	return a.withNode(func(c *cobra.Command, s api.Service, args []string) error {
		id, err := findSession(c.Context(), s, args[0])
		if err != nil {
			return err
		}
		return f(c.Context(), s, id)
	})
}

// over tells whether nothing is left of a session.
func over(s appliance.Session) bool {
	return s.State == appliance.SessionReleased || s.State == appliance.SessionFailed
}

func (a *app) listSessions(ctx context.Context, s api.Service, all bool) error {
	list, err := s.ListSessions(ctx)
	if err != nil {
		return err
	}
	list = append([]appliance.Session{}, list...)
	slices.SortStableFunc(list, func(x, y appliance.Session) int {
		return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(x.ID, y.ID))
	})
	ids := make([]string, len(list))
	for i, x := range list {
		ids[i] = x.ID
	}
	shown := list
	if !all {
		shown = newest(list, over)
	}
	if err := a.print(list, func(w io.Writer) {
		if len(list) == 0 {
			fmt.Fprintln(w, "No VM runs from its backup. Make one do so with `holdfast restore instant VM --power-on`.")
			return
		}
		fmt.Fprintln(w, "SESSION\tSTATE\tVM\tOF\tMANAGER\tCREATED\tWRITTEN\tMIGRATED")
		digits := shortest(ids)
		for _, x := range shown {
			var written int64
			moved := 0
			for _, d := range x.Disks {
				written += d.DirtyBytes
				if d.Migrated {
					moved++
				}
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d of %d\n", short(x.ID, digits), dash(string(x.State)),
				dash(x.VM), dash(x.SourceVM), dash(x.Manager), a.local(x.Created), size(written), moved, len(x.Disks))
		}
	}); err != nil {
		return err
	}
	a.hidden(len(list)-len(shown), "session")
	return nil
}

func (a *app) sessionTable(w io.Writer, s appliance.Session) {
	fmt.Fprintf(w, "Session\t%s\n", s.ID)
	fmt.Fprintf(w, "State\t%s\n", dash(string(s.State)))
	fmt.Fprintf(w, "VM\t%s, from point %s of %s\n", dash(s.VM), dash(s.Point), dash(s.SourceVM))
	fmt.Fprintf(w, "Manager\t%s\n", dash(s.Manager))
	fmt.Fprintf(w, "Storage domain\t%s, mounted by hosts from %s\n", dash(s.Domain), dash(s.Export))
	if s.MigrateTo != "" {
		fmt.Fprintf(w, "Migrates to\t%s\n", plain(s.MigrateTo))
	}
	fmt.Fprintf(w, "Created\t%s\n", a.local(s.Created))
	fmt.Fprintf(w, "Task\t%s\n", dash(s.Task))
	for _, d := range s.Disks {
		where := "served by the node"
		if d.Migrated {
			where = "migrated"
		} else if over(s) {
			where = "not served any more"
		}
		fmt.Fprintf(w, "Disk %d\t%s %s, %s; %s read, %s written\n",
			d.Number, size(d.SizeBytes), dash(d.Format), where, size(d.ReadBytes), size(d.DirtyBytes))
	}
	problemTable(w, s.Problem)
}

// summary tells people what came of a task that succeeded, and what there is to do next.
func (a *app) summary(ctx context.Context, w io.Writer, s api.Service, t appliance.Task) {
	if t.Session == "" {
		fmt.Fprintf(w, "VM\t%s\n", dash(t.Subject))
		resultTable(w, t)
		fmt.Fprintf(w, "Took\t%s\n", a.took(t))
		return
	}
	if t.Kind == appliance.TaskRelease {
		fmt.Fprintf(w, "Session %s is over: nothing of it is left on the engine or on the node.\n", t.Session)
		return
	}
	if t.Kind == appliance.TaskKeep {
		fmt.Fprintf(w, "Point %v of VM %s keeps what session %s was at that moment. The session goes on.\n", t.Result["point"], plain(t.Subject), t.Session)
		resultTable(w, t)
		return
	}
	x, err := s.GetSession(ctx, t.Session)
	if err != nil {
		fmt.Fprintf(w, "Session %s: %s has succeeded.\n", t.Session, taskName(t))
		return
	}
	migrate := a.commandLine("session", "migrate", x.ID, "--to", "DOMAIN")
	release := a.commandLine("session", "release", x.ID)
	switch {
	case x.State == appliance.SessionRunning:
		fmt.Fprintf(w, "VM %s is ready: its disks are served from the backup, in session %s.\n", plain(x.VM), x.ID)
		fmt.Fprintln(w, "What it writes stays on the node until its disks have moved.")
		fmt.Fprintf(w, "Move them to production storage: %s\n", migrate)
		fmt.Fprintf(w, "Or give the VM up: %s --discard\n", release)
	case x.State == appliance.SessionMigrated:
		fmt.Fprintf(w, "The disks of VM %s are on %s now; the node serves none of them any more.\n",
			plain(x.VM), dash(x.MigrateTo))
		fmt.Fprintf(w, "End the session: %s\n", release)
	case x.State == appliance.SessionReleased && x.MigrateTo != "":
		fmt.Fprintf(w, "VM %s runs, and its disks are on %s.\n", plain(x.VM), plain(x.MigrateTo))
		fmt.Fprintf(w, "Session %s is over: nothing of it is left on the engine or on the node.\n", x.ID)
	default:
		a.sessionTable(w, x)
	}
}
