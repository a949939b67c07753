package host

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// assertNothingLeft: of ended backups only the checkpoints' bitmaps are left in the machine, and no file.
func assertNothingLeft(l *lab, checkpoints ...string) {
	l.Helper()
	slices.Sort(checkpoints)
	m := l.host.machine(vmID)
	top, err := m.nodeOf(dataDisk.Disk)
	l.must(err)
	nodes, err := m.vm.BlockNodes(l.ctx)
	l.must(err)
	for _, n := range nodes {
		if strings.Contains(n.Name, "scratch") || strings.Contains(n.File, l.host.run) {
			l.Errorf("the machine still has %s, %s", n.Name, n.File)
		}
		if n.Name != top {
			continue
		}
		var got []string
		for _, b := range n.Bitmaps {
			got = append(got, b.Name)
		}
		slices.Sort(got)
		if !slices.Equal(got, checkpoints) {
			l.Errorf("the data disk's bitmaps: %v, want %v", got, checkpoints)
		}
	}
	left, err := os.ReadDir(l.host.run)
	if err != nil || len(left) > 0 {
		l.Errorf("left: %v, %v", left, err)
	}
}

func assertLost(l *lab, from string, d engine.DiskPlace) {
	l.Helper()
	if _, err := l.begin(from, d); err == nil || !strings.Contains(err.Error(), "Bitmap does not exist") || !errs.Is(err, errs.NotFound) {
		l.Errorf("from a checkpoint that was lost: %v", err)
	}
}

// countTo5 waits until the counter has counted on.
const countTo5 = `while [ ! -e /run/count ] || [ $(cat /run/count) -lt 5 ]; do sleep 0.1; done`

// moveWhileWriting moves the data disk while a counter goes on, each number in a sector of its own.
func moveWhileWriting(l *lab, checkpoint string) (moved engine.DiskPlace) {
	before := l.guest("dd if=/dev/sda bs=1M count=32 iflag=direct status=none | sha256sum")
	l.guest(`( (i=0; while [ ! -e /run/stop ]; do i=$((i+1)); printf '%07d\n' $i | ` +
		`dd of=/dev/sda bs=512 seek=$((98304+i)) conv=sync,notrunc oflag=direct status=none; echo $i >/run/count; done; touch /run/stopped) & )`)
	l.guest(countTo5)
	var seen []int64
	moved, err := l.host.MoveDisk(l.ctx, vmID, dataDisk, domainB, func(done, total int64) {
		seen = append(seen, done)
		if total != dataDisk.Size || done > total {
			l.Errorf("%d of %d bytes", done, total)
		}
	})
	l.must(err)
	if want := dataDisk; moved.Domain != domainB || moved.Disk != want.Disk || moved.Image != want.Image || moved.Format != "cow" {
		l.Errorf("the disk lies at %+v", moved)
	}
	if len(seen) < 2 || !slices.IsSorted(seen) || seen[len(seen)-1] != dataDisk.Size {
		l.Errorf("progress: %v", seen)
	}
	l.guest(`rm /run/count; ` + countTo5 + `; touch /run/stop; while [ ! -e /run/stopped ]; do sleep 0.1; done`)
	if _, err := os.Stat(l.host.Path(dataDisk)); !os.IsNotExist(err) {
		l.Errorf("the source: %v", err)
	}
	if files, err := os.ReadDir(l.dir + "/" + domainB + "/" + dataDisk.Disk); err != nil || len(files) != 1 {
		l.Errorf("at the destination: %v, %v", files, err)
	}
	if after := l.guest("dd if=/dev/sda bs=1M count=32 iflag=direct status=none | sha256sum"); after != before {
		l.Errorf("after the move the guest reads %s, want %s", after, before)
	}
	last, _ := strconv.Atoi(l.guest("cat /run/count"))
	got := l.guest(fmt.Sprintf("dd if=/dev/sda bs=512 skip=98305 count=%d status=none | tr -d '\\0' | cmp - <(seq -f %%07.0f 1 %d) && echo same", last, last))
	if last < 5 || got != "same" {
		l.Errorf("the counter reached %d: %s", last, got)
	}
	assertLost(l, checkpoint, dataDisk) // bitmaps do not move along
	return moved
}

