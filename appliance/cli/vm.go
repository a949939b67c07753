package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
)

func (a *app) vmCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the VMs of all engines, and those that only the store knows",
		Args: exactly(0, "no arguments"),
		RunE: a.withNode(func(c *cobra.Command, s api.Service, _ []string) error { return a.listVMs(c.Context(), s) }),
	}
	show := &cobra.Command{
		Use: "show VM", Short: "Show a VM, its disks, and what of it cannot be backed up",
		Args: exactly(1, "a VM, by name or ID"),
		RunE: a.withNode(func(c *cobra.Command, s api.Service, args []string) error {
			v, err := s.GetVM(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(v, func(w io.Writer) { a.vmTable(w, v) })
		}),
	}
	return group("vm", "Look at VMs", list, show)
}

func (a *app) listVMs(ctx context.Context, s api.Service) error {
	list, bad := s.ListVMs(ctx)
	if len(list) == 0 && len(bad) > 0 {
		return bad[0]
	}
	if list == nil {
		list = []appliance.VM{}
	}
	if err := a.print(list, func(w io.Writer) {
		if len(list) == 0 {
			fmt.Fprintln(w, "There are no VMs. `holdfast manager list` shows the engines that were asked.")
			return
		}
		fmt.Fprintln(w, "VM\tMANAGER\tSTATUS\tPOINTS\tNEWEST POINT\tID")
		for _, v := range list {
			newest := "never backed up"
			if v.Newest != nil {
				newest = a.local(v.Newest.Time)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n",
				plain(v.Name), dash(v.Manager), dash(v.Status), v.Points, newest, dash(v.ID))
		}
	}); err != nil {
		return err
	}
	return a.incomplete(bad)
}

func (a *app) vmTable(w io.Writer, v appliance.VM) {
	fmt.Fprintf(w, "VM\t%s\n", plain(v.Name))
	fmt.Fprintf(w, "ID\t%s\n", dash(v.ID))
	fmt.Fprintf(w, "Manager\t%s\n", dash(v.Manager))
	if v.Status == "gone" {
		fmt.Fprint(w, "Status\tgone: no engine has it; its points can still be restored\n")
	} else {
		fmt.Fprintf(w, "Status\t%s\n", dash(v.Status))
	}
	if len(v.Tags) > 0 {
		fmt.Fprintf(w, "Tags\t%s\n", plain(strings.Join(v.Tags, ", ")))
	}
	fmt.Fprintf(w, "Points\t%d\n", v.Points)
	if v.Newest == nil {
		fmt.Fprint(w, "Newest point\tnever backed up\n")
	} else {
		fmt.Fprintf(w, "Newest point\t%s, of %s\n", v.Newest.Point, a.local(v.Newest.Time))
	}
	for _, d := range v.Disks {
		state := "changes are not tracked: every backup reads all of it"
		switch {
		case d.Hole != "":
			state = "NOT BACKED UP: " + plain(d.Hole)
		case d.CBT:
			state = "changes are tracked"
		}
		fmt.Fprintf(w, "Disk %s\t%s %s; %s\n", dash(d.Alias), size(d.SizeBytes), dash(d.Format), state)
	}
}

func (a *app) backupCommand() *cobra.Command {
	var b api.BackupSpec
	var wait bool
	run := &cobra.Command{
		Use: "run VM", Short: "Back a VM up, now", Args: exactly(1, "a VM, by name or ID"),
		Long: "Back a VM up, now. What did not change since its newest restore point is not read again, if the engine can\n" +
			"tell what did. The backup is a task of the node's: without --wait, and after Ctrl-C, it goes on by itself.",
		RunE: a.withNode(func(c *cobra.Command, s api.Service, args []string) error {
			if !slices.Contains([]string{"auto", "cbt", "transfer"}, b.Strategy) {
				return usage(c.CommandPath(), "--strategy "+b.Strategy+": the strategy is auto, cbt or transfer")
			}
			if b.KeepSnapshot && b.Strategy == "cbt" {
				return usage(c.CommandPath(), "--keep-snapshot: cbt takes none; it goes with --strategy transfer or auto")
			}
			b.VM = args[0]
			t, err := s.StartBackup(c.Context(), b)
			if err != nil {
				return err
			}
			if wait {
				return a.await(c.Context(), s, t, func(t appliance.Task) any { return newBackupJSON(t) })
			}
			return a.begun(t, newBackupJSON(t))
		}),
	}
	f := run.Flags()
	f.StringVar(&b.Manager, "manager", "", "the manager of the VM, if two engines have one of that name")
	f.BoolVar(&b.Full, "full", false, "read everything, even if the changes are known")
	f.StringVar(&b.Strategy, "strategy", "auto", "how to read the VM: cbt (the engine tells what changed), transfer (a snapshot is downloaded), or auto (the first that all its disks allow)")
	f.BoolVar(&b.KeepSnapshot, "keep-snapshot", false, "with transfer: leave the snapshot on the engine, so that the next backup reads only what changes")
	f.BoolVar(&wait, "wait", false, "wait until it has ended, and show how far it is")
	return group("backup", "Back VMs up", run)
}

// backupJSON is the document of a backup: the task, and what scripts ask for first in the words of `disk import`.
type backupJSON struct {
	TaskID string `json:"task"`
	Point  any    `json:"point,omitempty"`
	Read   any    `json:"read_bytes,omitempty"`
	New    any    `json:"new_bytes,omitempty"`
	Stored any    `json:"stored_bytes,omitempty"`
	appliance.Task
}

func newBackupJSON(t appliance.Task) backupJSON {
	return backupJSON{
		TaskID: t.ID, Point: t.Result["point"], Read: t.Result["read_bytes"], New: t.Result["new_bytes"], Stored: t.Result["stored_bytes"], Task: t,
	}
}
