// Package task runs what an administrator asked for in the background, shows how far it is, and keeps the result.
//
// Terms. A task is one thing asked for (appliance.Task). A Handle is how the code that does it tells of steps, progress
// and notes. A watcher is told of every change.
//
// Invariants:
//
//  1. A task's beginning, each of its steps and its end are in the catalog before anybody is told of them; progress is not,
//     it is only worth something while it is fresh.
//  2. A task that was running when the node ended or was killed is found by Interrupted at the next start, and is never
//     left "running".
//  3. Watching costs bounded memory: a watcher that does not keep up loses intermediate states, never the last one.
//  4. Every task's goroutine is waited for by Close, after its context was cancelled.
//
// What went wrong is kept as an appliance.Problem: ProblemOf turns an error into one.
package task

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/catalog"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Options make a Runner.
type Options struct {
	Catalog *catalog.Catalog
	Logger  *slog.Logger     // nil: silent
	Now     func() time.Time // nil: time.Now
}

// Runner runs tasks.
type Runner struct {
	o      Options
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	mu     sync.Mutex // guards the rest
	live   map[string]*Handle
	watch  map[chan struct{}]string // wake-up of each watcher, and the task it watches ("" for all)
}

// New returns a Runner.
func New(o Options) *Runner {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	return &Runner{o: o, ctx: ctx, cancel: cancel, live: map[string]*Handle{}, watch: map[chan struct{}]string{}}
}

// errEnding is why tasks are cancelled when the node ends.
var errEnding = errors.New("the node is ending")

// Ending tells whether a task's context ended because the node ends, and not because somebody gave the task up: what can
// go on at the next start need not be undone.
func Ending(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errEnding) }

// Close cancels all tasks and waits for them. One that did not come to its end is among the next start's Interrupted.
func (r *Runner) Close() {
	r.cancel(errEnding)
	r.wg.Wait()
}

