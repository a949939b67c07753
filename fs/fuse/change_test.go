package fuse

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/fstest"
)

// changeClient changes names and attributes and checks what it sees after each step.
func changeClient(c *client) {
	stat := func(name string) (st unix.Stat_t) {
		c.must("stat "+name, unix.Lstat(c.path(name), &st))
		return st
	}
	c.must("mkdir", os.Mkdir(c.path("d"), 0o750))
	c.must("mkdir", os.MkdirAll(c.path("d/e/f"), 0o755))
	c.refuses("mkdir again", os.Mkdir(c.path("d"), 0o750), unix.EEXIST)
	if st := stat("d"); st.Mode != unix.S_IFDIR|0o750 || st.Nlink != 3 || st.Uid != 36 || st.Gid != 36 {
		c.failf("the new folder: %+v", st)
	}
	c.must("write", os.WriteFile(c.path("d/file"), []byte("content"), 0o640))
	f, err := os.OpenFile(c.path("d/file"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	c.refuses("exclusive create", err, unix.EEXIST)
	if f != nil {
		c.failf("it exists")
	}
	c.must("truncating open", os.WriteFile(c.path("d/file"), []byte("two"), 0o600))
	if st := stat("d/file"); st.Mode != unix.S_IFREG|0o640 || st.Size != 3 || st.Uid != 36 || st.Blocks != 8 {
		c.failf("the new file: %+v", st)
	}
	c.must("link", os.Link(c.path("d/file"), c.path("twin")))
	if a, b := stat("d/file"), stat("twin"); a.Ino != b.Ino || b.Nlink != 2 {
		c.failf("two names: %+v, %+v", a, b)
	}
	c.must("symlink", os.Symlink("d/e", c.path("sym")))
	if to, err := os.Readlink(c.path("sym")); to != "d/e" || err != nil {
		c.failf("readlink: %q, %v", to, err)
	}
	changeAttributes(c)
	changeNames(c)
	if c.args[0] == "leave" {
		return
	}
	c.must("remove all", os.RemoveAll(c.path("d")))
}

func changeAttributes(c *client) {
	when := time.Unix(1_600_000_000, 123_456_789)
	c.must("chmod", os.Chmod(c.path("twin"), 0o604))
	c.must("chown", os.Lchown(c.path("twin"), 5, 6))
	c.must("utimes", os.Chtimes(c.path("twin"), when, when.Add(time.Second)))
	c.must("truncate", os.Truncate(c.path("twin"), 10_000))
	var st unix.Stat_t
	c.must("stat", unix.Stat(c.path("d/file"), &st))
	if st.Mode&0o7777 != 0o604 || st.Uid != 5 || st.Gid != 6 || st.Size != 10_000 || st.Atim.Sec != when.Unix() ||
		st.Atim.Nsec != 123_456_789 {
		c.failf("attributes through the other name: %+v", st)
	}
	p, err := os.ReadFile(c.path("twin"))
	if err != nil || !bytes.Equal(p, append([]byte("two"), make([]byte, 9997)...)) {
		c.failf("after growing: %d bytes, %v", len(p), err)
	}
	c.must("utimes", os.Chtimes(c.path("d/e"), when, when))
}

func changeNames(c *client) {
	rename := func(a, b string) error { return os.Rename(c.path(a), c.path(b)) }
	c.must("write", os.WriteFile(c.path("new"), []byte("new"), 0o644))
	c.must("rename over a file", rename("new", "twin"))
	if p, err := os.ReadFile(c.path("twin")); string(p) != "new" || err != nil {
		c.failf("after the rename: %q, %v", p, err)
	}
	c.must("rename into a folder", rename("twin", "d/e/moved"))
	c.must("rename a folder over an empty one", rename("d/e/f", "d/e/g"))
	c.refuses("folder into itself", rename("d", "d/e/x"), unix.EINVAL)
	c.refuses("folder over full folder", unix.Rename(c.path("d/e/g"), c.path("d")), unix.ENOTEMPTY)
	c.refuses("folder over file", unix.Rename(c.path("d/e/g"), c.path("d/file")), unix.ENOTDIR)
	c.refuses("file over folder", unix.Rename(c.path("d/file"), c.path("d/e/g")), unix.EISDIR)
	c.refuses("rmdir of a full folder", unix.Rmdir(c.path("d/e")), unix.ENOTEMPTY)
	c.refuses("rmdir of a file", unix.Rmdir(c.path("d/file")), unix.ENOTDIR)
	c.refuses("unlink of a folder", unix.Unlink(c.path("d/e")), unix.EISDIR)
	at := func(a, b string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, c.path(a), unix.AT_FDCWD, c.path(b), flags)
	}
	c.refuses("no replace", at("d/file", "d/e/moved", unix.RENAME_NOREPLACE), unix.EEXIST)
	c.must("no replace, free", at("d/e/moved", "d/e/moved2", unix.RENAME_NOREPLACE))
	c.refuses("exchange", at("d/file", "d/e/moved2", unix.RENAME_EXCHANGE), unix.EINVAL)
	open, err := os.Open(c.path("d/e/moved2"))
	c.must("open", err)
	c.must("unlink", os.Remove(c.path("d/e/moved2")))
	_, err = open.Read(make([]byte, 1))
	c.refuses("read of what was removed", err, unix.ESTALE)
	_ = open.Close()
	c.refuses("long name", os.Mkdir(c.path(strings.Repeat("n", 256)), 0o755), unix.ENAMETOOLONG)
	c.must("longest name", os.Mkdir(c.path(strings.Repeat("n", 255)), 0o755))
	c.must("rmdir", os.Remove(c.path(strings.Repeat("n", 255))))
	c.refuses("device", unix.Mknod(c.path("dev"), unix.S_IFBLK|0o600, 0), unix.EOPNOTSUPP)
	d, err := os.Open(c.path("d"))
	c.must("open folder", err)
	c.must("fsync of a folder", d.Sync())
}

func TestChanges(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	mount := show(t, Options{Tree: m})
	use(t, mount.Dir(), "change", "leave")
	lines := map[string]bool{}
	describeTree(t, ".", m.Root(), lines)
	var names []string
	for line := range lines {
		names = append(names, strings.Fields(line)[0])
	}
	if len(names) != 6 { // ., d, d/e, d/e/g, d/file, sym
		t.Errorf("the tree holds %v", names)
	}
	f, err := m.Put("late", []byte("put by the other side"))
	if err != nil {
		t.Fatal(err)
	}
	if got := use(t, mount.Dir(), "walk"); !strings.Contains(got, fmt.Sprintf("late ino=%d", f.ID())) {
		t.Errorf("what appears in the tree must show at once:\n%s", got)
	}
	second := show(t, Options{Tree: fstest.NewMemory(fstest.MemoryOptions{})})
	use(t, second.Dir(), "change", "clean")
}

// writeClient writes in all the ways and leaves one file synced, one not, and one written with O_SYNC.
func writeClient(c *client) {
	table := patternTable()
	f, err := os.OpenFile(c.path("synced"), os.O_CREATE|os.O_RDWR, 0o644)
	c.must("create", err)
	p := make([]byte, 5<<20+123)
	patternFill(table, p, 0)
	for off := 0; off < len(p); off += 700_001 {
		_, err := f.WriteAt(p[off:min(len(p), off+700_001)], int64(off))
		c.must("write", err)
	}
	got := make([]byte, len(p))
	_, err = f.ReadAt(got, 0)
	c.must("read back", err)
	if !bytes.Equal(got, p) {
		c.failf("read back: other bytes")
	}
	c.must("fsync", f.Sync())
	_, err = f.WriteAt([]byte("lost"), 0)
	c.must("write", err)
	c.must("close", f.Close())

	a, err := os.OpenFile(c.path("appended"), os.O_CREATE|os.O_APPEND|os.O_WRONLY|unix.O_SYNC, 0o644)
	c.must("create", err)
	for i := range 10 {
		_, err := fmt.Fprintf(a, "line %d\n", i)
		c.must("append", err)
	}
	var wg sync.WaitGroup
	w, err := os.OpenFile(c.path("parallel"), os.O_CREATE|os.O_RDWR, 0o644)
	c.must("create", err)
	c.must("truncate", w.Truncate(8<<20))
	for i := range 8 {
		wg.Go(func() {
			for j := range 16 {
				off := int64(i)<<20 + int64(j)<<16
				q := make([]byte, 1<<16)
				patternFill(table, q, off)
				_, err := w.WriteAt(q, off)
				c.must("parallel write", err)
			}
		})
	}
	wg.Wait()
	c.must("fdatasync", unix.Fdatasync(int(w.Fd())))
	fd, err := unix.Open(c.path("parallel"), unix.O_RDWR|unix.O_DIRECT, 0)
	c.must("open with O_DIRECT", err)
	_, err = unix.Pwrite(fd, got[:4096], 0)
	c.must("direct write", err)
	c.must("fsync", unix.Fsync(fd))
}

func TestWritesAndDurability(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	mount := show(t, Options{Tree: m})
	use(t, mount.Dir(), "write")
	read := func(name string) string {
		n, err := m.Root().Lookup(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := n.Attr(t.Context())
		p := make([]byte, a.Size)
		if _, err := n.(fs.File).ReadAt(t.Context(), p, 0); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		return string(p)
	}
	if got := read("synced"); !strings.HasPrefix(got, "lost") {
		t.Error("an unsynced write is not visible in the tree")
	}
	m.Crash()
	want := make([]byte, 8<<20)
	patternFill(patternTable(), want, 0)
	if got := read("synced"); got != string(want[:5<<20+123]) {
		t.Error("after the crash the synced bytes are not what was synced")
	}
	if got := read("appended"); got != "line 0\nline 1\nline 2\nline 3\nline 4\nline 5\nline 6\nline 7\nline 8\nline 9\n" {
		t.Errorf("after the crash the file opened with O_SYNC holds %q", got)
	}
	if got := read("parallel"); got != string(want) {
		t.Error("after the crash the file written in parallel holds other bytes")
	}
}

// listClient lists a folder again and again and prints how often it saw each steady name.
func listClient(c *client) {
	seen := map[string]int{}
	const rounds = 3
	for range rounds {
		names, err := os.ReadDir(c.dir)
		c.must("readdir", err)
		for _, e := range names {
			if strings.HasPrefix(e.Name(), "steady") {
				seen[e.Name()]++
			}
		}
	}
	for name, n := range seen {
		if n != rounds {
			c.failf("%s was seen %d times in %d listings", name, n, rounds)
		}
	}
	d, err := os.Open(c.dir)
	c.must("open", err)
	some, err := d.Readdirnames(100)
	c.must("readdir", err)
	_, err = d.Seek(0, io.SeekStart)
	c.must("rewind", err)
	again, err := d.Readdirnames(100)
	c.must("readdir", err)
	if some[0] != again[0] {
		c.failf("after rewinding comes %q, not %q", again[0], some[0])
	}
	fmt.Print(len(seen))
}

func TestListingWhileNamesComeAndGo(t *testing.T) {
	const steady = 10_000
	m := fstest.NewMemory(fstest.MemoryOptions{})
	ctx, maker, remover := t.Context(), m.Root().(fs.Maker), m.Root().(fs.Remover)
	create := func(name string) {
		if _, err := maker.Create(ctx, name, fs.CreateGuarded, fs.SetAttr{}, [8]byte{}); err != nil {
			t.Error(err)
		}
	}
	for i := range steady {
		create(fmt.Sprint("steady", i))
		if i%10 == 0 {
			create(fmt.Sprint("gone", i))
		}
	}
	mount := show(t, Options{Tree: m})
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; !stop.Load(); i++ {
			create(fmt.Sprint("brief", i))
			if err := remover.Remove(ctx, fmt.Sprint("brief", i)); err != nil {
				t.Error(err)
			}
			if i < steady && i%10 == 0 {
				if err := remover.Remove(ctx, fmt.Sprint("gone", i)); err != nil {
					t.Error(err)
				}
			}
		}
	})
	got := use(t, mount.Dir(), "list")
	stop.Store(true)
	wg.Wait()
	if got != strconv.Itoa(steady) {
		t.Errorf("%s names of %d were seen", got, steady)
	}
}

