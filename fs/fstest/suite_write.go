package fstest

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/fs"
)

// Test holds a mutable tree to the rules in package fs. newTree returns an empty tree whose root and every folder made
// in it are Makers and Removers, and whose files are Writers and AttrSetters.
func Test(t *testing.T, newTree func(t *testing.T) fs.Tree) {
	t.Helper()
	for _, c := range []struct {
		name string
		run  func(*testing.T, box)
	}{
		{"create", testCreate}, {"exclusive", testExclusive}, {"bad names", testBadNames}, {"mkdir", testMkdir},
		{"symlink", testSymlink}, {"link", testLink}, {"remove", testRemove}, {"rename", testRename},
		{"rename refused", testRenameRefused}, {"write", testWrite}, {"truncate", testTruncate},
		{"setattr", testSetAttr}, {"guard", testGuard}, {"stale", testStale}, {"cookies", testCookies},
		{"used", testUsed},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := newTree(t)
			c.run(t, box{t, tree, tree.Root()})
		})
	}
	TestReadOnly(t, func(t *testing.T) fs.Tree {
		tree := newTree(t)
		fill(box{t, tree, tree.Root()})
		return tree
	})
}

// box is a folder under test with calls that must succeed.
type box struct {
	t    *testing.T
	tree fs.Tree
	fs.Dir
}

func (b box) maker() fs.Maker     { return b.Dir.(fs.Maker) }
func (b box) remover() fs.Remover { return b.Dir.(fs.Remover) }

func (b box) file(name, content string) fs.File {
	b.t.Helper()
	f, err := b.maker().Create(b.t.Context(), name, fs.CreateGuarded, fs.SetAttr{}, [8]byte{})
	want(b.t, "create "+name, err, fs.StatusOK)
	write(b.t, f, content, 0)
	return f
}

func (b box) dir(name string) box {
	b.t.Helper()
	d, err := b.maker().Mkdir(b.t.Context(), name, fs.SetAttr{})
	want(b.t, "mkdir "+name, err, fs.StatusOK)
	return box{b.t, b.tree, d}
}

func (b box) has(name string) fs.Node {
	b.t.Helper()
	n, err := b.Lookup(b.t.Context(), name)
	want(b.t, "lookup "+name, err, fs.StatusOK)
	return n
}

func (b box) lacks(name string) {
	b.t.Helper()
	_, err := b.Lookup(b.t.Context(), name)
	want(b.t, "lookup "+name, err, fs.StatusNotFound)
}

func (b box) rename(what, from string, to fs.Dir, name string, s fs.Status) {
	b.t.Helper()
	want(b.t, what, b.remover().Rename(b.t.Context(), from, to, name), s)
}

func write(t *testing.T, f fs.File, content string, off int64) {
	t.Helper()
	want(t, "write", f.(fs.Writer).WriteAt(t.Context(), []byte(content), off, true), fs.StatusOK)
}

func content(t *testing.T, f fs.File) string {
	t.Helper()
	p := make([]byte, attr(t, f).Size)
	if n, err := f.ReadAt(t.Context(), p, 0); n != len(p) || err != nil && err != io.EOF {
		t.Fatalf("read all: %d of %d, %v", n, len(p), err)
	}
	return string(p)
}

func set(t *testing.T, n fs.Node, s fs.SetAttr) fs.Attr {
	t.Helper()
	a, err := n.(fs.AttrSetter).SetAttr(t.Context(), s, nil)
	want(t, "SetAttr", err, fs.StatusOK)
	return a
}

// fill makes the tree that the read-only laws are checked on.
func fill(b box) {
	b.file("empty", "")
	b.file("short", "some bytes")
	long := b.file("long", strings.Repeat("0123456789abcdef", 1<<16)+"odd")
	sparse := b.file("sparse", "head")
	write(b.t, sparse, "middle", 5<<20+3)
	set(b.t, sparse, fs.SetAttr{Size: new(int64(20 << 20))})
	sub := b.dir("sub")
	want(b.t, "link", sub.maker().Link(b.t.Context(), long, "another name"), fs.StatusOK)
	_, err := sub.maker().Symlink(b.t.Context(), "to", "../short", fs.SetAttr{})
	want(b.t, "symlink", err, fs.StatusOK)
	many := sub.dir("many")
	for i := range 600 {
		many.file(fmt.Sprintf("file %d", i), "")
	}
	want(b.t, "remove", many.remover().Remove(b.t.Context(), "file 7"), fs.StatusOK)
}

