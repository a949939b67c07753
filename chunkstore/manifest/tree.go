package manifest

import (
	"context"
	"sort"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
)

// Source reads pages.
type Source interface {
	// Page returns the bytes of a page, verified to be the one that ref names. The caller does not change them.
	Page(ctx context.Context, ref Ref) ([]byte, error)
}

// Tree reads one disk's manifest. It keeps nothing itself: a Source is expected to cache.
type Tree struct {
	Root Root
	src  Source
}

// NewTree returns a reader of root.
func NewTree(root Root, src Source) *Tree { return &Tree{root, src} }

// Leaves returns the number of leaves that the disk's size needs.
func (t *Tree) Leaves() int64 { return leavesOf(t.Root.Size) }

func leavesOf(size int64) int64 { return (size + LeafSize - 1) / LeafSize }

// leafRef finds the reference to leaf n.
func (t *Tree) leafRef(ctx context.Context, n int64) (Ref, error) {
	ref := t.Root.Ref()
	for level := t.Root.Level; level > 0 && !ref.IsZero(); level-- {
		page, err := t.src.Page(ctx, ref)
		if err != nil {
			return Ref{}, err
		}
		if ref, err = childAt(page, level, int(n>>(8*(level-1))%Fanout)); err != nil {
			return Ref{}, err
		}
	}
	return ref, nil
}

func (t *Tree) inner(ctx context.Context, ref Ref, level int, c *children) error {
	page, err := t.src.Page(ctx, ref)
	if err != nil {
		return err
	}
	return decodeInner(page, level, c)
}

// Leaf returns leaf n, nil if it is all zeros.
func (t *Tree) Leaf(ctx context.Context, n int64) (Leaf, error) {
	ref, err := t.leafRef(ctx, n)
	if err != nil || ref.IsZero() {
		return nil, err
	}
	page, err := t.src.Page(ctx, ref)
	if err != nil {
		return nil, err
	}
	return DecodeLeaf(page)
}

// Find returns the entry of l that covers a block, and the block at which it starts. A nil leaf is one run of zeros.
func (l Leaf) Find(block int) (Entry, int) {
	if l == nil {
		return Entry{End: LeafBlocks}, 0
	}
	i := sort.Search(len(l), func(i int) bool { return int(l[i].End) > block })
	start := 0
	if i > 0 {
		start = int(l[i-1].End)
	}
	return l[i], start
}

// Walk calls visit for each leaf that has data, in order. Cost follows the data, not the disk's size.
func (t *Tree) Walk(ctx context.Context, visit func(n int64, l Leaf) error) error {
	return t.walkFrom(ctx, t.Root.Ref(), t.Root.Level, 0, 0, nil, visit)
}

// WalkFrom is Walk for the leaves from number first on.
func (t *Tree) WalkFrom(ctx context.Context, first int64, visit func(n int64, l Leaf) error) error {
	return t.walkFrom(ctx, t.Root.Ref(), t.Root.Level, 0, first, nil, visit)
}

// WalkPages is Walk, and also calls page for the reference of every page, parents first. A page for which it returns
// false is not read, nor anything below it.
func (t *Tree) WalkPages(ctx context.Context, page func(Ref, int) bool, visit func(n int64, l Leaf) error) error {
	return t.walkFrom(ctx, t.Root.Ref(), t.Root.Level, 0, 0, page, visit)
}

