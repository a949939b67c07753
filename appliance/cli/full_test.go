package cli

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const insideEnv = "HOLDFAST_CLI_INSIDE"

// inside runs the test once more in a mount namespace of its own, where it may mount what it likes. It returns true there.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) == t.Name() {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if os.Geteuid() != 0 {
		needs(t, "root, to mount a small disk")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err != nil && !errors.As(err, &exit):
		needs(t, "a mount namespace of its own: "+err.Error())
	case err != nil:
		t.Errorf("in a mount namespace of its own:\n%s", out)
	case !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Errorf("the test did not run inside:\n%s", out)
	}
	return false
}

// small mounts a disk of some MiB.
func (b *box) small(name string, size string) string {
	b.t.Helper()
	dir := b.path(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill leaves some bytes free on a small disk, and returns the file that takes the rest.
func (b *box) fill(dir string, leave int64) string {
	b.t.Helper()
	f, err := os.Create(filepath.Join(dir, "lost+found"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	until(b.t, "the space to be taken", func() bool { // an import may take some meanwhile
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			b.t.Fatal(err)
		}
		return unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-leave) == nil
	})
	return f.Name()
}

// TestFullDisk lets imports run into the end of the disk: right at the start, and in the middle.
func TestFullDisk(t *testing.T) {
	if !inside(t) {
		return
	}
	b := boxAt(t, t.TempDir())
	b.small("store", "420m")
	b.ok("init", b.store, "--kit", b.path("kit"))
	base := b.imports(b.disk("base.raw", 1, mib), "base").Point
	big := b.file("big.raw", noise(2, 150*mib))
	args := []string{"disk", "import", big, "--vm", "web"}
	for name, leave := range map[string]int64{"index": 200 * mib, "nothing": 0, "a page": 4096, "a mebibyte": mib} {
		filler := b.fill(b.store, leave)
		b.fails(exitError, args, "free")
		b.whole(base)
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		if left := b.leftovers(); len(left) > 0 {
			t.Errorf("%s: left behind %q", name, left)
		}
	}
	// Enough to begin with, too little in the middle: what eats the space comes while the import runs.
	for _, grab := range []int64{30 * mib, 70 * mib} {
		k := &killed{b, base, big, 150 * mib}
		p := b.start(args...)
		until(t, "the import to be on its way", func() bool { return k.has("data/*/*.open") > 4*mib })
		filler := b.fill(b.store, grab-4*mib)
		b.failed(p.result(), exitError, args, "space")
		b.whole(base)
		b.fails(exitError, args)
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}
	res := b.imports(b.file("medium.raw", noise(2, 100*mib)), "web")
	b.clean(base, res.Point)
	if err := os.Remove(b.path("medium.raw")); err != nil {
		t.Fatal(err)
	}
}

// TestFullTarget exports onto a disk that is too small, and onto one that is read-only.
func TestFullTarget(t *testing.T) {
	if !inside(t) {
		return
	}
	b := newBox(t)
	b.imports(b.file("disk.raw", noise(1, 40*mib)), "web")
	target := b.small("target", "20m")
	for _, format := range []string{"raw", "qcow2"} {
		args := []string{"point", "export", "web@latest", "--to", target + "/out", "--format", format}
		b.fails(exitError, args, "no space left", "Make room")
		if left, err := os.ReadDir(target); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", format, left, err)
		}
	}
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	b.fails(exitDenied, []string{"point", "export", "web@latest", "--to", target + "/out"}, "read-only file system")
	b.fails(exitDenied, []string{"init", target + "/store", "--kit", b.path("kit")}, "read-only file system")
	b.fails(exitDenied, []string{"init", b.path("new"), "--kit", target + "/kit"}, "read-only file system")
	b.ok("init", b.path("new"))
	// A store on a read-only disk can be read, and served without writing.
	if err := unix.Mount(b.store, b.store, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", b.store, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(b.store, unix.MNT_DETACH) })
	b.ok("store", "verify")
	b.ok("store", "status")
	b.fails(exitDenied, []string{"disk", "import", b.path("disk.raw"), "--vm", "web"}, "read-only file system")
	serve := []string{"point", "serve", "web@latest", "--nfs", "127.0.0.1:0", "--writable"}
	b.fails(exitDenied, serve, "--overlay DIR")
	p, _ := b.serve("web@latest", "--nfs", "127.0.0.1:0")
	p.end(syscall.SIGINT)
	p, _ = b.serve("web@latest", "--nfs", "127.0.0.1:0", "--writable", "--overlay", b.path("over"))
	if code := p.end(syscall.SIGINT); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.said())
	}
}