func testCreate(t *testing.T, b box) {
	ctx := t.Context()
	f, err := b.maker().Create(ctx, "f", fs.CreateUnchecked, fs.SetAttr{Perm: new(uint32(0o600))}, [8]byte{})
	want(t, "create", err, fs.StatusOK)
	if a := attr(t, f); a.Perm != 0o600 || a.Size != 0 || a.Nlink != 1 || a.Kind != fs.KindFile {
		t.Errorf("new file: %+v", a)
	}
	write(t, f, "kept", 0)
	again, err := b.maker().Create(ctx, "f", fs.CreateUnchecked, fs.SetAttr{}, [8]byte{})
	want(t, "create again", err, fs.StatusOK)
	if again.ID() != f.ID() || content(t, again) != "kept" {
		t.Error("an unchecked create must open the file that is there and leave its bytes alone")
	}
	_, err = b.maker().Create(ctx, "f", fs.CreateUnchecked, fs.SetAttr{Size: new(int64)}, [8]byte{})
	want(t, "create with size 0", err, fs.StatusOK)
	if content(t, f) != "" {
		t.Error("the size named in an unchecked create must be applied")
	}
	_, err = b.maker().Create(ctx, "f", fs.CreateGuarded, fs.SetAttr{}, [8]byte{})
	want(t, "guarded create", err, fs.StatusExists)
	if a := attr(t, f); a.Perm != 0o600 {
		t.Errorf("the mode is %o before anybody changed it", a.Perm)
	}
	for _, s := range []fs.SetAttr{
		{Perm: new(uint32(0o777)), UID: new(uint32(5)), GID: new(uint32(6)), Mtime: new(time.Unix(1, 0))},
		{Perm: new(uint32(0o777)), Size: new(int64(3))},
	} {
		before := attr(t, f)
		_, err = b.maker().Create(ctx, "f", fs.CreateUnchecked, s, [8]byte{})
		want(t, "create with a mode", err, fs.StatusOK)
		after := attr(t, f)
		if after.Perm != before.Perm || after.UID != before.UID || after.GID != before.GID {
			t.Errorf("opening an existing file changed its mode or owner: %+v, before %+v", after, before)
		}
		if s.Size == nil && (after.Size != before.Size || !after.Mtime.Equal(before.Mtime)) || s.Size != nil && after.Size != 3 {
			t.Errorf("opened with %+v: %+v, before %+v", s, after, before)
		}
	}
	b.dir("d")
	_, err = b.maker().Create(ctx, "d", fs.CreateUnchecked, fs.SetAttr{}, [8]byte{})
	want(t, "create over a folder", err, fs.StatusIsDir)
	_, err = b.maker().Create(ctx, "d", fs.CreateGuarded, fs.SetAttr{}, [8]byte{})
	want(t, "guarded create over a folder", err, fs.StatusExists)
}

func testExclusive(t *testing.T, b box) {
	ctx, mine, other := t.Context(), [8]byte{1, 2, 3}, [8]byte{9}
	f, err := b.maker().Create(ctx, "f", fs.CreateExclusive, fs.SetAttr{}, mine)
	want(t, "create", err, fs.StatusOK)
	again, err := b.maker().Create(ctx, "f", fs.CreateExclusive, fs.SetAttr{}, mine)
	want(t, "repeat", err, fs.StatusOK)
	if again.ID() != f.ID() {
		t.Error("the repeat found another file")
	}
	_, err = b.maker().Create(ctx, "f", fs.CreateExclusive, fs.SetAttr{}, other)
	want(t, "other verifier", err, fs.StatusExists)
	b.file("plain", "")
	_, err = b.maker().Create(ctx, "plain", fs.CreateExclusive, fs.SetAttr{}, [8]byte{})
	want(t, "a file that was not created exclusively", err, fs.StatusExists)
}

