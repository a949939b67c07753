package fuse

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/fstest"
)

// describe is one line about a node; the client and the test write the same about the same node.
func describe(path string, a fs.Attr, content string) string {
	return fmt.Sprintf("%s ino=%d kind=%d perm=%o nlink=%d %d:%d size=%d blocks=%d mtime=%d content=%s\n", path, a.ID,
		a.Kind, a.Perm, a.Nlink, a.UID, a.GID, a.Size, (a.Used+511)/512, a.Mtime.UnixNano(), content)
}

func digest(p []byte) string { return fmt.Sprintf("%x", sha256.Sum256(p)) }

// walkClient describes everything below the mount.
func walkClient(c *client) {
	c.must("walk", filepath.WalkDir(c.dir, func(path string, e iofs.DirEntry, err error) error {
		c.must(path, err)
		var st unix.Stat_t
		c.must(path, unix.Lstat(path, &st))
		rel, _ := filepath.Rel(c.dir, path)
		a := fs.Attr{
			ID: fs.ID(st.Ino), Perm: st.Mode & 0o7777, Nlink: uint32(st.Nlink), UID: st.Uid, GID: st.Gid, Size: st.Size,
			Used: st.Blocks * 512, Mtime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec),
		}
		content := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			a.Kind = fs.KindDir
		case unix.S_IFLNK:
			a.Kind = fs.KindSymlink
			content, err = os.Readlink(path)
			c.must("readlink "+path, err)
		default:
			a.Kind = fs.KindFile
			p, err := os.ReadFile(path)
			c.must("read "+path, err)
			content = digest(p)
		}
		if e.Type() != iofs.FileMode(0) && e.IsDir() != (a.Kind == fs.KindDir) {
			c.failf("%s: the listing says %v", path, e.Type())
		}
		fmt.Print(describe(rel, a, content))
		return nil
	}))
}

// describeTree is walkClient for those who have the tree.
func describeTree(t *testing.T, path string, n fs.Node, lines map[string]bool) {
	t.Helper()
	a, err := n.Attr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	content := ""
	switch n := n.(type) {
	case fs.Dir:
		err = n.List(t.Context(), 0, func(e fs.Entry) bool {
			describeTree(t, filepath.Join(path, e.Name), e.Node, lines)
			return true
		})
	case fs.Symlink:
		content, err = n.Readlink(t.Context())
	case fs.File:
		p := make([]byte, a.Size)
		_, err = n.ReadAt(t.Context(), p, 0)
		content = digest(p)
	}
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	lines[describe(path, a, content)] = true
}

