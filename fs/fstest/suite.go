package fstest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast/fs"
)

// TestReadOnly holds a tree to the rules in package fs that need no change of it. newTree returns a tree with something
// in it; what it is, the suite finds out by walking. Files above 64 MiB are read in samples.
func TestReadOnly(t *testing.T, newTree func(t *testing.T) fs.Tree) {
	t.Helper()
	t.Run("walk", func(t *testing.T) { testWalk(t, newTree(t)) })
	t.Run("names", func(t *testing.T) { eachDir(t, newTree(t), testNames) })
	t.Run("listing", func(t *testing.T) { eachDir(t, newTree(t), testListing) })
	t.Run("reading", func(t *testing.T) { eachFile(t, newTree(t), testReading) })
	t.Run("holes", func(t *testing.T) { eachFile(t, newTree(t), testHoles) })
	t.Run("canceled", func(t *testing.T) { eachFile(t, newTree(t), testCanceled) })
	t.Run("concurrent", func(t *testing.T) { testConcurrent(t, newTree(t)) })
	t.Run("node", func(t *testing.T) { testNode(t, newTree(t)) })
}

// want fails the test unless err translates to the status.
func want(t *testing.T, what string, err error, s fs.Status) {
	t.Helper()
	if got := fs.StatusOf(err); got != s {
		t.Fatalf("%s: %v (status %q), want %q", what, err, got, s)
	}
}

// attr returns the attributes of a node that must have some.
func attr(t *testing.T, n fs.Node) fs.Attr {
	t.Helper()
	a, err := n.Attr(t.Context())
	want(t, "Attr", err, fs.StatusOK)
	return a
}

// list returns the entries after a cookie.
func list(t *testing.T, d fs.Dir, after uint64) []fs.Entry {
	t.Helper()
	var all []fs.Entry
	err := d.List(t.Context(), after, func(e fs.Entry) bool {
		all = append(all, e)
		return true
	})
	want(t, "List", err, fs.StatusOK)
	return all
}

// walk visits every node once per name.
func walk(t *testing.T, path string, n fs.Node, visit func(path string, n fs.Node)) {
	t.Helper()
	visit(path, n)
	if d, ok := n.(fs.Dir); ok {
		for _, e := range list(t, d, 0) {
			walk(t, path+"/"+e.Name, e.Node, visit)
		}
	}
}

func eachDir(t *testing.T, tree fs.Tree, f func(*testing.T, fs.Dir)) {
	walk(t, "", tree.Root(), func(path string, n fs.Node) {
		if d, ok := n.(fs.Dir); ok {
			t.Run("dir"+path, func(t *testing.T) { f(t, d) })
		}
	})
}

func eachFile(t *testing.T, tree fs.Tree, f func(*testing.T, fs.File)) {
	walk(t, "", tree.Root(), func(path string, n fs.Node) {
		if file, ok := n.(fs.File); ok {
			t.Run("file"+path, func(t *testing.T) { f(t, file) })
		}
	})
}

func testWalk(t *testing.T, tree fs.Tree) {
	seen := map[fs.ID]fs.Kind{}
	walk(t, "", tree.Root(), func(path string, n fs.Node) {
		a := attr(t, n)
		_, isDir := n.(fs.Dir)
		_, isFile := n.(fs.File)
		_, isLink := n.(fs.Symlink)
		is := map[fs.Kind]bool{fs.KindDir: isDir, fs.KindFile: isFile, fs.KindSymlink: isLink}
		if !is[a.Kind] || isDir && isFile || isDir && isLink || isFile && isLink {
			t.Errorf("%s: kind %d, but Dir %v File %v Symlink %v", path, a.Kind, isDir, isFile, isLink)
		}
		if a.ID == 0 || a.ID != n.ID() {
			t.Errorf("%s: ID() = %d, Attr says %d", path, n.ID(), a.ID)
		}
		if a.Perm > 0o7777 || a.Nlink == 0 || a.Size < 0 || a.Used < 0 || a.Ctime.IsZero() || a.Mtime.IsZero() {
			t.Errorf("%s: impossible attributes %+v", path, a)
		}
		if k, ok := seen[a.ID]; ok && (isDir || k != a.Kind || a.Nlink < 2) {
			t.Errorf("%s: ID %d was seen under another name", path, a.ID)
		}
		seen[a.ID] = a.Kind
		if l, ok := n.(fs.Symlink); ok {
			if target, err := l.Readlink(t.Context()); err != nil || target == "" {
				t.Errorf("%s: Readlink %q, %v", path, target, err)
			}
		}
	})
	if s, err := tree.Space(t.Context()); err != nil || s.FreeBytes > s.TotalBytes || s.FreeFiles > s.TotalFiles ||
		s.FreeBytes < 0 || s.FreeFiles < 0 {
		t.Errorf("Space %+v, %v", s, err)
	}
}

