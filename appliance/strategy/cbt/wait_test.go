package cbt

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// TestAnEngineThatIsAwayForAWhile: from each of its calls on the engine does not answer for three calls, once it had
// carried out the first, once it had not. Once the backup has begun it goes on where it was.
func TestAnEngineThatIsAwayForAWhile(t *testing.T) {
	r := newRig(t, 12*grain)
	r.fill()
	if _, err := Backup(t.Context(), r.options(false)); err != nil {
		t.Fatal(err)
	}
	for _, late := range []bool{false, true} {
		for n := 1; ; n++ {
			when := fmt.Sprintf("away at call %d (late %v)", n, late)
			had := len(r.backups)
			r.disks["disk-0"].write(grain, noise(uint64(n), grain))
			r.calls, r.awayFrom, r.awayFor, r.awayLate = 0, n, 3, late
			o := r.options(false)
			o.Patience = time.Minute
			res, err := Backup(t.Context(), o)
			switch {
			case len(r.runs) > 0:
				t.Errorf("%s: the run's record is still there", when)
			case err == nil && !bytes.Equal(r.content(res.Point, 0), r.disks["disk-0"].data):
				t.Errorf("%s: the disk is not what the VM has", when)
			case err != nil && (!errs.Is(err, errs.Transient) || len(r.backups) > had):
				t.Errorf("%s: a backup that had begun was given up: %v", when, err)
			}
			r.settled(when)
			if r.calls < n {
				if n < 12 {
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
	r.awayFrom, r.awayFor, r.awayLate = 8, 1<<30, true
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
