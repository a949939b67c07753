package scenario_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/holdfast-backup/holdfast/internal/lab/datacenter"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// TestBadBackups asks for backups that cannot be had, and has each once its cause is gone.
func TestBadBackups(t *testing.T) {
	y := newYard(t, yardOptions{address: "127.0.0.12"})
	y.fails(codeNotFound, []string{"web1", "manager add"}, "backup", "run", "web1", "--wait")
	y.add()
	run := func(vm string, more ...string) []string {
		return append([]string{"backup", "run", vm, "--wait"}, more...)
	}
	y.fails(codeNotFound, []string{"nothing", "name or ID", "vm list"}, run("nothing")...)
	y.fails(codeNotFound, []string{"manager prod", "manager list"}, run("web1", "--manager", "prod")...)
	y.fails(codeUsage, []string{"--strategy", "auto, cbt or transfer"}, run("web1", "--strategy", "magic")...)
	y.fails(codeUsage, []string{"--keep-snapshot", "transfer"}, run("web1", "--strategy", "cbt", "--keep-snapshot")...)
	y.fails(codeUsage, []string{"a VM"}, "backup", "run")
	t.Run("two managers", func(t *testing.T) { y.in(t).twoManagers() })
	t.Run("no disks", func(t *testing.T) {
		y := y.in(t)
		y.vm(engine.VMSeed{Name: "empty"})
		y.fails(codeFailed, []string{"empty", "no disk", "Attach"}, run("empty")...)
	})
	t.Run("raw", func(t *testing.T) {
		y := y.in(t)
		y.vm(engine.VMSeed{Name: "raw", Disks: []engine.DiskSeed{{Alias: "raw_data", Format: "raw"}}})
		y.fails(codeFailed, []string{"raw_data", "raw", "qcow2", "--strategy transfer"}, run("raw", "--strategy", "cbt")...)
		if out := y.works(nil, "vm", "show", "raw"); !strings.Contains(out.Stdout, "every backup reads all of it") {
			t.Error("vm show does not say that changes of the disk are not tracked")
		}
		y.byTransfer("raw", "raw_data is raw")
	})
	t.Run("not incremental", func(t *testing.T) {
		y := y.in(t)
		disk := y.vm(engine.VMSeed{Name: "plain", Disks: []engine.DiskSeed{{Alias: "plain_root"}}})[0]
		y.fails(codeFailed, []string{"plain_root", "incremental backup is not enabled", "Enable Incremental Backup"},
			run("plain", "--strategy", "cbt")...)
		y.byTransfer("plain", "not enabled for disk plain_root")
		y.admin(http.MethodPut, "/disks/"+disk, `<disk><backup>incremental</backup></disk>`)
		y.until("the disk is free again", func() bool {
			return strings.Contains(y.admin(http.MethodGet, "/disks/"+disk, ""), "<status>ok</status>")
		})
		y.works(nil, run("plain")...)
	})
	t.Run("locked", func(t *testing.T) { y.in(t).lockedVM() })
	y.works(nil, run("web1")...)
	if n := y.points(); n != 6 {
		t.Errorf("%d points, want one of raw, two of plain and three of web1", n)
	}
	y.clean("checkpoint")
}

// byTransfer backs up a VM that changed block tracking cannot back up: it is done in another way, and why is said.
func (y *yard) byTransfer(vm, why string) {
	y.t.Helper()
	var done struct {
		Notes  []string
		Result map[string]any
	}
	y.works(&done, "backup", "run", vm, "--wait")
	if done.Result["strategy"] != "transfer" || !strings.Contains(strings.Join(done.Notes, "\n"), why) {
		y.t.Errorf("the backup is %v, with the notes %q", done.Result, done.Notes)
	}
	y.clean("checkpoint")
}

// lockedVM backs up a VM that the engine has locked: for good, and only for a while.
func (y *yard) lockedVM() {
	y.t.Helper()
	y.fault(engine.FaultVMLocked)
	y.fails(codeConflict, []string{"web1", "waiting for the engine's lock", "Something else works on it",
		"Cleaned up: nothing"},
		"backup", "run", "web1", "--wait")
	y.clean("checkpoint")
	var task struct{ ID, State, Problem string }
	y.works(&task, "backup", "run", "web1")
	y.until("the backup waits", func() bool {
		return strings.Contains(y.works(nil, "task", "show", task.ID).Stdout, "waiting for the engine's lock")
	})
	y.center.Engine.Heal(engine.FaultVMLocked)
	y.works(nil, "task", "watch", task.ID)
	y.clean("checkpoint")
}

// twoManagers knows one engine by two names, as if two engines had a VM of the same name.
func (y *yard) twoManagers() {
	y.t.Helper()
	y.works(nil, y.adding("prod")...)
	y.fails(codeUsage, []string{"web1", "2 VMs", "--manager", "lab", "prod"}, "backup", "run", "web1", "--wait")
	y.works(nil, "backup", "run", "web1", "--manager", "prod", "--wait")
	y.works(nil, "manager", "rm", "prod")
}

// vm adds a VM that is down, with real disks, and returns their IDs.
func (y *yard) vm(s engine.VMSeed) (disks []string) {
	y.t.Helper()
	s.ID, s.MiB = uuid.NewString(), 256
	var places []engine.DiskPlace
	for i := range s.Disks {
		d := &s.Disks[i]
		d.ID, d.Image, d.Domain = uuid.NewString(), uuid.NewString(), y.center.VMs[0].Disk.Domain
		if d.Format == "" {
			d.Format = "cow"
		}
		place, err := y.center.Host.AddDisk(y.t.Context(),
			engine.DiskPlace{Domain: d.Domain, Disk: d.ID, Image: d.Image, Format: d.Format},
			filepath.Join(y.dir, "disk.qcow2"))
		if err != nil {
			y.t.Fatal(err)
		}
		d.Size = place.Size
		places, disks = append(places, place), append(disks, d.ID)
	}
	if err := y.center.Engine.AddVM(s); err != nil {
		y.t.Fatal(err)
	}
	*y.before = y.center.Engine.Snapshot()
	return disks
}

// admin asks the engine for something as its administrator would, and returns the answer.
func (y *yard) admin(method, path, body string) string {
	y.t.Helper()
	ask := func(r *http.Request) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		y.center.Engine.Handler().ServeHTTP(w, r)
		if w.Code/100 != 2 {
			y.t.Fatalf("%s %s: %d %s", r.Method, r.URL.Path, w.Code, w.Body)
		}
		return w
	}
	login := url.Values{"grant_type": {"password"}, "scope": {"ovirt-app-api"}, "username": {datacenter.User},
		"password": {"holdfast"}}
	r := httptest.NewRequest(http.MethodPost, "/ovirt-engine/sso/oauth/token", strings.NewReader(login.Encode()))
	r.Header.Set("Accept", "application/json")
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	var token struct {
		Access string `json:"access_token"`
	}
	if err := json.Unmarshal(ask(r).Body.Bytes(), &token); err != nil {
		y.t.Fatal(err)
	}
	r = httptest.NewRequest(method, "/ovirt-engine/api"+path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token.Access)
	r.Header.Set("Content-Type", "application/xml")
	return ask(r).Body.String()
}