func testNode(t *testing.T, tree fs.Tree) {
	walk(t, "", tree.Root(), func(path string, n fs.Node) {
		again, err := tree.Node(t.Context(), n.ID())
		want(t, path+": Node", err, fs.StatusOK)
		if again.ID() != n.ID() {
			t.Errorf("%s: Node(%d) has the ID %d", path, n.ID(), again.ID())
		}
	})
	for _, id := range []fs.ID{0, 1<<63 + 12345} {
		n, err := tree.Node(t.Context(), id)
		if s := fs.StatusOf(err); s != fs.StatusStale && s != fs.StatusBadHandle {
			t.Errorf("Node(%d) = %v, %v: an ID never given out must be stale or bad", id, n, err)
		}
	}
}

func testNames(t *testing.T, d fs.Dir) {
	for _, e := range list(t, d, 0) {
		if err := fs.CheckName(e.Name); err != nil {
			t.Errorf("the folder lists %q: %v", e.Name, err)
		}
		n, err := d.Lookup(t.Context(), e.Name)
		want(t, "Lookup "+e.Name, err, fs.StatusOK)
		if n.ID() != e.Node.ID() {
			t.Errorf("%s: listed as node %d, found as %d", e.Name, e.Node.ID(), n.ID())
		}
	}
	_, err := d.Lookup(t.Context(), "no such name, surely")
	want(t, "Lookup of nothing", err, fs.StatusNotFound)
}

func testListing(t *testing.T, d fs.Dir) {
	all := list(t, d, 0)
	last, names := uint64(0), map[string]bool{}
	for i, e := range all {
		if e.Cookie <= last {
			t.Fatalf("cookie %d after %d", e.Cookie, last)
		}
		if names[e.Name] {
			t.Fatalf("%q is listed twice", e.Name)
		}
		last, names[e.Name] = e.Cookie, true
		if i > 64 && i < len(all)-2 {
			continue // resuming everywhere would be quadratic
		}
		rest := list(t, d, e.Cookie)
		if len(rest) != len(all)-i-1 || len(rest) > 0 && rest[0].Name != all[i+1].Name {
			t.Fatalf("after cookie %d come %d entries, want %d", e.Cookie, len(rest), len(all)-i-1)
		}
	}
	if rest := list(t, d, ^uint64(0)); len(rest) != 0 {
		t.Errorf("after the largest cookie come %d entries", len(rest))
	}
	calls := 0
	err := d.List(t.Context(), 0, func(fs.Entry) bool { calls++; return false })
	want(t, "List, stopped", err, fs.StatusOK)
	if calls > 1 {
		t.Errorf("visit was called %d times after it returned false", calls-1)
	}
}

// sample returns the ranges of a file to look at: everything when small.
func sample(size int64) [][2]int64 {
	if size <= 64<<20 {
		return [][2]int64{{0, size}}
	}
	const n = 1<<20 + 7
	return [][2]int64{{0, n}, {size/3 + 1, n}, {size / 2, n}, {size - n, n}}
}

