package instant

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// errDead is what a killed node's calls come to.
var errDead = errors.New("the node is dead")

// world is an engine with one data center, and the serving side of the node. From call number dieAt on every call to
// either fails; a call that dies late is carried out first.
type world struct {
	t           *testing.T
	connections map[ovirt.ID]ovirt.Connection
	domains     map[ovirt.ID]*ovirt.Domain
	vms         map[ovirt.ID]*ovirt.VM
	disks       map[ovirt.ID]*ovirt.Disk
	snapshots   map[ovirt.ID][]ovirt.Snapshot
	jobs        map[string][]ovirt.Job
	moving      map[ovirt.ID]int // looks until a move is over
	exported    map[string]Record
	records     map[string]Record
	notes       []string
	calls       int
	dieAt       int
	dieLate     bool
	next        int
	failMoves   int    // so many moves are given up
	failAt      string // the call of this name fails, for good
	strange     bool   // the host finds another domain at our path
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, connections: map[ovirt.ID]ovirt.Connection{}, domains: map[ovirt.ID]*ovirt.Domain{}, vms: map[ovirt.ID]*ovirt.VM{},
		disks: map[ovirt.ID]*ovirt.Disk{}, snapshots: map[ovirt.ID][]ovirt.Snapshot{}, jobs: map[string][]ovirt.Job{},
		moving: map[ovirt.ID]int{}, exported: map[string]Record{}, records: map[string]Record{}}
	w.domains["prod"] = &ovirt.Domain{ID: "prod", Name: "production", Type: "data", Status: ovirt.DomainActive, Available: 1 << 40, DataCenter: "dc"}
	w.vms["orig"] = &ovirt.VM{ID: "orig", Name: "web", Status: ovirt.VMUp}
	return w
}

func (w *world) call(name string, do func() error) error {
	w.calls++
	dead := w.dieAt > 0 && w.calls >= w.dieAt
	if dead && (w.calls > w.dieAt || !w.dieLate) {
		return errs.New(name, "", errs.Bug, errDead)
	}
	if name == w.failAt {
		return errs.Text(name, "", errs.Unsupported, "made to fail")
	}
	err := do()
	if dead {
		return errs.New(name, "", errs.Bug, errDead)
	}
	return err
}

func none(what string, id ovirt.ID) error { return errs.Text(what, string(id), errs.NotFound, "none") }

func (w *world) DataCenters(context.Context) ([]ovirt.DataCenter, error) {
	return []ovirt.DataCenter{{ID: "dc", Name: "Default"}}, w.call("DataCenters", func() error { return nil })
}

func (w *world) Clusters(context.Context) ([]ovirt.Cluster, error) {
	return []ovirt.Cluster{{ID: "c", Name: "Default", DataCenter: "dc"}}, w.call("Clusters", func() error { return nil })
}

func (w *world) Hosts(context.Context) ([]ovirt.Host, error) {
	return []ovirt.Host{{ID: "h0", Name: "down", Cluster: "c", Status: "maintenance"}, {ID: "h", Name: "host1", Cluster: "c", Status: "up"}},
		w.call("Hosts", func() error { return nil })
}

func (w *world) Domains(context.Context, ovirt.ID) (out []ovirt.Domain, err error) {
	err = w.call("Domains", func() error {
		for _, d := range w.domains {
			if d.DataCenter == "dc" {
				out = append(out, *d)
			}
		}
		return nil
	})
	return
}

func (w *world) Disk(_ context.Context, id ovirt.ID) (d ovirt.Disk, err error) {
	err = w.call("Disk", func() error {
		if w.disks[id] == nil {
			return none("find disk", id)
		}
		d = *w.disks[id]
		return nil
	})
	return
}

func (w *world) finishMove(id ovirt.ID) {
	w.disks[id].Status = ovirt.DiskOK
	for tag := range w.jobs {
		w.jobs[tag][0].Status = "finished"
	}
	for vm := range w.snapshots {
		w.snapshots[vm] = nil
	}
	if w.failMoves > 0 {
		w.failMoves--
		for tag := range w.jobs {
			w.jobs[tag][0].Status = "failed"
		}
		return
	}
	w.disks[id].Domain = "prod"
}

