package folder

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
)

// anyNode is one of this package's three kinds of nodes.
type anyNode interface {
	fs.Node
	fs.AttrSetter
	base() *node
}

// node is what they share.
type node struct {
	t    *Tree
	id   fs.ID
	kind fs.Kind
	ino  uint64
	dev  uint64 // the tree's device, but for files on an overlay file system

	gone    atomic.Bool   // has no name any more; written under Tree.mu
	names   []*entry      // guarded by Tree.mu; a folder has one, the root none
	setting chan struct{} // holds a token while attributes are set, so that a guard means something

	attrs               sync.Mutex // guards what follows
	mark                mark
	atime, mtime, ctime time.Time
}

// entry is a name in a folder. It is guarded by Tree.mu.
type entry struct {
	name   string
	cookie uint64
	in     *dir
	node   anyNode
}

// init fills in a new node from what is on disk.
func (n *node) init(t *Tree, m mark, st *unix.Stat_t) {
	n.t, n.id, n.kind, n.mark, n.setting = t, m.id, m.kind, m, make(chan struct{}, 1)
	n.ino, n.dev = st.Ino, st.Dev
	n.atime, n.mtime, n.ctime = time.Unix(st.Atim.Unix()), time.Unix(st.Mtim.Unix()), t.now()
}

func (n *node) base() *node { return n }

// ID implements fs.Node.
func (n *node) ID() fs.ID { return n.id }

// enter is the beginning of every operation on a node.
func (n *node) enter(ctx context.Context) error {
	if err := n.t.enter(ctx); err != nil {
		return err
	}
	if n.gone.Load() {
		return fs.StatusStale
	}
	return nil
}

// touch notes a change of the attributes and, with content, of the content.
func (n *node) touch(content bool) {
	n.attrs.Lock()
	defer n.attrs.Unlock()
	n.ctime = n.t.now()
	if content {
		n.mtime = n.ctime
	}
}

// attr returns what does not depend on the kind of node. Tree.mu must be held.
func (n *node) attr() fs.Attr {
	n.attrs.Lock()
	defer n.attrs.Unlock()
	return fs.Attr{
		ID: n.id, Kind: n.kind, Perm: n.mark.perm, Nlink: uint32(len(n.names)), UID: n.mark.uid, GID: n.mark.gid,
		Atime: n.atime, Mtime: n.mtime, Ctime: n.ctime,
	}
}

// place returns the names that lead from the root to a node; false if it is gone.
func (t *Tree) place(n *node) ([]string, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return n.placeLocked()
}

// placeLocked is place for those who hold mu.
func (n *node) placeLocked() ([]string, bool) {
	if n.gone.Load() {
		return nil, false
	}
	var names []string
	for len(n.names) > 0 {
		names = append(names, n.names[0].name)
		n = &n.names[0].in.node
	}
	slices.Reverse(names)
	return names, true
}

// setter is how a kind of node sets its size and opens what its other attributes are kept with.
type setter struct {
	// size is nil for what has none to set, and is called before anything else is changed.
	size func(ctx context.Context, size int64) error
	bad  fs.Status // the answer to setting a size where there is none
}

// setAttr implements fs.AttrSetter for all kinds.
func (t *Tree) setAttr(ctx context.Context, self anyNode, set fs.SetAttr, guard *time.Time, s setter) (fs.Attr, error) {
	n := self.base()
	if err := n.enter(ctx); err != nil {
		return fs.Attr{}, err
	}
	select {
	case n.setting <- struct{}{}:
		defer func() { <-n.setting }()
	case <-ctx.Done():
		return fs.Attr{}, ctx.Err()
	}
	n.attrs.Lock()
	changed := guard != nil && !guard.Equal(n.ctime)
	n.attrs.Unlock()
	switch {
	case n.gone.Load():
		return fs.Attr{}, fs.StatusStale
	case changed:
		return fs.Attr{}, fs.StatusNotSync
	case set.Size != nil && s.size == nil:
		return fs.Attr{}, s.bad
	case set.Size != nil && *set.Size < 0:
		return fs.Attr{}, fs.StatusInvalid
	}
	if set.Size != nil {
		err := s.size(ctx, *set.Size)
		n.touch(true)
		if err != nil {
			return fs.Attr{}, err
		}
	}
	if err := t.setMark(ctx, n, set); err != nil {
		return fs.Attr{}, err
	}
	return self.Attr(ctx)
}

// setMark sets all but the size, durably.
func (t *Tree) setMark(ctx context.Context, n *node, set fs.SetAttr) error {
	t.life.RLock()
	defer t.life.RUnlock()
	if err := n.enter(ctx); err != nil {
		return err
	}
	n.attrs.Lock()
	m := n.mark
	n.attrs.Unlock()
	m.apply(set)
	if m != n.mark || set.Atime != nil || set.Mtime != nil { // only who holds setting writes the mark
		flags := unix.O_RDWR
		if n.kind == fs.KindDir {
			flags = unix.O_RDONLY | unix.O_DIRECTORY
		}
		f, err := t.openNode(ctx, n, flags, false)
		if err != nil {
			return err
		}
		defer f.Close()
		if m != n.mark {
			if err := t.writeMark(f, m); err != nil {
				return err
			}
		}
		if set.Atime != nil || set.Mtime != nil {
			if err := t.setTimes(f, set); err != nil {
				return err
			}
		}
		if err := t.sync(f); err != nil {
			return err
		}
	}
	n.attrs.Lock()
	defer n.attrs.Unlock()
	n.mark = m
	n.takeTimes(set)
	n.ctime = t.now()
	return nil
}

// takeTimes takes over the times of a change. attrs must be held.
func (n *node) takeTimes(set fs.SetAttr) {
	if set.Atime != nil {
		n.atime = *set.Atime
	}
	if set.Mtime != nil {
		n.mtime = *set.Mtime
	}
}

// apply takes over owner, group and mode of a change.
func (m *mark) apply(set fs.SetAttr) {
	if set.Perm != nil {
		m.perm = *set.Perm & 0o7777
	}
	if set.UID != nil {
		m.uid = *set.UID
	}
	if set.GID != nil {
		m.gid = *set.GID
	}
}
