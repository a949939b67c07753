package qemu

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// MoveStep names a part of a live move.
type MoveStep string

// The steps of a live move, in order.
const (
	MoveSnapshot MoveStep = "snapshot"
	MoveCopy     MoveStep = "copy of the base"
	MoveMirror   MoveStep = "mirror of the top"
	MovePivot    MoveStep = "pivot"
	MoveRelease  MoveStep = "release of the source"
	MoveMerge    MoveStep = "merge of the top" // with MoveOptions.Single only
)

// MoveOptions says where a disk is moved.
type MoveOptions struct {
	Disk         int    // which of the machine's disks; 0 is the first
	SnapshotPath string // a file to be made: takes the guest's writes during the move and is of no use after it
	DestDir      string // an existing folder; gets base.qcow2 (or base.raw) and top.qcow2
	BasePath     string // where the base goes instead, if not empty; an absolute path
	// Single makes the disk a single image again whatever happens: at the end the top is merged into the base, and when
	// the move fails, or the machine ends during it, what the guest has written goes back into the source.
	Single bool
	// Progress, when set, is told how far a step is, in percent. It is called from one goroutine at a time.
	Progress func(step MoveStep, percent float64)
}

// Moved is what a move left at its destination.
type Moved struct {
	Base string // the copied disk, in the format it had
	Top  string // qcow2 above Base: what the guest has written since the move began; "" if it was merged
	// Took says how long each step took.
	Took map[MoveStep]time.Duration
}

// mover is one move under way.
type mover struct {
	vm    *VM
	opts  MoveOptions
	base  Node   // the disk before the move
	top   Node   // the snapshot above it; nil before that
	dest  Node   // the destination's top, with its own base below; nil before that
	job   string // mirrors
	size  int64  // of the disk, as the guest sees it
	moved Moved
	// pivoted: the machine uses the destination. From then on nothing can be given up any more.
	pivoted bool
}

// MoveDisk moves a disk of a running machine to local files without the guest noticing, in the order in which oVirt
// does it: a snapshot takes the guest's writes, qemu-img copies the frozen base, a mirror job copies the snapshot and
// everything the guest goes on writing, and at the pivot the machine changes over. At the end nothing of the source is
// open. The disk must be a single image, without a backing file.
//
// When it fails the machine goes on running, on the source and, once it was made, the snapshot; with opts.Single the
// snapshot is merged into the source again.
func MoveDisk(ctx context.Context, vm *VM, opts MoveOptions) (Moved, error) {
	if opts.Progress == nil {
		opts.Progress = func(MoveStep, float64) {}
	}
	m := &mover{vm: vm, opts: opts, base: vm.Disks()[opts.Disk], moved: Moved{Took: map[MoveStep]time.Duration{}}}
	if m.base["backing"] != nil {
		return Moved{}, errs.Text("move the disk of", vm.name, errs.Unsupported, "it consists of several images")
	}
	err := m.steps(ctx)
	if err != nil && opts.Single {
		if err = m.settle(ctx, err); err == nil {
			return m.moved, nil
		}
	}
	if err != nil {
		return Moved{}, err
	}
	return m.moved, nil
}

// step is one part of a move.
type step struct {
	name MoveStep
	do   func(context.Context) error
}

func (m *mover) steps(ctx context.Context) error {
	steps := []step{{MoveSnapshot, m.snapshot}, {MoveCopy, m.copyBase}, {MoveMirror, m.mirror}, {MoveRelease, m.release}}
	if m.opts.Single {
		steps = append(steps, step{MoveMerge, m.merge})
	}
	for _, s := range steps {
		begun := time.Now()
		if m.pivoted {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), settleWithin)
			defer cancel()
		}
		if err := s.do(ctx); err != nil {
			return errs.Wrap("move the disk of "+m.vm.name+", step", string(s.name), err)
		}
		m.moved.Took[s.name] += time.Since(begun)
	}
	return nil
}

// do runs a command to its end: one that is given up half-way may have been obeyed or not. ctx only keeps it from
// beginning.
func (m *mover) do(ctx context.Context, command string, arguments Node) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandWithin)
	defer cancel()
	return m.vm.qmp.Execute(ctx, command, arguments, nil)
}

