package folder

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// TestLinksAreNotFollowed puts ways out into the folder, before it is opened and while it is open.
func TestLinksAreNotFollowed(t *testing.T) {
	dir, secret := newDir(t), t.TempDir()
	writeFile(t, filepath.Join(secret, "passwd"), "secret")
	for name, to := range map[string]string{"out": secret, "file": filepath.Join(secret, "passwd"), "up": ".."} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	tr, err := Open(dir, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	r := tree{tr, t}
	defer r.Close()
	for _, name := range []string{"out", "file", "up", "fifo"} {
		r.lacks(name)
		_, err := r.root.Create(ctx, name, fs.CreateUnchecked, fs.SetAttr{}, [8]byte{})
		want(t, "create "+name, err, fs.StatusExists)
		_, err = r.root.Mkdir(ctx, name, fs.SetAttr{})
		want(t, "mkdir "+name, err, fs.StatusExists)
		want(t, "remove "+name, r.root.Remove(ctx, name), fs.StatusNotFound)
		if !strings.Contains(log.String(), "/"+name) {
			t.Errorf("nothing was said about %s", name)
		}
	}
	r.mkdir("d")
	f := r.file("d/passwd", "mine")
	r.file("plain", "")
	want(t, "rename onto a hidden name", r.root.Rename(ctx, "plain", r.root, "out"), fs.StatusExists)
	for r.fds.limit = 0; f.open != nil; { // the file is looked for again
		_, _ = r.node("plain").Attr(ctx)
	}
	if err := os.RemoveAll(filepath.Join(dir, "d")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(dir, "d")); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 6)
	if n, err := f.ReadAt(ctx, p, 0); err == nil || n > 0 {
		t.Errorf("read %q through a link", p)
	}
	if err := f.WriteAt(ctx, []byte("x"), 0, true); err == nil {
		t.Error("written through a link")
	}
	d, _ := r.in("d/x")
	if _, err := d.Create(ctx, "x", fs.CreateUnchecked, fs.SetAttr{}, [8]byte{}); err == nil {
		t.Error("created through a link")
	}
	if names, _ := os.ReadDir(secret); len(names) != 1 {
		t.Errorf("outside lie now %v", names)
	}
}

// TestSwappedFile: another file under a node's name is not taken for the node.
func TestSwappedFile(t *testing.T) {
	r := openTree(t, newDir(t))
	r.file("f", "mine")
	r = r.again()
	writeFile(t, filepath.Join(r.path, "g"), "other")
	if err := os.Rename(filepath.Join(r.path, "g"), filepath.Join(r.path, "f")); err != nil {
		t.Fatal(err)
	}
	_, err := r.node("f").Attr(ctx)
	want(t, "Attr", err, fs.StatusIO)
}

// TestTargetsAreOnlyText: a client's own link on disk is a file, whatever it says.
func TestTargetsAreOnlyText(t *testing.T) {
	r := openTree(t, newDir(t))
	_, err := r.root.Symlink(ctx, "l", "/etc/passwd", fs.SetAttr{})
	r.ok("symlink", err)
	st, err := os.Lstat(filepath.Join(r.path, "l"))
	if err != nil || !st.Mode().IsRegular() {
		t.Errorf("on disk: %v, %v", st, err)
	}
	_, err = r.root.Symlink(ctx, "long", strings.Repeat("x", maxTarget+1), fs.SetAttr{})
	want(t, "a long target", err, fs.StatusNameTooLong)
	_, err = r.root.Symlink(ctx, "longest", strings.Repeat("x", maxTarget), fs.SetAttr{})
	r.ok("the longest target", err)
	if to, err := r.node("longest").(fs.Symlink).Readlink(ctx); len(to) != maxTarget || err != nil {
		t.Errorf("%d bytes, %v", len(to), err)
	}
}

// TestDepth: folders end somewhere, also those that are moved.
func TestDepth(t *testing.T) {
	r := openTree(t, newDir(t))
	path := strings.TrimSuffix(strings.Repeat("d/", maxDepth), "/")
	for i := 1; i <= len(path); i += 2 {
		r.mkdir(path[:i])
	}
	deepest := r.node(path).(*dir)
	_, err := deepest.Mkdir(ctx, "x", fs.SetAttr{})
	want(t, "one folder more", err, fs.StatusNameTooLong)
	r.file(path+"/file", "deep")
	r.mkdir("a")
	r.mkdir("a/b")
	up, _ := r.in(path)
	want(t, "a deep folder moved down", r.root.Rename(ctx, "a", up, "a"), fs.StatusNameTooLong)
	r.ok("a flat one", r.node("a").(*dir).Rename(ctx, "b", up, "b"))
	r = r.again()
	if r.content(r.node(path+"/file")) != "deep" {
		t.Error("the deep file is lost")
	}
}

