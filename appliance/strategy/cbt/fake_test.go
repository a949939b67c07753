package cbt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/ovirt/imageio"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

const grain = 65536

// errDead is what a killed node's calls come to.
var errDead = errors.New("the node is dead")

// engine is an oVirt engine of one VM, as far as backups go. From call number dieAt on every call fails; a call that dies
// late is carried out first.
type engine struct {
	t           *testing.T
	vm          ovirt.VM
	disks       map[ovirt.ID]*fakeDisk
	order       []ovirt.ID
	checkpoints []ovirt.Checkpoint
	backups     map[ovirt.ID]*ovirt.Backup
	inBackup    map[ovirt.ID][]ovirt.BackupDisk
	transfers   map[ovirt.ID]*ovirt.Transfer
	of          map[ovirt.ID]ovirt.ID // transfer → backup
	calls       int
	dieAt       int // 0: never
	dieLate     bool
	awayFrom    int  // from this call on the engine does not answer; 0: it always does
	awayFor     int  // so many calls
	awayLate    bool // it carries out the first of them
	lose        bool // the next incremental backup fails once it has started
	refuse      bool // finalising is refused once, as with an active transfer
	snapshots   []ovirt.Snapshot
	next        int
}

// fakeDisk keeps what it holds, and for each checkpoint which grains changed since.
type fakeDisk struct {
	ovirt.Disk
	data  []byte
	dirty map[ovirt.ID]map[int64]bool
	taken map[ovirt.ID][]byte // as it was when a backup began
}

func newEngine(t *testing.T, sizes ...int) *engine {
	e := &engine{t: t, disks: map[ovirt.ID]*fakeDisk{}, backups: map[ovirt.ID]*ovirt.Backup{},
		inBackup: map[ovirt.ID][]ovirt.BackupDisk{}, transfers: map[ovirt.ID]*ovirt.Transfer{}, of: map[ovirt.ID]ovirt.ID{}}
	e.vm = ovirt.VM{ID: "vm-1", Name: "web", Status: ovirt.VMUp, MemoryMiB: 512, Cluster: "c"}
	for i, n := range sizes {
		e.addDisk(ovirt.ID(fmt.Sprint("disk-", i)), n, i == 0)
	}
	return e
}

func (e *engine) addDisk(id ovirt.ID, size int, boot bool) {
	e.disks[id] = &fakeDisk{
		Disk: ovirt.Disk{ID: id, Alias: "alias-" + string(id), Status: ovirt.DiskOK, Format: ovirt.FormatCow, Provisioned: int64(size), Storage: "image", Incremental: true},
		data: make([]byte, size), dirty: map[ovirt.ID]map[int64]bool{}, taken: map[ovirt.ID][]byte{},
	}
	e.order = append(e.order, id)
	e.vm.Disks = append(e.vm.Disks, ovirt.Attachment{Disk: id, Interface: "virtio_scsi", Bootable: boot, Active: true})
}

// write is what the guest does.
func (d *fakeDisk) write(off int, p []byte) {
	copy(d.data[off:], p)
	for _, m := range d.dirty {
		for g := off / grain; g <= (off+len(p)-1)/grain; g++ {
			m[int64(g)] = true
		}
	}
}

// errAway is an engine that does not answer.
var errAway = errs.Text("reach engine", "", errs.Transient, "connection refused")

// call counts a call; die tells whether it fails, and whether before or after it was carried out.
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

func (e *engine) StartBackup(_ context.Context, _ ovirt.ID, s ovirt.BackupSpec) (b ovirt.Backup, err error) {
	err = e.call(func() error {
		if e.backups[s.ID] != nil {
			if e.awayFrom == 0 {
				e.t.Errorf("backup %s is started twice", s.ID)
			}
			b = *e.backups[s.ID]
			return nil
		}
		if s.From != "" && !slices.ContainsFunc(e.checkpoints, func(c ovirt.Checkpoint) bool { return c.ID == s.From }) {
			return errs.Text("start backup", "", errs.Stale, "checkpoint does not exist")
		}
		b = ovirt.Backup{ID: s.ID, Phase: ovirt.BackupStarting, FromCheckpoint: s.From}
		e.backups[s.ID] = &b
		if s.From != "" && e.lose {
			e.lose = false
			e.backups[s.ID].Phase = ovirt.BackupFailed
			e.checkpoints = nil
			return nil
		}
		to := ovirt.ID("cp-" + string(s.ID))
		e.backups[s.ID].ToCheckpoint = to
		e.checkpoints = append(e.checkpoints, ovirt.Checkpoint{ID: to, Valid: true})
		for _, id := range s.Disks {
			d := e.disks[id]
			_, known := d.dirty[s.From]
			e.inBackup[s.ID] = append(e.inBackup[s.ID], ovirt.BackupDisk{Disk: id, Incremental: known})
			d.taken[s.ID] = bytes.Clone(d.data)
			d.dirty[to] = map[int64]bool{}
		}
		return nil
	})
	return
}