func testBadNames(t *testing.T, b box) {
	b.file("good", "")
	long := strings.Repeat("x", fs.MaxName+1)
	for _, c := range []struct {
		name string
		s    fs.Status
	}{
		{"", fs.StatusInvalid}, {".", fs.StatusInvalid}, {"..", fs.StatusInvalid}, {"a/b", fs.StatusInvalid},
		{"a\x00", fs.StatusInvalid}, {long, fs.StatusNameTooLong},
	} {
		ctx, m, r := t.Context(), b.maker(), b.remover()
		_, err := m.Create(ctx, c.name, fs.CreateUnchecked, fs.SetAttr{}, [8]byte{})
		want(t, "create", err, c.s)
		_, err = m.Mkdir(ctx, c.name, fs.SetAttr{})
		want(t, "mkdir", err, c.s)
		_, err = m.Symlink(ctx, c.name, "x", fs.SetAttr{})
		want(t, "symlink", err, c.s)
		want(t, "link", m.Link(ctx, b.has("good"), c.name), c.s)
		want(t, "rename", r.Rename(ctx, "good", b.Dir, c.name), c.s)
	}
	for _, name := range []string{strings.Repeat("x", fs.MaxName), "ümlaut \xff\n", "...", "-rf *"} {
		b.file(name, "")
		b.has(name)
	}
}

func testMkdir(t *testing.T, b box) {
	ctx := t.Context()
	d, err := b.maker().Mkdir(ctx, "d", fs.SetAttr{Perm: new(uint32(0o700)), UID: new(uint32(7))})
	want(t, "mkdir", err, fs.StatusOK)
	if a := attr(t, d); a.Perm != 0o700 || a.UID != 7 || a.Nlink != 2 {
		t.Errorf("new folder: %+v", a)
	}
	_, err = b.maker().Mkdir(ctx, "d", fs.SetAttr{})
	want(t, "mkdir again", err, fs.StatusExists)
	before := attr(t, d).Nlink
	box{t, b.tree, d}.dir("sub")
	if got := attr(t, d).Nlink; got != before+1 {
		t.Errorf("nlink %d with one folder more, want %d", got, before+1)
	}
}

func testSymlink(t *testing.T, b box) {
	l, err := b.maker().Symlink(t.Context(), "l", "../some where/x", fs.SetAttr{})
	want(t, "symlink", err, fs.StatusOK)
	if target, err := l.Readlink(t.Context()); target != "../some where/x" || err != nil {
		t.Errorf("Readlink %q, %v", target, err)
	}
	_, err = b.maker().Symlink(t.Context(), "l", "x", fs.SetAttr{})
	want(t, "symlink again", err, fs.StatusExists)
}

func testLink(t *testing.T, b box) {
	f, d := b.file("f", "one"), b.dir("d")
	want(t, "link", d.maker().Link(t.Context(), f, "g"), fs.StatusOK)
	if n := d.has("g"); n.ID() != f.ID() || attr(t, n).Nlink != 2 {
		t.Errorf("the second name leads to node %d with %d links", n.ID(), attr(t, n).Nlink)
	}
	want(t, "link to a taken name", d.maker().Link(t.Context(), f, "g"), fs.StatusExists)
	if err := b.maker().Link(t.Context(), d.Dir, "loop"); err == nil {
		t.Error("a folder got a second name")
	}
	want(t, "remove", b.remover().Remove(t.Context(), "f"), fs.StatusOK)
	if content(t, f) != "one" || attr(t, f).Nlink != 1 {
		t.Error("the file must live on under its other name")
	}
}

