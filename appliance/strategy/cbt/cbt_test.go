package cbt

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func noise(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func (r *rig) fill() {
	for i, id := range r.order {
		r.disks[id].write(3*grain+100, noise(uint64(i), 5*grain))
	}
}

func TestFullThenIncremental(t *testing.T) {
	r := newRig(t, 40*grain, 20*grain)
	r.fill()
	first, err := Backup(t.Context(), r.options(false))
	if err != nil {
		t.Fatal(err)
	}
	if first.Incremental || first.ReadBytes != 2*6*grain || !strings.Contains(first.Reason, "first backup") {
		t.Errorf("first: %+v", first)
	}
	r.settled("after the first")
	r.disks["disk-0"].write(10*grain, noise(9, grain))
	r.disks["disk-0"].write(4*grain, make([]byte, grain)) // zeroed
	second, err := Backup(t.Context(), r.options(false))
	if err != nil {
		t.Fatal(err)
	}
	if !second.Incremental || second.ReadBytes != grain {
		t.Errorf("second read %d bytes (incremental %v), one grain of data changed", second.ReadBytes, second.Incremental)
	}
	r.settled("after the second")
	for i, id := range r.order {
		if !bytes.Equal(r.content(second.Point, i), r.disks[id].data) {
			t.Errorf("disk %d is not what the VM has", i)
		}
	}
	c, err := appliance.ParsePointConfig(second.Point.Config)
	if err != nil || c.VMName != "web" || len(c.Disks) != 2 || c.Disks[0].Mode != "incremental" || !c.Disks[0].Bootable || c.OVF == "" {
		t.Errorf("configuration %+v, %v", c, err)
	}
	full, err := Backup(t.Context(), r.options(true))
	if err != nil || full.Incremental || full.Stats.NewBytes != 0 {
		t.Errorf("full on request: %+v, %v", full, err)
	}
	r.settled("after the full one")
}

func TestDisksComeGrowAndGo(t *testing.T) {
	r := newRig(t, 40*grain, 20*grain)
	r.fill()
	if _, err := Backup(t.Context(), r.options(false)); err != nil {
		t.Fatal(err)
	}
	r.addDisk("disk-new", 10*grain, false)
	r.disks["disk-new"].write(0, noise(5, grain))
	d := r.disks["disk-0"]
	d.data = append(d.data, noise(6, 2*grain+512)...) // grown, with data behind the old end
	for g := 40; g < 43; g++ {
		for _, m := range d.dirty {
			m[int64(g)] = g == 40 // the bitmap may not cover what was added
		}
	}
	r.vm.Disks = append(r.vm.Disks[:1], r.vm.Disks[2:]...) // disk-1 was detached
	res, err := Backup(t.Context(), r.options(false))
	if err != nil {
		t.Fatal(err)
	}
	if res.Incremental || !strings.Contains(res.Reason, "alias-disk-new") {
		t.Errorf("%+v", res)
	}
	if !bytes.Equal(r.content(res.Point, 0), d.data) || !bytes.Equal(r.content(res.Point, 2), r.disks["disk-new"].data) {
		t.Error("the disks are not what the VM has")
	}
	if _, err := res.Point.Disk(1); !errs.Is(err, errs.NotFound) {
		t.Error("the detached disk is in the point, or its number was given away:", err)
	}
	r.settled("at the end")
}

func TestLostChangesBecomeAFull(t *testing.T) {
	for name, lose := range map[string]func(*rig){
		"checkpoint gone":    func(r *rig) { r.checkpoints = nil },
		"checkpoint invalid": func(r *rig) { r.checkpoints[0].Valid = false },
		"bitmap gone":        func(r *rig) { r.lose = true },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 20*grain)
			r.fill()
			if _, err := Backup(t.Context(), r.options(false)); err != nil {
				t.Fatal(err)
			}
			lose(r)
			r.disks["disk-0"].write(0, noise(3, 10))
			res, err := Backup(t.Context(), r.options(false))
			if err != nil {
				t.Fatal(err)
			}
			if res.Incremental || res.Reason == "" || !bytes.Equal(r.content(res.Point, 0), r.disks["disk-0"].data) {
				t.Errorf("%+v", res)
			}
			if !strings.Contains(strings.Join(r.notes, "\n"), "Full: ") {
				t.Error("nobody was told why:", r.notes)
			}
			r.settled("at the end")
			r.disks["disk-0"].write(0, noise(4, 10))
			if res, err = Backup(t.Context(), r.options(false)); err != nil || !res.Incremental {
				t.Errorf("the next one: %+v, %v", res, err)
			}
		})
	}
}

