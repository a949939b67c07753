package folder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// calls counts and records the system calls that change the disk, and fails one.
type calls struct {
	mu   sync.Mutex
	n    int
	fail int // the number of the call that fails; 0 is none
	log  []string
}

var errInjected = &os.PathError{Op: "test", Path: "disk", Err: unix.EIO}

func (c *calls) hook(op, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	c.log = append(c.log, op+" "+filepath.Base(name))
	if c.n == c.fail {
		return errInjected
	}
	return nil
}

// take returns what was called since the last time.
func (c *calls) take() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := strings.Join(c.log, ", ")
	c.log = nil
	return s
}

// step is one operation of a story; its error is judged by the caller.
type step struct {
	name string
	do   func(r tree) error
}

func create(path string, mode fs.CreateMode) step {
	return step{"create " + path, func(r tree) error {
		d, name, err := r.find(path)
		if err != nil {
			return err
		}
		f, err := d.Create(ctx, name, mode, fs.SetAttr{}, [8]byte{7})
		if err != nil {
			return err
		}
		return f.(*file).WriteAt(ctx, []byte(path), 0, true)
	}}
}

func named(what string, path string, do func(d *dir, name string) error) step {
	return step{what + " " + path, func(r tree) error {
		d, name, err := r.find(path)
		if err != nil {
			return err
		}
		return do(d, name)
	}}
}

// find is in without failing the test: in a story with a fault a folder may be missing.
func (r tree) find(path string) (*dir, string, error) {
	d := r.root
	for {
		name, more, found := strings.Cut(path, "/")
		if !found {
			return d, path, nil
		}
		n, err := d.Lookup(ctx, name)
		if err != nil {
			return nil, "", err
		}
		d, path = n.(*dir), more
	}
}

func rename(path, to string) step {
	return named("rename", path, func(d *dir, name string) error {
		toDir, toName, err := tree{Tree: d.t}.find(to)
		if err != nil {
			return err
		}
		return d.Rename(ctx, name, toDir, toName)
	})
}

var story = []step{
	named("mkdir", "d", func(d *dir, name string) error { _, err := d.Mkdir(ctx, name, fs.SetAttr{}); return err }),
	create("d/metadata", fs.CreateGuarded),
	create("d/metadata.new", fs.CreateExclusive),
	rename("d/metadata.new", "d/metadata"),
	named("symlink", "l", func(d *dir, name string) error {
		_, err := d.Symlink(ctx, name, "d", fs.SetAttr{})
		return err
	}),
	{"graft", func(r tree) error { return r.Graft("disk1", "d/vol", newImage("one"), nil) }},
	{"second graft", func(r tree) error { return r.Graft("disk2", "vol2", newImage("two"), nil) }},
	rename("d/vol", "vol"),
	create("empty", fs.CreateUnchecked),
	named("truncate", "empty", func(d *dir, name string) error {
		n, err := d.Lookup(ctx, name)
		if err == nil {
			_, err = n.(*file).SetAttr(ctx, fs.SetAttr{Size: new(int64(0)), Perm: new(uint32(0o600))}, nil)
		}
		return err
	}),
	{"converting graft", func(r tree) error { return r.Graft("disk3", "empty", newImage("three"), nil) }},
	named("link", "d/twin", func(d *dir, name string) error {
		n, err := d.Lookup(ctx, "metadata")
		if err != nil {
			return err
		}
		return d.Link(ctx, n, name)
	}),
	named("remove", "d/metadata", func(d *dir, name string) error { return d.Remove(ctx, name) }),
	named("remove", "vol2", func(d *dir, name string) error { return d.Remove(ctx, name) }),
	named("mkdir", "e", func(d *dir, name string) error { _, err := d.Mkdir(ctx, name, fs.SetAttr{}); return err }),
	rename("d", "e/d"),
	named("rmdir", "e/d", func(d *dir, name string) error { return d.RemoveDir(ctx, name) }),
}

func openHooked(t *testing.T, dir string, c *calls) (tree, error) {
	tr, err := Open(dir, Options{Space: fixedSpace, hook: c.hook})
	return tree{tr, t}, err
}

// TestEveryCallFails lets each system call of a story fail once, and then looks whether memory shows what lies on disk,
// whether the successor shows the same, and whether the operation that failed can be repeated.
func TestEveryCallFails(t *testing.T) {
	for n := 1; ; n++ {
		c := &calls{fail: n}
		dir := memoryDir(t)
		r, err := openHooked(t, dir, c)
		if err != nil {
			if !errors.Is(err, unix.EIO) {
				t.Fatalf("call %d: open: %v", n, err)
			}
			openTree(t, dir) // whatever the failed opening left
			continue
		}
		for _, s := range story {
			before := c.n
			err := s.do(r)
			failed := before < n && c.n >= n
			switch {
			case failed && err != nil && !errors.Is(err, unix.EIO):
				t.Fatalf("call %d (%s), %s: %v", n, c.log[n-1], s.name, err)
			case failed:
				checkDisk(r)
				err = s.do(r) // a client tries again
				if !slices.Contains([]fs.Status{fs.StatusOK, fs.StatusExists, fs.StatusNotFound}, fs.StatusOf(err)) {
					t.Fatalf("call %d (%s), %s, again: %v", n, c.log[n-1], s.name, err)
				}
			case err != nil && s.name != "rmdir e/d":
				t.Fatalf("call %d (%s), then %s: %v", n, c.log[min(n, len(c.log))-1], s.name, err)
			}
		}
		checkDisk(r)
		checkSuccessor(r, fmt.Sprintf("call %d (%s)", n, c.log[min(n, len(c.log))-1]))
		if c.n < n {
			t.Logf("%d calls", c.n)
			if n < 80 {
				t.Error("the story is shorter than it was")
			}
			return
		}
	}
}

