package node

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/catalog"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// vmKey tells VMs apart: by manager and ID, or by name for points of image files.
type vmKey struct{ manager, id string }

func keyOf(p *chunkstore.Point) vmKey {
	if id := p.Labels[appliance.LabelVMID]; id != "" {
		return vmKey{p.Labels[appliance.LabelManager], id}
	}
	return vmKey{"", VMOf(p)}
}

// ListVMs implements api.Service.
func (n *Node) ListVMs(ctx context.Context) ([]appliance.VM, []error) {
	out, away, bad := n.listVMs(ctx)
	for _, err := range away {
		bad = append(bad, err)
	}
	return out, bad
}

// The states of a VM that no engine shows: vmGone if all engines were asked that it could be on, else vmUnknown.
const (
	vmGone    = "gone"
	vmUnknown = "unknown"
)

// listVMs lists the VMs of all engines, and those that only the store knows. away are the managers that could not be
// asked, with the reasons; bad is what else could not be read.
func (n *Node) listVMs(ctx context.Context) (out []appliance.VM, away map[string]error, bad []error) {
	points, bad := n.store.Points(ctx)
	stored := map[vmKey]*appliance.VM{}
	for _, p := range points {
		v := stored[keyOf(p)]
		if v == nil {
			v = &appliance.VM{Name: VMOf(p), Manager: p.Labels[appliance.LabelManager], ID: p.Labels[appliance.LabelVMID], Status: vmGone}
			stored[keyOf(p)] = v
		}
		v.Points++
		v.Newest = &appliance.Newest{Point: string(p.ID), Time: p.Time}
	}
	ms, err := n.ListManagers(ctx)
	if err != nil {
		bad = append(bad, err)
	}
	away = map[string]error{}
	for _, m := range ms {
		vms, err := n.vmsOf(ctx, m.Name)
		if err != nil {
			away[m.Name] = err
			continue
		}
		for _, v := range vms {
			a := appliance.VM{ID: string(v.ID), Name: v.Name, Manager: m.Name, Status: string(v.Status), Tags: v.Tags}
			k := vmKey{m.Name, string(v.ID)}
			if s := stored[k]; s != nil {
				a.Points, a.Newest = s.Points, s.Newest
				delete(stored, k)
			}
			out = append(out, a)
		}
	}
	for _, v := range stored {
		if away[v.Manager] != nil {
			v.Status = vmUnknown
		}
		out = append(out, *v)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name+out[i].ID < out[j].Name+out[j].ID })
	return out, away, bad
}

func (n *Node) vmsOf(ctx context.Context, manager string) ([]ovirt.VM, error) {
	c, err := n.managers.client(ctx, manager)
	if err != nil {
		return nil, err
	}
	vms, err := c.VMs(ctx)
	return vms, errs.Wrap("ask manager", manager, err)
}

// GetVM implements api.Service.
func (n *Node) GetVM(ctx context.Context, nameOrID string) (appliance.VM, error) {
	v, c, err := n.findVM(ctx, nameOrID, "")
	if err != nil || c == nil {
		return v, err
	}
	disks, err := c.Disks(ctx, ovirt.ID(v.ID))
	if err != nil {
		return v, errs.Wrap("list disks of", v.Name, err)
	}
	for _, d := range disks {
		v.Disks = append(v.Disks, appliance.VMDisk{
			ID: string(d.ID), Alias: d.Alias, SizeBytes: d.Provisioned, Format: string(d.Format), CBT: d.Incremental, Hole: hole(d),
		})
	}
	return v, nil
}

// hole says why a disk cannot be backed up, whatever the strategy.
func hole(d ovirt.Disk) string {
	switch {
	case d.Storage != "" && d.Storage != "image":
		return "a " + d.Storage + " disk: oVirt does not give its content out"
	case d.Shareable:
		return "shareable: oVirt does not give its content out"
	}
	return ""
}

