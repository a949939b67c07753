package node

import (
	"context"
	"encoding/json"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/catalog"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/ovirt/imageio"
	"github.com/holdfast-backup/holdfast/appliance/strategy"
	"github.com/holdfast-backup/holdfast/appliance/strategy/cbt"
	"github.com/holdfast-backup/holdfast/appliance/strategy/transfer"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// runDoc is a run as the catalog keeps it: what records of all strategies have, and the whole of it for its own strategy.
type runDoc struct {
	Strategy string   `json:"strategy"` // "" is cbt, which was there before the others
	ID       string   `json:"id"`
	Task     string   `json:"task"`
	Manager  string   `json:"manager"`
	VM       ovirt.ID `json:"vm"`
	VMName   string   `json:"vm_name"`
	whole    []byte
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *runDoc) UnmarshalJSON(b []byte) error {
	type plain runDoc
	r.whole = append([]byte(nil), b...)
	return json.Unmarshal(b, (*plain)(r))
}

func (n *Node) runs() ([]runDoc, []error) { return catalog.List[runDoc](n.catalog, catalog.Runs) }

// runJournal keeps the records of runs of one strategy.
type runJournal[R any] struct {
	n  *Node
	id func(R) string
}

// KeepRun implements the strategies' Journal.
func (j runJournal[R]) KeepRun(r R) error { return j.n.catalog.Put(catalog.Runs, j.id(r), r) }

// ForgetRun implements the strategies' Journal.
func (j runJournal[R]) ForgetRun(id string) error { return j.n.catalog.Delete(catalog.Runs, id) }

// runBackup backs a VM up by the strategy that was asked for, or the best that the VM allows.
func (n *Node) runBackup(ctx context.Context, c *login, h *task.Handle, v appliance.VM, id string, s api.BackupSpec) (map[string]any, error) {
	name, why := s.Strategy, ""
	if name == "" || name == strategyAuto {
		var err error
		if name, why, err = n.chooseStrategy(ctx, c, v); err != nil {
			return nil, err
		}
		h.Note("Strategy " + name + ": " + why + ".")
	}
	var res *strategy.Result
	var err error
	switch name {
	case appliance.StrategyTransfer:
		o := n.transferOptions(c, h, v, id)
		o.Full, o.Keep, o.Why = s.Full, s.KeepSnapshot, why
		res, err = transfer.Backup(ctx, o)
	default:
		o := n.cbtOptions(c, h, v, id)
		o.Full, o.Why = s.Full, why
		res, err = cbt.Backup(ctx, o)
	}
	if err != nil {
		return nil, err
	}
	out := backupResult(res)
	out["strategy"] = name
	return out, nil
}

// strategyAuto asks for the best strategy that the VM allows.
const strategyAuto = "auto"

// chooseStrategy takes cbt where every disk that can be read at all allows it, else transfer, and says why.
func (n *Node) chooseStrategy(ctx context.Context, c *login, v appliance.VM) (name, why string, err error) {
	info, err := c.Info(ctx)
	if err != nil {
		return "", "", err
	}
	if info.Major < 4 || info.Major == 4 && info.Minor < 4 {
		return appliance.StrategyTransfer, "the engine is " + info.Version + ", and changed blocks are tracked from 4.4 on", nil
	}
	vm, err := c.VM(ctx, ovirt.ID(v.ID))
	if err != nil {
		return "", "", err
	}
	all, err := c.Disks(ctx, vm.ID)
	if err != nil {
		return "", "", err
	}
	disks, _, err := strategy.Readable(vm, all, "")
	if err != nil {
		return "", "", errs.Wrap("back up", v.Name, err)
	}
	for _, d := range disks {
		switch {
		case d.Tracked:
		case d.Format == string(ovirt.FormatRaw):
			return appliance.StrategyTransfer, "disk " + d.Alias + " is raw, whose changed blocks cannot be tracked", nil
		default:
			return appliance.StrategyTransfer, "incremental backup is not enabled for disk " + d.Alias, nil
		}
	}
	return appliance.StrategyCBT, "changed blocks are tracked on every disk", nil
}

func (n *Node) open(c *login) func(ctx context.Context, t ovirt.Transfer) (strategy.Image, error) {
	return func(ctx context.Context, t ovirt.Transfer) (strategy.Image, error) {
		return imageio.Dial(ctx, imageio.Options{TransferURL: t.TransferURL, ProxyURL: t.ProxyURL, CA: c.ca, Logger: n.log})
	}
}

func (n *Node) cbtOptions(c *login, r strategy.Reporter, v appliance.VM, task string) cbt.Options {
	return cbt.Options{
		Engine: c.Client, Store: n.store, Journal: runJournal[cbt.Run]{n, func(r cbt.Run) string { return r.ID }}, Report: r, Manager: v.Manager,
		VM: ovirt.VM{ID: ovirt.ID(v.ID), Name: v.Name}, RunID: task, Task: task, Poll: n.o.Poll, Open: n.open(c),
	}
}

func (n *Node) transferOptions(c *login, r strategy.Reporter, v appliance.VM, task string) transfer.Options {
	return transfer.Options{
		Engine: c.Client, Store: n.store, Journal: runJournal[transfer.Run]{n, func(r transfer.Run) string { return r.ID }}, Report: r, Manager: v.Manager,
		VM: ovirt.VM{ID: ovirt.ID(v.ID), Name: v.Name}, RunID: task, Task: task, Poll: n.o.Poll, Open: n.open(c),
	}
}

// recoverAs has the run's own strategy clean up. It returns the point that the run had committed, or "".
func (n *Node) recoverAs(ctx context.Context, c *login, r runDoc) (point string, err error) {
	v := appliance.VM{ID: string(r.VM), Name: r.VMName, Manager: r.Manager}
	switch r.Strategy {
	case appliance.StrategyTransfer:
		var run transfer.Run
		if err := json.Unmarshal(r.whole, &run); err != nil {
			return "", errs.New("read record of run", r.ID, errs.Corrupt, err)
		}
		return transfer.Recover(ctx, n.transferOptions(c, silent{}, v, r.Task), run)
	case "", appliance.StrategyCBT:
		var run cbt.Run
		if err := json.Unmarshal(r.whole, &run); err != nil {
			return "", errs.New("read record of run", r.ID, errs.Corrupt, err)
		}
		return cbt.Recover(ctx, n.cbtOptions(c, silent{}, v, r.Task), run)
	}
	return "", errs.Text("clean up after run", r.ID, errs.Unsupported, "this version does not know the strategy "+r.Strategy).
		WithNext("Start the version of Holdfast again that made it.")
}

// backupResult is the result of a backup's task. Its keys are promises to scripts.
func backupResult(r *strategy.Result) map[string]any {
	out := map[string]any{
		"point": string(r.Point.ID), "incremental": r.Incremental, "read_bytes": r.ReadBytes, "dirty_bytes": r.DirtyBytes,
		"new_bytes": r.Stats.NewBytes, "known_bytes": r.Stats.KnownBytes, "stored_bytes": r.Stats.StoredBytes, "data_bytes": r.DataBytes,
	}
	if r.Reason != "" {
		out["reason"] = r.Reason
	}
	if r.Stats.StoredBytes > 0 {
		out["dedup_ratio"] = float64(r.DataBytes) / float64(r.Stats.StoredBytes)
	}
	return out
}
