package fs

import (
	"context"
	"hash/fnv"
	"sort"
	"time"
)

// OwnerID is the user and group that every object appears to belong to: vdsm and qemu on an oVirt host run as 36:36
// and refuse what they do not own.
const OwnerID = 36

// PathID derives a node's ID from a text that names it for ever, so that a tree built anew after a restart gives out
// the same IDs. It is FNV-1a, 64 bit, of the text; 0 is avoided.
func PathID(text string) ID {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text)) // a hash never fails
	if s := h.Sum64(); s != 0 {
		return ID(s)
	}
	return 1
}

// Static is a tree that is put together once and whose folders never change. It is its own Tree.
// Its files may be writable; names can neither be made nor removed.
type Static struct {
	root  *StaticDir
	nodes map[ID]Node
	space func(context.Context) (Space, error)
}

var _ Tree = (*Static)(nil)

// NewStatic returns a tree below root. space answers Space.
func NewStatic(root *StaticDir, space func(context.Context) (Space, error)) *Static {
	t := &Static{root: root, nodes: map[ID]Node{}, space: space}
	t.add(root)
	return t
}

func (t *Static) add(n Node) {
	t.nodes[n.ID()] = n
	if d, ok := n.(*StaticDir); ok {
		for _, e := range d.entries {
			t.add(e.Node)
		}
	}
}

// Root implements Tree.
func (t *Static) Root() Dir { return t.root }

// Node implements Tree.
func (t *Static) Node(_ context.Context, id ID) (Node, error) {
	if n, ok := t.nodes[id]; ok {
		return n, nil
	}
	return nil, StatusStale
}

// Space implements Tree.
func (t *Static) Space(ctx context.Context) (Space, error) { return t.space(ctx) }

// StaticDir is a folder whose names are fixed when it is made.
type StaticDir struct {
	attr    Attr
	entries []Entry
}

var _ Dir = (*StaticDir)(nil)

// NewStaticDir returns a folder owned by OwnerID, mode 0755, with the given names in the given order.
func NewStaticDir(id ID, when time.Time, entries ...Entry) *StaticDir {
	d := &StaticDir{entries: entries, attr: Attr{
		ID: id, Kind: KindDir, Perm: 0o755, Nlink: 2, UID: OwnerID, GID: OwnerID, Size: 4096, Used: 4096,
		Atime: when, Mtime: when, Ctime: when,
	}}
	for i := range d.entries {
		d.entries[i].Cookie = uint64(i + 1)
		if _, ok := d.entries[i].Node.(Dir); ok {
			d.attr.Nlink++
		}
	}
	return d
}

// ID implements Node.
func (d *StaticDir) ID() ID { return d.attr.ID }

// Attr implements Node.
func (d *StaticDir) Attr(context.Context) (Attr, error) { return d.attr, nil }

// Lookup implements Dir.
func (d *StaticDir) Lookup(_ context.Context, name string) (Node, error) {
	for _, e := range d.entries {
		if e.Name == name {
			return e.Node, nil
		}
	}
	return nil, StatusNotFound
}

// List implements Dir.
func (d *StaticDir) List(_ context.Context, after uint64, visit func(Entry) bool) error {
	for _, e := range d.entries {
		if e.Cookie > after && !visit(e) {
			return nil
		}
	}
	return nil
}

// SetCookies gives each entry the cookie that f derives from its name, and sorts the folder by them: a listing then goes
// on correctly in a folder that was made anew with other names beside. It is for the maker of the folder, before anyone
// sees it.
func (d *StaticDir) SetCookies(f func(name string) uint64) {
	for i := range d.entries {
		d.entries[i].Cookie = f(d.entries[i].Name)
	}
	sort.Slice(d.entries, func(i, j int) bool { return d.entries[i].Cookie < d.entries[j].Cookie })
}
