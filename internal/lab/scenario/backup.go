package scenario

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

func (p *core) initStore(ctx context.Context) (string, error) {
	p.tell.command([]string{"cd", p.opts.WorkDir}, "")
	p.tell.command(append([]string{"export"}, environment...), "")
	return "ready", p.holdfast.run(ctx, nil, "init", storeName, "--kit", storeName+".kit")
}

func (p *core) firstImport(ctx context.Context) (string, error) {
	p.tell.say("%s is the disk of a real Debian 12 machine.", image)
	if _, err := p.tool(ctx, "qemu-img", "convert", "-O", "qcow2", p.opts.Disk, image); err != nil {
		return "", err
	}
	if err := p.importDisk(ctx, 0); err != nil {
		return "", err
	}
	p.tell.say("From now on qemu notes in the image which ranges are written, as oVirt has it do for incremental backup.")
	_, err := p.tool(ctx, "qemu-img", "bitmap", "--add", image, "holdfast-"+p.points[0].Point)
	return p.imported(0), err
}

func (p *core) secondImport(ctx context.Context) (string, error) {
	if err := p.importDisk(ctx, 1); err != nil {
		return "", err
	}
	first, second := p.points[0], p.points[1]
	if first.Point == second.Point || p.sums[0] == p.sums[1] {
		return "", wrong("the second point", "it equals the first, though the machine has changed")
	}
	if second.ReadBytes*2 > first.ReadBytes || second.StoredBytes*2 > first.StoredBytes {
		return "", wrong("the second import", "it read %s and stored %s; the first read %s and stored %s",
			size(second.ReadBytes), size(second.StoredBytes), size(first.ReadBytes), size(first.StoredBytes))
	}
	return p.imported(1), nil
}

// importDisk imports the image, and holds the point's sum against qemu-img's view of the disk.
func (p *core) importDisk(ctx context.Context, n int) error {
	if err := p.holdfast.run(ctx, &p.points[n], "disk", "import", image, "--vm", machineName, "--disk", "0",
		"--format", "qcow2"); err != nil {
		return err
	}
	p.tell.say("Point %s.", p.points[n].Point)
	const raw = "reference.raw"
	if _, err := p.tool(ctx, "qemu-img", "convert", "-O", "raw", image, raw); err != nil {
		return err
	}
	sum, err := p.sum(ctx, raw)
	if err != nil {
		return err
	}
	if err := os.Remove(p.path(raw)); err != nil {
		return err
	}
	p.sums[n] = sum
	return p.checkPoint(ctx, n)
}

// imported is the outcome of an import in one line. The ratio is of the data of all points, each a full disk, to all
// that is stored for them.
func (p *core) imported(n int) string {
	i := p.points[n]
	stored := i.StoredBytes
	if n > 0 {
		stored += p.points[0].StoredBytes
	}
	ratio := "-"
	if info, err := os.Stat(p.opts.Disk); err == nil && stored > 0 {
		ratio = fmt.Sprintf("%.1f", float64(n+1)*float64(info.Size())/float64(stored))
	}
	return fmt.Sprintf("read %s, new %s, stored %s; data to stored %s : 1 in all", size(i.ReadBytes), size(i.NewBytes),
		size(i.StoredBytes), ratio)
}

// checkPoint has Holdfast read a point and compares.
func (p *core) checkPoint(ctx context.Context, n int) error {
	var shown point
	if err := p.holdfast.run(ctx, &shown, "point", "show", p.points[n].Point, "--sha256"); err != nil {
		return err
	}
	if len(shown.Disks) != 1 || shown.Disks[0].SHA256 != p.sums[n] {
		return wrong("point "+p.points[n].Point, "its disks are %+v, want one with the SHA-256 %s", shown.Disks, p.sums[n])
	}
	p.tell.say("SHA-256 %s… of the disk, by qemu-img and by Holdfast.", p.sums[n][:16])
	return nil
}

func (p *core) sum(ctx context.Context, file string) (string, error) {
	out, err := p.tool(ctx, "sha256sum", file)
	if err != nil {
		return "", err
	}
	sum, _, _ := strings.Cut(out, " ")
	return sum, nil
}

func (p *core) changeMachine(ctx context.Context) (string, error) {
	took, err := p.boot(ctx, qemu.FormatNode("disk", "qcow2", qemu.FileNode(p.path(image))))
	if err != nil {
		return "", err
	}
	p.note = "written by the machine on its own disk " + rand.Text()
	if _, err := p.guest(ctx, "echo '"+p.note+"' >/srv/note"); err != nil {
		return "", err
	}
	if p.blob, err = p.guest(ctx, "head -c 8M /dev/urandom >/srv/blob; sync; sha256sum </srv/blob"); err != nil {
		return "", err
	}
	p.tell.say("The machine shuts down.")
	return fmt.Sprintf("root prompt after %.1f s; one line and 8 MiB written", took.Seconds()), p.shutdown(ctx)
}

// boot starts the machine from a disk, perhaps with further ones, and logs in.
func (p *core) boot(ctx context.Context, disk qemu.Node, more ...qemu.Node) (time.Duration, error) {
	login, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	begun := time.Now()
	var err error
	drives := []qemu.Drive{{Top: disk}}
	for _, m := range more {
		drives = append(drives, qemu.Drive{Top: m})
	}
	if p.vm, err = qemu.Start(ctx, qemu.Config{Name: machineName, Drives: drives, Stderr: p.tell.quoted()}); err != nil {
		return 0, err
	}
	if err := p.vm.Console().Login(login, debian.Prompt); err != nil {
		return 0, err
	}
	took := time.Since(begun)
	p.tell.say("The machine shows its root prompt after %.1f s.", took.Seconds())
	return took, nil
}

// guest runs a command in the machine and shows both the command and what it printed.
func (p *core) guest(ctx context.Context, command string) (string, error) {
	p.tell.printf("   %s%s\n", debian.Prompt, command)
	out, err := p.vm.Console().Run(ctx, command)
	out = strings.TrimSpace(out)
	if out != "" {
		p.tell.say("%s", strings.ReplaceAll(out, "\n", "\n   "))
	}
	return out, err
}

func (p *core) shutdown(ctx context.Context) error {
	err := p.vm.Shutdown(ctx)
	if err == nil {
		p.vm = nil
	}
	return err
}
