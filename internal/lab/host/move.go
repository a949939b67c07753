package host

import (
	"context"
	"os"
	"path/filepath"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

// MoveDisk implements engine.StorageHost. The destination is a local domain. The disk keeps its ids; the source is
// removed when the disk has left it. Bitmaps stay behind, so a disk that was moved is backed up in full next.
func (h *Host) MoveDisk(ctx context.Context, vm string, d engine.DiskPlace, domain string, progress func(done, total int64)) (engine.DiskPlace, error) {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	to := d
	to.Domain = domain
	move := func(path string) error { return h.moveCold(ctx, d, path, progress) }
	if m := h.machine(vm); vm != "" && m != nil {
		move = func(path string) error { return h.moveLive(ctx, m, d, path, progress) }
	}
	if err := h.makeMoved(d, to, move); err != nil {
		return d, errs.Wrap("move the disk to", domain, err)
	}
	h.remember(to)
	progress(d.Size, d.Size)
	if err := h.removeVolume(context.WithoutCancel(ctx), d); err != nil {
		h.log.Warn("source of a moved disk not removed", "disk", d.Disk, "domain", d.Domain, "err", err)
	}
	h.log.Info("disk moved", "disk", d.Disk, "from", d.Domain, "to", domain, "live", h.machine(vm) != nil)
	return to, nil
}

// makeMoved makes the folder at the destination and lets move fill it. After a failure the folder goes only if it is
// empty: what is in it then is the only place where the disk is whole.
func (h *Host) makeMoved(from, to engine.DiskPlace, move func(path string) error) error {
	if !h.local(to.Domain) {
		return errs.Text("make the disk", to.Disk, errs.Unsupported, "this host moves disks to its local domains only")
	}
	if b := h.readBy(from.Disk); b != "" {
		return errs.Text("take the disk", from.Disk, errs.Busy, "it is being read by the backup "+b)
	}
	path := h.path(to)
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err := move(path)
	if err != nil {
		_ = os.Remove(filepath.Dir(path))
	}
	return err
}

// readBy returns the backup that reads a disk, or "".
func (h *Host) readBy(disk string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, b := range h.backups {
		if b.disk(disk) != nil {
			return id
		}
	}
	return ""
}

// moveLive moves a disk that a machine uses, as vdsm has it done. The snapshot lies in a folder of the host's own: an
// oVirt host puts it beside the source.
func (h *Host) moveLive(ctx context.Context, m *machine, d engine.DiskPlace, path string, progress func(done, total int64)) error {
	i, err := m.index(d.Disk)
	if err != nil {
		return err
	}
	moved, err := qemu.MoveDisk(ctx, m.vm, qemu.MoveOptions{
		Disk: i, SnapshotPath: filepath.Join(h.run, "snapshot-"+d.Disk), DestDir: filepath.Dir(path), BasePath: path, Single: true,
		Progress: func(s qemu.MoveStep, percent float64) {
			if s == qemu.MoveCopy { // the other steps copy what the guest writes meanwhile, which is little
				progress(int64(percent/100*float64(d.Size)), d.Size)
			}
		},
	})
	if err != nil {
		return err
	}
	h.log.Info("disk moved by its machine", "disk", d.Disk, "took", moved.Took)
	return nil
}

// moveCold copies a disk that nobody uses, in its own format.
func (h *Host) moveCold(ctx context.Context, d engine.DiskPlace, path string, progress func(done, total int64)) error {
	node, err := h.node(ctx, d, "")
	if err != nil {
		return err
	}
	progress(0, d.Size)
	_, err = proc.Run(ctx, "qemu-img", "convert", "-T", "none", "-t", "none", "-O", formatOf(d), node.Image(), path)
	if err != nil {
		_ = os.Remove(path) // half a copy
	}
	return err
}
