package cli

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/api/client"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// fakeNode is a node that a test scripts: what it has, what fails, and what becomes of the tasks it starts.
type fakeNode struct {
	managers []appliance.Manager
	vms      []appliance.VM
	points   []api.Point
	store    api.StoreInfo
	sessions []appliance.Session
	restores []appliance.Restore
	tasks    []appliance.Task // newest first, as a node lists them
	partial  []error          // beside what lists have
	fail     map[string]error // by the method's name
	// states are what watchers of a task see of it, in order; the last one is what it is at last.
	states map[string][]appliance.Task
	// pause is what a watch waits before each state but the first.
	pause time.Duration
	// broken ends a watch after the states, as a lost connection does.
	broken error

	mu    sync.Mutex // guards the rest
	calls []string
	at    client.Options
}

var _ api.Service = (*fakeNode)(nil)

// call remembers a call and returns the error that the test wants of it.
func (f *fakeNode) call(name string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf("%s%+v", name, args))
	return f.fail[name]
}

// asked returns the last call of a method.
func (f *fakeNode) asked(name string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range slices.Backward(f.calls) {
		if len(c) > len(name) && c[:len(name)+1] == name+"[" {
			return c
		}
	}
	return ""
}

func none(what, id string) error {
	return errs.Text("find "+what, id, errs.NotFound, "there is none of that name")
}

func (f *fakeNode) AddManager(_ context.Context, s api.ManagerSpec) (appliance.Manager, error) {
	m := appliance.Manager{Name: s.Name, URL: "https://" + s.URL + "/ovirt-engine/api", User: s.User, Version: "4.5.6", Fingerprint: theFingerprint, Added: theTime}
	return m, f.call("AddManager", s)
}

func (f *fakeNode) ListManagers(context.Context) ([]appliance.Manager, error) {
	return f.managers, f.call("ListManagers")
}

func (f *fakeNode) GetManager(_ context.Context, name string) (appliance.Manager, error) {
	if err := f.call("GetManager", name); err != nil {
		return appliance.Manager{}, err
	}
	for _, m := range f.managers {
		if m.Name == name {
			return m, nil
		}
	}
	return appliance.Manager{}, none("manager", name)
}

func (f *fakeNode) RemoveManager(_ context.Context, name string) error {
	return f.call("RemoveManager", name)
}

func (f *fakeNode) ListVMs(context.Context) ([]appliance.VM, []error) {
	if err := f.call("ListVMs"); err != nil {
		return nil, []error{err}
	}
	return f.vms, f.partial
}

func (f *fakeNode) GetVM(_ context.Context, name string) (appliance.VM, error) {
	if err := f.call("GetVM", name); err != nil {
		return appliance.VM{}, err
	}
	for _, v := range f.vms {
		if v.Name == name || v.ID == name {
			return v, nil
		}
	}
	return appliance.VM{}, errs.Text("find VM", name, errs.NotFound, "no engine has a VM of that name or ID").WithNext("See `holdfast vm list`.")
}

func (f *fakeNode) ListPoints(context.Context) ([]api.Point, []error) {
	if err := f.call("ListPoints"); err != nil {
		return nil, []error{err}
	}
	return f.points, nil
}

func (f *fakeNode) RemovePoint(_ context.Context, point string) (api.Point, error) {
	return f.point(point, f.call("RemovePoint", point))
}

func (f *fakeNode) LockPoint(_ context.Context, l api.LockSpec) (api.Point, error) {
	p, err := f.point(l.Point, f.call("LockPoint", l))
	p.LockedUntil = &l.Until
	return p, err
}

func (f *fakeNode) point(id string, err error) (api.Point, error) {
	if err != nil {
		return api.Point{}, err
	}
	for _, p := range f.points {
		if p.Point == id {
			return p, nil
		}
	}
	return api.Point{}, errs.Text("find point", id, errs.NotFound, "there is none")
}

func (f *fakeNode) GetStore(context.Context) (api.StoreInfo, error) {
	return f.store, f.call("GetStore")
}

func (f *fakeNode) StartCollect(_ context.Context, s api.CollectSpec) (appliance.Task, error) {
	return f.start(appliance.TaskCollect, "StartCollect", s)
}

func (f *fakeNode) ConfirmClock(context.Context) (api.StoreInfo, error) {
	return f.store, f.call("ConfirmClock")
}