// snapshot freezes the base.
func (m *mover) snapshot(ctx context.Context) error {
	m.opts.Progress(MoveSnapshot, 0)
	var err error
	if m.size, err = m.vm.sizeOf(ctx, m.base.Name()); err != nil {
		return err
	}
	if _, err := proc.Run(ctx, "qemu-img", "create", "-q", "-f", "qcow2", m.opts.SnapshotPath,
		strconv.FormatInt(m.size, 10)); err != nil {
		return err
	}
	top := FormatNode(fresh("snapshot"), "qcow2", FileNode(m.opts.SnapshotPath))
	// Opened without its backing: blockdev-snapshot puts it above the base by itself, and insists on doing so.
	add := FormatNode(top.Name(), "qcow2", FileNode(m.opts.SnapshotPath))
	add["backing"] = nil
	if err := m.do(ctx, "blockdev-add", add); err != nil {
		return err
	}
	if err := m.do(ctx, "blockdev-snapshot", Node{"node": m.base.Name(), "overlay": top.Name()}); err != nil {
		_ = m.do(context.WithoutCancel(ctx), "blockdev-del", Node{"node-name": top.Name()}) // the first error matters
		return err
	}
	top["backing"] = m.base
	m.top = top
	m.vm.setDisk(m.opts.Disk, m.top)
	m.opts.Progress(MoveSnapshot, 100)
	return nil
}

// copyBase copies the frozen base in its own format, and makes the empty top above the copy.
func (m *mover) copyBase(ctx context.Context) error {
	format := m.base.Format()
	m.moved.Base = filepath.Join(m.opts.DestDir, "base."+format)
	if m.opts.BasePath != "" {
		m.moved.Base = m.opts.BasePath
	}
	m.moved.Top = filepath.Join(m.opts.DestDir, "top.qcow2")
	p, err := proc.Start(ctx, proc.Spec{
		// -U: the machine has the base open too. -T none, -t none: past the page cache, as on an oVirt host.
		Args: []string{"qemu-img", "convert", "-p", "-U", "-T", "none", "-t", "none", "-O", format,
			m.base.Image(), m.moved.Base},
		Stdout: &percentages{report: func(p float64) { m.opts.Progress(MoveCopy, p) }},
	})
	if err != nil {
		return err
	}
	<-p.Done()
	if err := p.Wait(ctx); err != nil {
		return err
	}
	_, err = proc.Run(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-b", m.moved.Base, "-F", format,
		m.moved.Top, strconv.FormatInt(m.size, 10))
	return err
}

// mirror copies what lies above the base until both sides are equal, and changes over.
func (m *mover) mirror(ctx context.Context) error {
	m.opts.Progress(MoveMirror, 0)
	dest := FormatNode(fresh("moved"), "qcow2", FileNode(m.moved.Top))
	dest["backing"] = FormatNode(fresh("moved-base"), m.base.Format(), FileNode(m.moved.Base))
	if err := m.do(ctx, "blockdev-add", dest); err != nil {
		return err
	}
	m.dest = dest
	job := fresh("move")
	events := m.vm.qmp.Events("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_ERROR")
	defer events.Close()
	ofJob := func(e Event) bool { return e.Field("device") == job }
	if err := m.do(ctx, "blockdev-mirror", Node{"job-id": job, "device": m.top.Name(),
		"target": m.dest.Name(), "sync": "top"}); err != nil {
		return err
	}
	m.job = job
	stop := m.watch(ctx, job)
	e, err := events.Next(ctx, ofJob)
	stop()
	if err == nil && e.Name != "BLOCK_JOB_READY" {
		err = fmt.Errorf("the mirror job ended before it was ready: %s %s", e.Name, e.Data)
	}
	if err != nil {
		return err
	}
	begun := time.Now()
	m.opts.Progress(MovePivot, 0)
	if err := m.do(ctx, "job-complete", Node{"id": job}); err != nil {
		return err
	}
	// The change is under way, whoever gives up.
	pivoting, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleWithin)
	defer cancel()
	if e, err = events.Next(pivoting, ofJob); err != nil {
		return err
	}
	if e.Name != "BLOCK_JOB_COMPLETED" || e.Field("error") != "" {
		return fmt.Errorf("the mirror job did not pivot: %s %s", e.Name, e.Data)
	}
	m.vm.setDisk(m.opts.Disk, m.dest)
	m.pivoted = true
	m.moved.Took[MovePivot] = time.Since(begun)
	m.moved.Took[MoveMirror] -= m.moved.Took[MovePivot]
	m.opts.Progress(MovePivot, 100)
	return nil
}

