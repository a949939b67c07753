package manifest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// version makes random changes to a disk kept in a plain map, and the tree of the result.
func version(t *testing.T, rng *rand.Rand, m *memory, size int64, parent *Tree, want map[int64]Leaf) *Tree {
	t.Helper()
	change := map[int64]Leaf{}
	for range 1 + rng.IntN(12) {
		n := rng.Int64N(leavesOf(size))
		if change[n] = nil; rng.IntN(4) > 0 {
			change[n] = randomLeaf(rng)
		}
		if old := want[n]; old != nil && rng.IntN(2) == 0 {
			l := append(Leaf(nil), old...) // a little change within a leaf
			for i := range l {
				if !l[i].IsZero() && rng.IntN(3) == 0 {
					l[i].ID = id(rng.Uint64())
				}
			}
			change[n] = l
		}
	}
	b, err := NewBuilder(size, parent, m)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range sortedKeys(change) {
		if err := b.Put(t.Context(), n, change[n]); err != nil {
			t.Fatal(err)
		}
		if want[n] = change[n]; change[n] == nil {
			delete(want, n)
		}
	}
	root, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return NewTree(root, m)
}

// blockOf names what lies in a block: chunk, and where in the chunk.
func blockOf(leaves map[int64]Leaf, block int64) string {
	e, start := leaves[block/LeafBlocks].Find(int(block % LeafBlocks))
	if e.IsZero() {
		return "zero"
	}
	return fmt.Sprintf("%v+%d", e.ID, block%LeafBlocks-int64(start))
}

// TestDiffModel compares Diff with a look at every block.
func TestDiffModel(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 8))
			m := newMemory()
			size := []int64{LeafSize, 5 * LeafSize, 260 * LeafSize}[rng.IntN(3)]
			larger := size * int64(1+rng.IntN(2)*2)
			contentA := map[int64]Leaf{}
			a := version(t, rng, m, size, nil, contentA)
			contentB := map[int64]Leaf{}
			for n, l := range contentA {
				contentB[n] = l
			}
			b := version(t, rng, m, larger, a, contentB)
			for range rng.IntN(3) {
				b = version(t, rng, m, larger, b, contentB)
			}
			for _, c := range []struct {
				x, y     *Tree
				of, with map[int64]Leaf
			}{{a, b, contentA, contentB}, {b, a, contentB, contentA}, {b, b, contentB, contentB}} {
				differs := map[int64]bool{}
				last, lastZero := int64(-1), false
				err := Diff(t.Context(), c.x, c.y, func(r Range) error {
					if r.Len <= 0 || r.Off < last || r.Off == last && r.Zero == lastZero || r.Off%chunk.Grid != 0 || r.Len%chunk.Grid != 0 {
						t.Fatalf("range %v after one that ended at %d", r, last)
					}
					last, lastZero = r.Off+r.Len, r.Zero
					for off := r.Off; off < last; off += chunk.Grid {
						differs[off/chunk.Grid] = true
						if e, _ := c.with[off/LeafSize].Find(int(off % LeafSize / chunk.Grid)); e.IsZero() != r.Zero {
							t.Fatalf("of the range %v block %d is not zeros, or is", r, off/chunk.Grid)
						}
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				for n := range larger / LeafSize {
					if c.of[n] == nil && c.with[n] == nil {
						continue
					}
					for block := n * LeafBlocks; block < (n+1)*LeafBlocks; block++ {
						if (blockOf(c.of, block) != blockOf(c.with, block)) != differs[block] {
							t.Fatalf("block %d: Diff says %v (repeat: go test ./chunkstore/manifest -run 'TestDiffModel/seed%d')", block, differs[block], seed)
						}
						delete(differs, block)
					}
				}
				if len(differs) > 0 {
					t.Fatalf("%d blocks of zeros are said to differ", len(differs))
				}
			}
		})
	}
}

