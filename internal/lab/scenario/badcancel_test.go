package scenario_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/datacenter"
)

// TestCancel gives tasks up while the engine is at work for them: a backup, a restore and a migration. The first two
// leave nothing; the disks of the third go on being served.
func TestCancel(t *testing.T) {
	y := newYard(t, yardOptions{address: "127.0.0.17"})
	y.add()
	y.canceled(opening, []string{"backup of web1 was canceled", "Cleaned up: nothing"}, "backup", "run", "web1")
	y.kept(0)
	y.works(nil, "backup", "run", "web1", "--wait")
	before := y.center.Engine.Snapshot()
	y.before = &before
	y.canceled(posting("/storagedomains"), []string{"was canceled", "Cleaned up: nothing"}, "restore", "instant",
		"web1", "--power-on")
	y.apart()
	var r restored
	y.works(&r, "restore", "instant", "web1", "--power-on", "--wait")
	id := y.canceled(posting("/move"), []string{"was canceled", "goes on being served", "session migrate"},
		"session", "migrate", r.Session, "--to", datacenter.Spare)
	y.serving(r)
	y.fails(codeConflict, []string{id, "ended already"}, "task", "cancel", id)
	y.fails(codeNotFound, []string{"ffff", "task list"}, "task", "cancel", "ffff")
	y.works(nil, "session", "migrate", r.Session, "--wait")
	y.works(nil, "session", "release", r.Session, "--wait")
	y.clean("vm", "attachment", "disk")
}

// canceled begins a task, and cancels it while the engine holds the answer to a request back. It returns the task's ID.
func (y *yard) canceled(at func(*http.Request) bool, says []string, args ...string) string {
	y.t.Helper()
	arrived, goOn := make(chan struct{}), make(chan struct{})
	y.front.on(once(at, late(func() {
		close(arrived)
		<-goOn
	})))
	defer y.front.on(nil)
	var begun struct {
		ID   string `json:"id"`
		Task string `json:"task"`
	}
	y.works(&begun, args...)
	if begun.Task == "" || args[0] == "session" {
		begun.Task = begun.ID
	}
	select {
	case <-arrived:
	case <-time.After(time.Minute):
		y.t.Fatal("the request never came")
	}
	y.works(nil, "task", "cancel", begun.Task)
	close(goOn)
	y.fails(codeInterrupted, says, "task", "watch", begun.Task)
	return begun.Task
}