func testRemove(t *testing.T, b box) {
	ctx := t.Context()
	b.file("f", "")
	d := b.dir("d")
	d.file("x", "")
	want(t, "remove nothing", b.remover().Remove(ctx, "no"), fs.StatusNotFound)
	want(t, "rmdir nothing", b.remover().RemoveDir(ctx, "no"), fs.StatusNotFound)
	want(t, "remove a folder", b.remover().Remove(ctx, "d"), fs.StatusIsDir)
	want(t, "rmdir a file", b.remover().RemoveDir(ctx, "f"), fs.StatusNotDir)
	want(t, "rmdir a full folder", b.remover().RemoveDir(ctx, "d"), fs.StatusNotEmpty)
	want(t, "remove", d.remover().Remove(ctx, "x"), fs.StatusOK)
	want(t, "rmdir", b.remover().RemoveDir(ctx, "d"), fs.StatusOK)
	want(t, "remove", b.remover().Remove(ctx, "f"), fs.StatusOK)
	b.lacks("f")
	b.lacks("d")
	if n := len(list(t, b, 0)); n != 0 {
		t.Errorf("%d entries left", n)
	}
}

func testRename(t *testing.T, b box) {
	f, d, e := b.file("f", "one"), b.dir("d"), b.dir("e")
	g := d.file("g", "two")
	b.rename("onto a free name", "f", b.Dir, "f2", fs.StatusOK)
	b.lacks("f")
	b.rename("file over file, into another folder", "f2", d.Dir, "g", fs.StatusOK)
	b.lacks("f2")
	if n := d.has("g"); n.ID() != f.ID() || content(t, n.(fs.File)) != "one" {
		t.Error("the name must lead to the moved file")
	}
	_, err := g.Attr(t.Context())
	want(t, "Attr of what was replaced", err, fs.StatusStale)
	sub := d.dir("sub")
	sub.file("inside", "x")
	d.rename("folder over empty folder", "sub", b.Dir, "e", fs.StatusOK)
	if n := b.has("e"); n.ID() != sub.ID() {
		t.Error("the folder lost its ID")
	}
	sub.has("inside")
	_, err = e.Attr(t.Context())
	want(t, "Attr of the replaced folder", err, fs.StatusStale)
	sub.rename("out of the moved folder", "inside", b.Dir, "out", fs.StatusOK)
	b.rename("onto itself", "out", b.Dir, "out", fs.StatusOK)
	b.has("out")
	want(t, "link", b.maker().Link(t.Context(), b.has("out"), "twin"), fs.StatusOK)
	b.rename("onto its own other name", "out", b.Dir, "twin", fs.StatusOK)
	if b.has("out").ID() != b.has("twin").ID() {
		t.Error("two names of one file are both kept")
	}
	if a := attr(t, b.Dir); a.Nlink != 4 {
		t.Errorf("root with two folders has %d links", a.Nlink)
	}
}

func testRenameRefused(t *testing.T, b box) {
	b.file("f", "")
	d := b.dir("d")
	sub := d.dir("sub")
	full := b.dir("full")
	full.file("x", "")
	b.dir("empty")
	b.rename("of nothing", "no", b.Dir, "x", fs.StatusNotFound)
	b.rename("file over folder", "f", b.Dir, "empty", fs.StatusIsDir)
	b.rename("folder over file", "d", b.Dir, "f", fs.StatusNotDir)
	b.rename("folder over full folder", "d", b.Dir, "full", fs.StatusNotEmpty)
	b.rename("folder into itself", "d", d.Dir, "x", fs.StatusInvalid)
	b.rename("folder into what is below it", "d", sub.Dir, "x", fs.StatusInvalid)
	d.rename("folder over the one that holds it", "sub", b.Dir, "d", fs.StatusNotEmpty)
	for _, name := range []string{"f", "d", "full", "empty"} {
		b.has(name)
	}
	d.has("sub")
}

