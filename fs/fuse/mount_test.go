package fuse

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func onePattern() fs.Tree { return static(map[string]fs.Node{"pattern": newPattern(5, 3<<20)}) }

func TestUnmountClean(t *testing.T) {
	mount := show(t, Options{Tree: onePattern()})
	use(t, mount.Dir(), "walk")
	if err := mount.Unmount(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-mount.Done():
	default:
		t.Error("after a clean unmount nothing is served any more")
	}
	if at, err := topMount(mount.Dir()); at.ours() || err != nil {
		t.Errorf("still in the mount table: %+v, %v", at, err)
	}
	if err := mount.Unmount(); err != nil {
		t.Errorf("a second unmount: %v", err)
	}
	mount.Wait()
}

// busyClient keeps a file open over an unmount.
func busyClient(c *client) {
	f, err := os.Open(c.path("pattern"))
	c.must("open", err)
	fmt.Println("open")
	c.wait()
	got, want := make([]byte, 1<<20), make([]byte, 1<<20)
	_, err = f.ReadAt(got, 2<<20)
	c.must("read after the unmount", err)
	patternFill(patternTable(), want, 2<<20)
	if !bytes.Equal(got, want) {
		c.failf("wrong bytes after the unmount")
	}
}

func TestUnmountWhileBusy(t *testing.T) {
	mount := show(t, Options{Tree: onePattern()})
	user := start(t, "client", "busy", mount.Dir())
	user.line()
	if err := mount.Unmount(); err != nil {
		t.Fatal(err)
	}
	if at, _ := topMount(mount.Dir()); at.ours() {
		t.Error("the folder is not free")
	}
	next := show(t, Options{Tree: onePattern(), Dir: mount.Dir()})
	use(t, next.Dir(), "walk")
	select {
	case <-mount.Done():
		t.Error("the mount ended under an open file")
	default:
	}
	if err := mount.Unmount(); err != nil { // must not take the other mount away
		t.Error(err)
	}
	if at, _ := topMount(next.Dir()); at.device != next.device {
		t.Error("a mount that was gone took away its successor")
	}
	if _, err := io.WriteString(user.in, "\n"); err != nil {
		t.Fatal(err)
	}
	user.finish()
	select {
	case <-mount.Done():
	case <-time.After(10 * time.Second):
		t.Error("the last file is closed, and the mount is still served")
	}
}

// elsewhereClient lives in a mount namespace of its own, which has a copy of the mount.
func elsewhereClient(c *client) {
	fmt.Println("ready")
	c.wait()
	_, err := os.ReadFile(c.path("pattern"))
	c.must("read the copy", err)
}

func TestUnmountWithACopyElsewhere(t *testing.T) {
	mount := show(t, Options{Tree: onePattern()})
	attr := &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	other := startWith(t, attr, "client", "elsewhere", mount.Dir())
	other.line()
	begun := time.Now()
	if err := mount.Unmount(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begun); d > 3*settleTime {
		t.Errorf("the unmount took %v", d)
	}
	select {
	case <-mount.Done():
		t.Error("the copy is not served any more")
	default:
	}
	if _, err := io.WriteString(other.in, "\n"); err != nil {
		t.Fatal(err)
	}
	other.finish()
	select {
	case <-mount.Done():
	case <-time.After(10 * time.Second):
		t.Error("the last namespace is gone, and the mount is still served")
	}
}

func TestUnmountedBySomebodyElse(t *testing.T) {
	mount := show(t, Options{Tree: onePattern()})
	if err := unix.Unmount(mount.Dir(), 0); err != nil {
		t.Fatal(err)
	}
	select {
	case <-mount.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the mount does not notice")
	}
	if err := mount.Unmount(); err != nil {
		t.Error(err)
	}
}

// statClient finds a dead mount, and must find it soon.
func statClient(c *client) {
	_, err := os.Stat(c.path("hello"))
	c.refuses("stat", err, unix.ENOTCONN)
}

// helloClient reads what a server process shows.
func helloClient(c *client) {
	p, err := os.ReadFile(c.path("hello"))
	c.must("read", err)
	if string(p) != "hello from hello" {
		c.failf("read %q", p)
	}
}

// hangClient waits in a read while its server is killed.
func hangClient(c *client) {
	fd, err := unix.Open(c.path("stuck"), unix.O_RDONLY, 0)
	c.must("open", err)
	fmt.Println("reading")
	if _, err := unix.Read(fd, make([]byte, 10)); err == nil {
		c.failf("the read succeeded")
	}
}

