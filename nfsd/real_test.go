package nfsd_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/fstest"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/portmap"
)

// insideEnv tells the test binary that it runs in a network of its own.
const insideEnv = "HOLDFAST_NFSD_TEST_INSIDE"

// realParts maps the programs these tests run to the Debian packages that bring them.
var realParts = map[string]string{
	"nfs-ls": "libnfs-utils", "nfs-cp": "libnfs-utils", "nfs-cat": "libnfs-utils",
	"qemu-img": "qemu-utils", "qemu-io": "qemu-utils",
}

// missing skips a test that lacks something, or fails it where all parts must be there.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("HOLDFAST_REAL_PARTS") == "1" {
		t.Fatal(what)
	}
	t.Skip(what + "; `make test` installs what is missing and runs this")
}

// TestRealClients serves libnfs and qemu, which ask a port mapper at port 111: so it runs in a network of its own.
func TestRealClients(t *testing.T) {
	if os.Getenv(insideEnv) == "1" {
		upLoopback(t)
		t.Run("libnfs", testLibnfs)
		t.Run("qemu", testQemu)
		t.Run("restart under a writer", testRestart)
		return
	}
	for program, pkg := range realParts {
		if _, err := exec.LookPath(program); err != nil {
			missing(t, program+" is not installed: Debian package "+pkg)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "--help").Output(); err != nil || !strings.Contains(string(out), " nfs ") {
		missing(t, "qemu-img has no nfs driver: Debian package qemu-utils with libnfs13, or qemu-block-extra")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRealClients$", "-test.v")
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

// upLoopback switches the new network's loopback on.
func upLoopback(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		t.Fatal(err)
	}
}

// served starts a server on the customary ports.
func served(t *testing.T, m *fstest.Memory) *running {
	t.Helper()
	s := startOn(t, "127.0.0.1:2049", nfsd.Options{Key: testKey}, m)
	mapper, err := portmap.Listen(t.Context(), "127.0.0.1:111", nfsd.PortmapEntries(2049))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mapper.Close)
	return s
}

// run runs a program to its end and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// content returns a file's bytes.
func content(t *testing.T, m *fstest.Memory, name string) []byte {
	t.Helper()
	n, err := m.Root().Lookup(t.Context(), name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	a, err := n.Attr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, a.Size)
	if _, err := n.(fs.File).ReadAt(t.Context(), p, 0); err != nil && fs.StatusOf(err) != fs.StatusOK {
		t.Fatal(err)
	}
	return p
}

func testLibnfs(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	want := pattern(5<<20+123, 4)
	put(t, m, "dir/file", want)
	for i := range 300 {
		put(t, m, fmt.Sprintf("many/%d", i), nil)
	}
	served(t, m)
	if out := run(t, "nfs-ls", "nfs://127.0.0.1/a/many"); strings.Count(out, "\n") != 300 {
		t.Errorf("nfs-ls lists %d names", strings.Count(out, "\n"))
	}
	if got := run(t, "nfs-cat", "nfs://127.0.0.1/a/dir/file"); got != string(want) {
		t.Errorf("nfs-cat gives %d bytes", len(got))
	}
	local := filepath.Join(t.TempDir(), "local")
	run(t, "nfs-cp", "nfs://127.0.0.1/a/dir/file", local)
	if got, err := os.ReadFile(local); err != nil || !bytes.Equal(got, want) {
		t.Errorf("copied here: %d bytes, %v", len(got), err)
	}
	run(t, "nfs-cp", local, "nfs://127.0.0.1/a/copy")
	if got := content(t, m, "copy"); !bytes.Equal(got, want) {
		t.Errorf("copied there: %d bytes", len(got))
	}
}

func testQemu(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	put(t, m, "disk", pattern(8<<20, 5))
	served(t, m)
	const url = "nfs://127.0.0.1/a/"
	if out := run(t, "qemu-img", "info", "-f", "raw", url+"disk"); !strings.Contains(out, "8388608 bytes") {
		t.Errorf("info: %s", out)
	}
	local := filepath.Join(t.TempDir(), "local.qcow2")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", url+"disk", local)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", url+"disk", local)
	run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", local, url+"copy")
	run(t, "qemu-img", "check", "-f", "qcow2", url+"copy")
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", url+"disk", url+"copy")
	out := run(t, "qemu-io", "-f", "raw", "-c", "write -P 0x5a 4k 64k", "-c", "flush", "-c", "read -P 0x5a 4k 64k",
		"-c", "aio_write -P 0x11 1m 1m", "-c", "aio_write -P 0x22 2m 1m", "-c", "aio_flush", "-c", "read -P 0x22 2m 1m", url+"disk")
	if strings.Contains(out, "fail") {
		t.Errorf("qemu-io: %s", out)
	}
	m.Crash() // what was flushed must be there
	got := content(t, m, "disk")
	if !bytes.Equal(got[4096:4096+65536], bytes.Repeat([]byte{0x5a}, 65536)) || !bytes.Equal(got[1<<20:1<<20+10], bytes.Repeat([]byte{0x11}, 10)) {
		t.Error("the writes did not arrive")
	}
	run(t, "qemu-img", "resize", "-f", "raw", url+"disk", "16M")
	if n := len(content(t, m, "disk")); n != 16<<20 {
		t.Errorf("%d bytes after a resize", n)
	}
}

// testRestart takes the server away under a writer, without a word, and brings its successor: as kill -9 does.
func testRestart(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	put(t, m, "disk", make([]byte, 4<<20))
	first := served(t, m)
	var writes atomic.Int32
	reached, gone := make(chan struct{}), make(chan struct{})
	m.SetHook(func(op string, _ fs.ID) error {
		if op == "write" && writes.Add(1) == 20 {
			close(reached)
			<-gone // the write is given up with its server: the client must repeat it
		}
		return nil
	})
	args := []string{"-f", "raw"}
	for i := range 64 {
		args = append(args, "-c", fmt.Sprintf("write -P %d %dk 64k", i+1, i*64))
	}
	args = append(args, "-c", "flush", "nfs://127.0.0.1/a/disk")
	done := make(chan string, 1)
	go func() {
		out, err := exec.CommandContext(t.Context(), "qemu-io", args...).CombinedOutput()
		done <- fmt.Sprintf("%v %s", err, out)
	}()
	<-reached
	first.stop() // breaks the connection in the middle of a write
	if err := <-first.done; err != nil {
		t.Fatal(err)
	}
	close(first.done)
	close(gone)
	if c, err := net.Dial("tcp", first.addr); err == nil {
		_ = c.Close()
		t.Fatal("the first server still listens")
	}
	startOn(t, first.addr, nfsd.Options{Key: testKey}, m)
	if out := <-done; !strings.HasPrefix(out, "<nil>") || strings.Contains(out, "fail") {
		t.Fatalf("qemu-io: %s", out)
	}
	m.Crash()
	got := content(t, m, "disk")
	for i := range 64 {
		if !bytes.Equal(got[i<<16:(i+1)<<16], bytes.Repeat([]byte{byte(i + 1)}, 1<<16)) {
			t.Fatalf("block %d is wrong", i)
		}
	}
}
