// Package disktest is the suite that every disk.Disk passes: what callers see of names, contents and errors while
// nothing crashes. What a crash may take away is tested beside the crash disk.
package disktest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/disk"
)

// Run holds a disk to the contract. open returns a disk and an existing empty folder on it, new for each call.
func Run(t *testing.T, open func(t *testing.T) (d disk.Disk, dir string)) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, d disk.Disk, dir string)
	}{
		{"names", testNames}, {"name errors", testNameErrors}, {"content", testContent}, {"size", testSize},
		{"sparse", testSparse}, {"punch", testPunch}, {"occupied", testOccupied}, {"handles", testHandles}, {"rename", testRename},
		{"mkdir", testMkdir}, {"publish", testPublish},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, dir := open(t)
			c.test(t, d, dir)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func put(t *testing.T, d disk.Disk, name, text string) {
	t.Helper()
	f, err := d.Create(name)
	must(t, err)
	_, err = f.WriteAt([]byte(text), 0)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
}

func wantText(t *testing.T, d disk.Disk, name, want string) {
	t.Helper()
	got, err := disk.ReadFile(d, name, 1<<20)
	must(t, err)
	if string(got) != want {
		t.Errorf("%s holds %q, want %q", name, got, want)
	}
}

// List returns the names in a folder, folders marked by a slash.
func List(d disk.Disk, dir string) ([]string, error) {
	entries, err := d.ReadDir(dir)
	names := []string{}
	for _, e := range entries {
		n := e.Name()
		if e.IsDir() {
			n += "/"
		}
		names = append(names, n)
	}
	return names, err
}

func wantList(t *testing.T, d disk.Disk, dir string, want ...string) {
	t.Helper()
	got, err := List(d, dir)
	must(t, err)
	if !slices.Equal(got, want) {
		t.Errorf("folder holds %q, want %q", got, want)
	}
}

func testNames(t *testing.T, d disk.Disk, dir string) {
	wantList(t, d, dir)
	put(t, d, path.Join(dir, "b"), "bb")
	put(t, d, path.Join(dir, "a"), "a")
	must(t, d.MkdirAll(path.Join(dir, "c")))
	must(t, d.SyncDir(dir))
	wantList(t, d, dir, "a", "b", "c/")
	entries, err := d.ReadDir(dir)
	must(t, err)
	if info, err := entries[1].Info(); err != nil || info.Size() != 2 || info.IsDir() {
		t.Errorf("info of b: %v, %v", info, err)
	}
	must(t, d.Remove(path.Join(dir, "a")))
	must(t, d.Remove(path.Join(dir, "c")))
	wantList(t, d, dir, "b")
	put(t, d, path.Join(dir, "a"), "again")
	wantText(t, d, path.Join(dir, "a"), "again")
}

func testNameErrors(t *testing.T, d disk.Disk, dir string) {
	put(t, d, path.Join(dir, "f"), "x")
	must(t, d.MkdirAll(path.Join(dir, "d/e")))
	_, err := d.Open(path.Join(dir, "none"))
	wantErr(t, "open a missing file", err, fs.ErrNotExist)
	_, err = d.OpenRW(path.Join(dir, "none"))
	wantErr(t, "open a missing file to write", err, fs.ErrNotExist)
	_, err = d.OpenRW(path.Join(dir, "d"))
	wantErr(t, "open a folder to write", err, syscall.EISDIR)
	_, err = d.Create(path.Join(dir, "f"))
	wantErr(t, "create an existing file", err, fs.ErrExist)
	_, err = d.Create(path.Join(dir, "d"))
	wantErr(t, "create over a folder", err, fs.ErrExist)
	_, err = d.Create(path.Join(dir, "none/f"))
	wantErr(t, "create in a missing folder", err, fs.ErrNotExist)
	_, err = d.Create(path.Join(dir, "f/g"))
	wantErr(t, "create below a file", err, syscall.ENOTDIR)
	wantErr(t, "remove a missing file", d.Remove(path.Join(dir, "none")), fs.ErrNotExist)
	wantErr(t, "remove a full folder", d.Remove(path.Join(dir, "d")), syscall.ENOTEMPTY)
	wantErr(t, "rename a missing file", d.Rename(path.Join(dir, "none"), path.Join(dir, "x")), fs.ErrNotExist)
	_, err = d.ReadDir(path.Join(dir, "none"))
	wantErr(t, "list a missing folder", err, fs.ErrNotExist)
	_, err = d.ReadDir(path.Join(dir, "f"))
	wantErr(t, "list a file", err, syscall.ENOTDIR)
	wantErr(t, "sync a missing folder", d.SyncDir(path.Join(dir, "none")), fs.ErrNotExist)
	wantErr(t, "make a folder over a file", d.MkdirAll(path.Join(dir, "f")), syscall.ENOTDIR)
	wantList(t, d, dir, "d/", "f")
}

func testContent(t *testing.T, d disk.Disk, dir string) {
	f, err := d.Create(path.Join(dir, "f"))
	must(t, err)
	defer f.Close()
	want := make([]byte, 3*4096+7)
	for i := range want {
		want[i] = byte(i*7 + i/256)
	}
	n, err := f.WriteAt(want, 0)
	if n != len(want) || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	for _, at := range []int64{0, 1, 511, 512, 4095, 4096, 8191, 12287, 12294} {
		patch := []byte("patch across a border")[:min(21, len(want)-int(at))]
		_, err = f.WriteAt(patch, at)
		must(t, err)
		copy(want[at:], patch)
	}
	for _, r := range [][2]int{{0, len(want)}, {1, 1}, {4000, 200}, {4096, 4096}, {12288, 7}, {0, 0}} {
		got := make([]byte, r[1])
		n, err := f.ReadAt(got, int64(r[0]))
		if n != r[1] || err != nil && err != io.EOF || !bytes.Equal(got, want[r[0]:r[0]+r[1]]) {
			t.Errorf("read %v: %d, %v, equal %v", r, n, err, bytes.Equal(got, want[r[0]:r[0]+r[1]]))
		}
	}
	if n, err := f.ReadAt(make([]byte, 10), int64(len(want)-3)); n != 3 || err != io.EOF {
		t.Errorf("read across the end: %d, %v", n, err)
	}
	if n, err := f.ReadAt(make([]byte, 10), int64(len(want)+3)); n != 0 || err != io.EOF {
		t.Errorf("read past the end: %d, %v", n, err)
	}
}

func wantSize(t *testing.T, f disk.File, want int64) {
	t.Helper()
	if got, err := disk.Size(f); got != want || err != nil {
		t.Errorf("size %d, %v, want %d", got, err, want)
	}
}

func testSize(t *testing.T, d disk.Disk, dir string) {
	f, err := d.Create(path.Join(dir, "f"))
	must(t, err)
	defer f.Close()
	wantSize(t, f, 0)
	_, err = f.WriteAt([]byte("0123456789"), 5000)
	must(t, err)
	wantSize(t, f, 5010)
	must(t, f.Truncate(5003))
	wantSize(t, f, 5003)
	must(t, f.Truncate(5010))
	got := make([]byte, 10)
	_, err = f.ReadAt(got, 5000)
	if err != nil && err != io.EOF || !bytes.Equal(got, []byte("012\x00\x00\x00\x00\x00\x00\x00")) {
		t.Errorf("a shrink and a growth must leave zeros: %q, %v", got, err)
	}
	must(t, f.Truncate(0))
	wantSize(t, f, 0)
	if f.Truncate(-1) == nil {
		t.Error("a negative size was accepted")
	}
	_, err = f.WriteAt([]byte("x"), -1)
	if err == nil {
		t.Error("a negative offset was accepted")
	}
}

func testSparse(t *testing.T, d disk.Disk, dir string) {
	f, err := d.Create(path.Join(dir, "f"))
	must(t, err)
	defer f.Close()
	const far = 900 << 30
	_, err = f.WriteAt([]byte("far"), far)
	must(t, err)
	wantSize(t, f, far+3)
	got := []byte("xxxxxx")
	_, err = f.ReadAt(got, far-3)
	if err != nil && err != io.EOF || string(got) != "\x00\x00\x00far" {
		t.Errorf("read %q, %v", got, err)
	}
	must(t, f.Sync())
}

func testPunch(t *testing.T, d disk.Disk, dir string) {
	f, err := d.Create(path.Join(dir, "f"))
	must(t, err)
	defer f.Close()
	want := bytes.Repeat([]byte{0xee}, 5*4096)
	_, err = f.WriteAt(want, 0)
	must(t, err)
	p := f.(disk.Puncher)
	must(t, p.Punch(100, 2*4096))
	clear(want[100 : 100+2*4096])
	must(t, p.Punch(4*4096, 100*4096))
	clear(want[4*4096:])
	wantSize(t, f, int64(len(want)))
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, want) {
		t.Errorf("content after punches is wrong (%v)", err)
	}
	if p.Punch(0, 0) == nil || p.Punch(-1, 1) == nil {
		t.Error("a senseless range was accepted")
	}
}

