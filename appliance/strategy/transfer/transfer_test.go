package transfer

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/strategy"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/chunkstore"
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

// same demands that a point's disks are what the VM's are.
func (r *rig) same(p *chunkstore.Point, when string) {
	r.t.Helper()
	for i, id := range r.order {
		if !bytes.Equal(r.content(p, i), r.disks[id].data) {
			r.t.Errorf("%s: disk %d is not what the VM has", when, i)
		}
	}
}

func (r *rig) backup(keep bool) *strategy.Result {
	r.t.Helper()
	res, err := Backup(r.t.Context(), r.options(keep))
	if err != nil {
		r.t.Fatal(err)
	}
	r.settled("after the backup")
	r.same(res.Point, "the backup")
	return res
}

func TestFullBackupsLeaveNothing(t *testing.T) {
	r := newRig(t, 40*grain, 20*grain)
	r.fill()
	first := r.backup(false)
	if first.Incremental || first.ReadBytes != 2*6*grain || !strings.Contains(first.Reason, "first backup") {
		t.Errorf("first: %+v", first)
	}
	second := r.backup(false)
	if second.Incremental || second.Stats.NewBytes != 0 || !strings.Contains(second.Reason, "no snapshot was kept") {
		t.Errorf("second: %+v", second)
	}
	l := second.Point.Labels
	if l[appliance.LabelStrategy] != "transfer" || l[appliance.LabelStrategyReason] != "it was told to" || l[appliance.LabelMode] != "full" ||
		l[appliance.LabelModeReason] != second.Reason || l[appliance.LabelConsistency] != appliance.ConsistencyCrash {
		t.Errorf("labels: %v", l)
	}
	c, err := appliance.ParsePointConfig(second.Point.Config)
	if err != nil || c.VMName != "web" || len(c.Disks) != 2 || c.Disks[0].Mode != "full" || !c.Disks[0].Bootable || c.OVF == "" || c.Disks[0].Format != "raw" {
		t.Errorf("configuration %+v, %v", c, err)
	}
}

func TestOnlyLayersSinceTheKeptSnapshotAreRead(t *testing.T) {
	r := newRig(t, 40*grain, 20*grain)
	r.fill()
	r.backup(true)
	d := r.disks["disk-0"]
	d.write(10*grain, noise(9, grain))
	d.write(4*grain, make([]byte, grain)) // zeroed
	second := r.backup(true)
	if !second.Incremental || second.ReadBytes != grain || second.Point.Labels[appliance.LabelMode] != "incremental" {
		t.Errorf("second read %d bytes (%+v), one grain of data changed", second.ReadBytes, second)
	}
	// Another snapshot in between makes two layers; one below the kept one goes, which changes the volumes' names.
	d.write(11*grain, noise(10, 2*grain))
	if _, err := r.AddSnapshot(t.Context(), "vm-1", ovirt.SnapshotSpec{Description: "another", Disks: r.order}); err != nil {
		t.Fatal(err)
	}
	s := r.snapshots[len(r.snapshots)-1]
	s.Status, s.looks = "ok", 0
	d.write(12*grain, make([]byte, grain)) // what an older layer holds is zeroed in a newer one
	d.write(4*grain, noise(11, grain))
	r.merge(r.snapshots[0])
	r.snapshots = append(r.snapshots, &snapshot{Snapshot: ovirt.Snapshot{ID: "again", Description: "foreign", Status: "ok"}})
	third := r.backup(true)
	if !third.Incremental || third.ReadBytes != 2*grain {
		t.Errorf("third read %d bytes (%+v), two grains of data changed", third.ReadBytes, third)
	}
	// What is not to be kept any more goes, after it was made use of.
	last := r.backup(false)
	if !last.Incremental || last.ReadBytes != 0 || last.Point.Labels[appliance.LabelSnapshot] != "" {
		t.Errorf("last: %+v", last)
	}
}

