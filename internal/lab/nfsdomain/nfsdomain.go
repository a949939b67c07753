// Package nfsdomain is the lab's oVirt host as far as storage domains go: it finds a data domain on an NFS export, joins
// it and reads its images as vdsm and sanlock do, and refuses what they refuse, in words that say why. What passes here
// was read from the wire by a foreign NFS client; nothing is shared with the code that wrote it.
//
// Terms. An export is what a host mounts. A domain is the one folder of an export that has a dom_md below it. Loading is
// what vdsm does before everything else: find the folder, write and remove a file of its own, read the metadata. A host
// id is a slot in the file ids, in which a host writes now and then that it lives. A lease is 1 MiB in which hosts
// agree on an owner.
//
// What holds:
//
//  1. The export is spoken to only by libnfs, over NFS v3, in a child process (helper.py), as vdsm does (36:36), and for
//     the access check also as qemu does (107:107 and group 36).
//  2. Every request ends within Options.Timeout: a server that hangs is an error. The child is then killed, and the
//     next request begins with a new mount, as a host's would after a forced unmount.
//  3. What vdsm and sanlock only read is only read, and what they write is written in the same way: metadata as a new
//     file that is renamed over the old one, slots and leases sector by sector, always synchronously.
//  4. An error begins with the name of vdsm's or sanlock's own, then the file, then what is wrong with it.
//
// Stricter than vdsm, since a fault that vdsm passes over would be found much later: owners and modes must be those that
// vdsm gives, a volume's CAP must be its size, the metadata's SDUUID must be its folder's name, the type must be NFS, and
// the version 5. Not imitated: being master with its mailbox, VM leases, the OVF store, and sanlock's waits, which are
// as long as Options say.
//
// Concurrency: everything may be called at once; calls about one domain wait for each other.
//
// Tests here are of bytes. Where a real server of ours and real domains are at hand, in appliance/instant/domain, whole
// lives are run, and every refusal is provoked by damaging one thing.
package nfsdomain

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
)

// Options say what a host is like. The zero value is good.
type Options struct {
	HostID   int           // 1 to 250, as engines number hosts; 0 means 1
	HostName string        // what sanlock writes into the slot; empty means "lab-host"
	Timeout  time.Duration // of one request to a server; 0 means 10 s, as sanlock and vdsm's monitor have it
	Settle   time.Duration // between taking a host id and looking whether it was kept; 0 means 100 ms, sanlock's is 20 s
	Renew    time.Duration // between two signs of life; 0 means 20 s, which is sanlock's
	Logger   *slog.Logger  // nil is silent
}

// Host is a host with its storage domains.
type Host struct {
	o   Options
	log *slog.Logger

	mu      sync.Mutex // guards domains; never held during a request
	domains map[string]*domain
}

// domain is a domain on an export that is mounted.
type domain struct {
	id     string // as the folder is called
	nfs    *client
	turn   chan struct{} // holds one token; whoever has it works on the domain
	member *membership   // nil unless the host is in the domain's lockspace
}

// New returns a host without domains. The caller closes it.
func New(o Options) (*Host, error) {
	if o.HostID == 0 {
		o.HostID = 1
	}
	if o.HostID < 1 || o.HostID > maxHostID {
		return nil, errs.Text("make a host", "", errs.Invalid, "a host id is a number from 1 to 250")
	}
	if o.HostName == "" {
		o.HostName = "lab-host"
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Settle == 0 {
		o.Settle = 100 * time.Millisecond
	}
	if o.Renew == 0 {
		o.Renew = 20 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := parts.Need(parts.NFSClient); err != nil {
		return nil, err
	}
	return &Host{o: o, log: o.Logger, domains: map[string]*domain{}}, nil
}

// Close leaves all domains as a host does that loses its power, and ends the NFS clients.
func (h *Host) Close() error {
	h.mu.Lock()
	all := h.domains
	h.domains = map[string]*domain{}
	h.mu.Unlock()
	for _, d := range all {
		d.disconnect()
	}
	return nil
}

// disconnect ends everything at once: what waits for the server fails first.
func (d *domain) disconnect() {
	d.nfs.kill()
	<-d.turn
	if d.member != nil {
		d.member.stop()
		d.member = nil
	}
	d.turn <- struct{}{}
}

// with runs work on a domain that was probed, when it is its turn.
func (h *Host) with(ctx context.Context, op, id string, work func(d *domain) error) error {
	h.mu.Lock()
	d := h.domains[id]
	h.mu.Unlock()
	if d == nil {
		return errs.Text(op, id, errs.NotFound, "StorageDomainDoesNotExist: no export was connected that holds it")
	}
	select {
	case <-d.turn:
	case <-ctx.Done():
		return errs.Wrap(op, id, ctx.Err())
	}
	defer func() { d.turn <- struct{}{} }()
	return errs.Wrap(op, id, work(d))
}

// refusal is what vdsm or sanlock would say about a file.
func refusal(kind errs.Kind, class, file, format string, args ...any) error {
	return errs.New(class, file, kind, fmt.Errorf(format, args...))
}

// remember adds a domain. One that was found at the same export before stays as it is, with what the host does there; at
// another export it is refused.
func (h *Host) remember(d *domain) (known bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.domains[d.id]
	if old == nil {
		h.domains[d.id] = d
		return false, nil
	}
	if old.nfs.where != d.nfs.where {
		return true, refusal(errs.Exists, "StorageDomainAlreadyExists", d.id, "it is connected from %s already",
			old.nfs.where)
	}
	return true, nil
}

var _ interface {
	ProbeDomain(ctx context.Context, export, options string) (*engine.DomainInfo, error)
	AttachDomain(ctx context.Context, domain, pool string) error
	ScanDisks(ctx context.Context, domain string) ([]engine.FoundDisk, error)
	DeactivateDomain(ctx context.Context, domain string) error
	DetachDomain(ctx context.Context, domain string) error
	FormatDomain(ctx context.Context, domain string) error
	ForgetDomain(ctx context.Context, domain string) error
	DomainSpace(ctx context.Context, domain string) (available, used int64, err error)
	VolumeURL(ctx context.Context, domain, disk, image string) (string, error)
	RemoveVolume(ctx context.Context, domain, disk string) error
} = (*Host)(nil)
