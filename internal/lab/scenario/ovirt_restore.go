package scenario

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// copyName is the VM that is copied back.
const copyName = machineName + "-copy"

// copiedBack is what `restore list -o json` prints of one, as far as we look.
type copiedBack struct {
	ID    string `json:"id"`
	State string `json:"state"`
	VMID  string `json:"vm_id"`
	Disks []struct {
		ID        string `json:"id"`
		DataBytes int64  `json:"data_bytes"`
		Uploaded  bool   `json:"uploaded"`
	} `json:"disks"`
}

// copyBack restores the VM in full, beside all that is there.
func (p *ovirt) copyBack(ctx context.Context) (string, error) {
	args := []string{"restore", "vm", machineName + "@latest", "--name", copyName, "--storage-domain", "spare"}
	before := p.center.Engine.Snapshot()
	if err := p.holdfast(ctx, nil, append(args, "--dry-run")...); err != nil {
		return "", err
	}
	if made := p.center.Engine.Leftovers(before); len(made) > 0 {
		return "", wrong("the dry run", "it made %q", made)
	}
	begun := time.Now()
	if err := p.holdfast(ctx, nil, append(args, "--wait")...); err != nil {
		return "", err
	}
	took := time.Since(begun)
	var all []copiedBack
	if err := p.holdfast(ctx, &all, "restore", "list"); err != nil {
		return "", err
	}
	if len(all) != 1 || all[0].State != "done" || len(all[0].Disks) != 1 || !all[0].Disks[0].Uploaded {
		return "", wrong("the restore", "it shows %+v", all)
	}
	if made := p.center.Engine.Leftovers(before); len(made) != 3 {
		return "", wrong("the engine", "a VM with its disk was to be made, and these were: %q", made)
	}
	sum, err := p.diskSum(ctx, all[0].Disks[0].ID)
	if err != nil {
		return "", err
	}
	if sum != p.sums[1] {
		return "", wrong("the copied disk", "its SHA-256 is %s, and the point's %s", sum, p.sums[1])
	}
	data := all[0].Disks[0].DataBytes
	return fmt.Sprintf("%s of data in %.1f s; the new disk's SHA-256 is the point's", size(data), took.Seconds()), nil
}

// diskSum is the SHA-256 of a disk on the host, as qemu reads it.
func (p *ovirt) diskSum(ctx context.Context, disk string) (string, error) {
	files, err := filepath.Glob(filepath.Join(p.opts.WorkDir, "oVirt", "domains", "*", disk, "*"))
	if err != nil || len(files) != 1 {
		return "", wrong("the host's disks", "%q are files of disk %s", files, disk)
	}
	raw := filepath.Join(p.opts.WorkDir, "copied.raw")
	defer os.Remove(raw)
	if _, err := proc.Run(ctx, "qemu-img", "convert", "-U", "-O", "raw", files[0], raw); err != nil {
		return "", err
	}
	f, err := os.Open(raw)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