// NewID draws an ID: 12 hexadecimal digits.
func NewID() string {
	var b [6]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Handle is a running task, as the code that does it sees it. Its methods may be called concurrently.
type Handle struct {
	r      *Runner
	cancel context.CancelFunc
	done   chan struct{}
	mu     sync.Mutex // guards the rest
	t      appliance.Task
	since  time.Time // when the progress began
	failed bool      // a step was said to have failed
}

// ID returns the task's ID.
func (h *Handle) ID() string { return h.t.ID }

// Start keeps a new task and runs f in the background. What f returns becomes the task's result; its error, the task's
// problem. f's context ends when the task is cancelled or the node ends.
func (r *Runner) Start(t appliance.Task, f func(ctx context.Context, h *Handle) (map[string]any, error)) (appliance.Task, error) {
	if r.ctx.Err() != nil {
		return t, errs.Text("start task", string(t.Kind), errs.Canceled, "the node is about to end")
	}
	if t.ID == "" {
		t.ID = NewID()
	}
	t.State, t.Started, t.Steps = appliance.TaskRunning, r.o.Now().UTC(), []appliance.Step{}
	if err := r.o.Catalog.Put(catalog.Tasks, t.ID, t); err != nil {
		return t, err
	}
	ctx, cancel := context.WithCancel(r.ctx)
	h := &Handle{r: r, cancel: cancel, done: make(chan struct{}), t: t}
	r.mu.Lock()
	r.live[t.ID] = h
	r.mu.Unlock()
	r.wake(t.ID)
	r.wg.Go(func() {
		defer cancel()
		result, err := guard(ctx, h, f)
		h.end(ctx, result, err)
	})
	return t, nil
}

// guard turns a panic of the task's code into an error: one task must not end the node, which serves running VMs.
func guard(ctx context.Context, h *Handle, f func(context.Context, *Handle) (map[string]any, error)) (result map[string]any, err error) {
	defer func() {
		if p := recover(); p != nil {
			h.r.o.Logger.Error("a task panicked", "task", h.t.ID, "panic", p)
			err = errs.Text("run task", h.t.ID, errs.Bug, fmt.Sprint("panic: ", p)).WithNext("This is a bug of ours: please report it with the node's log.")
		}
	}()
	return f(ctx, h)
}

// end keeps the outcome and lets go of the task.
func (h *Handle) end(ctx context.Context, result map[string]any, err error) {
	h.mu.Lock()
	now := h.r.o.Now().UTC()
	if err != nil && Ending(ctx) {
		h.keep()
		h.leave()
		return
	}
	h.t.Ended, h.t.Result, h.t.State = &now, result, appliance.TaskSucceeded
	if err != nil {
		h.t.State, h.t.Problem = appliance.TaskFailed, ProblemOf(err)
		if errs.Is(err, errs.Canceled) && ctx.Err() != nil { // where exactly that met the work is nothing to tell
			h.t.State, h.t.Problem.Cause = appliance.TaskCanceled, wasCanceled
		}
	}
	h.closeStep(now, err != nil && !h.failed)
	h.t.Progress = nil
	h.keep()
	t := h.t
	h.r.o.Logger.Info("task ended", "task", t.ID, "kind", t.Kind, "vm", t.Subject, "state", t.State, "err", err)
	h.leave()
}

// leave takes the task from among those that run. h.mu is held, and let go of.
func (h *Handle) leave() {
	id := h.t.ID
	h.mu.Unlock()
	h.r.mu.Lock()
	delete(h.r.live, id)
	h.r.mu.Unlock()
	close(h.done)
	h.r.wake(id)
}

// keep writes the task down. h.mu is held. A task that cannot be written down goes on: what it does matters more than
// the telling of it.
func (h *Handle) keep() {
	if err := h.r.o.Catalog.Put(catalog.Tasks, h.t.ID, h.t); err != nil {
		h.r.o.Logger.Error("a task cannot be written down", "task", h.t.ID, "err", err)
	}
}

func (h *Handle) closeStep(now time.Time, failed bool) {
	if n := len(h.t.Steps); n > 0 && h.t.Steps[n-1].Ended == nil {
		h.t.Steps[n-1].Ended, h.t.Steps[n-1].Failed = &now, failed
	}
}

// Step ends the step before and begins one.
func (h *Handle) Step(name string) {
	h.mu.Lock()
	now := h.r.o.Now().UTC()
	h.closeStep(now, false)
	h.t.Steps = append(h.t.Steps, appliance.Step{Name: name, Started: now})
	h.t.Progress, h.since = nil, now
	h.keep()
	h.mu.Unlock()
	h.r.wake(h.t.ID)
}

// StepFailed ends the step that runs as the one that failed: steps that follow undo what was begun.
func (h *Handle) StepFailed() {
	h.mu.Lock()
	h.closeStep(h.r.o.Now().UTC(), true)
	h.t.Progress, h.failed = nil, true
	h.keep()
	h.mu.Unlock()
	h.r.wake(h.t.ID)
}

// Detail says something of the step that runs.
func (h *Handle) Detail(text string) {
	h.mu.Lock()
	if n := len(h.t.Steps); n > 0 {
		h.t.Steps[n-1].Detail = text
	}
	h.mu.Unlock()
	h.r.wake(h.t.ID)
}

// Note keeps what a person should know.
func (h *Handle) Note(text string) {
	h.mu.Lock()
	h.t.Notes = append(h.t.Notes, text)
	h.keep()
	h.mu.Unlock()
	h.r.wake(h.t.ID)
}

// Progress says how far the step is. The time left is worked out here, from the pace since the step began, once there
// is something to go by: a hundredth, or a minute.
func (h *Handle) Progress(p appliance.Progress) {
	h.mu.Lock()
	spent := h.r.o.Now().Sub(h.since)
	soon := spent > 2*time.Second && p.DoneBytes >= p.TotalBytes/100
	if p.DoneBytes > 0 && p.TotalBytes > p.DoneBytes && (soon || spent > time.Minute) {
		p.SecondsLeft = spent.Seconds() * float64(p.TotalBytes-p.DoneBytes) / float64(p.DoneBytes)
	}
	h.t.Progress = &p
	h.mu.Unlock()
	h.r.wake(h.t.ID)
}

// snapshot returns the task as it is now; the caller may keep it.
func (h *Handle) snapshot() appliance.Task {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.t
	t.Steps, t.Notes = slices.Clone(t.Steps), slices.Clone(t.Notes)
	if t.Progress != nil {
		p := *t.Progress
		t.Progress = &p
	}
	return t
}

// Get returns a task, running or ended.
func (r *Runner) Get(id string) (appliance.Task, error) {
	r.mu.Lock()
	h := r.live[id]
	r.mu.Unlock()
	if h != nil {
		return h.snapshot(), nil
	}
	var t appliance.Task
	return t, r.o.Catalog.Get(catalog.Tasks, id, &t)
}

// List returns all tasks, newest first.
func (r *Runner) List() ([]appliance.Task, []error) {
	docs, bad := catalog.List[appliance.Task](r.o.Catalog, catalog.Tasks)
	for i := range docs {
		if t, err := r.Get(docs[i].ID); err == nil {
			docs[i] = t
		}
	}
	sort.SliceStable(docs, func(i, j int) bool { return docs[i].Started.After(docs[j].Started) })
	return docs, bad
}

// Cancel asks a running task to end. It ends when what it began is undone. errs.Stale if it has ended already.
func (r *Runner) Cancel(id string) error {
	r.mu.Lock()
	h := r.live[id]
	r.mu.Unlock()
	if h == nil {
		if _, err := r.Get(id); err != nil {
			return err
		}
		return errs.Text("cancel task", id, errs.Stale, "it has ended already")
	}
	h.cancel()
	return nil
}

// Wait waits for a task to end and returns it.
func (r *Runner) Wait(ctx context.Context, id string) (appliance.Task, error) {
	r.mu.Lock()
	h := r.live[id]
	r.mu.Unlock()
	if h != nil {
		select {
		case <-h.done:
		case <-ctx.Done():
			return h.snapshot(), ctx.Err()
		}
	}
	return r.Get(id)
}

// wake tells the watchers of a task, and those of all tasks.
func (r *Runner) wake(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c, of := range r.watch {
		if of == "" || of == id {
			select {
			case c <- struct{}{}:
			default: // it has not looked since the last time, and will see this change as well
			}
		}
	}
}

// Watch calls f with a task now and after each change, until f returns an error, the task has ended or ctx has.
func (r *Runner) Watch(ctx context.Context, id string, f func(appliance.Task) error) error {
	c := make(chan struct{}, 1)
	r.mu.Lock()
	r.watch[c] = id
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.watch, c)
		r.mu.Unlock()
	}()
	for {
		t, err := r.Get(id)
		if err != nil {
			return err
		}
		if err := f(t); err != nil || t.State.Ended() {
			return err
		}
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Interrupted returns the tasks that were running when the node ended, for their owners to finish: each must be given
// to Settle.
func (r *Runner) Interrupted() []appliance.Task {
	docs, _ := catalog.List[appliance.Task](r.o.Catalog, catalog.Tasks)
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(docs, func(t appliance.Task) bool { return t.State.Ended() || r.live[t.ID] != nil })
}

// Settle keeps the outcome of an interrupted task.
func (r *Runner) Settle(t appliance.Task, state appliance.TaskState, p *appliance.Problem) error {
	now := r.o.Now().UTC()
	t.State, t.Ended, t.Problem, t.Progress = state, &now, p, nil
	if n := len(t.Steps); n > 0 && t.Steps[n-1].Ended == nil {
		t.Steps[n-1].Ended, t.Steps[n-1].Failed = &now, state != appliance.TaskSucceeded
	}
	err := r.o.Catalog.Put(catalog.Tasks, t.ID, t)
	r.wake(t.ID)
	return err
}
