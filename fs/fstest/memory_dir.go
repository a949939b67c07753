package fstest

import (
	"context"
	"slices"

	"github.com/holdfast-backup/holdfast/fs"
)

// memEntry is one name in a folder.
type memEntry struct {
	name   string
	cookie uint64
	node   anyNode
}

// memDir is a folder. order is sorted by cookie, which only grows, so a name that comes during a listing is seen at its
// end and a name that goes breaks nothing.
type memDir struct {
	memNode
	up     *memDir // the root is its own
	names  map[string]*memEntry
	order  []*memEntry
	cookie uint64
}

var (
	_ fs.Dir        = (*memDir)(nil)
	_ fs.Maker      = (*memDir)(nil)
	_ fs.Remover    = (*memDir)(nil)
	_ fs.AttrSetter = (*memDir)(nil)
)

// Lookup implements fs.Dir.
func (d *memDir) Lookup(ctx context.Context, name string) (fs.Node, error) {
	if err := d.enter(ctx, "lookup"); err != nil {
		return nil, err
	}
	if err := fs.CheckName(name); err != nil {
		return nil, err
	}
	d.tree.mu.RLock()
	defer d.tree.mu.RUnlock()
	if d.gone {
		return nil, fs.StatusStale
	}
	if e := d.names[name]; e != nil {
		return e.node, nil
	}
	return nil, fs.StatusNotFound
}

// List implements fs.Dir. The lock is not held while visit runs, so visit may use the tree.
func (d *memDir) List(ctx context.Context, after uint64, visit func(fs.Entry) bool) error {
	if err := d.enter(ctx, "list"); err != nil {
		return err
	}
	for {
		some, err := d.some(after)
		if err != nil || len(some) == 0 {
			return err
		}
		for _, e := range some {
			if err := ctx.Err(); err != nil {
				return err
			}
			if !visit(e) {
				return nil
			}
			after = e.Cookie
		}
	}
}

// some returns the next entries after a cookie, none at the end.
func (d *memDir) some(after uint64) ([]fs.Entry, error) {
	d.tree.mu.RLock()
	defer d.tree.mu.RUnlock()
	if d.gone {
		return nil, fs.StatusStale
	}
	from := d.search(after + 1)
	if after+1 == 0 {
		from = len(d.order)
	}
	var some []fs.Entry
	for _, e := range d.order[from:min(len(d.order), from+256)] {
		some = append(some, fs.Entry{Name: e.name, Cookie: e.cookie, Node: e.node})
	}
	return some, nil
}

// search returns the place of the first entry whose cookie is not smaller.
func (d *memDir) search(cookie uint64) int {
	i, _ := slices.BinarySearchFunc(d.order, cookie, func(e *memEntry, c uint64) int {
		switch {
		case e.cookie < c:
			return -1
		case e.cookie > c:
			return 1
		}
		return 0
	})
	return i
}

// add gives a node a name here. The lock must be held for writing and the name be free.
func (d *memDir) add(name string, n anyNode) {
	d.cookie++
	e := &memEntry{name: name, cookie: d.cookie, node: n}
	d.names[name] = e
	d.order = append(d.order, e)
	d.touch()
	if sub, ok := n.(*memDir); ok {
		sub.up = d
		d.attr.Nlink++
	}
}

// cut takes a name away without touching its node. The lock must be held for writing.
func (d *memDir) cut(e *memEntry) {
	delete(d.names, e.name)
	i := d.search(e.cookie)
	d.order = slices.Delete(d.order, i, i+1)
	d.touch()
	if _, ok := e.node.(*memDir); ok {
		d.attr.Nlink--
	}
}

func (d *memDir) touch() {
	d.attr.Mtime = d.tree.now()
	d.attr.Ctime = d.attr.Mtime
}

// change runs f under the lock, after what every change of a folder checks first.
func (d *memDir) change(ctx context.Context, op, name string, f func() error) error {
	if err := d.enter(ctx, op); err != nil {
		return err
	}
	if err := fs.CheckName(name); err != nil {
		return err
	}
	d.tree.mu.Lock()
	defer d.tree.mu.Unlock()
	if d.gone {
		return fs.StatusStale
	}
	return f()
}

// room refuses a new node when the name is taken or the tree is full.
func (d *memDir) room(name string) error {
	if d.names[name] != nil {
		return fs.StatusExists
	}
	if int64(len(d.tree.nodes)) >= d.tree.o.MaxFiles {
		return fs.StatusNoSpace
	}
	return nil
}

