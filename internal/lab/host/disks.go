package host

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

// Whom an NFS server sees when a VM reads its disk: on an oVirt host qemu is qemu:qemu and also of the group kvm, to which
// vdsm's files belong. qemu's NFS client sends one group only, so it is the one that counts.
const (
	qemuUser  = 107
	vdsmGroup = 36
)

// formatOf is qemu's name of a disk's format.
func formatOf(d engine.DiskPlace) string {
	if d.Format == "raw" {
		return "raw"
	}
	return "qcow2"
}

// path is where a disk of a local domain lies.
func (h *Host) path(d engine.DiskPlace) string {
	return filepath.Join(h.opts.Dir, strings.ToLower(d.Domain), d.Disk, d.Image)
}

// node returns a disk as qemu opens it.
func (h *Host) node(ctx context.Context, d engine.DiskPlace, name string) (qemu.Node, error) {
	if h.local(d.Domain) {
		return h.layered(ctx, d, name)
	}
	if h.opts.Exports == nil {
		return nil, noExports(d.Domain)
	}
	address, err := h.opts.Exports.VolumeURL(ctx, d.Domain, d.Disk, d.Image)
	if err != nil {
		return nil, err
	}
	file, err := qemu.NFSNode(address)
	if err != nil {
		return nil, err
	}
	file["user"], file["group"] = qemuUser, vdsmGroup
	return qemu.FormatNode(name, formatOf(d), file), nil
}

// alone returns a volume as a file name that qemu-img takes to look at it without what it lies on.
func alone(n qemu.Node) string {
	n = maps.Clone(n)
	delete(n, "backing")
	return n.Image()
}

// imageInfo is what qemu-img tells about an image.
type imageInfo struct {
	Size          int64  `json:"virtual-size"`
	Backing       string `json:"backing-filename"` // as the header has it
	BackingFormat string `json:"backing-filename-format"`
	Specific      struct {
		Data struct {
			Bitmaps []struct {
				Name  string   `json:"name"`
				Flags []string `json:"flags"`
			} `json:"bitmaps"`
		} `json:"data"`
	} `json:"format-specific"`
}

// info reads an image's header. -U: also while a machine has it open.
func info(ctx context.Context, image string) (imageInfo, error) {
	var i imageInfo
	out, err := proc.Run(ctx, "qemu-img", "info", "-U", "--output=json", image)
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal(out, &i); err != nil {
		return i, errs.New("read the information on", image, errs.Bug, err)
	}
	return i, nil
}

// CreateDisk implements engine.StorageHost.
func (h *Host) CreateDisk(ctx context.Context, d engine.DiskPlace) error {
	return h.makeDisk(d, func(path string) error {
		_, err := proc.Run(ctx, "qemu-img", "create", "-q", "-f", formatOf(d), path, strconv.FormatInt(d.Size, 10))
		return err
	})
}

// AddDisk makes a disk on a local domain out of an image file, qcow2 or raw, which is copied. A d.Size of 0 is the
// image's own; a larger one leaves room behind it. It returns the disk with its size.
func (h *Host) AddDisk(ctx context.Context, d engine.DiskPlace, source string) (engine.DiskPlace, error) {
	err := h.makeDisk(d, func(path string) error {
		if _, err := proc.Run(ctx, "qemu-img", "convert", "-O", formatOf(d), source, path); err != nil {
			return err
		}
		if d.Size == 0 {
			i, err := info(ctx, path)
			d.Size = i.Size
			return err
		}
		_, err := proc.Run(ctx, "qemu-img", "resize", "-q", "-f", formatOf(d), path, strconv.FormatInt(d.Size, 10))
		return err
	})
	if err == nil {
		h.remember(d)
	}
	return d, err
}

// makeDisk makes the folder of a disk and lets make fill it. On failure nothing is left.
func (h *Host) makeDisk(d engine.DiskPlace, fill func(path string) error) error {
	if !h.local(d.Domain) {
		return errs.Text("make the disk", d.Disk, errs.Unsupported, "this host makes disks on its local domains only")
	}
	path := h.path(d)
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		return errs.Wrap("make the disk", d.Disk, err)
	}
	if err := fill(path); err != nil {
		_ = os.RemoveAll(filepath.Dir(path)) // the first error matters
		return errs.Wrap("make the disk", d.Disk, err)
	}
	h.remember(d)
	return nil
}

// RemoveDisk implements engine.StorageHost. A disk that is not there is no error.
func (h *Host) RemoveDisk(ctx context.Context, d engine.DiskPlace) error {
	h.forget(d.Disk)
	return h.removeVolume(ctx, d)
}

func (h *Host) removeVolume(ctx context.Context, d engine.DiskPlace) error {
	if h.local(d.Domain) {
		return errs.Wrap("remove the disk", d.Disk, os.RemoveAll(filepath.Dir(h.path(d))))
	}
	return h.onExport(d.Domain, func(e Exports) error { return e.RemoveVolume(ctx, d.Domain, d.Disk) })
}

// Path returns the file of a disk on a local domain, for those who look at it from outside.
func (h *Host) Path(d engine.DiskPlace) string { return h.path(d) }

// DomainSpace implements engine.StorageHost. A local domain has the space of the file system it lies on.
func (h *Host) DomainSpace(ctx context.Context, domain string) (available, used int64, err error) {
	if h.local(domain) {
		var s syscall.Statfs_t
		if err := syscall.Statfs(h.opts.Dir, &s); err != nil {
			return 0, 0, errs.Wrap("measure", h.opts.Dir, err)
		}
		return int64(s.Bavail) * s.Bsize, int64(s.Blocks-s.Bfree) * s.Bsize, nil
	}
	err = h.onExport(domain, func(e Exports) (err error) {
		available, used, err = e.DomainSpace(ctx, domain)
		return err
	})
	return available, used, err
}