func TestDisksComeGrowAndGo(t *testing.T) {
	r := newRig(t, 40*grain, 20*grain)
	r.fill()
	r.backup(true)
	r.addDisk("disk-new", 10*grain, false)
	r.disks["disk-new"].write(0, noise(5, grain))
	d := r.disks["disk-0"]
	d.grow(3*grain + 512)
	d.write(41*grain, noise(6, grain))
	r.vm.Disks = append(r.vm.Disks[:1], r.vm.Disks[2:]...) // disk-1 was detached
	res, err := Backup(t.Context(), r.options(true))
	if err != nil {
		t.Fatal(err)
	}
	if res.Incremental || !strings.Contains(res.Reason, "alias-disk-new") || res.ReadBytes != 2*grain {
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

func TestWhatCannotBeBuiltOnBecomesAFull(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*rig)
		why   string
	}{
		"snapshot gone":       {func(r *rig) { r.merge(r.snapshots[1]) }, "no longer has"},
		"snapshot in preview": {func(r *rig) { r.snapshots[1].Status = "in_preview" }, "in_preview"},
		"another restored": {func(r *rig) { // the disk goes on from the foreign snapshot, beside the kept one
			d := r.disks["disk-0"]
			d.chain = append(d.chain[:1], &volume{"volume-branch", ovirt.FormatCow, map[int64][]byte{}, d.Provisioned})
			clear(d.data)
			for g, own := range d.chain[0].own {
				copy(d.data[g*grain:], own)
			}
			d.write(0, noise(8, 10))
		}, "does not lie on"},
		"raw layer":  {func(r *rig) { r.disks["disk-0"].chain[2].format = ovirt.FormatRaw }, "raw layer"},
		"old engine": {func(r *rig) { r.info = ovirt.Info{Version: "4.4.10", Major: 4, Minor: 4} }, "4.4.10"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 20*grain)
			r.fill()
			r.backup(true)
			r.disks["disk-0"].write(0, noise(3, 10))
			c.spoil(r)
			res, err := Backup(t.Context(), r.options(false))
			if name == "snapshot in preview" { // it cannot be removed either, and the record stays until it can
				if err != nil || !strings.Contains(res.Reason, c.why) || len(r.runs) != 1 {
					t.Errorf("%+v, %v, records %v", res, err, r.runs)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if res.Incremental || !strings.Contains(res.Reason, c.why) || !strings.Contains(strings.Join(r.notes, "\n"), "Full: ") {
				t.Errorf("%+v, notes %q", res, r.notes)
			}
			r.same(res.Point, name)
		})
	}
}

func TestWhatCannotBeBackedUp(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*rig)
		kind  errs.Kind
	}{
		"locked":            {func(r *rig) { r.disks["disk-0"].Status = ovirt.DiskLocked }, errs.Busy},
		"VM between states": {func(r *rig) { r.vm.Status = "migrating" }, errs.Busy},
		"hosted engine":     {func(r *rig) { r.vm.HostedHere = true }, errs.Unsupported},
		"only a LUN":        {func(r *rig) { r.disks["disk-0"].Storage = "lun" }, errs.Unsupported},
		"only shareable":    {func(r *rig) { r.disks["disk-0"].Shareable = true }, errs.Unsupported},
		"snapshot given up": {func(r *rig) { r.giveUp = true }, errs.Busy},
	} {
		r := newRig(t, 4*grain)
		c.spoil(r)
		_, err := Backup(t.Context(), r.options(false))
		if !errs.Is(err, c.kind) || errs.NextStep(err) == "" {
			t.Errorf("%s: %v, next step %q", name, err, errs.NextStep(err))
		}
		r.settled(name)
	}
	r := newRig(t, 12*grain, 12*grain)
	r.fill()
	r.disks["disk-1"].Storage = "lun"
	res, err := Backup(t.Context(), r.options(false))
	if err != nil || len(res.Point.Disks) != 1 || !strings.Contains(strings.Join(r.notes, "\n"), "NOT in the backup") {
		t.Errorf("a LUN beside a disk: %v, notes %v", err, r.notes)
	}
}

// labelled is a store whose points look as if another strategy had made them.
type labelled struct{ *chunkstore.Store }

func (s labelled) Begin(when time.Time, labels map[string]string, config []byte) *chunkstore.Session {
	labels[appliance.LabelCheckpoint] = "ours"
	return s.Store.Begin(when, labels, config)
}

