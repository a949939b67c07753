package transfer

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
	p := b.plans[d.ID]
	var changed strategy.Extents
	for i, volume := range p.layers {
		b.Report.Detail(fmt.Sprintf("disk %d (%s): looking at layer %d of %d", d.Number, d.Alias, i+1, len(p.layers)))
		err := b.with(ctx, ovirt.TransferSpec{Disk: ovirt.ID(d.ID), Volume: volume, Shallow: true}, func(img strategy.Image) error {
			own, err := b.extents(ctx, img, true)
			changed = over(changed, own)
			return err
		})
		if err != nil {
			return err
		}
	}
	b.Report.Detail(fmt.Sprintf("disk %d (%s): preparing the transfer", d.Number, d.Alias))
	return b.with(ctx, ovirt.TransferSpec{Disk: ovirt.ID(d.ID), Volume: p.volume}, func(img strategy.Image) error {
		src := &strategy.Source{Image: img}
		var err error
		if d.Incremental {
			src.Extents = since(changed, d.Parent.Disk.Root.Size, img.Size())
		} else if src.Extents, err = b.extents(ctx, img, false); err != nil {
			return err
		}
		return b.ingest(ctx, x, d, src, res)
	})
}

func (b *backup) ingest(ctx context.Context, x *chunkstore.Session, d *strategy.Disk, src *strategy.Source, res *strategy.Result) error {
	needed, done := src.Extents.Needed(), res.ReadBytes
	b.Report.Detail(fmt.Sprintf("disk %d (%s): %s, %.1f MiB to be read", d.Number, d.Alias, d.Mode, float64(needed)/(1<<20)))
	err := x.Ingest(ctx, d.Number, src.Ingestible(), d.Parent, func(p chunkstore.Progress) {
		b.Report.Progress(appliance.Progress{
			DoneBytes: done + src.Image.ReadBytes(), TotalBytes: done + needed, ReadBytes: done + src.Image.ReadBytes(), NewBytes: p.Stats.NewBytes,
		})
	})
	res.ReadBytes += src.Image.ReadBytes()
	res.DirtyBytes += needed
	return err
}

// with opens a transfer, uses it and ends it. A transfer that could not be used is left to clean, which gives it up.
func (b *backup) with(ctx context.Context, s ovirt.TransferSpec, use func(strategy.Image) error) error {
	t, err := b.startTransfer(ctx, s)
	if err != nil {
		return err
	}
	if t, err = b.wait.Ready(ctx, t); err != nil {
		return err
	}
	img, err := b.Open(ctx, t)
	if err != nil {
		return err
	}
	err = use(img)
	// The connections have to be gone before the transfer ends, or its ticket cannot be removed.
	if cerr := img.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return b.wait.End(ctx, t.ID)
}

// startTransfer asks for a transfer, which is written down first. If the answer is lost it looks whether there is one
// before it asks again.
func (b *backup) startTransfer(ctx context.Context, s ovirt.TransferSpec) (t ovirt.Transfer, err error) {
	s.Inactivity = inactivity
	var live []ovirt.Transfer
	if err := b.wait.Patiently(ctx, func() (err error) {
		live, err = b.Engine.LiveTransfers(ctx)
		return err
	}); err != nil {
		return t, err
	}
	r := RunTransfer{Disk: s.Disk, Volume: s.Volume}
	for _, o := range live {
		r.Known = append(r.Known, o.ID)
	}
	b.run.Transfers = append(b.run.Transfers, r)
	if err := b.Journal.KeepRun(b.run); err != nil {
		return t, err
	}
	asked := false
	var locked error
	err = b.wait.Until(ctx, lockedWithin, func() (bool, error) {
		if asked {
			live, err := b.Engine.LiveTransfers(ctx)
			if err != nil {
				return false, err
			}
			if i := slices.IndexFunc(live, r.made); i >= 0 {
				t = live[i]
				return true, nil
			}
		}
		asked = true
		t, err = b.Engine.StartTransfer(ctx, s)
		if locked = nil; errs.Is(err, errs.Busy) { // the lock of the transfer before outlives it
			locked = err
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		if locked != nil && ctx.Err() == nil {
			err = locked
		}
		return t, err
	}
	b.run.Transfers[len(b.run.Transfers)-1].ID = t.ID
	return t, b.Journal.KeepRun(b.run)
}

// made tells whether a transfer is the one that was asked for. Answers name the disk; should one name the volume, that is
// as good.
func (r RunTransfer) made(t ovirt.Transfer) bool {
	if r.ID != "" {
		return t.ID == r.ID
	}
	return t.Download && (t.Disk == r.Disk || t.Disk == r.Volume) && !slices.Contains(r.Known, t.ID)
}

// extents asks what there is in an image: of one layer, what it holds itself, or of a whole disk.
func (b *backup) extents(ctx context.Context, img strategy.Image, layer bool) (x strategy.Extents, err error) {
	err = b.wait.Patiently(ctx, func() error {
		x = nil
		return img.Extents(ctx, false, func(e imageio.Extent) error {
			kind := chunkstore.ExtentData
			switch {
			case layer && e.Hole: // it is what lies below
				kind = chunkstore.ExtentUnchanged
			case e.Zero:
				kind = chunkstore.ExtentZero
			}
			x.Add(chunkstore.Extent{Off: e.Start, Len: e.Length, Kind: kind})
			return nil
		})
	})
	return x, err
}
