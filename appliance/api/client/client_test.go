package client_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/api/apitest"
	"github.com/holdfast-backup/holdfast/appliance/api/client"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// rig is a served service.
type rig struct {
	t    *testing.T
	dir  string
	at   api.Addresses
	stop func()
}

// serve serves a service on a socket and over TLS until the test ends or stop is called.
func serve(t *testing.T, dir string, s api.Service) *rig {
	t.Helper()
	h, err := api.New(api.Options{Service: s, Version: "1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan api.Addresses, 1), make(chan error, 1)
	go func() {
		done <- api.Serve(ctx, api.Listeners{
			Socket: filepath.Join(dir, "sock"), TLSAddr: "127.0.0.1:0", TokenFile: filepath.Join(dir, "token"),
			CertDir: filepath.Join(dir, "tls"), Ready: func(at api.Addresses) { ready <- at },
		}, h)
	}()
	r := &rig{t: t, dir: dir}
	select {
	case r.at = <-ready:
	case err := <-done:
		cancel()
		t.Fatal(err)
	}
	ended := false
	r.stop = func() {
		if !ended {
			ended = true
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(r.stop)
	return r
}

// serveAt serves on another address with a certificate that is there already, and returns the address.
func serveAt(t *testing.T, dir, addr string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan api.Addresses, 1), make(chan error, 1)
	go func() {
		done <- api.Serve(ctx, api.Listeners{
			TLSAddr: addr, TokenFile: filepath.Join(dir, "token"), CertDir: filepath.Join(dir, "tls"), Ready: func(at api.Addresses) { ready <- at },
		}, http.NotFoundHandler())
	}()
	t.Cleanup(func() { cancel(); <-done })
	select {
	case at := <-ready:
		return at.TLS
	case err := <-done:
		t.Fatal(err)
		return ""
	}
}

func dial(t *testing.T, o client.Options) *client.Client {
	t.Helper()
	c, err := client.Dial(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// tls returns the options with which the TLS door opens.
func (r *rig) tls() client.Options {
	return client.Options{Node: "https://" + r.at.TLS, TokenFile: filepath.Join(r.dir, "token"), CAFile: filepath.Join(r.dir, "tls", "cert.pem")}
}

// each runs f with a client at each door.
func (r *rig) each(f func(t *testing.T, c *client.Client)) {
	for name, o := range map[string]client.Options{"path": {Node: r.at.Socket}, "socket": {Node: "unix://" + r.at.Socket}, "tls": r.tls()} {
		r.t.Run(name, func(t *testing.T) { f(t, dial(t, o)) })
	}
}

// same fails the test unless a call gave what it should.
func same[T any](t *testing.T, what string, want T) func(T, error) {
	return func(got T, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s gave %+v, %v; want %+v", what, got, err, want)
		}
	}
}

// things are one of each resource, with every member set.
func things() *apitest.Service {
	when := time.Date(2026, 9, 14, 2, 3, 4, 0, time.UTC)
	return &apitest.Service{
		Managers: []appliance.Manager{{Name: "lab one/two?", URL: "https://engine", User: "admin@internal", Fingerprint: "ab", Version: "4.5", Added: when}},
		VMs: []appliance.VM{{
			ID: "123", Name: "web", Manager: "lab", Status: "up", Tags: []string{"a"}, Points: 2, Newest: &appliance.Newest{Point: "p", Time: when},
			Disks: []appliance.VMDisk{{ID: "d", Alias: "<boot> & ü", SizeBytes: 1 << 40, Format: "cow", CBT: true, Hole: "a direct LUN"}},
		}},
		Store:  api.StoreInfo{UUID: "ab", Dir: "/store", Believed: &when, Clock: when, Doubtful: true},
		Points: []api.Point{{Point: "p", VM: "web", Time: when, Mode: "full", Size: 5, Data: 3}},
		Sessions: []appliance.Session{{
			ID: "s1", State: appliance.SessionRunning, Manager: "lab", Point: "p", SourceVM: "web", VM: "web-1", VMID: "v", Domain: "hf", DomainID: "i",
			Export: "192.0.2.1:/x", Created: when, Task: "t", Disks: []appliance.SessionDisk{{Number: 1, ID: "d", SizeBytes: 9, DirtyBytes: 4, Migrated: true}},
			MigrateTo: "san", Problem: &appliance.Problem{Code: "busy", Title: "a", Cause: "b", Cleaned: "c", Remedy: "d"},
		}},
	}
}

func TestEveryCall(t *testing.T) {
	s := things()
	r := serve(t, t.TempDir(), s)
	ended := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	full := appliance.Task{
		ID: "full", Kind: appliance.TaskBackup, Subject: "web", State: appliance.TaskFailed, Started: ended.Add(-time.Hour), Ended: &ended,
		Steps: []appliance.Step{{Name: "read", Started: ended, Ended: &ended, Detail: "x", Failed: true}}, Notes: []string{"n"},
		Progress: &appliance.Progress{DoneBytes: 1, TotalBytes: 2, SecondsLeft: 1.5}, Result: map[string]any{"point": "p", "bytes": 12.0},
		Problem: &appliance.Problem{Code: "corrupt", Title: "t", Cause: "c"},
	}
	s.Change(full)
	r.each(func(t *testing.T, c *client.Client) { reads(t, c, s, full) })
	r.each(func(t *testing.T, c *client.Client) { starts(t, c, s) })
}

func reads(t *testing.T, c *client.Client, s *apitest.Service, full appliance.Task) {
	ctx := t.Context()
	same(t, "ListManagers", s.Managers)(c.ListManagers(ctx))
	same(t, "GetManager", s.Managers[0])(c.GetManager(ctx, "lab one/two?"))
	same(t, "GetVM by name", s.VMs[0])(c.GetVM(ctx, "web"))
	same(t, "GetVM by ID", s.VMs[0])(c.GetVM(ctx, "123"))
	same(t, "GetStore", s.Store)(c.GetStore(ctx))
	same(t, "ListSessions", s.Sessions)(c.ListSessions(ctx))
	same(t, "GetSession", s.Sessions[0])(c.GetSession(ctx, "s1"))
	same(t, "GetTask", full)(c.GetTask(ctx, "full"))
	same(t, "Status", api.Status{Version: "1.2.3", Ready: true})(c.Status(ctx))
	if l, err := c.ListTasks(ctx); err != nil || len(l) == 0 || !reflect.DeepEqual(l[0], full) {
		t.Errorf("ListTasks gave %+v, %v", l, err)
	}
	if l, bad := c.ListVMs(ctx); bad != nil || !reflect.DeepEqual(l, s.VMs) {
		t.Errorf("ListVMs gave %+v, %v", l, bad)
	}
	if l, bad := c.ListPoints(ctx); bad != nil || !reflect.DeepEqual(l, s.Points) {
		t.Errorf("ListPoints gave %+v, %v", l, bad)
	}
	var seen []appliance.Task
	err := c.WatchTask(ctx, "full", func(t appliance.Task) error { seen = append(seen, t); return nil })
	if err != nil || !reflect.DeepEqual(seen, []appliance.Task{full}) {
		t.Errorf("WatchTask gave %+v, %v", seen, err)
	}
	for _, name := range []string{"", ".", ".."} {
		if _, err := c.GetManager(ctx, name); !errs.Is(err, errs.Invalid) {
			t.Errorf("the manager %q: %v", name, err)
		}
		if _, err := c.StartBackup(ctx, api.BackupSpec{VM: name}); !errs.Is(err, errs.Invalid) {
			t.Errorf("a backup of %q: %v", name, err)
		}
	}
}

// starts calls what changes something, and looks at what arrived.
func starts(t *testing.T, c *client.Client, s *apitest.Service) {
	ctx := t.Context()
	before := len(s.Asked())
	running := func(what string, kind appliance.TaskKind) func(appliance.Task, error) {
		return func(got appliance.Task, err error) {
			t.Helper()
			if err != nil || got.Kind != kind || got.State != appliance.TaskRunning || got.ID == "" {
				t.Errorf("%s gave %+v, %v", what, got, err)
			}
		}
	}
	m := api.ManagerSpec{Name: "x", URL: "engine", User: "a@b", Password: "päss\"word", CA: "pem\n", Fingerprint: "ff"}
	same(t, "AddManager", appliance.Manager{Name: "x", URL: "engine", User: "a@b", Fingerprint: "ff"})(c.AddManager(ctx, m))
	if err := c.RemoveManager(ctx, "lab one/two?"); err != nil {
		t.Error(err)
	}
	running("StartBackup", appliance.TaskBackup)(c.StartBackup(ctx, api.BackupSpec{VM: "web", Manager: "lab", Full: true, Strategy: "transfer", KeepSnapshot: true}))
	running("StartBackup", appliance.TaskBackup)(c.StartBackup(ctx, api.BackupSpec{VM: "web"}))
	i := api.InstantSpec{Point: "web@latest", Manager: "lab", Name: "w2", Cluster: "c", PowerOn: true, MigrateTo: "san", Format: "raw"}
	session, task, err := c.StartInstant(ctx, i)
	if err != nil || session.VM != "w2" || session.Task != task.ID || task.Kind != appliance.TaskInstant {
		t.Errorf("StartInstant gave %+v, %+v, %v", session, task, err)
	}
	x := api.RestoreSpec{Point: "web@latest", Name: "w3", StorageDomain: "san", Disks: []int{0, 2}, Networks: map[string]string{"a": "b"}, MAC: "keep", Verify: "full"}
	restored, task, err := c.StartRestore(ctx, x)
	if err != nil || restored.VM != "w3" || restored.Task != task.ID || task.Kind != appliance.TaskRestore {
		t.Errorf("StartRestore gave %+v, %+v, %v", restored, task, err)
	}
	if plan, err := c.PlanRestore(ctx, x); err != nil || plan.VM != "w3" || plan.ID != "" {
		t.Errorf("PlanRestore gave %+v, %v", plan, err)
	}
	running("StartMigrate", appliance.TaskMigrate)(c.StartMigrate(ctx, "s1", "san two"))
	running("StartRelease", appliance.TaskRelease)(c.StartRelease(ctx, "s1", true))
	running("StartRelease", appliance.TaskRelease)(c.StartRelease(ctx, "s1", false))
	running("StartKeep", appliance.TaskKeep)(c.StartKeep(ctx, "s1", true))
	running("StartKeep", appliance.TaskKeep)(c.StartKeep(ctx, "s1", false))
	running("StartCollect", appliance.TaskCollect)(c.StartCollect(ctx, api.CollectSpec{DryRun: true}))
	if err := c.CancelTask(ctx, "task-1"); err != nil {
		t.Error(err)
	}
	until := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	locked := s.Points[0]
	locked.LockedUntil = &until
	same(t, "LockPoint", locked)(c.LockPoint(ctx, api.LockSpec{Point: "p", Until: until, Reason: "audit"}))
	same(t, "RemovePoint", s.Points[0])(c.RemovePoint(ctx, "p"))
	same(t, "ConfirmClock", s.Store)(c.ConfirmClock(ctx))
	want := []string{
		`AddManager {Name:x URL:engine User:a@b Password:päss"word CA:pem` + "\n" + ` Fingerprint:ff}`, "RemoveManager lab one/two?",
		"StartBackup {VM:web Manager:lab Full:true Strategy:transfer KeepSnapshot:true}", "StartBackup {VM:web Manager: Full:false Strategy: KeepSnapshot:false}",
		"StartInstant {Point:web@latest Manager:lab Name:w2 Cluster:c PowerOn:true MigrateTo:san Format:raw}",
		"StartRestore {Point:web@latest Manager: Name:w3 Cluster: StorageDomain:san Disks:[0 2] Networks:map[a:b] MAC:keep Verify:full PowerOn:false}",
		"PlanRestore {Point:web@latest Manager: Name:w3 Cluster: StorageDomain:san Disks:[0 2] Networks:map[a:b] MAC:keep Verify:full PowerOn:false}",
		"StartMigrate s1 san two", "StartRelease s1 true", "StartRelease s1 false", "StartKeep s1 true", "StartKeep s1 false", "StartCollect {DryRun:true Compact:false}", "CancelTask task-1",
		"LockPoint {Point:p Until:2027-01-02 03:04:05 +0000 UTC Reason:audit}", "RemovePoint p", "ConfirmClock",
	}
	if got := s.Asked()[before:]; !slices.Equal(got, want) {
		t.Errorf("the service was asked\n%q, want\n%q", got, want)
	}
}

// TestErrorsSurviveTheWire: of every kind, in every shape, by every call.
func TestErrorsSurviveTheWire(t *testing.T) {
	s := things()
	r := serve(t, t.TempDir(), s)
	r.each(func(t *testing.T, c *client.Client) {
		for _, k := range errs.Kinds {
			for _, err := range []error{
				errs.Text("attach disk", "web/1", k, "it is <gone> & away").WithNext("Look at \"it\"."),
				errs.New("ask engine", "", k, nil),
				errs.Wrap("back up", "web", errs.New("read", "", k, errors.New("short")).WithNext("Deeper.")),
			} {
				s.Fail(err)
				for call, got := range calls(t.Context(), c) {
					if got == nil || errs.KindOf(got) != k || got.Error() != err.Error() || errs.NextStep(got) != errs.NextStep(err) {
						t.Errorf("%s made %v (%v, %q) of %v (%v, %q)", call, got, errs.KindOf(got), errs.NextStep(got), err, k, errs.NextStep(err))
					}
					if _, ok := got.(*errs.Error); !ok {
						t.Errorf("%s gave a %T", call, got)
					}
				}
			}
		}
	})
}

// calls makes every call and returns what went wrong.
func calls(ctx context.Context, c *client.Client) map[string]error {
	all := map[string]error{}
	keep := func(name string) func(any, error) { return func(_ any, err error) { all[name] = err } }
	keep("AddManager")(c.AddManager(ctx, api.ManagerSpec{Name: "x"}))
	keep("ListManagers")(c.ListManagers(ctx))
	keep("GetManager")(c.GetManager(ctx, "x"))
	all["RemoveManager"] = c.RemoveManager(ctx, "x")
	keep("GetVM")(c.GetVM(ctx, "x"))
	keep("StartBackup")(c.StartBackup(ctx, api.BackupSpec{VM: "x"}))
	keep("RemovePoint")(c.RemovePoint(ctx, "x"))
	keep("LockPoint")(c.LockPoint(ctx, api.LockSpec{Point: "x", Until: time.Unix(1, 0)}))
	keep("GetStore")(c.GetStore(ctx))
	keep("StartCollect")(c.StartCollect(ctx, api.CollectSpec{}))
	keep("ConfirmClock")(c.ConfirmClock(ctx))
	_, _, all["StartInstant"] = c.StartInstant(ctx, api.InstantSpec{Point: "x"})
	keep("PlanRestore")(c.PlanRestore(ctx, api.RestoreSpec{Point: "x"}))
	_, _, all["StartRestore"] = c.StartRestore(ctx, api.RestoreSpec{Point: "x"})
	keep("ListRestores")(c.ListRestores(ctx))
	keep("GetRestore")(c.GetRestore(ctx, "x"))
	keep("ListSessions")(c.ListSessions(ctx))
	keep("GetSession")(c.GetSession(ctx, "x"))
	keep("StartMigrate")(c.StartMigrate(ctx, "x", "y"))
	keep("StartRelease")(c.StartRelease(ctx, "x", false))
	keep("StartKeep")(c.StartKeep(ctx, "x", false))
	keep("ListTasks")(c.ListTasks(ctx))
	keep("GetTask")(c.GetTask(ctx, "x"))
	all["CancelTask"] = c.CancelTask(ctx, "x")
	all["WatchTask"] = c.WatchTask(ctx, "x", func(appliance.Task) error { return nil })
	_, bad := c.ListVMs(ctx)
	all["ListVMs"] = errors.Join(bad...)
	if len(bad) == 1 {
		all["ListVMs"] = bad[0]
	}
	return all
}

// TestPartialLists: what could be had comes, and why the rest could not.
func TestPartialLists(t *testing.T) {
	s := things()
	s.Partial = []error{
		errs.Text("ask engine", "lab2", errs.Transient, "no route to host").WithNext("Start it."),
		errors.New("a plain one"), errs.Wrap("outer", "x", errs.Text("inner", "", errs.Denied, "no").WithNext("Inner step.")),
	}
	r := serve(t, t.TempDir(), s)
	r.each(func(t *testing.T, c *client.Client) {
		vms, bad := c.ListVMs(t.Context())
		points, bad2 := c.ListPoints(t.Context())
		if !reflect.DeepEqual(vms, s.VMs) || !reflect.DeepEqual(points, s.Points) || len(bad) != 3 || len(bad2) != 3 {
			t.Fatalf("%v %v %v %v", vms, bad, points, bad2)
		}
		for i, want := range []struct {
			text, next string
			kind       errs.Kind
		}{
			{"ask engine lab2: no route to host", "Start it.", errs.Transient}, {"list vms: a plain one", "", errs.Bug},
			{"outer x: inner: no", "Inner step.", errs.Denied},
		} {
			if got := bad[i]; got.Error() != want.text || errs.NextStep(got) != want.next || errs.KindOf(got) != want.kind {
				t.Errorf("%v (%v, %q), want %+v", got, errs.KindOf(got), errs.NextStep(got), want)
			}
		}
	})
}

// TestEmptyLists: an empty list is one, not nothing.
func TestEmptyLists(t *testing.T) {
	serve(t, t.TempDir(), &apitest.Service{}).each(func(t *testing.T, c *client.Client) {
		if l, err := c.ListManagers(t.Context()); l == nil || len(l) != 0 || err != nil {
			t.Errorf("%v %v", l, err)
		}
		if l, bad := c.ListVMs(t.Context()); l == nil || len(l) != 0 || bad != nil {
			t.Errorf("%v %v", l, bad)
		}
	})
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
