package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/ovirt/imageio"
	"github.com/holdfast-backup/holdfast/appliance/strategy"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

const grain = 65536

// errDead is what a killed node's calls come to; errAway is an engine that does not answer.
var (
	errDead = errors.New("the node is dead")
	errAway = errs.Text("reach engine", "", errs.Transient, "connection refused")
)

// volume is one image of a disk: the grains that were written while it was on top.
type volume struct {
	id     ovirt.ID
	format ovirt.DiskFormat
	own    map[int64][]byte // nil: zeros
	size   int64
}

// fakeDisk is a chain of volumes, of which the last one is written to, and what all of it shows.
type fakeDisk struct {
	ovirt.Disk
	data  []byte
	chain []*volume
}

// write is what the guest does.
func (d *fakeDisk) write(off int, p []byte) {
	copy(d.data[off:], p)
	top := d.chain[len(d.chain)-1]
	for g := int64(off / grain); g <= int64((off+len(p)-1)/grain); g++ {
		own := bytes.Clone(d.data[g*grain : min((g+1)*grain, int64(len(d.data)))])
		if len(bytes.Trim(own, "\x00")) == 0 {
			own = nil
		}
		top.own[g] = own
	}
}

// grow makes the disk larger. Only the volume on top is.
func (d *fakeDisk) grow(n int) {
	d.data = append(d.data, make([]byte, n)...)
	d.chain[len(d.chain)-1].size = int64(len(d.data))
	d.Provisioned = int64(len(d.data))
}

// snapshot is one with the volumes that it ends with.
type snapshot struct {
	ovirt.Snapshot
	volumes map[ovirt.ID]ovirt.ID
	looks   int // until it changes
}

// engine is an oVirt engine of one VM. From call number dieAt on every call fails; a call that dies late is carried out
// first.
type engine struct {
	t           *testing.T
	vm          ovirt.VM
	info        ovirt.Info
	disks       map[ovirt.ID]*fakeDisk
	order       []ovirt.ID
	snapshots   []*snapshot
	checkpoints []ovirt.ID
	transfers   map[ovirt.ID]*ovirt.Transfer
	specs       map[ovirt.ID]ovirt.TransferSpec
	calls       int
	dieAt       int
	dieLate     bool
	awayFrom    int
	awayFor     int
	awayLate    bool
	giveUp      bool // the next snapshot fails after it was begun
	next        int
	asked       int // snapshots
}

func newEngine(t *testing.T, sizes ...int) *engine {
	e := &engine{t: t, disks: map[ovirt.ID]*fakeDisk{}, transfers: map[ovirt.ID]*ovirt.Transfer{}, specs: map[ovirt.ID]ovirt.TransferSpec{},
		info: ovirt.Info{Version: "4.5.5", Major: 4, Minor: 5}, vm: ovirt.VM{ID: "vm-1", Name: "web", Status: ovirt.VMUp, MemoryMiB: 512, Cluster: "c"}}
	for i, n := range sizes {
		e.addDisk(ovirt.ID(fmt.Sprint("disk-", i)), n, i == 0)
	}
	return e
}

func (e *engine) id(what string) ovirt.ID {
	e.next++
	return ovirt.ID(fmt.Sprint(what, "-", e.next))
}

func (e *engine) addDisk(id ovirt.ID, size int, boot bool) {
	e.disks[id] = &fakeDisk{
		Disk: ovirt.Disk{ID: id, Alias: "alias-" + string(id), Status: ovirt.DiskOK, Format: ovirt.FormatRaw, Provisioned: int64(size), Storage: "image"},
		data: make([]byte, size), chain: []*volume{{e.id("volume"), ovirt.FormatRaw, map[int64][]byte{}, int64(size)}},
	}
	e.order = append(e.order, id)
	e.vm.Disks = append(e.vm.Disks, ovirt.Attachment{Disk: id, Interface: "virtio_scsi", Bootable: boot, Active: true})
}

func (e *engine) call(do func() error) error {
	e.calls++
	if n := e.calls - e.awayFrom; e.awayFrom > 0 && n >= 0 && n < e.awayFor {
		if n == 0 && e.awayLate {
			_ = do() // nobody hears of it
		}
		return errAway
	}
	dead := e.dieAt > 0 && e.calls >= e.dieAt
	if dead && (e.calls > e.dieAt || !e.dieLate) {
		return errs.New("call engine", "", errs.Bug, errDead)
	}
	err := do()
	if dead {
		return errs.New("call engine", "", errs.Bug, errDead)
	}
	return err
}

func notFound(what string, id ovirt.ID) error {
	return errs.Text(what, string(id), errs.NotFound, "none")
}