func (w *world) VM(_ context.Context, id ovirt.ID) (v ovirt.VM, err error) {
	err = w.call("VM", func() error {
		if w.vms[id] == nil {
			return none("find VM", id)
		}
		v = *w.vms[id]
		if v.Status == "powering_up" {
			w.vms[id].Status = ovirt.VMUp
		}
		return nil
	})
	return
}

func (w *world) FindVM(_ context.Context, name string) (v ovirt.VM, err error) {
	err = w.call("FindVM", func() error {
		for _, x := range w.vms {
			if x.Name == name {
				v = *x
				return nil
			}
		}
		return none("find VM", ovirt.ID(name))
	})
	return
}

func (w *world) FindConnection(_ context.Context, address, path string) (c ovirt.Connection, err error) {
	err = w.call("FindConnection", func() error {
		for _, x := range w.connections {
			if x.Address == address && x.Path == path {
				c = x
				return nil
			}
		}
		return none("find connection", ovirt.ID(path))
	})
	return
}

func (w *world) AddConnection(_ context.Context, c ovirt.Connection) (ovirt.Connection, error) {
	err := w.call("AddConnection", func() error {
		w.next++
		c.ID = ovirt.ID(fmt.Sprint("conn-", w.next))
		w.connections[c.ID] = c
		return nil
	})
	return c, err
}

func (w *world) RemoveConnection(_ context.Context, id, _ ovirt.ID) error {
	return w.call("RemoveConnection", func() error { delete(w.connections, id); return nil })
}

func (w *world) FindDomain(_ context.Context, id ovirt.ID) (d ovirt.Domain, err error) {
	err = w.call("FindDomain", func() error {
		if w.domains[id] == nil {
			return none("find domain", id)
		}
		d = *w.domains[id]
		return nil
	})
	return
}

// ImportDomain finds what is exported at the connection's path.
func (w *world) ImportDomain(_ context.Context, s ovirt.DomainSpec) (d ovirt.Domain, err error) {
	err = w.call("ImportDomain", func() error {
		c := w.connections[s.Connection]
		for _, r := range w.exported {
			if r.Path != c.Path {
				continue
			}
			id := ovirt.ID(r.DomainID)
			if w.strange {
				id = "strange"
			}
			d = ovirt.Domain{ID: id, Name: s.Name, Type: "data", Status: ovirt.DomainUnattached}
			stored := d
			w.domains[id] = &stored
			return nil
		}
		return errs.Text("import domain", s.Name, errs.Bug, "nothing is exported there")
	})
	return
}

func (w *world) AttachDomain(_ context.Context, dc, id ovirt.ID) error {
	return w.call("AttachDomain", func() error {
		w.domains[id].DataCenter, w.domains[id].Status = dc, ovirt.DomainLocked
		return nil
	})
}

func (w *world) Domain(_ context.Context, dc, id ovirt.ID) (d ovirt.Domain, err error) {
	err = w.call("Domain", func() error {
		x := w.domains[id]
		if x == nil || x.DataCenter != dc {
			return none("find domain", id)
		}
		switch x.Status { // each look moves it on
		case ovirt.DomainLocked:
			x.Status = ovirt.DomainActive
		case ovirt.DomainPreparing:
			x.Status = ovirt.DomainMaintenance
		}
		d = *x
		return nil
	})
	return
}

func (w *world) ActivateDomain(_ context.Context, _, id ovirt.ID) error {
	return w.call("ActivateDomain", func() error { w.domains[id].Status = ovirt.DomainLocked; return nil })
}

func (w *world) DeactivateDomain(_ context.Context, _, id ovirt.ID) error {
	return w.call("DeactivateDomain", func() error {
		for _, v := range w.vms {
			for _, a := range v.Disks {
				if v.Status != ovirt.VMDown && w.disks[a.Disk] != nil && w.disks[a.Disk].Domain == id {
					return errs.Text("deactivate", "", errs.Busy, "VMs run from it")
				}
			}
		}
		w.served(id, "deactivated")
		w.domains[id].Status = ovirt.DomainPreparing
		return nil
	})
}