func testWrite(t *testing.T, b box) {
	ctx, f := t.Context(), b.file("f", "")
	w := f.(fs.Writer)
	want(t, "unstable write past the end", w.WriteAt(ctx, []byte("xyz"), 10000, false), fs.StatusOK)
	if got := content(t, f); got != strings.Repeat("\x00", 10000)+"xyz" {
		t.Errorf("%d bytes, tail %q", len(got), got[max(0, len(got)-5):])
	}
	want(t, "commit", w.Commit(ctx), fs.StatusOK)
	write(t, f, "ab", 9999)
	if got := content(t, f); len(got) != 10003 || got[9998:] != "\x00abyz" {
		t.Errorf("%d bytes, tail %q", len(got), got[9998:])
	}
	want(t, "empty write", w.WriteAt(ctx, nil, 1<<30, true), fs.StatusOK)
	if a := attr(t, f); a.Size != 10003 {
		t.Errorf("an empty write made the size %d", a.Size)
	}
	want(t, "write at -1", w.WriteAt(ctx, []byte("x"), -1, true), fs.StatusInvalid)
	if err := w.WriteAt(ctx, []byte("xx"), 1<<63-1, true); err == nil {
		t.Error("a write past the largest offset succeeded")
	}
	big := bytes.Repeat([]byte("0123456789abcde"), 100_000)
	want(t, "big write", w.WriteAt(ctx, big, 4097, false), fs.StatusOK)
	if got := content(t, f); got[4097:] != string(big) {
		t.Error("the big write reads back otherwise")
	}
}

func testTruncate(t *testing.T, b box) {
	f := b.file("f", strings.Repeat("x", 10000))
	if a := set(t, f, fs.SetAttr{Size: new(int64(5000))}); a.Size != 5000 {
		t.Errorf("size after: %d", a.Size)
	}
	set(t, f, fs.SetAttr{Size: new(int64(9000))})
	if got := content(t, f); got != strings.Repeat("x", 5000)+strings.Repeat("\x00", 4000) {
		t.Error("bytes that were cut off came back, or others went")
	}
	_, err := f.(fs.AttrSetter).SetAttr(t.Context(), fs.SetAttr{Size: new(int64(-1)), Perm: new(uint32(0))}, nil)
	want(t, "negative size", err, fs.StatusInvalid)
	if a := attr(t, f); a.Size != 9000 || a.Perm == 0 {
		t.Errorf("a refused change left %+v", a)
	}
}

func testSetAttr(t *testing.T, b box) {
	when := time.Unix(1_700_000_000, 123456789)
	s := fs.SetAttr{
		Perm: new(uint32(0o640)), UID: new(uint32(5)), GID: new(uint32(6)), Atime: &when,
		Mtime: new(when.Add(time.Hour)),
	}
	for _, n := range []fs.Node{b.file("f", "abc"), b.dir("d").Dir} {
		before := attr(t, n)
		a := set(t, n, s)
		if a.Perm != 0o640 || a.UID != 5 || a.GID != 6 || !a.Atime.Equal(when) || !a.Mtime.Equal(*s.Mtime) {
			t.Errorf("after the change: %+v", a)
		}
		if !a.Ctime.After(before.Ctime) || a.Size != before.Size || a.ID != before.ID {
			t.Errorf("ctime must grow, size and ID stay: %+v, before %+v", a, before)
		}
		if again := attr(t, n); again != a {
			t.Errorf("Attr says %+v, SetAttr said %+v", again, a)
		}
	}
	_, err := b.has("d").(fs.AttrSetter).SetAttr(t.Context(), fs.SetAttr{Size: new(int64)}, nil)
	want(t, "size of a folder", err, fs.StatusIsDir)
}

func testGuard(t *testing.T, b box) {
	f := b.file("f", "abc")
	guard := attr(t, f).Ctime
	setter := f.(fs.AttrSetter)
	_, err := setter.SetAttr(t.Context(), fs.SetAttr{Size: new(int64(1))}, new(guard.Add(-1)))
	want(t, "wrong guard", err, fs.StatusNotSync)
	if content(t, f) != "abc" {
		t.Error("a refused change was made")
	}
	a, err := setter.SetAttr(t.Context(), fs.SetAttr{Size: new(int64(1))}, &guard)
	want(t, "right guard", err, fs.StatusOK)
	_, err = setter.SetAttr(t.Context(), fs.SetAttr{Size: new(int64(2))}, &guard)
	want(t, "the guard used twice", err, fs.StatusNotSync)
	if a.Size != 1 || attr(t, f).Size != 1 {
		t.Errorf("size %d", a.Size)
	}
}