func (e *engine) Info(context.Context) (i ovirt.Info, err error) {
	err = e.call(func() error { i = e.info; return nil })
	return
}

func (e *engine) VM(context.Context, ovirt.ID) (v ovirt.VM, err error) {
	err = e.call(func() error { v = e.vm; return nil })
	return
}

func (e *engine) VMConfig(context.Context, ovirt.ID) (s string, err error) {
	err = e.call(func() error { s = "<ovf/>"; return nil })
	return
}

func (e *engine) Disks(context.Context, ovirt.ID) (out []ovirt.Disk, err error) {
	err = e.call(func() error {
		for _, id := range e.order {
			out = append(out, e.disks[id].Disk)
		}
		return nil
	})
	return
}

func (e *engine) AddSnapshot(_ context.Context, _ ovirt.ID, s ovirt.SnapshotSpec) (got ovirt.Snapshot, err error) {
	err = e.call(func() error {
		e.asked++
		for _, o := range e.snapshots {
			if o.Description == s.Description {
				e.t.Errorf("snapshot %q is taken twice", s.Description)
			}
			if o.Status == "locked" {
				return errs.Text("take", "", errs.Busy, "another one is being made")
			}
		}
		n := &snapshot{Snapshot: ovirt.Snapshot{ID: e.id("snapshot"), Description: s.Description, Status: "locked", Type: "regular"}, volumes: map[ovirt.ID]ovirt.ID{}, looks: 2}
		for _, id := range s.Disks {
			d := e.disks[id]
			n.volumes[id] = d.chain[len(d.chain)-1].id
			d.chain = append(d.chain, &volume{e.id("volume"), ovirt.FormatCow, map[int64][]byte{}, int64(len(d.data))})
		}
		e.snapshots = append(e.snapshots, n)
		got = n.Snapshot
		return nil
	})
	return
}

// Snapshots moves what is under way on, as time would.
func (e *engine) Snapshots(context.Context, ovirt.ID) (out []ovirt.Snapshot, err error) {
	err = e.call(func() error {
		for _, s := range slices.Clone(e.snapshots) {
			switch s.looks--; {
			case s.looks != 0:
			case s.Status == "locked":
				s.Status = "ok"
				if e.giveUp {
					e.giveUp = false
					e.merge(s)
				}
			default: // it was asked to go; for a moment it still showed as ok
				e.merge(s)
			}
		}
		for _, s := range e.snapshots {
			out = append(out, s.Snapshot)
		}
		return nil
	})
	return
}

func (e *engine) RemoveSnapshot(_ context.Context, _, id ovirt.ID) error {
	return e.call(func() error {
		i := slices.IndexFunc(e.snapshots, func(s *snapshot) bool { return s.ID == id })
		if i < 0 {
			return notFound("find snapshot", id)
		}
		for _, t := range e.transfers {
			if t.Phase == ovirt.TransferTransferring {
				return errs.Text("remove", "", errs.Busy, "the disk is locked")
			}
		}
		if e.snapshots[i].looks > 0 {
			return errs.Text("remove", "", errs.Busy, "it is being merged")
		}
		e.snapshots[i].looks = 2
		return nil
	})
}

// merge removes a snapshot: its volumes get what is in those above, whose places they take.
func (e *engine) merge(s *snapshot) {
	e.snapshots = slices.DeleteFunc(e.snapshots, func(o *snapshot) bool { return o == s })
	for disk, id := range s.volumes {
		d := e.disks[disk]
		i := slices.IndexFunc(d.chain, func(v *volume) bool { return v.id == id })
		if i < 0 { // on a branch that nothing lies on
			continue
		}
		child := d.chain[i+1]
		for g, own := range child.own {
			d.chain[i].own[g] = own
		}
		d.chain[i].size = child.size
		d.chain = slices.Delete(d.chain, i+1, i+2)
		for _, o := range e.snapshots {
			if o.volumes[disk] == child.id {
				o.volumes[disk] = id
			}
		}
	}
}

func (e *engine) SnapshotDisks(_ context.Context, _, id ovirt.ID) (out []ovirt.SnapshotDisk, err error) {
	err = e.call(func() error {
		for _, s := range e.snapshots {
			for disk, v := range s.volumes {
				if s.ID == id {
					out = append(out, ovirt.SnapshotDisk{Disk: disk, Volume: v})
				}
			}
		}
		return nil
	})
	return
}

func (e *engine) Volumes(_ context.Context, disk ovirt.ID) (out []ovirt.Volume, err error) {
	err = e.call(func() error {
		parent := ovirt.ID("")
		for _, v := range e.disks[disk].chain {
			out = append([]ovirt.Volume{{ID: v.id, Parent: parent, Format: v.format}}, out...)
			parent = v.id
		}
		return nil
	})
	return
}

