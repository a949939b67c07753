package restore

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

func TestRestore(t *testing.T) {
	for _, verify := range []string{VerifyExtents, VerifyFull} {
		t.Run(verify, func(t *testing.T) {
			w := newWorld(t)
			q := w.request()
			q.Verify = verify
			r := w.prepare(q)
			if err := Run(t.Context(), w.o, r, w); err != nil {
				t.Fatal(err)
			}
			vm := w.checkWhole(r)
			if vm.Name != "copy" || vm.MemoryMiB != 768 || vm.Status == ovirt.VMDown || vm.Description != "" || !slices.Equal(vm.Tags, []string{"gold"}) {
				t.Errorf("the VM is %+v", vm)
			}
			if len(vm.Disks) != 2 || vm.Disks[0].Interface != "virtio_scsi" || !vm.Disks[0].Bootable || vm.Disks[1].Interface != "virtio" || vm.Disks[1].Bootable {
				t.Errorf("its disks are %+v", vm.Disks)
			}
			nics, err := w.client.NICs(t.Context(), vm.ID)
			if err != nil || len(nics) != 2 || nics[0].Profile == "" || nics[1].Profile != "" {
				t.Errorf("its NICs are %+v, %v", nics, err)
			}
			if !slices.ContainsFunc(w.notes, func(s string) bool { return strings.Contains(s, "no tag gone") }) {
				t.Errorf("a tag that is gone was not spoken of: %q", w.notes)
			}
			if last := w.records[len(w.records)-1]; last.State != appliance.RestoreDone || last.OVF != "" {
				t.Errorf("the last record is %+v", last)
			}
		})
	}
}

// A shareable disk is raw, and what lay on the storage before must not shine through its holes.
func TestRawDisk(t *testing.T) {
	w := newWorld(t)
	w.point.Config = []byte(strings.Replace(string(w.point.Config), `"format":"raw"`, `"format":"raw","shareable":true`, 1))
	q := w.request()
	q.Disks = []int{3}
	r := w.prepare(q)
	if len(r.Disks) != 1 || r.Disks[0].Format != "raw" || !r.Disks[0].Bootable {
		t.Fatalf("planned %+v", r.Disks)
	}
	if err := Run(t.Context(), w.o, r, w); err != nil {
		t.Fatal(err)
	}
	w.checkWhole(r)
}

// whole is what is wanted of a restore that succeeds all the same.
const whole = ^errs.Kind(0)

// inject has the engine fail at the first write of a disk.
func inject(name string) func(*world) {
	return func(w *world) {
		w.host.before = func(h *host, n int, _ http.ResponseWriter, _ *http.Request) bool {
			if n != 1 {
				return false
			}
			if err := w.engine.Fault(name); err != nil {
				w.t.Error(err)
			}
			withdrawn := name != engine.FaultTransferPaused && name != engine.FaultTicketExpired
			for !withdrawn { // the tickets go a moment later
				h.locked(func() { withdrawn = len(h.tickets) == 0 })
			}
			return false
		}
	}
}

var faults = []struct {
	name   string
	breaks func(*world)
	want   errs.Kind // whole: it succeeds all the same
}{
	{"paused by the system", inject(engine.FaultTransferPaused), whole},
	{"tickets expire", inject(engine.FaultTicketExpired), whole},
	{"engine restarts", inject(engine.FaultRestart), whole},
	{"login expires", inject(engine.FaultExpiredToken), whole},
	{"an answer is lost", func(w *world) { _ = w.engine.Fault(engine.FaultLostAnswer); _ = w.engine.Fault(engine.FaultLostAnswer) }, whole},
	{"an error page", func(w *world) { _ = w.engine.Fault(engine.FaultServerError) }, whole},
	{"connections break", func(w *world) {
		w.host.before = func(_ *host, n int, rw http.ResponseWriter, _ *http.Request) bool {
			if n > 2 {
				return false
			}
			c, _, err := rw.(http.Hijacker).Hijack()
			if err == nil {
				_ = c.Close()
			}
			return true
		}
	}, whole},
	{"the daemon fails once", func(w *world) {
		w.host.before = func(_ *host, n int, rw http.ResponseWriter, _ *http.Request) bool {
			if n == 1 {
				http.Error(rw, "Server failed to perform the request", http.StatusInternalServerError)
			}
			return n == 1
		}
	}, whole},
	{"a disk cannot be made at first", func(w *world) { w.host.full = 1 }, whole},
	{"no disk can be made", func(w *world) { w.host.full = 1 << 20 }, errs.Stale},
	{"the daemon fails always", func(w *world) {
		w.host.before = func(_ *host, _ int, rw http.ResponseWriter, _ *http.Request) bool {
			http.Error(rw, "Server failed to perform the request", http.StatusInternalServerError)
			return true
		}
	}, errs.Transient},
	{"the host is gone", func(w *world) { w.host.gone = true }, errs.Transient},
	{"writes are lost", func(w *world) {
		w.host.spoil = func(p []byte, off int64) []byte {
			if off > 8<<20 {
				return nil
			}
			return p
		}
	}, errs.Corrupt},
	{"the name is taken meanwhile", func(w *world) {
		w.host.before = func(_ *host, n int, _ http.ResponseWriter, _ *http.Request) bool {
			if n == 1 {
				_ = w.engine.AddVM(engine.VMSeed{Name: "copy", MiB: 1})
				w.before = w.engine.Snapshot()
				w.before = slices.DeleteFunc(w.before, func(s string) bool {
					return strings.HasPrefix(s, "transfer") || strings.HasPrefix(s, "disk") && !strings.Contains(s, "22222222")
				})
			}
			return false
		}
	}, errs.Exists},
}

