package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const listenOp = "listen on socket"

// socketMode lets the owner and the group connect.
const socketMode = 0o660

// maxSocketPath is what the kernel's address of a unix socket holds, less the closing zero.
const maxSocketPath = 107

// socket opens the unix socket.
func (d *doors) socket(ctx context.Context, path string, h http.Handler) error {
	if len(path) > maxSocketPath {
		long := fmt.Sprintf("the path has %d bytes, and no socket's may have more than %d", len(path), maxSocketPath)
		return errs.Text(listenOp, path, errs.Invalid, long).WithNext("Choose a shorter path for api.socket.")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return errs.Wrap(listenOp, path, err)
	}
	if err := clearStale(ctx, path); err != nil {
		return err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return errs.Wrap(listenOp, path, err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		_ = ln.Close()
		return errs.Wrap(listenOp, path, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil { // its group is ours, or the folder's if that hands its group down
		_ = ln.Close()
		return errs.Wrap(listenOp, path, err)
	}
	d.all = append(d.all, door{ln, onlyPeers(uint32(os.Geteuid()), st.Gid, h)})
	return nil
}

// clearStale removes a socket on which nobody answers. Two servers that start at the same moment are kept apart by the
// lock of their store, not here.
func clearStale(ctx context.Context, path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errs.Wrap(listenOp, path, err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return errs.Text(listenOp, path, errs.Exists, "there is something at this path that is no socket").
			WithNext("Move it away, or choose another path for api.socket.")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if errors.Is(err, unix.ECONNREFUSED) {
		return errs.Wrap(listenOp, path, os.Remove(path))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		_ = c.Close()
	}
	return errs.Text(listenOp, path, errs.Busy, "another holdfastd answers on it").
		WithNext("End that one first (systemctl stop holdfastd), or choose another path for api.socket.")
}
