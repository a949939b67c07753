package appliance

import "encoding/json"

// PointConfig is what a restore point of a VM carries besides its disks: enough to make the VM again with the original
// gone. It is kept as JSON in the point's configuration; its fields are a stored format (docs/format/point.md).
type PointConfig struct {
	Version     int         `json:"version"` // 1
	VMID        string      `json:"vm_id"`
	VMName      string      `json:"vm_name"`
	MemoryMiB   int64       `json:"memory_mib"`
	Cluster     string      `json:"cluster"` // ID at the time
	OVF         string      `json:"ovf"`     // as the engine gave it, snapshots and disks in it
	Tags        []string    `json:"tags,omitempty"`
	Disks       []PointDisk `json:"disks"`
	Consistency string      `json:"consistency"`
	Warnings    []string    `json:"warnings,omitempty"` // what a restore cannot bring back
}

// PointDisk says which disk of the VM a disk of the point is.
type PointDisk struct {
	Number    int    `json:"disk"`
	ID        string `json:"id"`
	Alias     string `json:"alias"`
	Interface string `json:"interface"`
	Bootable  bool   `json:"bootable"`
	Format    string `json:"format"` // of the volume that was read: cow or raw
	Shareable bool   `json:"shareable,omitempty"`
	SizeBytes int64  `json:"size_bytes"`
	Mode      string `json:"mode"` // how it was read: full or incremental
}

// ParsePointConfig reads a point's configuration. A point made from an image file has none: nil.
func ParsePointConfig(b []byte) (*PointConfig, error) {
	if len(b) == 0 {
		return nil, nil
	}
	var c PointConfig
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	return &c, nil
}
