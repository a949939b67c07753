package host

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

// beginWithin is how long it may take to begin a backup in a machine.
const beginWithin = 2 * time.Minute

// jobEndWithin is how long a job that was told to end may take: it has at most a few writes under way.
const jobEndWithin = 30 * time.Second

// startLive begins a backup of a running machine. What was done when it fails is noted in b, for endLive; therefore no
// command is given up half-way, which may have been obeyed or not.
func (h *Host) startLive(ctx context.Context, b *backup, state *vmState) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), beginWithin)
	defer cancel()
	bitmaps, err := b.findNodes(ctx)
	if err != nil {
		return err
	}
	err = b.choose(state, func(x *exported) bool {
		return slices.ContainsFunc(bitmaps[x.node], func(m qemu.Bitmap) bool { return m.Name == b.from && !m.Inconsistent })
	})
	if err != nil {
		return err
	}
	for i, x := range b.disks {
		if err := b.addScratch(ctx, x, i); err != nil {
			return err
		}
	}
	if err := b.freeze(ctx); err != nil {
		return err
	}
	return b.export(ctx)
}

// findNodes finds the disks in the machine, and returns the bitmaps of every node.
func (b *backup) findNodes(ctx context.Context) (map[string][]qemu.Bitmap, error) {
	nodes, err := b.machine.vm.BlockNodes(ctx)
	if err != nil {
		return nil, err
	}
	for _, x := range b.disks {
		if x.node, err = b.machine.nodeOf(x.place.Disk); err != nil {
			return nil, err
		}
	}
	bitmaps := map[string][]qemu.Bitmap{}
	for _, n := range nodes {
		bitmaps[n.Name] = n.Bitmaps
	}
	return bitmaps, nil
}

// index returns which of the machine's disks a disk is.
func (m *machine) index(disk string) (int, error) {
	i := slices.IndexFunc(m.spec.Disks, func(d engine.DiskPlace) bool { return d.Disk == disk })
	if i < 0 {
		return 0, errs.Text("find the disk", disk, errs.NotFound, "the running VM "+m.spec.Name+" was started without it")
	}
	return i, nil
}

// nodeOf returns the name of a disk's top node.
func (m *machine) nodeOf(disk string) (string, error) {
	i, err := m.index(disk)
	if err != nil {
		return "", err
	}
	return m.vm.Disks()[i].Name(), nil
}

// addScratch puts an empty image above the disk: what it does not have is read from the disk.
func (b *backup) addScratch(ctx context.Context, x *exported, n int) error {
	i, err := b.machine.index(x.place.Disk)
	if err != nil {
		return err
	}
	size, err := b.machine.vm.DiskSize(ctx, i)
	if err != nil {
		return err
	}
	x.place.Size = size // the disk may have grown since the engine looked
	path := filepath.Join(b.folder, fmt.Sprintf("scratch%d.qcow2", n))
	if _, err := proc.Run(ctx, "qemu-img", "create", "-q", "-f", "qcow2", path, strconv.FormatInt(size, 10)); err != nil {
		return err
	}
	node := qemu.FormatNode("scratch-"+x.place.Disk[:min(len(x.place.Disk), 8)]+"-"+strconv.Itoa(n), "qcow2", qemu.FileNode(path))
	node["backing"] = x.node
	if err := b.machine.vm.QMP().Execute(ctx, "blockdev-add", node, nil); err != nil {
		return err
	}
	x.scratch = node.Name()
	return nil
}

// action is one of a transaction.
type action struct {
	Type string    `json:"type"`
	Data qemu.Node `json:"data"`
}