func (e *engine) Backup(_ context.Context, _, id ovirt.ID) (b ovirt.Backup, err error) {
	err = e.call(func() error {
		if e.backups[id] == nil {
			return notFound("find backup", id)
		}
		switch e.backups[id].Phase { // each look moves it on, as time would
		case ovirt.BackupStarting:
			e.backups[id].Phase = ovirt.BackupReady
		case ovirt.BackupFinalizing:
			e.backups[id].Phase = ovirt.BackupSucceeded
		}
		b = *e.backups[id]
		return nil
	})
	return
}

func (e *engine) BackupDisks(_ context.Context, _, id ovirt.ID) (out []ovirt.BackupDisk, err error) {
	err = e.call(func() error { out = e.inBackup[id]; return nil })
	return
}

func (e *engine) FinalizeBackup(_ context.Context, _, id ovirt.ID) error {
	return e.call(func() error {
		b := e.backups[id]
		if b == nil {
			return notFound("find backup", id)
		}
		for tid, t := range e.transfers {
			if e.of[tid] == id && t.Phase == ovirt.TransferTransferring {
				return errs.Text("finalize", "", errs.Busy, "there is an active image transfer")
			}
		}
		if e.refuse {
			e.refuse = false
			return errs.Text("finalize", "", errs.Busy, "locked")
		}
		if b.Phase == ovirt.BackupSucceeded || b.Phase == ovirt.BackupFailed {
			return errs.Text("finalize", "", errs.Invalid, "already stopped")
		}
		b.Phase = ovirt.BackupFinalizing
		return nil
	})
}

func (e *engine) Checkpoints(context.Context, ovirt.ID) (out []ovirt.Checkpoint, err error) {
	err = e.call(func() error { out = slices.Clone(e.checkpoints); return nil })
	return
}

func (e *engine) RemoveCheckpoint(_ context.Context, _, id ovirt.ID) error {
	return e.call(func() error {
		n := len(e.checkpoints)
		e.checkpoints = slices.DeleteFunc(e.checkpoints, func(c ovirt.Checkpoint) bool { return c.ID == id })
		if n == len(e.checkpoints) {
			return notFound("find checkpoint", id)
		}
		for _, d := range e.disks {
			delete(d.dirty, id)
		}
		return nil
	})
}

func (e *engine) Snapshots(context.Context, ovirt.ID) (out []ovirt.Snapshot, err error) {
	err = e.call(func() error { out = slices.Clone(e.snapshots); return nil })
	return
}

func (e *engine) RemoveSnapshot(_ context.Context, _, id ovirt.ID) error {
	return e.call(func() error {
		e.snapshots = slices.DeleteFunc(e.snapshots, func(s ovirt.Snapshot) bool { return s.ID == id })
		return nil
	})
}