// TestACheckpointOfAnotherStrategyGoes: the point that had it is not the last one any more.
func TestACheckpointOfAnotherStrategyGoes(t *testing.T) {
	r := newRig(t, 12*grain)
	r.checkpoints = []ovirt.ID{"ours", "foreign"}
	r.fill()
	o := r.options(false)
	o.Store = labelled{r.store}
	if _, err := Backup(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	r.backup(false)
	if fmt.Sprint(r.checkpoints) != "[foreign]" {
		t.Error(r.checkpoints)
	}
}

// TestDeathAtEveryCall kills the node at each of its calls to the engine, before and after the engine carried it out, in a
// full and in an incremental backup, whose snapshots are kept in half of the cases. After Recover nothing may be left, nothing committed
// may be lost, and the next backup must be right.
func TestDeathAtEveryCall(t *testing.T) {
	for _, late := range []bool{false, true} {
		for _, incremental := range []bool{false, true} {
			for n := 1; deathAt(t, n, late, incremental, late != incremental); n++ {
			}
		}
	}
}

func deathAt(t *testing.T, n int, late, incremental, keep bool) (died bool) {
	t.Helper()
	when := fmt.Sprintf("death at call %d (late %v, incremental %v, keep %v)", n, late, incremental, keep)
	r := newRig(t, 12*grain)
	r.fill()
	if incremental {
		r.backup(true)
		r.disks["disk-0"].write(grain, noise(7, grain))
	}
	points, _ := r.store.Points(t.Context())
	before := len(points)
	r.calls, r.dieAt, r.dieLate = 0, n, late
	o := r.options(keep)
	_, err := Backup(t.Context(), o)
	died = r.calls >= n
	if !died && n < 12 {
		t.Fatalf("a backup took only %d calls", n-1)
	}
	r.dieAt = 0
	points, _ = r.store.Points(t.Context())
	committed := len(points) > before
	if run, left := r.runs[o.RunID]; left {
		point, err := Recover(t.Context(), r.options(false), run)
		if err != nil || (point != "") != committed {
			t.Fatalf("%s: recovered %q, %v; committed: %v", when, point, err, committed)
		}
	} else if (err == nil) != committed {
		t.Fatalf("%s: %v, and committed: %v", when, err, committed)
	}
	r.settled(when)
	r.disks["disk-0"].write(5*grain, noise(8, 10))
	if res := r.backup(keep); committed && keep && !res.Incremental {
		t.Errorf("%s: the next one is a full: %s", when, res.Reason)
	}
	return died
}

// TestAnEngineThatIsAwayForAWhile: from each of its calls on the engine does not answer for three calls, once it had
// carried out the first, once it had not. Once the snapshot was asked for the backup goes on where it was.
func TestAnEngineThatIsAwayForAWhile(t *testing.T) {
	r := newRig(t, 12*grain)
	r.fill()
	r.backup(true)
	for _, late := range []bool{false, true} {
		for n := 1; ; n++ {
			when := fmt.Sprintf("away at call %d (late %v)", n, late)
			had := r.asked
			r.disks["disk-0"].write(grain, noise(uint64(n), grain))
			r.calls, r.awayFrom, r.awayFor, r.awayLate = 0, n, 3, late
			o := r.options(true)
			o.Patience = time.Minute
			res, err := Backup(t.Context(), o)
			calls := r.calls
			switch {
			case err == nil:
				r.same(res.Point, when)
			case !errs.Is(err, errs.Transient) || r.asked > had:
				t.Errorf("%s: a backup that had begun was given up: %v", when, err)
			}
			r.settled(when)
			if calls < n {
				if n < 20 {
					t.Fatalf("a backup took only %d calls", n)
				}
				break
			}
		}
	}
}

// TestAnEngineThatStaysAway: what cannot be cleaned up is told, and Recover does it when the engine is back.
func TestAnEngineThatStaysAway(t *testing.T) {
	r := newRig(t, 12*grain)
	r.fill()
	r.awayFrom, r.awayFor, r.awayLate = 9, 1<<30, true
	o := r.options(false)
	o.Patience = time.Millisecond
	_, err := Backup(t.Context(), o)
	p := task.ProblemOf(err)
	if !errs.Is(err, errs.Transient) || !strings.Contains(p.Cleaned, "NOT yet") || len(r.runs) != 1 {
		t.Fatalf("%v, problem %+v, records %v", err, p, r.runs)
	}
	r.awayFrom = 0 // it is back
	if point, err := Recover(t.Context(), o, r.runs[o.RunID]); err != nil || point != "" {
		t.Fatal(point, err)
	}
	r.settled("after the recovery")
}

// TestLayersAreLaidOverEachOther compares with a model, one kind for each byte.
func TestLayersAreLaidOverEachOther(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(size int64) (x strategy.Extents, model []chunkstore.ExtentKind) {
		for at := int64(0); at < size; {
			n := min(1+rng.Int64N(9), size-at)
			kind := []chunkstore.ExtentKind{chunkstore.ExtentData, chunkstore.ExtentZero, chunkstore.ExtentUnchanged}[rng.IntN(3)]
			x.Add(chunkstore.Extent{Off: at, Len: n, Kind: kind})
			for range n {
				model = append(model, kind)
			}
			at += n
		}
		return x, model
	}
	for i := range 2000 {
		older, a := random(1 + rng.Int64N(60))
		newer, b := random(int64(len(a)) + rng.Int64N(20))
		parent := rng.Int64N(int64(len(b)) + 1)
		got := since(over(older, newer), parent, int64(len(b)))
		at := int64(0)
		for _, e := range got {
			if e.Off != at || e.Len <= 0 {
				t.Fatalf("%d: %v has a gap at %d", i, got, at)
			}
			for at < e.Off+e.Len {
				want := b[at]
				if want == chunkstore.ExtentUnchanged && at < int64(len(a)) {
					want = a[at]
				}
				if want == chunkstore.ExtentUnchanged && at >= parent {
					want = chunkstore.ExtentZero
				}
				if e.Kind != want {
					t.Fatalf("%d: at %d is %v, want %v: %v over %v, parent %d: %v", i, at, e.Kind, want, newer, older, parent, got)
				}
				at++
			}
		}
		if at != int64(len(b)) {
			t.Fatalf("%d: %d of %d bytes are covered", i, at, len(b))
		}
	}
}
