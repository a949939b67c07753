package qemu

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

const (
	// commandWithin is how long a single command may take.
	commandWithin = time.Minute
	// settleWithin is how long it may take to put a disk together after a move, or after one that did not come to its
	// end. Nobody can give that up: the guest's newest writes lie in the part to be merged.
	settleWithin = 5 * time.Minute
)

// merge writes the top into the copied base and goes on with that alone.
func (m *mover) merge(ctx context.Context) error {
	m.opts.Progress(MoveMerge, 0)
	base, _ := m.dest["backing"].(Node)
	if err := m.vm.commit(ctx, m.opts.Disk, m.dest, base); err != nil {
		return err
	}
	if err := os.Remove(m.moved.Top); err != nil {
		return err
	}
	m.moved.Top = ""
	m.opts.Progress(MoveMerge, 100)
	return nil
}

// commit writes the image on top, which a guest goes on using, into the one below it, changes over to that and closes
// the top.
func (vm *VM) commit(ctx context.Context, disk int, top, base Node) error {
	job := fresh("merge")
	events := vm.qmp.Events("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_ERROR")
	defer events.Close()
	if err := vm.qmp.Execute(ctx, "block-commit", Node{"job-id": job, "device": top.Name()}, nil); err != nil {
		return err
	}
	for _, want := range []string{"BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED"} {
		e, err := events.Next(ctx, func(e Event) bool { return e.Field("device") == job })
		if err != nil {
			return err
		}
		if e.Name != want || e.Field("error") != "" {
			return fmt.Errorf("the merge did not end well: %s %s", e.Name, e.Data)
		}
		if want == "BLOCK_JOB_READY" {
			if err := vm.qmp.Execute(ctx, "job-complete", Node{"id": job}, nil); err != nil {
				return err
			}
		}
	}
	vm.setDisk(disk, base)
	return vm.qmp.Execute(ctx, "blockdev-del", Node{"node-name": top.Name()}, nil)
}

// settle makes one image of the disk after a step has failed: at the source, or at the destination if the machine has
// changed over to that, in which case the move has come true after all and nil is returned. A machine that has ended
// needs the same work, done by qemu-img.
func (m *mover) settle(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleWithin)
	defer cancel()
	err := m.settleRunning(ctx)
	if errs.Is(err, errs.Stale) {
		select {
		case <-m.vm.Done(): // its files are closed
			err = m.settleEnded(ctx)
		case <-ctx.Done():
		}
	}
	if err != nil {
		return errs.New("put the disk of "+m.vm.name+" together again after a failed move", "", errs.KindOf(cause),
			fmt.Errorf("%w; it had failed because: %w", err, cause))
	}
	if m.pivoted {
		return nil
	}
	for _, path := range []string{m.moved.Base, m.moved.Top} {
		if path != "" {
			_ = os.Remove(path) // as far as they were made
		}
	}
	return cause
}

func (m *mover) settleRunning(ctx context.Context) error {
	if m.pivoted {
		return m.settlePivoted(ctx)
	}
	if m.job != "" {
		err := m.vm.EndJob(ctx, m.job)
		if err != nil {
			return err
		}
	}
	if m.dest != nil {
		if err := m.vm.qmp.Execute(ctx, "blockdev-del", Node{"node-name": m.dest.Name()}, nil); err != nil {
			return err
		}
	}
	if m.top == nil {
		_ = os.Remove(m.opts.SnapshotPath) // if it was made at all
		return m.vm.qmp.Execute(ctx, "query-status", nil, nil)
	}
	if err := m.vm.commit(ctx, m.opts.Disk, m.top, m.base); err != nil {
		return err
	}
	return os.Remove(m.opts.SnapshotPath)
}

// settlePivoted does what is left: it looks what is still open.
func (m *mover) settlePivoted(ctx context.Context) error {
	nodes, err := m.vm.BlockNodes(ctx)
	if err != nil {
		return err
	}
	open := map[string]bool{}
	for _, n := range nodes {
		open[n.Name] = true
	}
	for _, n := range []Node{m.top, m.base} {
		if open[n.Name()] {
			if err := m.vm.qmp.Execute(ctx, "blockdev-del", Node{"node-name": n.Name()}, nil); err != nil {
				return err
			}
		}
	}
	_ = os.Remove(m.opts.SnapshotPath) // maybe already
	if m.moved.Top != "" && open[m.dest.Name()] {
		return m.merge(ctx)
	}
	return nil
}

// settleEnded merges the files that an ended machine left.
func (m *mover) settleEnded(ctx context.Context) error {
	if m.pivoted {
		_ = os.Remove(m.opts.SnapshotPath) // maybe already
		if m.moved.Top == "" {
			return nil
		}
		if _, err := proc.Run(ctx, "qemu-img", "commit", "-q", "-f", "qcow2", m.moved.Top); err != nil {
			return err
		}
		err := os.Remove(m.moved.Top)
		m.moved.Top = ""
		return err
	}
	if m.top == nil {
		_ = os.Remove(m.opts.SnapshotPath) // if it was made at all
		return nil
	}
	// The snapshot's header does not say what it lies on.
	if _, err := proc.Run(ctx, "qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", m.base.Format(), "-b", m.base.Image(),
		m.opts.SnapshotPath); err != nil {
		return err
	}
	if _, err := proc.Run(ctx, "qemu-img", "commit", "-q", "-f", "qcow2", m.opts.SnapshotPath); err != nil {
		return err
	}
	return os.Remove(m.opts.SnapshotPath)
}

// EndJob ends a block job that does not end by itself, without changing over, and waits for that. One that is gone
// already is no error.
func (vm *VM) EndJob(ctx context.Context, job string) error {
	events := vm.qmp.Events("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED")
	defer events.Close()
	err := vm.qmp.Execute(ctx, "block-job-cancel", Node{"device": job, "force": true}, nil)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = events.Next(ctx, func(e Event) bool { return e.Field("device") == job })
	return err
}
