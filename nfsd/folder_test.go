package nfsd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	client "github.com/willscott/go-nfs-client/nfs"

	"github.com/holdfast-backup/holdfast/fs/folder"
	"github.com/holdfast-backup/holdfast/fs/overlay"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/portmap"
)

// zeros is an overlay's base without a byte of data.
type zeros int64

func (z zeros) Size() int64 { return int64(z) }

func (z zeros) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n := max(0, min(int64(len(p)), int64(z)-off))
	clear(p[:n])
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// watched is an overlay whose writes are counted.
type watched struct {
	*overlay.Overlay
	writes atomic.Int32
	each   func(n int32)
}

func (w *watched) WriteAt(ctx context.Context, p []byte, off int64, stable bool) error {
	w.each(w.writes.Add(1))
	return w.Overlay.WriteAt(ctx, p, off, stable)
}

// session is a folder with one disk in it, as an instant restore serves it.
type session struct {
	*running
	tree *folder.Tree
	disk *watched
}

const (
	sessionDisk = "sd/images/img/vol"
	sessionSize = 8 << 20
)

// serveSession opens the session that lies in dir, or makes it, and serves it.
func serveSession(t *testing.T, dir, addr string, each func(n int32)) *session {
	t.Helper()
	root := filepath.Join(dir, "domain")
	if err := os.MkdirAll(filepath.Join(root, filepath.Dir(sessionDisk)), 0o755); err != nil {
		t.Fatal(err)
	}
	begin := overlay.Open
	if _, err := os.Stat(filepath.Join(dir, "disk")); err != nil {
		begin = overlay.Create
	}
	opts := overlay.Options{Identity: "test"}
	o, err := begin(t.Context(), disk.OS{}, filepath.Join(dir, "disk"), zeros(sessionSize), opts)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := folder.Open(root, folder.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &session{tree: tree, disk: &watched{Overlay: o, each: each}}
	if err := tree.Graft("disk0", sessionDisk, s.disk, nil); err != nil && !errs.Is(err, errs.Stale) {
		t.Fatal(err)
	}
	s.running = startOn(t, addr, nfsd.Options{Key: testKey}, tree)
	return s
}

// close ends the session's server, tree and disk, in this order.
func (s *session) close(t *testing.T) {
	t.Helper()
	s.end(t)
	if err := errors.Join(s.tree.Close(), s.disk.Close()); err != nil {
		t.Error(err)
	}
}

// mount mounts the session's export with go-nfs-client.
func (s *session) mount(t *testing.T) *client.Target {
	t.Helper()
	c, err := mountAt(t, s.addr, "/a")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func quiet(int32) {}

func writeTo(t *testing.T, c *client.Target, name, content string) {
	t.Helper()
	f, err := c.OpenFile(name, 0o644)
	if err == nil {
		_, err = f.Write([]byte(content))
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatalf("write %s: %v", name, err)
	}
}

func readFrom(t *testing.T, c *client.Target, name string) string {
	t.Helper()
	f, err := c.Open(name)
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatalf("read %s: %v", name, err)
	}
	return string(b)
}

// TestFolderLife does to a served folder what vdsm does, with a restart of everything in between.
func TestFolderLife(t *testing.T) {
	dir := t.TempDir()
	s := serveSession(t, dir, "127.0.0.1:0", quiet)
	c := s.mount(t)
	if _, err := c.Mkdir("sd/dom_md", 0o755); err != nil {
		t.Fatal(err)
	}
	writeTo(t, c, "sd/dom_md/metadata", "one")
	writeTo(t, c, "sd/dom_md/metadata.new", "two")
	if err := c.Rename("sd/dom_md/metadata.new", "sd/dom_md/metadata"); err != nil {
		t.Fatal(err)
	}
	writeTo(t, c, sessionDisk, strings.Repeat("guest", 1000))
	_, held, err := c.Lookup("sd/dom_md/metadata")
	if err != nil {
		t.Fatal(err)
	}
	s.close(t)

	s = serveSession(t, dir, "127.0.0.1:0", quiet)
	c = s.mount(t)
	if _, handle, err := c.Lookup("sd/dom_md/metadata"); err != nil || !bytes.Equal(handle, held) {
		t.Errorf("the handle was %x, after the restart it is %x, %v", held, handle, err)
	}
	if got := readFrom(t, c, "sd/dom_md/metadata"); got != "two" {
		t.Errorf("metadata holds %q", got)
	}
	got := readFrom(t, c, sessionDisk)
	if len(got) != sessionSize || !strings.HasPrefix(got, strings.Repeat("guest", 1000)+"\x00") {
		t.Errorf("the disk holds %d bytes, %q", len(got), got[:10])
	}
	if err := c.Rename("sd/images/img", "sd/images/_remove_me_img"); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove("sd/images/_remove_me_img/vol"); err != nil {
		t.Fatal(err)
	}
	if err := c.RmDir("sd/images/_remove_me_img"); err != nil {
		t.Fatal(err)
	}
	s.close(t)

	s = serveSession(t, dir, "127.0.0.1:0", quiet)
	defer s.close(t)
	if g := s.tree.Grafts(); len(g) != 1 || !g[0].Gone {
		t.Errorf("the removed disk came back: %+v", g)
	}
}

// TestFolderUnderRealClients lets libnfs and qemu work in a folder, in a network of its own (see TestRealClients), and
// takes everything away under qemu: server, tree and overlay.
func TestFolderUnderRealClients(t *testing.T) {
	if os.Getenv(insideEnv) == "1" {
		upLoopback(t)
		testFolderRestart(t)
		return
	}
	for program, pkg := range realParts {
		if _, err := exec.LookPath(program); err != nil {
			missing(t, program+" is not installed: Debian package "+pkg)
		}
	}
	help, err := exec.CommandContext(t.Context(), "qemu-img", "--help").Output()
	if err != nil || !strings.Contains(string(help), " nfs ") {
		missing(t, "qemu-img has no nfs driver: Debian package qemu-block-extra")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFolderUnderRealClients$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		missing(t, "cannot make a network namespace, which needs root or unprivileged user namespaces: "+err.Error())
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v", err)
	}
	t.Log(out.String())
}

func testFolderRestart(t *testing.T) {
	dir := t.TempDir()
	mapper, err := portmap.Listen(t.Context(), "127.0.0.1:111", nfsd.PortmapEntries(2049))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mapper.Close)
	reached, gone := make(chan struct{}), make(chan struct{})
	s := serveSession(t, dir, "127.0.0.1:2049", func(n int32) {
		if n == 20 {
			close(reached)
			<-gone
		}
	})
	local := filepath.Join(dir, "local")
	if err := os.WriteFile(local, pattern(3<<20+17, 9), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "nfs-cp", local, "nfs://127.0.0.1/a/sd/copy")
	args := []string{"-f", "raw"}
	for i := range 64 {
		args = append(args, "-c", fmt.Sprintf("write -P %d %dk 64k", i+1, i*64))
	}
	args = append(args, "-c", "flush", "nfs://127.0.0.1/a/"+sessionDisk)
	done := make(chan string, 1)
	go func() {
		out, err := exec.CommandContext(t.Context(), "qemu-io", args...).CombinedOutput()
		done <- fmt.Sprintf("%v %s", err, out)
	}()
	<-reached
	s.stop() // in the middle of a write
	close(gone)
	s.close(t)
	s = serveSession(t, dir, "127.0.0.1:2049", quiet)
	defer s.close(t)
	if out := <-done; !strings.HasPrefix(out, "<nil>") || strings.Contains(out, "fail") {
		t.Fatalf("qemu-io: %s", out)
	}
	got := make([]byte, 64<<16)
	if _, err := s.disk.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	for i := range 64 {
		if !bytes.Equal(got[i<<16:(i+1)<<16], bytes.Repeat([]byte{byte(i + 1)}, 1<<16)) {
			t.Fatalf("block %d is wrong", i)
		}
	}
	if out := run(t, "nfs-ls", "nfs://127.0.0.1/a/sd"); !strings.Contains(out, "copy") {
		t.Errorf("nfs-ls: %s", out)
	}
	if got := run(t, "nfs-cat", "nfs://127.0.0.1/a/sd/copy"); got != string(pattern(3<<20+17, 9)) {
		t.Errorf("nfs-cat gives %d bytes", len(got))
	}
}
