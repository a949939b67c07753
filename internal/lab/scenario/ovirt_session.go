package scenario

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// sessionShown is what `session show -o json` prints, as far as we look.
type sessionShown struct {
	ID     string `json:"id"`
	State  string `json:"state"`
	Domain string `json:"domain"`
	Export string `json:"export"`
	Disks  []struct {
		Migrated  bool  `json:"migrated"`
		ReadBytes int64 `json:"read_bytes"`
	} `json:"disks"`
}

func (p *ovirt) restore(ctx context.Context) (string, error) {
	begun := time.Now()
	var started struct {
		Session string `json:"session"`
		Task    string `json:"task"`
	}
	err := p.holdfast(ctx, &started, "restore", "instant", machineName+"@latest", "--name", restoredName, "--power-on", "--wait")
	if err != nil {
		return "", err
	}
	p.session = started.Session
	running := time.Since(begun)
	qemu, err := p.center.Host.Started(restoredName)
	if err != nil {
		return "", err
	}
	if err := p.showSteps(ctx, started.Task); err != nil {
		return "", err
	}
	if vms := p.center.Host.RunningVMs(); len(vms) != 2 {
		return "", wrong("the host", "%d VMs run, want 2", len(vms))
	}
	boot, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	if _, err := p.center.Exec(boot, restoredName, "true"); err != nil {
		return "", err
	}
	prompt := time.Since(begun)
	if err := p.guestStill(ctx); err != nil {
		return "", err
	}
	if _, err := p.guest(ctx, restoredName, "echo 'written while running from the backup' >/srv/session; sync"); err != nil {
		return "", err
	}
	s, err := p.show(ctx)
	if err != nil {
		return "", err
	}
	if s.State != "running" || len(s.Disks) != 1 || s.Disks[0].ReadBytes == 0 {
		return "", wrong("the session", "it shows %+v", s)
	}
	return fmt.Sprintf("qemu ran %.1f s after the request, the engine said so after %.1f s, root prompt after %.1f s; %s of the backup were read",
		qemu.Sub(begun).Seconds(), running.Seconds(), prompt.Seconds(), size(s.Disks[0].ReadBytes)), nil
}

func (p *ovirt) show(ctx context.Context) (s sessionShown, err error) {
	return s, p.holdfast(ctx, &s, "session", "show", p.session)
}

// showSteps tells how long each step of a task took.
func (p *ovirt) showSteps(ctx context.Context, id string) error {
	var t struct {
		Steps []struct {
			Name    string    `json:"name"`
			Started time.Time `json:"started"`
			Ended   time.Time `json:"ended"`
		} `json:"steps"`
	}
	if err := p.holdfast(ctx, &t, "task", "show", id); err != nil {
		return err
	}
	var parts []string
	for _, s := range t.Steps {
		parts = append(parts, fmt.Sprintf("%s %.2f s", s.Name, s.Ended.Sub(s.Started).Seconds()))
	}
	p.tell.say("Steps: %s.", strings.Join(parts, ", "))
	return nil
}

// guestStill checks in the restored VM that the files of the second point are there, read anew from the disk.
func (p *ovirt) guestStill(ctx context.Context) error {
	if _, err := p.guest(ctx, restoredName, "sync; echo 3 >/proc/sys/vm/drop_caches"); err != nil {
		return err
	}
	got, err := p.guest(ctx, restoredName, "cat /srv/note; sha256sum </srv/blob")
	if err != nil {
		return err
	}
	if want := p.note + "\n" + p.blob; got != want {
		return wrong("the VM's files", "it reads %q, want %q", got, want)
	}
	return nil
}

