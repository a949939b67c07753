package host

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

// layers is a VM without a guest, whose disks are written through qemu's monitor, and what they should hold.
type layers struct {
	*lab
	places map[string]engine.DiskPlace // by disk, with the volume on top
	model  map[string][]byte
	order  []string
}

// poke writes as a guest would; the VM runs or not.
func (l *layers) poke(disk string, value byte, at, length int64) {
	l.Helper()
	command := fmt.Sprintf("write -P %d %d %d", value, at, length)
	if value == 0 {
		command = fmt.Sprintf("write -z %d %d", at, length)
	}
	if m := l.host.machine(vmID); m != nil {
		i, err := m.index(disk)
		l.must(err)
		var out string
		l.must(m.vm.QMP().Execute(l.ctx, "human-monitor-command", qemu.Node{"command-line": fmt.Sprintf(`qemu-io -d disk%d "%s"`, i, command)}, &out))
		if strings.Contains(strings.ToLower(out), "error") || strings.Contains(out, "failed") {
			l.Fatal(out)
		}
	} else {
		place := l.places[disk]
		_, err := proc.Run(l.ctx, "qemu-io", "-f", formatOf(place), "-c", command, l.host.path(place))
		l.must(err)
	}
	copy(l.model[disk][at:at+length], bytes.Repeat([]byte{value}, int(length)))
}

// take takes a snapshot of all disks and returns their volumes and what is in them.
func (l *layers) take() (volumes map[string]engine.DiskPlace, content map[string][]byte) {
	l.Helper()
	l.step++
	volumes, content = map[string]engine.DiskPlace{}, map[string][]byte{}
	tops := map[string]string{}
	var places []engine.DiskPlace
	for _, d := range l.order {
		places = append(places, l.places[d])
		tops[d] = fmt.Sprintf("layer-%d", l.step)
	}
	l.must(l.host.TakeSnapshot(l.ctx, vmID, places, tops))
	for _, p := range places {
		volumes[p.Disk], content[p.Disk] = p, bytes.Clone(l.model[p.Disk])
		p.Image, p.Format = tops[p.Disk], "cow"
		l.places[p.Disk] = p
	}
	return volumes, content
}

// read reads a volume with all below it.
func (l *layers) read(v engine.DiskPlace, want []byte, when string) {
	l.Helper()
	i := l.volume(v, false)
	defer i.close()
	if got := i.request("GET", "", fmt.Sprintf("0-%d", len(want)-1), nil); !bytes.Equal(got, want) {
		l.Errorf("%s: volume %s of %s does not hold what it did", when, v.Image, v.Disk)
	}
}

// volume makes a ticket for a volume.
func (l *lab) volume(v engine.DiskPlace, shallow bool) image {
	l.Helper()
	l.step++
	i := image{lab: l, ticket: fmt.Sprint("ticket-", l.step)}
	var err error
	i.url, err = l.host.AddVolumeTicket(l.ctx, v, shallow, i.ticket, 60)
	l.must(err)
	return i
}

// own lists a volume's own extents: zeros are written z.
func (l *layers) own(v engine.DiskPlace) string {
	l.Helper()
	i := l.volume(v, true)
	defer i.close()
	var out []string
	for _, e := range i.extents("zero") {
		switch {
		case e.Zero && !e.Hole:
			out = append(out, fmt.Sprintf("z%d+%d", e.Start/kib, e.Length/kib))
		case !e.Hole:
			out = append(out, fmt.Sprintf("%d+%d", e.Start/kib, e.Length/kib))
		}
	}
	return strings.Join(out, " ")
}

func (l *layers) merge(volumes map[string]engine.DiskPlace, child func(disk string) (child, above string)) {
	l.Helper()
	for _, d := range l.order {
		c, above := child(d)
		l.must(l.host.MergeVolume(l.ctx, vmID, volumes[d], c, above))
		if above == "" {
			l.places[d] = volumes[d]
		}
	}
}

