package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// backup is a backup that has begun.
type backup struct {
	id, vm   string
	from, to string
	machine  *machine // nil: the VM was down when it began
	folder   string   // holds sockets and scratch images
	disks    []*exported
	server   bool // the machine's NBD server runs for it
	ready    bool // its disks can be read; guarded by Host.mu, which is held while that begins and ends
}

// exported is a disk of a backup.
type exported struct {
	place       engine.DiskPlace
	incremental bool
	socket      string // where it can be read, by NBD, under the name of the disk

	marked bool // has the new checkpoint's bitmap

	// Live only: the names of what exists in the machine, "" for what does not.
	node    string // the disk itself
	scratch string
	job     string
	bitmap  string // the copy that the changes are told by

	nbd *proc.Process // cold only
}

// StartBackup implements engine.BackupHost. A hybrid backup is made in the same way as another.
func (h *Host) StartBackup(ctx context.Context, vm, id, from, to string, disks []engine.DiskPlace, hybrid bool) (map[string]bool, error) {
	state := h.stateOf(vm)
	state.work.Lock()
	defer state.work.Unlock()
	b := &backup{id: id, vm: vm, from: from, to: to, machine: h.machine(vm), folder: filepath.Join(h.run, id)}
	for _, d := range disks {
		b.disks = append(b.disks, &exported{place: d})
	}
	if err := h.admit(b); err != nil {
		return nil, err
	}
	err := os.Mkdir(b.folder, 0o700)
	if err == nil && b.machine != nil {
		err = h.startLive(ctx, b, state)
	} else if err == nil {
		err = h.startCold(ctx, b, state)
	}
	if err != nil {
		err = errs.Wrap("begin the backup of", vm, err)
		h.undo(ctx, b, err)
		return nil, err
	}
	incremental := map[string]bool{}
	var kept []string
	for _, x := range b.disks {
		incremental[x.place.Disk] = x.incremental
		if x.marked {
			kept = append(kept, x.place.Disk)
		}
	}
	if to != "" {
		state.checkpoints[to] = kept
	}
	h.mu.Lock()
	b.ready = true
	h.mu.Unlock()
	h.log.Info("backup began", "backup", id, "vm", vm, "live", b.machine != nil, "hybrid", hybrid, "from", from, "to", to)
	return incremental, nil
}

// admit enters the backup in the list, unless the VM has one.
func (h *Host) admit(b *backup) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, other := range h.backups {
		if other.vm == b.vm {
			return errs.Text("begin the backup of", b.vm, errs.Busy, "another one is under way: "+other.id)
		}
	}
	h.backups[b.id] = b
	return nil
}

// undo takes back all that a failed start has done, the new checkpoint too.
func (h *Host) undo(ctx context.Context, b *backup, cause error) {
	ctx = context.WithoutCancel(ctx)
	if err := h.end(ctx, b); err != nil {
		h.log.Warn("leftovers of a backup that did not begin", "backup", b.id, "err", err, "cause", cause)
	}
	for _, x := range b.disks {
		if !x.marked {
			continue
		}
		if err := h.removeBitmap(ctx, b.vm, x.place, b.to); err != nil {
			h.log.Warn("leftovers of a backup that did not begin", "backup", b.id, "err", err, "cause", cause)
		}
	}
}

// StopBackup implements engine.BackupHost. It also ends a backup whose machine has ended meanwhile.
func (h *Host) StopBackup(ctx context.Context, vm, id string) error {
	state := h.stateOf(vm)
	state.work.Lock()
	defer state.work.Unlock()
	h.mu.Lock()
	b := h.backups[id]
	h.mu.Unlock()
	if b == nil || b.vm != vm {
		return errs.Text("end the backup", id, errs.NotFound, "there is none of that name for the VM "+vm)
	}
	for _, t := range h.ticketsOf(id) { // a client that is still reading: whoever ends the backup has given it up
		if err := h.RemoveTicket(ctx, t); err != nil {
			h.log.Warn("ticket not removed", "backup", id, "err", err)
		}
	}
	err := h.end(context.WithoutCancel(ctx), b)
	h.log.Info("backup ended", "backup", id, "vm", vm, "err", err)
	return errs.Wrap("end the backup", id, err)
}

// end takes a backup apart and drops it from the list, as far as it goes.
func (h *Host) end(ctx context.Context, b *backup) error {
	h.mu.Lock()
	b.ready = false
	h.mu.Unlock()
	var err error
	if b.machine != nil {
		err = b.endLive(ctx)
	}
	for _, x := range b.disks {
		if x.nbd != nil {
			h.stopServing(x.nbd)
		}
	}
	if e := os.RemoveAll(b.folder); err == nil {
		err = e
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.backups, b.id)
	return err
}

// disk returns a disk of the backup, or nil.
func (b *backup) disk(id string) *exported {
	i := slices.IndexFunc(b.disks, func(x *exported) bool { return x.place.Disk == id })
	if i < 0 {
		return nil
	}
	return b.disks[i]
}

// keepsBitmaps tells whether a disk can know its changes.
func keepsBitmaps(d engine.DiskPlace) bool { return formatOf(d) == "qcow2" }

// choose decides which disks can tell their changes since b.from. has tells whether a disk has a usable bitmap of that
// name. A disk that was not part of the checkpoint is read in full; one that was and has lost its bitmap ends the
// backup, as does a checkpoint that no disk knows.
func (b *backup) choose(state *vmState, has func(x *exported) bool) error {
	if b.from == "" {
		return nil
	}
	members, known := state.checkpoints[b.from]
	any := false
	for _, x := range b.disks {
		x.incremental = keepsBitmaps(x.place) && has(x)
		any = any || x.incremental
		if known && slices.Contains(members, x.place.Disk) && !x.incremental {
			return lostBitmap(b.from, x.place.Disk)
		}
	}
	if !known && !any { // made by a host that was there before us
		return lostBitmap(b.from, "any disk")
	}
	return nil
}

// lostBitmap's text is what the engine knows a lost checkpoint by.
func lostBitmap(checkpoint, disk string) error {
	return errs.Text("find the changes since", checkpoint, errs.NotFound,
		fmt.Sprintf("Bitmap does not exist: %s in %s", checkpoint, disk))
}

// RemoveCheckpoint implements engine.BackupHost. Every bitmap records on its own, so the others lose nothing. A bitmap
// that is not there is no error.
func (h *Host) RemoveCheckpoint(ctx context.Context, vm, checkpoint string, disks []engine.DiskPlace) error {
	state := h.stateOf(vm)
	state.work.Lock()
	defer state.work.Unlock()
	for _, d := range disks {
		if err := h.removeBitmap(ctx, vm, d, checkpoint); err != nil {
			return errs.Wrap("remove the checkpoint", checkpoint, err)
		}
	}
	delete(state.checkpoints, checkpoint)
	return nil
}

// removeBitmap drops a bitmap of a disk, whether its VM runs or not.
func (h *Host) removeBitmap(ctx context.Context, vm string, d engine.DiskPlace, name string) error {
	if !keepsBitmaps(d) {
		return nil
	}
	if m := h.machine(vm); m != nil {
		return m.removeBitmap(ctx, d, name)
	}
	return h.removeColdBitmap(ctx, d, name)
}