func (e *engine) StartTransfer(_ context.Context, s ovirt.TransferSpec) (t ovirt.Transfer, err error) {
	err = e.call(func() error {
		e.next++
		t = ovirt.Transfer{ID: ovirt.ID(fmt.Sprint("t-", e.next)), Phase: ovirt.TransferInitializing, Disk: s.Disk, TransferURL: "https://host/" + string(s.Backup)}
		stored := t
		stored.Phase = ovirt.TransferTransferring
		e.transfers[t.ID], e.of[t.ID] = &stored, s.Backup
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

func (e *engine) Transfers(_ context.Context, backup ovirt.ID) (out []ovirt.Transfer, err error) {
	err = e.call(func() error {
		for id, t := range e.transfers {
			if e.of[id] == backup {
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

// leftovers lists what a run must not leave.
func (e *engine) leftovers() (out []string) {
	for id, b := range e.backups {
		if b.Phase != ovirt.BackupSucceeded && b.Phase != ovirt.BackupFailed {
			out = append(out, "backup "+string(id)+" "+string(b.Phase))
		}
	}
	for id, t := range e.transfers {
		if t.Phase == ovirt.TransferTransferring {
			out = append(out, "transfer "+string(id))
		}
	}
	return out
}

// image is the disk behind a transfer.
type image struct {
	e     *engine
	d     *fakeDisk
	taken []byte
	from  ovirt.ID
	read  int64
}

func (e *engine) open(_ context.Context, t ovirt.Transfer) (Image, error) {
	d := e.disks[t.Disk]
	b := e.of[t.ID]
	return &image{e: e, d: d, taken: d.taken[b], from: e.backups[b].FromCheckpoint}, nil
}

func (m *image) Size() int64      { return int64(len(m.taken)) }
func (m *image) ReadBytes() int64 { return m.read }
func (m *image) Close() error     { return nil }

func (m *image) Extents(_ context.Context, dirty bool, visit func(imageio.Extent) error) error {
	return m.e.call(func() error {
		for off := int64(0); off < m.Size(); off += grain {
			n := min(grain, m.Size()-off)
			x := imageio.Extent{Start: off, Length: n, Zero: len(bytes.Trim(m.taken[off:off+n], "\x00")) == 0}
			if dirty {
				x.Dirty = m.d.dirty[m.from][off/grain]
			}
			if err := visit(x); err != nil {
				return err
			}
		}
		return nil
	})
}

func (m *image) ReadAt(_ context.Context, p []byte, off int64) (n int, err error) {
	for g := off / grain; g*grain < off+int64(len(p)); g++ {
		if lo, hi := g*grain, min((g+1)*grain, m.Size()); len(bytes.Trim(m.taken[lo:hi], "\x00")) == 0 {
			m.e.t.Errorf("zeros at %d were read", lo)
		}
	}
	m.read += int64(len(p))
	return bytes.NewReader(m.taken).ReadAt(p, off)
}

// rig is a store and a journal around an engine.
type rig struct {
	*engine
	store *chunkstore.Store
	runs  map[string]Run
	notes []string
	ids   int
}

func newRig(t *testing.T, sizes ...int) *rig {
	t.Helper()
	dir := t.TempDir() + "/s"
	made, err := chunkstore.Create(t.Context(), dir, []byte("p"), 10, chunkstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	k, _, err := keys.ParseKit(made.Kit)
	if err != nil {
		t.Fatal(err)
	}
	s, err := chunkstore.Open(t.Context(), dir, chunkstore.Options{Unlock: chunkstore.WithMaster(k)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return &rig{engine: newEngine(t, sizes...), store: s, runs: map[string]Run{}}
}

func (r *rig) KeepRun(x Run) error       { r.runs[x.ID] = x; return nil }
func (r *rig) ForgetRun(id string) error { delete(r.runs, id); return nil }

func (r *rig) Step(string)                 {}
func (r *rig) StepFailed()                 {}
func (r *rig) Detail(string)               {}
func (r *rig) Note(s string)               { r.notes = append(r.notes, s) }
func (r *rig) Progress(appliance.Progress) {}

func (r *rig) options(full bool) Options {
	r.ids++
	return Options{
		Engine: r.engine, Open: r.open, Store: r.store, Journal: r, Report: r, Manager: "m", VM: ovirt.VM{ID: r.vm.ID, Name: r.vm.Name},
		RunID: fmt.Sprint("run-", r.ids), Full: full, Poll: time.Microsecond,
		Now: func() time.Time { return time.Unix(int64(1e9+r.ids*60), 0) },
	}
}

// content reads a disk of a point.
func (r *rig) content(p *chunkstore.Point, number int) []byte {
	img, err := r.store.Image(p, number)
	if err != nil {
		r.t.Fatal(err)
	}
	b := make([]byte, img.Size())
	if _, err := img.ReadAt(context.Background(), b, 0); err != nil {
		r.t.Fatal(err)
	}
	return b
}

// settled demands that nothing is left but one checkpoint: that of the last point.
func (r *rig) settled(when string) {
	r.t.Helper()
	if l := r.leftovers(); len(l) > 0 || len(r.runs) > 0 {
		r.t.Fatalf("%s: left behind %v, records %v", when, l, r.runs)
	}
	points, _ := r.store.Points(context.Background())
	want := "[]"
	if len(points) > 0 {
		want = fmt.Sprint([]ovirt.ID{ovirt.ID(points[len(points)-1].Labels[appliance.LabelCheckpoint])})
	}
	have := []ovirt.ID{}
	for _, c := range r.checkpoints {
		have = append(have, c.ID)
	}
	if fmt.Sprint(have) != want {
		r.t.Fatalf("%s: checkpoints %v, want %v", when, have, want)
	}
}
