package scenario

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// Transfer plays backups through snapshots of a running VM: a full one whose snapshot is kept, one that reads only what the
// guest has written since, and one that keeps nothing. The last point, which has in it what the two before it brought, is
// compared with the disk as the VM has it. It returns the first thing that is not as it should be, and must run inside
// netns.Enter.
func Transfer(ctx context.Context, o OVirtOptions) error {
	if err := parts.Need(parts.Machine, parts.Imageio); err != nil {
		return err
	}
	p, err := newOVirt(o)
	if err != nil {
		return err
	}
	return p.play(ctx, []step{
		{"The lab: an oVirt of one host with a real VM, and a Holdfast node", p.startLab},
		{"The node gets to know the engine", p.addManager},
		{"A full backup through a snapshot, which stays", p.transferFull},
		{"The guest changes files; the next backup reads only the layer", p.transferLayer},
		{"A last backup leaves nothing behind", p.transferLast},
	})
}

// transferred runs a backup while the guest's file systems stand still, and compares the point with the disk if that is
// wanted: sums of whole disks take their time.
func (p *ovirt) transferred(ctx context.Context, compare bool, more ...string) (backedUp, error) {
	var t struct {
		Result backedUp `json:"result"`
	}
	// Nothing is written meanwhile, so that the disk can be compared afterwards. The mount stays frozen for some seconds.
	if _, err := p.guest(ctx, machineName, "sync; fsfreeze -f /"); err != nil {
		return t.Result, err
	}
	var before string
	var err error
	if compare {
		before, err = p.layersSum(ctx)
	}
	if err == nil {
		err = p.holdfast(ctx, &t, append([]string{"backup", "run", machineName, "--strategy", "transfer", "--wait"}, more...)...)
	}
	if _, thawErr := p.guest(ctx, machineName, "fsfreeze -u /"); err == nil {
		err = thawErr
	}
	if err != nil {
		return t.Result, err
	}
	p.points[0] = t.Result
	if !compare {
		return t.Result, nil
	}
	sum, err := p.sum(ctx, 0)
	if err == nil && sum != before {
		err = wrong("point "+t.Result.Point, "its disk has the SHA-256 %s, and the VM's %s", sum, before)
	}
	p.tell.say("Point %s: SHA-256 %s… as the VM's disk.", t.Result.Point, before[:16])
	return t.Result, err
}

// layersSum is the SHA-256 of the VM's disk with all its layers, as qemu-img reads it.
func (p *ovirt) layersSum(ctx context.Context) (string, error) {
	vm := p.center.VMs[0]
	place, err := p.center.Host.Where(vm.Disk.Disk)
	if err != nil {
		return "", err
	}
	flat := filepath.Join(p.opts.WorkDir, "flat.raw")
	defer os.Remove(flat)
	// -U: the machine has it open too.
	if _, err := proc.Run(ctx, "qemu-img", "convert", "-U", "-O", "raw", p.center.Host.Path(place), flat); err != nil {
		return "", err
	}
	out, err := proc.Run(ctx, "sha256sum", flat)
	sum, _, _ := strings.Cut(string(out), " ")
	return sum, err
}

// snapshots lists what is on the engine that was not there before, all of which have to be snapshots.
func (p *ovirt) snapshots() ([]string, error) {
	left := p.center.Engine.Leftovers(p.before)
	if i := slices.IndexFunc(left, func(l string) bool { return !strings.HasPrefix(l, "snapshot ") }); i >= 0 {
		return nil, wrong("the engine", "there is left: %s", left[i])
	}
	return left, nil
}

func (p *ovirt) transferFull(ctx context.Context) (string, error) {
	got, err := p.transferred(ctx, false, "--keep-snapshot")
	if err != nil {
		return "", err
	}
	left, err := p.snapshots()
	if err == nil && (len(left) != 1 || got.Incremental) {
		err = wrong("the first backup", "it calls itself %+v, and on the engine is: %s", got, strings.Join(left, "; "))
	}
	return fmt.Sprintf("read %s; one snapshot stays", size(got.ReadBytes)), err
}

func (p *ovirt) transferLayer(ctx context.Context) (string, error) {
	full := p.points[0]
	before, err := p.snapshots()
	if err != nil {
		return "", err
	}
	written, err := p.written(ctx)
	if err != nil {
		return "", err
	}
	if _, err := p.guest(ctx, machineName, fmt.Sprintf("head -c %dM /dev/urandom >/srv/blob; sync", changedMiB)); err != nil {
		return "", err
	}
	got, err := p.transferred(ctx, false, "--keep-snapshot")
	if err != nil {
		return "", err
	}
	after, err := p.snapshots()
	if err != nil {
		return "", err
	}
	now, err := p.written(ctx)
	switch {
	case err != nil:
		return "", err
	case !got.Incremental:
		return "", wrong("the second backup", "it was not incremental")
	case got.ReadBytes < changedMiB<<20 || got.ReadBytes > full.ReadBytes/4:
		return "", wrong("the second backup", "it read %s; %d MiB had changed, and the first read %s", size(got.ReadBytes), changedMiB, size(full.ReadBytes))
	case len(after) != 1 || after[0] == before[0]:
		return "", wrong("the engine's snapshots", "there should be one other than %s: %s", before[0], strings.Join(after, "; "))
	}
	return fmt.Sprintf("the guest wrote %s; read %s, as against %s", size(now-written), size(got.ReadBytes), size(full.ReadBytes)), nil
}

func (p *ovirt) transferLast(ctx context.Context) (string, error) {
	if _, err := p.guest(ctx, machineName, "rm /srv/blob; echo last >/srv/note; sync"); err != nil {
		return "", err
	}
	got, err := p.transferred(ctx, true)
	if err != nil {
		return "", err
	}
	if !got.Incremental {
		return "", wrong("the last backup", "it was not incremental")
	}
	if err := p.checkNothing(); err != nil {
		return "", err
	}
	if _, err := p.center.Exec(ctx, machineName, "grep -q last /srv/note"); err != nil {
		return "", errs.Wrap("look at", "the VM after its layers were merged", err)
	}
	return fmt.Sprintf("read %s; the VM runs on, its disk is one image again", size(got.ReadBytes)), nil
}
