package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/overlay"
	"github.com/holdfast-backup/holdfast/fs/synthetic"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// overlays are the writable layers of one served point.
//
// Dropped ones live in <store>/overlays/<random>, each such folder locked by its process. A server that was killed
// leaves its folder behind, without the lock: the next one takes it away. The folder's own lock file is held while a
// folder is made or taken away, so that a new one, not locked yet, is not mistaken for a leftover.
type overlays struct {
	dir    string
	keep   bool
	lock   *os.File // of a folder to be dropped
	opened []*overlay.Overlay
}

const overlaysName = "overlays"

func openOverlays(r *chunkstore.Reader, o *ServeOptions) (*overlays, error) {
	if o.Overlay != "" {
		if err := os.MkdirAll(o.Overlay, 0o700); err != nil {
			return nil, errs.Wrap("make overlay", o.Overlay, err)
		}
		return &overlays{dir: o.Overlay, keep: true}, nil
	}
	v, err := dropped(filepath.Join(r.Dir(), overlaysName), o)
	if err != nil {
		return nil, errs.New("make overlay", r.Dir(), errs.KindOf(err), err).
			WithNext("Writes need a folder to lie in: name one with --overlay DIR, or serve without --writable.")
	}
	return v, nil
}

// dropped makes a folder for overlays that end with their server.
func dropped(parent string, o *ServeOptions) (*overlays, error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, err
	}
	guard, err := lockFile(filepath.Join(parent, "lock"), true)
	if err != nil {
		return nil, err
	}
	defer guard.Close()
	clearLeftovers(parent, o)
	v := &overlays{dir: filepath.Join(parent, rand.Text())}
	if err := os.Mkdir(v.dir, 0o700); err != nil {
		return nil, err
	}
	v.lock, err = lockFile(v.dir, false)
	return v, err
}

// lockFile opens a file or folder and takes its lock, waiting for it if asked to.
func lockFile(name string, wait bool) (*os.File, error) {
	flags, how := os.O_RDONLY, unix.LOCK_EX|unix.LOCK_NB
	if wait {
		flags, how = os.O_RDWR|os.O_CREATE, unix.LOCK_EX
	}
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		_ = f.Close()
		return nil, errs.New("lock", name, errs.Busy, err)
	}
	return f, nil
}

func clearLeftovers(parent string, o *ServeOptions) {
	names, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, n := range names {
		if !n.IsDir() {
			continue
		}
		dir := filepath.Join(parent, n.Name())
		f, err := lockFile(dir, false)
		if err != nil {
			continue // its server lives
		}
		if err := removeOverlays(dir); err != nil {
			o.Logger.Warn("the overlay of a killed server cannot be removed", "dir", dir, "err", err)
		} else {
			note(o.Note, "Removed what a killed server had left in "+dir+".")
		}
		_ = f.Close()
	}
}

// removeOverlays deletes a folder of overlays.
func removeOverlays(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := overlay.Remove(disk.OS{}, filepath.Join(dir, n.Name())); err != nil {
			return err
		}
	}
	return os.Remove(dir)
}

// fate says what becomes of the writes.
func (v *overlays) fate() string {
	if v.keep {
		return "kept"
	}
	return "dropped"
}

// overlayFolder is where the overlay of a disk lies.
func overlayFolder(dir string, number int, format synthetic.Format) string {
	return filepath.Join(dir, fmt.Sprintf("disk%d.%s", number, format))
}

// overlayIdentity names what an overlay lies over: it fits nothing else.
func overlayIdentity(p *chunkstore.Point, d chunkstore.Disk, format synthetic.Format) string {
	return fmt.Sprintf("point %s disk %d root %s as %s", p.ID, d.Number, d.Root.Digest, format)
}

// open opens the overlay of a disk, or makes it.
func (v *overlays) open(ctx context.Context, o *ServeOptions, number int, base fs.Stream) (*overlay.Overlay, error) {
	d, err := o.Point.Disk(number)
	if err != nil {
		return nil, err
	}
	dir := overlayFolder(v.dir, number, o.Format)
	oo := overlay.Options{Identity: overlayIdentity(o.Point, d, o.Format), MaxBytes: o.MaxBytes}
	w, err := overlay.Open(ctx, disk.OS{}, dir, base, oo)
	if errs.Is(err, errs.NotFound) { // none yet, or one whose making was cut short
		w, err = overlay.Create(ctx, disk.OS{}, dir, base, oo)
	}
	if err != nil {
		return nil, err
	}
	v.opened = append(v.opened, w)
	return w, nil
}

// close closes the overlays and drops those that are not kept.
func (v *overlays) close() error {
	var all []error
	for _, w := range v.opened {
		if err := w.Close(); err != nil && v.keep {
			all = append(all, err)
		}
	}
	v.opened = nil
	if !v.keep {
		all = append(all, removeOverlays(v.dir))
		if v.lock != nil {
			_ = v.lock.Close()
		}
	}
	return errs.Wrap("close overlay", v.dir, errors.Join(all...))
}