// shutDown powers the VM off and looks at what is left on its disks.
func shutDown(l *lab, moved engine.DiskPlace) (checkpoint string) {
	b := l.mustBegin("", rootDisk, moved)
	l.end(b)
	l.must(l.host.ShutdownVM(l.ctx, vmID))
	if got := l.host.RunningVMs(); len(got) != 0 {
		l.Errorf("running: %v", got)
	}
	for _, d := range []engine.DiskPlace{rootDisk, moved} {
		i, err := info(l.ctx, l.host.Path(d))
		l.must(err)
		if !i.usable(b.to) {
			l.Errorf("%s lost its bitmap: %+v", d.Image, i)
		}
		if out, err := proc.Run(l.ctx, "qemu-img", "check", l.host.Path(d)); err != nil {
			l.Errorf("%v %s", err, out)
		}
	}
	return b.to
}

// coldBackups backs the VM up while it is down, after a client has written to one of its disks.
func coldBackups(l *lab, moved engine.DiskPlace, checkpoint string) (next string) {
	i := l.open("", moved)
	i.request(http.MethodPut, "", "", strings.NewReader(strings.Repeat("z", int(64*kib))))
	i.close()
	want := l.sumOfDisk(moved)
	b := l.mustBegin(checkpoint, rootDisk, moved, rawDisk)
	if !b.incremental[rootDisk.Disk] || !b.incremental[moved.Disk] || b.incremental[rawDisk.Disk] {
		l.Errorf("incremental: %v", b.incremental)
	}
	i = l.open(b.id, moved)
	if got := l.sumOf(i.readAll("cold", moved.Size)); got != want {
		l.Errorf("the data disk's sum is %s, want %s", got, want)
	}
	if got := i.dirty(); got != "0+64" {
		l.Errorf("changes since the VM was shut down: %s", got)
	}
	i.close()
	if err := l.host.StartVM(l.ctx, l.spec(moved)); !errs.Is(err, errs.Busy) {
		l.Errorf("a VM whose disks are read by a cold backup: %v", err)
	}
	l.end(b)
	place, err := l.host.MoveDisk(l.ctx, "", rawDisk, domainB, nil)
	l.must(err)
	if content, err := os.ReadFile(l.host.Path(place)); err != nil || int64(len(content)) != rawDisk.Size || !strings.HasPrefix(string(content), "raw\n") {
		l.Errorf("the raw disk: %d bytes, %v", len(content), err)
	}
	_, err = l.host.MoveDisk(l.ctx, "", place, domainA, nil)
	l.must(err)
	return b.to
}

// endsByItself: nobody told the host that the VM is no more.
func endsByItself(l *lab, moved engine.DiskPlace) {
	l.must(l.host.StartVM(l.ctx, l.spec(moved)))
	l.host.machine(vmID).vm.Kill()
	for tick := time.NewTicker(20 * time.Millisecond); len(l.host.RunningVMs()) > 0; {
		select {
		case <-tick.C:
		case <-l.ctx.Done():
			l.Fatal("the host has not noticed that the VM ended")
		}
	}
	l.must(l.host.StopVM(l.ctx, vmID))
	l.must(l.host.ShutdownVM(l.ctx, vmID))
}

// startedAgain finds the checkpoint in the VM that starts again, and no more after a power cut.
func startedAgain(l *lab, moved engine.DiskPlace, checkpoint string) {
	l.must(l.host.StartVM(l.ctx, l.spec(moved)))
	if err := l.host.StartVM(l.ctx, l.spec(moved)); !errs.Is(err, errs.Exists) {
		l.Errorf("started twice: %v", err)
	}
	b := l.mustBegin(checkpoint, moved) // while its guest is booting
	if !b.incremental[moved.Disk] {
		l.Error("the checkpoint did not outlive the VM")
	}
	i := l.open(b.id, moved)
	if got := i.dirty(); got != "" {
		l.Errorf("changes while the VM was down: %s", got)
	}
	i.close()
	l.must(l.host.KillVM(vmID))
	l.end(b) // its machine is gone
	assertLost(l, checkpoint, moved)
	l.must(l.host.RemoveCheckpoint(l.ctx, vmID, checkpoint, []engine.DiskPlace{rootDisk, moved}))
	l.end(l.mustBegin("", moved))
	endsByItself(l, moved)
	l.must(l.host.RemoveDisk(l.ctx, moved))
	if _, err := os.Stat(l.host.Path(moved)); !os.IsNotExist(err) {
		l.Errorf("a removed disk: %v", err)
	}
}