// TestWalks: the walks see the same leaves, from any leaf on, and every page once, parents first.
func TestWalks(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	m := newMemory()
	want := map[int64]Leaf{}
	size := int64(3 << 40)
	tree := version(t, rng, m, size, nil, want)
	for range 6 {
		tree = version(t, rng, m, size, tree, want)
	}
	keys := sortedKeys(want)
	for _, first := range append([]int64{0, 1, leavesOf(size)}, keys...) {
		var got, expect []int64
		for _, k := range keys {
			if k >= first {
				expect = append(expect, k)
			}
		}
		err := tree.WalkFrom(t.Context(), first, func(n int64, _ Leaf) error { got = append(got, n); return nil })
		if err != nil || fmt.Sprint(got) != fmt.Sprint(expect) {
			t.Fatalf("from %d: %v, %v, want %v", first, got, err, expect)
		}
	}
	seen := map[chunk.ID]bool{}
	above, leaves := tree.Root.Level+1, 0
	err := tree.WalkPages(t.Context(), func(r Ref, l int) bool {
		if seen[r.ID] || l >= above && len(seen) == 0 || l < above-1 {
			t.Errorf("page of level %d after one of level %d: twice, or before its parent", l, above)
		}
		seen[r.ID], above = true, l
		return true
	}, func(int64, Leaf) error { leaves++; return nil })
	if err != nil || leaves != len(want) || len(seen) < leaves+3 {
		t.Fatalf("%d leaves and %d pages, %v", leaves, len(seen), err)
	}
	m.reads = 0
	err = tree.WalkPages(t.Context(), func(Ref, int) bool { return false }, func(int64, Leaf) error { return errors.New("no") })
	if err != nil || m.reads > 0 {
		t.Errorf("a refused root was read %d times, %v", m.reads, err)
	}
	stop := errors.New("enough")
	if err := tree.Walk(t.Context(), func(int64, Leaf) error { return stop }); err != stop {
		t.Error("the visitor's error came out as", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tree.Walk(ctx, func(int64, Leaf) error { return nil }); !errs.Is(err, errs.Canceled) {
		t.Error("a cancelled walk:", err)
	}
	if err := Diff(ctx, tree, NewTree(Root{Size: size, Level: tree.Root.Level}, m), func(Range) error { return nil }); !errs.Is(err, errs.Canceled) {
		t.Error("a cancelled Diff:", err)
	}
}

// failing is a sink that fails at its n-th Put.
type failing struct {
	*memory
	left int
}

func (f *failing) Put(ctx context.Context, d chunk.Digest, page []byte) (chunk.Place, error) {
	if f.left--; f.left == 0 {
		return chunk.Place{}, errs.Text("put page", d.String(), errs.NoSpace, "made to fail")
	}
	return f.memory.Put(ctx, d, page)
}

// TestSinkErrorsComeOut, and a builder that failed makes no root.
func TestSinkErrorsComeOut(t *testing.T) {
	for n := 1; ; n++ {
		f := &failing{newMemory(), n}
		b, err := NewBuilder(600<<30, nil, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, leaf := range []int64{0, 5, 300, 70000} {
			if err == nil {
				err = b.Put(t.Context(), leaf, leafOf(1, int(leaf%100)))
			}
		}
		root, ferr := b.Finish(t.Context())
		if f.left > 0 {
			if ferr != nil || n < 9 {
				t.Fatalf("without a fault, after %d puts: %v", n, ferr)
			}
			return
		}
		if !errs.Is(ferr, errs.NoSpace) || err != nil && !errs.Is(err, errs.NoSpace) || root != (Root{}) {
			t.Fatalf("put %d failed: Put says %v, Finish %v with %v", n, err, ferr, root)
		}
	}
}

// TestChildrenAreWhatWasEncoded.
func TestChildrenAreWhatWasEncoded(t *testing.T) {
	var c children
	c[0], c[7], c[255] = Ref{id(1), chunk.Place{Pack: 1}, 1}, Ref{id(2), chunk.Place{Pack: 2}, 2}, Ref{id(3), chunk.Place{Pack: 3}, 3}
	page := encodeInner(nil, 1, &c)
	got, err := Children(page, 1)
	if err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
	for _, g := range got {
		if c[g.Index] != g.Ref {
			t.Errorf("child %d: %v", g.Index, g.Ref)
		}
	}
	for name, bad := range map[string][]byte{
		"another level": encodeInner(nil, 2, &c), "a leaf": encodeLeaf(nil, leafOf(1, 2)), "nothing": nil,
		"twice": append(bytes.Clone(page[:headerSize+childSize]), page[headerSize:headerSize+2*childSize]...),
	} {
		if _, err := Children(bad, 1); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
