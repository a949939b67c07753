package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

// watchFor is how long we look for reads that should not come.
const watchFor = 3 * time.Second

func (p *core) serve(ctx context.Context) (string, error) {
	server, line, err := p.holdfast.start(ctx, "point", "serve", machineName+"@latest", "--nfs", serveAt, "--portmap",
		"--writable", "--format", "qcow2", "-o", "json")
	if err != nil {
		return "", err
	}
	p.server = server
	var ready struct {
		URL  string   `json:"url"`
		URLs []string `json:"urls"`
	}
	if err := json.Unmarshal([]byte(line), &ready); err != nil || ready.URL == "" || len(ready.URLs) == 0 {
		return "", wrong("the server's first line", "%q is not the JSON that was promised", line)
	}
	p.url = ready.URL
	p.tell.say("Ready: %s", p.url)
	return "ready", nil
}

func (p *core) bootFromBackup(ctx context.Context) (string, error) {
	nfs, err := qemu.NFSNode(p.url)
	if err != nil {
		return "", err
	}
	took, err := p.boot(ctx, qemu.FormatNode("backup", "qcow2", nfs))
	if err != nil {
		return "", err
	}
	if err := p.guestStill(ctx); err != nil {
		return "", err
	}
	if _, err := p.guest(ctx, "echo 'written while running from the backup' >/srv/session; sync"); err != nil {
		return "", err
	}
	reads, bytesRead, err := p.server.stats(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("root prompt after %.1f s; %d reads, %s of the backup read", took.Seconds(), reads, size(bytesRead)), nil
}

// guestStill checks in the machine that the files of the second point are there, read anew from the disk.
func (p *core) guestStill(ctx context.Context) error {
	if _, err := p.guest(ctx, "sync; echo 3 >/proc/sys/vm/drop_caches"); err != nil {
		return err
	}
	got, err := p.guest(ctx, "cat /srv/note; sha256sum </srv/blob")
	if err != nil {
		return err
	}
	if want := p.note + "\n" + p.blob; got != want {
		return wrong("the machine's files", "it reads %q, want %q", got, want)
	}
	return nil
}

func (p *core) moveAway(ctx context.Context) (string, error) {
	p.tell.say("A counter runs in the machine and writes to the disk all the time.")
	if _, err := p.guest(ctx, "( (i=0; while :; do i=$((i+1)); echo $i >>/srv/counter; sync -d /srv/counter; sleep 0.02; done) &)"); err != nil {
		return "", err
	}
	dest := p.path("production")
	if err := os.Mkdir(dest, 0o755); err != nil {
		return "", err
	}
	var last qemu.MoveStep
	moved, err := qemu.MoveDisk(ctx, p.vm, qemu.MoveOptions{
		SnapshotPath: p.path("snapshot.qcow2"), DestDir: dest,
		Progress: func(s qemu.MoveStep, _ float64) {
			if s != last {
				last = s
				p.tell.say("  %s …", s)
			}
		},
	})
	if err != nil {
		return "", err
	}
	nodes, err := p.vm.BlockNodes(ctx)
	if err != nil {
		return "", err
	}
	for _, n := range nodes {
		if n.Driver == "nfs" || strings.Contains(n.File, "nfs") {
			return "", wrong("the move", "qemu still has %s open, by the driver %s", n.File, n.Driver)
		}
	}
	return fmt.Sprintf("base copied in %.1f s, top mirrored in %.1f s, pivot in %.0f ms; qemu has let go of the backup",
		moved.Took[qemu.MoveCopy].Seconds(), moved.Took[qemu.MoveMirror].Seconds(),
		float64(moved.Took[qemu.MovePivot].Microseconds())/1000), nil
}

func (p *core) stopServer(ctx context.Context) (string, error) {
	reads, _, err := p.server.stats(ctx)
	if err != nil {
		return "", err
	}
	// The machine reads everything anew meanwhile: from its new disk, or else we would see it here.
	begun := time.Now()
	if err := p.guestStill(ctx); err != nil {
		return "", err
	}
	if _, err := p.guest(ctx, "sleep "+strconv.Itoa(int(watchFor.Seconds()))); err != nil {
		return "", err
	}
	after, _, err := p.server.stats(ctx)
	if err != nil {
		return "", err
	}
	if after != reads {
		return "", wrong("the server's counters", "%d reads arrived after the move", after-reads)
	}
	p.tell.say("No read reached the server in %.1f s.", time.Since(begun).Seconds())
	p.tell.say("The server is told to stop (Ctrl-C).")
	if err := p.server.interrupt(); err != nil {
		return "", err
	}
	p.server = nil
	p.tell.say("It ended with exit code 0. The machine is still running.")
	if _, err := p.guest(ctx, "echo 'written after the server was gone' >/srv/after"); err != nil {
		return "", err
	}
	count, err := p.checkSession(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("no read after the move; %d lines of the counter, none missing", count), p.shutdown(ctx)
}

// checkSession checks in the machine what it wrote while its disk was on its way.
func (p *core) checkSession(ctx context.Context) (lines int, err error) {
	if err := p.guestStill(ctx); err != nil {
		return 0, err
	}
	got, err := p.guest(ctx, "cat /srv/session /srv/after")
	if err != nil {
		return 0, err
	}
	if want := "written while running from the backup\nwritten after the server was gone"; got != want {
		return 0, wrong("the machine's files", "it reads %q, want %q", got, want)
	}
	before, err := p.guest(ctx, "wc -l </srv/counter")
	if err != nil {
		return 0, err
	}
	last, err := p.guest(ctx, "sleep 1; wc -l </srv/counter")
	if err != nil {
		return 0, err
	}
	a, _ := strconv.Atoi(before)
	b, _ := strconv.Atoi(last)
	if a < 1 || b <= a {
		return 0, wrong("the machine's counter", "it stands still: %q, a second later %q", before, last)
	}
	if _, err := p.guest(ctx, fmt.Sprintf("seq 1 %d | cmp - <(head -n %d /srv/counter)", b, b)); err != nil {
		return 0, wrong("the machine's counter", "numbers are missing: %v", err)
	}
	return b, nil
}

func (p *core) pointsUnchanged(ctx context.Context) (string, error) {
	for n := range p.points {
		if err := p.checkPoint(ctx, n); err != nil {
			return "", err
		}
	}
	return "what the session wrote was dropped with it; both have the same SHA-256 as before", nil
}

func (p *core) mountPoints(ctx context.Context) (string, error) {
	const dir = "mnt"
	if err := os.Mkdir(p.path(dir), 0o755); err != nil {
		return "", err
	}
	mount, line, err := p.holdfast.start(ctx, "mount", dir)
	if err != nil {
		return "", err
	}
	defer mount.process.Kill()
	p.tell.say("%s", line)
	if err := p.checkMounted(ctx, dir); err != nil {
		return "", err
	}
	if err := mount.interrupt(); err != nil {
		return "", err
	}
	if left, err := os.ReadDir(p.path(dir)); err != nil || len(left) > 0 {
		return "", wrong("the folder after the unmount", "%d names, error %v", len(left), err)
	}
	return "both seen as raw and as qcow2; sums as before; unmounted by Ctrl-C", nil
}

// checkMounted reads both points through the mount, each as raw and as qcow2.
func (p *core) checkMounted(ctx context.Context, dir string) error {
	var listed []point
	if err := p.holdfast.run(ctx, &listed, "point", "list"); err != nil {
		return err
	}
	if len(listed) != len(p.points) {
		return wrong("the list of points", "it has %d, want %d", len(listed), len(p.points))
	}
	for n, want := range p.points {
		folder := ""
		for _, l := range listed {
			if l.Point == want.Point {
				folder = filepath.Join(dir, "points", l.VM, l.Time.UTC().Format("2006-01-02T15-04-05Z"))
			}
		}
		raw, qcow2 := filepath.Join(folder, "disk0.raw"), filepath.Join(folder, "disk0.qcow2")
		sum, err := p.sum(ctx, raw)
		if err != nil {
			return err
		}
		if sum != p.sums[n] {
			return wrong(raw, "its SHA-256 is %s, want %s", sum, p.sums[n])
		}
		out, err := p.tool(ctx, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, qcow2)
		if err != nil {
			return err
		}
		p.tell.say("%s", strings.TrimSpace(out))
	}
	return nil
}

func (p *core) storeStatus(ctx context.Context) (string, error) {
	if err := p.holdfast.run(ctx, nil, "store", "status"); err != nil {
		return "", err
	}
	return "all bytes verified", p.holdfast.run(ctx, nil, "store", "verify")
}
