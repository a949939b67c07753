package nfsdomain

import (
	"context"
	"encoding/binary"
	"encoding/json"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

const (
	qcow2Magic = 0x514649fb // "QFI" and 0xfb
	// infoTimes is how many requests' time qemu-img may take: it makes several.
	infoTimes = 6
)

// checkQcow2 holds a COW volume to its metadata: first by its header, then, where qemu's NFS driver can reach the export,
// by what qemu-img says, as vdsm does. That it opens the image at all shows that its first tables are in order.
func (d *domain) checkQcow2(ctx context.Context, file string, meta volumeMeta) error {
	header, err := d.nfs.read(ctx, d.path(file), 0, sectorSize)
	if err != nil {
		return err
	}
	if err := checkHeader(file, header, meta.Capacity); err != nil {
		return err
	}
	if !d.nfs.where.qemu() {
		return nil
	}
	return d.imageInfo(ctx, file, meta.Capacity)
}

// checkHeader reads a qcow2 header: big-endian, from qemu's docs/interop/qcow2.txt.
func checkHeader(file string, header []byte, capacity int64) error {
	bad := func(class, format string, args ...any) error {
		return refusal(errs.Corrupt, class, file, format, args...)
	}
	if len(header) < 104 || binary.BigEndian.Uint32(header) != qcow2Magic {
		return bad("InvalidFormat", "the metadata says COW, and there is no qcow2 header")
	}
	version, backing := binary.BigEndian.Uint32(header[4:]), binary.BigEndian.Uint64(header[8:])
	size := binary.BigEndian.Uint64(header[24:])
	switch {
	case version != 3:
		return bad("InvalidFormat", "the qcow2 version is %d; compat 1.1 is 3", version)
	case backing != 0:
		return bad("InvalidFormat", "it has a backing file, and its metadata no parent")
	case size != uint64(capacity):
		return bad("VolumeSizeError", "CAP=%d, and the guest would see %d bytes", capacity, size)
	}
	return nil
}

// imageInfo asks qemu-img.
func (d *domain) imageInfo(ctx context.Context, file string, capacity int64) error {
	below, err := qemu.NFSNode(d.nfs.where.fileURL(d.path(file)))
	if err != nil {
		return err
	}
	below["user"], below["group"] = asVDSM.uid, asVDSM.gid
	ctx, cancel := context.WithTimeout(ctx, infoTimes*d.nfs.timeout)
	defer cancel()
	out, err := proc.Run(ctx, "qemu-img", "info", "-U", "--output", "json", qemu.FormatNode("", "qcow2", below).Image())
	if err != nil {
		return refusal(errs.Corrupt, "QImgError", file, "qemu-img info: %v", err)
	}
	var info struct {
		Format   string
		Size     int64           `json:"virtual-size"`
		Backing  string          `json:"backing-filename"`
		Specific json.RawMessage `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return errs.New("read what qemu-img says of", file, errs.Bug, err)
	}
	var specific struct {
		Data struct {
			Compat  string
			Corrupt bool
		}
	}
	if err := json.Unmarshal(info.Specific, &specific); err != nil {
		return errs.New("read what qemu-img says of", file, errs.Bug, err)
	}
	if info.Format != "qcow2" || info.Size != capacity || info.Backing != "" || specific.Data.Compat != "1.1" ||
		specific.Data.Corrupt {
		return refusal(errs.Corrupt, "InvalidFormat", file, "qemu-img finds %s", out)
	}
	return nil
}