// sampleTree has every kind of node, odd names and odd sizes.
func sampleTree(t testing.TB) *fstest.Memory {
	t.Helper()
	m := fstest.NewMemory(fstest.MemoryOptions{})
	put := func(name string, p []byte) fs.File {
		f, err := m.Put(name, p)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	put("empty", nil)
	put("one", []byte("1"))
	big := make([]byte, 5<<20+13)
	patternFill(patternTable(), big, 0)
	f := put("points/vm one/2026-01-02T03:04:05Z/disk 1.raw", big)
	put("points/vm one/ümlaut\xff", []byte("x"))
	for i := range 300 {
		put(fmt.Sprintf("many/%d", i), []byte(strconv.Itoa(i)))
	}
	maker := m.Root().(fs.Maker)
	ctx := t.Context()
	if err := maker.Link(ctx, f, "second name"); err != nil {
		t.Fatal(err)
	}
	if _, err := maker.Symlink(ctx, "link", "points/vm one", fs.SetAttr{}); err != nil {
		t.Fatal(err)
	}
	set := fs.SetAttr{Perm: new(uint32(0)), UID: new(uint32(7)), GID: new(uint32(8))}
	if _, err := put("mode 0", []byte("secret")).(fs.AttrSetter).SetAttr(ctx, set, nil); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestReadTree(t *testing.T) {
	for name, o := range map[string]Options{
		"default": {}, "read-only": {ReadOnly: true}, "immutable": {ReadOnly: true, ImmutableTree: true},
		"other users": {AllowOther: true, ReadOnly: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := sampleTree(t)
			o.Tree = m
			mount := show(t, o)
			for range 2 { // the second time much comes from the kernel's caches
				got := use(t, mount.Dir(), "walk")
				want := map[string]bool{}
				describeTree(t, ".", m.Root(), want)
				for line := range strings.Lines(got) {
					if !want[line] {
						t.Errorf("the mount shows %s", line)
					}
					delete(want, line)
				}
				for line := range want {
					t.Errorf("the mount does not show %s", line)
				}
			}
		})
	}
}

// extentsClient prints the data of a file as lseek(2) tells it.
func extentsClient(c *client) {
	f, err := os.Open(c.path(c.args[0]))
	c.must("open", err)
	for off := int64(0); ; {
		data, err := f.Seek(off, unix.SEEK_DATA)
		if errnoOf(err) == unix.ENXIO {
			break
		}
		c.must("SEEK_DATA", err)
		hole, err := f.Seek(data, unix.SEEK_HOLE)
		c.must("SEEK_HOLE", err)
		fmt.Printf("%d-%d ", data, hole)
		off = hole
	}
	end, err := f.Seek(0, io.SeekEnd)
	c.must("SEEK_END", err)
	_, err = f.Seek(end, unix.SEEK_HOLE)
	c.refuses("SEEK_HOLE at the end", err, unix.ENXIO)
	_, err = f.Seek(end+1, unix.SEEK_DATA)
	c.refuses("SEEK_DATA past the end", err, unix.ENXIO)
	fmt.Print(end)
}

func TestHoles(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	f, err := m.Put("sparse", []byte("head"))
	if err != nil {
		t.Fatal(err)
	}
	w := f.(fs.Writer)
	for _, off := range []int64{1 << 20, 1<<20 + 4096, 6 << 30, 8<<40 - 4096} {
		if err := w.WriteAt(t.Context(), []byte("data"), off, true); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.(fs.AttrSetter).SetAttr(t.Context(), fs.SetAttr{Size: new(int64(8 << 40))}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Put("empty", nil); err != nil {
		t.Fatal(err)
	}
	for _, immutable := range []bool{false, true} {
		mount := show(t, Options{Tree: m, ReadOnly: true, ImmutableTree: immutable})
		want := "0-4096 1048576-1056768 6442450944-6442455040 8796093018112-8796093022208 8796093022208"
		if got := use(t, mount.Dir(), "extents", "sparse"); got != want {
			t.Errorf("extents %s, want %s", got, want)
		}
		if got := use(t, mount.Dir(), "extents", "empty"); got != "0" {
			t.Errorf("extents of an empty file: %s", got)
		}
	}
	plain := show(t, Options{Tree: static(map[string]fs.Node{"plain": newPattern(5, 10_001)})})
	if got := use(t, plain.Dir(), "extents", "plain"); got != "0-10001 10001" {
		t.Errorf("extents of a file that knows no holes: %s", got)
	}
}

// readsClient reads a pattern file from end to end in given steps, then at random from several threads.
func readsClient(c *client) {
	size, _ := strconv.ParseInt(c.args[0], 10, 64)
	f, err := os.Open(c.path("pattern"))
	c.must("open", err)
	table := patternTable()
	check := func(off int64, n int) {
		got, want := make([]byte, n), make([]byte, n)
		read, err := f.ReadAt(got, off)
		if rest := size - off; int64(n) > rest {
			if int64(read) != rest || err != io.EOF {
				c.failf("read %d at %d, past the end: %d, %v", n, off, read, err)
			}
			got, want = got[:rest], want[:rest]
		} else {
			c.must(fmt.Sprintf("read %d at %d", n, off), err)
		}
		patternFill(table, want, off)
		if !bytes.Equal(got, want) {
			c.failf("read %d at %d: wrong bytes", n, off)
		}
	}
	for _, step := range []int{1 << 20, 1<<20 + 1, 4 << 20, 77_777} {
		for off := int64(0); off < size; off += int64(step) {
			check(off, step)
		}
	}
	var wg sync.WaitGroup
	for thread := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(thread), 7))
			for range 60 {
				check(r.Int64N(size), 1+r.IntN(300_000))
			}
		})
	}
	wg.Wait()
}