// start answers with the first state of the scripted task of a kind.
func (f *fakeNode) start(kind appliance.TaskKind, call string, args ...any) (appliance.Task, error) {
	if err := f.call(call, args...); err != nil {
		return appliance.Task{}, err
	}
	for _, states := range f.states {
		if states[0].Kind == kind {
			return states[0], nil
		}
	}
	return appliance.Task{}, errs.Text("start", string(kind), errs.Bug, "the test has no such task")
}

func (f *fakeNode) StartBackup(_ context.Context, s api.BackupSpec) (appliance.Task, error) {
	return f.start(appliance.TaskBackup, "StartBackup", s)
}

func (f *fakeNode) StartInstant(_ context.Context, s api.InstantSpec) (appliance.Session, appliance.Task, error) {
	t, err := f.start(appliance.TaskInstant, "StartInstant", s)
	return appliance.Session{ID: t.Session, State: appliance.SessionPrepare, Point: s.Point, Task: t.ID, Disks: []appliance.SessionDisk{}}, t, err
}

func (f *fakeNode) ListSessions(context.Context) ([]appliance.Session, error) {
	return f.sessions, f.call("ListSessions")
}

func (f *fakeNode) GetSession(_ context.Context, id string) (appliance.Session, error) {
	if err := f.call("GetSession", id); err != nil {
		return appliance.Session{}, err
	}
	for _, s := range f.sessions {
		if s.ID == id {
			return s, nil
		}
	}
	return appliance.Session{}, none("session", id)
}

func (f *fakeNode) StartMigrate(_ context.Context, id, to string) (appliance.Task, error) {
	return f.start(appliance.TaskMigrate, "StartMigrate", id, to)
}

func (f *fakeNode) StartRelease(_ context.Context, id string, discard bool) (appliance.Task, error) {
	return f.start(appliance.TaskRelease, "StartRelease", id, discard)
}

func (f *fakeNode) StartKeep(_ context.Context, id string, running bool) (appliance.Task, error) {
	return f.start(appliance.TaskKeep, "StartKeep", id, running)
}

// theRestore is what the fake node makes of any request for a full restore.
func theRestore(r api.RestoreSpec) appliance.Restore {
	return appliance.Restore{
		ID: "0e5708e00001", State: appliance.RestorePrepare, Manager: "m1", Point: r.Point, SourceVM: "web", VM: "web-restored", Cluster: "Default",
		PowerOn: r.PowerOn, Verify: r.Verify, Created: theTime, Tags: []string{"gold"},
		Disks: []appliance.RestoreDisk{{Alias: "web_Disk1", SizeBytes: 8 << 30, DataBytes: 1 << 30, Format: "cow", Sparse: true, Domain: "fast", Interface: "virtio_scsi", Bootable: true}},
		NICs:  []appliance.RestoreNIC{{Name: "nic1", Profile: "ovirtmgmt"}, {Name: "nic2", MAC: "56:6f:00:00:00:01"}},
		Notes: []string{"A VM named web exists."},
	}
}

func (f *fakeNode) PlanRestore(_ context.Context, r api.RestoreSpec) (appliance.Restore, error) {
	return theRestore(r), f.call("PlanRestore", r)
}

func (f *fakeNode) StartRestore(_ context.Context, r api.RestoreSpec) (appliance.Restore, appliance.Task, error) {
	t, err := f.start(appliance.TaskRestore, "StartRestore", r)
	x := theRestore(r)
	x.Task = t.ID
	return x, t, err
}

func (f *fakeNode) ListRestores(context.Context) ([]appliance.Restore, error) {
	return f.restores, f.call("ListRestores")
}

func (f *fakeNode) GetRestore(_ context.Context, id string) (appliance.Restore, error) {
	r := theRestore(api.RestoreSpec{})
	r.State, r.VMID = appliance.RestoreDone, "0b0b0b0b-1111-4222-8333-444444444401"
	return r, f.call("GetRestore", id)
}

func (f *fakeNode) ListTasks(context.Context) ([]appliance.Task, error) {
	return f.tasks, f.call("ListTasks")
}

func (f *fakeNode) GetTask(_ context.Context, id string) (appliance.Task, error) {
	if err := f.call("GetTask", id); err != nil {
		return appliance.Task{}, err
	}
	for _, t := range f.tasks {
		if t.ID == id {
			return t, nil
		}
	}
	return appliance.Task{}, none("task", id)
}

