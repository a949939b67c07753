// Package fstest holds what tests of trees need: Memory, a complete tree in memory that can be written, filled up, broken
// and crashed on purpose, and a conformance suite for any fs.Tree.
//
// Terms. A page is 4 KiB of a file that has been written; what has no page is a hole. The visible state is what calls
// answer; the durable state is what Crash leaves.
//
// Rules of Memory:
//
//  1. Node IDs and folder cookies grow and are never given out twice.
//  2. Names and attributes are durable at once; file bytes are durable after a stable write or a Commit.
//  3. A node whose last name is gone answers fs.StatusStale, also through a handle taken before.
//  4. The hook runs before the operation, with no lock held; a call whose context ends while the hook waits returns at
//     once and changes nothing.
//  5. Change times strictly grow, so that two changes are never confused by a guard.
//
// One lock guards the whole tree: simple to trust, and reads share it. The suite (Test, TestReadOnly) is run over Memory
// and over fs.Static by this package's own tests; a random walk compares Memory's files with plain byte slices.
package fstest

import (
	"context"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/fs"
)

// PageSize is the grain in which Memory counts used space and knows holes.
const PageSize = 4096

// MemoryOptions sets up a Memory tree. The zero value is good.
type MemoryOptions struct {
	// CapacityBytes bounds the pages of all files together; a write that needs more answers fs.StatusNoSpace and
	// changes nothing. 0 means 1 TiB.
	CapacityBytes int64
	// MaxFiles bounds the number of nodes. 0 means 1 Mi.
	MaxFiles int64
	// Hook, when not nil, is called before each operation with its name and the node it works on: "attr", "setattr",
	// "read", "write", "commit", "nextdata", "nexthole", "readlink", "lookup", "list", "create", "mkdir", "symlink",
	// "link", "remove", "rmdir", "rename", and on the tree "node" and "space" (ID 0). What it returns is the
	// operation's error; it delays by taking its time.
	Hook func(op string, id fs.ID) error
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Memory is a mutable fs.Tree in memory. Make it with NewMemory.
type Memory struct {
	mu    sync.RWMutex // guards everything below and in all nodes; never held while the hook or a visitor runs
	o     MemoryOptions
	nodes map[fs.ID]anyNode
	next  fs.ID
	used  int64 // bytes of pages that are visible
	last  time.Time
	root  *memDir
}

var _ fs.Tree = (*Memory)(nil)

// anyNode is one of this package's three kinds of nodes.
type anyNode interface {
	fs.Node
	base() *memNode
}

// NewMemory returns an empty tree.
func NewMemory(o MemoryOptions) *Memory {
	if o.CapacityBytes == 0 {
		o.CapacityBytes = 1 << 40
	}
	if o.MaxFiles == 0 {
		o.MaxFiles = 1 << 20
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	m := &Memory{o: o, nodes: map[fs.ID]anyNode{}}
	m.root = &memDir{memNode: m.newNode(fs.KindDir, 0o755), names: map[string]*memEntry{}}
	m.root.attr.Nlink = 2
	m.root.up = m.root
	m.nodes[m.root.attr.ID] = m.root
	return m
}

// SetHook replaces the hook; nil takes it away. Operations that run keep the one they began with.
func (m *Memory) SetHook(hook func(op string, id fs.ID) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.o.Hook = hook
}

// Root implements fs.Tree.
func (m *Memory) Root() fs.Dir { return m.root }

// Node implements fs.Tree.
func (m *Memory) Node(ctx context.Context, id fs.ID) (fs.Node, error) {
	if err := m.enter(ctx, "node", id); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if n, ok := m.nodes[id]; ok {
		return n, nil
	}
	if id == 0 || id > m.next {
		return nil, fs.StatusBadHandle
	}
	return nil, fs.StatusStale
}

// Space implements fs.Tree.
func (m *Memory) Space(ctx context.Context) (fs.Space, error) {
	if err := m.enter(ctx, "space", 0); err != nil {
		return fs.Space{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return fs.Space{
		TotalBytes: m.o.CapacityBytes, FreeBytes: max(0, m.o.CapacityBytes-m.used),
		TotalFiles: m.o.MaxFiles, FreeFiles: max(0, m.o.MaxFiles-int64(len(m.nodes))),
	}, nil
}

// Crash does what a power failure does: every byte that was neither written stably nor committed falls back to what it
// was before, sizes included. Names and attributes stay. The tree goes on being usable, as after a restart.
func (m *Memory) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.nodes {
		if f, ok := n.(*memFile); ok {
			f.crash()
		}
	}
}

// Put makes or replaces the file at a slash-separated path below the root, with the folders on the way, durably. It is a
// convenience for tests that need a tree with something in it.
func (m *Memory) Put(name string, data []byte) (fs.File, error) {
	ctx := context.Background()
	var dir fs.Dir = m.root
	parent, base := path.Split(strings.Trim(name, "/"))
	for _, part := range strings.FieldsFunc(parent, func(r rune) bool { return r == '/' }) {
		n, err := dir.Lookup(ctx, part)
		if fs.StatusOf(err) == fs.StatusNotFound {
			n, err = dir.(fs.Maker).Mkdir(ctx, part, fs.SetAttr{})
		}
		if err != nil {
			return nil, err
		}
		next, ok := n.(fs.Dir)
		if !ok {
			return nil, fs.StatusNotDir
		}
		dir = next
	}
	var empty int64
	f, err := dir.(fs.Maker).Create(ctx, base, fs.CreateUnchecked, fs.SetAttr{Size: &empty}, [8]byte{})
	if err != nil {
		return nil, err
	}
	return f, f.(fs.Writer).WriteAt(ctx, data, 0, true)
}

// enter runs the hook. It gives up when ctx ends first; the hook is then left to finish by itself.
func (m *Memory) enter(ctx context.Context, op string, id fs.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.RLock()
	hook := m.o.Hook
	m.mu.RUnlock()
	if hook == nil {
		return nil
	}
	if ctx.Done() == nil {
		return hook(op, id)
	}
	answer := make(chan error, 1)
	go func() { answer <- hook(op, id) }()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// now returns a time later than all it returned before. The lock must be held for writing.
func (m *Memory) now() time.Time {
	t := m.o.Now().Round(0) // no monotonic part: times are compared with what a client sent back
	if !t.After(m.last) {
		t = m.last.Add(1)
	}
	m.last = t
	return t
}

// newNode gives out the next ID. The lock must be held for writing (or the tree not be shared yet).
func (m *Memory) newNode(kind fs.Kind, perm uint32) memNode {
	m.next++
	t := m.now()
	return memNode{tree: m, attr: fs.Attr{
		ID: m.next, Kind: kind, Perm: perm, Nlink: 1, UID: fs.OwnerID, GID: fs.OwnerID,
		Atime: t, Mtime: t, Ctime: t,
	}}
}

// drop takes one name away from a node, and the node itself with its last name. The lock must be held for writing.
func (m *Memory) drop(n anyNode) {
	b := n.base()
	b.attr.Nlink--
	b.attr.Ctime = m.now()
	if b.attr.Kind == fs.KindDir {
		b.attr.Nlink = 0
	}
	if b.attr.Nlink > 0 {
		return
	}
	b.gone = true
	delete(m.nodes, b.attr.ID)
	if f, ok := n.(*memFile); ok {
		f.forget()
	}
}

// memNode is what all kinds of nodes share.
type memNode struct {
	tree *Memory
	attr fs.Attr // Size and Used of files are filled in when asked
	gone bool
}

func (n *memNode) base() *memNode { return n }

// ID implements fs.Node.
func (n *memNode) ID() fs.ID { return n.attr.ID } // never changes: needs no lock

// enter runs the hook for a node.
func (n *memNode) enter(ctx context.Context, op string) error {
	return n.tree.enter(ctx, op, n.attr.ID)
}

// Attr implements fs.Node for folders and links.
func (n *memNode) Attr(ctx context.Context) (fs.Attr, error) {
	if err := n.enter(ctx, "attr"); err != nil {
		return fs.Attr{}, err
	}
	n.tree.mu.RLock()
	defer n.tree.mu.RUnlock()
	if n.gone {
		return fs.Attr{}, fs.StatusStale
	}
	return n.attr, nil
}

// SetAttr implements fs.AttrSetter for folders and links, which have no size to set.
func (n *memNode) SetAttr(ctx context.Context, set fs.SetAttr, guard *time.Time) (fs.Attr, error) {
	if err := n.enter(ctx, "setattr"); err != nil {
		return fs.Attr{}, err
	}
	n.tree.mu.Lock()
	defer n.tree.mu.Unlock()
	if err := n.admit(guard); err != nil {
		return fs.Attr{}, err
	}
	if set.Size != nil {
		if n.attr.Kind == fs.KindDir {
			return fs.Attr{}, fs.StatusIsDir
		}
		return fs.Attr{}, fs.StatusInvalid
	}
	n.apply(set)
	return n.attr, nil
}

// admit refuses a change of a node that is gone or that changed since the guard was taken.
func (n *memNode) admit(guard *time.Time) error {
	if n.gone {
		return fs.StatusStale
	}
	if guard != nil && !guard.Equal(n.attr.Ctime) {
		return fs.StatusNotSync
	}
	return nil
}

// apply sets everything but the size.
func (n *memNode) apply(set fs.SetAttr) {
	a := &n.attr
	if set.Perm != nil {
		a.Perm = *set.Perm & 0o7777
	}
	if set.UID != nil {
		a.UID = *set.UID
	}
	if set.GID != nil {
		a.GID = *set.GID
	}
	if set.Atime != nil {
		a.Atime = *set.Atime
	}
	if set.Mtime != nil {
		a.Mtime = *set.Mtime
	}
	a.Ctime = n.tree.now()
}

// memSymlink is a symbolic link.
type memSymlink struct {
	memNode
	target string
}

var (
	_ fs.Symlink    = (*memSymlink)(nil)
	_ fs.AttrSetter = (*memSymlink)(nil)
)

// Readlink implements fs.Symlink.
func (l *memSymlink) Readlink(ctx context.Context) (string, error) {
	if err := l.enter(ctx, "readlink"); err != nil {
		return "", err
	}
	l.tree.mu.RLock()
	defer l.tree.mu.RUnlock()
	if l.gone {
		return "", fs.StatusStale
	}
	return l.target, nil
}
