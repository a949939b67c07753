package host

import (
	"os"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// TestTheLifeOfAVM boots one VM and takes it through all that a host does to it: backups in full and by changes, of
// several disks at once, while the guest writes; moves while it writes; a shutdown; backups of the VM that is down; the
// next start; and a power cut.
func TestTheLifeOfAVM(t *testing.T) {
	l := newLab(t)
	l.start()
	if got := l.host.RunningVMs(); len(got) != 1 || got[0] != vmID {
		t.Errorf("running: %v", got)
	}
	cp1, copy := fullBackup(l)
	cp3 := changedOnly(l, cp1, copy)
	moved := moveWhileWriting(l, cp3)
	checkpoint := shutDown(l, moved)
	checkpoint = coldBackups(l, moved, checkpoint)
	startedAgain(l, moved, checkpoint)
}

// fullBackup reads all three disks as they were at one moment, although the guest writes on.
func fullBackup(l *lab) (checkpoint string, data *os.File) {
	l.write('a', 0, 3*mib)
	l.write('b', 40*mib, 2*mib)
	l.guest("echo raw | dd of=/dev/vdb bs=512 conv=sync,notrunc oflag=direct status=none")
	want := l.sum()
	// Frozen, the file system is whole on the disk; qemu has written it to its image when the guest flushed it.
	l.guest("fsfreeze -f /")
	wantRoot := l.sumOfDisk(rootDisk)
	b := l.mustBegin("", rootDisk, dataDisk, rawDisk)
	l.guest("fsfreeze -u /; echo 'not in the backup' >/srv/late; sync")
	for d, incremental := range b.incremental {
		if incremental {
			l.Errorf("a full backup's disk %s is incremental", d)
		}
	}
	l.write('X', 2*mib, mib) // the reader sees what was there before
	i := l.open(b.id, dataDisk)
	data = i.readAll("data", 64*mib)
	if got := l.sumOf(data); got != want {
		l.Errorf("the data disk's sum is %s, want %s", got, want)
	}
	if _, bytes, err := l.host.TicketIdle(l.ctx, i.ticket); err != nil || bytes != 5*mib {
		l.Errorf("%d bytes were read, error %v", bytes, err)
	}
	i.close()
	root := l.open(b.id, rootDisk)
	if got := l.sumOf(root.readAll("root", rootSize)); got != wantRoot {
		l.Errorf("the root disk's sum is %s, want %s", got, wantRoot)
	}
	root.close()
	raw := l.open(b.id, rawDisk)
	if got := string(raw.request("GET", "", "0-3", nil)); got != "raw\n" {
		l.Errorf("the raw disk begins with %q", got)
	}
	raw.close()
	if _, err := l.begin("", dataDisk); !errs.Is(err, errs.Busy) {
		l.Errorf("a second backup beside the first: %v", err)
	}
	if _, err := l.host.MoveDisk(l.ctx, vmID, dataDisk, domainB, nil); !errs.Is(err, errs.Busy) {
		l.Errorf("a move during a backup: %v", err)
	}
	if _, err := l.host.AddTicket(l.ctx, "", dataDisk.Disk, "direct", 60); err == nil || !strings.Contains(err.Error(), "lock") {
		l.Errorf("a ticket for a disk that a VM uses: %v", err)
	}
	l.end(b)
	assertNothingLeft(l, b.to)
	return b.to, data
}

const rootSize = 2048 * mib

// changedOnly reads what changed since one checkpoint and since another, and removes one between two others.
func changedOnly(l *lab, cp1 string, copy *os.File) (checkpoint string) {
	l.write('c', 8*mib, mib)
	l.write(0, 40*mib, 64*kib)
	b2 := l.mustBegin(cp1, rootDisk, dataDisk, rawDisk)
	if !b2.incremental[rootDisk.Disk] || !b2.incremental[dataDisk.Disk] || b2.incremental[rawDisk.Disk] {
		l.Errorf("incremental: %v", b2.incremental)
	}
	want := l.sum()
	l.write('Y', 9*mib, 64*kib) // belongs to the next
	i := l.open(b2.id, dataDisk)
	if got := i.dirty(); got != "2048+1024 8192+1024 40960+64" {
		l.Errorf("changes since the first checkpoint: %s", got)
	}
	i.readInto(copy, "dirty", func(e extent) bool { return e.Dirty })
	if got := l.sumOf(copy); got != want {
		l.Errorf("with the changes the data disk's sum is %s, want %s", got, want)
	}
	i.close()
	l.end(b2)

	l.write('d', 16*mib, 128*kib)
	b3 := l.mustBegin(b2.to, dataDisk)
	i = l.open(b3.id, dataDisk)
	if got := i.dirty(); got != "9216+64 16384+128" {
		l.Errorf("changes since the second checkpoint: %s", got)
	}
	i.close()
	l.end(b3)
	l.must(l.host.RemoveCheckpoint(l.ctx, vmID, b2.to, []engine.DiskPlace{rootDisk, dataDisk}))
	l.must(l.host.RemoveCheckpoint(l.ctx, vmID, b2.to, []engine.DiskPlace{rootDisk, dataDisk})) // again

	b4 := l.mustBegin(cp1, dataDisk)
	i = l.open(b4.id, dataDisk)
	if got := i.dirty(); got != "2048+1024 8192+1088 16384+128 40960+64" {
		l.Errorf("all changes since the first checkpoint: %s", got)
	}
	i.close()
	l.end(b4)
	if _, err := l.begin(b2.to, dataDisk); err == nil || !strings.Contains(err.Error(), "Bitmap does not exist") {
		l.Errorf("from a checkpoint that was removed: %v", err)
	}
	assertNothingLeft(l, cp1, b3.to, b4.to)
	return b3.to
}