// shape describes a tree: every name, what it leads to and its ID.
func shape(r tree) (all []string) {
	r.t.Helper()
	var visit func(path string, d *dir)
	visit = func(path string, d *dir) {
		r.ok("list", d.List(ctx, 0, func(e fs.Entry) bool {
			all = append(all, fmt.Sprint(path, e.Name, " ", e.Node.ID(), " ", e.Node.(anyNode).base().kind))
			if sub, ok := e.Node.(*dir); ok {
				visit(path+e.Name+"/", sub)
			}
			return true
		}))
	}
	visit("", r.root)
	slices.Sort(all)
	return all
}

// checkDisk fails the test unless the names in memory are those on disk.
func checkDisk(r tree) {
	r.t.Helper()
	var disk, memory []string
	must(r.t, filepath.WalkDir(r.path, func(path string, _ os.DirEntry, err error) error {
		if path != r.path {
			disk = append(disk, strings.TrimPrefix(path, r.path+"/"))
		}
		return err
	}))
	for _, s := range shape(r) {
		memory = append(memory, s[:strings.IndexByte(s, ' ')])
	}
	slices.Sort(disk)
	if !slices.Equal(disk, memory) {
		r.t.Fatalf("in memory %q, on disk %q", memory, disk)
	}
}

// checkSuccessor closes the tree and compares it with what another opening finds. No disk may have become a file.
func checkSuccessor(r tree, what string) {
	r.t.Helper()
	before, grafts := shape(r), r.Grafts()
	must(r.t, r.Close())
	r = openTree(r.t, r.path)
	if after := shape(r); !slices.Equal(before, after) {
		r.t.Fatalf("%s: before %q, after %q", what, before, after)
	}
	if after := r.Grafts(); !slices.Equal(grafts, after) {
		r.t.Fatalf("%s: grafts before %+v, after %+v", what, grafts, after)
	}
	for _, g := range grafts {
		s := newImage("content of " + g.Key)
		err := r.Graft(g.Key, "nowhere", s, nil)
		if g.Gone {
			wantKind(r.t, what+": graft of a removed file", err, errs.Stale)
			continue
		}
		must(r.t, err)
		r.is(g.ID, g.Path, string(s.data))
	}
}

// TestOrderOfCalls holds each operation to what must be durable before what. An open file keeps the name that it was
// opened under, here f.
func TestOrderOfCalls(t *testing.T) {
	c := &calls{}
	r, err := openHooked(t, newDir(t), c)
	must(t, err)
	defer r.Close()
	r.file("first", "") // takes a reservation of IDs
	c.take()
	for _, o := range []struct {
		step
		want string
	}{
		{named("mkdir", "d", func(d *dir, name string) error { _, err := d.Mkdir(ctx, name, fs.SetAttr{}); return err }),
			"mkdir 3, open 3, setxattr 3, fsync 3, rename d, fsync ."},
		{create("d/f", fs.CreateGuarded), "open 4, setxattr 4, fsync 4, link f, fsync d, unlink 4, write f, fdatasync f"},
		{rename("d/f", "d/g"), "rename g, fsync d"},
		{rename("d/g", "g"), "rename g, fsync ., fsync d"},
		{named("link", "d/h", func(d *dir, name string) error {
			return d.Link(ctx, r.node("g"), name)
		}), "link h, fsync d"},
		{step{"write g", func(r tree) error {
			return r.node("g").(*file).WriteAt(ctx, []byte("x"), 0, false)
		}}, "write f"},
		{step{"commit g", func(r tree) error { return r.node("g").(*file).Commit(ctx) }}, "fdatasync f"},
		{named("truncate", "g", func(*dir, string) error {
			_, err := r.node("g").SetAttr(ctx, fs.SetAttr{Size: new(int64(0))}, nil)
			return err
		}), "truncate f, fsync f"},
		{named("chmod", "g", func(*dir, string) error {
			_, err := r.node("g").SetAttr(ctx, fs.SetAttr{Perm: new(uint32(0o600)), Mtime: new(r.now())}, nil)
			return err
		}), "setxattr g, utimens g, fsync g"},
		{named("chmod to what it is", "g", func(*dir, string) error {
			_, err := r.node("g").SetAttr(ctx, fs.SetAttr{Perm: new(uint32(0o600))}, nil)
			return err
		}), ""},
		{step{"graft", func(r tree) error { return r.Graft("k", "vol", newImage(""), nil) }},
			"open 5, setxattr 5, fsync 5, link vol, fsync ., unlink 5, publish record"},
		{rename("vol", "d/vol"), "rename vol, fsync d, fsync ., publish record"},
		{named("remove", "d/vol", func(d *dir, name string) error { return d.Remove(ctx, name) }), "unlink vol, fsync d"},
		{named("graft", "first", func(*dir, string) error { return r.Graft("k2", "first", newImage(""), nil) }),
			"setxattr first, fsync first, publish record"},
		{named("rmdir", "d", func(d *dir, name string) error {
			if err := r.node("d").(*dir).Remove(ctx, "h"); err != nil {
				return err
			}
			return d.RemoveDir(ctx, name)
		}), "unlink h, fsync d, unlink d, fsync ."},
	} {
		r.ok(o.name, o.do(r))
		if got := c.take(); got != o.want {
			t.Errorf("%s: %s; want %s", o.name, got, o.want)
		}
	}
}
