package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/fs/synthetic"
	"github.com/holdfast-backup/holdfast/fs/synthetic/qcow2"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// ExportOptions say what Export writes.
type ExportOptions struct {
	To       string
	Format   synthetic.Format
	Force    bool                   // replace an existing file
	Progress func(done, size int64) // bytes of data; may be nil
}

// Export writes a disk to a file, sparse. The file appears under its name when it is complete and durable.
func Export(ctx context.Context, img *chunkstore.Image, o ExportOptions) error {
	err := export(ctx, img, o)
	return errs.Wrap("export to", o.To, err)
}

func export(ctx context.Context, img *chunkstore.Image, o ExportOptions) error {
	if st, err := os.Lstat(o.To); err == nil {
		if !st.Mode().IsRegular() {
			return errs.Text("write", o.To, errs.Invalid, "it exists and is not a regular file")
		}
		if !o.Force {
			return errExists(o.To)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := beginFile(o.To)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // after the rename there is nothing left to remove
	defer f.Close()
	if o.Format == synthetic.FormatQcow2 {
		err = qcow2.Write(ctx, f, synthetic.NewSectors(counting{img, o.Progress}), qcow2.WriteOptions{})
	} else {
		err = writeRaw(ctx, f, img, o.Progress)
	}
	if err == nil {
		err = ctx.Err() // a reader that stops early because of it need not say so
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = moveTo(f.Name(), o.To, o.Force)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(o.To))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// beginFile makes the unfinished file of an export, and takes away what killed exports of the same name left. Such a
// file is locked for as long as its process lives.
func beginFile(to string) (*os.File, error) {
	dir, prefix := filepath.Dir(to), "."+filepath.Base(to)+".part-"
	names, _ := os.ReadDir(dir) // one may write to folders that one may not read
	for _, n := range names {
		if strings.HasPrefix(n.Name(), prefix) && n.Type().IsRegular() {
			left := filepath.Join(dir, n.Name())
			if lock, err := lockFile(left, false); err == nil {
				_ = os.Remove(left) // it only takes space
				_ = lock.Close()
			}
		}
	}
	for {
		f, err := os.CreateTemp(dir, prefix+"*")
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil && err != unix.EWOULDBLOCK {
			return f, nil // a file system without locks: nobody can take it for a leftover there either
		}
		mine, serr := f.Stat()
		if serr != nil {
			_ = f.Close()
			return nil, serr
		}
		if there, serr := os.Lstat(f.Name()); err == nil && serr == nil && os.SameFile(mine, there) {
			return f, nil
		}
		_ = f.Close() // another export took it for a leftover, before it was locked
	}
}

// moveTo gives the finished file its name. Without force a file that came into being meanwhile is not replaced.
func moveTo(from, to string, force bool) error {
	if force {
		return os.Rename(from, to)
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) { // a file system that cannot: the look before has to do
		err = os.Rename(from, to)
	}
	if errors.Is(err, os.ErrExist) {
		return errExists(to)
	}
	return err
}

func errExists(file string) error {
	return errs.Text("write", file, errs.Exists, "the file exists").WithNext("Choose another name, or replace it with --force.")
}

// counting reports how far the reads of an image have come.
type counting struct {
	*chunkstore.Image
	progress func(done, size int64)
}

func (c counting) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := c.Image.ReadAt(ctx, p, off)
	if c.progress != nil {
		c.progress(off+int64(n), c.Size())
	}
	return n, err
}

// piece is the unit of parallel reading, in bytes.
const piece = 4 << 20

// writeRaw writes the data of an image at its place and leaves the rest to be holes.
func writeRaw(ctx context.Context, f *os.File, img *chunkstore.Image, progress func(done, size int64)) error {
	if err := f.Truncate(img.Size()); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	bufs := make(chan []byte, max(2, runtime.GOMAXPROCS(0)))
	for range cap(bufs) {
		bufs <- make([]byte, piece)
	}
	err := img.Extents(ctx, 0, img.Size(), func(off, n int64, data bool) bool {
		for end := off + n; data && off < end && ctx.Err() == nil; off += piece {
			at, size := off, min(piece, end-off)
			g.Go(func() error {
				buf := <-bufs
				defer func() { bufs <- buf }()
				if n, err := img.ReadAt(ctx, buf[:size], at); int64(n) < size {
					return err
				}
				_, err := f.WriteAt(buf[:size], at)
				return err
			})
			if progress != nil {
				progress(at, img.Size())
			}
		}
		return ctx.Err() == nil
	})
	return errors.Join(g.Wait(), err)
}

// SHA256 returns the digest of a disk's exact bytes, hexadecimal.
func SHA256(ctx context.Context, img *chunkstore.Image, progress func(done, size int64)) (string, error) {
	h := sha256.New()
	type part struct {
		buf []byte
		n   int
	}
	free, full := make(chan []byte, 3), make(chan part, 3)
	for range cap(free) {
		free <- make([]byte, piece)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(full)
		for off := int64(0); off < img.Size(); off += piece {
			var buf []byte
			select {
			case buf = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			n, err := img.ReadAt(ctx, buf, off)
			if err != nil && err != io.EOF {
				return err
			}
			full <- part{buf, n}
		}
		return nil
	})
	var done int64
	for p := range full {
		h.Write(p.buf[:p.n])
		if done += int64(p.n); progress != nil {
			progress(done, img.Size())
		}
		free <- p.buf
	}
	if err := g.Wait(); err != nil {
		return "", errs.Wrap("hash disk", "", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