func (w *world) DetachDomain(_ context.Context, _, id ovirt.ID) error {
	return w.call("DetachDomain", func() error {
		if w.domains[id].Status != ovirt.DomainMaintenance {
			return errs.Text("detach", "", errs.Busy, "not in maintenance")
		}
		w.served(id, "detached")
		w.domains[id].DataCenter, w.domains[id].Status = "", ovirt.DomainUnattached
		return nil
	})
}

// served demands that a domain is exported as long as the engine works with it.
func (w *world) served(id ovirt.ID, when string) {
	for _, r := range w.exported {
		if r.DomainID == string(id) {
			return
		}
	}
	w.t.Errorf("domain %s is %s and not exported", id, when)
}

func (w *world) RemoveDomain(_ context.Context, id, host ovirt.ID) error {
	return w.call("RemoveDomain", func() error {
		if host != "h" {
			w.t.Errorf("removed through host %q, which is not up", host)
		}
		if w.domains[id] == nil {
			return none("remove domain", id)
		}
		delete(w.domains, id)
		return nil
	})
}

func (w *world) UnregisteredDisks(_ context.Context, id ovirt.ID) (out []ovirt.Disk, err error) {
	err = w.call("UnregisteredDisks", func() error {
		for _, r := range w.exported {
			if r.DomainID != string(id) {
				continue
			}
			for _, v := range r.Volumes {
				if w.disks[ovirt.ID(v.Disk)] == nil {
					out = append(out, ovirt.Disk{ID: ovirt.ID(v.Disk)})
				}
			}
		}
		return nil
	})
	return
}

func (w *world) RegisterDisk(_ context.Context, _, domain, disk ovirt.ID) error {
	return w.call("RegisterDisk", func() error {
		if w.disks[disk] != nil {
			w.t.Errorf("disk %s is registered twice", disk)
		}
		w.disks[disk] = &ovirt.Disk{ID: disk, Status: ovirt.DiskOK, Format: ovirt.FormatCow, Domain: domain}
		return nil
	})
}

func (w *world) CreateVM(_ context.Context, n ovirt.NewVM) (v ovirt.VM, err error) {
	err = w.call("CreateVM", func() error {
		for _, x := range w.vms {
			if x.Name == n.Name {
				return errs.Text("create VM", n.Name, errs.Exists, "name in use")
			}
		}
		w.next++
		v = ovirt.VM{ID: ovirt.ID(fmt.Sprint("vm-", w.next)), Name: n.Name, Status: ovirt.VMDown, Description: n.Description}
		stored := v
		w.vms[v.ID] = &stored
		return nil
	})
	return
}

func (w *world) AttachDisk(_ context.Context, vm ovirt.ID, a ovirt.NewAttachment) error {
	return w.call("AttachDisk", func() error {
		w.vms[vm].Disks = append(w.vms[vm].Disks, ovirt.Attachment{Disk: a.Disk, Bootable: a.Bootable, Active: true})
		return nil
	})
}

func (w *world) SetIncremental(_ context.Context, disk ovirt.ID) error {
	return w.call("SetIncremental", func() error { w.disks[disk].Incremental = true; return nil })
}

func (w *world) StartVM(_ context.Context, vm ovirt.ID) error {
	return w.call("StartVM", func() error {
		for _, a := range w.vms[vm].Disks {
			if !w.disks[a.Disk].Incremental {
				w.t.Error("started before incremental backup was enabled")
			}
		}
		w.vms[vm].Status = "powering_up"
		return nil
	})
}

func (w *world) StopVM(_ context.Context, vm ovirt.ID) error {
	return w.call("StopVM", func() error { w.vms[vm].Status = ovirt.VMDown; return nil })
}

func (w *world) RemoveVM(_ context.Context, vm ovirt.ID, keep bool) error {
	return w.call("RemoveVM", func() error {
		if vm == "orig" || !keep {
			w.t.Errorf("VM %s is removed, keeping disks: %v", vm, keep)
		}
		delete(w.vms, vm)
		return nil
	})
}

