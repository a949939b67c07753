package folder

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	childDir  = "HOLDFAST_FOLDER_CHILD_DIR"
	childTask = "HOLDFAST_FOLDER_CHILD_TASK"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(child(dir, os.Getenv(childTask)))
	}
	os.Exit(m.Run())
}

// child is what a test process does when it is started as the victim: one change after the other, each announced
// before ("try") and after ("ack").
func child(dir, task string) int {
	tr, err := Open(dir, Options{})
	if err != nil {
		fmt.Println("fail", errs.KindOf(err), err)
		return 1
	}
	var n int
	_, _ = fmt.Sscan(task, &n)
	for ; ; n++ {
		if err := childRound(tree{Tree: tr}, n); err != nil {
			fmt.Println("fail", n, err)
			return 1
		}
	}
}

// childRound makes a file, writes it, moves it over one that is there, and lets a graft come and, in every second
// round, go. IDs are told as soon as they are known.
func childRound(r tree, n int) error {
	name := fmt.Sprint("f", n)
	f, err := r.root.Create(ctx, name, fs.CreateExclusive, fs.SetAttr{}, [8]byte{byte(n)})
	if err != nil {
		return err
	}
	fmt.Println("made", n, f.ID())
	if err := f.(*file).WriteAt(ctx, []byte(name), 0, true); err != nil {
		return err
	}
	fmt.Println("wrote", n)
	if n%4 == 3 { // now and then the one before is replaced
		if err := r.root.Rename(ctx, name, r.root, fmt.Sprint("f", n-1)); err != nil {
			return err
		}
		fmt.Println("moved", n)
	}
	fmt.Println("graft", n)
	if err := r.Graft(fmt.Sprint("k", n), fmt.Sprint("vol", n), newImage("x"), nil); err != nil {
		return err
	}
	fmt.Println("grafted", n)
	if n%2 == 0 {
		return nil
	}
	fmt.Println("remove", n)
	if err := r.root.Remove(ctx, fmt.Sprint("vol", n)); err != nil {
		return err
	}
	fmt.Println("removed", n)
	return nil
}

// heard is what children said: the last word on each round, and the IDs.
type heard struct {
	made                          map[int]fs.ID
	wrote, moved                  map[int]bool
	graft, grafted, remove, taken map[int]bool
	last                          int
}

// TestKill9 kills a process in the middle of changes, again and again over the same folder, and demands everything that
// it said was done, under the same handles.
func TestKill9(t *testing.T) {
	dir := newDir(t)
	h := heard{made: map[int]fs.ID{}, wrote: map[int]bool{}, moved: map[int]bool{}, graft: map[int]bool{},
		grafted: map[int]bool{}, remove: map[int]bool{}, taken: map[int]bool{}}
	for round := range 8 {
		killOne(t, dir, 1000*round, 3+11*round, &h)
		r := openTree(t, dir)
		checkDisk(r)
		h.check(r)
		must(t, r.Close())
	}
	t.Logf("%d files and %d grafts", len(h.made), len(h.graft))
}

// killOne starts a child and kills it after some lines.
func killOne(t *testing.T, dir string, first, lines int, h *heard) {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	c := exec.Command(exe)
	c.Env = append(os.Environ(), childDir+"="+dir, fmt.Sprint(childTask, "=", first))
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	said := bufio.NewScanner(out)
	for i := 0; said.Scan(); i++ {
		var word string
		var n int
		var id fs.ID
		_, _ = fmt.Sscan(said.Text(), &word, &n, &id)
		if strings.HasPrefix(said.Text(), "fail") {
			t.Errorf("the child said %q", said.Text())
		}
		if word == "made" {
			h.made[n] = id
		}
		for w, m := range map[string]map[int]bool{"wrote": h.wrote, "moved": h.moved, "graft": h.graft, "grafted": h.grafted,
			"remove": h.remove, "removed": h.taken} {
			if w == word {
				m[n] = true
			}
		}
		if i == lines {
			_ = c.Process.Kill() // what it said until then is still read
		}
	}
	_ = c.Wait()
}

func (h *heard) check(r tree) {
	r.t.Helper()
	for n, id := range h.made {
		name := fmt.Sprint("f", n)
		if n%4 == 2 { // it may have been replaced
			at, err := r.root.Lookup(ctx, name)
			r.ok(name, err)
			if replaced := at.ID() != id; replaced && at.ID() != h.made[n+1] || h.moved[n+1] && !replaced {
				r.t.Errorf("%s is node %d; it was made as %d, %d moved there: %v", name, at.ID(), id, h.made[n+1], h.moved[n+1])
			}
			continue
		}
		node, err := r.Node(ctx, id)
		r.ok("node of "+name, err)
		if h.wrote[n] && r.content(node) != name {
			r.t.Errorf("%s holds %q", name, r.content(node))
		}
	}
	known := map[string]GraftInfo{}
	for _, g := range r.Grafts() {
		known[g.Key] = g
	}
	for n := range h.graft {
		key, name := fmt.Sprint("k", n), fmt.Sprint("vol", n)
		g, is := known[key]
		switch {
		case h.taken[n] && !(is && g.Gone):
			r.t.Errorf("the removed %s came back: %+v", key, g)
		case h.grafted[n] && !is, h.grafted[n] && !h.remove[n] && g.Gone:
			r.t.Errorf("%s is lost: %+v", key, g)
		case !is || g.Gone:
			r.lacks(name)
			continue
		}
		_, err := r.node(name).(*file).ReadAt(ctx, make([]byte, 1), 0)
		want(r.t, "read of a disk without its stream", err, fs.StatusDelay)
		r.graft(key, name, newImage("disk "+key))
		if got := r.content(r.node(name)); got != "disk "+key {
			r.t.Errorf("%s holds %q", name, got)
		}
	}
}
