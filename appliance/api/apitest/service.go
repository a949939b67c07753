// Package apitest has a service for the tests of those who serve one or ask one: it answers what a test has put into it,
// and remembers what it was asked.
package apitest

import (
	"context"
	"fmt"
	"sync"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Service is an api.Service that does nothing. Its fields are set before it is used; Fail and Change may be called while
// it is.
type Service struct {
	Managers []appliance.Manager
	VMs      []appliance.VM
	Points   []api.Point
	Store    api.StoreInfo
	Sessions []appliance.Session
	Restores []appliance.Restore
	Partial  []error // what stands beside VMs and points
	Panic    bool    // every call panics
	// Hold, if not nil, is waited for by every call but watches, or until the call's context ends.
	Hold <-chan struct{}

	mu      sync.Mutex // guards the rest
	tasks   []appliance.Task
	changed chan struct{} // closed and replaced at each change
	err     error
	asked   []string
}

var _ api.Service = (*Service)(nil)

// Fail makes every call fail from now on; nil ends that.
func (s *Service) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	s.wake()
}

// Change adds a task, or changes the one of that ID, and tells the watchers.
func (s *Service) Change(t appliance.Task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.wake()
	for i := range s.tasks {
		if s.tasks[i].ID == t.ID {
			s.tasks[i] = t
			return
		}
	}
	s.tasks = append(s.tasks, t)
}

// wake tells the watchers. s.mu is held.
func (s *Service) wake() {
	if s.changed != nil {
		close(s.changed)
	}
	s.changed = make(chan struct{})
}

// Asked returns what was asked, a line for each call: the method's name and its arguments.
func (s *Service) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.asked...)
}