func (w *world) RemoveDisk(_ context.Context, disk ovirt.ID) error {
	return w.call("RemoveDisk", func() error { delete(w.disks, disk); return nil })
}

func (w *world) MoveDisk(ctx context.Context, disk, domain ovirt.ID) error {
	return w.call("MoveDisk", func() error {
		if w.moving[disk] > 0 || w.disks[disk].Domain == domain {
			w.t.Errorf("disk %s is moved twice", disk)
		}
		r := w.onlyRecord()
		w.jobs[r.MoveTag] = []ovirt.Job{{Status: "started", Description: "moving"}}
		w.snapshots[ovirt.ID(r.VMID)] = []ovirt.Snapshot{{ID: "s", Description: "web_Disk1 Auto-generated for Live Storage Migration"}}
		w.disks[disk].Status = ovirt.DiskLocked
		w.moving[disk] = 3
		return nil
	})
}

func (w *world) onlyRecord() Record {
	for _, r := range w.records {
		return r
	}
	w.t.Fatal("there is no record")
	return Record{}
}

func (w *world) Jobs(_ context.Context, tag string) (out []ovirt.Job, err error) {
	err = w.call("Jobs", func() error {
		for id := range w.moving { // each look moves it on
			if w.moving[id] > 0 {
				if w.moving[id]--; w.moving[id] == 0 {
					w.finishMove(id)
				}
			}
		}
		out = slices.Clone(w.jobs[tag])
		return nil
	})
	return
}

func (w *world) Snapshots(_ context.Context, vm ovirt.ID) (out []ovirt.Snapshot, err error) {
	err = w.call("Snapshots", func() error { out = w.snapshots[vm]; return nil })
	return
}

func (w *world) PostEvent(context.Context, ovirt.Event) error {
	return w.call("PostEvent", func() error { return nil })
}

func (w *world) Open(_ context.Context, r Record) error {
	return w.call("Open", func() error { w.exported[r.ID] = r; return nil })
}

func (w *world) Traffic(string, int) (int64, int64) { return 0, 0 }

func (w *world) Close(_ context.Context, id string) error {
	return w.call("Close", func() error {
		r := w.exported[id]
		if d := w.domains[ovirt.ID(r.DomainID)]; d != nil {
			w.t.Errorf("the export is closed while the engine has the domain (%s)", d.Status)
		}
		delete(w.exported, id)
		return nil
	})
}

func (w *world) KeepSession(r Record) error { w.records[r.ID] = r; return nil }

func (w *world) Step(string)                 {}
func (w *world) Detail(string)               {}
func (w *world) Note(s string)               { w.notes = append(w.notes, s) }
func (w *world) StepFailed()                 {}
func (w *world) Progress(appliance.Progress) {}

func (w *world) options() Options {
	return Options{Engine: w, Exporter: w, Journal: w, Address: "192.0.2.1", Port: 2049, Poll: time.Microsecond}
}

// left lists what is on the engine and on the node, the original VM and production storage not counted.
func (w *world) left() string {
	var out []string
	for id := range w.connections {
		out = append(out, "connection "+string(id))
	}
	for id := range w.domains {
		if id != "prod" {
			out = append(out, "domain")
		}
	}
	for id, v := range w.vms {
		if id != "orig" {
			out = append(out, "vm "+v.Name)
		}
	}
	for _, d := range w.disks {
		out = append(out, "disk on "+strings.Split(string(d.Domain), "-")[0])
	}
	for range w.exported {
		out = append(out, "export")
	}
	sort.Strings(out)
	return strings.Join(out, ", ")
}

func point(disks int) *chunkstore.Point {
	p := &chunkstore.Point{ID: "0123456789abcdef", Labels: map[string]string{appliance.LabelVM: "web"}}
	for i := range disks {
		p.Disks = append(p.Disks, chunkstore.Disk{Number: i, Root: manifest.Root{Size: 10_000, Data: 8192}})
	}
	return p
}
