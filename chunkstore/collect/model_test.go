package collect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
)

// session is a backup. It works in small steps, so that anything can happen between finding a chunk and committing.
type session struct {
	w      *world
	parent *point
	base   *manifest.Tree
	build  *manifest.Builder
	leaf   int64
	open   manifest.Leaf // the leaf that is being put together
	packs  [Pages + 1]packID
	fresh  map[chunk.ID]chunk.Place
}

const diskSize = 5 * manifest.LeafSize

func (w *world) begin() {
	x := &session{w: w, fresh: map[chunk.ID]chunk.Place{}}
	if p, ok := pick(w, w.points); ok && w.rng.IntN(3) > 0 {
		x.parent = p
		w.leases[p.name]++
		x.base = manifest.NewTree(p.root, w)
	}
	w.sessions[x] = w.last
	var err error
	if x.build, err = manifest.NewBuilder(diskSize, x.base, x); err != nil {
		w.failf("begin: %v", err)
	}
}

func (w *world) anySession() *session { return w.oldest(w.sessions) }

// oldest returns a session, always the same one of the same world.
func (w *world) oldest(among map[*session]uint32) (out *session) {
	for x, begun := range among {
		if out == nil || cmp.Or(cmp.Compare(begun, among[out]), cmp.Compare(x.leaf, out.leaf), cmp.Compare(len(x.open), len(out.open))) < 0 {
			out = x
		}
	}
	return out
}

// goOn does one thing: it finds or appends one chunk of a leaf, puts a leaf, or comes to its end.
func (x *session) goOn() {
	switch r := x.w.rng.IntN(12); {
	case r == 0 && x.leaf > 0:
		x.commit()
	case r == 1 && x.w.rng.IntN(4) == 0:
		x.abort()
	case r < 4 && len(x.open) > 0 || len(x.open) == 6:
		x.put()
	case x.leaf*manifest.LeafSize >= diskSize:
		x.commit()
	default:
		x.chunk()
	}
}

// chunk finds a chunk in the parent or in the index, as a store does, or appends it.
func (x *session) chunk() {
	id := chunk.ID{1: byte(1 + x.w.rng.IntN(40))}
	var at chunk.Place
	old := x.oldPlace(id)
	switch found, ok := x.w.index[id]; {
	case !old.IsZero() && x.holds(id, old):
		at = old
	case !x.fresh[id].IsZero():
		at = x.fresh[id]
	case ok && x.holds(id, found):
		at = found
	default:
		x.w.stored[id]++
		at = x.append(Data, id, []uint32{100, 4000, 40_000}[x.w.rng.IntN(3)])
		x.fresh[id] = at
		x.w.ids[at] = id
	}
	end := uint16(len(x.open)+1) * 3
	x.open = append(x.open, manifest.Entry{End: end, ID: id, Place: at})
	if p := x.w.packs[x.packs[Data]]; p != nil && len(p.chunks) >= 6 {
		x.seal(Data)
	}
}

// oldPlace looks for a chunk in the parent's leaf.
func (x *session) oldPlace(id chunk.ID) chunk.Place {
	if x.base == nil {
		return chunk.Place{}
	}
	l, err := x.base.Leaf(context.Background(), x.leaf)
	if err != nil {
		x.w.failf("a session cannot read its parent: %v", err)
	}
	for _, e := range l {
		if e.ID == id {
			return e.Place
		}
	}
	return chunk.Place{}
}

// holds is what Store.holds is: a look into the directory.
func (x *session) holds(id chunk.ID, at chunk.Place) bool {
	p := x.w.packs[packID{Data, at.Pack}]
	return p != nil && slices.Contains(p.chunks, Chunk{id, at, at})
}

func (x *session) append(k Kind, id chunk.ID, stored uint32) chunk.Place {
	w := x.w
	if w.packs[x.packs[k]] == nil || w.packs[x.packs[k]].sealed {
		w.last++
		x.packs[k] = packID{k, w.last}
		w.packs[x.packs[k]] = &packState{end: 4, rigid: w.rng.IntN(8) == 0}
	}
	p := w.packs[x.packs[k]]
	at := chunk.Place{Pack: x.packs[k].number, Offset: p.end, Stored: stored}
	p.end += (stored + chunk.PlaceUnit - 1) / chunk.PlaceUnit
	p.chunks = append(p.chunks, Chunk{id, at, at})
	return at
}

func (x *session) seal(k Kind) {
	p := x.w.packs[x.packs[k]]
	if p == nil || p.sealed {
		return
	}
	p.sealed = true
	if k == Data {
		for _, c := range p.chunks {
			x.w.index[c.ID] = c.Place
		}
		p.marked = true
		clear(x.fresh)
	}
}

// Digest implements manifest.Sink.
func (x *session) Digest(page []byte) (chunk.Digest, error) {
	return manifest.PageDigest([]byte("key"), page)
}

// Put implements manifest.Sink.
func (x *session) Put(_ context.Context, d chunk.Digest, page []byte) (chunk.Place, error) {
	at := x.append(Pages, d.ID(), 90)
	x.w.pages[at] = slices.Clone(page)
	return at, nil
}

func (x *session) put() {
	l := append(slices.Clone(x.open), manifest.Entry{End: manifest.LeafBlocks})
	if err := x.build.Put(context.Background(), x.leaf, l); err != nil {
		x.w.failf("put: %v", err)
	}
	x.open = nil
	x.leaf += 1 + x.w.rng.Int64N(2)
}

