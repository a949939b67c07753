package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// get asks for a resource.
func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	var out T
	return out, c.call(ctx, http.MethodGet, path, nil, &out)
}

// post asks for something to be done.
func post[T any](ctx context.Context, c *Client, path string, in any) (T, error) {
	var out T
	return out, c.call(ctx, http.MethodPost, path, in, &out)
}

// at returns the path of a resource. A name that is no path element is refused here: it would name something else.
func at(collection, id string, more string) (string, error) {
	if id == "" || id == "." || id == ".." {
		return "", errs.Text("look up in "+collection, id, errs.Invalid, "this is no name or ID")
	}
	return "/" + collection + "/" + url.PathEscape(id) + more, nil
}

// AddManager implements api.Service.
func (c *Client) AddManager(ctx context.Context, s api.ManagerSpec) (appliance.Manager, error) {
	return post[appliance.Manager](ctx, c, "/managers", s)
}

// ListManagers implements api.Service.
func (c *Client) ListManagers(ctx context.Context) ([]appliance.Manager, error) {
	l, err := get[api.List[appliance.Manager]](ctx, c, "/managers")
	return l.Items, err
}

// GetManager implements api.Service.
func (c *Client) GetManager(ctx context.Context, name string) (m appliance.Manager, err error) {
	path, err := at("managers", name, "")
	if err != nil {
		return m, err
	}
	return get[appliance.Manager](ctx, c, path)
}

// RemoveManager implements api.Service.
func (c *Client) RemoveManager(ctx context.Context, name string) error {
	path, err := at("managers", name, "")
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodDelete, path, nil, nil)
}

// ListVMs implements api.Service.
func (c *Client) ListVMs(ctx context.Context) ([]appliance.VM, []error) {
	return list[appliance.VM](ctx, c, "/vms")
}

// ListPoints implements api.Service.
func (c *Client) ListPoints(ctx context.Context) ([]api.Point, []error) {
	return list[api.Point](ctx, c, "/points")
}

// RemovePoint implements api.Service.
func (c *Client) RemovePoint(ctx context.Context, point string) (p api.Point, err error) {
	path, err := at("points", point, "")
	if err != nil {
		return p, err
	}
	return p, c.call(ctx, http.MethodDelete, path, nil, &p)
}

// LockPoint implements api.Service.
func (c *Client) LockPoint(ctx context.Context, s api.LockSpec) (p api.Point, err error) {
	path, err := at("points", s.Point, "/lock")
	if err != nil {
		return p, err
	}
	s.Point = ""
	return post[api.Point](ctx, c, path, s)
}

// GetStore implements api.Service.
func (c *Client) GetStore(ctx context.Context) (api.StoreInfo, error) {
	return get[api.StoreInfo](ctx, c, "/store")
}

// StartCollect implements api.Service.
func (c *Client) StartCollect(ctx context.Context, s api.CollectSpec) (appliance.Task, error) {
	return post[appliance.Task](ctx, c, "/store/gc", s)
}

// ConfirmClock implements api.Service.
func (c *Client) ConfirmClock(ctx context.Context) (api.StoreInfo, error) {
	return post[api.StoreInfo](ctx, c, "/store/clock/confirm", nil)
}

func list[T any](ctx context.Context, c *Client, path string) ([]T, []error) {
	l, err := get[api.Partial[T]](ctx, c, path)
	if err != nil {
		return nil, []error{err}
	}
	var bad []error
	for _, p := range l.Problems {
		bad = append(bad, api.ErrorOf(p))
	}
	return l.Items, bad
}

// GetVM implements api.Service.
func (c *Client) GetVM(ctx context.Context, nameOrID string) (vm appliance.VM, err error) {
	path, err := at("vms", nameOrID, "")
	if err != nil {
		return vm, err
	}
	return get[appliance.VM](ctx, c, path)
}