// Create implements fs.Maker.
func (d *memDir) Create(
	ctx context.Context, name string, mode fs.CreateMode, set fs.SetAttr, verifier [8]byte,
) (fs.File, error) {
	var f *memFile
	err := d.change(ctx, "create", name, func() (err error) {
		if e := d.names[name]; e != nil {
			f, err = existing(e.node, mode, set, verifier)
			return err
		}
		if err := d.room(name); err != nil {
			return err
		}
		f = &memFile{
			memNode: d.tree.newNode(fs.KindFile, 0o644), pages: map[int64]*page{}, undo: map[int64]*page{},
			verifier: verifier, exclusive: mode == fs.CreateExclusive,
		}
		if err := f.set(set); err != nil {
			return err // the ID is spent, nothing else happened
		}
		d.tree.nodes[f.attr.ID] = f
		d.add(name, f)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// existing answers Create for a name that is there.
func existing(n anyNode, mode fs.CreateMode, set fs.SetAttr, verifier [8]byte) (*memFile, error) {
	f, isFile := n.(*memFile)
	switch {
	case mode == fs.CreateUnchecked && isFile:
		if set.Size == nil {
			return f, nil // merely opened: not even its ctime moves
		}
		return f, f.set(fs.SetAttr{Size: set.Size})
	case mode == fs.CreateUnchecked && n.base().attr.Kind == fs.KindDir:
		return nil, fs.StatusIsDir
	case mode == fs.CreateExclusive && isFile && f.exclusive && f.verifier == verifier:
		return f, nil
	}
	return nil, fs.StatusExists
}

// Mkdir implements fs.Maker.
func (d *memDir) Mkdir(ctx context.Context, name string, set fs.SetAttr) (fs.Dir, error) {
	var sub *memDir
	err := d.change(ctx, "mkdir", name, func() error {
		if err := d.room(name); err != nil {
			return err
		}
		if set.Size != nil {
			return fs.StatusInvalid
		}
		sub = &memDir{memNode: d.tree.newNode(fs.KindDir, 0o755), names: map[string]*memEntry{}}
		sub.attr.Nlink = 2
		d.tree.nodes[sub.attr.ID] = sub
		d.add(name, sub)
		sub.apply(set)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return sub, nil
}

// Symlink implements fs.Maker.
func (d *memDir) Symlink(ctx context.Context, name, target string, set fs.SetAttr) (fs.Symlink, error) {
	var l *memSymlink
	err := d.change(ctx, "symlink", name, func() error {
		if err := d.room(name); err != nil {
			return err
		}
		if set.Size != nil || target == "" {
			return fs.StatusInvalid
		}
		l = &memSymlink{memNode: d.tree.newNode(fs.KindSymlink, 0o777), target: target}
		l.attr.Size = int64(len(target))
		d.tree.nodes[l.attr.ID] = l
		d.add(name, l)
		l.apply(set)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Link implements fs.Maker.
func (d *memDir) Link(ctx context.Context, file fs.Node, name string) error {
	return d.change(ctx, "link", name, func() error {
		n, ok := file.(anyNode)
		switch {
		case !ok || n.base().tree != d.tree:
			return fs.StatusCrossDevice
		case n.base().attr.Kind == fs.KindDir:
			return fs.StatusIsDir
		case n.base().gone:
			return fs.StatusStale
		case d.names[name] != nil:
			return fs.StatusExists
		}
		n.base().attr.Nlink++
		n.base().attr.Ctime = d.tree.now()
		d.add(name, n)
		return nil
	})
}

// Remove implements fs.Remover.
func (d *memDir) Remove(ctx context.Context, name string) error {
	return d.change(ctx, "remove", name, func() error {
		e := d.names[name]
		switch {
		case e == nil:
			return fs.StatusNotFound
		case e.node.base().attr.Kind == fs.KindDir:
			return fs.StatusIsDir
		}
		d.cut(e)
		d.tree.drop(e.node)
		return nil
	})
}

// RemoveDir implements fs.Remover.
func (d *memDir) RemoveDir(ctx context.Context, name string) error {
	return d.change(ctx, "rmdir", name, func() error {
		e := d.names[name]
		if e == nil {
			return fs.StatusNotFound
		}
		sub, ok := e.node.(*memDir)
		switch {
		case !ok:
			return fs.StatusNotDir
		case len(sub.names) > 0:
			return fs.StatusNotEmpty
		}
		d.cut(e)
		d.tree.drop(sub)
		return nil
	})
}

// Rename implements fs.Remover.
func (d *memDir) Rename(ctx context.Context, name string, toDir fs.Dir, toName string) error {
	return d.change(ctx, "rename", name, func() error {
		to, ok := toDir.(*memDir)
		if !ok || to.tree != d.tree {
			return fs.StatusCrossDevice
		}
		if err := fs.CheckName(toName); err != nil {
			return err
		}
		if to.gone {
			return fs.StatusStale
		}
		e := d.names[name]
		if e == nil {
			return fs.StatusNotFound
		}
		old := to.names[toName]
		if old != nil && old.node == e.node {
			return nil // the same node under both names: POSIX wants both kept
		}
		if err := replaceable(e.node, to, old); err != nil {
			return err
		}
		if old != nil {
			to.cut(old)
			d.tree.drop(old.node)
		}
		d.cut(e)
		to.add(toName, e.node)
		e.node.base().attr.Ctime = d.tree.now()
		return nil
	})
}

// replaceable tells whether n may move into to, in place of old (nil for a free name).
func replaceable(n anyNode, to *memDir, old *memEntry) error {
	moved, isDir := n.(*memDir)
	if isDir {
		for up := to; ; up = up.up {
			if up == moved {
				return fs.StatusInvalid // a folder may not move into itself
			}
			if up == up.up {
				break
			}
		}
	}
	if old == nil {
		return nil
	}
	target, ontoDir := old.node.(*memDir)
	switch {
	case isDir && !ontoDir:
		return fs.StatusNotDir
	case !isDir && ontoDir:
		return fs.StatusIsDir
	case isDir && len(target.names) > 0:
		return fs.StatusNotEmpty
	}
	return nil
}
