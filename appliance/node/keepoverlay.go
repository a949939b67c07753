package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/fs/overlay"
	"github.com/holdfast-backup/holdfast/fs/synthetic"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// KeepOptions say what KeepOverlay makes a point of.
type KeepOptions struct {
	Point    *chunkstore.Point // that was served
	Overlay  string            // the folder that was named when it was
	Format   synthetic.Format  // "": the one that the folder holds
	VM       string            // the new point's machine; "" for the old one's
	Now      time.Time
	Progress func(done, total int64) // may be nil
}

// KeepResult says what came of it. Field names are the command line's JSON.
type KeepResult struct {
	Point   string  `json:"point"`
	VM      string  `json:"vm"`
	Parent  string  `json:"parent"`
	Disks   []int   `json:"disks"`         // that had an overlay
	Written int64   `json:"written_bytes"` // that the overlays hold
	New     int64   `json:"new_bytes"`     // of chunks not seen before, uncompressed
	Known   int64   `json:"known_bytes"`   // read, and found to be in the store
	Stored  int64   `json:"stored_bytes"`  // added on disk
	Seconds float64 `json:"seconds"`
}

// KeepOverlay makes a new point of what was written to a point that was served with an overlay to keep. The overlay
// stays as it is. While somebody serves it, it is errs.Busy.
func KeepOverlay(ctx context.Context, s *chunkstore.Store, o KeepOptions) (*KeepResult, error) {
	began := time.Now()
	res, err := keepOverlay(ctx, s, o)
	if err != nil {
		return nil, errs.Wrap("keep overlay", o.Overlay, err)
	}
	res.Seconds = time.Since(began).Seconds()
	return res, nil
}

func keepOverlay(ctx context.Context, s *chunkstore.Store, o KeepOptions) (_ *KeepResult, err error) {
	res := &KeepResult{VM: o.VM, Parent: string(o.Point.ID)}
	if res.VM == "" {
		res.VM = VMOf(o.Point)
	}
	if !goodName(res.VM) {
		return nil, errs.Text("name the machine", res.VM, errs.Invalid, "a machine's name is at most 200 bytes long and has no control characters")
	}
	disks := map[int]written{}
	defer func() {
		for _, w := range disks {
			if cerr := w.overlay.Close(); err == nil {
				err = cerr
			}
		}
	}()
	for _, d := range o.Point.Disks {
		format, err := overlayFormat(o.Overlay, d.Number, o.Format)
		if err != nil {
			return nil, err
		}
		if format == "" {
			continue
		}
		w, err := openWritten(ctx, s.Reader, o, d, format)
		if err != nil {
			return nil, err
		}
		disks[d.Number] = w
		res.Disks = append(res.Disks, d.Number)
		res.Written += w.overlay.Used()
	}
	if len(disks) == 0 {
		return nil, errs.Text("find overlay", o.Overlay, errs.NotFound, "the folder holds no overlay of a disk of point "+string(o.Point.ID)).
			WithNext("Name the folder that `holdfast point serve --overlay` was given, and the point that it was given.")
	}
	abs, err := filepath.Abs(o.Overlay)
	if err != nil {
		return nil, err
	}
	k := keeping{parent: o.Point, disks: disks, config: o.Point.Config, now: o.Now,
		labels: map[string]string{appliance.LabelVM: res.VM, appliance.LabelSource: abs}}
	if o.Progress != nil {
		k.progress = func(done, total int64, _ chunkstore.Stats) { o.Progress(done, total) }
	}
	p, st, err := keepPoint(ctx, s, k)
	if err != nil {
		return nil, err
	}
	res.Point, res.New, res.Known, res.Stored = string(p.ID), st.NewBytes, st.KnownBytes, st.StoredBytes
	return res, nil
}

// overlayFormat finds out as what a disk was served, "" if there is no overlay of it.
func overlayFormat(dir string, number int, asked synthetic.Format) (found synthetic.Format, err error) {
	for _, f := range []synthetic.Format{synthetic.FormatQcow2, synthetic.FormatRaw} {
		if asked != "" && f != asked {
			continue
		}
		_, err := os.Stat(overlayFolder(dir, number, f))
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return "", err
		case found != "":
			return "", errs.Text("find overlay", dir, errs.Invalid, fmt.Sprintf("disk %d was written to as %s and as %s, which are two histories", number, found, f)).
				WithNext("Say which is meant with --format.")
		default:
			found = f
		}
	}
	return found, nil
}

// openWritten opens the overlay of a disk over the point.
func openWritten(ctx context.Context, r *chunkstore.Reader, o KeepOptions, d chunkstore.Disk, format synthetic.Format) (written, error) {
	img, err := r.Image(o.Point, d.Number)
	if err != nil {
		return written{}, err
	}
	if err := img.Lease(ctx); err != nil {
		return written{}, err
	}
	base, err := synthetic.New(img, format)
	if err != nil {
		return written{}, err
	}
	w, err := overlay.Open(ctx, disk.OS{}, overlayFolder(o.Overlay, d.Number, format), base, overlay.Options{Identity: overlayIdentity(o.Point, d, format)})
	return written{d, base, w}, err
}
