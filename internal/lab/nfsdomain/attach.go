package nfsdomain

import (
	"context"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// AttachDomain joins a domain to a pool, or activates one that is in it already: from then on the host has a host id
// there and shows that it lives.
func (h *Host) AttachDomain(ctx context.Context, id, pool string) error {
	return h.with(ctx, "attach storage domain", id, func(d *domain) error {
		m, err := d.load(ctx)
		if err != nil {
			return err
		}
		if m.pool() != "" && m.pool() != pool {
			return refusal(errs.Busy, "StorageDomainAlreadyAttached", metadataFile, "POOL_UUID=%s", m.pool())
		}
		if d.member != nil {
			return nil
		}
		if err := d.checkLeases(ctx); err != nil {
			return err
		}
		if m.pool() == "" {
			if err := h.join(ctx, d, m.with("POOL_UUID", pool, "ROLE", "Regular")); err != nil {
				return err
			}
		}
		d.member, err = h.enter(ctx, d)
		return err
	})
}

// join rewrites the metadata while it owns the lease for that.
func (h *Host) join(ctx context.Context, d *domain, m metadata) error {
	member, err := h.enter(ctx, d)
	if err != nil {
		return err
	}
	err = member.own(ctx, sdmLease(d.id), func() error { return d.nfs.replace(ctx, d.path(metadataFile), m.encode()) })
	if left := member.leave(ctx); err == nil {
		err = left
	}
	return err
}

// DeactivateDomain gives the host id back. A domain that is not active stays what it is.
func (h *Host) DeactivateDomain(ctx context.Context, id string) error {
	return h.with(ctx, "deactivate storage domain", id, func(d *domain) error {
		if d.member == nil {
			return nil
		}
		m := d.member
		d.member = nil
		return m.leave(ctx)
	})
}

// DetachDomain takes a domain out of its pool; it needs no lease for that.
func (h *Host) DetachDomain(ctx context.Context, id string) error {
	return h.with(ctx, "detach storage domain", id, func(d *domain) error {
		if d.member != nil {
			return refusal(errs.Busy, "StorageDomainActive", d.id, "the host still has a host id there")
		}
		m, err := d.load(ctx)
		if err != nil {
			return err
		}
		if m.pool() == "" {
			return refusal(errs.Invalid, "StorageDomainNotInPool", metadataFile, "POOL_UUID is empty")
		}
		return d.nfs.replace(ctx, d.path(metadataFile), m.with("POOL_UUID", "", "ROLE", "Regular").encode())
	})
}

// DomainSpace returns what the host's monitor sees: it reads the metadata too, and a domain in which the host's signs
// of life fail is no good either.
func (h *Host) DomainSpace(ctx context.Context, id string) (available, used int64, err error) {
	err = h.with(ctx, "monitor storage domain", id, func(d *domain) error {
		if d.member != nil {
			if err := d.member.lost(); err != nil {
				return err
			}
		}
		if _, err := d.metadata(ctx); err != nil {
			return err
		}
		free, total, err := d.nfs.space(ctx)
		available, used = free, total-free
		return err
	})
	return available, used, err
}

// checkLeases reads ids and leases as a whole.
func (d *domain) checkLeases(ctx context.Context) error {
	for _, f := range []struct {
		name  string
		size  int64
		check func(area []byte) error
	}{
		{idsFile, areaSize, func(area []byte) error { return checkLockspace(idsFile, d.id, area) }},
		{leasesFile, 2 * areaSize, func(area []byte) error {
			_, _, err := checkResource(leasesFile, d.id, sdmName, area[areaSize:])
			return err
		}},
	} {
		area, err := d.area(ctx, f.name, f.size)
		if err == nil {
			err = f.check(area)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// area reads a file of leases, which must have exactly that size.
func (d *domain) area(ctx context.Context, file string, size int64) ([]byte, error) {
	s, err := d.nfs.stat(ctx, d.path(file))
	if err != nil {
		return nil, absent(err, "SanlockException ENOENT", file)
	}
	if err := checkOwner(file, s, 0o660); err != nil {
		return nil, err
	}
	if s.Size != size {
		return nil, short(file, s.Size, size)
	}
	out := make([]byte, 0, size)
	for int64(len(out)) < size {
		p, err := d.nfs.read(ctx, d.path(file), int64(len(out)), areaSize)
		if err != nil {
			return nil, err
		}
		if len(p) == 0 {
			return nil, short(file, int64(len(out)), size)
		}
		out = append(out, p...)
	}
	return out, nil
}
