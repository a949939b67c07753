package api

import (
	"context"
	"net/http"
	"net/url"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-backup/holdfast/appliance"
)

// List is an answer of several resources.
type List[T any] struct {
	Items []T `json:"items" nullable:"false"`
}

// Partial is an answer of several resources, some of which may be missing: Problems says why.
type Partial[T any] struct {
	Items    []T                 `json:"items" nullable:"false"`
	Problems []appliance.Problem `json:"problems" nullable:"false" doc:"why some may be missing; empty if none is"`
}

// InstantAnswer is what an instant restore begins with.
type InstantAnswer struct {
	Session appliance.Session `json:"session"`
	Task    appliance.Task    `json:"task"`
}

// RestoreAnswer is what a full restore begins with.
type RestoreAnswer struct {
	Restore appliance.Restore `json:"restore"`
	Task    appliance.Task    `json:"task"`
}

// RunSpec says how a VM is backed up: a BackupSpec without the VM, which is in the path.
type RunSpec struct {
	Manager  string `json:"manager,omitempty" doc:"needed only if two engines have a VM of that name"`
	Full     bool   `json:"full,omitempty" doc:"read everything, even if changes are known"`
	Strategy string `json:"strategy,omitempty" enum:"auto,cbt,transfer" doc:"auto: the best that the VM allows"`
	// KeepSnapshot is for transfer; cbt needs none.
	KeepSnapshot bool `json:"keep_snapshot,omitempty" doc:"with strategy transfer: keep the snapshot on the engine, so that the next backup reads only what changed since"`
}

// MigrateSpec asks for a session's disks to be moved to production storage.
type MigrateSpec struct {
	To string `json:"to,omitempty" doc:"name or ID of a storage domain; the one that was named before, if left out"`
}

// ReleaseSpec asks for a session to be taken apart.
type ReleaseSpec struct {
	Discard bool `json:"discard,omitempty" doc:"give up what was written since the restore, and the VM with it, if its disks have not been migrated"`
}

// KeepSpec asks for a restore point of what a session's disks are now.
type KeepSpec struct {
	Running bool `json:"running,omitempty" doc:"also while the VM is not down: its writes are held while its disks are read, and they are kept as after a power cut"`
}

// Status is how the node is.
type Status struct {
	Version string `json:"version" doc:"of the program"`
	Ready   bool   `json:"ready" doc:"whether it does its work yet"`
}

// Inputs and outputs of operations.
type (
	none   struct{}
	byName struct {
		Name string `path:"name" doc:"the manager's name"`
	}
	byVM struct {
		VM string `path:"vm" doc:"name or ID"`
	}
	byID struct {
		ID string `path:"id"`
	}
	answer[T any] struct{ Body T }
	made[T any]   struct {
		Location string `header:"Location" doc:"path of what was made"`
		Body     T
	}
)

func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }

// at returns the path of a resource.
func at(collection, id string) string { return Prefix + "/" + collection + "/" + url.PathEscape(id) }

// begun answers with a task that was begun.
func begun(t appliance.Task, err error) (*made[appliance.Task], error) {
	return &made[appliance.Task]{Location: at("tasks", t.ID), Body: t}, err
}

// all answers with a list.
func all[T any](items []T, err error) (*answer[List[T]], error) {
	return &answer[List[T]]{List[T]{some(items)}}, err
}

// some makes an empty list of none, as JSON tells them apart.
func some[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}

// get and post describe operations. The ID is what the operation does, and begins the texts of its errors.
func get(id, path, tag, summary string) huma.Operation {
	return huma.Operation{OperationID: id, Method: http.MethodGet, Path: path, Tags: []string{tag}, Summary: summary}
}

func post(id, path, tag, summary string, status int) huma.Operation {
	op := get(id, path, tag, summary)
	op.Method, op.DefaultStatus = http.MethodPost, status
	return op
}

func (s *server) routes() {
	s.managers()
	s.vms()
	s.points()
	s.sessions()
	s.restores()
	s.tasks()
	add(s, get("show-status", "/status", "node", "How the node is"), func(context.Context, *none) (*answer[Status], error) {
		return &answer[Status]{Status{Version: s.Version, Ready: s.Ready()}}, nil
	})
}

