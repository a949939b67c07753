package scenario

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
)

// backedUp is the result of a backup's task.
type backedUp struct {
	Point       string `json:"point"`
	Incremental bool   `json:"incremental"`
	ReadBytes   int64  `json:"read_bytes"`
	DirtyBytes  int64  `json:"dirty_bytes"`
	NewBytes    int64  `json:"new_bytes"`
	StoredBytes int64  `json:"stored_bytes"`
	DataBytes   int64  `json:"data_bytes"`
}

func (p *ovirt) fullBackup(ctx context.Context) (string, error) {
	if err := p.backup(ctx, 0); err != nil {
		return "", err
	}
	if p.points[0].Incremental {
		return "", wrong("the first backup", "it calls itself incremental")
	}
	return p.backedUp(0), nil
}

// changedMiB is what the guest writes between the backups.
const changedMiB = 8

func (p *ovirt) incrementalBackup(ctx context.Context) (string, error) {
	before, err := p.written(ctx)
	if err != nil {
		return "", err
	}
	p.note = "written by the VM on its own disk " + rand.Text()
	if _, err := p.guest(ctx, machineName, "echo '"+p.note+"' >/srv/note"); err != nil {
		return "", err
	}
	p.blob, err = p.guest(ctx, machineName, fmt.Sprintf("head -c %dM /dev/urandom >/srv/blob; sync; sha256sum </srv/blob", changedMiB))
	if err != nil {
		return "", err
	}
	after, err := p.written(ctx)
	if err != nil {
		return "", err
	}
	if err := p.backup(ctx, 1); err != nil {
		return "", err
	}
	first, second := p.points[0], p.points[1]
	switch {
	case !second.Incremental:
		return "", wrong("the second backup", "it was not incremental")
	case p.sums[0] == p.sums[1]:
		return "", wrong("the second point", "it equals the first, though the guest has written")
	case second.ReadBytes < changedMiB<<20 || second.ReadBytes > first.ReadBytes/4:
		return "", wrong("the second backup", "it read %s; %d MiB had changed, and the first read %s", size(second.ReadBytes), changedMiB, size(first.ReadBytes))
	}
	return fmt.Sprintf("the guest wrote %s; %s", size(after-before), p.backedUp(1)), nil
}

// written is how many bytes the VM has written to its disk since it was started.
func (p *ovirt) written(ctx context.Context) (int64, error) {
	// Field 7 counts sectors of 512 bytes (Documentation/block/stat.rst of the kernel).
	out, err := p.center.Exec(ctx, machineName, "sync; awk '{print $7}' /sys/block/sda/stat")
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return 0, wrong("the guest's counters", "%q is no number", out)
	}
	return sectors * 512, nil
}

// backup makes the n-th point and has Holdfast read it whole.
func (p *ovirt) backup(ctx context.Context, n int) error {
	var t struct {
		Result backedUp `json:"result"`
	}
	if err := p.holdfast(ctx, &t, "backup", "run", machineName, "--wait"); err != nil {
		return err
	}
	p.points[n] = t.Result
	p.tell.say("Point %s.", t.Result.Point)
	sum, err := p.sum(ctx, n)
	p.sums[n] = sum
	if err != nil {
		return err
	}
	// One checkpoint stays, for the next backup; the one before it goes.
	if err := p.checkNothing("checkpoint"); err != nil {
		return err
	}
	if left := p.center.Engine.Leftovers(p.before); len(left) != 1 {
		return wrong("the engine's checkpoints", "there should be one: %s", strings.Join(left, "; "))
	}
	return nil
}

func (p *ovirt) sum(ctx context.Context, n int) (string, error) {
	var shown point
	if err := p.holdfast(ctx, &shown, "point", "show", p.points[n].Point, "--sha256"); err != nil {
		return "", err
	}
	if len(shown.Disks) != 1 || len(shown.Disks[0].SHA256) != 64 {
		return "", wrong("point "+p.points[n].Point, "its disks are %+v, want one with a sum", shown.Disks)
	}
	return shown.Disks[0].SHA256, nil
}

// backedUp is the outcome of a backup in one line. The ratio is of the data of all points, each a full disk, to all that
// is stored for them.
func (p *ovirt) backedUp(n int) string {
	b := p.points[n]
	var data, stored int64
	for _, x := range p.points[:n+1] {
		data, stored = data+x.DataBytes, stored+x.StoredBytes
	}
	return fmt.Sprintf("read %s of a disk with %s of data, new %s, stored %s; data to stored %.1f : 1 in all",
		size(b.ReadBytes), size(b.DataBytes), size(b.NewBytes), size(b.StoredBytes), float64(data)/float64(max(stored, 1)))
}
