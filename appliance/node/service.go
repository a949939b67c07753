package node

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/catalog"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/nfsd"
)

// NodeOptions make a Node.
type NodeOptions struct {
	Store   *chunkstore.Store
	State   string // folder of the catalog and of the sessions' files
	NFS     *nfsd.Server
	Allow   []string // networks that may mount sessions, as in the configuration
	Address string   // under which hosts reach the NFS server
	Port    uint16
	Logger  *slog.Logger
	Poll    time.Duration // between two looks at an engine; default 1 s
	Disk    disk.Disk     // of the catalog; default the real one
	// CollectEvery is the time from one collection that the node does by itself to the next; 0 for never.
	CollectEvery time.Duration
	// ScrubEvery is within what time every pack is read again to find damage; 0 for never. ScrubLimit is how fast that may
	// be, in bytes a second.
	ScrubEvery time.Duration
	ScrubLimit int64
}

// Node is the service behind the API: it backs VMs up and runs them from their backups.
type Node struct {
	o        NodeOptions
	log      *slog.Logger
	store    *chunkstore.Store
	catalog  *catalog.Catalog
	tasks    *task.Runner
	managers *managers
	exporter *exporter
	mu       sync.Mutex      // guards busy
	busy     map[string]work // by what it is done on: "vm/…", "session/…"
	// background is the life of work that belongs to no task; stop ends it.
	background context.Context
	stop       context.CancelFunc
	wg         sync.WaitGroup // work that belongs to no task: cleaning up after a kill
}

var _ api.Service = (*Node)(nil)

// work is what goes on with a VM or a session.
type work struct {
	task     string // its ID
	clearing bool   // the task has ended, and what it left is being cleared away
}

// NewNode opens the node's state, serves again what was served before it ended, and begins to clean up what was left.
func NewNode(ctx context.Context, o NodeOptions) (*Node, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Disk == nil {
		o.Disk = disk.OS{}
	}
	c, err := catalog.Open(o.Disk, filepath.Join(o.State, "catalog"))
	if err != nil {
		return nil, err
	}
	n := &Node{o: o, log: o.Logger, store: o.Store, catalog: c, busy: map[string]work{}}
	n.tasks = task.New(task.Options{Catalog: c, Logger: o.Logger})
	if n.managers, err = newManagers(n); err != nil {
		return nil, err
	}
	if n.exporter, err = newExporter(n); err != nil {
		return nil, err
	}
	n.background, n.stop = context.WithCancel(context.WithoutCancel(ctx))
	n.wg.Go(func() { n.watchClock(n.background) })
	n.wg.Go(func() { n.watchDamage(n.background) })
	if o.ScrubEvery > 0 {
		n.wg.Go(func() { n.scrubByItself(n.background) })
	}
	if o.CollectEvery > 0 {
		n.wg.Go(func() { n.collectByItself(n.background) })
	}
	if err := n.resume(ctx); err != nil {
		_ = n.Close(ctx)
		return nil, err
	}
	return n, nil
}

// Close ends all tasks, and stops serving without dropping anything: the next start goes on.
func (n *Node) Close(ctx context.Context) error {
	n.tasks.Close()
	if n.stop != nil {
		n.stop()
	}
	n.wg.Wait()
	n.managers.close(ctx)
	return n.exporter.shutdown()
}

// begin runs a task that is the only one on its object.
func (n *Node) begin(object string, t appliance.Task, f func(context.Context, *task.Handle) (map[string]any, error)) (appliance.Task, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.beginLocked(object, t, f)
}

// beginLocked is begin for those who hold n.mu.
func (n *Node) beginLocked(object string, t appliance.Task, f func(context.Context, *task.Handle) (map[string]any, error)) (appliance.Task, error) {
	if by, busy := n.busy[object]; busy && by.clearing {
		return t, errs.Text("start "+string(t.Kind)+" of", t.Subject, errs.Busy, "what task "+by.task+" left on the engine is not cleared away yet").
			WithNext("The node tries every minute: run the same command again when the engine answers.")
	} else if busy {
		return t, errs.Text("start "+string(t.Kind)+" of", t.Subject, errs.Busy, "task "+by.task+" works on it").
			WithNext("Wait for it: holdfast task watch " + by.task)
	}
	if t.ID == "" {
		t.ID = task.NewID()
	}
	n.busy[object] = work{task: t.ID}
	started, err := n.tasks.Start(t, func(ctx context.Context, h *task.Handle) (map[string]any, error) {
		defer func() {
			n.mu.Lock()
			if !n.busy[object].clearing {
				delete(n.busy, object)
			}
			n.mu.Unlock()
		}()
		return f(ctx, h)
	})
	if err != nil {
		delete(n.busy, object)
	}
	return started, err
}

// ListTasks implements api.Service.
func (n *Node) ListTasks(context.Context) ([]appliance.Task, error) {
	list, bad := n.tasks.List()
	for _, err := range bad {
		n.log.Error("a task cannot be read", "err", err)
	}
	return list, nil
}

// GetTask implements api.Service.
func (n *Node) GetTask(_ context.Context, id string) (appliance.Task, error) { return n.tasks.Get(id) }

// CancelTask implements api.Service.
func (n *Node) CancelTask(_ context.Context, id string) error { return n.tasks.Cancel(id) }

// WatchTask implements api.Service.
func (n *Node) WatchTask(ctx context.Context, id string, f func(appliance.Task) error) error {
	return n.tasks.Watch(ctx, id, f)
}
