package host

import (
	"context"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// Exports is the host's side of storage domains that lie on NFS exports. The host hands on to it what the simulator asks
// for about a domain that is not one of its own folders. Its calls block until the work is done, and may be made
// concurrently.
type Exports interface {
	Domains
	Volumes
}

// Domains is the life of a domain, as engine.StorageHost has it.
type Domains interface {
	// ProbeDomain connects to an export and returns the data domain there, or nil if there is none.
	ProbeDomain(ctx context.Context, export, options string) (*engine.DomainInfo, error)
	// AttachDomain joins the domain to a pool; DetachDomain ends that.
	AttachDomain(ctx context.Context, domain, pool string) error
	DeactivateDomain(ctx context.Context, domain string) error
	DetachDomain(ctx context.Context, domain string) error
	// FormatDomain removes everything from it; ForgetDomain disconnects.
	FormatDomain(ctx context.Context, domain string) error
	ForgetDomain(ctx context.Context, domain string) error
	// DomainSpace returns available and used bytes.
	DomainSpace(ctx context.Context, domain string) (available, used int64, err error)
}

// Volumes is what lies on a domain.
type Volumes interface {
	// ScanDisks lists the images on a domain that was probed.
	ScanDisks(ctx context.Context, domain string) ([]engine.FoundDisk, error)
	// VolumeURL returns where a VM finds a volume: nfs://ADDRESS/PATH, as qemu.NFSNode takes it.
	VolumeURL(ctx context.Context, domain, disk, image string) (string, error)
	// RemoveVolume deletes a disk, with all its volumes.
	RemoveVolume(ctx context.Context, domain, disk string) error
}

// The calls about NFS domains go to Exports; without it there are none.

// ProbeDomain implements engine.StorageHost.
func (h *Host) ProbeDomain(ctx context.Context, export, options string) (*engine.DomainInfo, error) {
	if h.opts.Exports == nil {
		return nil, noExports(export)
	}
	return h.opts.Exports.ProbeDomain(ctx, export, options)
}

// AttachDomain implements engine.StorageHost.
func (h *Host) AttachDomain(ctx context.Context, domain, pool string) error {
	return h.onExport(domain, func(e Exports) error { return e.AttachDomain(ctx, domain, pool) })
}

// DeactivateDomain implements engine.StorageHost.
func (h *Host) DeactivateDomain(ctx context.Context, domain string) error {
	return h.onExport(domain, func(e Exports) error { return e.DeactivateDomain(ctx, domain) })
}

// DetachDomain implements engine.StorageHost.
func (h *Host) DetachDomain(ctx context.Context, domain string) error {
	return h.onExport(domain, func(e Exports) error { return e.DetachDomain(ctx, domain) })
}

// FormatDomain implements engine.StorageHost.
func (h *Host) FormatDomain(ctx context.Context, domain string) error {
	if h.local(domain) {
		return errs.Text("format the domain", domain, errs.Denied, "it belongs to the lab")
	}
	return h.onExport(domain, func(e Exports) error { return e.FormatDomain(ctx, domain) })
}

// ForgetDomain implements engine.StorageHost.
func (h *Host) ForgetDomain(ctx context.Context, domain string) error {
	return h.onExport(domain, func(e Exports) error { return e.ForgetDomain(ctx, domain) })
}

// ScanDisks implements engine.StorageHost.
func (h *Host) ScanDisks(ctx context.Context, domain string) ([]engine.FoundDisk, error) {
	var found []engine.FoundDisk
	err := h.onExport(domain, func(e Exports) (err error) {
		found, err = e.ScanDisks(ctx, domain)
		return err
	})
	for _, d := range found {
		h.remember(engine.DiskPlace{Domain: domain, Disk: d.Disk, Image: d.Image, Format: d.Format, Size: d.Size})
	}
	return found, err
}

// onExport does something with an NFS domain. A local domain has nothing to be done.
func (h *Host) onExport(domain string, do func(Exports) error) error {
	switch {
	case h.local(domain):
		return nil
	case h.opts.Exports == nil:
		return noExports(domain)
	}
	return do(h.opts.Exports)
}

func noExports(what string) error {
	return errs.Text("use the storage", what, errs.Unsupported, "this host was made without NFS")
}