func (e *engine) RemoveCheckpoint(_ context.Context, _, id ovirt.ID) error {
	return e.call(func() error {
		if !slices.Contains(e.checkpoints, id) {
			return notFound("find checkpoint", id)
		}
		e.checkpoints = slices.DeleteFunc(e.checkpoints, func(c ovirt.ID) bool { return c == id })
		return nil
	})
}

func (e *engine) StartTransfer(_ context.Context, s ovirt.TransferSpec) (t ovirt.Transfer, err error) {
	err = e.call(func() error {
		for id, o := range e.specs {
			if o.Disk == s.Disk && e.transfers[id].Phase == ovirt.TransferTransferring {
				e.t.Errorf("disk %s is transferred twice at once", s.Disk)
			}
		}
		t = ovirt.Transfer{ID: e.id("transfer"), Phase: ovirt.TransferInitializing, Disk: s.Disk, Download: true}
		stored := t
		stored.Phase, stored.TransferURL = ovirt.TransferTransferring, "https://host/"+string(t.ID)
		e.transfers[t.ID], e.specs[t.ID] = &stored, s
		return nil
	})
	return
}

func (e *engine) Transfer(_ context.Context, id ovirt.ID) (t ovirt.Transfer, err error) {
	err = e.call(func() error {
		if e.transfers[id] == nil {
			return notFound("find transfer", id)
		}
		t = *e.transfers[id]
		return nil
	})
	return
}

func (e *engine) LiveTransfers(context.Context) (out []ovirt.Transfer, err error) {
	err = e.call(func() error {
		for _, t := range e.transfers {
			if t.Phase == ovirt.TransferTransferring {
				out = append(out, *t)
			}
		}
		return nil
	})
	return
}

func (e *engine) end(id ovirt.ID, p ovirt.TransferPhase) error {
	return e.call(func() error {
		if e.transfers[id] == nil {
			return notFound("find transfer", id)
		}
		if _, ours := e.specs[id]; !ours {
			e.t.Errorf("transfer %s is somebody else's", id)
		}
		e.transfers[id].Phase = p
		return nil
	})
}

func (e *engine) FinalizeTransfer(_ context.Context, id ovirt.ID) error {
	return e.end(id, ovirt.TransferFinishedSuccess)
}

func (e *engine) CancelTransfer(_ context.Context, id ovirt.ID) error {
	return e.end(id, ovirt.TransferFinishedFailure)
}

// image is a volume behind a transfer: alone, or with all below it.
type image struct {
	e       *engine
	shallow bool
	chain   []*volume // the one that is read is the last
	read    int64
}

func (e *engine) open(_ context.Context, t ovirt.Transfer) (strategy.Image, error) {
	s := e.specs[t.ID]
	chain := e.disks[s.Disk].chain
	i := slices.IndexFunc(chain, func(v *volume) bool { return v.id == s.Volume })
	if i < 0 || i == len(chain)-1 {
		e.t.Fatalf("volume %s is not a snapshot's", s.Volume)
	}
	return &image{e: e, shallow: s.Shallow, chain: chain[:i+1]}, nil
}

func (m *image) top() *volume     { return m.chain[len(m.chain)-1] }
func (m *image) Size() int64      { return m.top().size }
func (m *image) ReadBytes() int64 { return m.read }
func (m *image) Close() error     { return nil }

// grainAt returns a grain and how deep it lies; 0 is nowhere.
func (m *image) grainAt(g int64) (own []byte, depth int) {
	for i, v := range slices.Backward(m.chain) {
		if own, has := v.own[g]; has {
			return own, len(m.chain) - i
		}
		if m.shallow {
			break
		}
	}
	return nil, 0
}

func (m *image) Extents(_ context.Context, _ bool, visit func(imageio.Extent) error) error {
	return m.e.call(func() error {
		for off := int64(0); off < m.Size(); off += grain {
			own, depth := m.grainAt(off / grain)
			x := imageio.Extent{Start: off, Length: min(grain, m.Size()-off), Zero: own == nil, Hole: depth == 0}
			if err := visit(x); err != nil {
				return err
			}
		}
		return nil
	})
}

func (m *image) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if m.shallow {
		m.e.t.Error("a layer is read, which shows less than the disk")
	}
	all := make([]byte, m.Size())
	for g := int64(0); g*grain < m.Size(); g++ {
		own, _ := m.grainAt(g)
		if copy(all[g*grain:], own); own == nil && g*grain < off+int64(len(p)) && (g+1)*grain > off {
			m.e.t.Errorf("zeros at %d were read", g*grain)
		}
	}
	m.read += int64(len(p))
	return bytes.NewReader(all).ReadAt(p, off)
}