// directClient reads around the kernel's cache.
func directClient(c *client) {
	size, _ := strconv.ParseInt(c.args[0], 10, 64)
	fd, err := unix.Open(c.path("pattern"), unix.O_RDONLY|unix.O_DIRECT, 0)
	c.must("open with O_DIRECT", err)
	table := patternTable()
	raw := make([]byte, 4<<20+4096)
	buf := raw[4096-int(uintptr(unsafe.Pointer(&raw[0]))%4096):]
	for _, step := range []int{4096, 1 << 20, 4 << 20} {
		want := make([]byte, step)
		for off := int64(0); off < size; off += int64(step) {
			if step == 4096 && off > 4<<20 {
				break
			}
			n, err := unix.Pread(fd, buf[:step], off)
			c.must("pread", err)
			if want := int(min(int64(step), size-off)); n != want {
				c.failf("read %d at %d: %d, want %d", step, off, n, want)
			}
			patternFill(table, want, off)
			if !bytes.Equal(buf[:n], want[:n]) {
				c.failf("read %d at %d: wrong bytes", step, off)
			}
		}
	}
}

// mapClient maps a file into memory, shared, as debuggers and loop tools do.
func mapClient(c *client) {
	f, err := os.Open(c.path("pattern"))
	c.must("open", err)
	p, err := unix.Mmap(int(f.Fd()), 0, 100_000, unix.PROT_READ, unix.MAP_SHARED)
	c.must("mmap", err)
	want := make([]byte, len(p))
	patternFill(patternTable(), want, 0)
	if !bytes.Equal(p, want) {
		c.failf("the mapping holds other bytes")
	}
}

func TestReads(t *testing.T) {
	const size = 9<<20 + 4321
	for _, immutable := range []bool{false, true} {
		tree := static(map[string]fs.Node{"pattern": newPattern(5, size)})
		mount := show(t, Options{Tree: tree, ImmutableTree: immutable})
		for _, what := range []string{"reads", "direct", "map"} {
			use(t, mount.Dir(), what, strconv.Itoa(size))
		}
	}
	m := fstest.NewMemory(fstest.MemoryOptions{})
	p := make([]byte, size)
	patternFill(patternTable(), p, 0)
	if _, err := m.Put("pattern", p); err != nil {
		t.Fatal(err)
	}
	mount := show(t, Options{Tree: m}) // files that can be written are read past the kernel's cache
	for _, what := range []string{"reads", "direct", "map"} {
		use(t, mount.Dir(), what, strconv.Itoa(size))
	}
}

// accessClient becomes another user and tries to read.
func accessClient(c *client) {
	id, _ := strconv.Atoi(c.args[0])
	c.must("setgroups", syscall.Setgroups(nil))
	c.must("setgid", syscall.Setresgid(id, id, id))
	c.must("setuid", syscall.Setresuid(id, id, id))
	for _, name := range c.args[1:] {
		_, err := os.ReadFile(c.path(name))
		fmt.Printf("%s:%d ", name, errnoOf(err))
	}
}

func TestOwnersAndModes(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	for name, perm := range map[string]uint32{"open": 0o644, "group": 0o640, "owner": 0o600, "none": 0} {
		f, err := m.Put(name, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.(fs.AttrSetter).SetAttr(t.Context(), fs.SetAttr{Perm: &perm}, nil); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount := show(t, Options{Tree: m, Dir: dir, AllowOther: true})
	names := []string{"open", "group", "owner", "none"}
	if got := use(t, mount.Dir(), "access", append([]string{"36"}, names...)...); got != "open:0 group:0 owner:0 none:13 " {
		t.Errorf("vdsm's user: %s", got)
	}
	if got := use(t, mount.Dir(), "access", append([]string{"1000"}, names...)...); got != "open:0 group:13 owner:13 none:13 " {
		t.Errorf("any user: %s", got)
	}
	if err := mount.Unmount(); err != nil {
		t.Fatal(err)
	}
	alone := show(t, Options{Tree: m, Dir: dir})
	if got := use(t, alone.Dir(), "access", "1000", "open"); got != "open:13 " {
		t.Errorf("another user without AllowOther: %s", got)
	}
}