// findVM finds a VM by name or ID, and the engine it is on, which is nil for one that only the store knows.
func (n *Node) findVM(ctx context.Context, nameOrID, manager string) (appliance.VM, *login, error) {
	if manager != "" {
		if err := n.catalog.Get(catalog.Managers, manager, new(managerDoc)); err != nil {
			return appliance.VM{}, nil, err
		}
	}
	all, away, bad := n.listVMs(ctx)
	var found []appliance.VM
	for _, v := range all {
		if (v.Name == nameOrID || v.ID == nameOrID && v.ID != "") && (manager == "" || v.Manager == manager) {
			found = append(found, v)
		}
	}
	if live := slices.DeleteFunc(slices.Clone(found), func(v appliance.VM) bool { return v.Status == vmGone || v.Status == vmUnknown }); len(live) > 0 {
		found = live
	}
	for m, err := range away { // it may be on an engine that does not answer
		if len(found) == 0 && (manager == "" || m == manager) || len(found) > 0 && found[0].Status == vmUnknown && found[0].Manager == m {
			return appliance.VM{}, nil, err
		}
	}
	switch {
	case len(found) == 0 && len(bad) > 0:
		return appliance.VM{}, nil, bad[0]
	case len(found) == 0:
		return appliance.VM{}, nil, n.nowhere(nameOrID)
	case len(found) > 1:
		return appliance.VM{}, nil, ambiguous(nameOrID, found)
	case found[0].Status == vmGone:
		return found[0], nil, nil
	}
	c, err := n.managers.client(ctx, found[0].Manager)
	return found[0], c, err
}

// nowhere is the error of a VM that nobody has, and says whom to ask.
func (n *Node) nowhere(name string) error {
	ids, err := n.catalog.IDs(catalog.Managers)
	if err == nil && len(ids) == 0 {
		return errs.Text("find VM", name, errs.NotFound, "this node knows no engine yet").
			WithNext("Add one: holdfast manager add NAME --url URL --user USER@DOMAIN --password-file F")
	}
	return errs.Text("find VM", name, errs.NotFound, "no engine has a VM of that name or ID").WithNext("See `holdfast vm list`.")
}

// ambiguous is the error of a name that several VMs have, and says how to tell them apart.
func ambiguous(name string, found []appliance.VM) error {
	var which []string
	ids := map[string]bool{}
	for _, v := range found {
		ids[v.ID] = true
		which = append(which, strings.TrimSpace(v.ID+" "+v.Manager))
	}
	next := "Name it by its ID."
	if len(ids) < len(found) { // one engine under two names
		next = "Say which with --manager."
	}
	return errs.Text("find VM", name, errs.Invalid, fmt.Sprintf("%d VMs have that name: %s", len(found), strings.Join(which, ", "))).WithNext(next)
}

// StartBackup implements api.Service.
func (n *Node) StartBackup(ctx context.Context, s api.BackupSpec) (appliance.Task, error) {
	var none appliance.Task
	v, c, err := n.findVM(ctx, s.VM, s.Manager)
	if err != nil {
		return none, err
	}
	if c == nil {
		return none, errs.Text("back up", v.Name, errs.NotFound, "no engine has this VM any more; only its points are left").
			WithNext("Restore it: holdfast restore instant " + v.Name)
	}
	t := appliance.Task{ID: task.NewID(), Kind: appliance.TaskBackup, Subject: v.Name, Manager: v.Manager}
	return n.begin(vmObject(v.Manager, v.ID), t, func(ctx context.Context, h *task.Handle) (map[string]any, error) {
		defer n.afterRun(ctx, t.ID)
		ctx = ovirt.WithCorrelation(ctx, "holdfast-"+t.ID)
		return n.runBackup(ctx, c, h, v, t.ID, s)
	})
}

// vmObject is what a task on a VM works on.
func vmObject(manager, id string) string { return "vm/" + manager + "/" + id }

// afterRun takes over what a run could not clean up: its record is still there then.
func (n *Node) afterRun(ctx context.Context, id string) {
	var left runDoc
	if task.Ending(ctx) || n.catalog.Get(catalog.Runs, id, &left) != nil {
		return // the next start does it, or there is nothing to do
	}
	n.clearing(left)
	n.wg.Go(func() { n.recoverRun(n.background, left, appliance.Task{}, false) })
}