// copyMarked copies a file with its mark, as cp -a does.
func copyMarked(t *testing.T, from, to string) {
	t.Helper()
	b := make([]byte, 400)
	n, err := unix.Lgetxattr(from, markName, b)
	must(t, err)
	writeFile(t, to, "copy")
	must(t, unix.Lsetxattr(to, markName, b[:n], 0))
}

func rewrite(t *testing.T, name string, f func(string) string) {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	writeFile(t, name, f(string(b)))
}

// damages are what hands and tools do to folders, and what Open says of it.
var damages = []struct {
	name string
	do   func(t *testing.T, dir, record string)
	kind errs.Kind
}{
	{"record gone", func(t *testing.T, _, record string) { must(t, os.Remove(record)) }, errs.Corrupt},
	{"record damaged", func(t *testing.T, _, record string) {
		rewrite(t, record, func(s string) string { return strings.Replace(s, `"next":`, `"next":1`, 1) })
	}, errs.Corrupt},
	{"record cut", func(t *testing.T, _, record string) { must(t, os.Truncate(record, 10)) }, errs.Corrupt},
	{"record of a later version", func(t *testing.T, _, record string) {
		text := `{"version":2}`
		writeFile(t, record, text+"\n"+recordSum(text)+"\n")
	}, errs.Unsupported},
	{"record of the first day", func(t *testing.T, _, record string) {
		rewrite(t, record, func(s string) string {
			text, _, _ := strings.Cut(s, "\n")
			text = strings.Replace(text, `"next":1026`, `"next":3`, 1)
			return text + "\n" + recordSum(text) + "\n"
		})
	}, errs.Corrupt},
	{"root without its mark", func(t *testing.T, dir, _ string) {
		must(t, unix.Removexattr(dir, markName))
	}, errs.Corrupt},
	{"mark of another version", func(t *testing.T, dir, _ string) {
		must(t, unix.Setxattr(dir+"/f", markName, make([]byte, markLen), 0))
	}, errs.Unsupported},
	{"mark cut", func(t *testing.T, dir, _ string) {
		must(t, unix.Setxattr(dir+"/f", markName, []byte{1, 1}, 0))
	}, errs.Corrupt},
	{"file copied with its mark", func(t *testing.T, dir, _ string) {
		copyMarked(t, dir+"/f", dir+"/d/copy")
	}, errs.Corrupt},
	{"graft copied with its mark", func(t *testing.T, dir, _ string) {
		copyMarked(t, dir+"/vol", dir+"/copy")
	}, errs.Corrupt},
	{"folder's mark on a file", func(t *testing.T, dir, _ string) {
		copyMarked(t, dir+"/d", dir+"/copy")
		must(t, os.Remove(dir+"/d"))
	}, errs.Corrupt},
	{"no folder", func(t *testing.T, dir, _ string) { must(t, os.RemoveAll(dir)) }, errs.NotFound},
}

func TestWhatOpenRefuses(t *testing.T) {
	for _, c := range damages {
		t.Run(c.name, func(t *testing.T) {
			r := openTree(t, newDir(t))
			r.file("f", "x")
			r.mkdir("d")
			r.graft("disk1", "vol", newImage("one"))
			_, err := Open(r.path, Options{})
			wantKind(t, "a second opener", err, errs.Busy)
			r = r.again() // undamaged it opens
			r.ok("close", r.Close())
			c.do(t, r.path, r.path+sideSuffix+"/"+recordName)
			_, err = Open(r.path, Options{})
			wantKind(t, "open", err, c.kind)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestForeignMarks: a file of another tree is a new file here, its disk is nothing.
func TestForeignMarks(t *testing.T) {
	base := t.TempDir()
	a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
	must(t, os.Mkdir(a, 0o755))
	must(t, os.Mkdir(b, 0o755))
	r := openTree(t, a)
	r.file("f", "from a")
	r.graft("disk1", "vol", newImage("one"))
	r.ok("close", r.Close())
	must(t, os.Rename(a+"/f", b+"/f"))
	must(t, os.Rename(a+"/vol", b+"/vol"))
	r = openTree(t, b)
	r.is(r.node("f").ID(), "f", "from a")
	r.lacks("vol")
	r = r.again()
	r.is(r.node("f").ID(), "f", "from a")
}

func TestOldStageIsCleared(t *testing.T) {
	r := openTree(t, newDir(t))
	r.file("f", "x")
	r.ok("close", r.Close())
	stage := r.path + sideSuffix + "/" + stageName
	must(t, os.Link(r.path+"/f", stage+"/7"))
	must(t, os.Mkdir(stage+"/8", 0o700))
	r = openTree(t, r.path)
	if names, err := os.ReadDir(stage); err != nil || len(names) > 0 {
		t.Errorf("in the stage lie %v, %v", names, err)
	}
	r.is(r.node("f").ID(), "f", "x")
}
