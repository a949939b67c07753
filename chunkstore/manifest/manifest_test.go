package manifest

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

var testKey = []byte("0123456789abcdef0123456789abcdef")

// memory is a Source and Sink that counts what passes through it.
type memory struct {
	pages         map[chunk.ID][]byte
	puts, reads   int
	bytesWritten  int
	failReadAfter int // 0: never
}

func newMemory() *memory { return &memory{pages: map[chunk.ID][]byte{}} }

func (m *memory) Digest(page []byte) (chunk.Digest, error) { return PageDigest(testKey, page) }

func (m *memory) Put(_ context.Context, d chunk.Digest, page []byte) (chunk.Place, error) {
	m.puts++
	m.bytesWritten += len(page)
	m.pages[d.ID()] = bytes.Clone(page)
	return chunk.Place{Pack: 1, Offset: uint32(m.puts), Stored: uint32(len(page))}, nil
}

func (m *memory) Page(_ context.Context, ref Ref) ([]byte, error) {
	m.reads++
	if m.failReadAfter > 0 && m.reads >= m.failReadAfter {
		return nil, errs.Text("read page", ref.ID.String(), errs.Transient, "made to fail")
	}
	p, ok := m.pages[ref.ID]
	if !ok {
		return nil, errs.Text("read page", ref.ID.String(), errs.NotFound, "never written")
	}
	return p, nil
}

func id(n uint64) chunk.ID {
	var i chunk.ID
	binary.LittleEndian.PutUint64(i[:], n)
	i[15] = 1
	return i
}

// leafOf makes a leaf with one 64 KiB chunk at each of the given cells; everything else is zeros.
func leafOf(version uint64, cells ...int) Leaf {
	const cell = 16 // blocks
	var l Leaf
	end := 0
	for _, c := range cells {
		if c*cell > end {
			l = append(l, Entry{End: uint16(c * cell)})
		}
		end = (c + 1) * cell
		l = append(l, Entry{End: uint16(end), ID: id(version*1000 + uint64(c)), Place: chunk.Place{Pack: 9, Offset: uint32(c), Stored: 77}})
	}
	if end < LeafBlocks {
		l = append(l, Entry{End: LeafBlocks})
	}
	return l
}

func build(t *testing.T, m *memory, size int64, parent *Tree, leaves map[int64]Leaf) *Tree {
	t.Helper()
	b, err := NewBuilder(size, parent, m)
	if err != nil {
		t.Fatal(err)
	}
	for n := int64(0); n < leavesOf(size); n++ {
		if l, ok := leaves[n]; ok {
			if err := b.Put(t.Context(), n, l); err != nil {
				t.Fatal(err)
			}
		}
	}
	root, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return NewTree(root, m)
}

func read(t *testing.T, tr *Tree) map[int64]Leaf {
	t.Helper()
	got := map[int64]Leaf{}
	last := int64(-1)
	if err := tr.Walk(t.Context(), func(n int64, l Leaf) error {
		if n <= last {
			t.Fatalf("leaf %d after leaf %d", n, last)
		}
		last = n
		got[n] = l
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestLevelFor(t *testing.T) {
	for _, c := range []struct {
		size int64
		want int
	}{
		{0, 0}, {1, 0}, {LeafSize, 0}, {LeafSize + 1, 1}, {2 << 30, 1}, {2<<30 + 1, 2}, {512 << 30, 2},
		{512<<30 + 1, 3}, {128 << 40, 3}, {128<<40 + 1, 4}, {MaxSize, 4},
	} {
		if got := LevelFor(c.size); got != c.want {
			t.Errorf("LevelFor(%d) = %d, want %d", c.size, got, c.want)
		}
	}
}

// TestModel runs random points of one disk, growing now and then, against a plain map.
func TestModel(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			m := newMemory()
			size := int64(1+rng.IntN(3)) * LeafSize << (8 * rng.IntN(3)) / 2
			want := map[int64]Leaf{}
			var tree *Tree
			for version := uint64(1); version < 8; version++ {
				if rng.IntN(3) == 0 {
					size = size << rng.IntN(9)
				}
				change := map[int64]Leaf{}
				for range rng.IntN(20) {
					n := rng.Int64N(leavesOf(size))
					if n > 600 && rng.IntN(2) == 0 {
						n = leavesOf(size) - 1 - n%3
					}
					if change[n] = nil; rng.IntN(3) > 0 {
						change[n] = leafOf(version, rng.IntN(60), 60+rng.IntN(60))
					}
				}
				b, err := NewBuilder(size, tree, m)
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
				tree = NewTree(root, m)
				check(t, tree, want, size)
			}
		})
	}
}

func sortedKeys(m map[int64]Leaf) []int64 {
	var out []int64
	for k := range m {
		out = append(out, k)
		for i := len(out) - 1; i > 0 && out[i] < out[i-1]; i-- {
			out[i], out[i-1] = out[i-1], out[i]
		}
	}
	return out
}

