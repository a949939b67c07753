package restore

import (
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	// disksAtOnce bounds the transfers that one host has to serve for us.
	disksAtOnce = 2
	// connections of one transfer. The daemon allows 8, and hangs silently on the ninth.
	connections = 4
	// piece is the most that is written by one request, in bytes.
	piece = 4 << 20
	// zeroPiece is the most that is zeroed by one request, in bytes: it is no work for most storages, and some for others.
	zeroPiece = 1 << 30
	// uploadTries is how often a disk is begun.
	uploadTries = 3
	// inactivity is how long the daemon waits for us between two writes: the store may be slow, a full verification long.
	inactivity = time.Hour
)

// upload makes and fills all disks that are not there yet.
func (w *worker) upload(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(disksAtOnce)
	for i := range w.r.Disks {
		if w.r.Disks[i].Uploaded {
			w.moved[i].Store(w.r.Disks[i].DataBytes)
			continue
		}
		g.Go(func() error { return w.disk(ctx, i) })
	}
	return g.Wait()
}

// disk makes and fills one disk. An upload that breaks takes its disk with it, and begins again with a new one.
func (w *worker) disk(ctx context.Context, i int) error {
	d := w.r.Disks[i]
	for try := 1; ; try++ {
		w.moved[i].Store(0)
		err := w.fill(ctx, i)
		if err == nil {
			return w.keep(func(r *Record) { r.Disks[i].Uploaded = true })
		}
		kind := errs.KindOf(err)
		if try == uploadTries || ctx.Err() != nil || !(kind.Retryable() || kind == errs.Stale || kind == errs.NotFound) {
			return errs.Wrap("restore disk", d.Alias, err)
		}
		w.report.Note(fmt.Sprintf("Disk %d: the upload broke (%v), and begins again with a new disk.", d.Number, err))
	}
}

// fill makes a disk as if nothing of it were there, and brings the point's bytes into it.
func (w *worker) fill(ctx context.Context, i int) error {
	d := w.r.Disks[i]
	what := fmt.Sprintf("disk %d (%s): ", d.Number, d.Alias)
	if err := w.clear(ctx, i); err != nil {
		return err
	}
	w.report.Detail(what + "the engine makes it on " + d.Domain)
	if err := w.makeDisk(ctx, i); err != nil {
		return err
	}
	t, err := w.transfer(ctx, ovirt.ID(d.ID))
	if err != nil {
		return err
	}
	src, err := w.Source(ctx, chunkstore.PointID(w.r.Point), d.Number)
	if err != nil {
		return err
	}
	img, err := w.Open(ctx, t)
	if err != nil {
		return err
	}
	if img.SlowPath() {
		w.report.Note("The host cannot be reached for image transfers: everything goes through the engine's machine, which is slow.")
	}
	err = w.write(ctx, i, src, img, what)
	// The connections have to be gone before the transfer ends, or its ticket cannot be removed.
	if cerr := img.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	w.report.Detail(what + "the engine looks at what it got")
	return w.finish(ctx, t.ID, ovirt.ID(d.ID))
}

// write brings all bytes of the point's disk and sees that they are there.
func (w *worker) write(ctx context.Context, i int, src Source, img Target, what string) error {
	d := w.r.Disks[i]
	if img.Size() != d.SizeBytes {
		return errs.Text("open image transfer", "", errs.Unsupported, fmt.Sprintf("the engine's disk has %d bytes, and the point's %d", img.Size(), d.SizeBytes))
	}
	w.report.Detail(what + "uploading")
	if err := w.copy(ctx, i, src, img); err != nil {
		return err
	}
	if err := img.Flush(ctx); err != nil {
		return err
	}
	w.report.Detail(what + "verifying (" + w.r.Verify + ")")
	return verify(ctx, src, img, w.r.Verify == VerifyFull)
}

// run is a stretch of a disk, in bytes.
type run struct {
	off, n int64
	data   bool
}

// runs calls send with the stretches of a disk, none longer than its limit, until send fails.
func runs(ctx context.Context, src Source, send func(run) error) error {
	var failed error
	err := src.Extents(ctx, 0, src.Size(), func(off, n int64, data bool) bool {
		limit := int64(zeroPiece)
		if data {
			limit = piece
		}
		for n > 0 && failed == nil {
			// Pieces end on their own grid, so that most are aligned.
			part := min(n, limit-off%limit)
			failed = send(run{off, part, data})
			off, n = off+part, n-part
		}
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// crowd calls do for the stretches of a disk, several at once; each caller has a buffer of its own.
func crowd(ctx context.Context, src Source, wanted func(run) bool, do func(ctx context.Context, x run, buf []byte) error) error {
	g, ctx := errgroup.WithContext(ctx)
	todo := make(chan run)
	g.Go(func() error {
		defer close(todo)
		return runs(ctx, src, func(x run) error {
			if !wanted(x) {
				return nil
			}
			select {
			case todo <- x:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	for range connections {
		g.Go(func() error {
			buf := make([]byte, piece)
			for x := range todo {
				if err := do(ctx, x, buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// copy writes the data of a disk. Its zeros are written to a raw disk only, below which old bytes may lie: a new qcow2 file
// reads as zeros, and to write them would make its tables longer.
func (w *worker) copy(ctx context.Context, i int, src Source, img Target) error {
	zeros := w.r.Disks[i].Format == string(ovirt.FormatRaw)
	return crowd(ctx, src, func(x run) bool { return x.data || zeros }, func(ctx context.Context, x run, buf []byte) error {
		if !x.data {
			return img.Zero(ctx, x.off, x.n)
		}
		p := buf[:x.n]
		if err := readFull(ctx, src, p, x.off); err != nil {
			return err
		}
		if err := img.WriteAt(ctx, p, x.off); err != nil {
			return err
		}
		w.moved[i].Add(x.n)
		w.progress()
		return nil
	})
}

func (w *worker) progress() {
	var p appliance.Progress
	for i := range w.moved {
		p.TotalBytes += w.r.Disks[i].DataBytes // does not change
		p.DoneBytes += min(w.moved[i].Load(), w.r.Disks[i].DataBytes)
	}
	w.report.Progress(p)
}

// reader is what both sides have in common.
type reader interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
}

// readFull reads all of p.
func readFull(ctx context.Context, r reader, p []byte, off int64) error {
	n, err := r.ReadAt(ctx, p, off)
	switch {
	case n == len(p) && (err == nil || err == io.EOF):
		return nil
	case err == nil || err == io.EOF:
		return errs.Text("read disk", fmt.Sprintf("at byte %d", off), errs.Bug, fmt.Sprintf("%d of %d bytes were there", n, len(p)))
	}
	return err
}
