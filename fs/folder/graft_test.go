package folder

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// image is a stream in memory that knows its holes: what is zero.
type image struct {
	mu      sync.Mutex
	data    []byte
	commits int
}

func newImage(content string) *image { return &image{data: []byte(content)} }

func (m *image) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(m.data))
}

func (m *image) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off >= int64(len(m.data)) {
		return 0, io.EOF
	}
	n := copy(p, m.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *image) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if grow := off + int64(len(p)) - int64(len(m.data)); grow > 0 {
		m.data = append(m.data, make([]byte, grow)...)
	}
	copy(m.data[off:], p)
	return nil
}

func (m *image) Commit(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.commits++
	return nil
}

func (m *image) Truncate(_ context.Context, size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data = append(m.data, make([]byte, max(0, size-int64(len(m.data))))...)[:size]
	return nil
}

// sized is an image that knows what it takes.
type sized struct{ *image }

func (sized) Used() int64 { return 3 }

func (r tree) graft(key, path string, s fs.WritableStream) {
	r.t.Helper()
	if err := r.Graft(key, path, s, nil); err != nil {
		r.t.Fatal(err)
	}
}

func wantKind(t *testing.T, what string, err error, k errs.Kind) {
	t.Helper()
	if !errs.Is(err, k) {
		t.Fatalf("%s: %v, want %v", what, err, k)
	}
}

func TestGraftIsServedFromItsStream(t *testing.T) {
	r := openTree(t, newDir(t))
	r.mkdir("images")
	s := newImage("0123456789")
	if err := r.Graft("disk1", "images/vol", sized{s}, func() int64 { return 4 }); err != nil {
		t.Fatal(err)
	}
	f := r.node("images/vol").(*file)
	a := r.attr(f)
	if a.Size != 10 || a.Used != 7 || a.Perm != 0o660 || a.UID != fs.OwnerID || a.Nlink != 1 || a.Kind != fs.KindFile ||
		!f.Bulk() {
		t.Errorf("attributes %+v", a)
	}
	r.ok("write", f.WriteAt(ctx, []byte("ab"), 9, false))
	if got := r.content(f); got != "012345678ab" {
		t.Errorf("content %q", got)
	}
	if b := r.attr(f); !b.Mtime.After(a.Mtime) || !b.Ctime.After(a.Ctime) {
		t.Error("a write must move the times")
	}
	r.ok("commit", f.Commit(ctx))
	if s.commits != 1 {
		t.Error("the commit did not arrive")
	}
	after, err := f.SetAttr(ctx, fs.SetAttr{Size: new(int64(5)), Perm: new(uint32(0o600))}, nil)
	r.ok("truncate", err)
	if after.Size != 5 || after.Used != 5 || after.Perm != 0o600 || string(s.data) != "01234" {
		t.Errorf("after the truncation %+v, %q", after, s.data)
	}
	_, err = f.ReadAt(ctx, make([]byte, 1), -1)
	want(t, "read at -1", err, fs.StatusInvalid)
	want(t, "write past the largest offset", f.WriteAt(ctx, []byte("xx"), 1<<63-1, true), fs.StatusTooLarge)
	if at, err := f.NextData(ctx, 2); at != 2 || err != nil { // a stream that knows no holes is all data
		t.Errorf("NextData %d, %v", at, err)
	}
	if at, err := f.NextHole(ctx, 2); at != 5 || err != nil {
		t.Errorf("NextHole %d, %v", at, err)
	}
	if st, err := os.Stat(filepath.Join(r.path, "images/vol")); err != nil || st.Size() != 0 {
		t.Errorf("the file on disk: %v, %v: nothing may be written into it", st, err)
	}
	wantKind(t, "the same graft again", r.Graft("disk1", "images/vol", newImage(""), nil), errs.Exists)
}

func TestGraftRefusals(t *testing.T) {
	r := openTree(t, newDir(t))
	r.mkdir("d")
	r.file("full", "bytes")
	r.file("empty", "")
	id := r.node("empty").ID()
	for _, c := range []struct {
		key, path string
		k         errs.Kind
	}{
		{"", "x", errs.Invalid}, {"\xff", "x", errs.Invalid}, {strings.Repeat("k", maxKey+1), "x", errs.Invalid}, {"k", "no/x", errs.NotFound},
		{"k", "full", errs.Exists}, {"k", "d", errs.Exists},
	} {
		wantKind(t, c.key+" at "+c.path, r.Graft(c.key, c.path, newImage(""), nil), c.k)
	}
	for _, path := range []string{"", "/", "/x", "d/../x", "d/./x", "d//x", "d/", "full/x", "d/\x00"} {
		if err := r.Graft("k", path, newImage(""), nil); err == nil {
			t.Errorf("a graft at %q", path)
		}
	}
	wantKind(t, "no stream", r.Graft("k", "x", nil, nil), errs.Invalid)
	if all := r.Grafts(); len(all) != 0 {
		t.Errorf("refused, and there: %+v", all)
	}
	r.graft("k", "empty", newImage("disk")) // what writes the domain leaves an empty file
	r.is(id, "empty", "disk")
	wantKind(t, "another graft in its place", r.Graft("k2", "empty", newImage(""), nil), errs.Exists)
	r.lacks("x")
}