// TestFaults lets things go wrong at the first write or before; each restore either succeeds whole or leaves nothing.
func TestFaults(t *testing.T) {
	for _, x := range faults {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			r := w.prepare(w.request())
			x.breaks(w)
			err := Run(t.Context(), w.o, r, w)
			if x.want == whole {
				if err != nil {
					t.Fatal(err)
				}
				w.checkWhole(r)
				return
			}
			if !errs.Is(err, x.want) {
				t.Errorf("it ended with %v", err)
			}
			w.checkNothing(r)
		})
	}
}

// Full verification finds bytes that are not those that were written, even where there is data.
func TestSpoiledBytes(t *testing.T) {
	w := newWorld(t)
	q := w.request()
	q.Verify = VerifyFull
	w.host.spoil = func(p []byte, off int64) []byte {
		if off == 0 {
			p = slices.Clone(p)
			p[12345] ^= 1
		}
		return p
	}
	r := w.prepare(q)
	if err := Run(t.Context(), w.o, r, w); !errs.Is(err, errs.Corrupt) {
		t.Error(err)
	}
	w.checkNothing(r)
}

// TestResume goes on from every record that was written down, as after a kill right behind it, with what the engine had
// then still there: live transfers, locked disks, half a VM.
func TestResume(t *testing.T) {
	first := newWorld(t)
	if err := Run(t.Context(), first.o, first.prepare(first.request()), first); err != nil {
		t.Fatal(err)
	}
	for n := range len(first.records) {
		if testing.Short() && n%3 != 0 {
			continue
		}
		t.Run(fmt.Sprintf("record%d", n), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			r := w.prepare(w.request())
			ctx, die := context.WithCancel(t.Context())
			o := w.o
			o.Engine = dead{Engine: w.client, ctx: ctx}
			w.onKeep = func(Record) {
				if len(w.records) == n+1 {
					die()
				}
			}
			_ = Run(ctx, o, r, w) // its undoing meets an engine that it cannot reach any more
			w.onKeep = nil
			kept := w.records[n]
			if err := Run(t.Context(), w.o, &kept, w); err != nil {
				t.Fatal(err)
			}
			w.checkWhole(&kept)
		})
	}
}

// TestResumeOfAnUpload goes on after a kill in the middle of an upload: the transfer is live and the disk locked.
func TestResumeOfAnUpload(t *testing.T) {
	w := newWorld(t)
	r := w.prepare(w.request())
	ctx, die := context.WithCancel(t.Context())
	o := w.o
	o.Engine = dead{Engine: w.client, ctx: ctx}
	w.host.before = func(_ *host, n int, rw http.ResponseWriter, _ *http.Request) bool {
		if n == 2 {
			die()
		}
		return n >= 2
	}
	_ = Run(ctx, o, r, w)
	w.host.before = nil
	i := slices.IndexFunc(w.records, func(r Record) bool { return r.State == appliance.RestoreUpload })
	kept := w.records[i]
	live, err := w.client.DiskTransfers(t.Context(), ovirt.ID(kept.Disks[0].ID))
	if err != nil || len(live) != 1 {
		t.Fatalf("the test left %+v, %v", live, err)
	}
	if err := Run(t.Context(), w.o, &kept, w); err != nil {
		t.Fatal(err)
	}
	w.checkWhole(&kept)
}

// dead is an engine that cannot be reached once ctx has ended: what a killed node does not do any more.
type dead struct {
	Engine
	ctx context.Context
}

func (d dead) DiskTransfers(ctx context.Context, id ovirt.ID) ([]ovirt.Transfer, error) {
	if d.ctx.Err() != nil {
		return nil, errKilled
	}
	return d.Engine.DiskTransfers(ctx, id)
}

