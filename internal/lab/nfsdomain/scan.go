package nfsdomain

import (
	"context"
	"path"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// ScanDisks lists the images on a domain, and looks at each as closely as an attaching engine has its hosts do. One that
// is not in order is an error for all: so it is from engine 4.5.4 on. An image of several volumes is listed as such and
// not looked into, since no engine registers it.
func (h *Host) ScanDisks(ctx context.Context, id string) (found []engine.FoundDisk, err error) {
	err = h.with(ctx, "scan storage domain", id, func(d *domain) error {
		images, err := d.images(ctx)
		if err != nil {
			return err
		}
		for _, image := range images {
			disk, err := d.scan(ctx, image)
			if err != nil {
				return err
			}
			if disk != nil {
				found = append(found, *disk)
			}
		}
		return nil
	})
	return found, err
}

// VolumeURL prepares a volume for a VM and returns its address for qemu.
func (h *Host) VolumeURL(ctx context.Context, id, disk, image string) (address string, err error) {
	err = h.with(ctx, "prepare disk "+disk+" of storage domain", id, func(d *domain) error {
		if _, _, err := d.volume(ctx, disk, image); err != nil {
			return err
		}
		address = d.nfs.where.fileURL(d.path(path.Join("images", disk, image)))
		return nil
	})
	return address, err
}

// images lists the folders below images that may hold one.
func (d *domain) images(ctx context.Context) ([]string, error) {
	names, err := d.nfs.names(ctx, d.path("images"))
	if missing(err) {
		return nil, nil
	}
	slices.Sort(names)
	return slices.DeleteFunc(names, func(n string) bool {
		return strings.Count(n, "-") < 4 || strings.HasPrefix(n, removedPrefix)
	}), err
}

// scan looks at one image; nil is a folder without volumes.
func (d *domain) scan(ctx context.Context, disk string) (*engine.FoundDisk, error) {
	names, err := d.nfs.names(ctx, d.path(path.Join("images", disk)))
	if err != nil {
		return nil, err
	}
	var volumes []string
	for _, name := range names {
		if v, found := strings.CutSuffix(name, ".meta"); found {
			volumes = append(volumes, v)
		}
	}
	switch len(volumes) {
	case 0:
		return nil, nil
	case 1:
	default:
		return &engine.FoundDisk{Disk: disk, Volumes: len(volumes)}, nil
	}
	image := volumes[0]
	meta, s, err := d.volume(ctx, disk, image)
	if err != nil {
		return nil, err
	}
	if meta.DiskType == "OVFS" {
		return nil, nil
	}
	if err := d.checkVolumeLease(ctx, disk, image); err != nil {
		return nil, err
	}
	formats := map[string]string{"COW": "cow", "RAW": "raw"}
	return &engine.FoundDisk{Disk: disk, Image: image, Format: formats[meta.Format], Size: meta.Capacity, Used: s.Used,
		Alias: meta.alias(), Volumes: 1}, nil
}

// volume reads a volume's metadata and looks at its file.
func (d *domain) volume(ctx context.Context, disk, image string) (volumeMeta, stat, error) {
	none := stat{}
	file := path.Join("images", disk, image)
	ms, err := d.nfs.stat(ctx, d.path(file+".meta"))
	if err != nil {
		return volumeMeta{}, none, absent(err, "VolumeDoesNotExist", file+".meta")
	}
	if err := checkOwner(file+".meta", ms, 0o600); err != nil {
		return volumeMeta{}, none, err
	}
	content, err := d.nfs.read(ctx, d.path(file+".meta"), 0, directRead)
	if err != nil {
		return volumeMeta{}, none, err
	}
	meta, err := parseVolumeMeta(file+".meta", content)
	if err == nil {
		err = meta.check(file+".meta", d.id, disk)
	}
	if err == nil && (meta.Parent != noVolume || meta.VolType != "LEAF") {
		err = refusal(errs.Unsupported, "ImageIsNotLeaf", file+".meta", "its only volume is %s with the parent %s",
			meta.VolType, meta.Parent)
	}
	if err != nil {
		return volumeMeta{}, none, err
	}
	s, err := d.nfs.stat(ctx, d.path(file))
	if err != nil {
		return volumeMeta{}, none, absent(err, "VolumeDoesNotExist", file)
	}
	if err := checkOwner(file, s, 0o660); err != nil {
		return volumeMeta{}, none, err
	}
	return meta, s, d.checkFile(ctx, file, meta, s)
}

// checkFile holds a volume's file to its metadata.
func (d *domain) checkFile(ctx context.Context, file string, meta volumeMeta, s stat) error {
	// vdsm reads as many bytes as a file is said to have, and goes on asking when they do not come.
	const last = sectorSize
	if s.Size < last {
		return refusal(errs.Corrupt, "VolumeSizeError", file, "it has %d bytes", s.Size)
	}
	p, err := d.nfs.read(ctx, d.path(file), s.Size-last, last)
	if err != nil {
		return err
	}
	if len(p) != last {
		return refusal(errs.Corrupt, "VolumeSizeError", file, "a read of its last %d bytes gave %d", last, len(p))
	}
	if meta.Format == "COW" {
		return d.checkQcow2(ctx, file, meta)
	}
	if s.Size != meta.Capacity {
		return refusal(errs.Invalid, "VolumeSizeError", file, "a raw volume of CAP=%d has %d bytes", meta.Capacity,
			s.Size)
	}
	return nil
}

// checkVolumeLease reads the lease beside a volume: without a whole and free one, hosts cannot tell about the volume.
func (d *domain) checkVolumeLease(ctx context.Context, disk, image string) error {
	file := path.Join("images", disk, image+".lease")
	area, err := d.area(ctx, file, areaSize)
	if err != nil {
		return err
	}
	head, _, err := checkResource(file, d.id, image, area)
	if err == nil && head.Timestamp != 0 {
		err = refusal(errs.Busy, "TemporaryFailure", file, "it is owned by host id %d", head.Owner)
	}
	return err
}
