package folder

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
)

// Remove implements fs.Remover.
func (d *dir) Remove(ctx context.Context, name string) error {
	return d.alterNames(ctx, name, func() error {
		e := d.entries[name]
		if e == nil {
			return fs.StatusNotFound
		}
		if _, isDir := e.node.(*dir); isDir {
			return fs.StatusIsDir
		}
		return d.unname(ctx, e, 0)
	})
}

// RemoveDir implements fs.Remover.
func (d *dir) RemoveDir(ctx context.Context, name string) error {
	return d.alterNames(ctx, name, func() error {
		e := d.entries[name]
		if e == nil {
			return fs.StatusNotFound
		}
		sub, isDir := e.node.(*dir)
		switch {
		case !isDir:
			return fs.StatusNotDir
		case len(sub.entries) > 0 || len(sub.hidden) > 0:
			return fs.StatusNotEmpty
		}
		return d.unname(ctx, e, unix.AT_REMOVEDIR)
	})
}

// unname takes a name away, on disk and in memory. The caller holds changing.
func (d *dir) unname(ctx context.Context, e *entry, flags int) error {
	in, err := d.t.openDir(ctx, d)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := d.t.unlink(in, e.name, flags); err != nil {
		return err
	}
	err = d.t.sync(in)
	d.t.mu.Lock()
	of := d.t.drop(e)
	d.touch(true)
	d.t.mu.Unlock()
	of.end()
	d.t.followGrafts()
	return err
}

// drop takes an entry out of the tree, and its node with its last name. It returns the file to be closed when mu, which
// must be held for writing, is not held any more.
func (t *Tree) drop(e *entry) *openFile {
	n := e.node.base()
	e.in.cut(e)
	for i, o := range n.names {
		if o == e {
			n.names = append(n.names[:i:i], n.names[i+1:]...)
			break
		}
	}
	n.touch(false)
	if len(n.names) > 0 {
		return nil
	}
	n.gone.Store(true)
	delete(t.nodes, n.id)
	if f, ok := e.node.(*file); ok {
		f.stream.Store(nil)
		return t.fds.forget(f)
	}
	return nil
}

// Rename implements fs.Remover.
func (d *dir) Rename(ctx context.Context, name string, toDir fs.Dir, toName string) error {
	return d.alterNames(ctx, name, func() error {
		to, ok := toDir.(*dir)
		if !ok || to.t != d.t {
			return fs.StatusCrossDevice
		}
		if err := fs.CheckName(toName); err != nil {
			return err
		}
		e, old := d.entries[name], to.entries[toName]
		switch {
		case to.gone.Load():
			return fs.StatusStale
		case e == nil:
			return fs.StatusNotFound
		case old != nil && old.node == e.node:
			return nil // one node under both names: POSIX wants both kept
		case to.hidden[toName]:
			return fs.StatusExists
		}
		if err := replaceable(e.node, to, old); err != nil {
			return err
		}
		return d.move(ctx, e, to, toName, old)
	})
}

// replaceable tells whether n may move into to, in the place of old (nil for a free name).
func replaceable(n anyNode, to *dir, old *entry) error {
	moved, isDir := n.(*dir)
	if isDir {
		for up := to; ; up = up.parent() {
			if up == moved {
				return fs.StatusInvalid // a folder may not move into itself
			}
			if up == up.parent() {
				break
			}
		}
		if to.depth()+moved.height() > maxDepth {
			return fs.StatusNameTooLong
		}
	}
	if old == nil {
		return nil
	}
	target, ontoDir := old.node.(*dir)
	switch {
	case isDir && !ontoDir:
		return fs.StatusNotDir
	case !isDir && ontoDir:
		return fs.StatusIsDir
	case isDir && (len(target.entries) > 0 || len(target.hidden) > 0):
		return fs.StatusNotEmpty
	}
	return nil
}

// height tells how many folders lie one within the other, this one included.
func (d *dir) height() int {
	h := 0
	if d.subs > 0 {
		for _, e := range d.order {
			if sub, ok := e.node.(*dir); ok {
				h = max(h, sub.height())
			}
		}
	}
	return h + 1
}

// move gives an entry another name, in the place of old if that is not nil. The caller holds changing.
func (d *dir) move(ctx context.Context, e *entry, to *dir, toName string, old *entry) error {
	t := d.t
	cookie := e.cookie
	if to != d {
		var err error
		if cookie, err = to.cookieFor(e.node); err != nil {
			return err
		}
	}
	in, err := t.openDir(ctx, d)
	if err != nil {
		return err
	}
	defer in.Close()
	out := in
	if to != d {
		if out, err = t.openDir(ctx, to); err != nil {
			return err
		}
		defer out.Close()
	}
	if err := t.rename(in, e.name, out, toName); err != nil {
		return err
	}
	// The new name first: should only one of the two last, then the file has both rather than none.
	err = t.syncBoth(out, in)
	t.mu.Lock()
	var replaced *openFile
	if old != nil {
		replaced = t.drop(old)
	}
	d.cut(e)
	e.name, e.cookie, e.in = toName, cookie, to
	to.add(e)
	d.touch(true)
	to.touch(true)
	e.node.base().touch(false)
	t.mu.Unlock()
	replaced.end()
	t.followGrafts()
	return err
}

func (t *Tree) syncBoth(a, b *os.File) error {
	err := t.sync(a)
	if a == b {
		return err
	}
	return errors.Join(err, t.sync(b))
}

// Link implements fs.Maker.
func (d *dir) Link(ctx context.Context, target fs.Node, name string) error {
	return d.alterNames(ctx, name, func() error {
		n, ok := target.(anyNode)
		switch {
		case !ok || n.base().t != d.t:
			return fs.StatusCrossDevice
		case n.base().kind == fs.KindDir:
			return fs.StatusIsDir
		case n.base().gone.Load():
			return fs.StatusStale
		}
		if err := d.room(name); err != nil {
			return err
		}
		return d.linkTo(ctx, n, name)
	})
}

// linkTo gives a node one more name. The caller holds changing.
func (d *dir) linkTo(ctx context.Context, n anyNode, name string) error {
	t := d.t
	cookie, err := d.cookieFor(n)
	if err != nil {
		return err
	}
	old := n.base().names[0]
	from, err := t.openDir(ctx, old.in)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := t.openDir(ctx, d)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := t.link(from, old.name, to, name); err != nil {
		return err
	}
	err = t.sync(to)
	t.mu.Lock()
	defer t.mu.Unlock()
	e := &entry{name: name, cookie: cookie, in: d, node: n}
	n.base().names = append(n.base().names, e)
	d.add(e)
	d.touch(true)
	n.base().touch(false)
	return err
}
