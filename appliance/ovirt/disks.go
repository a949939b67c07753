package ovirt

import (
	"context"
	"encoding/xml"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

type xmlNewDisk struct {
	XMLName     xml.Name `xml:"disk"`
	ID          ID       `xml:"id,attr"`
	Alias       string   `xml:"alias"`
	Name        string   `xml:"name"`
	Description string   `xml:"description,omitempty"`
	Format      string   `xml:"format"`
	Sparse      bool     `xml:"sparse"`
	Shareable   bool     `xml:"shareable,omitempty"`
	Backup      string   `xml:"backup,omitempty"`
	Size        int64    `xml:"provisioned_size"`
	Initial     int64    `xml:"initial_size,omitempty"`
	Domains     []xmlRef `xml:"storage_domains>storage_domain"`
}

// CreateDisk has the engine make an empty disk under an ID of ours, and returns before it is there: its status is locked
// meanwhile, and if making it fails it is gone. A lost answer is looked into: a disk of that ID that exists then is ours,
// because the ID is. One that existed before is errs.Exists.
func (c *Client) CreateDisk(ctx context.Context, n NewDisk) error {
	const op = "create disk"
	if err := checkID(op, n.ID, n.Domain); err != nil {
		return err
	}
	x := xmlNewDisk{
		ID: n.ID, Alias: n.Alias, Name: n.Alias, Description: n.Description, Format: string(n.Format), Sparse: n.Sparse,
		Shareable: n.Shareable, Size: n.Size, Initial: n.Initial, Domains: []xmlRef{{n.Domain}},
	}
	if n.Incremental {
		x.Backup = "incremental"
	}
	_, err := c.do(ctx, post(op, n.Alias, "/disks", x))
	if errs.Is(err, errs.Transient) {
		if _, lookErr := c.Disk(ctx, n.ID); lookErr == nil {
			return nil
		}
	}
	return err
}