func check(t *testing.T, tree *Tree, want map[int64]Leaf, size int64) {
	t.Helper()
	got := read(t, tree)
	if len(got) != len(want) {
		t.Fatalf("%d leaves, want %d", len(got), len(want))
	}
	var data int64
	for n, l := range want {
		if fmt.Sprint(got[n]) != fmt.Sprint(l) {
			t.Fatalf("leaf %d differs", n)
		}
		one, err := tree.Leaf(t.Context(), n)
		if err != nil || fmt.Sprint(one) != fmt.Sprint(l) {
			t.Fatalf("Leaf(%d) = %v, %v", n, one, err)
		}
		data += l.DataBytes()
	}
	if tree.Root.Data != data || tree.Root.Size != size || tree.Root.Level != LevelFor(size) {
		t.Fatalf("root %+v, want %d data bytes of %d", tree.Root, data, size)
	}
	if tree.Root.Digest.IsZero() != (data == 0) {
		t.Fatalf("root digest %v with %d bytes of data", tree.Root.Digest, data)
	}
}

func TestEqualContentHasEqualRootWhereverItLies(t *testing.T) {
	leaves := map[int64]Leaf{0: leafOf(1, 0), 700: leafOf(1, 4, 9)}
	size := int64(16 << 30)
	a := build(t, newMemory(), size, nil, leaves)
	m := newMemory()
	m.puts = 500 // other places for all pages
	moved := map[int64]Leaf{}
	for n, l := range leaves {
		moved[n] = append(Leaf(nil), l...)
		for i := range moved[n] {
			if !moved[n][i].IsZero() {
				moved[n][i].Place = chunk.Place{Pack: 3, Offset: 1, Stored: 5}
			}
		}
	}
	detour := build(t, m, size, build(t, m, size, nil, map[int64]Leaf{5: leafOf(2, 1)}), map[int64]Leaf{5: nil})
	b := build(t, m, size, detour, moved)
	if a.Root.Digest != b.Root.Digest {
		t.Fatal("the same content has two roots")
	}
	if c := build(t, m, size, nil, map[int64]Leaf{0: leafOf(2, 0)}); c.Root.Digest == a.Root.Digest {
		t.Fatal("other content has the same root")
	}
}

func TestSharing(t *testing.T) {
	m := newMemory()
	size := int64(15 << 40)
	leaves := map[int64]Leaf{}
	for n := int64(0); n < 3000; n++ {
		leaves[n*600] = leafOf(1, int(n%100))
	}
	a := build(t, m, size, nil, leaves)
	m.puts, m.reads, m.bytesWritten = 0, 0, 0
	b := build(t, m, size, a, map[int64]Leaf{600: leafOf(2, 7)})
	if m.puts != 4 || m.reads > 4 {
		t.Errorf("one changed leaf wrote %d pages and read %d, want one of each of 4 levels", m.puts, m.reads)
	}
	m.reads = 0
	var got []Range
	if err := Diff(t.Context(), a, b, func(r Range) error { got = append(got, r); return nil }); err != nil {
		t.Fatal(err)
	}
	want := []Range{{600*LeafSize + 1*65536, 65536, true}, {600*LeafSize + 7*65536, 65536, false}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("Diff = %v, want %v", got, want)
	}
	if m.reads > 8 {
		t.Errorf("Diff of one leaf read %d pages", m.reads)
	}
	m.puts = 0
	if same := build(t, m, size, b, map[int64]Leaf{600: leafOf(2, 7)}); m.puts != 0 || same.Root.Digest != b.Root.Digest {
		t.Errorf("putting an equal leaf wrote %d pages", m.puts)
	}
}

func TestDiffOfDifferentHeights(t *testing.T) {
	m := newMemory()
	a := build(t, m, 3*LeafSize, nil, map[int64]Leaf{1: leafOf(1, 3)})
	b := build(t, m, 600<<30, a, map[int64]Leaf{70000: leafOf(2, 0)})
	var got []Range
	if err := Diff(t.Context(), a, b, func(r Range) error { got = append(got, r); return nil }); err != nil {
		t.Fatal(err)
	}
	if want := []Range{{70000 * LeafSize, 65536, false}}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("Diff = %v, want %v", got, want)
	}
}

func TestReadErrorsComeOut(t *testing.T) {
	m := newMemory()
	tree := build(t, m, 600<<30, nil, map[int64]Leaf{0: leafOf(1, 0), 300: leafOf(1, 1), 70000: leafOf(1, 2)})
	total := func() int {
		m.reads = 0
		read(t, tree)
		return m.reads
	}()
	for n := 1; n <= total; n++ {
		m.reads, m.failReadAfter = 0, n
		err := tree.Walk(t.Context(), func(int64, Leaf) error { return nil })
		if !errs.Is(err, errs.Transient) {
			t.Fatalf("read %d of %d failed, Walk says %v", n, total, err)
		}
	}
}

