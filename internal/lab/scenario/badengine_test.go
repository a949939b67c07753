package scenario_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// backup is the command that all tests of this file run; they differ in what the engine does meanwhile.
var backup = []string{"backup", "run", "web1", "--wait"}

// TestBadEngine backs a VM up while the engine misbehaves. What it recovers from is told; what it does not is cleaned
// up.
func TestBadEngine(t *testing.T) {
	y := newYard(t, yardOptions{address: "127.0.0.13"})
	y.add()
	y.works(nil, backup...)
	y.clean("checkpoint")
	strike := func(name string) func() { return func() { y.fault(name) } }
	for _, c := range []struct {
		name string
		hook func(*http.Request) fate
		code int
		says []string
	}{
		{"lost checkpoint", once(change, first(strike(engine.FaultLostCheckpoint))), codeDone,
			[]string{"changes since the last point are not known", "everything is read"}},
		{"invalid checkpoint", once(change, first(strike(engine.FaultInvalidCheckpoint))), codeDone,
			[]string{"invalid", "everything is read"}},
		{"paused before it is read", once(opening, late(strike(engine.FaultTransferPaused))), codeConflict,
			[]string{"ticket", "then try again", "Cleaned up: nothing"}},
		{"paused at the end", once(finalizing, first(strike(engine.FaultTransferPaused))), codeDone, nil},
		{"ticket expired before it is read", once(opening, late(strike(engine.FaultTicketExpired))), codeConflict,
			[]string{"ticket", "then try again", "Cleaned up: nothing"}},
		{"ticket expired at the end", once(finalizing, first(strike(engine.FaultTicketExpired))), codeDone, nil},
		{"token expired", once(finalizing, first(strike(engine.FaultExpiredToken))), codeDone, nil},
		{"restart", once(opening, late(strike(engine.FaultRestart))), codeDone, nil},
		{"away for a while", once(finalizing, first(func() {
			y.fault(engine.FaultUnreachable)
			time.AfterFunc(3*time.Second, func() { y.center.Engine.Heal(engine.FaultUnreachable) })
		})), codeDone, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := y.in(t)
			had := y.points()
			y.meanwhile(c.hook, func() {
				if c.code == codeDone {
					out := y.works(nil, backup...)
					for _, s := range c.says {
						if !strings.Contains(out.Stderr, s) {
							t.Errorf("it does not say %q", s)
						}
					}
					had++
				} else {
					y.fails(c.code, c.says, append(backup, "--full")...)
				}
			})
			y.kept(had)
			y.works(nil, backup...)
		})
	}
	t.Run("away at first", func(t *testing.T) { y.in(t).awayAtFirst() })
	y.clean("checkpoint")
}

// awayAtFirst asks for a backup, and for VMs, while the engine does not answer: nobody can say that a VM is gone.
func (y *yard) awayAtFirst() {
	y.t.Helper()
	y.fault(engine.FaultUnreachable)
	y.fails(codeUnreachable, []string{"lab", "Check that the engine runs"}, backup...)
	y.fails(codeUnreachable, []string{"lab", "Check that the engine runs"}, "vm", "show", "web1")
	out := y.fails(codePartial, []string{"manager lab", "not complete"}, "vm", "list")
	if !strings.Contains(out.Stdout, "unknown") {
		y.t.Error("a VM of an engine that does not answer is not unknown")
	}
	y.center.Engine.Heal(engine.FaultUnreachable)
	y.works(nil, backup...)
}

// kept sees that there are so many points, and on the engine the checkpoint of the newest and nothing else.
func (y *yard) kept(points int) {
	y.t.Helper()
	if n := y.points(); n != points {
		y.t.Errorf("%d points, want %d", n, points)
	}
	y.clean("checkpoint")
	y.until("there is one checkpoint at most", func() bool { // the node may go on cleaning up behind the task
		checkpoints := slices.DeleteFunc(y.center.Engine.Leftovers(*y.before), func(line string) bool {
			return !strings.HasPrefix(line, "checkpoint ")
		})
		return len(checkpoints) <= min(points, 1)
	})
}

// TestLostAnswers loses the answer to each request of a backup that changes something on the engine, and has the engine
// fall over at each, before a backup and then before the next, until one has made fewer such requests.
func TestLostAnswers(t *testing.T) {
	y := newYard(t, yardOptions{address: "127.0.0.14"})
	y.add()
	for n := 1; ; n++ {
		var lost, fell int
		t.Run(fmt.Sprintf("change %d", n), func(t *testing.T) {
			y := y.in(t)
			lost = y.struck(n, lose)
			fell = y.struck(n, first(func() { y.fault(engine.FaultServerError) }))
		})
		if t.Failed() {
			return
		}
		if lost < n && fell < n {
			if n < 5 {
				t.Fatalf("a backup asks for %d changes only", n-1)
			}
			return
		}
	}
}

// struck runs a backup that something happens to at its n-th change, and returns how many changes there were until it
// ended or cleaned up.
func (y *yard) struck(n int, what fate) int {
	y.t.Helper()
	had := y.points()
	var changes atomic.Int32
	y.meanwhile(func(r *http.Request) fate {
		if change(r) && int(changes.Add(1)) == n {
			return what
		}
		return nil
	}, func() {
		out := y.ask(backup...)
		if out.Code == codeDone {
			had++
			return
		}
		y.failed(out, out.Code, []string{"Cleaned up: nothing"}, "the backup")
		if out.Code != codeUnreachable && out.Code != codeFailed {
			y.t.Errorf("exit code %d", out.Code)
		}
	})
	y.kept(had)
	return int(changes.Load())
}
