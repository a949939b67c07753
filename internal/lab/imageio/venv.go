package imageio

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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

// requirement is what is installed: the newest release there is.
const requirement = "ovirt-imageio==2.5.1"

// python is Debian's own interpreter. Another one that comes first in PATH may lack the headers for the C part.
const python = "/usr/bin/python3"

// Build returns the Python interpreter of an environment that has ovirt-imageio, and makes it first if the cache has
// none: that needs the network, so a lab builds before it enters a network of its own. log is told what happens and
// may be nil.
func Build(ctx context.Context, cacheDir string, log io.Writer) (interpreter string, err error) {
	if log == nil {
		log = io.Discard
	}
	sum := sha256.Sum256([]byte(requirement + python))
	folder := filepath.Join(cacheDir, "imageio-"+hex.EncodeToString(sum[:6]))
	interpreter = filepath.Join(folder, "bin", "python3")
	if _, err := os.Stat(folder); err == nil {
		return interpreter, nil
	}
	if err := build(ctx, cacheDir, folder, log); err != nil {
		return "", errs.Wrap("install", requirement, err)
	}
	return interpreter, nil
}

func build(ctx context.Context, cacheDir, folder string, log io.Writer) error {
	if err := parts.Need(parts.Imageio); err != nil {
		return err
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return err
	}
	unlock, err := lock(ctx, filepath.Join(cacheDir, "imageio.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(folder); err == nil { // somebody else made it while we waited
		return nil
	}
	fmt.Fprintf(log, "%s is not in the cache: installing it takes half a minute, once ...\n", requirement)
	begun := time.Now()
	work := filepath.Join(cacheDir, "imageio-unfinished")
	if err := os.RemoveAll(work); err != nil { // left by a build that was killed; we hold the lock
		return err
	}
	defer os.RemoveAll(work)
	if _, err := proc.Run(ctx, python, "-m", "venv", work); err != nil {
		return err
	}
	// -I: without the settings of whoever's Python this is. The headers that a distribution leaves beside a package for
	// other packages to compile against are of no use here.
	temp := filepath.Join(work, "tmp") // a pip that is killed leaves files
	if err := os.Mkdir(temp, 0o700); err != nil {
		return err
	}
	out, err := proc.Output(ctx, proc.Spec{Env: []string{"TMPDIR=" + temp}, Args: []string{
		filepath.Join(work, "bin", "python3"), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
		"--no-input", "--no-deps", requirement,
	}})
	if err != nil {
		if said := strings.TrimSpace(string(out)); said != "" {
			err = fmt.Errorf("%w; it printed: %s", err, said)
		}
		return errs.New("run", "pip", errs.Transient, err).
			WithNext("Check that this machine reaches its Python package index, then run the same command again.")
	}
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	// An environment may be renamed as long as it is entered by its interpreter: only its scripts know where they lay.
	if err := os.Rename(work, folder); err != nil {
		return err
	}
	fmt.Fprintf(log, "install %s: %.1f s\n", requirement, time.Since(begun).Seconds())
	return nil
}

// lock waits for a lock that the kernel lets go of when its holder dies.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if err != syscall.EWOULDBLOCK && err != syscall.EINTR {
			_ = f.Close()
			return nil, err
		}
		// A blocking flock could not be given up, so we ask now and then.
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			_ = f.Close()
			return nil, errs.New("wait for", path, errs.Busy, ctx.Err())
		}
	}
}