func (d dead) FindVM(ctx context.Context, name string) (ovirt.VM, error) {
	if d.ctx.Err() != nil {
		return ovirt.VM{}, errKilled
	}
	return d.Engine.FindVM(ctx, name)
}

func (d dead) VM(ctx context.Context, id ovirt.ID) (ovirt.VM, error) {
	if d.ctx.Err() != nil {
		return ovirt.VM{}, errKilled
	}
	return d.Engine.VM(ctx, id)
}

// TestCancel gives a restore up in the middle.
func TestCancel(t *testing.T) {
	w := newWorld(t)
	r := w.prepare(w.request())
	ctx, cancel := context.WithCancel(t.Context())
	w.host.before = func(_ *host, n int, _ http.ResponseWriter, _ *http.Request) bool {
		if n == 2 {
			cancel()
		}
		return false
	}
	if err := Run(ctx, w.o, r, w); !errs.Is(err, errs.Canceled) {
		t.Error(err)
	}
	w.checkNothing(r)
}

// What is left after an undo that failed is taken away by the next one, and the first reason is told again.
func TestUndoAgain(t *testing.T) {
	w := newWorld(t)
	r := w.prepare(w.request())
	ctx, die := context.WithCancel(t.Context())
	o := w.o
	o.Engine = dead{Engine: w.client, ctx: ctx}
	w.host.before = func(_ *host, _ int, rw http.ResponseWriter, _ *http.Request) bool {
		http.Error(rw, "no", http.StatusBadRequest)
		die()
		return true
	}
	if err := Run(t.Context(), o, r, w); err == nil || r.State != appliance.RestoreUndo {
		t.Fatal(err, r.State)
	}
	kept := w.records[len(w.records)-1]
	err := Run(t.Context(), w.o, &kept, w)
	if !errs.Is(err, errs.Unsupported) {
		t.Error(err)
	}
	w.checkNothing(&kept)
}

// A disk that is locked for a while is waited for.
func TestLockedDisk(t *testing.T) {
	w := newWorld(t)
	r := w.prepare(w.request())
	busy := &refusing{Engine: w.client, times: 5}
	w.o.Engine = busy
	if err := Run(t.Context(), w.o, r, w); err != nil || busy.times > 0 {
		t.Fatal(err, busy.times)
	}
	w.checkWhole(r)
}

type refusing struct {
	Engine
	times int
}

func (b *refusing) AttachDisk(ctx context.Context, vm ovirt.ID, a ovirt.NewAttachment) error {
	if b.times--; b.times >= 0 {
		return errs.Text("attach disk", "", errs.Busy, "The following disks are locked")
	}
	return b.Engine.AttachDisk(ctx, vm, a)
}

// A VM that is whole and does not start is no reason to remove it.
func TestNoStart(t *testing.T) {
	w := newWorld(t)
	r := w.prepare(w.request())
	w.o.Engine = noStart{w.client}
	err := Run(t.Context(), w.o, r, w)
	if !errs.Is(err, errs.Unsupported) || r.Problem == nil || !strings.Contains(r.Problem.Cleaned, "restored whole") {
		t.Errorf("%v, %+v", err, r.Problem)
	}
	if vm := w.checkWhole(r); vm.Status != ovirt.VMDown {
		t.Error(vm.Status)
	}
}

type noStart struct{ Engine }

func (noStart) StartVM(context.Context, ovirt.ID) error {
	return errs.Text("start VM", "", errs.Unsupported, "no host has so much memory")
}

// An image that the engine finds unsound at the end goes, and is uploaded again; if that happens always, nothing is left.
func TestEngineRefusesTheImage(t *testing.T) {
	for _, times := range []int{1, 1000} {
		w := newWorld(t)
		r := w.prepare(w.request())
		w.o.Engine = &unsound{Engine: w.client, times: times}
		err := Run(t.Context(), w.o, r, w)
		if times == 1 {
			if err != nil || !has(w.notes, "begins again") {
				t.Errorf("%v, %q", err, w.notes)
			}
			w.checkWhole(r)
			continue
		}
		if !errs.Is(err, errs.Stale) {
			t.Error(err)
		}
		w.checkNothing(r)
	}
}

// unsound is an engine that gives uploads up when they are finalised.
type unsound struct {
	Engine
	mu    sync.Mutex // guards times
	times int
}

func (u *unsound) FinalizeTransfer(ctx context.Context, id ovirt.ID) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.times--; u.times >= 0 {
		return u.CancelTransfer(ctx, id)
	}
	return u.Engine.FinalizeTransfer(ctx, id)
}