func (s *server) managers() {
	const tag = "managers"
	add(s, get("list-managers", "/managers", tag, "List the engines that the node knows"),
		func(ctx context.Context, _ *none) (*answer[List[appliance.Manager]], error) {
			return all(s.Service.ListManagers(ctx))
		})
	add(s, get("show-manager", "/managers/{name}", tag, "Show an engine; it is asked for its version"),
		func(ctx context.Context, in *byName) (*answer[appliance.Manager], error) {
			m, err := s.Service.GetManager(ctx, in.Name)
			return &answer[appliance.Manager]{m}, err
		})
	add(s, post("add-manager", "/managers", tag, "Add an engine", http.StatusCreated),
		func(ctx context.Context, in *struct{ Body ManagerSpec }) (*made[appliance.Manager], error) {
			m, err := s.Service.AddManager(ctx, in.Body)
			return &made[appliance.Manager]{Location: at("managers", m.Name), Body: m}, err
		})
	remove := get("remove-manager", "/managers/{name}", tag, "Forget an engine; its points stay")
	remove.Method = http.MethodDelete
	add(s, remove, func(ctx context.Context, in *byName) (*struct{}, error) {
		return nil, s.Service.RemoveManager(ctx, in.Name)
	})
}

func (s *server) vms() {
	const tag = "vms"
	add(s, get("list-vms", "/vms", tag, "List the VMs of all engines, and those that only have points"),
		func(ctx context.Context, _ *none) (*answer[Partial[appliance.VM]], error) {
			items, bad := s.Service.ListVMs(ctx)
			return &answer[Partial[appliance.VM]]{Partial[appliance.VM]{some(items), problems("list vms", bad)}}, nil
		})
	add(s, get("show-vm", "/vms/{vm}", tag, "Show a VM"), func(ctx context.Context, in *byVM) (*answer[appliance.VM], error) {
		vm, err := s.Service.GetVM(ctx, in.VM)
		return &answer[appliance.VM]{vm}, err
	})
	type backup struct {
		VM   string `path:"vm" doc:"name or ID"`
		Body *RunSpec
	}
	add(s, post("back-up-vm", "/vms/{vm}/backups", tag, "Back a VM up", http.StatusAccepted),
		func(ctx context.Context, in *backup) (*made[appliance.Task], error) {
			spec := BackupSpec{VM: in.VM}
			if b := in.Body; b != nil {
				spec.Manager, spec.Full, spec.Strategy, spec.KeepSnapshot = b.Manager, b.Full, b.Strategy, b.KeepSnapshot
			}
			return begun(s.Service.StartBackup(ctx, spec))
		})
}

func (s *server) points() {
	const tag = "points"
	type byPoint struct {
		Point string `path:"point" doc:"an ID or a unique prefix of one, or VM@latest, VM@2026-09-14T02, VM@-3d"`
	}
	type lock struct {
		Point string `path:"point" doc:"an ID or a unique prefix of one, or VM@latest, VM@2026-09-14T02, VM@-3d"`
		Body  LockSpec
	}
	add(s, get("list-points", "/points", tag, "List the restore points of all VMs"),
		func(ctx context.Context, _ *none) (*answer[Partial[Point]], error) {
			items, bad := s.Service.ListPoints(ctx)
			return &answer[Partial[Point]]{Partial[Point]{some(items), problems("list points", bad)}}, nil
		})
	remove := get("remove-point", "/points/{point}", tag, "Remove a restore point; others are not touched")
	remove.Method = http.MethodDelete
	add(s, remove, func(ctx context.Context, in *byPoint) (*answer[Point], error) {
		p, err := s.Service.RemovePoint(ctx, in.Point)
		return &answer[Point]{p}, err
	})
	add(s, post("lock-point", "/points/{point}/lock", tag, "Keep a restore point from being removed until a time", http.StatusOK),
		func(ctx context.Context, in *lock) (*answer[Point], error) {
			in.Body.Point = in.Point
			p, err := s.Service.LockPoint(ctx, in.Body)
			return &answer[Point]{p}, err
		})
	add(s, get("show-store", "/store", "store", "Show the store that the node holds"),
		func(ctx context.Context, _ *none) (*answer[StoreInfo], error) {
			i, err := s.Service.GetStore(ctx)
			return &answer[StoreInfo]{i}, err
		})
	type collect struct{ Body *CollectSpec }
	add(s, post("collect", "/store/gc", "store", "Give back the space of what no restore point needs", http.StatusAccepted),
		func(ctx context.Context, in *collect) (*made[appliance.Task], error) {
			var spec CollectSpec
			if in.Body != nil {
				spec = *in.Body
			}
			return begun(s.Service.StartCollect(ctx, spec))
		})
	add(s, post("confirm-clock", "/store/clock/confirm", "store", "Say that the machine's clock is right", http.StatusOK),
		func(ctx context.Context, _ *none) (*answer[StoreInfo], error) {
			i, err := s.Service.ConfirmClock(ctx)
			return &answer[StoreInfo]{i}, err
		})
}