// testOccupied: what a file takes goes down with what is given back, in the file's own words and in those of its folder.
func testOccupied(t *testing.T, d disk.Disk, dir string) {
	const block = 4096
	f, err := d.Create(path.Join(dir, "f"))
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt(bytes.Repeat([]byte{0xee}, 64*block), 0)
	must(t, err)
	check := func(when string, least, most int64) {
		t.Helper()
		must(t, f.Sync())
		n, links, err := disk.Occupied(f)
		if err != nil || links != 1 || n < least || n > most {
			t.Errorf("%s the file takes %d bytes and has %d names, %v; want %d to %d", when, n, links, err, least, most)
		}
		list, err := d.ReadDir(dir)
		must(t, err)
		info, err := list[0].Info()
		must(t, err)
		if got := disk.OccupiedBy(info); got != n {
			t.Errorf("%s its folder says %d bytes, the file %d", when, got, n)
		}
	}
	check("whole", 64*block, 66*block)
	must(t, f.(disk.Puncher).Punch(10*block+1, 50*block))
	check("punched", 14*block, 17*block)
	must(t, f.Truncate(0))
	check("emptied", 0, block)
}

func testHandles(t *testing.T, d disk.Disk, dir string) {
	name := path.Join(dir, "f")
	put(t, d, name, "text")
	ro, err := d.Open(name)
	must(t, err)
	if _, err := ro.WriteAt([]byte("x"), 0); err == nil {
		t.Error("a file opened for reading was written")
	}
	rw, err := d.OpenRW(name)
	must(t, err)
	_, err = rw.WriteAt([]byte("T"), 0)
	must(t, err)
	must(t, d.Remove(name))
	got := make([]byte, 4)
	if _, err := ro.ReadAt(got, 0); err != nil || string(got) != "Text" {
		t.Errorf("an open file outlives its name: %q, %v", got, err)
	}
	must(t, rw.Close())
	must(t, ro.Close())
	_, err = ro.ReadAt(got, 0)
	wantErr(t, "read after close", err, fs.ErrClosed)
}

