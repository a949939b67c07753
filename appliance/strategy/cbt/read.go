package cbt

import (
	"context"
	"fmt"
	"slices"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/ovirt/imageio"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// read stores every disk in one session, which the caller commits or aborts.
func (b *backup) read(ctx context.Context) (*Result, *chunkstore.Session, error) {
	x, err := b.begin()
	if err != nil {
		return nil, nil, err
	}
	res := &Result{Incremental: b.reason == "", Reason: b.reason}
	for i := range b.disks {
		if err := b.readDisk(ctx, x, &b.disks[i], res); err != nil {
			x.Abort()
			return nil, nil, errs.Wrap("read disk", b.disks[i].Alias, err)
		}
	}
	return res, x, nil
}

func (b *backup) readDisk(ctx context.Context, x *chunkstore.Session, d *disk, res *Result) error {
	b.Report.Detail(fmt.Sprintf("disk %d (%s): preparing the transfer", d.Number, d.Alias))
	t, err := b.transfer(ctx, ovirt.ID(d.ID))
	if err != nil {
		return err
	}
	img, err := b.Open(ctx, t)
	if err != nil {
		return err
	}
	src := &source{img: img, dirty: d.incremental}
	if d.incremental {
		src.since = d.parent.Disk.Root.Size
	}
	err = b.patient(ctx, func() error { return src.load(ctx) })
	if err == nil {
		b.Report.Detail(fmt.Sprintf("disk %d (%s): %s, %s to be read", d.Number, d.Alias, d.Mode, mib(src.needed)))
		done := res.ReadBytes
		err = x.Ingest(ctx, d.Number, src, d.parent, func(p chunkstore.Progress) {
			b.Report.Progress(appliance.Progress{
				DoneBytes: done + img.ReadBytes(), TotalBytes: done + src.needed, ReadBytes: done + img.ReadBytes(), NewBytes: p.Stats.NewBytes,
			})
		})
	}
	res.ReadBytes += img.ReadBytes()
	res.DirtyBytes += src.needed
	// The connections have to be gone before the transfer ends, or its ticket cannot be removed.
	if cerr := img.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return b.endTransfer(ctx, t.ID)
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// transfer asks for a download and waits until it can be read.
func (b *backup) transfer(ctx context.Context, disk ovirt.ID) (ovirt.Transfer, error) {
	t, err := b.startTransfer(ctx, disk)
	if err != nil {
		return t, err
	}
	err = b.poll(ctx, readyWithin, func() (bool, error) {
		if t.Phase == ovirt.TransferTransferring && t.TransferURL != "" || ended(t.Phase) {
			return true, nil
		}
		got, err := b.Engine.Transfer(ctx, t.ID)
		if err == nil {
			t = got
		}
		return false, err
	})
	if err == nil && ended(t.Phase) {
		err = errs.Text("start transfer", string(t.ID), errs.Transient, "the engine's transfer is "+string(t.Phase)).
			WithNext("See the engine's events, and that ovirt-imageio runs on the host; then run the backup again.")
	}
	return t, err
}

// startTransfer asks for a transfer. If the answer is lost it looks first whether there is one before it asks again.
func (b *backup) startTransfer(ctx context.Context, disk ovirt.ID) (ovirt.Transfer, error) {
	var t ovirt.Transfer
	asked := false
	err := b.patient(ctx, func() (err error) {
		if asked {
			list, err := b.Engine.Transfers(ctx, b.live.ID)
			if err != nil {
				return err
			}
			if i := slices.IndexFunc(list, func(x ovirt.Transfer) bool { return x.Disk == disk && !ended(x.Phase) }); i >= 0 {
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

// ended tells whether a transfer's phase is one it does not leave, or leaves only by somebody's help.
func ended(p ovirt.TransferPhase) bool {
	switch p {
	case ovirt.TransferCancelledSystem, ovirt.TransferPausedSystem, ovirt.TransferFinishedSuccess,
		ovirt.TransferFinishedFailure, ovirt.TransferFinishedCleanup, "finalizing_failure", "cancelled_user":
		return true
	}
	return false
}

// finished tells whether a transfer holds nothing any more.
func finished(p ovirt.TransferPhase) bool {
	return p == ovirt.TransferFinishedSuccess || p == ovirt.TransferFinishedCleanup || p == ovirt.TransferFinishedFailure
}

// endTransfer finalises a transfer and waits until it is over. The engine may have ended it by itself, after the last
// byte: all bytes were read and stored before, and how the engine calls the end does not change them.
func (b *backup) endTransfer(ctx context.Context, id ovirt.ID) error {
	err := b.patient(ctx, func() error { return b.Engine.FinalizeTransfer(ctx, id) })
	if err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	return b.poll(ctx, finishWithin, func() (bool, error) {
		t, err := b.Engine.Transfer(ctx, id)
		if errs.Is(err, errs.NotFound) {
			return true, nil // purged: it is over
		}
		return finished(t.Phase), err
	})
}

// source is a disk behind an image transfer, as the store reads it.
type source struct {
	img     Image
	dirty   bool
	since   int64 // size of the parent's disk: beyond it nothing is unchanged
	needed  int64 // bytes that will have to be read
	extents []chunkstore.Extent
}

var (
	_ chunkstore.Source = (*source)(nil)
	_ chunkstore.Whole  = (*source)(nil)
)

// ReadsUnchanged implements chunkstore.Whole: a transfer of changes shows the whole disk as it was when the backup began.
func (s *source) ReadsUnchanged() bool { return true }

// maxExtents bounds what is remembered of a disk: 24 bytes each. A disk in more pieces is read in full where they end.
const maxExtents = 4 << 20

// load fetches the extents once, before any data connection is opened: on large disks the answer takes minutes, and idle
// connections would be dropped meanwhile.
func (s *source) load(ctx context.Context) error {
	s.extents, s.needed = nil, 0
	err := s.img.Extents(ctx, s.dirty, func(e imageio.Extent) error {
		kind := chunkstore.ExtentData
		switch {
		case s.dirty && !e.Dirty && e.Start+e.Length <= s.since:
			kind = chunkstore.ExtentUnchanged
		case s.dirty && !e.Dirty && e.Start < s.since: // the disk grew: the rest of the extent is new
			if err := s.add(chunkstore.Extent{Off: e.Start, Len: s.since - e.Start, Kind: chunkstore.ExtentUnchanged}); err != nil {
				return err
			}
			e.Length -= s.since - e.Start
			e.Start = s.since
			if e.Zero {
				kind = chunkstore.ExtentZero
			}
		case e.Zero:
			kind = chunkstore.ExtentZero
		}
		return s.add(chunkstore.Extent{Off: e.Start, Len: e.Length, Kind: kind})
	})
	if err != nil {
		return err
	}
	for _, e := range s.extents {
		if e.Kind == chunkstore.ExtentData {
			s.needed += e.Len
		}
	}
	return nil
}

func (s *source) add(e chunkstore.Extent) error {
	if n := len(s.extents); n > 0 && s.extents[n-1].Kind == e.Kind && s.extents[n-1].Off+s.extents[n-1].Len == e.Off {
		s.extents[n-1].Len += e.Len
		return nil
	}
	if len(s.extents) >= maxExtents { // what follows is read, whatever it is
		last := &s.extents[len(s.extents)-1]
		last.Kind = chunkstore.ExtentData
		last.Len = e.Off + e.Len - last.Off
		return nil
	}
	s.extents = append(s.extents, e)
	return nil
}

// Size implements chunkstore.Source.
func (s *source) Size() int64 { return s.img.Size() }

// Extents implements chunkstore.Source.
func (s *source) Extents(_ context.Context, visit func(chunkstore.Extent) error) error {
	for _, e := range s.extents {
		if err := visit(e); err != nil {
			return err
		}
	}
	return nil
}

// ReadAt implements chunkstore.Source.
func (s *source) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return s.img.ReadAt(ctx, p, off)
}
