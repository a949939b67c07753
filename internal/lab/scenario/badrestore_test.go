package scenario_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/datacenter"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// restored is what a restore's document says.
type restored struct {
	Session string `json:"session"`
	Task    string `json:"task"`
	VM      string `json:"vm"`
}

// session is what a session's document says.
type session struct {
	ID      string `json:"id"`
	State   string `json:"state"`
	VM      string `json:"vm"`
	Problem *struct {
		Cause, Cleaned string
	} `json:"problem"`
}

// TestBadRestores asks for restores that cannot be had, and has the engine fail in the middle of others. Each time all
// is taken apart, and the next one works.
func TestBadRestores(t *testing.T) {
	y := newYard(t, yardOptions{address: "127.0.0.16"})
	y.add()
	restore := func(more ...string) []string {
		return append([]string{"restore", "instant", "web1", "--wait"}, more...)
	}
	y.fails(codeNotFound, []string{"web1@latest", "backup run"}, restore()...)
	y.works(nil, "backup", "run", "web1", "--wait")
	before := y.center.Engine.Snapshot()
	y.before = &before
	for _, c := range []struct {
		name string
		code int
		says []string
		args []string
	}{
		{"no such VM", codeNotFound, []string{"nothing@latest", "web1"},
			[]string{"restore", "instant", "nothing", "--wait"}},
		{"no point of that time", codeNotFound, []string{"web1@2001-01-01", "Its oldest", "its newest"},
			[]string{"restore", "instant", "web1@2001-01-01", "--wait"}},
		{"no time", codeUsage, []string{"yesterday", "VM@-3d"},
			[]string{"restore", "instant", "web1@yesterday", "--wait"}},
		{"no such cluster", codeNotFound, []string{"Clustre", "--cluster", "Default"}, restore("--cluster", "Clustre")},
		{"name taken", codeConflict, []string{"web1", "exists", "--name"}, restore("--name", "web1")},
		{"bad name", codeUsage, []string{"a b", "letters", "--name"}, restore("--name", "a b")},
		{"no such domain", codeNotFound, []string{"fast", datacenter.Spare, datacenter.Local},
			restore("--migrate-to", "fast")},
		{"no such format", codeUsage, []string{"vmdk", "qcow2 or raw"}, restore("--format", "vmdk")},
		{"no such manager", codeNotFound, []string{"manager prod", "manager list"}, restore("--manager", "prod")},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := y.in(t)
			y.fails(c.code, c.says, c.args...)
			y.clean()
			var all []session
			if y.works(&all, "session", "list"); len(all) > 0 {
				t.Errorf("sessions: %+v", all)
			}
		})
	}
	t.Run("domain refused", func(t *testing.T) {
		y.in(t).failedRestore(engine.FaultDomainRefused, codeUnreachable, "mount",
			"check that the hosts reach this node")
	})
	t.Run("attach fails", func(t *testing.T) {
		y.in(t).failedRestore(engine.FaultAttachFails, codeFailed, "Cannot attach Storage", "engine.log")
	})
	t.Run("engine away", func(t *testing.T) {
		y := y.in(t)
		y.fault(engine.FaultUnreachable)
		y.fails(codeUnreachable, []string{"Check that the engine runs"}, restore()...)
		y.center.Engine.Heal(engine.FaultUnreachable)
		y.clean()
	})
	t.Run("migrate", func(t *testing.T) { y.in(t).badMigrations() })
}

// TestNotAllowed restores from a node that lets no host mount.
func TestNotAllowed(t *testing.T) {
	y := newYard(t, yardOptions{address: "127.0.0.20", allow: "192.0.2.1"})
	y.add()
	y.works(nil, "backup", "run", "web1", "--wait")
	before := y.center.Engine.Snapshot()
	y.before = &before
	y.fails(codeUnreachable, []string{"could not mount", "allow, below nfs", "Cleaned up: nothing"}, "restore",
		"instant", "web1", "--wait")
	y.apart()
}

// TestLostRestores loses the answer to each request that a restore and its release make to change something, and has
// the engine fall over at each: what cannot go on is taken apart.
func TestLostRestores(t *testing.T) {
	y := newYard(t, yardOptions{address: "127.0.0.21"})
	y.add()
	y.works(nil, "backup", "run", "web1", "--wait")
	before := y.center.Engine.Snapshot()
	y.before = &before
	for n := 1; ; n++ {
		lost := y.struckRestore(n, lose)
		fell := y.struckRestore(n, first(func() { y.fault(engine.FaultServerError) }))
		if t.Failed() {
			t.Fatalf("at change %d", n)
		}
		if lost < n && fell < n {
			if n < 6 {
				t.Fatalf("a restore asks for %d changes only", n-1)
			}
			return
		}
	}
}