func TestBuilderRefusesNonsense(t *testing.T) {
	m := newMemory()
	if _, err := NewBuilder(-1, nil, m); !errs.Is(err, errs.Invalid) {
		t.Error("negative size:", err)
	}
	long := build(t, m, 3*LeafSize, nil, map[int64]Leaf{2: leafOf(1, 0)})
	if _, err := NewBuilder(LeafSize, long, m); !errs.Is(err, errs.Bug) {
		t.Error("shrinking below a parent:", err)
	}
	for name, try := range map[string]func(*Builder) error{
		"twice":      func(b *Builder) error { _ = b.Put(t.Context(), 0, nil); return b.Put(t.Context(), 0, nil) },
		"beyond":     func(b *Builder) error { return b.Put(t.Context(), 3, leafOf(1, 0)) },
		"bad leaf":   func(b *Builder) error { return b.Put(t.Context(), 0, Leaf{{End: 7, ID: id(1)}}) },
		"after done": func(b *Builder) error { _, _ = b.Finish(t.Context()); return b.Put(t.Context(), 1, nil) },
	} {
		b, _ := NewBuilder(3*LeafSize, nil, m)
		if err := try(b); !errs.Is(err, errs.Bug) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDamage flips every byte of a page of each level: the decoders must refuse it, or the digest must change, or the
// byte belongs to a hint.
func TestDamage(t *testing.T) {
	var c children
	c[3], c[200] = Ref{id(5), chunk.Place{Pack: 1, Offset: 2, Stored: 3}, 4096}, Ref{id(6), chunk.Place{Pack: 4}, 8192}
	for level, page := range [][]byte{encodeLeaf(nil, leafOf(1, 2, 5)), encodeInner(nil, 1, &c)} {
		want, _ := PageDigest(testKey, page)
		record := []int{entrySize, childSize}[level]
		for i := range page {
			bad := bytes.Clone(page)
			bad[i] ^= 0x10
			got, err := PageDigest(testKey, bad)
			hint := i >= headerSize && (i-headerSize)%record >= placeAt && (i-headerSize)%record < placeAt+12
			if err == nil && (got == want) != hint {
				t.Fatalf("level %d, byte %d: digest equal: %v, byte of a hint: %v", level, i, got == want, hint)
			}
		}
		for n := range page {
			if level == 0 {
				if _, err := DecodeLeaf(page[:n]); !errs.Is(err, errs.Corrupt) {
					t.Fatalf("leaf cut to %d bytes: %v", n, err)
				}
			} else if err := decodeInner(page[:n], 1, &children{}); !errs.Is(err, errs.Corrupt) {
				t.Fatalf("inner page cut to %d bytes: %v", n, err)
			}
		}
	}
}

// TestVectors freezes the format: these bytes and digests never change.
func TestVectors(t *testing.T) {
	var c children
	c[1] = Ref{id(5), chunk.Place{Pack: 0x01020304, Offset: 0x05060708, Stored: 0x090a0b0c}, 65536}
	for _, v := range []struct{ name, page, digest string }{
		{"leaf", hex.EncodeToString(encodeLeaf(nil, leafOf(1, 2))), vectorLeaf},
		{"inner", hex.EncodeToString(encodeInner(nil, 2, &c)), vectorInner},
	} {
		page, _ := hex.DecodeString(v.page)
		d, err := PageDigest(testKey, page)
		if got := v.page + " " + d.String(); err != nil || got != v.digest {
			t.Errorf("%s:\n got %s\nwant %s", v.name, got, v.digest)
		}
	}
}

func FuzzDecode(f *testing.F) {
	var c children
	c[3] = Ref{id(5), chunk.Place{Pack: 1}, 4096}
	f.Add(encodeLeaf(nil, leafOf(1, 2, 5)), 0)
	f.Add(encodeInner(nil, 1, &c), 1)
	f.Add([]byte(pageMagic), 0)
	f.Fuzz(func(t *testing.T, page []byte, level int) {
		if l, err := DecodeLeaf(page); err == nil {
			if again := encodeLeaf(nil, l); len(again) != len(page) {
				t.Fatal("a leaf that decodes must encode to the same length")
			}
			if back, err := DecodeLeaf(encodeLeaf(nil, l)); err != nil || fmt.Sprint(back) != fmt.Sprint(l) {
				t.Fatal("decode of encode is not the identity", err)
			}
		}
		if level < 1 || level > MaxLevel {
			return
		}
		var in, back children
		if err := decodeInner(page, level, &in); err == nil {
			if err := decodeInner(encodeInner(nil, level, &in), level, &back); err != nil || in != back {
				t.Fatal("decode of encode is not the identity", err)
			}
		}
		_, _ = PageDigest(testKey, page)
	})
}

func BenchmarkIncremental(b *testing.B) {
	for _, size := range []int64{100 << 30, 15 << 40} {
		b.Run(fmt.Sprintf("%dGiB", size>>30), func(b *testing.B) {
			m := newMemory()
			tree := (*Tree)(nil)
			ctx := context.Background()
			for i := 0; b.Loop(); i++ {
				bl, err := NewBuilder(size, tree, m)
				if err != nil {
					b.Fatal(err)
				}
				for n := range int64(8) {
					if err := bl.Put(ctx, n*1000, leafOf(uint64(i), int(n))); err != nil {
						b.Fatal(err)
					}
				}
				root, err := bl.Finish(ctx)
				if err != nil {
					b.Fatal(err)
				}
				tree = NewTree(root, m)
			}
		})
	}
}