func (f *fakeNode) CancelTask(_ context.Context, id string) error { return f.call("CancelTask", id) }

// WatchTask shows the scripted states. A task that does not end in them is watched until ctx ends, unless broken.
func (f *fakeNode) WatchTask(ctx context.Context, id string, show func(appliance.Task) error) error {
	if err := f.call("WatchTask", id); err != nil {
		return err
	}
	states := f.states[id]
	for i, t := range states {
		if i > 0 && f.pause > 0 {
			select {
			case <-time.After(f.pause):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := show(t); err != nil || t.State.Ended() {
			return err
		}
	}
	if len(states) == 0 {
		return none("task", id)
	}
	if f.broken != nil {
		return f.broken
	}
	<-ctx.Done()
	return ctx.Err()
}

const (
	theFingerprint = "5d41402abc4b2a76b9719d911017c592aabbccddeeff00112233445566778899"
	backupID       = "3f1c9a0be4d2"
	instantID      = "a90b77c2d518"
	migrateID      = "b61e0c55f3aa"
	releaseID      = "c7d2e4f6a8b0"
	keepID         = "d8e3f5a7b9c1"
	restoreID      = "e9f4a6b8c0d2"
	sessionID      = "7d0e52c1a6f9"
)

var theTime = time.Date(2026, 9, 14, 2, 0, 0, 0, time.UTC)

// at is a time so many seconds after theTime.
func at(seconds float64) time.Time { return theTime.Add(time.Duration(seconds * float64(time.Second))) }

func atp(seconds float64) *time.Time { t := at(seconds); return &t }

// theNode is a node with one of everything.
func theNode() *fakeNode {
	backup := backupStates()
	return &fakeNode{
		managers: []appliance.Manager{
			{Name: "prod", URL: "https://engine.example.com/ovirt-engine/api", User: "admin@internal", Fingerprint: theFingerprint, Version: "4.5.6", Added: theTime},
			{Name: "lab", URL: "https://lab.example.com/ovirt-engine/api", User: "backup@internal", Fingerprint: theFingerprint, Added: at(60)},
		},
		vms: []appliance.VM{
			{ID: "8f2b9c1e-0000-4000-8000-000000000001", Name: "web", Manager: "prod", Status: "up", Tags: []string{"gold", "eu"}, Points: 3,
				Newest: &appliance.Newest{Point: "3f1c9a0be4d2587a", Time: theTime},
				Disks: []appliance.VMDisk{
					{ID: "d1", Alias: "web_Disk1", SizeBytes: 40 << 30, Format: "cow", CBT: true},
					{ID: "d2", Alias: "web_Disk2", SizeBytes: 1 << 40, Format: "raw", Hole: "raw: has to become qcow2 before incremental backup can be enabled"},
				}},
			{ID: "8f2b9c1e-0000-4000-8000-000000000002", Name: "mail", Manager: "prod", Status: "down"},
			{ID: "8f2b9c1e-0000-4000-8000-000000000003", Name: "old\x1b[31m\n", Status: "gone", Points: 1,
				Newest: &appliance.Newest{Point: "aa00000000000000", Time: at(-86400)}},
		},
		points: []api.Point{
			{Point: "3f1c9a0be4d2587a", VM: "web", Time: theTime, Mode: "incremental"}, {Point: "aa00000000000000", VM: "me@home", Time: theTime},
		},
		sessions: []appliance.Session{theSession(appliance.SessionRunning)},
		tasks:    []appliance.Task{backup[len(backup)-1]},
		fail:     map[string]error{},
		states: map[string][]appliance.Task{
			backupID: backup, instantID: sessionStates(instantID, appliance.TaskInstant, "export", "attach", "start"),
			migrateID: sessionStates(migrateID, appliance.TaskMigrate, "migrating"),
			releaseID: sessionStates(releaseID, appliance.TaskRelease, "release"),
			keepID:    keepStates(), restoreID: restoreStates(),
		},
	}
}

func theSession(state appliance.SessionState) appliance.Session {
	return appliance.Session{
		ID: sessionID, State: state, Manager: "prod", Point: "3f1c9a0be4d2587a", SourceVM: "web", VM: "web-restored",
		VMID: "8f2b9c1e-0000-4000-8000-000000000009", Domain: "holdfast-" + sessionID, DomainID: "d0", Export: "192.0.2.10:/s/" + sessionID,
		Created: at(300), Task: instantID,
		Disks: []appliance.SessionDisk{{Number: 0, ID: "d7", SizeBytes: 40 << 30, DataBytes: 12 << 30, DirtyBytes: 300 << 20, ReadBytes: 900 << 20, Format: "cow"}},
	}
}

// backupStates are what is seen of a backup that goes well.
func backupStates() []appliance.Task {
	t := appliance.Task{ID: backupID, Kind: appliance.TaskBackup, Subject: "web", Manager: "prod", State: appliance.TaskRunning, Started: theTime,
		Steps: []appliance.Step{{Name: "check", Started: theTime}}}
	states := []appliance.Task{t}
	t.Steps = []appliance.Step{{Name: "check", Started: theTime, Ended: atp(0.4)}, {Name: "read disks", Started: at(0.4), Detail: "disk 0 (web_Disk1)"}}
	t.Notes = []string{"Full: there is no earlier point."}
	t.Progress = &appliance.Progress{DoneBytes: 1 << 30, TotalBytes: 4 << 30, SecondsLeft: 30}
	states = append(states, t)
	t.Steps = []appliance.Step{t.Steps[0], {Name: "read disks", Started: at(0.4), Ended: atp(40.4)}, {Name: "commit", Started: at(40.4), Ended: atp(41)}}
	t.Progress, t.State, t.Ended = nil, appliance.TaskSucceeded, atp(41)
	t.Result = map[string]any{"point": "3f1c9a0be4d2587a", "incremental": false, "reason": "there is no earlier point", "read_bytes": int64(4 << 30),
		"dirty_bytes": int64(0), "new_bytes": int64(3 << 30), "known_bytes": int64(1 << 30), "stored_bytes": int64(1 << 30), "data_bytes": int64(4 << 30), "dedup_ratio": 4.0}
	return append(states, t)
}

// failed is the last state of a task that does not go well.
func failedState(t appliance.Task, p *appliance.Problem) appliance.Task {
	t.State, t.Ended, t.Result, t.Progress, t.Problem = appliance.TaskFailed, atp(3.2), nil, nil, p
	t.Steps = []appliance.Step{{Name: "start backup", Started: theTime, Ended: atp(3.2), Failed: true, Detail: "the engine's backup is initializing"}}
	return t
}

// keepStates are what is seen of the keeping of a session.
func keepStates() []appliance.Task {
	all := sessionStates(keepID, appliance.TaskKeep, "hold writes", "store what was written")
	all[len(all)-1].Result = map[string]any{"session": sessionID, "point": "9a8b7c6d5e4f3a2b", "vm": "web-restored",
		"written_bytes": 12.0 * (1 << 20), "new_bytes": 3.0 * (1 << 20), "known_bytes": 1.0 * (1 << 20), "stored_bytes": 2.0 * (1 << 20), "seconds_held": 1.5}
	return all
}

// sessionStates are what is seen of a session's task that goes well.
func restoreStates() []appliance.Task {
	states := sessionStates(restoreID, appliance.TaskRestore, "upload", "create", "start")
	for i := range states {
		states[i].Session = ""
	}
	states[len(states)-1].Result = map[string]any{"restore": "0e5708e00001", "vm": "web-restored", "vm_id": "8f2b9c1e-0000-4000-8000-000000000009", "point": "3f1c9a0be4d2587a", "disks": 1, "data_bytes": 1 << 30}
	return states
}

func sessionStates(id string, kind appliance.TaskKind, steps ...string) []appliance.Task {
	t := appliance.Task{ID: id, Kind: kind, Subject: "web-restored", Manager: "prod", Session: sessionID, State: appliance.TaskRunning, Started: at(300), Steps: []appliance.Step{}}
	states := []appliance.Task{t}
	for i, name := range steps {
		t.Steps = append(slices.Clone(t.Steps), appliance.Step{Name: name, Started: at(300 + float64(i)), Ended: atp(301 + float64(i))})
	}
	t.State, t.Ended, t.Result = appliance.TaskSucceeded, atp(300+float64(len(steps))), map[string]any{"session": sessionID}
	return append(states, t)
}
