package manifest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// randomLeaf makes a legal leaf of runs and chunks of any length.
func randomLeaf(rng *rand.Rand) Leaf {
	for {
		var l Leaf
		end, data := 0, false
		for end < LeafBlocks {
			e := Entry{}
			longest := chunk.MaxSize / chunk.Grid
			if rng.IntN(3) > 0 || len(l) > 0 && l[len(l)-1].IsZero() {
				e.ID, e.Place, data = id(rng.Uint64()), chunk.Place{Pack: rng.Uint32(), Offset: rng.Uint32(), Stored: 1}, true
			} else {
				longest = LeafBlocks
			}
			end = min(LeafBlocks, end+1+rng.IntN(1+rng.IntN(longest)))
			e.End = uint16(end)
			l = append(l, e)
		}
		if data {
			return l
		}
	}
}

// TestViewFindsWhatLeafFinds, for every block of random leaves.
func TestViewFindsWhatLeafFinds(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	leaves := []Leaf{nil}
	for range 60 {
		leaves = append(leaves, randomLeaf(rng))
	}
	for i, l := range leaves {
		m := newMemory()
		tree := build(t, m, LeafSize, nil, map[int64]Leaf{0: l})
		v, err := tree.View(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		for b := range LeafBlocks {
			want, from := l.Find(b)
			got, at := v.Find(b)
			if got != want || at != from {
				t.Fatalf("leaf %d, block %d: %v from %d, want %v from %d", i, b, got, at, want, from)
			}
		}
	}
}

// TestNextData compares with a map, on trees of every height.
func TestNextData(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 2))
	for _, size := range []int64{1, LeafSize, 40 * LeafSize, 300 * LeafSize, 600 << 30, 200 << 40} {
		m := newMemory()
		leaves := map[int64]Leaf{}
		count := leavesOf(size)
		for range rng.IntN(40) {
			n := rng.Int64N(count)
			leaves[n] = leafOf(1, int(n%128))
		}
		b, err := NewBuilder(size, nil, m)
		if err != nil {
			t.Fatal(err)
		}
		keys := sortedKeys(leaves)
		for _, n := range keys {
			if err := b.Put(t.Context(), n, leaves[n]); err != nil {
				t.Fatal(err)
			}
		}
		root, err := b.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		tree := NewTree(root, m)
		ask := append([]int64{0, count - 1, count}, keys...)
		for _, k := range keys {
			ask = append(ask, k+1, max(0, k-1))
		}
		for range 50 {
			ask = append(ask, rng.Int64N(count))
		}
		for _, n := range ask {
			want := count
			for _, k := range keys {
				if k >= n {
					want = k
					break
				}
			}
			if got, err := tree.NextData(t.Context(), n); err != nil || got != want {
				t.Fatalf("disk of %d leaves: NextData(%d) = %d, %v, want %d", count, n, got, err, want)
			}
		}
	}
}

// TestNextDataReadsNoLeaf: the cost of a hole is that of the inner pages on the way.
func TestNextDataReadsNoLeaf(t *testing.T) {
	m := newMemory()
	tree := build(t, m, 600<<30, nil, map[int64]Leaf{70000: leafOf(1, 2)})
	m.reads = 0
	if n, err := tree.NextData(t.Context(), 5); err != nil || n != 70000 || m.reads != 3 {
		t.Errorf("NextData = %d, %v with %d pages read, want 70000 with 3", n, err, m.reads)
	}
	for n := 1; n <= 3; n++ {
		m.reads, m.failReadAfter = 0, n
		if _, err := tree.NextData(t.Context(), 5); !errs.Is(err, errs.Transient) {
			t.Errorf("read %d failed, NextData says %v", n, err)
		}
		m.reads = 0
		if _, err := tree.View(t.Context(), 70000); !errs.Is(err, errs.Transient) {
			t.Errorf("read %d failed, View says %v", n, err)
		}
	}
}

// TestViewOfNonsense: whatever lies in a page, a search ends with an entry that covers the block, or an error.
func TestViewOfNonsense(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 2))
	good := encodeLeaf(nil, randomLeaf(rng))
	for range 3000 {
		page := bytes.Clone(good)
		for range 1 + rng.IntN(6) {
			page[rng.IntN(len(page))] = byte(rng.Uint32())
		}
		m := newMemory()
		ref := Ref{ID: id(1), Data: 4096}
		m.pages[ref.ID] = page
		tree := NewTree(Root{Size: LeafSize, Digest: chunk.Digest(append(ref.ID[:], make([]byte, 16)...)), Data: 4096}, m)
		v, err := tree.View(t.Context(), 0)
		if err != nil {
			if !errs.Is(err, errs.Corrupt) {
				t.Fatal(err)
			}
			continue
		}
		for b := range LeafBlocks {
			if e, start := v.Find(b); start > b || int(e.End) <= b {
				t.Fatalf("block %d is said to lie in %d to %d", b, start, e.End)
			}
		}
	}
}