// ask remembers a call, and waits, panics or fails as the test wants it.
func (s *Service) ask(ctx context.Context, call string, args ...any) error {
	s.mu.Lock()
	line := call
	for _, a := range args {
		line += fmt.Sprintf(" %+v", a)
	}
	s.asked = append(s.asked, line)
	err := s.err
	s.mu.Unlock()
	if s.Panic {
		panic("as the test wants it")
	}
	if s.Hold != nil {
		select {
		case <-s.Hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

// find returns the first item that fits.
func find[T any](what, name string, items []T, is func(T) bool) (T, error) {
	for _, it := range items {
		if is(it) {
			return it, nil
		}
	}
	var none T
	return none, errs.Text("find "+what, name, errs.NotFound, "there is none").WithNext("List them.")
}

// AddManager implements api.Service.
func (s *Service) AddManager(ctx context.Context, m api.ManagerSpec) (appliance.Manager, error) {
	return appliance.Manager{Name: m.Name, URL: m.URL, User: m.User, Fingerprint: m.Fingerprint}, s.ask(ctx, "AddManager", m)
}

// ListManagers implements api.Service.
func (s *Service) ListManagers(ctx context.Context) ([]appliance.Manager, error) {
	return s.Managers, s.ask(ctx, "ListManagers")
}

// GetManager implements api.Service.
func (s *Service) GetManager(ctx context.Context, name string) (appliance.Manager, error) {
	if err := s.ask(ctx, "GetManager", name); err != nil {
		return appliance.Manager{}, err
	}
	return find("manager", name, s.Managers, func(m appliance.Manager) bool { return m.Name == name })
}

// RemoveManager implements api.Service.
func (s *Service) RemoveManager(ctx context.Context, name string) error {
	return s.ask(ctx, "RemoveManager", name)
}

// ListVMs implements api.Service.
func (s *Service) ListVMs(ctx context.Context) ([]appliance.VM, []error) {
	if err := s.ask(ctx, "ListVMs"); err != nil {
		return nil, []error{err}
	}
	return s.VMs, s.Partial
}

// GetVM implements api.Service.
func (s *Service) GetVM(ctx context.Context, nameOrID string) (appliance.VM, error) {
	if err := s.ask(ctx, "GetVM", nameOrID); err != nil {
		return appliance.VM{}, err
	}
	return find("vm", nameOrID, s.VMs, func(v appliance.VM) bool { return v.Name == nameOrID || v.ID == nameOrID })
}

// ListPoints implements api.Service.
func (s *Service) ListPoints(ctx context.Context) ([]api.Point, []error) {
	if err := s.ask(ctx, "ListPoints"); err != nil {
		return nil, []error{err}
	}
	return s.Points, s.Partial
}

// RemovePoint implements api.Service.
func (s *Service) RemovePoint(ctx context.Context, point string) (api.Point, error) {
	if err := s.ask(ctx, "RemovePoint", point); err != nil {
		return api.Point{}, err
	}
	return find("point", point, s.Points, func(p api.Point) bool { return p.Point == point })
}

// LockPoint implements api.Service.
func (s *Service) LockPoint(ctx context.Context, l api.LockSpec) (api.Point, error) {
	if err := s.ask(ctx, "LockPoint", l); err != nil {
		return api.Point{}, err
	}
	p, err := find("point", l.Point, s.Points, func(p api.Point) bool { return p.Point == l.Point })
	p.LockedUntil = &l.Until
	return p, err
}

// GetStore implements api.Service.
func (s *Service) GetStore(ctx context.Context) (api.StoreInfo, error) {
	return s.Store, s.ask(ctx, "GetStore")
}

// StartCollect implements api.Service.
func (s *Service) StartCollect(ctx context.Context, c api.CollectSpec) (appliance.Task, error) {
	return s.start(ctx, appliance.TaskCollect, "", "StartCollect", c)
}

// ConfirmClock implements api.Service.
func (s *Service) ConfirmClock(ctx context.Context) (api.StoreInfo, error) {
	return s.Store, s.ask(ctx, "ConfirmClock")
}

// StartBackup implements api.Service.
func (s *Service) StartBackup(ctx context.Context, b api.BackupSpec) (appliance.Task, error) {
	return s.start(ctx, appliance.TaskBackup, b.VM, "StartBackup", b)
}

// StartInstant implements api.Service.
func (s *Service) StartInstant(ctx context.Context, i api.InstantSpec) (appliance.Session, appliance.Task, error) {
	t, err := s.start(ctx, appliance.TaskInstant, i.Name, "StartInstant", i)
	session := appliance.Session{ID: "session-1", State: appliance.SessionPrepare, Point: i.Point, VM: i.Name, Task: t.ID}
	session.Disks = []appliance.SessionDisk{}
	return session, t, err
}

// PlanRestore implements api.Service.
func (s *Service) PlanRestore(ctx context.Context, r api.RestoreSpec) (appliance.Restore, error) {
	return planned(r), s.ask(ctx, "PlanRestore", r)
}

func planned(r api.RestoreSpec) appliance.Restore {
	return appliance.Restore{State: appliance.RestorePrepare, Point: r.Point, VM: r.Name, Disks: []appliance.RestoreDisk{}, NICs: []appliance.RestoreNIC{}}
}

// StartRestore implements api.Service.
func (s *Service) StartRestore(ctx context.Context, r api.RestoreSpec) (appliance.Restore, appliance.Task, error) {
	t, err := s.start(ctx, appliance.TaskRestore, r.Name, "StartRestore", r)
	x := planned(r)
	x.ID, x.Task = "restore-1", t.ID
	return x, t, err
}

// ListRestores implements api.Service.
func (s *Service) ListRestores(ctx context.Context) ([]appliance.Restore, error) {
	return s.Restores, s.ask(ctx, "ListRestores")
}

// GetRestore implements api.Service.
func (s *Service) GetRestore(ctx context.Context, id string) (appliance.Restore, error) {
	if err := s.ask(ctx, "GetRestore", id); err != nil {
		return appliance.Restore{}, err
	}
	return find("restore", id, s.Restores, func(r appliance.Restore) bool { return r.ID == id })
}

// StartMigrate implements api.Service.
func (s *Service) StartMigrate(ctx context.Context, id, to string) (appliance.Task, error) {
	return s.start(ctx, appliance.TaskMigrate, id, "StartMigrate", id, to)
}

// StartRelease implements api.Service.
func (s *Service) StartRelease(ctx context.Context, id string, discard bool) (appliance.Task, error) {
	return s.start(ctx, appliance.TaskRelease, id, "StartRelease", id, discard)
}

// StartKeep implements api.Service.
func (s *Service) StartKeep(ctx context.Context, id string, running bool) (appliance.Task, error) {
	return s.start(ctx, appliance.TaskKeep, id, "StartKeep", id, running)
}

// start adds a running task.
func (s *Service) start(ctx context.Context, kind appliance.TaskKind, subject, call string, args ...any) (appliance.Task, error) {
	if err := s.ask(ctx, call, args...); err != nil {
		return appliance.Task{}, err
	}
	s.mu.Lock()
	id := fmt.Sprintf("task-%d", len(s.tasks)+1)
	s.mu.Unlock()
	t := appliance.Task{ID: id, Kind: kind, Subject: subject, State: appliance.TaskRunning, Steps: []appliance.Step{}}
	s.Change(t)
	return t, nil
}

// ListSessions implements api.Service.
func (s *Service) ListSessions(ctx context.Context) ([]appliance.Session, error) {
	return s.Sessions, s.ask(ctx, "ListSessions")
}

// GetSession implements api.Service.
func (s *Service) GetSession(ctx context.Context, id string) (appliance.Session, error) {
	if err := s.ask(ctx, "GetSession", id); err != nil {
		return appliance.Session{}, err
	}
	return find("session", id, s.Sessions, func(v appliance.Session) bool { return v.ID == id })
}

// ListTasks implements api.Service.
func (s *Service) ListTasks(ctx context.Context) ([]appliance.Task, error) {
	err := s.ask(ctx, "ListTasks")
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]appliance.Task(nil), s.tasks...), err
}

// GetTask implements api.Service.
func (s *Service) GetTask(ctx context.Context, id string) (appliance.Task, error) {
	if err := s.ask(ctx, "GetTask", id); err != nil {
		return appliance.Task{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return find("task", id, s.tasks, func(t appliance.Task) bool { return t.ID == id })
}

// CancelTask implements api.Service.
func (s *Service) CancelTask(ctx context.Context, id string) error {
	return s.ask(ctx, "CancelTask", id)
}

// WatchTask implements api.Service.
func (s *Service) WatchTask(ctx context.Context, id string, f func(appliance.Task) error) error {
	for {
		s.mu.Lock()
		if s.changed == nil {
			s.wake()
		}
		changed, err := s.changed, s.err
		t, missing := find("task", id, s.tasks, func(t appliance.Task) bool { return t.ID == id })
		s.mu.Unlock()
		if err == nil {
			err = missing
		}
		if err != nil {
			return err
		}
		if err := f(t); err != nil || t.State.Ended() {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