// TestLayers takes snapshots of a VM, reads each volume alone and with what is below, and merges them, in the middle of
// the chain and at its end, while the VM runs, when it is down, and when it was started on a chain.
func TestLayers(t *testing.T) {
	l := &layers{lab: newLab(t), places: map[string]engine.DiskPlace{}, model: map[string][]byte{}}
	for _, d := range []engine.DiskPlace{dataDisk, rawDisk} {
		l.must(l.host.CreateDisk(l.ctx, d))
		l.places[d.Disk], l.model[d.Disk] = d, make([]byte, d.Size)
		l.order = append(l.order, d.Disk)
	}
	both := func(value byte, at, length int64) {
		for _, d := range l.order {
			l.poke(d, value, at, length)
		}
	}
	start := func() {
		spec := engine.VMSpec{ID: vmID, Name: "web1", MiB: 64, VCPUs: 1, Ifaces: []string{"virtio_scsi", "virtio_scsi"}}
		for _, d := range l.order {
			spec.Disks = append(spec.Disks, l.places[d])
		}
		l.must(l.host.StartVM(l.ctx, spec))
	}
	for _, mode := range []string{"running", "down", "started on a chain"} {
		if mode == "running" {
			start()
		}
		both(1, mib, 3*mib)
		v1, c1 := l.take()
		if mode == "started on a chain" {
			start()
		}
		both(2, 2*mib, mib)
		both(0, 3*mib, 64*kib)
		v2, c2 := l.take()
		both(3, 8*mib, 64*kib)
		for _, d := range l.order {
			l.read(v1[d], c1[d], mode)
			l.read(v2[d], c2[d], mode)
			if got := l.own(v2[d]); got != "2048+1024 z3072+64" {
				t.Errorf("%s: the second volume of %s has %q of its own", mode, d, got)
			}
		}
		l.merge(v1, func(d string) (string, string) { return v2[d].Image, l.places[d].Image })
		both(4, 9*mib, 64*kib)
		for _, d := range l.order {
			l.read(v1[d], c2[d], mode+", merged")
		}
		l.merge(v1, func(d string) (string, string) { return l.places[d].Image, "" })
		both(5, 10*mib, 64*kib)
		if mode == "running" || mode == "started on a chain" {
			l.must(l.host.StopVM(l.ctx, vmID))
		}
		for _, d := range l.order {
			l.read(l.places[d], l.model[d], mode+", at the end")
			files, err := os.ReadDir(filepath.Dir(l.host.path(l.places[d])))
			if err != nil || len(files) != 1 {
				t.Errorf("%s: %s consists of %v, %v", mode, d, files, err)
			}
		}
	}
}

// TestASnapshotCostsTheCheckpoints, here: the next backup by changes is refused as one whose bitmap was lost.
func TestASnapshotCostsTheCheckpoints(t *testing.T) {
	l := &layers{lab: newLab(t), places: map[string]engine.DiskPlace{dataDisk.Disk: dataDisk}, model: map[string][]byte{}, order: []string{dataDisk.Disk}}
	l.must(l.host.CreateDisk(l.ctx, dataDisk))
	l.must(l.host.StartVM(l.ctx, engine.VMSpec{ID: vmID, Name: "web1", MiB: 64, VCPUs: 1, Disks: []engine.DiskPlace{dataDisk}, Ifaces: []string{"virtio_scsi"}}))
	b := l.mustBegin("", dataDisk)
	if err := l.host.TakeSnapshot(l.ctx, vmID, []engine.DiskPlace{dataDisk}, map[string]string{dataDisk.Disk: "x"}); !errs.Is(err, errs.Busy) {
		t.Errorf("a snapshot during a backup: %v", err)
	}
	l.end(b)
	v, _ := l.take()
	if _, err := l.host.MoveDisk(l.ctx, vmID, l.places[dataDisk.Disk], domainB, nil); !errs.Is(err, errs.Unsupported) {
		t.Errorf("a move of a disk with a snapshot: %v", err)
	}
	l.merge(v, func(d string) (string, string) { return l.places[d].Image, "" })
	if _, err := l.begin(b.to, dataDisk); err == nil || !strings.Contains(err.Error(), "Bitmap does not exist") {
		t.Errorf("a backup by changes across a snapshot: %v", err)
	}
}