func (t *Tree) walkFrom(ctx context.Context, ref Ref, level int, base, first int64,
	page func(Ref, int) bool, visit func(int64, Leaf) error) error {
	span := int64(1) << (8 * level) // leaves below ref
	if ref.IsZero() || base+span <= first {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if page != nil && !page(ref, level) {
		return nil
	}
	if level == 0 {
		b, err := t.src.Page(ctx, ref)
		if err != nil {
			return err
		}
		l, err := DecodeLeaf(b)
		if err != nil {
			return err
		}
		return visit(base, l)
	}
	var c children
	if err := t.inner(ctx, ref, level, &c); err != nil {
		return err
	}
	for i := range c {
		if err := t.walkFrom(ctx, c[i], level-1, base+int64(i)*(span/Fanout), first, page, visit); err != nil {
			return err
		}
	}
	return nil
}

// Range is a stretch of a disk in bytes, on the grid.
type Range struct {
	Off, Len int64
	Zero     bool // it is a run of zeros
}

// Diff calls visit with the stretches in which a and b differ, in order, coalesced; Zero says what b has there. Only
// pages that differ are read. Chunks are compared by name, so a stretch is as long as the chunks that differ, whatever
// they have in common. Where one disk is longer, what it has beyond the other's end counts as different if it is data.
func Diff(ctx context.Context, a, b *Tree, visit func(Range) error) error {
	d := differ{a: a, b: b, visit: visit}
	level := max(a.Root.Level, b.Root.Level)
	if err := d.refs(ctx, lifted{a.Root.Ref(), a.Root.Level}, lifted{b.Root.Ref(), b.Root.Level}, level, 0); err != nil {
		return err
	}
	return d.flush()
}

// lifted is a reference to a page that may have to be thought of as the first child of pages that do not exist.
type lifted struct {
	ref   Ref
	level int // the level at which ref's page really is
}

type differ struct {
	a, b  *Tree
	visit func(Range) error
	open  Range
}

func (d *differ) refs(ctx context.Context, a, b lifted, level int, base int64) error {
	if a.ref.ID == b.ref.ID && (a.level == b.level || a.ref.IsZero()) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if level == 0 {
		return d.leaves(ctx, a.ref, b.ref, base)
	}
	ca, err := d.expand(ctx, d.a, a, level)
	if err != nil {
		return err
	}
	cb, err := d.expand(ctx, d.b, b, level)
	if err != nil {
		return err
	}
	step := int64(1) << (8 * (level - 1))
	for i := range ca {
		if err := d.refs(ctx, ca[i], cb[i], level-1, base+int64(i)*step); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) expand(ctx context.Context, t *Tree, l lifted, level int) (*[Fanout]lifted, error) {
	var out [Fanout]lifted
	if l.ref.IsZero() {
		return &out, nil
	}
	if l.level < level {
		out[0] = l
		return &out, nil
	}
	var c children
	if err := t.inner(ctx, l.ref, level, &c); err != nil {
		return nil, err
	}
	for i, r := range c {
		out[i] = lifted{r, level - 1}
	}
	return &out, nil
}

func (d *differ) leaves(ctx context.Context, a, b Ref, n int64) error {
	la, err := d.leaf(ctx, d.a, a)
	if err != nil {
		return err
	}
	lb, err := d.leaf(ctx, d.b, b)
	if err != nil {
		return err
	}
	for block := 0; block < LeafBlocks; {
		ea, sa := la.Find(block)
		eb, sb := lb.Find(block)
		end := int(min(ea.End, eb.End))
		// Equal IDs that start at different blocks are shifted content, not equal content.
		if ea.ID != eb.ID || !ea.IsZero() && sa != sb {
			r := Range{n*LeafSize + int64(block)*chunk.Grid, int64(end-block) * chunk.Grid, eb.IsZero()}
			if err := d.add(r); err != nil {
				return err
			}
		}
		block = end
	}
	return nil
}

func (d *differ) leaf(ctx context.Context, t *Tree, r Ref) (Leaf, error) {
	if r.IsZero() {
		return nil, nil
	}
	page, err := t.src.Page(ctx, r)
	if err != nil {
		return nil, err
	}
	return DecodeLeaf(page)
}

func (d *differ) add(r Range) error {
	if d.open.Len > 0 && d.open.Off+d.open.Len == r.Off && d.open.Zero == r.Zero {
		d.open.Len += r.Len
		return nil
	}
	err := d.flush()
	d.open = r
	return err
}

func (d *differ) flush() error {
	if d.open.Len == 0 {
		return nil
	}
	r := d.open
	d.open = Range{}
	return d.visit(r)
}