// freeze is the moment that the backup shows: one transaction for all disks.
func (b *backup) freeze(ctx context.Context) error {
	var actions []action
	do := func(what string, data qemu.Node) { actions = append(actions, action{what, data}) }
	type made struct{ job, bitmap string }
	names := make([]made, len(b.disks))
	for i, x := range b.disks {
		if x.incremental {
			names[i].bitmap = "backup-" + b.id
			do("block-dirty-bitmap-add", qemu.Node{"node": x.node, "name": names[i].bitmap, "disabled": true})
			do("block-dirty-bitmap-merge", qemu.Node{"node": x.node, "target": names[i].bitmap, "bitmaps": []string{b.from}})
		}
		if b.to != "" && keepsBitmaps(x.place) {
			do("block-dirty-bitmap-add", qemu.Node{"node": x.node, "name": b.to, "persistent": true})
		}
		names[i].job = "job-" + x.scratch
		do("blockdev-backup", qemu.Node{"job-id": names[i].job, "device": x.node, "target": x.scratch, "sync": "none"})
	}
	if err := b.machine.vm.QMP().Execute(ctx, "transaction", qemu.Node{"actions": actions}, nil); err != nil {
		return err
	}
	for i, x := range b.disks {
		x.job, x.bitmap, x.marked = names[i].job, names[i].bitmap, b.to != "" && keepsBitmaps(x.place)
	}
	return nil
}

// export makes the scratch images readable.
func (b *backup) export(ctx context.Context) error {
	socket := filepath.Join(b.folder, "nbd")
	err := b.machine.vm.QMP().Execute(ctx, "nbd-server-start", qemu.Node{
		"addr": qemu.Node{"type": "unix", "data": qemu.Node{"path": socket}}}, nil)
	if err != nil {
		return err
	}
	b.server = true
	for _, x := range b.disks {
		export := qemu.Node{"type": "nbd", "id": "export-" + x.scratch, "node-name": x.scratch, "name": x.place.Disk,
			"writable": false, "allocation-depth": true}
		if x.incremental {
			export["bitmaps"] = []qemu.Node{{"node": x.node, "name": x.bitmap}}
		}
		if err := b.machine.vm.QMP().Execute(ctx, "block-export-add", export, nil); err != nil {
			return err
		}
		x.socket = socket
	}
	return nil
}

// endLive takes apart what was begun in the machine, the newest first. It goes on after a failure and returns the first
// one. A machine that has ended has nothing left.
func (b *backup) endLive(ctx context.Context) error {
	var first error
	do := func(command string, arguments qemu.Node) {
		if err := b.machine.vm.QMP().Execute(ctx, command, arguments, nil); err != nil && first == nil && !errs.Is(err, errs.Stale) {
			first = err
		}
	}
	if b.server {
		do("nbd-server-stop", qemu.Node{}) // takes the exports with it
		b.server = false
	}
	for _, x := range b.disks {
		if x.job != "" {
			if err := b.machine.endJob(ctx, x.job); err != nil && first == nil && !errs.Is(err, errs.Stale) {
				first = err
			}
		}
		if x.scratch != "" {
			do("blockdev-del", qemu.Node{"node-name": x.scratch})
		}
		if x.bitmap != "" {
			do("block-dirty-bitmap-remove", qemu.Node{"node": x.node, "name": x.bitmap})
		}
		x.job, x.scratch, x.bitmap = "", "", ""
	}
	return first
}

// endJob ends a job that copies what is overwritten. One that failed before, because its scratch image could not grow,
// is gone already.
func (m *machine) endJob(ctx context.Context, job string) error {
	ctx, cancel := context.WithTimeout(ctx, jobEndWithin)
	defer cancel()
	return m.vm.EndJob(ctx, job)
}

// removeBitmap drops a bitmap of a machine's disk; one that is not there is no error.
func (m *machine) removeBitmap(ctx context.Context, d engine.DiskPlace, name string) error {
	node, err := m.nodeOf(d.Disk)
	if err != nil {
		return err
	}
	nodes, err := m.vm.BlockNodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Name == node && slices.ContainsFunc(n.Bitmaps, func(b qemu.Bitmap) bool { return b.Name == name }) {
			return m.vm.QMP().Execute(ctx, "block-dirty-bitmap-remove", qemu.Node{"node": node, "name": name}, nil)
		}
	}
	return nil
}
