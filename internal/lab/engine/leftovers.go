package engine

import (
	"slices"
)

// Snapshot lists every object that exists, one line each and sorted: what a test compares before and after.
type Snapshot []string

// Snapshot returns what exists now: VMs, their attachments, snapshots and checkpoints, disks, backups and transfers that
// have not ended, connections and domains.
func (e *Engine) Snapshot() Snapshot {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all Snapshot
	add := func(kind, id, name string) { all = append(all, kind+" "+id+" "+name) }
	for _, v := range e.state.vms.all() {
		add("vm", v.id, v.name)
		for _, a := range v.attachments {
			add("attachment", v.id+"/"+a.disk, "")
		}
		for _, s := range v.snapshots {
			if s.kind != "active" { // the active one changes its id with every snapshot
				add("snapshot", s.id, s.description)
			}
		}
		for _, cp := range v.checkpoints {
			add("checkpoint", cp.id, "of "+v.name)
		}
	}
	for _, d := range e.state.disks.all() {
		add("disk", d.id, d.alias)
	}
	for _, b := range e.state.backups.all() {
		if !b.ended() {
			add("backup", b.id, b.phase)
		}
	}
	for _, t := range e.state.transfers.all() {
		if !t.ended() {
			add("transfer", t.id, t.phase)
		}
	}
	for _, k := range e.state.connections.all() {
		add("connection", k.id, k.export())
	}
	for _, d := range e.state.domains.all() {
		add("domain", d.id, d.name)
	}
	slices.Sort(all)
	return all
}

// Leftovers returns what exists now and did not before.
func (e *Engine) Leftovers(before Snapshot) []string {
	return slices.DeleteFunc(e.Snapshot(), func(line string) bool {
		_, known := slices.BinarySearch(before, line)
		return known
	})
}

// IDs names the installation's fixed objects, for tests and for the lab.
type IDs struct{ DataCenter, Cluster, Host string }

// IDs returns them.
func (e *Engine) IDs() IDs {
	e.mu.Lock()
	defer e.mu.Unlock()
	return IDs{e.state.center, e.state.cluster, e.state.host}
}
