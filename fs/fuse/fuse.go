// Package fuse shows an fs.Tree through the local kernel: files to copy, images to loop-mount, a session's folder to
// look into. It is the only package that knows go-fuse.
//
// Terms. A mount is one tree at one folder of this machine. A stale mount is one whose serving process is gone: the
// kernel answers ENOTCONN until somebody takes it away. A clean unmount is refused while a file is open; a lazy one takes
// the tree out of sight at once and lets those who have files open finish.
//
// Rules:
//
//  1. Inode numbers are fs.IDs. Owner, mode bits and used space are what the tree says, nothing is made up.
//  2. A status becomes an errno by one table. fs.StatusDelay has no errno that programs understand, so operations that
//     change no name are repeated until Options.DelayLimit, then fail with EIO. An interruption of the caller ends the
//     context of the call into the tree; one more try of at most a second decides between the answer and EINTR, since
//     most signals mean nothing for a read. A change of names is never interrupted. The kernel tells of an interruption
//     only for what a program itself waits for: a buffered read goes on as read-ahead, and only the program is let go.
//  3. A write is durable after fsync, or at once when the file was opened with O_SYNC or O_DSYNC. Names are durable when
//     the call returns: the tree promises that.
//  4. Nothing outside the tree decides what is read-only: a node without the interface for a change answers EROFS.
//  5. Mount takes away a stale mount of ours, and nothing else; Unmount takes away its own mount, and nothing else,
//     whatever was mounted or unmounted at that folder in between.
//  6. The serving process never uses its own mount (it could wait for itself). A tree that panics costs its caller an
//     EIO and raises Events.Panic, no more.
//  7. A node removed while open answers ESTALE, as over NFS: trees forget what has no name.
//
// Caching. With ImmutableTree the kernel keeps names, attributes and bytes (1 h; names it did not find 1 s). Otherwise
// names and attributes are kept 1 s, names not found not at all, and files that can be written are not cached, since NFS
// clients may write the same session.
//
// Concurrency: the kernel's requests run concurrently, each in its own goroutine, at most 64 in the background.
//
// Tests run the real kernel against the tree of fs/fstest, in a mount namespace of their own. Whatever touches the mount
// runs in a child process (see https://github.com/hanwen/go-fuse/blob/v2.12.1/fs/api.go, "Deadlocks").
package fuse

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// name marks our mounts in the mount table: type fuse.holdfast, source holdfast.
const name = "holdfast"

const (
	maxRequestBytes   = 1 << 20   // the most Linux sends in one request; doubles throughput against the default of 128 KiB
	maxInflightBytes  = 256 << 20 // bounds go-fuse's request buffers
	maxBackground     = 64
	immutableTimeout  = time.Hour
	mutableTimeout    = time.Second
	defaultDelayLimit = time.Minute // as long as an oVirt host's soft NFS mount waits before it gives up
)

// Options says what to mount where.
type Options struct {
	Tree fs.Tree
	// Dir is an existing, empty folder.
	Dir string
	// AllowOther lets other users than the one who mounts use the tree, as far as owner and mode bits allow.
	AllowOther bool
	// ReadOnly refuses all changes, whatever the tree can do.
	ReadOnly bool
	// ImmutableTree promises that nothing in the tree ever changes, so that the kernel may cache for long.
	ImmutableTree bool
	// DelayLimit is how long an operation is repeated while the tree answers fs.StatusDelay; 0 means a minute.
	DelayLimit time.Duration
	// Logger may be nil: silent.
	Logger *slog.Logger
	Events Events
}

// Events are told of what a person should know. Nil fields are left out. They must not use the mount and must return
// soon.
type Events struct {
	// Panic: the tree, or this package, panicked in a request. It is a bug of ours; the mount goes on.
	Panic func(value any, stack []byte)
	// Recovered: a stale mount of an earlier process was taken away from dir.
	Recovered func(dir string)
}

// Mount is a tree being shown. Unmount it when it is no longer wanted.
type Mount struct {
	dir    string
	device string // "major:minor" of the mount: tells it from any other at the same folder
	log    *slog.Logger
	done   chan struct{}
	mu     sync.Mutex // serializes Unmount
}