// watch reports the job's progress until the returned function is called.
func (m *mover) watch(ctx context.Context, job string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(500 * time.Millisecond)
		defer ticker.Stop()
		for {
			var jobs []struct {
				ID    string `json:"id"`
				Done  int64  `json:"current-progress"`
				Total int64  `json:"total-progress"`
			}
			if m.vm.qmp.Execute(ctx, "query-jobs", nil, &jobs) != nil {
				return // whoever waits for the job's events learns why
			}
			for _, j := range jobs {
				if j.ID == job && j.Total > 0 {
					m.opts.Progress(MoveMirror, 100*float64(j.Done)/float64(j.Total))
				}
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { cancel(); <-ended }
}

// release closes the source: the snapshot, which holds the base, then the base.
func (m *mover) release(ctx context.Context) error {
	for _, n := range []Node{m.top, m.base} {
		if err := m.do(ctx, "blockdev-del", Node{"node-name": n.Name()}); err != nil {
			return err
		}
	}
	if err := os.Remove(m.opts.SnapshotPath); err != nil {
		return err
	}
	m.opts.Progress(MoveRelease, 100)
	return nil
}

func (vm *VM) setDisk(i int, n Node) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.disks[i] = n
}

// BlockNode is a node that qemu has open.
type BlockNode struct {
	Name   string `json:"node-name"`
	Driver string `json:"drv"`
	File   string `json:"file"`
	Image  struct {
		Size int64 `json:"virtual-size"`
	} `json:"image"`
	Bitmaps []Bitmap `json:"dirty-bitmaps"`
}

// Bitmap is one that a node keeps of what is written.
type Bitmap struct {
	Name         string `json:"name"`
	Recording    bool   `json:"recording"`
	Persistent   bool   `json:"persistent"`
	Inconsistent bool   `json:"inconsistent"` // it was not written back when its machine died: of no use, but to be removed
}

// BlockNodes lists everything that qemu has open for the machine's disks.
func (vm *VM) BlockNodes(ctx context.Context) ([]BlockNode, error) {
	var nodes []BlockNode
	err := vm.qmp.Execute(ctx, "query-named-block-nodes", Node{"flat": true}, &nodes)
	return nodes, err
}

// DiskSize returns the size of a disk in bytes, as the guest sees it.
func (vm *VM) DiskSize(ctx context.Context, disk int) (int64, error) {
	return vm.sizeOf(ctx, vm.Disks()[disk].Name())
}

func (vm *VM) sizeOf(ctx context.Context, node string) (int64, error) {
	nodes, err := vm.BlockNodes(ctx)
	if err != nil {
		return 0, err
	}
	for _, n := range nodes {
		if n.Name == node {
			return n.Image.Size, nil
		}
	}
	return 0, errs.Text("find the block node", node, errs.NotFound, "qemu does not know it")
}

// OpenFiles lists the files that qemu's process has open, whatever qemu says itself.
func (vm *VM) OpenFiles() ([]string, error) {
	folder := fmt.Sprintf("/proc/%d/fd", vm.PID())
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, errs.Wrap("list the open files of", vm.name, err)
	}
	var files []string
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(folder, e.Name())); err == nil { // else it was closed just now
			files = append(files, target)
		}
	}
	return files, nil
}

// freshNumber counts the names given out by fresh.
var freshNumber atomic.Uint64

// fresh makes a name that no other node or job has.
func fresh(what string) string { return fmt.Sprintf("%s-%d", what, freshNumber.Add(1)) }

// percentages reads what `qemu-img -p` prints: "    (12.34/100%)\r".
type percentages struct {
	rest   []byte
	report func(float64)
}

var _ io.Writer = (*percentages)(nil)

// Write implements io.Writer and never fails.
func (p *percentages) Write(b []byte) (int, error) {
	p.rest = append(p.rest, b...)
	for {
		i := bytes.IndexByte(p.rest, ')')
		if i < 0 {
			return len(b), nil
		}
		var v float64
		if open := bytes.IndexByte(p.rest[:i], '('); open >= 0 {
			if _, err := fmt.Sscanf(string(p.rest[open:i]), "(%f/100%%", &v); err == nil {
				p.report(v)
			}
		}
		p.rest = p.rest[i+1:]
	}
}
