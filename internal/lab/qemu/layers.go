package qemu

import (
	"context"
	"fmt"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Layer is a new image that a snapshot puts on one of a machine's disks: an empty qcow2 file, whose header says what it
// lies on.
type Layer struct {
	Disk int
	Path string
}

// Snapshot puts a layer on each of some disks, at one moment for all. What lay on top until then never changes again
// while the layer is there. When it fails, nothing has changed; the files are the caller's.
func (vm *VM) Snapshot(ctx context.Context, layers []Layer) (err error) {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// No command is given up half-way: one that was may have been obeyed or not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandWithin)
	defer cancel()
	type action struct {
		Type string `json:"type"`
		Data Node   `json:"data"`
	}
	var actions []action
	tops := make([]Node, 0, len(layers))
	defer func() {
		if err == nil {
			return
		}
		for _, t := range tops {
			_ = vm.qmp.Execute(ctx, "blockdev-del", Node{"node-name": t.Name()}, nil) // the first error matters
		}
	}()
	disks := vm.Disks()
	for _, l := range layers {
		top := FormatNode(fresh("layer"), "qcow2", FileNode(l.Path))
		// Opened without its backing: blockdev-snapshot puts it above the disk by itself, and insists on doing so.
		add := FormatNode(top.Name(), "qcow2", FileNode(l.Path))
		add["backing"] = nil
		if err := vm.qmp.Execute(ctx, "blockdev-add", add, nil); err != nil {
			return err
		}
		top["backing"] = disks[l.Disk]
		tops = append(tops, top)
		actions = append(actions, action{"blockdev-snapshot", Node{"node": disks[l.Disk].Name(), "overlay": top.Name()}})
	}
	if err := vm.qmp.Execute(ctx, "transaction", Node{"actions": actions}, nil); err != nil {
		return err
	}
	for i, l := range layers {
		vm.setDisk(l.Disk, tops[i])
	}
	return nil
}

// Merge writes the image that lies directly on another one into that, and closes it; both are named by their files. Name
// is what the header of an image further up will call the one that stays.
func (vm *VM) Merge(ctx context.Context, disk int, top, base, name string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleWithin)
	defer cancel()
	root := vm.Disks()[disk]
	var above, node Node
	for node = root; node != nil && node.path() != top; node, _ = node["backing"].(Node) {
		above = node
	}
	below, _ := node["backing"].(Node)
	if node == nil || below == nil || below.path() != base {
		return errs.Text("merge the image", top, errs.NotFound, "it does not lie on "+base+" in the machine "+vm.name)
	}
	if above == nil {
		return vm.commitInto(ctx, disk, node, below)
	}
	if err := vm.commitBetween(ctx, root, node, below, name); err != nil {
		return err
	}
	above["backing"] = below
	return vm.drop(ctx, node)
}

// path is the file of a local image, or "".
func (n Node) path() string {
	file, _ := n["file"].(Node)
	s, _ := file["filename"].(string)
	return s
}

// commitInto writes the image on top into the one directly below it, while the guest goes on writing, and changes over.
func (vm *VM) commitInto(ctx context.Context, disk int, top, base Node) error {
	job := fresh("merge")
	events := vm.qmp.Events("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_ERROR")
	defer events.Close()
	if err := vm.qmp.Execute(ctx, "block-commit", Node{"job-id": job, "device": top.Name(), "base-node": base.Name()}, nil); err != nil {
		return err
	}
	if err := vm.jobEvent(ctx, events, job, "BLOCK_JOB_READY"); err != nil {
		return err
	}
	if err := vm.qmp.Execute(ctx, "job-complete", Node{"id": job}, nil); err != nil {
		return err
	}
	if err := vm.jobEvent(ctx, events, job, "BLOCK_JOB_COMPLETED"); err != nil {
		return err
	}
	vm.setDisk(disk, base)
	return vm.drop(ctx, top)
}

// commitBetween writes an image that others lie on into the one directly below it.
func (vm *VM) commitBetween(ctx context.Context, root, top, base Node, name string) error {
	job := fresh("merge")
	events := vm.qmp.Events("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_ERROR")
	defer events.Close()
	if err := vm.qmp.Execute(ctx, "block-commit", Node{"job-id": job, "device": root.Name(), "top-node": top.Name(), "base-node": base.Name(),
		"backing-file": name}, nil); err != nil {
		return err
	}
	return vm.jobEvent(ctx, events, job, "BLOCK_JOB_COMPLETED")
}

// jobEvent waits for the next event of a job, which has to be a certain one.
func (vm *VM) jobEvent(ctx context.Context, events *Events, job, want string) error {
	e, err := events.Next(ctx, func(e Event) bool { return e.Field("device") == job })
	if err != nil {
		return err
	}
	if e.Name != want || e.Field("error") != "" {
		return fmt.Errorf("the merge did not end well: %s %s", e.Name, e.Data)
	}
	return nil
}

// drop closes a node, unless it went by itself: one that was opened together with another does.
func (vm *VM) drop(ctx context.Context, n Node) error {
	nodes, err := vm.BlockNodes(ctx)
	if err != nil {
		return err
	}
	for _, x := range nodes {
		if x.Name == n.Name() {
			return vm.qmp.Execute(ctx, "blockdev-del", Node{"node-name": n.Name()}, nil)
		}
	}
	return nil
}
