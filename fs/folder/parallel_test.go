package folder

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// TestEverythingAtOnce lets goroutines change, read, write and list one tree. Every file has one writer, which fills it
// with its number: whoever reads it must find one number, and never another file's.
func TestEverythingAtOnce(t *testing.T) {
	r := openTree(t, memoryDir(t))
	r.fds.limit = 4
	r.mkdir("a")
	r.mkdir("b")
	r.graft("disk", "disk", newImage(strings.Repeat("d", 4096)))
	var handles sync.Map // ID → the byte that fills it
	var done atomic.Bool
	var writers, readers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() { mutate(r, w, 150, &handles) })
	}
	for range 3 {
		readers.Go(func() {
			for !done.Load() {
				observe(r, &handles)
			}
		})
	}
	writers.Wait()
	done.Store(true)
	readers.Wait()
	checkDisk(r)
	if n := openFiles(t, r.path); n > r.fds.limit {
		t.Errorf("%d files are open", n)
	}
	checkSuccessor(r, "after all")
}

// allowed are the answers that an operation on what others move and remove may get.
func allowed(t *testing.T, what string, err error, more ...fs.Status) bool {
	t.Helper()
	s := fs.StatusOf(err)
	for _, m := range append(more, fs.StatusOK, fs.StatusStale, fs.StatusNotFound) {
		if s == m {
			return s == fs.StatusOK
		}
	}
	t.Errorf("%s: %v", what, err)
	return false
}

func mutate(r tree, w, rounds int, handles *sync.Map) {
	rnd := rand.New(rand.NewPCG(1, uint64(w)))
	dirs := []*dir{r.root, r.node("a").(*dir), r.node("b").(*dir)}
	for n := range rounds {
		d, to := dirs[rnd.IntN(3)], dirs[rnd.IntN(3)]
		fill := byte(1 + w + 4*(n%50))
		name, shared := fmt.Sprintf("w%d-%d", w, n), fmt.Sprint("shared", rnd.IntN(4))
		f, err := d.Create(ctx, name, fs.CreateGuarded, fs.SetAttr{}, [8]byte{})
		if !allowed(r.t, "create", err) {
			continue
		}
		handles.Store(f.ID(), fill)
		file := f.(*file)
		allowed(r.t, "write", file.WriteAt(ctx, bytes.Repeat([]byte{fill}, 1000), 0, n%2 == 0))
		allowed(r.t, "rename", d.Rename(ctx, name, to, shared)) // readers look for it under both
		allowed(r.t, "write", file.WriteAt(ctx, bytes.Repeat([]byte{fill}, 2000), 0, false))
		_, err = file.SetAttr(ctx, fs.SetAttr{Size: new(int64(1500)), Perm: new(uint32(n & 0o777))}, nil)
		allowed(r.t, "setattr", err)
		allowed(r.t, "commit", file.Commit(ctx))
		switch n % 3 {
		case 0:
			allowed(r.t, "link", to.Link(ctx, f, name), fs.StatusExists)
		case 1:
			allowed(r.t, "remove", to.Remove(ctx, shared))
		}
		allowed(r.t, "rename of the disk", r.root.Rename(ctx, "disk", dirs[1], "disk"))
		allowed(r.t, "and back", dirs[1].Rename(ctx, "disk", r.root, "disk"))
	}
}

// observe reads every file that can be seen, by name and by old handles.
func observe(r tree, handles *sync.Map) {
	check := func(n fs.Node) {
		f, ok := n.(*file)
		if !ok {
			return
		}
		if _, err := f.Attr(ctx); !allowed(r.t, "attr", err) {
			return
		}
		p := make([]byte, 4096)
		k, err := f.ReadAt(ctx, p, 0)
		if !allowed(r.t, "read", err) || k == 0 {
			return
		}
		want := byte('d')
		if !f.grafted.Load() {
			v, ok := handles.Load(f.ID())
			if !ok {
				return // its maker has not yet said what it fills it with
			}
			want = v.(byte)
		}
		if n := bytes.Count(p[:k], []byte{want}); n != k {
			r.t.Errorf("node %d: %d of %d bytes are not %d", f.ID(), k-n, k, want)
		}
	}
	for _, path := range []string{"", "a", "b"} {
		d := r.root
		if path != "" {
			d = r.node(path).(*dir)
		}
		allowed(r.t, "list", d.List(ctx, 0, func(e fs.Entry) bool { check(e.Node); return true }))
	}
	handles.Range(func(id, _ any) bool {
		n, err := r.Node(ctx, id.(fs.ID))
		if allowed(r.t, "node", err) {
			check(n)
		}
		return true
	})
}

