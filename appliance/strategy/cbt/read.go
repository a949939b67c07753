package cbt

import (
	"context"
	"fmt"
	"slices"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/ovirt/imageio"
	"github.com/holdfast-backup/holdfast/appliance/strategy"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// read stores every disk in one session, which the caller commits or aborts.
func (b *backup) read(ctx context.Context) (*strategy.Result, *chunkstore.Session, error) {
	x, err := b.begin()
	if err != nil {
		return nil, nil, err
	}
	res := &strategy.Result{Incremental: b.reason == "", Reason: b.reason}
	for i := range b.disks {
		if err := b.readDisk(ctx, x, &b.disks[i], res); err != nil {
			x.Abort()
			return nil, nil, errs.Wrap("read disk", b.disks[i].Alias, err)
		}
	}
	return res, x, nil
}

func (b *backup) readDisk(ctx context.Context, x *chunkstore.Session, d *strategy.Disk, res *strategy.Result) error {
	b.Report.Detail(fmt.Sprintf("disk %d (%s): preparing the transfer", d.Number, d.Alias))
	t, err := b.transfer(ctx, ovirt.ID(d.ID))
	if err != nil {
		return err
	}
	img, err := b.Open(ctx, t)
	if err != nil {
		return err
	}
	src := &strategy.Source{Image: img}
	since := int64(0)
	if d.Incremental {
		since = d.Parent.Disk.Root.Size
	}
	err = b.wait.Patiently(ctx, func() (err error) {
		src.Extents, err = load(ctx, img, d.Incremental, since)
		return err
	})
	needed := src.Extents.Needed()
	if err == nil {
		b.Report.Detail(fmt.Sprintf("disk %d (%s): %s, %s to be read", d.Number, d.Alias, d.Mode, mib(needed)))
		done := res.ReadBytes
		err = x.Ingest(ctx, d.Number, src.Ingestible(), d.Parent, func(p chunkstore.Progress) {
			b.Report.Progress(appliance.Progress{
				DoneBytes: done + img.ReadBytes(), TotalBytes: done + needed, ReadBytes: done + img.ReadBytes(), NewBytes: p.Stats.NewBytes,
			})
		})
	}
	res.ReadBytes += img.ReadBytes()
	res.DirtyBytes += needed
	// The connections have to be gone before the transfer ends, or its ticket cannot be removed.
	if cerr := img.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return b.wait.End(ctx, t.ID)
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// transfer asks for a download and waits until it can be read.
func (b *backup) transfer(ctx context.Context, disk ovirt.ID) (ovirt.Transfer, error) {
	t, err := b.startTransfer(ctx, disk)
	if err != nil {
		return t, err
	}
	return b.wait.Ready(ctx, t)
}

// startTransfer asks for a transfer. If the answer is lost it looks first whether there is one before it asks again.
func (b *backup) startTransfer(ctx context.Context, disk ovirt.ID) (ovirt.Transfer, error) {
	var t ovirt.Transfer
	asked := false
	err := b.wait.Patiently(ctx, func() (err error) {
		if asked {
			list, err := b.Engine.Transfers(ctx, b.live.ID)
			if err != nil {
				return err
			}
			if i := slices.IndexFunc(list, func(x ovirt.Transfer) bool { return x.Disk == disk && !strategy.Ended(x.Phase) }); i >= 0 {
				t = list[i]
				return nil
			}
		}
		asked = true
		t, err = b.Engine.StartTransfer(ctx, ovirt.TransferSpec{Disk: disk, Backup: b.live.ID, Inactivity: inactivity})
		return err
	})
	return t, err
}

// load fetches the extents once, before any data connection is opened: on large disks the answer takes minutes, and idle
// connections would be dropped meanwhile. Beyond since, the size of the parent's disk, nothing is unchanged.
func load(ctx context.Context, img Image, dirty bool, since int64) (x strategy.Extents, err error) {
	err = img.Extents(ctx, dirty, func(e imageio.Extent) error {
		kind := chunkstore.ExtentData
		if e.Zero {
			kind = chunkstore.ExtentZero
		}
		if dirty && !e.Dirty {
			n := min(e.Length, max(since-e.Start, 0)) // the disk may have grown: the rest of the extent is new
			x.Add(chunkstore.Extent{Off: e.Start, Len: n, Kind: chunkstore.ExtentUnchanged})
			e.Start, e.Length = e.Start+n, e.Length-n
		}
		x.Add(chunkstore.Extent{Off: e.Start, Len: e.Length, Kind: kind})
		return nil
	})
	return x, err
}
