package folder

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/fs"
)

// TestHandlesOutliveTheTree renames, replaces, removes and makes again, and looks for every node by its old handle in
// the tree's successors.
func TestHandlesOutliveTheTree(t *testing.T) {
	r := openTree(t, newDir(t))
	r.mkdir("sd")
	md := r.mkdir("sd/dom_md").ID()
	meta := r.file("sd/dom_md/metadata", "one")
	next := r.file("sd/dom_md/metadata.new", "two")
	ids := r.file("sd/dom_md/ids", "ids").ID()
	gone := r.file("gone", "gone").ID()
	r.remove("gone")
	later := r.file("gone", "later").ID()
	r.move("sd/dom_md/metadata.new", "sd/dom_md/metadata")
	dir := r.mkdir("dir").ID()
	inside := r.file("dir/inside", "inside").ID()
	r.move("dir", "sd/moved")
	check := func() {
		t.Helper()
		r.is(md, "sd/dom_md", "")
		r.is(next.ID(), "sd/dom_md/metadata", "two")
		r.is(ids, "sd/dom_md/ids", "ids")
		r.is(later, "gone", "later")
		r.is(dir, "sd/moved", "")
		r.is(inside, "sd/moved/inside", "inside")
		for _, id := range []fs.ID{gone, meta.ID()} {
			_, err := r.Node(ctx, id)
			want(t, "node that is gone", err, fs.StatusStale)
		}
		if r.root.ID() != rootID || later == gone {
			t.Errorf("the root is node %d; %d was followed by %d", r.root.ID(), gone, later)
		}
	}
	check()
	for range 2 {
		r = r.again()
		check()
	}
	r.remove("gone")
	r = r.again()
	_, err := r.Node(ctx, later)
	want(t, "node that is gone", err, fs.StatusStale)
	if again := r.file("gone", "").ID(); again <= later {
		t.Errorf("ID %d after %d", again, later)
	}
	_, err = r.Node(ctx, 1<<40)
	want(t, "an ID that was never given out", err, fs.StatusBadHandle)
}