// New mounts and serves until Unmount, or until somebody else unmounts. ctx bounds the mounting only. Errors: errs.Invalid
// and errs.NotFound for a folder that cannot be used, errs.Busy when it is in use, errs.Denied and errs.Unsupported when
// this machine does not let us mount.
func New(ctx context.Context, o Options) (*Mount, error) {
	const op = "mount"
	if o.Tree == nil {
		return nil, errs.Text(op, o.Dir, errs.Invalid, "there is no tree to show")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.DelayLimit == 0 {
		o.DelayLimit = defaultDelayLimit
	}
	dir, err := cleanDir(o.Dir)
	if err != nil {
		return nil, err
	}
	if err := checkMachine(dir, o.AllowOther); err != nil {
		return nil, err
	}
	if err := freeDir(ctx, dir, o); err != nil {
		return nil, err
	}
	server, err := newServer(dir, o)
	if err != nil {
		return nil, mountError(dir, err)
	}
	m := &Mount{dir: dir, log: o.Logger.With("dir", dir), done: make(chan struct{})}
	go func() {
		defer close(m.done)
		server.Serve()
	}()
	if err := server.WaitMount(); err != nil {
		m.detach()
		<-m.done
		return nil, errs.New(op, dir, errs.Bug, err)
	}
	at, err := topMount(dir)
	if err != nil || !at.ours() {
		m.detach()
		return nil, errs.Text(op, dir, errs.Bug, "the mount is not in the mount table")
	}
	m.device = at.device
	m.log.Info("mounted", "op", op, "readonly", o.ReadOnly)
	return m, nil
}

// newServer mounts and answers the kernel's first request.
func newServer(dir string, o Options) (*gofuse.Server, error) {
	root := o.Tree.Root()
	v := &view{
		tree: o.Tree, readOnly: o.ReadOnly, immutable: o.ImmutableTree, delayLimit: o.DelayLimit, log: o.Logger,
	}
	names, missing := mutableTimeout, time.Duration(0)
	if o.ImmutableTree {
		names, missing = immutableTimeout, time.Second
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	var options []string
	if o.ReadOnly {
		flags |= unix.MS_RDONLY
		if !isRoot() {
			options = append(options, "ro") // for fusermount3; mount(2) takes the flag
		}
	}
	if o.AllowOther {
		options = append(options, "default_permissions")
	}
	raw := gofs.NewNodeFS(&node{view: v, n: root}, &gofs.Options{
		EntryTimeout: &names, AttrTimeout: &names, NegativeTimeout: &missing,
		NullPermissions: true, // mode 0 is what the tree said
		RootStableAttr:  &gofs.StableAttr{Ino: uint64(root.ID())},
	})
	return gofuse.NewServer(raw, dir, &gofuse.MountOptions{
		Name: name, FsName: name, Options: options,
		AllowOther: o.AllowOther, DirectMountStrict: isRoot(), DirectMountFlags: flags,
		MaxWrite: maxRequestBytes, MaxReadAhead: maxRequestBytes, MaxBackground: maxBackground,
		MaxInflightRequestBytes: maxInflightBytes, DisableXAttrs: true, EnableSymlinkCaching: o.ImmutableTree,
		DisableSplice: true, // our bytes lie in memory; a reply of 1 MiB does not fit into a pipe and logs that each time
		// Files that are not cached can still be mapped. Not CAP_ASYNC_DIO, though it is faster above 1 MiB: a program
		// then waits where not even SIGKILL reaches it.
		ExtraCapabilities: gofuse.CAP_DIRECT_IO_ALLOW_MMAP,
		Logger:            slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn),
		PanicHandler:      func(value any) gofuse.Status { return panicked(o, value) },
	})
}

// panicked raises the alarm and answers EIO.
func panicked(o Options, value any) gofuse.Status {
	stack := debug.Stack()
	o.Logger.Error("panic while serving a request", "op", "serve", "dir", o.Dir, "panic", value, "stack", string(stack))
	if o.Events.Panic != nil {
		o.Events.Panic(value, stack)
	}
	return gofuse.EIO
}

// Dir returns the folder, absolute.
func (m *Mount) Dir() string { return m.dir }

// Done is closed when the last request is answered: the tree is unmounted, in every mount namespace, and nobody has a file
// of it open. A process that ends before cuts those off who still use it.
func (m *Mount) Done() <-chan struct{} { return m.done }

// Wait waits for Done.
func (m *Mount) Wait() { <-m.done }

// cleanTries and cleanPause give programs that are just closing their files the time to do so.
const (
	cleanTries = 5
	cleanPause = 20 * time.Millisecond
	settleTime = 3 * time.Second
)

// Unmount takes the tree away from its folder. While somebody uses it, it does so lazily and logs that: the folder is
// free on return, Done follows when the last file is closed. On a mount that is gone it does nothing.
func (m *Mount) Unmount() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var busy error
	for try := range cleanTries {
		mine, err := m.mine()
		if err != nil || !mine {
			return errs.Wrap("unmount", m.dir, err)
		}
		if busy = unmount(m.dir, false); busy == nil {
			m.settle()
			return nil
		}
		time.Sleep(cleanPause << try)
	}
	mine, err := m.mine()
	if err != nil || !mine {
		return errs.Wrap("unmount", m.dir, err)
	}
	m.log.Warn("still in use: unmounting lazily", "op", "unmount", "err", busy)
	return errs.Wrap("unmount", m.dir, unmount(m.dir, true))
}

// settle waits for the last answers after a clean unmount. A mount namespace that was made while the mount was there (a
// container's, a service's) may hold a copy of it: its users are served until that ends, and are not waited for.
func (m *Mount) settle() {
	select {
	case <-m.done:
		m.log.Info("unmounted", "op", "unmount")
	case <-time.After(settleTime):
		m.log.Warn("unmounted, but another mount namespace still holds a copy", "op", "unmount")
	}
}

// mine tells whether the topmost mount at the folder is this one.
func (m *Mount) mine() (bool, error) {
	select {
	case <-m.done:
		return false, nil
	default:
	}
	at, err := topMount(m.dir)
	return at.ours() && at.device == m.device, err
}

// detach takes away a mount that did not come up.
func (m *Mount) detach() {
	if err := unmount(m.dir, true); err != nil {
		m.log.Warn("cannot take away a mount that failed", "op", "mount", "err", err)
	}
}

func isRoot() bool { return os.Geteuid() == 0 }
