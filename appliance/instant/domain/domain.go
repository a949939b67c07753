// Package domain writes the bytes of an oVirt NFS data domain, version 5.
package domain

import (
	"path"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Spec is a whole domain.
type Spec struct {
	UUID        string
	Description string // the name that the engine proposes when it imports the domain
	RemotePath  string // address:/path as hosts mount it
	Volumes     []Volume
}

// Volume is one disk with its one volume. Its JSON is part of the session record, a stored format.
type Volume struct {
	Disk    string    // the engine's disk, vdsm's image: a UUID
	Image   string    // the engine's image, vdsm's volume: a UUID
	Size    int64     // virtual size in bytes, a multiple of 4096
	Format  string    // "cow" or "raw"
	Alias   string    // the disk's name on the engine
	Created time.Time // shown as the disk's creation time
}

// VolumePath returns where the volume's content belongs, relative to the export's root, with slashes.
func (s Spec) VolumePath(v Volume) string { return path.Join(s.UUID, "images", v.Disk, v.Image) }

// Write lays the domain out in the folder dir.
func Write(dir string, s Spec) error {
	return errs.Text("write storage domain", s.UUID, errs.Unsupported, "not in this build")
}