func (p *ovirt) migrate(ctx context.Context) (string, error) {
	p.tell.say("A counter runs in the VM and writes to the disk all the time.")
	if _, err := p.guest(ctx, restoredName, "( (i=0; while :; do i=$((i+1)); echo $i >>/srv/counter; sync -d /srv/counter; sleep 0.02; done) &)"); err != nil {
		return "", err
	}
	var t struct {
		ID string `json:"id"`
	}
	begun := time.Now()
	if err := p.holdfast(ctx, &t, "session", "migrate", p.session, "--to", "local", "--wait"); err != nil {
		return "", err
	}
	took := time.Since(begun)
	if err := p.showSteps(ctx, t.ID); err != nil {
		return "", err
	}
	before, err := p.show(ctx)
	if err != nil {
		return "", err
	}
	if before.State != "migrated" || len(before.Disks) != 1 || !before.Disks[0].Migrated {
		return "", wrong("the session", "it shows %+v", before)
	}
	// The VM reads everything anew: from its new disk, or else the node would count it.
	if err := p.guestStill(ctx); err != nil {
		return "", err
	}
	after, err := p.show(ctx)
	if err != nil {
		return "", err
	}
	if read := after.Disks[0].ReadBytes - before.Disks[0].ReadBytes; read != 0 {
		return "", wrong("the session", "%s were read after the migration", size(read))
	}
	lines, err := p.checkCounter(ctx)
	return fmt.Sprintf("took %.1f s; %d lines of the counter, none missing; nothing reads from the node any more", took.Seconds(), lines), err
}

// checkCounter checks in the VM that the counter goes on and that none of its lines is missing.
func (p *ovirt) checkCounter(ctx context.Context) (int, error) {
	before, err := p.guest(ctx, restoredName, "wc -l </srv/counter")
	if err != nil {
		return 0, err
	}
	last, err := p.guest(ctx, restoredName, "sleep 1; wc -l </srv/counter")
	if err != nil {
		return 0, err
	}
	a, _ := strconv.Atoi(before)
	b, _ := strconv.Atoi(last)
	if a < 1 || b <= a {
		return 0, wrong("the VM's counter", "it stands still: %q, a second later %q", before, last)
	}
	if _, err := p.guest(ctx, restoredName, fmt.Sprintf("seq 1 %d | cmp - <(head -n %d /srv/counter)", b, b)); err != nil {
		return 0, wrong("the VM's counter", "numbers are missing: %v", err)
	}
	return b, nil
}

func (p *ovirt) release(ctx context.Context) (string, error) {
	if err := p.holdfast(ctx, nil, "session", "release", p.session, "--wait"); err != nil {
		return "", err
	}
	s, err := p.show(ctx)
	if err != nil {
		return "", err
	}
	if s.State != "released" {
		return "", wrong("the session", "it is %s, want released", s.State)
	}
	// The restored VM with its disk is what the administrator wanted; nothing else may be left.
	if err := p.checkNothing("checkpoint", "vm", "attachment", "disk"); err != nil {
		return "", err
	}
	if found, err := p.center.Probe(ctx, s.Export); err == nil {
		return "", wrong("the export", "a host still finds %+v at %s", found, s.Export)
	}
	if err := p.guestStill(ctx); err != nil {
		return "", err
	}
	got, err := p.guest(ctx, restoredName, "cat /srv/session; echo 'written after the release' >/srv/after; sync")
	if err != nil {
		return "", err
	}
	if got != "written while running from the backup" {
		return "", wrong("the VM's files", "it reads %q", got)
	}
	return "domain, connection and export are gone; the VM runs on", nil
}

func (p *ovirt) pointsUnchanged(ctx context.Context) (string, error) {
	for n := range p.points {
		sum, err := p.sum(ctx, n)
		if err != nil {
			return "", err
		}
		if sum != p.sums[n] {
			return "", wrong("point "+p.points[n].Point, "its SHA-256 is %s, want %s", sum, p.sums[n])
		}
	}
	if err := p.holdfast(ctx, nil, "store", "verify"); err != nil {
		return "", err
	}
	return "both have the same SHA-256 as before; all bytes of the store verified", p.node.Stop()
}