// TestCheck takes every page that is encoded and refuses what the decoders refuse.
func TestCheck(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 2))
	leaf := encodeLeaf(nil, randomLeaf(rng))
	var c children
	for i := range c {
		if rng.IntN(3) == 0 {
			c[i] = Ref{id(rng.Uint64()), chunk.Place{Pack: 1}, 4096}
		}
	}
	for level := range MaxLevel + 1 {
		page := leaf
		if level > 0 {
			page = encodeInner(nil, level, &c)
		}
		if err := Check(page); err != nil {
			t.Errorf("level %d: %v", level, err)
		}
		for n := range page {
			if err := Check(page[:n]); !errs.Is(err, errs.Corrupt) {
				t.Fatalf("level %d cut to %d bytes: %v", level, n, err)
			}
		}
		for range 2000 {
			bad := bytes.Clone(page)
			bad[rng.IntN(len(bad))] ^= byte(1 << rng.IntN(8))
			var err error
			if bad[4] == 0 {
				_, err = DecodeLeaf(bad)
			} else if bad[4] <= MaxLevel {
				err = decodeInner(bad, int(bad[4]), &children{})
			} else {
				err = corrupt("level")
			}
			if got := Check(bad); (got == nil) != (err == nil) {
				t.Fatalf("level %d: Check says %v, the decoder %v", level, got, err)
			}
		}
	}
}

// TestChildAt finds each child, and nothing where there is none.
func TestChildAt(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 2))
	for range 50 {
		var c children
		c[rng.IntN(Fanout)] = Ref{id(1), chunk.Place{Pack: 1}, 4096}
		for range rng.IntN(300) {
			c[rng.IntN(Fanout)] = Ref{id(rng.Uint64()), chunk.Place{Pack: rng.Uint32(), Stored: 9}, 8192}
		}
		page := encodeInner(nil, 3, &c)
		for i := range c {
			got, err := childAt(page, 3, i)
			if err != nil || got != c[i] {
				t.Fatalf("child %d: %v, %v, want %v", i, got, err, c[i])
			}
		}
		if _, err := childAt(page, 2, 0); !errs.Is(err, errs.Corrupt) {
			t.Error("a page of another level:", err)
		}
	}
}

// FuzzView: a search never leaves the page, whatever is in it.
func FuzzView(f *testing.F) {
	f.Add(encodeLeaf(nil, leafOf(1, 2, 5)), uint16(40))
	f.Add([]byte(pageMagic), uint16(0))
	f.Fuzz(func(t *testing.T, page []byte, block uint16) {
		m := newMemory()
		m.pages[id(1)] = page
		one := id(1)
		tree := NewTree(Root{Size: LeafSize, Digest: chunk.Digest(append(one[:], make([]byte, 16)...)), Data: 4096}, m)
		if v, err := tree.View(t.Context(), 0); err == nil {
			b := int(block) % LeafBlocks
			if e, start := v.Find(b); start > b || int(e.End) <= b {
				t.Fatalf("block %d is said to lie in %d to %d", b, start, e.End)
			}
		}
		_ = Check(page)
	})
}

// BenchmarkFind compares a search in the page with decoding it.
func BenchmarkFind(b *testing.B) {
	m := newMemory()
	var cells []int
	for i := range 128 {
		cells = append(cells, i)
	}
	bl, err := NewBuilder(600<<30, nil, m)
	if err != nil {
		b.Fatal(err)
	}
	if err := bl.Put(b.Context(), 70000, leafOf(1, cells...)); err != nil {
		b.Fatal(err)
	}
	root, err := bl.Finish(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	tree := NewTree(root, m)
	b.Run("view", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			v, err := tree.View(b.Context(), 70000)
			if e, _ := v.Find(i % LeafBlocks); err != nil || e.IsZero() {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			l, err := tree.Leaf(b.Context(), 70000)
			if e, _ := l.Find(i % LeafBlocks); err != nil || e.IsZero() {
				b.Fatal(err)
			}
		}
	})
}

// TestHeaderCountIsBelieved only if the length agrees.
func TestHeaderCountIsBelieved(t *testing.T) {
	page := encodeLeaf(nil, leafOf(1, 2))
	for n := range 1 << 16 {
		if n == 3 {
			continue
		}
		binary.LittleEndian.PutUint16(page[6:], uint16(n))
		if err := Check(page); !errs.Is(err, errs.Corrupt) {
			t.Fatalf("count %d: %v", n, err)
		}
	}
}