func (x *session) commit() {
	if len(x.open) > 0 && x.leaf*manifest.LeafSize < diskSize {
		x.put()
	}
	root, err := x.build.Finish(context.Background())
	if err != nil {
		x.w.failf("commit: %v", err)
		return
	}
	x.seal(Data)
	x.seal(Pages)
	x.w.named++
	p := &point{name: fmt.Sprintf("p%05d", x.w.named), root: root}
	if err := manifest.NewTree(root, x.w).WalkPages(context.Background(),
		func(r manifest.Ref, _ int) bool { p.needs = append(p.needs, r.Place); return true },
		func(_ int64, l manifest.Leaf) error {
			for _, e := range l {
				if !e.IsZero() {
					p.needs = append(p.needs, e.Place)
				}
			}
			return nil
		}); err != nil {
		x.w.failf("a point that was just committed cannot be read: %v", err)
	}
	x.w.points[p.name] = p
	x.leave()
}

func (x *session) abort() {
	x.seal(Data)
	if id := x.packs[Pages]; x.w.packs[id] != nil && !x.w.packs[id].sealed {
		x.w.drop(id)
	}
	x.leave()
}

func (x *session) leave() {
	x.release()
	delete(x.w.sessions, x)
}

func (x *session) release() {
	if x.parent != nil {
		x.w.leases[x.parent.name]--
		x.parent = nil
	}
}

// TestModel plays histories in which sessions, readers and removals act between any two steps of collections, some of
// which are killed. Nothing that a point or a reader needs is ever given back, and in the end nothing else is left.
func TestModel(t *testing.T) {
	histories := uint64(4000)
	if testing.Short() {
		histories = 400
	}
	var reused, waited, killed, holes, healed int64
	for seed := range histories {
		w := newWorld(seed)
		for range 3 + w.rng.IntN(4) {
			for range w.rng.IntN(60) {
				w.act()
			}
			if w.rng.IntN(3) == 0 {
				w.killAt = w.steps + w.rng.IntN(60)
			}
			res, err := Run(t.Context(), w.store(), Options{DryRun: w.rng.IntN(10) == 0})
			reused, holes = reused+res.Reused, holes+int64(res.PacksShrunk)
			if errors.Is(err, errKilled) {
				killed++
				w.reopen()
			} else if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			w.killAt = -1
			w.check()
			if w.fault != nil {
				t.Fatalf("seed %d: %v", seed, w.fault)
			}
		}
		waited, healed = waited+int64(w.waited), healed+int64(w.healed)
		w.finish(t, seed)
	}
	t.Logf("%d chunks healed, %d kills, %d chunks reused at the last moment, %d packs shrunk, %d waits for sessions", healed, killed, reused, holes, waited)
	if reused < int64(histories)/50 || waited < int64(histories)/4 || killed < int64(histories)/4 || holes < int64(histories) {
		t.Error("the histories hardly meet what is to be tested")
	}
}

func (w *world) store() Store { return Store{w, w, w, w, w, w} }

// known checks that the index is complete again: what is there is found, so that nobody stores it once more. Of a chunk
// that was stored more than once, the index may have known only the copy that was given back.
func (w *world) known(t *testing.T, seed uint64) {
	t.Helper()
	for id, p := range w.packs {
		if id.kind != Data || !p.sealed {
			continue
		}
		if !p.marked {
			t.Fatalf("seed %d: %v has no mark", seed, id)
		}
		for _, c := range p.chunks {
			if w.index[c.ID].IsZero() && w.stored[c.ID] == 1 {
				t.Fatalf("seed %d: chunk %v in %v is not known", seed, c.ID, id)
			}
		}
	}
}

// finish ends everybody's work, collects, and looks at what is left; then removes all points, and nothing must be.
func (w *world) finish(t *testing.T, seed uint64) {
	t.Helper()
	for len(w.sessions) > 0 {
		w.anySession().commit()
	}
	w.readers, w.quiet = nil, true
	clear(w.moved) // nobody remembers the damage
	clear(w.leases)
	collect := func() {
		if _, err := Run(t.Context(), w.store(), Options{}); err != nil {
			t.Fatalf("seed %d, at the end: %v", seed, err)
		}
	}
	collect()
	needed := map[chunk.Place]bool{}
	for _, p := range w.points {
		for _, at := range p.needs {
			needed[at] = true
		}
	}
	for id, p := range w.packs {
		if p.sealed && !slices.ContainsFunc(p.chunks, func(c Chunk) bool { return needed[c.Place] }) {
			t.Fatalf("seed %d: nobody needs %v, and it is still there", seed, id)
		}
	}
	w.known(t, seed)
	for at := range needed {
		if w.gone[at] {
			t.Fatalf("seed %d: %v is gone", seed, at)
		}
	}
	for _, p := range maps.Clone(w.points) {
		w.remove(p)
	}
	collect()
	for id, p := range w.packs {
		if p.sealed {
			t.Fatalf("seed %d: no point is left, but %v is", seed, id)
		}
	}
	if len(w.removed)+len(w.intended) > 0 {
		t.Fatalf("seed %d: %d records of removed points and %d unfinished packs are left", seed, len(w.removed), len(w.intended))
	}
}
