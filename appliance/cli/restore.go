package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
)

// restoreCommand is `restore`: the ways to get a VM back.
func (a *app) restoreCommand() *cobra.Command {
	return group("restore", "Get VMs back", a.instantCommand(), a.restoreVMCommand(), a.listRestoresCommand())
}

func (a *app) restoreVMCommand() *cobra.Command {
	var r api.RestoreSpec
	var networks []string
	var wait, dry, keepMAC, newMAC bool
	c := &cobra.Command{
		Use: "vm VM[@WHEN]", Short: "Copy a VM back to an engine from its backup",
		Args: exactly(1, "a VM, with @ and the time of the point if it is not the newest"),
		Long: "Copy a VM of a restore point back to an engine: new disks are made and filled, then a new VM is made of the\n" +
			"configuration that was backed up, and gets them. A VM that exists is never changed, the original included. If\n" +
			"anything fails, all that was made is removed again. --dry-run only says what would be made.\n\n" +
			"WHEN is latest (default), a time in UTC (2026-09-14, 2026-09-14T02, 2026-09-14T02:30: the newest point in it),\n" +
			"or an age (-3d: the newest that is at least so old; m, h, d, w). A point's ID does as well.",
		RunE: a.withNode(func(c *cobra.Command, s api.Service, args []string) (err error) {
			switch {
			case keepMAC && newMAC:
				return usage(c.CommandPath(), "--keep-mac and --new-mac exclude each other")
			case keepMAC:
				r.MAC = "keep"
			case newMAC:
				r.MAC = "new"
			}
			if !slices.Contains([]string{"extents", "full"}, r.Verify) {
				return usage(c.CommandPath(), "--verify "+r.Verify+": it is extents or full")
			}
			if r.Networks, err = networkMap(c, networks); err != nil {
				return err
			}
			if r.Point, err = pointOf(c.Context(), s, args[0]); err != nil {
				return err
			}
			if dry {
				plan, err := s.PlanRestore(c.Context(), r)
				if err != nil {
					return err
				}
				return a.print(plan, func(w io.Writer) { a.restorePlan(w, plan) })
			}
			return a.restoreVM(c.Context(), s, r, wait)
		}),
	}
	f := c.Flags()
	f.StringVar(&r.Name, "name", "", "name of the new VM (default: the old one, with a suffix if that is taken)")
	f.StringVar(&r.Cluster, "cluster", "", "cluster of the new VM, by name or ID (default: the old one)")
	f.StringVar(&r.StorageDomain, "storage-domain", "", "storage domain of the disks, by name or ID (default: where each disk was)")
	f.IntSliceVar(&r.Disks, "disks", nil, "only these disks, by number: 0,1 (default: all)")
	f.StringArrayVar(&networks, "network", nil, "OLD=NEW: what was on network, vNIC profile or NIC OLD gets vNIC profile NEW, or none with OLD= (repeatable; default: the same)")
	f.BoolVar(&keepMAC, "keep-mac", false, "give the NICs their old addresses, and fail if they are in use (default: the old ones if they are free)")
	f.BoolVar(&newMAC, "new-mac", false, "have the engine draw new addresses")
	f.StringVar(&r.Verify, "verify", "extents", "how to see that what was uploaded is there: extents (data where the point has data) or full (read it all back)")
	f.BoolVar(&r.PowerOn, "power-on", false, "start the VM")
	f.StringVar(&r.Manager, "manager", "", "the manager to restore to (default: the one the point came from)")
	f.BoolVar(&dry, "dry-run", false, "say what would be made, and do nothing")
	f.BoolVar(&wait, "wait", false, "wait until it has ended, and show how far it is")
	return c
}

// networkMap reads OLD=NEW.
func networkMap(c *cobra.Command, pairs []string) (map[string]string, error) {
	m := map[string]string{}
	for _, p := range pairs {
		from, to, ok := strings.Cut(p, "=")
		if _, twice := m[from]; !ok || from == "" || twice {
			return nil, usage(c.CommandPath(), "--network "+p+": it is OLD=NEW, once for each OLD")
		}
		m[from] = to
	}
	return m, nil
}

