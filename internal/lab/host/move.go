package host

import (
	"context"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// MoveDisk implements engine.StorageHost.
func (h *Host) MoveDisk(ctx context.Context, vm string, d engine.DiskPlace, domain string, progress func(done, total int64)) (engine.DiskPlace, error) {
	return d, errs.Text("move the disk", d.Disk, errs.Unsupported, "not yet")
}