// TestGraftLife renames, links and removes, over restarts.
func TestGraftLife(t *testing.T) {
	r := openTree(t, newDir(t))
	r.mkdir("images")
	r.mkdir("images/img")
	one, two := newImage("one"), newImage("two")
	r.graft("disk1", "images/img/vol", one)
	r.graft("disk2", "vol2", two)
	id := r.node("images/img/vol").ID()
	r.move("images/img/vol", "images/img/.nfs0001") // as Linux does with an open file that is deleted
	r.move("images/img", "images/_remove_me_img")
	r.is(id, "images/_remove_me_img/.nfs0001", "one")
	if g := r.Grafts()[0]; g != (GraftInfo{"disk1", id, "images/_remove_me_img/.nfs0001", false}) {
		t.Errorf("graft %+v", g)
	}
	r.ok("link", r.root.Link(ctx, r.node("vol2"), "twin"))
	r = r.again()
	r.graft("disk1", "images/img/vol", one)
	r.graft("disk2", "vol2", two)
	r.is(id, "images/_remove_me_img/.nfs0001", "one")
	r.remove("vol2")
	if g := r.Grafts()[1]; g.Gone || g.Path != "twin" {
		t.Errorf("a graft with a name left: %+v", g)
	}
	if r.content(r.node("twin")) != "two" {
		t.Error("the second name leads elsewhere")
	}
	held := r.node("images/_remove_me_img/.nfs0001").(*file)
	r.remove("images/_remove_me_img/.nfs0001")
	_, err := held.ReadAt(ctx, make([]byte, 1), 0)
	want(t, "read of a removed disk", err, fs.StatusStale)
	r.file("over", "plain")
	r.move("over", "twin")
	if got := r.content(r.node("twin")); got != "plain" {
		t.Errorf("what replaced the graft holds %q", got)
	}
	for range 2 {
		for _, g := range r.Grafts() {
			if !g.Gone {
				t.Errorf("%+v was removed", g)
			}
		}
		wantKind(t, "graft of a removed file", r.Graft("disk1", "images/img/vol", one, nil), errs.Stale)
		wantKind(t, "graft of a replaced file", r.Graft("disk2", "vol2", two, nil), errs.Stale)
		if err := r.Graft("disk2", "twin", two, nil); !errs.Is(err, errs.Stale) || r.content(r.node("twin")) != "plain" {
			t.Errorf("a ghost: %v", err)
		}
		r = r.again()
	}
	if g := r.Grafts()[0]; g.Path != "images/_remove_me_img/.nfs0001" || g.Key != "disk1" || g.ID != id {
		t.Errorf("last seen as %+v", g)
	}
}

// TestGraftWithoutStream must never be taken for an empty file.
func TestGraftWithoutStream(t *testing.T) {
	r := openTree(t, newDir(t))
	r.graft("disk1", "vol", newImage("one"))
	r = r.again()
	f := r.node("vol").(*file)
	_, err := f.Attr(ctx)
	want(t, "Attr", err, fs.StatusDelay)
	n, err := f.ReadAt(ctx, make([]byte, 10), 0)
	if want(t, "ReadAt", err, fs.StatusDelay); n != 0 || errors.Is(err, io.EOF) {
		t.Errorf("read %d bytes, %v", n, err)
	}
	want(t, "WriteAt", f.WriteAt(ctx, []byte("x"), 0, true), fs.StatusDelay)
	want(t, "Commit", f.Commit(ctx), fs.StatusDelay)
	_, err = f.NextHole(ctx, 0)
	want(t, "NextHole", err, fs.StatusDelay)
	_, err = f.SetAttr(ctx, fs.SetAttr{Size: new(int64(0))}, nil)
	want(t, "SetAttr", err, fs.StatusDelay)
	_, err = r.root.Create(ctx, "vol", fs.CreateUnchecked, fs.SetAttr{Size: new(int64(0))}, [8]byte{})
	want(t, "Create", err, fs.StatusDelay)
	if !f.Bulk() {
		t.Error("its clients must be told to wait, which they are told of bulk files only")
	}
	r.graft("disk1", "vol", newImage("one"))
	if r.content(f) != "one" {
		t.Error("with its stream it must be served")
	}
}

// TestGhostOfAGraft: a file that comes back by itself, where a disk was, is not the disk.
func TestGhostOfAGraft(t *testing.T) {
	r := openTree(t, newDir(t))
	r.graft("disk1", "vol", newImage("one"))
	r.remove("vol")
	r.ok("close", r.Close())
	writeFile(t, filepath.Join(r.path, "vol"), "")
	r = openTree(t, r.path)
	r.lacks("vol")
	wantKind(t, "graft", r.Graft("disk1", "vol", newImage("one"), nil), errs.Stale)
	_, err := r.root.Create(ctx, "vol", fs.CreateUnchecked, fs.SetAttr{}, [8]byte{})
	want(t, "create over the ghost", err, fs.StatusExists)
	wantKind(t, "another graft over the ghost", r.Graft("disk2", "vol", newImage(""), nil), errs.Exists)
}

// TestClientsOwnFileWhereAGraftWas is an ordinary file.
func TestClientsOwnFileWhereAGraftWas(t *testing.T) {
	r := openTree(t, newDir(t))
	r.graft("disk1", "vol", newImage("one"))
	r.remove("vol")
	id := r.file("vol", "a new volume").ID()
	r = r.again()
	r.is(id, "vol", "a new volume")
	wantKind(t, "graft", r.Graft("disk1", "vol", newImage("one"), nil), errs.Stale)
}