// restoreJSON is the document of a full restore. Restore and Task are IDs. Its fields are promises to scripts.
type restoreJSON struct {
	Restore string                 `json:"restore"`
	Task    string                 `json:"task"`
	State   appliance.RestoreState `json:"state"`
	VM      string                 `json:"vm"`
	VMID    string                 `json:"vm_id,omitempty"`
	Point   string                 `json:"point"`
	Result  map[string]any         `json:"result,omitempty"`
	Problem *appliance.Problem     `json:"problem,omitempty"`
}

func newRestoreJSON(r appliance.Restore, t appliance.Task) restoreJSON {
	return restoreJSON{Restore: r.ID, Task: t.ID, State: r.State, VM: r.VM, VMID: r.VMID, Point: r.Point, Result: t.Result, Problem: t.Problem}
}

func (a *app) restoreVM(ctx context.Context, s api.Service, spec api.RestoreSpec, wait bool) error {
	r, t, err := s.StartRestore(ctx, spec)
	if err != nil {
		return err
	}
	if !wait {
		return a.begun(t, newRestoreJSON(r, t))
	}
	return a.await(ctx, s, t, func(t appliance.Task) any {
		if now, err := s.GetRestore(ctx, r.ID); err == nil {
			r = now
		} else {
			a.note("holdfast: the restore is shown as it was at first: " + plain(err.Error()))
		}
		return newRestoreJSON(r, t)
	})
}

// restorePlan shows what a restore would make.
func (a *app) restorePlan(w io.Writer, r appliance.Restore) {
	fmt.Fprintf(w, "Would make\tVM %s in cluster %s of %s, from point %s of %s\n", dash(r.VM), dash(r.Cluster), dash(r.Manager), dash(r.Point), dash(r.SourceVM))
	for _, d := range r.Disks {
		kind := d.Format
		if !d.Sparse {
			kind += ", preallocated"
		}
		boot := ""
		if d.Bootable {
			boot = ", boots"
		}
		fmt.Fprintf(w, "Disk %d\t%s: %s with %s of data, %s, on %s, %s%s\n",
			d.Number, dash(d.Alias), size(d.SizeBytes), size(d.DataBytes), dash(kind), dash(d.Domain), dash(d.Interface), boot)
	}
	for _, n := range r.NICs {
		on, mac := n.Profile, n.MAC
		if on == "" {
			on = "no network"
		}
		if mac == "" {
			mac = "a new address"
		}
		fmt.Fprintf(w, "NIC %s\ton %s, with %s\n", dash(n.Name), plain(on), plain(mac))
	}
	if len(r.Tags) > 0 {
		fmt.Fprintf(w, "Tags\t%s\n", plain(strings.Join(r.Tags, ", ")))
	}
	start := "the VM stays down"
	if r.PowerOn {
		start = "the VM is started"
	}
	fmt.Fprintf(w, "Then\t%s\n", start)
	for _, n := range r.Notes {
		fmt.Fprintf(w, "Note\t%s\n", plain(n))
	}
}

// restoredTable shows what came of a restore.
func restoredTable(w io.Writer, t appliance.Task) {
	var r struct {
		VMID  string  `json:"vm_id"`
		Point string  `json:"point"`
		Disks int64   `json:"disks"`
		Data  float64 `json:"data_bytes"`
	}
	if b, err := json.Marshal(t.Result); err != nil || json.Unmarshal(b, &r) != nil || r.VMID == "" {
		return // it failed, and the problem says all
	}
	fmt.Fprintf(w, "Made\tVM %s with %s, %s of data, from point %s\n", plain(r.VMID), count(r.Disks, "disk"), size(int64(r.Data)), dash(r.Point))
}

func (a *app) listRestoresCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the full restores, newest last", Args: exactly(0, "no arguments"),
		RunE: a.withNode(func(c *cobra.Command, s api.Service, _ []string) error {
			list, err := s.ListRestores(c.Context())
			if err != nil {
				return err
			}
			if list == nil {
				list = []appliance.Restore{}
			}
			return a.print(list, func(w io.Writer) {
				if len(list) == 0 {
					fmt.Fprintln(w, "No VM was copied back yet. `holdfast restore vm VM` does it.")
					return
				}
				fmt.Fprintln(w, "RESTORE\tSTATE\tVM\tOF\tPOINT\tMANAGER\tBEGUN\tTASK")
				for _, r := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", dash(r.ID), dash(string(r.State)), dash(r.VM), dash(r.SourceVM),
						dash(r.Point), dash(r.Manager), a.local(r.Created), dash(r.Task))
				}
			})
		}),
	}
}