// TestWhatCameWithTheFolder gets IDs that last, shows its modes, and belongs to 36:36.
func TestWhatCameWithTheFolder(t *testing.T) {
	dir := newDir(t)
	for name, mode := range map[string]os.FileMode{"ids": 0o660, "metadata": 0o644} {
		writeFile(t, filepath.Join(dir, name), name)
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "ids"), filepath.Join(dir, "twin")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := openTree(t, dir)
	ids, metadata, b := r.node("ids").ID(), r.node("metadata").ID(), r.node("a/b").ID()
	for path, perm := range map[string]uint32{"ids": 0o660, "metadata": 0o644, "a/b": 0o755} {
		if a := r.attr(r.node(path)); a.Perm != perm || a.UID != fs.OwnerID || a.GID != fs.OwnerID {
			t.Errorf("%s: %+v", path, a)
		}
	}
	if a := r.attr(r.node("twin")); a.ID != ids || a.Nlink != 2 {
		t.Errorf("the second name: %+v", a)
	}
	r.ok("close", r.Close())
	writeFile(t, filepath.Join(dir, "new"), "from outside, while closed")
	if err := os.Rename(filepath.Join(dir, "metadata"), filepath.Join(dir, "a/metadata")); err != nil {
		t.Fatal(err)
	}
	r = openTree(t, dir)
	r.is(ids, "ids", "ids")
	r.is(metadata, "a/metadata", "metadata")
	r.is(b, "a/b", "")
	if id := r.node("new").ID(); id <= max(ids, metadata, b) {
		t.Errorf("the new file has the ID %d", id)
	}
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestAttributesOutliveTheTree sets what clients set.
func TestAttributesOutliveTheTree(t *testing.T) {
	r := openTree(t, newDir(t))
	when := time.Unix(1_700_000_000, 123456789)
	set := fs.SetAttr{
		Perm: new(uint32(0)), UID: new(uint32(5)), GID: new(uint32(6)), Atime: &when, Mtime: new(when.Add(time.Hour)),
	}
	_, err := r.root.Symlink(ctx, "link", "../elsewhere", fs.SetAttr{})
	r.ok("symlink", err)
	before := map[string]fs.Attr{}
	for _, n := range []anyNode{r.file("file", "abc"), r.mkdir("dir"), r.node("link")} {
		_, err := n.SetAttr(ctx, set, nil)
		r.ok("SetAttr", err)
	}
	for _, name := range []string{"file", "dir", "link"} {
		before[name] = r.attr(r.node(name))
	}
	set = fs.SetAttr{Perm: new(uint32(0o640)), Size: new(int64(5000)), Mtime: &when}
	made, err := r.root.Create(ctx, "made", fs.CreateGuarded, set, [8]byte{})
	r.ok("create", err)
	if a := r.attr(made); a.Perm != 0o640 || a.Size != 5000 || !a.Mtime.Equal(when) {
		t.Errorf("made with attributes: %+v", a)
	}
	before["made"] = r.attr(made)
	r = r.again()
	for name, b := range before {
		a := r.attr(r.node(name))
		if !a.Ctime.After(b.Ctime) {
			t.Errorf("%s: the change time must begin anew: %v, before %v", name, a.Ctime, b.Ctime)
		}
		a.Ctime = b.Ctime
		if name == "made" {
			a.Atime = b.Atime
		}
		if a != b {
			t.Errorf("%s: %+v, before %+v", name, a, b)
		}
	}
	if to, err := r.node("link").(fs.Symlink).Readlink(ctx); to != "../elsewhere" || err != nil {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	if r.content(r.node("file")) != "abc" {
		t.Error("mode 0 is for clients only")
	}
}

// TestExclusiveCreationOutlivesTheTree: a client that gets no answer asks the successor.
func TestExclusiveCreationOutlivesTheTree(t *testing.T) {
	r := openTree(t, newDir(t))
	mine := [8]byte{1, 2, 3}
	f, err := r.root.Create(ctx, "f", fs.CreateExclusive, fs.SetAttr{}, mine)
	r.ok("create", err)
	r = r.again()
	again, err := r.root.Create(ctx, "f", fs.CreateExclusive, fs.SetAttr{}, mine)
	r.ok("repeat", err)
	if again.ID() != f.ID() {
		t.Error("the repeat found another file")
	}
	_, err = r.root.Create(ctx, "f", fs.CreateExclusive, fs.SetAttr{}, [8]byte{4})
	want(t, "other verifier", err, fs.StatusExists)
}

// TestListingGoesOnAfterRestart reads a folder in pieces, each from another successor of the tree.
func TestListingGoesOnAfterRestart(t *testing.T) {
	r := openTree(t, newDir(t))
	d := r.mkdir("d")
	for i := range 40 {
		r.file(fmt.Sprint("d/", 40-i), "")
	}
	r.move("d/7", "d/seven")
	r.move("d/8", "eight")
	r.ok("link", d.Link(ctx, r.node("d/9"), "nine"))
	seen := map[string]int{}
	after, round := uint64(0), 0
	for more := true; more; round++ {
		more = false
		n := 0
		r.ok("list", r.node("d").(*dir).List(ctx, after, func(e fs.Entry) bool {
			if n++; n > 9 {
				more = true
				return false
			}
			seen[e.Name]++
			after = e.Cookie
			return true
		}))
		r.file(fmt.Sprint("d/later", round), "")
		if more {
			r = r.again()
		}
	}
	for _, e := range entries(r, "d") {
		several := e.Node.ID() == r.node("d/nine").ID() // of them the package comment says that they may move
		if c := seen[e.Name]; c != 1 && !(several && c > 0) && len(e.Name) < 6 {
			t.Errorf("%s was seen %d times", e.Name, c)
		}
	}
	if round < 4 {
		t.Errorf("only %d rounds", round)
	}
}

func entries(r tree, path string) (all []fs.Entry) {
	r.t.Helper()
	r.ok("list", r.node(path).(*dir).List(ctx, 0, func(e fs.Entry) bool {
		all = append(all, e)
		return true
	}))
	return all
}