// openFiles counts this process's open files below a folder.
func openFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range all {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, dir+"/") {
			n++
		}
	}
	return n
}

// TestOpenFilesAreBounded: files with unstable writes stay open, but not all of them.
func TestOpenFilesAreBounded(t *testing.T) {
	c := &calls{}
	r, err := openHooked(t, memoryDir(t), c)
	must(t, err)
	defer r.Close()
	r.fds.limit = 8
	var files []*file
	for i := range 20 {
		files = append(files, r.file(fmt.Sprint(i), ""))
	}
	c.take()
	for _, f := range files {
		r.ok("write", f.WriteAt(ctx, []byte("x"), 0, false))
	}
	if n := openFiles(t, r.path); n > 8 {
		t.Errorf("%d files are open", n)
	}
	if got := strings.Count(c.take(), "fdatasync"); got != 16 {
		t.Errorf("%d of 20 unstable writes were made stable, want all but 4", got)
	}
	for _, f := range files {
		r.ok("commit", f.Commit(ctx))
	}
	r.ok("write", files[0].WriteAt(ctx, []byte("x"), 0, false))
	if got := c.take(); strings.Count(got, "fdatasync") != 20 {
		t.Errorf("the commits freed no place for an unstable write: %s", got)
	}
	r.remove("0")
	for _, f := range files[1:] {
		_, err := f.Attr(ctx)
		r.ok("attr", err)
	}
	if n := openFiles(t, r.path); n > 8 || r.fds.unsync != 0 {
		t.Errorf("%d files are open, %d with unstable writes", n, r.fds.unsync)
	}
}

// TestChangesWaitWithTheirContext: a change that cannot begin ends with its context.
func TestChangesWaitWithTheirContext(t *testing.T) {
	r := openTree(t, newDir(t))
	f := r.file("f", "x")
	r.changing <- struct{}{}
	short, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := r.root.Create(short, "g", fs.CreateGuarded, fs.SetAttr{}, [8]byte{}); err == nil {
		t.Error("created")
	}
	waiting, cancel := context.WithCancel(ctx)
	ended := make(chan error)
	go func() { ended <- r.root.Remove(waiting, "f") }()
	if got := r.content(f); got != "x" { // readers do not wait for it
		t.Errorf("read %q", got)
	}
	cancel()
	if err := <-ended; err != context.Canceled {
		t.Errorf("remove: %v", err)
	}
	<-r.changing
	r.remove("f")
}

// TestFailedCommitIsTold: what could not be made durable is told to the one who asks, once.
func TestFailedCommitIsTold(t *testing.T) {
	c := &calls{}
	r, err := openHooked(t, newDir(t), c)
	must(t, err)
	defer r.Close()
	f := r.file("f", "x")
	r.ok("write", f.WriteAt(ctx, []byte("y"), 0, false))
	c.fail = c.n + 1
	want(t, "commit", f.Commit(ctx), fs.StatusIO)
	r.ok("write again", f.WriteAt(ctx, []byte("y"), 0, false))
	r.ok("commit again", f.Commit(ctx))
	c.fail = c.n + 2
	want(t, "stable write", f.WriteAt(ctx, []byte("z"), 0, true), fs.StatusIO)
}

// TestBigFilesAreBulk: hosts make disks of their own, and those must not stand in the way of small files.
func TestBigFilesAreBulk(t *testing.T) {
	r := openTree(t, newDir(t))
	f := r.file("f", "x")
	if f.Bulk() || r.root.Bulk() {
		t.Error("small, and bulk")
	}
	r.ok("write", f.WriteAt(ctx, []byte("x"), bulkBytes, true))
	r.attr(f)
	if !f.Bulk() {
		t.Error("big, and not bulk")
	}
	if !r.again().node("f").(*file).Bulk() {
		t.Error("after a restart not bulk")
	}
}

// TestTooManyNames: memory is bounded by the number of names.
func TestTooManyNames(t *testing.T) {
	r := openTree(t, newDir(t))
	f := r.file("f", "")
	r.Tree.names = maxNames
	_, err := r.root.Create(ctx, "g", fs.CreateGuarded, fs.SetAttr{}, [8]byte{})
	want(t, "create", err, fs.StatusNoSpace)
	_, err = r.root.Mkdir(ctx, "d", fs.SetAttr{})
	want(t, "mkdir", err, fs.StatusNoSpace)
	want(t, "link", r.root.Link(ctx, f, "g"), fs.StatusNoSpace)
	wantKind(t, "graft", r.Graft("k", "vol", newImage(""), nil), errs.NoSpace)
	r.remove("f")
	r.file("f", "")
	if _, err := os.Stat(filepath.Join(r.path, "g")); err == nil {
		t.Error("refused, and on disk")
	}
}