// startServer runs a server process over dir.
func startServer(t *testing.T, dir string) *process {
	t.Helper()
	needFUSE(t)
	p := start(t, "serve", dir)
	if got := p.line(); got != "ready" {
		t.Fatalf("the server says %q", got)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // what a failed test leaves
	return p
}

func TestKilledServer(t *testing.T) {
	dir := t.TempDir()
	server := startServer(t, dir)
	use(t, dir, "hello")
	reader := start(t, "client", "hang", dir)
	reader.line()
	time.Sleep(100 * time.Millisecond) // for the read to begin
	server.kill()
	reader.finish() // with an error, not for ever
	begun := time.Now()
	use(t, dir, "stat")
	if d := time.Since(begun); d > 10*time.Second {
		t.Errorf("looking at the dead mount took %v", d)
	}
	recovered := ""
	mount := show(t, Options{
		Tree: onePattern(), Dir: dir, Events: Events{Recovered: func(dir string) { recovered = dir }},
	})
	use(t, mount.Dir(), "walk")
	if recovered != dir {
		t.Errorf("the event says %q", recovered)
	}
	table, err := os.ReadFile(mountTable)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(table), " "+dir+" "); n != 1 {
		t.Errorf("%d mounts at the folder", n)
	}
}

func TestLiveMountIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	server := startServer(t, dir)
	refused := func(ctx context.Context, hint string) {
		t.Helper()
		_, err := New(ctx, Options{Tree: onePattern(), Dir: dir})
		if !errs.Is(err, errs.Busy) || !strings.Contains(errs.NextStep(err), hint) {
			t.Errorf("%v, next %q", err, errs.NextStep(err))
		}
	}
	refused(t.Context(), "umount "+dir)
	if err := server.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond) // the kernel keeps the folder's attributes for a second
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	refused(ctx, "/abort")
	if err := server.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	use(t, dir, "hello")
	server.finish()
	if at, _ := topMount(dir); at.ours() {
		t.Error("the server did not unmount")
	}
}

func TestMountAsUser(t *testing.T) {
	needFUSE(t)
	if _, err := os.Stat("/usr/bin/fusermount3"); err != nil {
		if os.Getenv("HOLDFAST_REAL_PARTS") == "1" {
			t.Fatal("this test needs the package fuse3")
		}
		t.Skip("needs the package fuse3; `make test` runs it")
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, userID, userID); err != nil {
		t.Fatal(err)
	}
	t.Setenv(uidEnv, strconv.Itoa(userID))
	server := start(t, "serve", dir)
	switch got := server.line(); {
	case got == "ready":
		if got := use(t, dir, "access", strconv.Itoa(userID), "hello"); got != "hello:0 " {
			t.Errorf("the user's own mount: %s", got)
		}
		server.finish()
	case !strings.HasPrefix(got, errs.Denied.String()) || !strings.Contains(got, device):
		t.Errorf("a user who may not open %s is told %q", device, got)
	}
}

func TestMountRefusals(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		dir  string
		kind errs.Kind
		next string
	}{
		"no name": {"", errs.Invalid, "empty folder"}, "absent": {filepath.Join(dir, "no"), errs.NotFound, "mkdir"},
		"absent parent": {filepath.Join(dir, "no/no"), errs.NotFound, "mkdir"}, "file": {file, errs.Invalid, "folder"},
		"full": {dir, errs.Invalid, "empty"}, "below a file": {filepath.Join(file, "x"), errs.Invalid, ""},
	} {
		_, err := New(t.Context(), Options{Tree: onePattern(), Dir: c.dir})
		if !errs.Is(err, c.kind) || !strings.Contains(errs.NextStep(err), c.next) {
			t.Errorf("%s: %v (%v), next %q", name, err, errs.KindOf(err), errs.NextStep(err))
		}
	}
	if _, err := New(t.Context(), Options{Dir: t.TempDir()}); !errs.Is(err, errs.Invalid) {
		t.Errorf("no tree: %v", err)
	}
}

func TestMountThroughSymlinkAndOddNames(t *testing.T) {
	needFUSE(t)
	base := t.TempDir()
	real := filepath.Join(base, "odd \t\\ name")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(filepath.Base(real), link); err != nil {
		t.Fatal(err)
	}
	mount := show(t, Options{Tree: onePattern(), Dir: link})
	if mount.Dir() != real {
		t.Errorf("mounted at %q", mount.Dir())
	}
	use(t, link, "walk")
	if err := mount.Unmount(); err != nil {
		t.Fatal(err)
	}
	if at, _ := topMount(real); at.ours() {
		t.Error("still mounted")
	}
}
