package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

const (
	nbdReadyWithin = 20 * time.Second
	nbdEndWithin   = 20 * time.Second // it writes what it holds first
)

// startCold begins a backup of a VM that is down.
func (h *Host) startCold(ctx context.Context, b *backup, state *vmState) error {
	images := map[*exported]qemu.Node{}
	bitmaps := map[*exported]bool{}
	for _, x := range b.disks {
		node, err := h.node(ctx, x.place, "")
		if err != nil {
			return err
		}
		i, err := info(ctx, alone(node))
		if err != nil {
			return err
		}
		images[x], x.place.Size = node, i.Size
		bitmaps[x] = i.usable(b.from)
	}
	if err := b.choose(state, func(x *exported) bool { return bitmaps[x] }); err != nil {
		return err
	}
	// Nothing writes to the disks, so the order does not matter, nor that there is more than one moment.
	for n, x := range b.disks {
		if b.to != "" && keepsBitmaps(x.place) {
			if _, err := proc.Run(ctx, "qemu-img", "bitmap", "--add", alone(images[x]), b.to); err != nil {
				return err
			}
			x.marked = true
		}
		args := []string{"--read-only", "--allocation-depth"}
		if x.incremental {
			args = append(args, "--bitmap="+b.from)
		}
		socket := filepath.Join(b.folder, fmt.Sprintf("nbd%d", n))
		var err error
		if x.nbd, err = h.serve(ctx, socket, x.place.Disk, images[x], args...); err != nil {
			return err
		}
		x.socket = socket
	}
	return nil
}

// usable tells whether an image has a bitmap that was written back: one in use, when nobody uses it, was not.
func (i imageInfo) usable(name string) bool {
	for _, b := range i.Specific.Data.Bitmaps {
		if b.Name == name {
			return !slices.Contains(b.Flags, "in-use")
		}
	}
	return false
}

// serve starts a qemu-nbd for an image and returns when it listens.
func (h *Host) serve(ctx context.Context, socket, name string, image qemu.Node, more ...string) (*proc.Process, error) {
	args := append([]string{"qemu-nbd", "--persistent", "--shared=8", "--cache=none", "--discard=unmap", "--socket=" + socket,
		"--export-name=" + name}, more...)
	p, err := proc.Start(h.ctx, proc.Spec{Args: append(args, image.Image())})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, nbdReadyWithin)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		if _, err := os.Stat(socket); err == nil {
			return p, nil
		}
		select {
		case <-p.Done():
			return nil, errs.New("serve the image of", name, errs.Bug, p.Wait(ctx))
		case <-ctx.Done():
			p.Kill()
			return nil, errs.Wrap("serve the image of", name, ctx.Err())
		case <-ticker.C:
		}
	}
}

// stopServing ends a qemu-nbd, which closes its image in order.
func (h *Host) stopServing(p *proc.Process) {
	if err := p.Stop(syscall.SIGTERM, nbdEndWithin); err != nil {
		h.log.Warn("qemu-nbd ended badly", "err", err)
	}
}

// removeColdBitmap drops a bitmap of a disk that no machine has open.
func (h *Host) removeColdBitmap(ctx context.Context, d engine.DiskPlace, name string) error {
	node, err := h.node(ctx, d, "")
	if err != nil {
		return err
	}
	i, err := info(ctx, alone(node))
	if err != nil {
		return err
	}
	for _, b := range i.Specific.Data.Bitmaps {
		if b.Name == name {
			_, err := proc.Run(ctx, "qemu-img", "bitmap", "--remove", alone(node), name)
			return err
		}
	}
	return nil
}
