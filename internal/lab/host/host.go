// Package host is the hypervisor below the lab's simulated engine: it does what vdsm does, with real machines in qemu,
// changed block tracking in qcow2, and images served by the real ovirt-imageio.
//
// Terms. A local domain is a storage domain that is a folder of ours: DIR/DOMAIN/DISK/IMAGE. All other domains lie on
// NFS exports and belong to Exports. A machine is a VM that runs. A checkpoint is, in every qcow2 disk of a backup, a
// persistent bitmap of the checkpoint's name. A scratch image takes what the guest overwrites during a live backup.
//
// Backups. Of a machine, as libvirt makes them: a scratch image above each disk, and in one transaction for all disks a
// copy of the bitmap to tell the changes by, the new checkpoint's bitmap, and the job that copies what is overwritten;
// then the scratch images are exported by qemu's NBD server. Of a VM that is down: the new bitmap, and one qemu-nbd for
// each disk. Both kinds look the same to ovirt-imageio.
//
// Rules:
//
//  1. Every checkpoint's bitmap goes on recording until the checkpoint is removed. So the changes since any checkpoint
//     are in one bitmap, and a checkpoint is removed by dropping its bitmap; none has to be merged into another.
//  2. A backup that did not begin leaves nothing: no bitmap, export, job or file. StopBackup leaves only the checkpoint.
//  3. A disk is one image before and after a move, also when the move fails or the machine ends during it.
//  4. Close ends every machine and every child process.
//
// Everything may be called concurrently. Work on the backups of one VM happens in turn. The tests boot a real Debian and
// read it through the real ovirt-imageio, with HOLDFAST_REAL_PARTS=1; what fails is tested without.
package host

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/imageio"
)

// Imageio is what the host needs of the imageio daemon that serves its images; *imageio.Daemon is one.
type Imageio interface {
	URL() string
	AddTicket(ctx context.Context, t imageio.Ticket) error
	RemoveTicket(ctx context.Context, uuid string) error
	Ticket(ctx context.Context, uuid string) (imageio.State, error)
	Extend(ctx context.Context, uuid string, seconds int) error
}

var (
	_ Imageio     = (*imageio.Daemon)(nil)
	_ engine.Host = (*Host)(nil)
)

// Options says what the host has.
type Options struct {
	// Dir holds the local domains' folders, and is made if missing. The disks in it outlive the host.
	Dir string
	// Domains are the ids of the local domains.
	Domains []string
	// Imageio serves the images. Without one there are no tickets.
	Imageio Imageio
	// Exports are the domains on NFS. Without them there are none.
	Exports Exports
	// Prompt is what a root shell on the VMs' serial consoles shows when it is ready; needed by Exec and, as the stand-in
	// for a guest agent, by ShutdownVM. Empty: debian.Prompt.
	Prompt string
	// Logger is told what is done and what fails; nil is silent.
	Logger *slog.Logger
}

// Host is a running host. Close it.
type Host struct {
	opts Options
	log  *slog.Logger
	run  string // a short path for sockets, and for what does not outlive the host

	ctx    context.Context // ends with Close: the life of machines and other children
	cancel context.CancelFunc
	work   sync.WaitGroup // one for each machine

	mu       sync.Mutex // guards what follows; never held while something is waited for
	machines map[string]*machine
	vms      map[string]*vmState
	backups  map[string]*backup
	tickets  map[string]*ticket
	places   map[string]engine.DiskPlace // where a disk was last seen, by its id
}

// vmState is what the host keeps of a VM whether it runs or not.
type vmState struct {
	work sync.Mutex // held by work on the VM's backups

	// checkpoints tells which disks each checkpoint has a bitmap in; guarded by work.
	checkpoints map[string][]string
}

// New makes a host and the folders of its local domains.
func New(o Options) (*Host, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Domains = slices.Clone(o.Domains)
	for i, d := range o.Domains {
		o.Domains[i] = strings.ToLower(d)
		d = o.Domains[i]
		if err := os.MkdirAll(filepath.Join(o.Dir, d), 0o755); err != nil {
			return nil, errs.Wrap("make the folder of the domain", d, err)
		}
	}
	run, err := os.MkdirTemp("", "holdfast-host-")
	if err != nil {
		return nil, errs.Wrap("make", "the host's folder for sockets", err)
	}
	h := &Host{opts: o, log: o.Logger, run: run, machines: map[string]*machine{}, vms: map[string]*vmState{},
		backups: map[string]*backup{}, tickets: map[string]*ticket{}, places: map[string]engine.DiskPlace{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h, nil
}

// Close ends machines and children, lets them write what their guests had flushed, and removes everything but the
// disks. It waits.
func (h *Host) Close() {
	h.mu.Lock()
	var running []*machine
	for _, m := range h.machines {
		if m.vm != nil {
			running = append(running, m)
		}
	}
	h.mu.Unlock()
	var all sync.WaitGroup
	for _, m := range running {
		all.Go(func() {
			if err := m.vm.Quit(context.Background()); err != nil {
				h.log.Warn("machine did not end", "vm", m.spec.Name, "err", err)
			}
		})
	}
	all.Wait()
	h.cancel()
	h.work.Wait()
	h.mu.Lock()
	backups, tickets := h.backups, h.tickets
	h.backups, h.tickets = map[string]*backup{}, map[string]*ticket{}
	h.mu.Unlock()
	for _, b := range backups {
		for _, x := range b.disks {
			if x.nbd != nil {
				<-x.nbd.Done()
			}
		}
	}
	for _, t := range tickets {
		if t.nbd != nil {
			<-t.nbd.Done()
		}
	}
	if err := os.RemoveAll(h.run); err != nil {
		h.log.Warn("folder not removed", "err", err)
	}
}

// stateOf returns what is kept of a VM.
func (h *Host) stateOf(vm string) *vmState {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.vms[vm]
	if s == nil {
		s = &vmState{checkpoints: map[string][]string{}}
		h.vms[vm] = s
	}
	return s
}

// local tells whether a domain is one of our folders.
func (h *Host) local(domain string) bool {
	return slices.Contains(h.opts.Domains, strings.ToLower(domain))
}

// remember notes where a disk is.
func (h *Host) remember(d engine.DiskPlace) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.places[d.Disk] = d
}

// forget is for a disk that is no more.
func (h *Host) forget(disk string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.places, disk)
}
