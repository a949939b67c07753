package nfsdomain

import (
	"context"
	"path"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// removedPrefix marks an image that is being deleted.
const removedPrefix = "_remove_me_"

// FormatDomain removes everything of a domain that is in no pool.
func (h *Host) FormatDomain(ctx context.Context, id string) error {
	return h.with(ctx, "format storage domain", id, func(d *domain) error {
		m, err := d.load(ctx)
		if err != nil {
			return err
		}
		if m.pool() != "" {
			return refusal(errs.Busy, "CannotFormatStorageDomainInConnectedPool", metadataFile, "POOL_UUID=%s", m.pool())
		}
		return d.nfs.remove(ctx, d.id)
	})
}

// ForgetDomain disconnects the export. A domain that is not known is forgotten already.
func (h *Host) ForgetDomain(_ context.Context, id string) error {
	h.mu.Lock()
	d := h.domains[id]
	delete(h.domains, id)
	h.mu.Unlock()
	if d != nil {
		d.disconnect()
	}
	return nil
}

// RemoveVolume deletes a disk as vdsm does: the image's folder is renamed first, so that nobody takes half of it for an
// image.
func (h *Host) RemoveVolume(ctx context.Context, id, disk string) error {
	return h.with(ctx, "delete disk "+disk+" from storage domain", id, func(d *domain) error {
		gone := d.path("images/" + removedPrefix + disk)
		if err := d.nfs.rename(ctx, d.path("images/"+disk), gone); err != nil {
			return absent(err, "ImageDoesNotExistInSD", path.Join("images", disk))
		}
		return d.nfs.remove(ctx, gone)
	})
}