func statfsClient(c *client) {
	var st unix.Statfs_t
	c.must("statfs", unix.Statfs(c.dir, &st))
	fmt.Print(st.Bsize, st.Frsize, st.Blocks, st.Bfree, st.Bavail, st.Files, st.Ffree, st.Namelen)
}

func TestStatfs(t *testing.T) {
	mount := show(t, Options{Tree: static(nil)})
	if got := use(t, mount.Dir(), "statfs"); got != "4096 4096 100 40 40 9 4 255" {
		t.Errorf("statfs: %s", got)
	}
}

// errnosClient reads files called after statuses and prints what each gave.
func errnosClient(c *client) {
	for i := range fs.Statuses {
		_, err := os.ReadFile(c.path(fmt.Sprint("status", i)))
		fmt.Printf("%d ", errnoOf(err))
	}
}

// TestErrnosReachPrograms is the table's way through the kernel: every status, asked for by a program.
func TestErrnosReachPrograms(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	statuses := map[fs.ID]error{}
	for i, s := range fs.Statuses {
		f, err := m.Put(fmt.Sprint("status", i), []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		if s != fs.StatusOK {
			statuses[f.ID()] = s
		}
	}
	m.SetHook(func(op string, id fs.ID) error {
		if op == "read" {
			return statuses[id]
		}
		return nil
	})
	for _, readOnly := range []bool{false, true} { // past the cache and through it
		mount := show(t, Options{Tree: m, ReadOnly: readOnly, DelayLimit: 50 * time.Millisecond})
		want := ""
		for _, s := range fs.Statuses {
			want += fmt.Sprintf("%d ", errnos[s])
		}
		if got := use(t, mount.Dir(), "errnos"); got != want {
			t.Errorf("programs got %s\nwant         %s", got, want)
		}
	}
}

// fillClient writes until the tree is full.
func fillClient(c *client) {
	f, err := os.Create(c.path("f"))
	c.must("create", err)
	for off := int64(0); ; off += 1 << 16 {
		if _, err := f.WriteAt(make([]byte, 1<<16), off); err != nil {
			c.refuses("write into a full tree", err, unix.ENOSPC)
			fmt.Print(off)
			break
		}
	}
	_, err = f.WriteAt([]byte("over what is there"), 0)
	c.must("overwrite", err)
	_, err = f.WriteAt([]byte("x"), 1<<62)
	c.refuses("write far away", err, unix.ENOSPC)
}

func TestFullTree(t *testing.T) {
	mount := show(t, Options{Tree: fstest.NewMemory(fstest.MemoryOptions{CapacityBytes: 1 << 20})})
	if got := use(t, mount.Dir(), "fill"); got != strconv.Itoa(1<<20) {
		t.Errorf("full after %s bytes", got)
	}
}

// refusedClient tries every change on a tree that takes none.
func refusedClient(c *client) {
	path := c.path("pattern")
	_, err := os.OpenFile(path, os.O_RDWR, 0)
	for what, err := range map[string]error{
		"open for writing": err, "create": os.WriteFile(c.path("new"), nil, 0o644), "mkdir": os.Mkdir(c.path("d"), 0o755),
		"symlink": os.Symlink("x", c.path("l")), "link": os.Link(path, c.path("l")), "unlink": unix.Unlink(path),
		"rmdir": unix.Rmdir(c.path("dir")), "rename": os.Rename(path, c.path("q")), "chmod": os.Chmod(path, 0o600),
		"chown": os.Chown(path, 1, 1), "truncate": os.Truncate(path, 0),
		"utimes": os.Chtimes(path, time.Now(), time.Now()), "mkdir in dir": os.Mkdir(c.path("dir/d"), 0o755),
	} {
		c.refuses(what, err, syscall.EROFS)
	}
	f, err := os.Open(path)
	c.must("open", err)
	c.must("fsync of what cannot be written", f.Sync())
}

func TestReadOnlyTreesAndMounts(t *testing.T) {
	bare := static(map[string]fs.Node{
		"pattern": newPattern(5, 100), "dir": fs.NewStaticDir(7, time.Now()),
	})
	use(t, show(t, Options{Tree: bare}).Dir(), "refused")
	m := fstest.NewMemory(fstest.MemoryOptions{})
	if _, err := m.Put("pattern", make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Root().(fs.Maker).Mkdir(t.Context(), "dir", fs.SetAttr{}); err != nil {
		t.Fatal(err)
	}
	var changes atomic.Int32
	m.SetHook(func(op string, _ fs.ID) error {
		switch op {
		case "setattr", "write", "create", "mkdir", "symlink", "link", "remove", "rmdir", "rename":
			changes.Add(1)
		}
		return nil
	})
	use(t, show(t, Options{Tree: m, ReadOnly: true}).Dir(), "refused")
	if n := changes.Load(); n != 0 {
		t.Errorf("%d changes reached the tree", n)
	}
}
