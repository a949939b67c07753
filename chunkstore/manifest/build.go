package manifest

import (
	"context"
	"fmt"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Sink keeps pages.
type Sink interface {
	// Digest names a page (see PageDigest).
	Digest(page []byte) (chunk.Digest, error)
	// Put keeps a page and returns its place. The bytes are the builder's again on return.
	Put(ctx context.Context, digest chunk.Digest, page []byte) (chunk.Place, error)
}

// Builder makes the tree of a new point: it begins as the parent's tree and replaces leaves, in ascending order. Pages
// that do not change are shared. It holds one page of each level in memory.
type Builder struct {
	size   int64
	level  int
	parent *Tree // nil: everything is zeros
	sink   Sink
	path   [MaxLevel + 1]step // path[k] is the open page of level k; level 0 is unused
	next   int64              // the lowest leaf that may still be put
	top    Ref
	digest chunk.Digest // of top, if top was written by us
	buf    []byte
	err    error
}

// step is an open inner page.
type step struct {
	open  bool
	index int64 // the page's number within its level
	dirty bool
	old   Ref
	c     children
}

// NewBuilder returns a builder for a disk of the given size in bytes. parent may be nil; it may not be longer than
// size, since its leaves beyond the end would have to be cut.
func NewBuilder(size int64, parent *Tree, sink Sink) (*Builder, error) {
	if size < 0 || size > MaxSize {
		return nil, errs.Text("build manifest", fmt.Sprint(size), errs.Invalid, "no size a disk can have")
	}
	b := &Builder{size: size, level: LevelFor(size), parent: parent, sink: sink}
	if parent != nil {
		if parent.Root.Size > size {
			return nil, errs.Text("build manifest", "", errs.Bug, "the parent is longer than the disk")
		}
		if parent.Root.Level == b.level {
			b.top, b.digest = parent.Root.Ref(), parent.Root.Digest
		}
	}
	return b, nil
}

// Put replaces leaf n; nil makes it zeros. Leaves come in ascending order, each at most once; those not put stay as
// they are in the parent.
func (b *Builder) Put(ctx context.Context, n int64, l Leaf) error {
	if b.err != nil {
		return b.err
	}
	if n < b.next || n >= leavesOf(b.size) {
		return b.fail(errs.Text("build manifest", fmt.Sprint(n), errs.Bug, "leaf out of order or beyond the end"))
	}
	b.next = n + 1
	if b.level == 0 {
		ref, digest, err := b.putLeaf(ctx, b.top, l)
		b.top, b.digest = ref, digest
		return b.fail(err)
	}
	if err := b.descend(ctx, n); err != nil {
		return b.fail(err)
	}
	s := &b.path[1]
	old := s.c[n%Fanout]
	ref, _, err := b.putLeaf(ctx, old, l)
	if err != nil {
		return b.fail(err)
	}
	if ref.ID != old.ID {
		s.c[n%Fanout], s.dirty = ref, true
	}
	return nil
}

func (b *Builder) fail(err error) error {
	if err != nil {
		b.err = err
	}
	return err
}

func (b *Builder) putLeaf(ctx context.Context, old Ref, l Leaf) (Ref, chunk.Digest, error) {
	data := l.DataBytes()
	if data == 0 {
		return Ref{}, chunk.Digest{}, nil
	}
	b.buf = encodeLeaf(b.buf[:0], l)
	if _, err := DecodeLeaf(b.buf); err != nil {
		return Ref{}, chunk.Digest{}, errs.New("build manifest", "leaf", errs.Bug, err)
	}
	return b.keep(ctx, old, data)
}

// keep hands the page in buf to the sink, unless it is the old one still.
func (b *Builder) keep(ctx context.Context, old Ref, data int64) (Ref, chunk.Digest, error) {
	digest, err := b.sink.Digest(b.buf)
	if err != nil || digest.ID() == old.ID {
		return old, digest, err
	}
	place, err := b.sink.Put(ctx, digest, b.buf)
	return Ref{digest.ID(), place, data}, digest, err
}

// raised tells whether the parent's tree is lower than ours: its top page then hangs below new pages, which are the
// first of their level.
func (b *Builder) raised() bool {
	return b.parent != nil && b.parent.Root.Level < b.level && b.parent.Root.Data > 0
}

// descend opens the pages on the way to leaf n, closing those that end before it.
func (b *Builder) descend(ctx context.Context, n int64) error {
	if n > 0 && b.raised() && !b.path[b.level].open {
		// The new pages above the parent's tree must be written even if no leaf below them is put.
		if err := b.descend(ctx, 0); err != nil {
			return err
		}
	}
	for k := 1; k <= b.level; k++ {
		if b.path[k].open && b.path[k].index != n>>(8*k) {
			if err := b.close(ctx, k); err != nil {
				return err
			}
		}
	}
	for k := b.level; k >= 1; k-- {
		if s := &b.path[k]; !s.open {
			s.index = n >> (8 * k)
			if err := b.open(ctx, s, k); err != nil {
				return err
			}
		}
	}
	return nil
}

// open fills the page s of level k from the parent's tree.
func (b *Builder) open(ctx context.Context, s *step, k int) error {
	s.open, s.dirty, s.old, s.c = true, false, Ref{}, children{}
	switch {
	case b.parent == nil:
		return nil
	case k > b.parent.Root.Level:
		if s.index == 0 && b.raised() {
			s.dirty = true
			if k == b.parent.Root.Level+1 {
				s.c[0] = b.parent.Root.Ref()
			}
		}
		return nil
	case k == b.level:
		s.old = b.top
	default:
		s.old = b.path[k+1].c[s.index%Fanout]
	}
	if s.old.IsZero() {
		return nil
	}
	return b.parent.inner(ctx, s.old, k, &s.c)
}

// close writes the open page of level k if it changed, and hands its reference to the page above.
func (b *Builder) close(ctx context.Context, k int) error {
	s := &b.path[k]
	s.open = false
	if !s.dirty {
		return nil
	}
	ref, digest := Ref{}, chunk.Digest{}
	if data := s.c.data(); data > 0 {
		b.buf = encodeInner(b.buf[:0], k, &s.c)
		var err error
		if ref, digest, err = b.keep(ctx, s.old, data); err != nil {
			return err
		}
	}
	if k == b.level {
		b.top, b.digest = ref, digest
		return nil
	}
	up := &b.path[k+1]
	up.c[s.index%Fanout], up.dirty = ref, true
	return nil
}

// Finish writes what is open and returns the root.
func (b *Builder) Finish(ctx context.Context) (Root, error) {
	if b.err != nil {
		return Root{}, b.err
	}
	if b.raised() && !b.path[b.level].open {
		if err := b.descend(ctx, 0); err != nil {
			return Root{}, b.fail(err)
		}
	}
	for k := 1; k <= b.level; k++ {
		if b.path[k].open {
			if err := b.close(ctx, k); err != nil {
				return Root{}, b.fail(err)
			}
		}
	}
	b.err = errs.Text("build manifest", "", errs.Bug, "used after Finish")
	return Root{Size: b.size, Level: b.level, Digest: b.digest, Place: b.top.Place, Data: b.top.Data}, nil
}
