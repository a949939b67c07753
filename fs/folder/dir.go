package folder

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast/fs"
)

// dirSize is what a folder says it takes; the true figure is of no use to anybody.
const dirSize = 4096

// listBatch is how many entries are taken at once, with the lock held.
const listBatch = 256

// dir is a folder. order is sorted by cookie.
type dir struct {
	node
	entries map[string]*entry // guarded, as all that follows, by Tree.mu
	order   []*entry
	subs    uint32          // folders among them
	hidden  map[string]bool // names on disk that are not shown; set by the scan only
}

var (
	_ fs.Dir        = (*dir)(nil)
	_ fs.Maker      = (*dir)(nil)
	_ fs.Remover    = (*dir)(nil)
	_ fs.AttrSetter = (*dir)(nil)
)

// Bulk tells a protocol layer that a folder is answered from memory.
func (d *dir) Bulk() bool { return false }

// Attr implements fs.Node.
func (d *dir) Attr(ctx context.Context) (fs.Attr, error) {
	if err := d.enter(ctx); err != nil {
		return fs.Attr{}, err
	}
	d.t.mu.RLock()
	defer d.t.mu.RUnlock()
	a := d.attr()
	a.Nlink, a.Size, a.Used = 2+d.subs, dirSize, dirSize
	return a, nil
}

// SetAttr implements fs.AttrSetter.
func (d *dir) SetAttr(ctx context.Context, set fs.SetAttr, guard *time.Time) (fs.Attr, error) {
	return d.t.setAttr(ctx, d, set, guard, setter{bad: fs.StatusIsDir})
}

// Parent returns the folder that holds this one; the root holds itself.
func (d *dir) Parent(ctx context.Context) (fs.Dir, error) {
	if err := d.enter(ctx); err != nil {
		return nil, err
	}
	d.t.mu.RLock()
	defer d.t.mu.RUnlock()
	return d.parent(), nil
}

// parent is Parent for those who hold mu.
func (d *dir) parent() *dir {
	if len(d.names) == 0 {
		return d
	}
	return d.names[0].in
}

// Lookup implements fs.Dir.
func (d *dir) Lookup(ctx context.Context, name string) (fs.Node, error) {
	if err := d.enter(ctx); err != nil {
		return nil, err
	}
	if err := fs.CheckName(name); err != nil {
		return nil, err
	}
	d.t.mu.RLock()
	defer d.t.mu.RUnlock()
	if e := d.entries[name]; e != nil {
		return e.node, nil
	}
	return nil, fs.StatusNotFound
}

// List implements fs.Dir. No lock is held while visit runs.
func (d *dir) List(ctx context.Context, after uint64, visit func(fs.Entry) bool) error {
	for {
		if err := d.enter(ctx); err != nil {
			return err
		}
		some := d.some(after)
		if len(some) == 0 {
			return nil
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
func (d *dir) some(after uint64) []fs.Entry {
	d.t.mu.RLock()
	defer d.t.mu.RUnlock()
	from, found := d.search(after)
	if found {
		from++
	}
	var some []fs.Entry
	for _, e := range d.order[from:min(len(d.order), from+listBatch)] {
		some = append(some, fs.Entry{Name: e.name, Cookie: e.cookie, Node: e.node})
	}
	return some
}

// search returns the place of a cookie, or where it would be.
func (d *dir) search(cookie uint64) (int, bool) {
	return slices.BinarySearchFunc(d.order, cookie, func(e *entry, c uint64) int { return cmp.Compare(e.cookie, c) })
}

// add puts an entry into its folder. That its cookie may be taken, by another name of the same file, the scan sees to
// later and everybody else beforehand.
func (d *dir) add(e *entry) {
	d.t.names++
	d.entries[e.name] = e
	i, _ := d.search(e.cookie)
	d.order = slices.Insert(d.order, i, e)
	if _, ok := e.node.(*dir); ok {
		d.subs++
	}
}

// cut takes an entry out of its folder.
func (d *dir) cut(e *entry) {
	d.t.names--
	delete(d.entries, e.name)
	d.order = slices.DeleteFunc(d.order, func(o *entry) bool { return o == e })
	if _, ok := e.node.(*dir); ok {
		d.subs--
	}
}

// cookieFor returns a cookie for one more name of a node. The caller holds changing.
func (d *dir) cookieFor(n anyNode) (uint64, error) {
	if _, taken := d.search(uint64(n.ID())); !taken {
		return uint64(n.ID()), nil
	}
	id, err := d.t.newID()
	return uint64(id), err
}