func testStale(t *testing.T, b box) {
	ctx, f, d := t.Context(), b.file("f", "abc"), b.dir("d")
	want(t, "remove", b.remover().Remove(ctx, "f"), fs.StatusOK)
	want(t, "rmdir", b.remover().RemoveDir(ctx, "d"), fs.StatusOK)
	newer := b.file("f", "new")
	if newer.ID() == f.ID() {
		t.Error("an ID was given out twice")
	}
	_, err := b.tree.Node(ctx, f.ID())
	want(t, "Node", err, fs.StatusStale)
	_, err = f.Attr(ctx)
	want(t, "Attr", err, fs.StatusStale)
	_, err = f.ReadAt(ctx, make([]byte, 1), 0)
	want(t, "ReadAt", err, fs.StatusStale)
	want(t, "WriteAt", f.(fs.Writer).WriteAt(ctx, []byte("x"), 0, true), fs.StatusStale)
	want(t, "Commit", f.(fs.Writer).Commit(ctx), fs.StatusStale)
	_, err = f.(fs.AttrSetter).SetAttr(ctx, fs.SetAttr{}, nil)
	want(t, "SetAttr", err, fs.StatusStale)
	_, err = d.Lookup(ctx, "x")
	want(t, "Lookup", err, fs.StatusStale)
	want(t, "List", d.List(ctx, 0, func(fs.Entry) bool { return true }), fs.StatusStale)
	_, err = d.maker().Create(ctx, "x", fs.CreateUnchecked, fs.SetAttr{}, [8]byte{})
	want(t, "Create", err, fs.StatusStale)
	_, err = d.maker().Mkdir(ctx, "x", fs.SetAttr{})
	want(t, "Mkdir", err, fs.StatusStale)
	b.rename("into a folder that is gone", "f", d.Dir, "x", fs.StatusStale)
	want(t, "link of what is gone", b.maker().Link(ctx, f, "y"), fs.StatusStale)
	if content(t, newer) != "new" {
		t.Error("the newer file was touched")
	}
}

func testCookies(t *testing.T, b box) {
	ctx := t.Context()
	for i := range 100 {
		b.file(fmt.Sprint(i), "")
	}
	var seen []string
	after := uint64(0)
	for round := 0; ; round++ { // a client that reads seven entries at a time while names come and go
		n, last := 0, after
		err := b.List(ctx, after, func(e fs.Entry) bool {
			seen, last, n = append(seen, e.Name), e.Cookie, n+1
			return n < 7
		})
		want(t, "List", err, fs.StatusOK)
		if n == 0 {
			break
		}
		after = last
		if round < 10 {
			want(t, "remove", b.remover().Remove(ctx, seen[len(seen)-1]), fs.StatusOK)
			b.file(fmt.Sprint("new", round), "")
		}
	}
	count := map[string]int{}
	for _, name := range seen {
		count[name]++
	}
	for i := range 100 {
		if name := fmt.Sprint(i); count[name] != 1 {
			t.Errorf("%s was there all the time, or until it was seen, and seen %d times", name, count[name])
		}
	}
	all := list(t, b, 0)
	largest := all[len(all)-1]
	want(t, "remove", b.remover().Remove(ctx, largest.Name), fs.StatusOK)
	b.file("later", "")
	if rest := list(t, b, largest.Cookie); len(rest) != 1 || rest[0].Name != "later" {
		t.Errorf("the cookie of a removed name was used again, or the new name is lost: %v", rest)
	}
}

func testUsed(t *testing.T, b box) {
	f := b.file("f", "")
	write(t, f, "x", 1<<30)
	if a := attr(t, f); a.Size != 1<<30+1 || a.Used > 1<<20 || a.Used == 0 {
		t.Errorf("one byte at 1 GiB: size %d, used %d", a.Size, a.Used)
	}
	before, err := b.tree.Space(t.Context())
	want(t, "Space", err, fs.StatusOK)
	want(t, "remove", b.remover().Remove(t.Context(), "f"), fs.StatusOK)
	after, err := b.tree.Space(t.Context())
	want(t, "Space", err, fs.StatusOK)
	if after.FreeBytes < before.FreeBytes || after.TotalBytes != before.TotalBytes {
		t.Errorf("space before the removal %+v, after %+v", before, after)
	}
}