func testRename(t *testing.T, d disk.Disk, dir string) {
	a, b := path.Join(dir, "a"), path.Join(dir, "b")
	put(t, d, a, "A")
	put(t, d, b, "B")
	must(t, d.Rename(a, b))
	wantList(t, d, dir, "b")
	wantText(t, d, b, "A")
	must(t, d.Rename(b, b))
	sub := path.Join(dir, "sub")
	must(t, d.MkdirAll(sub))
	must(t, d.Rename(b, path.Join(sub, "b")))
	wantText(t, d, path.Join(sub, "b"), "A")
	put(t, d, a, "file")
	if d.Rename(a, sub) == nil || d.Rename(sub, a) == nil {
		t.Error("a file and a folder replaced each other")
	}
	if d.Rename(sub, path.Join(sub, "x")) == nil {
		t.Error("a folder was moved into itself")
	}
	must(t, d.Rename(sub, path.Join(dir, "moved")))
	wantList(t, d, dir, "a", "moved/")
	wantText(t, d, path.Join(dir, "moved/b"), "A")
}

func testMkdir(t *testing.T, d disk.Disk, dir string) {
	deep := path.Join(dir, "x/y/z")
	must(t, d.MkdirAll(deep))
	must(t, d.MkdirAll(deep))
	put(t, d, path.Join(deep, "f"), "deep")
	wantText(t, d, path.Join(deep, "f"), "deep")
	wantList(t, d, path.Join(dir, "x"), "y/")
}

func testPublish(t *testing.T, d disk.Disk, dir string) {
	name := path.Join(dir, "record")
	for i := range 3 {
		text := fmt.Sprintf("version %d", i)
		must(t, disk.Publish(d, name, []byte(text)))
		wantText(t, d, name, text)
		wantList(t, d, dir, "record")
	}
	put(t, d, name+disk.TempSuffix, "left by a crash")
	must(t, disk.Publish(d, name, []byte("after")))
	wantText(t, d, name, "after")
	wantList(t, d, dir, "record")
}
