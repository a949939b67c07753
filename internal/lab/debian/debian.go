// Package debian makes the lab's disk: a real Debian 12 that boots on a PC from its first sector, with a root shell on
// the serial console.
//
// Layout of the disk: sector 0 is GRUB's boot.img with the partition table in it; GRUB's core image follows from
// sector 1; one partition with ext4 begins at 1 MiB and fills the rest. Kernel and initramfs lie in that file system
// and are loaded by GRUB, so that a boot exercises the whole disk. Nothing is mounted to make it, and no loop device
// is needed; only installing the packages takes root.
//
// Invariants:
//
//  1. A disk is finished when its folder in the cache has its final name; a build that was killed leaves only a folder
//     that the next build removes.
//  2. The folder's name holds a hash of the recipe and the size, so another recipe never meets an old disk.
//  3. One build at a time: a second caller waits for the first one's lock and takes its result.
//
// A finished disk is shared by all callers and never written to; whoever boots it makes a copy or an overlay.
// The test boots it, behind HOLDFAST_REAL_PARTS=1.
package debian

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// DefaultSizeMiB is the size of a disk when none is asked for.
const DefaultSizeMiB = 2048

// minSizeMiB holds the system with some room.
const minSizeMiB = 1024

// Options says what disk is wanted.
type Options struct {
	CacheDir string    // an existing folder, or one to be made
	SizeMiB  int       // 0: DefaultSizeMiB
	Server   *Server   // nil: the small system that the lab boots
	Log      io.Writer // is told what happens, one line at a time; may be nil
}

// Server is a system as somebody runs one: with its documentation and translations, and with packages of its own. Each
// name is an installation for itself, with a file system of its own, whatever packages it shares with others. It is
// there to be stored, and made as a raw disk only.
type Server struct {
	Name     string
	Packages []string
}

// Disk is a finished disk. Its files are read-only.
type Disk struct {
	Raw   string // sparse
	QCOW2 string // the same, as qcow2; a server's disk has none
}

// Build returns a finished disk and makes it first if the cache has none.
func Build(ctx context.Context, opts Options) (Disk, error) {
	if opts.SizeMiB == 0 {
		opts.SizeMiB = DefaultSizeMiB
	}
	if opts.SizeMiB < minSizeMiB {
		return Disk{}, errs.Text("make the disk", "", errs.Invalid, fmt.Sprintf("it needs at least %d MiB", minSizeMiB))
	}
	if opts.Log == nil {
		opts.Log = io.Discard
	}
	folder := filepath.Join(opts.CacheDir, fmt.Sprintf("debian12-%s-%dm", recipeHash(opts.Server), opts.SizeMiB))
	if disk, ok := finished(folder, opts.Server); ok {
		return disk, nil
	}
	disk, err := build(ctx, opts, folder)
	if err != nil {
		return Disk{}, errs.Wrap("make the disk", folder, err)
	}
	return disk, nil
}

func finished(folder string, server *Server) (Disk, bool) {
	_, err := os.Stat(folder)
	disk := Disk{Raw: filepath.Join(folder, "disk.raw")}
	if server == nil {
		disk.QCOW2 = filepath.Join(folder, "disk.qcow2")
	}
	return disk, err == nil
}

func build(ctx context.Context, opts Options, folder string) (Disk, error) {
	if err := parts.Need(parts.Build); err != nil {
		return Disk{}, err
	}
	if os.Geteuid() != 0 {
		return Disk{}, errs.Text("install Debian into a folder", "", errs.Denied, "only root may do that").
			WithNext("Run the same command as root, or with sudo.")
	}
	if err := os.MkdirAll(opts.CacheDir, 0o755); err != nil {
		return Disk{}, err
	}
	unlock, err := lock(ctx, opts)
	if err != nil {
		return Disk{}, err
	}
	defer unlock()
	if disk, ok := finished(folder, opts.Server); ok { // somebody else made it while we waited
		return disk, nil
	}
	work := filepath.Join(opts.CacheDir, "unfinished")
	if err := os.RemoveAll(work); err != nil { // left by a build that was killed; we hold the lock
		return Disk{}, err
	}
	defer os.RemoveAll(work)
	b := builder{work: work, out: filepath.Join(work, "disk"), sizeMiB: opts.SizeMiB, server: opts.Server, log: opts.Log}
	if err := b.run(ctx); err != nil {
		return Disk{}, err
	}
	if err := os.Rename(b.out, folder); err != nil {
		return Disk{}, err
	}
	disk, _ := finished(folder, opts.Server)
	return disk, syncFolder(opts.CacheDir)
}

// lock waits for the cache's lock. The kernel lets go of it when its holder dies.
func lock(ctx context.Context, opts Options) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(opts.CacheDir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	told := false
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if err != syscall.EWOULDBLOCK && err != syscall.EINTR {
			_ = f.Close()
			return nil, err
		}
		if !told {
			fmt.Fprintln(opts.Log, "Another process is making the disk: waiting for it.")
			told = true
		}
		// A blocking flock could not be given up, so we ask now and then.
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
			_ = f.Close()
			return nil, errs.New("wait for", f.Name(), errs.Busy, ctx.Err())
		}
	}
}

// syncFolder makes the names in a folder, and what the files hold, durable enough for a cache.
func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// debianSources returns the machine's own apt sources of Debian 12, as lines of a sources list.
func debianSources(ctx context.Context) ([]string, error) {
	query := []string{"apt-get", "indextargets", "--format",
		"$(ORIGIN)|$(IDENTIFIER)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"}
	for attempt := range 2 {
		out, err := proc.Run(ctx, query...)
		if err != nil {
			return nil, err
		}
		var lines []string
		for _, target := range strings.Split(strings.TrimSpace(string(out)), "\n") {
			if line, ok := aptLine(target); ok {
				lines = append(lines, line)
			}
		}
		if len(lines) > 0 {
			return lines, nil
		}
		// apt knows who a source is only once it has fetched its index; a new machine or container has not.
		if attempt == 0 {
			if _, err := proc.Run(ctx, "apt-get", "update"); err != nil {
				return nil, err
			}
		}
	}
	return nil, errs.Text("look for", "apt sources of Debian 12", errs.NotFound, "this machine has none").
		WithNext("The lab is made on Debian 12 (" + release + "): add its main repository to /etc/apt, or use such a machine.")
}

// proxyOptions hands the machine's own proxy settings of apt on to mmdebstrap, which reads none of apt's files.
func proxyOptions(ctx context.Context) ([]string, error) {
	out, err := proc.Run(ctx, "apt-config", "dump")
	if err != nil {
		return nil, err
	}
	var args []string
	for _, line := range strings.Split(string(out), "\n") {
		key, _, _ := strings.Cut(line, " ")
		if strings.HasPrefix(key, "Acquire::") && strings.Contains(strings.ToLower(key), "::proxy") && !strings.HasSuffix(line, `"";`) {
			args = append(args, "--aptopt="+line)
		}
	}
	return args, nil
}
