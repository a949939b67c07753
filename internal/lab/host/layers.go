package host

import (
	"context"
	"os"
	"path/filepath"
	"strconv"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

// A disk with snapshots is several volumes in its folder, each a qcow2 file whose header names the one it lies on, as
// vdsm has it. The disk's own volume is the one on top.

// TakeSnapshot implements engine.SnapshotHost. Bitmaps do not go into the new volumes, as those of a real host do: a
// checkpoint's changes are lost by a snapshot here, and the next backup by changes is a full one.
func (h *Host) TakeSnapshot(ctx context.Context, vm string, disks []engine.DiskPlace, tops map[string]string) (err error) {
	state := h.stateOf(vm)
	state.work.Lock()
	defer state.work.Unlock()
	if b := h.backupOf(vm); b != "" {
		return errs.Text("take a snapshot of", vm, errs.Busy, "a backup is under way: "+b)
	}
	m := h.machine(vm)
	var layers []qemu.Layer
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				_ = os.Remove(path) // the first error matters
			}
		}
	}()
	for _, d := range disks {
		if !h.local(d.Domain) {
			return errs.Text("take a snapshot of the disk", d.Disk, errs.Unsupported, "this host does so on its local domains only")
		}
		top := d
		top.Image = tops[d.Disk]
		l := qemu.Layer{Path: h.path(top)}
		size := d.Size
		if m != nil {
			if l.Disk, err = m.index(d.Disk); err != nil {
				return err
			}
			if size, err = m.vm.DiskSize(ctx, l.Disk); err != nil {
				return err
			}
		}
		if err := h.dropBitmaps(ctx, vm, d); err != nil {
			return err
		}
		// -u: the volume below is not looked at, since a machine may have it open.
		if _, err := proc.Run(ctx, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", formatOf(d), "-b", d.Image, l.Path,
			strconv.FormatInt(size, 10)); err != nil {
			return err
		}
		made = append(made, l.Path)
		layers = append(layers, l)
	}
	if m != nil {
		if err := m.vm.Snapshot(ctx, layers); err != nil {
			return err
		}
	}
	for _, d := range disks {
		d.Image, d.Format = tops[d.Disk], "cow"
		h.remember(d)
	}
	h.log.Info("snapshot taken", "vm", vm, "disks", len(disks), "live", m != nil)
	return nil
}

// MergeVolume implements engine.SnapshotHost.
func (h *Host) MergeVolume(ctx context.Context, vm string, v engine.DiskPlace, child string, above string) error {
	state := h.stateOf(vm)
	state.work.Lock()
	defer state.work.Unlock()
	if b := h.backupOf(vm); b != "" {
		return errs.Text("merge a snapshot of", vm, errs.Busy, "a backup is under way: "+b)
	}
	top := v
	top.Image = child
	if err := h.merge(ctx, vm, v, h.path(top), above); err != nil {
		return errs.Wrap("merge the volume "+child+" into", v.Image, err)
	}
	if above == "" {
		h.remember(v)
	}
	return os.Remove(h.path(top))
}

func (h *Host) merge(ctx context.Context, vm string, v engine.DiskPlace, top, above string) error {
	if m := h.machine(vm); m != nil {
		i, err := m.index(v.Disk)
		if err != nil {
			return err
		}
		return m.vm.Merge(ctx, i, top, h.path(v), v.Image)
	}
	if _, err := proc.Run(ctx, "qemu-img", "commit", "-q", "-d", "-f", "qcow2", top); err != nil {
		return err
	}
	if above == "" {
		return nil
	}
	next := v
	next.Image = above
	_, err := proc.Run(ctx, "qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", formatOf(v), "-b", v.Image, h.path(next))
	return err
}

// dropBitmaps removes every bitmap of a disk.
func (h *Host) dropBitmaps(ctx context.Context, vm string, d engine.DiskPlace) error {
	if !keepsBitmaps(d) {
		return nil
	}
	var names []string
	if m := h.machine(vm); m != nil {
		node, err := m.nodeOf(d.Disk)
		if err != nil {
			return err
		}
		nodes, err := m.vm.BlockNodes(ctx)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if n.Name == node {
				for _, b := range n.Bitmaps {
					names = append(names, b.Name)
				}
			}
		}
	} else {
		node, err := h.node(ctx, d, "")
		if err != nil {
			return err
		}
		i, err := info(ctx, alone(node))
		if err != nil {
			return err
		}
		for _, b := range i.Specific.Data.Bitmaps {
			names = append(names, b.Name)
		}
	}
	for _, name := range names {
		if err := h.removeBitmap(ctx, vm, d, name); err != nil {
			return err
		}
	}
	return nil
}

// backupOf returns a VM's backup that is under way, or "".
func (h *Host) backupOf(vm string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, b := range h.backups {
		if b.vm == vm {
			return id
		}
	}
	return ""
}

// layered returns a local volume as qemu opens it, with what it lies on. Inner nodes are named after the outer one, if
// that has a name, so that a machine's can be told apart.
func (h *Host) layered(ctx context.Context, d engine.DiskPlace, name string) (qemu.Node, error) {
	path := h.path(d)
	node := qemu.FormatNode(name, formatOf(d), qemu.FileNode(path))
	if name == "" {
		delete(node, "node-name")
	}
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(files) < 2 || node.Format() != "qcow2" {
		return node, nil // if it is not there, whoever opens it says so
	}
	i, err := info(ctx, path)
	if err != nil || i.Backing == "" {
		return node, err
	}
	below := d
	below.Image, below.Format = i.Backing, "cow"
	if i.BackingFormat == "raw" {
		below.Format = "raw"
	}
	inner := name
	if name != "" {
		inner += "-below"
	}
	child, err := h.layered(ctx, below, inner)
	if err != nil {
		return nil, err
	}
	node["backing"] = child
	return node, nil
}

// AddVolumeTicket implements engine.SnapshotHost: a qemu-nbd reads the volume, which a machine may have open too.
func (h *Host) AddVolumeTicket(ctx context.Context, v engine.DiskPlace, shallow bool, id string, inactivitySeconds int) (string, error) {
	return h.addTicket(ctx, "", v.Disk, id, inactivitySeconds, func(t *ticket, want *ticketWanted) error {
		return h.volumeTicket(ctx, t, want, v, shallow)
	})
}

// volumeTicket serves a volume that does not change, and fills in the ticket.
func (h *Host) volumeTicket(ctx context.Context, t *ticket, want *ticketWanted, v engine.DiskPlace, shallow bool) error {
	node, err := h.layered(ctx, v, "")
	if err != nil {
		return err
	}
	i, err := info(ctx, h.path(v))
	if err != nil {
		return err
	}
	if shallow && formatOf(v) == "qcow2" {
		node["backing"] = nil
	}
	node["force-share"] = true
	t.folder = filepath.Join(h.run, t.id)
	if err := os.Mkdir(t.folder, 0o700); err != nil {
		return err
	}
	socket := filepath.Join(t.folder, "nbd")
	args := []string{"--read-only"}
	if formatOf(v) == "qcow2" {
		args = append(args, "--allocation-depth") // vdsm gives it to qcow2 only
	}
	if t.nbd, err = h.serve(ctx, socket, v.Disk, node, args...); err != nil {
		return err
	}
	want.Size, want.Ops, want.URL = i.Size, []string{"read"}, "nbd:unix:"+socket+":exportname="+v.Disk
	return nil
}