func TestWhatCannotBeBackedUp(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*rig)
		kind  errs.Kind
	}{
		"not enabled":       {func(r *rig) { r.disks["disk-0"].Incremental = false }, errs.Unsupported},
		"locked":            {func(r *rig) { r.disks["disk-0"].Status = ovirt.DiskLocked }, errs.Busy},
		"VM between states": {func(r *rig) { r.vm.Status = "migrating" }, errs.Busy},
		"hosted engine":     {func(r *rig) { r.vm.HostedHere = true }, errs.Unsupported},
		"only a LUN":        {func(r *rig) { r.disks["disk-0"].Storage = "lun" }, errs.Unsupported},
		"only shareable":    {func(r *rig) { r.disks["disk-0"].Shareable = true }, errs.Unsupported},
	} {
		r := newRig(t, 4*grain)
		c.spoil(r)
		_, err := Backup(t.Context(), r.options(false))
		if !errs.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
		if c.kind != errs.Unsupported && errs.NextStep(err) == "" {
			t.Errorf("%s: no next step", name)
		}
		r.settled(name)
	}
	r := newRig(t, 4*grain, 4*grain)
	r.fill()
	r.disks["disk-1"].Storage = "lun"
	res, err := Backup(t.Context(), r.options(false))
	if err != nil || len(res.Point.Disks) != 1 || !strings.Contains(strings.Join(r.notes, "\n"), "NOT in the backup") {
		t.Errorf("a LUN beside a disk: %v, notes %v", err, r.notes)
	}
}

func TestRefusedEndIsAskedAgain(t *testing.T) {
	r := newRig(t, 4*grain)
	r.fill()
	r.refuse = true
	if _, err := Backup(t.Context(), r.options(false)); err != nil {
		t.Fatal(err)
	}
	r.settled("at the end")
}

// TestDeathAtEveryCall kills the node at each of its calls to the engine, before and after the engine carried it out,
// in a full and in an incremental backup. After Recover nothing may be left, nothing committed may be lost, and the next
// backup must be right.
func TestDeathAtEveryCall(t *testing.T) {
	for _, late := range []bool{false, true} {
		for _, incremental := range []bool{false, true} {
			for n := 1; ; n++ {
				if died := deathAt(t, n, late, incremental); !died {
					if n < 10 {
						t.Fatalf("a backup took only %d calls", n)
					}
					break
				}
			}
		}
	}
}

func deathAt(t *testing.T, n int, late, incremental bool) (died bool) {
	t.Helper()
	when := fmt.Sprintf("death at call %d (late %v, incremental %v)", n, late, incremental)
	r := newRig(t, 12*grain)
	r.fill()
	committed := 0
	if incremental {
		if _, err := Backup(t.Context(), r.options(false)); err != nil {
			t.Fatal(err)
		}
		r.disks["disk-0"].write(grain, noise(7, grain))
		committed = 1
	}
	r.calls, r.dieAt, r.dieLate = 0, n, late
	o := r.options(false)
	_, err := Backup(t.Context(), o)
	died = r.calls >= n
	if err != nil && !errors.Is(err, errDead) {
		t.Fatalf("%s: %v", when, err)
	}
	if err == nil {
		committed++
	}
	r.dieAt = 0
	for _, run := range r.runs {
		point, err := Recover(t.Context(), o, run)
		if err != nil {
			t.Fatalf("%s: recover: %v", when, err)
		}
		if point != "" && committed == 0 {
			committed++
		}
	}
	r.settled(when)
	points, _ := r.store.Points(t.Context())
	if len(points) < committed {
		t.Fatalf("%s: %d points, %d were committed", when, len(points), committed)
	}
	r.disks["disk-0"].write(2*grain, noise(8, 100))
	res, err := Backup(t.Context(), r.options(false))
	if err != nil || !bytes.Equal(r.content(res.Point, 0), r.disks["disk-0"].data) {
		t.Fatalf("%s: the next backup: %v", when, err)
	}
	r.settled(when + ", after the next backup")
	return died
}