func testReading(t *testing.T, f fs.File) {
	size := attr(t, f).Size
	for _, r := range sample(size) {
		whole := make([]byte, r[1])
		n, err := f.ReadAt(t.Context(), whole, r[0])
		if n != len(whole) || err != nil && err != io.EOF {
			t.Fatalf("read %d bytes at %d: %d, %v; size is %d", r[1], r[0], n, err, size)
		}
		for _, step := range []int64{1<<20 + 1, 65536, 4096, 4095} {
			if r[1]/step > 4096 {
				continue // enough was read that way in smaller files
			}
			for at := int64(0); at < r[1]; at += step {
				p := bytes.Repeat([]byte{0xA5}, int(min(step, r[1]-at)))
				n, err := f.ReadAt(t.Context(), p, r[0]+at)
				if n != len(p) || err != nil && err != io.EOF || !bytes.Equal(p, whole[at:at+int64(n)]) {
					t.Fatalf("read %d at %d: %d, %v, or other bytes than before", len(p), r[0]+at, n, err)
				}
			}
		}
	}
	p := make([]byte, 100)
	if n, err := f.ReadAt(t.Context(), p, size); n != 0 || err != io.EOF {
		t.Errorf("read at the end: %d, %v, want 0, EOF", n, err)
	}
	if n, err := f.ReadAt(t.Context(), p, size+1<<40); n != 0 || err != io.EOF {
		t.Errorf("read far past the end: %d, %v, want 0, EOF", n, err)
	}
	if over := min(size, 50); over > 0 {
		if n, err := f.ReadAt(t.Context(), p, size-over); int64(n) != over || err != io.EOF {
			t.Errorf("read across the end: %d, %v, want %d, EOF", n, err, over)
		}
	}
	if n, err := f.ReadAt(t.Context(), nil, 0); n != 0 || err != nil && err != io.EOF {
		t.Errorf("empty read: %d, %v", n, err)
	}
	n, err := f.ReadAt(t.Context(), p, -1)
	if n != 0 {
		t.Errorf("read at -1 gave %d bytes", n)
	}
	want(t, "read at -1", err, fs.StatusInvalid)
}

func testHoles(t *testing.T, f fs.File) {
	h, ok := f.(fs.HoleFinder)
	if !ok {
		t.Skip("the file knows no holes")
	}
	ctx, size := t.Context(), attr(t, f).Size
	for off, steps := int64(0), 0; off < size && steps < 1000; steps++ {
		data, err := h.NextData(ctx, off)
		want(t, "NextData", err, fs.StatusOK)
		if data < off || data > size {
			t.Fatalf("NextData(%d) = %d, size %d", off, data, size)
		}
		for at := off; at < data && at < off+4<<20; at += 1 << 20 {
			p := bytes.Repeat([]byte{1}, int(min(1<<20, data-at)))
			n, err := f.ReadAt(ctx, p, at)
			if n != len(p) || err != nil && err != io.EOF || len(bytes.Trim(p, "\x00")) > 0 {
				t.Fatalf("hole %d..%d does not read as zeros (%d, %v)", off, data, n, err)
			}
		}
		if data == size {
			break
		}
		hole, err := h.NextHole(ctx, data)
		want(t, "NextHole", err, fs.StatusOK)
		if hole <= data || hole > size {
			t.Fatalf("NextHole(%d) = %d in data, size %d", data, hole, size)
		}
		off = hole
	}
	for _, off := range []int64{size, size + 1, size + 1<<40} {
		data, err1 := h.NextData(ctx, off)
		hole, err2 := h.NextHole(ctx, off)
		if data != size || hole != size || err1 != nil || err2 != nil {
			t.Errorf("at %d of %d: NextData %d, %v, NextHole %d, %v", off, size, data, err1, hole, err2)
		}
	}
}

func testCanceled(t *testing.T, f fs.File) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// Answering from memory all the same is allowed; wrong bytes and hanging are not.
	n, err := f.ReadAt(ctx, make([]byte, 10), 0)
	if err != nil && err != io.EOF && !errors.Is(err, context.Canceled) {
		want(t, "read under a context that has ended", err, fs.StatusDelay)
	}
	if err == nil && n != 10 {
		t.Errorf("a short read of %d without an error", n)
	}
}

func testConcurrent(t *testing.T, tree fs.Tree) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var visit func(n fs.Node)
			visit = func(n fs.Node) {
				if _, err := n.Attr(t.Context()); err != nil {
					t.Error(err)
				}
				switch n := n.(type) {
				case fs.Dir:
					if err := n.List(t.Context(), 0, func(e fs.Entry) bool { visit(e.Node); return true }); err != nil {
						t.Error(err)
					}
				case fs.File:
					if _, err := n.ReadAt(t.Context(), make([]byte, 64<<10), 0); err != nil && err != io.EOF {
						t.Error(err)
					}
				}
			}
			visit(tree.Root())
		})
	}
	wg.Wait()
}
