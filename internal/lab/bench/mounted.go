package bench

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// file is the peer of the FUSE rows: the exported file, read without anything between.
const plainFile = "exported file"

// fuse measures reading the mounted points, and the exported file beside them.
func (b *bed) fuse(ctx context.Context) error {
	patterns := []pattern{
		{"read 1 MiB in order", 1, b.sequential()},
		{"read 4 KiB at random", 1, scattered(b.data, grain, b.effort.few, 3)},
	}
	for round := range b.effort.rounds {
		for _, p := range patterns {
			for _, direct := range []bool{true, false} {
				for _, i := range turns(2, round) {
					run := b.mountOnce
					if i == 1 {
						run = b.plainOnce
					}
					if err := run(ctx, p, direct); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// mountOnce mounts the points and reads one pattern twice: cold and warm.
func (b *bed) mountOnce(ctx context.Context, p pattern, direct bool) (err error) {
	dir := b.path("mnt")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	b.dropCaches()
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }() // a mount is there only if the program was killed
	mount, _, err := b.foreground(ctx, "mount", dir, "--cache", cacheMiB)
	if err != nil {
		return err
	}
	defer func() {
		if serr := mount.Stop(syscall.SIGINT, readyWithin); err == nil {
			err = serr
		}
	}()
	// Points lie in folders named by their time: the oldest one of the raw disk is the one that was exported.
	found, err := filepath.Glob(filepath.Join(dir, "points", "disk.raw", "*", "disk0.raw"))
	if err != nil || len(found) == 0 {
		return errs.Text("find", "the point below the mount", errs.NotFound, "there is none")
	}
	return b.readFile(ctx, fileRead{path: found[0], program: ours, peer: plainFile, pid: mount.PID()}, p, direct)
}

func (b *bed) plainOnce(ctx context.Context, p pattern, direct bool) error {
	b.dropCaches()
	return b.readFile(ctx, fileRead{path: b.file, program: plainFile}, p, direct)
}

// fileRead is a file that is read.
type fileRead struct {
	path, program, peer string
	pid                 int // of the program behind the file; 0: there is none
}

func (b *bed) readFile(ctx context.Context, from fileRead, p pattern, direct bool) error {
	flags, how := os.O_RDONLY, "buffered"
	if direct {
		flags, how = flags|unix.O_DIRECT, "O_DIRECT"
	}
	f, err := os.OpenFile(from.path, flags, 0)
	if err != nil {
		return errs.Wrap("open", from.path, err)
	}
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, window, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(buf) }()
	read := func() (reading, error) { return readPieces(ctx, f, p.work, buf) }
	for _, state := range []string{"cold", "warm"} {
		var s sample
		if from.pid != 0 {
			s, err = b.watch(from.pid, p.work, read)
		} else {
			var r reading
			r, err = read()
			if err == nil {
				s, err = r.sample(), r.verify(p.work, b.file)
			}
		}
		if err != nil {
			return errs.Wrap("read", strings.TrimPrefix(from.path, b.opts.WorkDir), err)
		}
		b.add(key{"fuse", p.name + ", " + how + ", " + state, from.program, from.peer}, s)
	}
	return nil
}

func readPieces(ctx context.Context, f io.ReaderAt, work []byteRange, buf []byte) (reading, error) {
	out, began := newReading(len(work)), time.Now()
	for i, w := range work {
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		sent := time.Now()
		if _, err := f.ReadAt(buf[:w.n], w.off); err != nil {
			return out, err
		}
		out.note(i, sent, buf[:w.n])
	}
	out.took = time.Since(began)
	return out, nil
}
