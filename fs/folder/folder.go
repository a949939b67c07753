// Package folder is a mutable tree (fs.Tree) that lives in a real folder, with image streams grafted into it: what the
// hosts see of an instant restore. The small files are real files under their own names; a disk is a file that holds
// nothing and whose bytes come from a stream.
//
// Terms. The folder is the tree's root. A mark is an extended attribute (user.holdfast.node) on every file and folder:
// it holds the node's ID, owner, mode and, for a disk, the key of its graft. The side folder, named like the folder
// with ".tree" behind it, holds the lock, the record (which tree this is, the next ID, the grafts) and a stage, where
// things are made before they get their name. A graft is a marked, empty file whose content is a stream. A change is
// an operation on names.
//
// Why marks. An ID has to follow its file through every rename, vanish with it, and never name another one. An inode
// does just that, but its number is used again; a journal of names beside the folder has to be brought in line with
// the folder after every crash. The mark lies in the inode: it is moved, kept and removed together with the file by
// the one operation that the file system does atomically, and there is nothing to bring in line.
//
// Invariants:
//
//  1. IDs come from a counter whose bound is durable before one below it is used: an ID names one node for ever.
//  2. A node gets its name only after its mark, and whatever else it was made with, is durable. A change is answered
//     after the folders it touched were synced; memory shows it after the disk has it.
//  3. A file with a graft's mark is never read or written as a file. Without its stream it answers fs.StatusDelay.
//  4. A graft has its file before it has its record. A record without a file therefore means that the file was
//     removed, and Graft answers errs.Stale for ever. A file that appears where a graft lay, and has no mark, came from
//     somebody else and is not shown.
//  5. Names reach the system one at a time, below open folders, and symbolic links are never followed: the tree's own
//     are files with a mark, others in the folder are not shown (nor is anything else but files and folders).
//  6. The folder belongs to this package while it is open, and to nobody else. Before a file is used, its inode is
//     compared with the node's.
//
// Attributes: owner, group and mode are what clients set, the files on disk belong to the daemon; what came with the
// folder shows its real mode and 36:36. Modification times are the file's own. Change times strictly grow, and begin
// anew at every opening: clients then trust nothing that they remember. A cookie is the ID of the node (a further name
// of one file in the same folder has a number of its own, which a restart changes).
//
// Bounds: 65536 names, all in memory; 64 folders deep; 64 files open between calls.
//
// Concurrency. Lock order: life, setting (one per node), changing, mu, attrs (one per node), fds.mu. Changes run one
// at a time (changing) and hold mu only to show their result, so that reading and writing never wait for the sync of a
// change. Streams are called without any lock but, for a truncation, setting.
//
// The bytes on disk: docs/format/folder.md. Tested with the suite in fs/fstest, over restarts, with a fault at every
// system call, kill -9 of a child, crowds of goroutines, and (in nfsd) libnfs and qemu as clients.
package folder

import (
	"context"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Bounds of a tree.
const (
	maxNames = 1 << 16
	maxDepth = 64
	maxOpen  = 64
	rootID   = 1
)

// Options say how a tree is opened.
type Options struct {
	Logger *slog.Logger                            // nil is silent
	Space  func(context.Context) (fs.Space, error) // answers Tree.Space; nil asks the file system

	hook func(op, name string) error // tests: called before every change of the disk; an error is what comes of it
}

// Tree is a tree that lives in a folder. Close it.
type Tree struct {
	path string // of the folder
	o    Options
	log  *slog.Logger
	disk *os.File // the folder
	side *side

	life     sync.RWMutex  // held by Close to see the last user of a real file out
	closed   atomic.Bool   // set under life
	changing chan struct{} // holds a token while a change runs: a lock that can be waited for with a context

	next atomic.Uint64 // the next ID; written under changing
	last atomic.Int64  // the latest time given out, Unix nanoseconds

	mu    sync.RWMutex // guards nodes, and names and places in all of them
	nodes map[fs.ID]anyNode
	names int // how many names there are
	root  *dir

	fds fds
}

var _ fs.Tree = (*Tree)(nil)

// Open opens the tree that lives in the folder dir, and makes it one if it is not yet: what lies there gets IDs. The
// folder must be on a file system with extended attributes and not be a mount point. errs.Busy: it is open already;
// errs.Corrupt: it is not what this package left.
func Open(dir string, o Options) (*Tree, error) {
	t, err := open(filepath.Clean(dir), o)
	if err != nil {
		return nil, errs.Wrap("open folder", dir, err)
	}
	return t, nil
}

func open(path string, o Options) (_ *Tree, err error) {
	t := &Tree{path: path, o: o, log: o.Logger, changing: make(chan struct{}, 1), nodes: map[fs.ID]anyNode{}}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	t.fds.limit = maxOpen
	if t.disk, err = os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = t.disk.Close()
			if t.side != nil {
				_ = t.side.close()
			}
		}
	}()
	if t.side, err = openSide(path + sideSuffix); err != nil {
		return nil, err
	}
	if err := t.begin(); err != nil {
		return nil, err
	}
	if err := t.scan(); err != nil {
		return nil, err
	}
	return t, t.adopt()
}

