package folder

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/fstest"
)

var ctx = context.Background()

// fixedSpace keeps the suite from being disturbed by others who use the same disk.
func fixedSpace(context.Context) (fs.Space, error) {
	return fs.Space{TotalBytes: 1 << 40, FreeBytes: 1 << 39, TotalFiles: 1000, FreeFiles: 500}, nil
}

// newDir returns a new, empty folder.
func newDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "domain")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// memoryDir returns a new, empty folder in memory, where syncs cost nothing, if the machine has such a place.
func memoryDir(t *testing.T) string {
	t.Helper()
	base, err := os.MkdirTemp("/dev/shm", "holdfast")
	if err != nil {
		return newDir(t)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	dir := filepath.Join(base, "domain")
	must(t, os.Mkdir(dir, 0o755))
	if unix.Setxattr(dir, "user.holdfast.test", []byte("x"), 0) != nil {
		return newDir(t)
	}
	return dir
}

// tree is a tree under test with calls that must succeed. Names are paths below the root.
type tree struct {
	*Tree
	t *testing.T
}

func openTree(t *testing.T, dir string) tree {
	t.Helper()
	tr, err := Open(dir, Options{Space: fixedSpace})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return tree{tr, t}
}

// again closes the tree and opens its successor.
func (r tree) again() tree {
	r.t.Helper()
	if err := r.Close(); err != nil {
		r.t.Fatal(err)
	}
	return openTree(r.t, r.path)
}

// want fails the test unless err translates to the status.
func want(t *testing.T, what string, err error, s fs.Status) {
	t.Helper()
	if got := fs.StatusOf(err); got != s {
		t.Fatalf("%s: %v (status %q), want %q", what, err, got, s)
	}
}

func (r tree) ok(what string, err error) {
	r.t.Helper()
	want(r.t, what, err, fs.StatusOK)
}

// in returns the folder that holds a path, and the last name.
func (r tree) in(path string) (*dir, string) {
	r.t.Helper()
	d, rest := r.root, path
	for {
		name, more, found := strings.Cut(rest, "/")
		if !found {
			return d, rest
		}
		n, err := d.Lookup(ctx, name)
		r.ok("lookup "+name+" of "+path, err)
		d, rest = n.(*dir), more
	}
}

func (r tree) node(path string) anyNode {
	r.t.Helper()
	d, name := r.in(path)
	n, err := d.Lookup(ctx, name)
	r.ok("lookup "+path, err)
	return n.(anyNode)
}

func (r tree) lacks(path string) {
	r.t.Helper()
	d, name := r.in(path)
	_, err := d.Lookup(ctx, name)
	want(r.t, "lookup "+path, err, fs.StatusNotFound)
}

func (r tree) file(path, content string) *file {
	r.t.Helper()
	d, name := r.in(path)
	f, err := d.Create(ctx, name, fs.CreateGuarded, fs.SetAttr{}, [8]byte{})
	r.ok("create "+path, err)
	r.ok("write "+path, f.(*file).WriteAt(ctx, []byte(content), 0, true))
	return f.(*file)
}

func (r tree) mkdir(path string) *dir {
	r.t.Helper()
	d, name := r.in(path)
	sub, err := d.Mkdir(ctx, name, fs.SetAttr{})
	r.ok("mkdir "+path, err)
	return sub.(*dir)
}

func (r tree) remove(path string) {
	r.t.Helper()
	d, name := r.in(path)
	r.ok("remove "+path, d.Remove(ctx, name))
}

func (r tree) move(path, to string) {
	r.t.Helper()
	d, name := r.in(path)
	toDir, toName := r.in(to)
	r.ok("rename "+path, d.Rename(ctx, name, toDir, toName))
}

func (r tree) attr(n fs.Node) fs.Attr {
	r.t.Helper()
	a, err := n.Attr(ctx)
	r.ok("Attr", err)
	return a
}

func (r tree) content(n fs.Node) string {
	r.t.Helper()
	p := make([]byte, r.attr(n).Size)
	if k, err := n.(fs.File).ReadAt(ctx, p, 0); k != len(p) || err != nil && err != io.EOF {
		r.t.Fatalf("read all: %d of %d, %v", k, len(p), err)
	}
	return string(p)
}

// is fails the test unless an ID from before leads to the node at path, and to what the file holds.
func (r tree) is(id fs.ID, path, content string) {
	r.t.Helper()
	n, err := r.Node(ctx, id)
	r.ok("node of "+path, err)
	if at := r.node(path); at.ID() != id || n.ID() != id {
		r.t.Errorf("%s is node %d, handle %d leads to %d", path, at.ID(), id, n.ID())
	}
	if _, ok := n.(fs.File); ok {
		if got := r.content(n); got != content {
			r.t.Errorf("%s holds %q, want %q", path, got, content)
		}
	}
}

func TestSuite(t *testing.T) {
	fstest.Test(t, func(t *testing.T) fs.Tree { return openTree(t, memoryDir(t)).Tree })
}

// TestSuiteOnDisk checks the laws of reading where files lie in blocks, and one tree with real syncs is enough.
func TestSuiteOnDisk(t *testing.T) {
	r := openTree(t, newDir(t))
	r.mkdir("sub")
	long := r.file("long", strings.Repeat("0123456789abcdef", 1<<16)+"odd")
	r.ok("link", r.root.Link(ctx, long, "twin"))
	sparse := r.file("sub/sparse", "head")
	r.ok("write", sparse.WriteAt(ctx, []byte("middle"), 100<<20+3, true))
	r.ok("truncate", sparse.truncate(ctx, 200<<20))
	r.graft("disk", "sub/disk", newImage(strings.Repeat("disk", 5000)))
	for i := range 30 {
		r.file(fmt.Sprint("sub/", i), "")
	}
	if a := r.attr(sparse); a.Used == 0 || a.Used > 1<<20 || a.Size != 200<<20 {
		t.Errorf("the sparse file: %+v", a)
	}
	fstest.TestReadOnly(t, func(*testing.T) fs.Tree { return r.Tree })
}

func TestSpaceOfTheDisk(t *testing.T) {
	tr, err := Open(newDir(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	s, err := tr.Space(ctx)
	if err != nil || s.TotalBytes < 1<<20 || s.FreeBytes < 0 || s.FreeBytes > s.TotalBytes || s.TotalFiles != maxNames ||
		s.FreeFiles <= 0 {
		t.Errorf("space %+v, %v", s, err)
	}
}

func TestClosedTreeAnswersDelay(t *testing.T) {
	r := openTree(t, newDir(t))
	f := r.file("f", "x")
	r.ok("unstable write", f.WriteAt(ctx, []byte("y"), 0, false))
	r.ok("close", r.Close())
	_, err := f.ReadAt(ctx, make([]byte, 1), 0)
	want(t, "read", err, fs.StatusDelay)
	want(t, "write", f.WriteAt(ctx, []byte("z"), 0, true), fs.StatusDelay)
	_, err = r.root.Lookup(ctx, "f")
	want(t, "lookup", err, fs.StatusDelay)
	_, err = r.root.Mkdir(ctx, "d", fs.SetAttr{})
	want(t, "mkdir", err, fs.StatusDelay)
	_, err = r.Node(ctx, f.ID())
	want(t, "node", err, fs.StatusDelay)
	_, err = f.SetAttr(ctx, fs.SetAttr{Size: new(int64)}, nil)
	want(t, "setattr", err, fs.StatusDelay)
	r.ok("close again", r.Close())
	openTree(t, r.path).is(f.ID(), "f", "y")
}