func (s *server) sessions() {
	const tag = "sessions"
	add(s, post("start-instant-restore", "/restores/instant", tag, "Run a VM from a restore point", http.StatusAccepted),
		func(ctx context.Context, in *struct{ Body InstantSpec }) (*made[InstantAnswer], error) {
			session, t, err := s.Service.StartInstant(ctx, in.Body)
			return &made[InstantAnswer]{Location: at("tasks", t.ID), Body: InstantAnswer{session, t}}, err
		})
	add(s, get("list-sessions", "/sessions", tag, "List the instant restores"),
		func(ctx context.Context, _ *none) (*answer[List[appliance.Session]], error) {
			return all(s.Service.ListSessions(ctx))
		})
	add(s, get("show-session", "/sessions/{id}", tag, "Show an instant restore"),
		func(ctx context.Context, in *byID) (*answer[appliance.Session], error) {
			session, err := s.Service.GetSession(ctx, in.ID)
			return &answer[appliance.Session]{session}, err
		})
	type migrate struct {
		ID   string `path:"id"`
		Body MigrateSpec
	}
	add(s, post("migrate-session", "/sessions/{id}/migrate", tag, "Move its disks to production storage", http.StatusAccepted),
		func(ctx context.Context, in *migrate) (*made[appliance.Task], error) {
			return begun(s.Service.StartMigrate(ctx, in.ID, in.Body.To))
		})
	type release struct {
		ID   string `path:"id"`
		Body *ReleaseSpec
	}
	add(s, post("release-session", "/sessions/{id}/release", tag, "Take an instant restore apart", http.StatusAccepted),
		func(ctx context.Context, in *release) (*made[appliance.Task], error) {
			return begun(s.Service.StartRelease(ctx, in.ID, in.Body != nil && in.Body.Discard))
		})
	type keep struct {
		ID   string `path:"id"`
		Body *KeepSpec
	}
	add(s, post("keep-session", "/sessions/{id}/keep", tag, "Make a restore point of what its disks are now", http.StatusAccepted),
		func(ctx context.Context, in *keep) (*made[appliance.Task], error) {
			return begun(s.Service.StartKeep(ctx, in.ID, in.Body != nil && in.Body.Running))
		})
}

func (s *server) restores() {
	const tag = "restores"
	type asked struct{ Body RestoreSpec }
	add(s, post("plan-restore", "/restores/vm/plan", tag, "Say what a full restore would make, and change nothing", http.StatusOK),
		func(ctx context.Context, in *asked) (*answer[appliance.Restore], error) {
			r, err := s.Service.PlanRestore(ctx, in.Body)
			return &answer[appliance.Restore]{r}, err
		})
	add(s, post("start-restore", "/restores/vm", tag, "Copy a VM of a restore point back to an engine", http.StatusAccepted),
		func(ctx context.Context, in *asked) (*made[RestoreAnswer], error) {
			r, t, err := s.Service.StartRestore(ctx, in.Body)
			return &made[RestoreAnswer]{Location: at("tasks", t.ID), Body: RestoreAnswer{r, t}}, err
		})
	add(s, get("list-restores", "/restores/vm", tag, "List the full restores"),
		func(ctx context.Context, _ *none) (*answer[List[appliance.Restore]], error) {
			return all(s.Service.ListRestores(ctx))
		})
	add(s, get("show-restore", "/restores/vm/{id}", tag, "Show a full restore"),
		func(ctx context.Context, in *byID) (*answer[appliance.Restore], error) {
			r, err := s.Service.GetRestore(ctx, in.ID)
			return &answer[appliance.Restore]{r}, err
		})
}

func (s *server) tasks() {
	const tag = "tasks"
	add(s, get("list-tasks", "/tasks", tag, "List the tasks, newest first"),
		func(ctx context.Context, _ *none) (*answer[List[appliance.Task]], error) {
			return all(s.Service.ListTasks(ctx))
		})
	add(s, get("show-task", "/tasks/{id}", tag, "Show a task"),
		func(ctx context.Context, in *byID) (*answer[appliance.Task], error) {
			t, err := s.Service.GetTask(ctx, in.ID)
			return &answer[appliance.Task]{t}, err
		})
	type asked struct {
		Location string `header:"Location" doc:"path of the task"`
	}
	const cancel = "Ask a task to end; it does when what it began is undone"
	add(s, post("cancel-task", "/tasks/{id}/cancel", tag, cancel, http.StatusAccepted),
		func(ctx context.Context, in *byID) (*asked, error) {
			return &asked{at("tasks", in.ID)}, s.Service.CancelTask(ctx, in.ID)
		})
	s.events(tag)
}