// Root implements fs.Tree.
func (t *Tree) Root() fs.Dir { return t.root }

// Node implements fs.Tree.
func (t *Tree) Node(ctx context.Context, id fs.ID) (fs.Node, error) {
	if err := t.enter(ctx); err != nil {
		return nil, err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n, ok := t.nodes[id]; ok {
		return n, nil
	}
	if id == 0 || uint64(id) >= t.next.Load() {
		return nil, fs.StatusBadHandle
	}
	return nil, fs.StatusStale
}

// Space implements fs.Tree.
func (t *Tree) Space(ctx context.Context) (fs.Space, error) {
	if err := t.enter(ctx); err != nil {
		return fs.Space{}, err
	}
	if t.o.Space != nil {
		return t.o.Space(ctx)
	}
	t.life.RLock()
	defer t.life.RUnlock()
	var st unix.Statfs_t
	err := t.use("statfs", t.path, func() error { return unix.Fstatfs(int(t.disk.Fd()), &st) })
	if err != nil {
		return fs.Space{}, err
	}
	t.mu.RLock()
	left := int64(max(0, maxNames-t.names))
	t.mu.RUnlock()
	s := fs.Space{
		TotalBytes: int64(st.Blocks) * st.Frsize, FreeBytes: int64(st.Bavail) * st.Frsize,
		TotalFiles: maxNames, FreeFiles: left,
	}
	if st.Files > 0 { // some file systems do not count
		s.FreeFiles = min(left, int64(min(st.Ffree, math.MaxInt64)))
	}
	return s, nil
}

// Close makes durable what was not, ends the tree and gives the folder free. Its nodes answer fs.StatusDelay from then
// on. The streams are the caller's to close, afterwards.
func (t *Tree) Close() error {
	t.life.Lock()
	defer t.life.Unlock()
	if t.closed.Swap(true) {
		return nil
	}
	err := t.fds.close()
	if cerr := t.disk.Close(); err == nil {
		err = cerr
	}
	if cerr := t.side.close(); err == nil {
		err = cerr
	}
	return errs.Wrap("close folder", t.path, err)
}

// enter is the beginning of every operation.
func (t *Tree) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if t.closed.Load() {
		return fs.StatusDelay
	}
	return nil
}

// change begins an operation on names, which ends with the returned function.
func (t *Tree) change(ctx context.Context) (func(), error) {
	t.life.RLock()
	if err := t.enter(ctx); err != nil {
		t.life.RUnlock()
		return nil, err
	}
	select {
	case t.changing <- struct{}{}:
	case <-ctx.Done():
		t.life.RUnlock()
		return nil, ctx.Err()
	}
	return func() {
		<-t.changing
		t.life.RUnlock()
	}, nil
}

// now returns a time later than all it returned before. It has no monotonic part: clients send times back.
func (t *Tree) now() time.Time {
	for {
		last := t.last.Load()
		ns := max(time.Now().UnixNano(), last+1)
		if t.last.CompareAndSwap(last, ns) {
			return time.Unix(0, ns)
		}
	}
}