// failedRestore restores while a fault is armed, sees that all was taken apart, and restores again.
func (y *yard) failedRestore(fault string, code int, says ...string) {
	y.t.Helper()
	y.fault(fault)
	y.fails(code, append(says, "Cleaned up: nothing", "restore point is unchanged"), "restore", "instant", "web1",
		"--power-on", "--wait")
	y.apart()
	var r restored
	y.works(&r, "restore", "instant", "web1", "--wait")
	y.works(nil, "session", "release", r.Session, "--discard", "--wait")
	y.clean()
}

// apart sees that the newest session has failed and says why, and that nothing is left of it.
func (y *yard) apart() {
	y.t.Helper()
	var all []session
	y.works(&all, "session", "list")
	last := all[len(all)-1]
	p := last.Problem
	if last.State != "failed" || p == nil || p.Cause == "" || !strings.Contains(p.Cleaned, "nothing") {
		y.t.Errorf("session %+v, problem %+v", last, p)
	}
	out := y.works(nil, "session", "show", last.ID)
	for _, s := range []string{"failed", "Why", "Cleaned up"} {
		if !strings.Contains(out.Stdout, s) {
			y.t.Errorf("the session does not show %q", s)
		}
	}
	y.clean()
	if running := y.center.Host.RunningVMs(); len(running) != 1 {
		y.t.Errorf("running: %v", running)
	}
}

// struckRestore restores and releases a VM while something happens at its n-th change. It returns how many there were.
func (y *yard) struckRestore(n int, what fate) int {
	y.t.Helper()
	var changes atomic.Int32
	y.meanwhile(func(r *http.Request) fate {
		if change(r) && int(changes.Add(1)) == n {
			return what
		}
		return nil
	}, func() {
		out := y.ask("restore", "instant", "web1", "--power-on", "--wait", "-o", "json")
		var r restored
		if err := json.Unmarshal([]byte(out.Stdout), &r); err != nil {
			y.t.Fatalf("%q: %v", out.Stdout, err)
		}
		if out.Code != codeDone {
			y.failed(out, out.Code, []string{"Cleaned up: nothing"}, "the restore")
			y.apart()
			return
		}
		if out := y.ask("session", "release", r.Session, "--discard", "--wait"); out.Code != codeDone {
			y.failed(out, out.Code, []string{"Cleaned up: NOT all", "session release " + r.Session}, "the release")
			y.works(nil, "session", "release", r.Session, "--discard", "--wait")
		}
		y.clean()
	})
	return int(changes.Load())
}

// badMigrations gives a session up, and moves its disks, while the engine refuses and fails.
func (y *yard) badMigrations() {
	y.t.Helper()
	var r restored
	y.works(&r, "restore", "instant", "web1", "--power-on", "--wait")
	y.fails(codeConflict, []string{r.VM, "still has disks that this node serves", "session migrate", "--discard"},
		"session", "release", r.Session, "--wait")
	y.fails(codeNotFound, []string{"fast", datacenter.Spare}, "session", "migrate", r.Session, "--to", "fast", "--wait")
	y.fails(codeUsage, []string{"no storage", "--to"}, "session", "migrate", r.Session, "--wait")
	y.fails(codeNotFound, []string{"ffff", "session list"}, "session", "migrate", "ffff", "--to", datacenter.Spare)
	y.fails(codeConflict, []string{"lab", r.Session, "Release"}, "manager", "rm", "lab")
	y.serving(r)
	for range 5 { // as often as it is tried
		y.fault(engine.FaultMoveFails)
	}
	y.fails(codeUnreachable, []string{"gave up 5 times", "goes on being served", "session migrate " + r.Session,
		"events"},
		"session", "migrate", r.Session, "--to", datacenter.Spare, "--wait")
	y.serving(r)
	y.fault(engine.FaultMoveBusy)
	y.works(nil, "session", "migrate", r.Session, "--wait")
	y.meanwhile(once(change, first(func() {
		y.fault(engine.FaultUnreachable)
		time.AfterFunc(2*time.Second, func() { y.center.Engine.Heal(engine.FaultUnreachable) })
	})), func() { y.works(nil, "session", "release", r.Session, "--wait") })
	y.clean("vm", "attachment", "disk")
	y.fails(codeConflict, []string{r.Session, "released already"}, "session", "release", r.Session)
	y.fails(codeConflict, []string{r.Session, "released"}, "session", "migrate", r.Session, "--to", datacenter.Spare)
}

// serving sees that a session's VM runs, from the node.
func (y *yard) serving(r restored) {
	y.t.Helper()
	var s session
	y.works(&s, "session", "show", r.Session)
	if s.State != "running" {
		y.t.Errorf("the session is %s", s.State)
	}
	if running := y.center.Host.RunningVMs(); len(running) != 2 {
		y.t.Errorf("running: %v", running)
	}
}