// StartBackup implements api.Service.
func (c *Client) StartBackup(ctx context.Context, s api.BackupSpec) (t appliance.Task, err error) {
	path, err := at("vms", s.VM, "/backups")
	if err != nil {
		return t, err
	}
	return post[appliance.Task](ctx, c, path, api.RunSpec{Manager: s.Manager, Full: s.Full, Strategy: s.Strategy, KeepSnapshot: s.KeepSnapshot})
}

// StartInstant implements api.Service.
func (c *Client) StartInstant(ctx context.Context, s api.InstantSpec) (appliance.Session, appliance.Task, error) {
	a, err := post[api.InstantAnswer](ctx, c, "/restores/instant", s)
	return a.Session, a.Task, err
}

// ListSessions implements api.Service.
func (c *Client) ListSessions(ctx context.Context) ([]appliance.Session, error) {
	l, err := get[api.List[appliance.Session]](ctx, c, "/sessions")
	return l.Items, err
}

// GetSession implements api.Service.
func (c *Client) GetSession(ctx context.Context, id string) (s appliance.Session, err error) {
	path, err := at("sessions", id, "")
	if err != nil {
		return s, err
	}
	return get[appliance.Session](ctx, c, path)
}

// StartMigrate implements api.Service.
func (c *Client) StartMigrate(ctx context.Context, id, to string) (t appliance.Task, err error) {
	path, err := at("sessions", id, "/migrate")
	if err != nil {
		return t, err
	}
	return post[appliance.Task](ctx, c, path, api.MigrateSpec{To: to})
}

// StartRelease implements api.Service.
func (c *Client) StartRelease(ctx context.Context, id string, discard bool) (t appliance.Task, err error) {
	path, err := at("sessions", id, "/release")
	if err != nil {
		return t, err
	}
	return post[appliance.Task](ctx, c, path, api.ReleaseSpec{Discard: discard})
}

// StartKeep implements api.Service.
func (c *Client) StartKeep(ctx context.Context, id string, running bool) (t appliance.Task, err error) {
	path, err := at("sessions", id, "/keep")
	if err != nil {
		return t, err
	}
	return post[appliance.Task](ctx, c, path, api.KeepSpec{Running: running})
}

// PlanRestore implements api.Service.
func (c *Client) PlanRestore(ctx context.Context, s api.RestoreSpec) (appliance.Restore, error) {
	return post[appliance.Restore](ctx, c, "/restores/vm/plan", s)
}

// StartRestore implements api.Service.
func (c *Client) StartRestore(ctx context.Context, s api.RestoreSpec) (appliance.Restore, appliance.Task, error) {
	a, err := post[api.RestoreAnswer](ctx, c, "/restores/vm", s)
	return a.Restore, a.Task, err
}

// ListRestores implements api.Service.
func (c *Client) ListRestores(ctx context.Context) ([]appliance.Restore, error) {
	l, err := get[api.List[appliance.Restore]](ctx, c, "/restores/vm")
	return l.Items, err
}

// GetRestore implements api.Service.
func (c *Client) GetRestore(ctx context.Context, id string) (r appliance.Restore, err error) {
	path, err := at("restores/vm", id, "")
	if err != nil {
		return r, err
	}
	return get[appliance.Restore](ctx, c, path)
}

// ListTasks implements api.Service.
func (c *Client) ListTasks(ctx context.Context) ([]appliance.Task, error) {
	l, err := get[api.List[appliance.Task]](ctx, c, "/tasks")
	return l.Items, err
}

// GetTask implements api.Service.
func (c *Client) GetTask(ctx context.Context, id string) (t appliance.Task, err error) {
	path, err := at("tasks", id, "")
	if err != nil {
		return t, err
	}
	return get[appliance.Task](ctx, c, path)
}

// CancelTask implements api.Service.
func (c *Client) CancelTask(ctx context.Context, id string) error {
	path, err := at("tasks", id, "/cancel")
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, path, nil, nil)
}

// Status asks how the node is.
func (c *Client) Status(ctx context.Context) (api.Status, error) {
	return get[api.Status](ctx, c, "/status")
}
