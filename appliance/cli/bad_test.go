package cli

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/fs/synthetic"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// damage writes a byte that is not there into a file, at a place counted from its start, or from its end if negative.
func damage(t *testing.T, file string, at int) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 0x55
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// qcow2 makes an image of a disk with our own writer.
func (b *box) qcow2(name string) string {
	b.t.Helper()
	s := newBox(b.t)
	s.imports(s.disk("disk.raw", 7, mib), "web")
	s.ok("point", "export", "web@latest", "--format", "qcow2", "--to", b.path(name))
	return b.path(name)
}

func TestImagesThatCannotBeRead(t *testing.T) {
	b := newBox(t)
	whole, err := os.ReadFile(b.qcow2("whole.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	with := func(name string, change func(p []byte) []byte) string {
		return b.file(name, change(slices.Clone(whole)))
	}
	backed := with("backed.qcow2", func(p []byte) []byte {
		binary.BigEndian.PutUint64(p[8:], 0x200)
		binary.BigEndian.PutUint32(p[16:], 4)
		copy(p[0x200:], "base")
		return p
	})
	pipe := b.path("pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		file string
		code int
		word string
		more string
	}{
		{with("cut.qcow2", func(p []byte) []byte { return p[:len(p)/2] }), exitCorrupt, "cut.qcow2", ""},
		{with("header.qcow2", func(p []byte) []byte { return p[:50] }), exitCorrupt, "header.qcow2", ""},
		{with("bits.qcow2", func(p []byte) []byte { p[23] = 63; return p }), exitCorrupt, "bits.qcow2", ""},
		{with("l1.qcow2", func(p []byte) []byte { binary.BigEndian.PutUint64(p[40:], 1<<60); return p }), exitCorrupt, "l1.qcow2", ""},
		{backed, exitError, "backing file", ""},
		{b.file("empty", nil), exitUsage, "empty", ""},
		{b.dir, exitUsage, "neither a file nor a block device", ""},
		{pipe, exitUsage, "neither a file nor a block device", ""},
		{"/dev/null", exitUsage, "neither a file nor a block device", ""},
		{"/dev/tty0/x", exitUsage, "", ""},
		{b.path("missing"), exitNotFound, "missing", ""},
		{b.file("raw", noise(1, 8192)), exitUsage, "not a qcow2 image", "--format qcow2"},
		{b.path("raw"), exitUsage, "unknown format", "--format vmdk"},
		{b.path("raw"), exitUsage, "numbered from 0", "--disk -1"},
		{b.path("raw"), exitUsage, "numbered from 0", "--disk 1000"},
		{b.path("raw"), exitUsage, "control characters", "--vm a\tb"},
		{b.path("raw"), exitUsage, "at most 200 bytes", "--vm " + strings.Repeat("x", 201)},
	} {
		if _, err := os.Stat(filepath.Dir(tc.file)); err != nil && tc.word == "" {
			continue
		}
		args := []string{"disk", "import", tc.file, "--vm", "web"}
		if flag, value, ok := strings.Cut(tc.more, " "); ok {
			args = append(args, flag, value)
		}
		b.fails(tc.code, args, tc.word)
	}
	b.clean()
}

func TestUnreadableImage(t *testing.T) {
	b := newBox(t)
	file := b.disk("disk.raw", 1, mib)
	if err := os.Chmod(file, 0); err != nil {
		t.Fatal(err)
	}
	args := []string{"disk", "import", file, "--vm", "web"}
	if os.Geteuid() != 0 {
		b.fails(exitDenied, args, "permission denied")
		return
	}
	// Root reads everything, unless it gives up its capabilities.
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("root without setpriv (package util-linux)")
	}
	if err := os.Chmod(b.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("setpriv", append([]string{"--bounding-set=-all", "--inh-caps=-all", "/proc/self/exe"}, args...)...)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args[3] = exe
	cmd.Env = append(os.Environ(), childEnv+"=1", "HOLDFAST_STORE="+b.store, "HOLDFAST_PASSPHRASE_FILE="+b.path("passphrase"))
	said, _ := cmd.CombinedOutput() // how it ended is looked at below
	b.failed(result{cmd.ProcessState.ExitCode(), "", string(said)}, exitDenied, args, "permission denied")
}

// TestImageThatChanges writes to a file while it is read.
func TestImageThatChanges(t *testing.T) {
	b := newBox(t)
	for name, change := range map[string]func(file string) error{
		"written":  func(f string) error { return os.WriteFile(f, noise(3, 20*mib), 0o600) },
		"cut":      func(f string) error { return os.Truncate(f, mib) },
		"grown":    func(f string) error { return os.Truncate(f, 100*mib) },
		"replaced": func(f string) error { return errorsOf(os.WriteFile(f+"2", noise(3, mib), 0o600), os.Rename(f+"2", f)) },
		"removed":  os.Remove,
	} {
		file := b.file(name, noise(2, 40*mib))
		s, err := chunkstore.Open(t.Context(), b.store, chunkstore.Options{
			Unlock: chunkstore.WithPassphrase(func() ([]byte, error) { return []byte(passphrase), nil }),
		})
		if err != nil {
			t.Fatal(err)
		}
		once := false
		_, err = node.Import(t.Context(), s, node.ImportOptions{File: file, VM: "web", Now: b.now, Progress: func(node.ImportProgress) {
			if !once {
				once = true
				if err := change(file); err != nil {
					t.Error(err)
				}
			}
		}})
		if want := map[bool]errs.Kind{true: errs.NotFound, false: errs.Stale}[name == "removed"]; !errs.Is(err, want) || errs.NextStep(err) == "" && name != "removed" {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	b.clean()
}

func errorsOf(all ...error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestFoldersThatAreNotAStore(t *testing.T) {
	b := newBox(t)
	empty := t.TempDir()
	for _, c := range []string{
		"point list", "point show x", "point rm x", "point export x --to y", "point serve x --nfs 127.0.0.1:0", "mount x", "store status",
		"store verify", "disk import x --vm y",
	} {
		for dir, code := range map[string]int{empty: exitNotFound, b.path("missing"): exitNotFound, b.path("passphrase"): exitNotFound} {
			b.fails(code, append(strings.Fields(c), "--store", dir), dir)
		}
	}
	if left, err := os.ReadDir(empty); err != nil || len(left) != 0 {
		t.Errorf("a folder that is no store got %v, %v", left, err)
	}
	b.fails(exitDenied, []string{"point", "list", "--passphrase-file", b.file("wrong", []byte("wrong"))}, "passphrase is wrong")
	b.fails(exitUsage, []string{"point", "list", "--passphrase-file", b.file("empty", nil)}, "does not hold a passphrase")
	b.fails(exitUsage, []string{"point", "list", "--passphrase-file", b.file("newline", []byte("\nx"))}, "does not hold a passphrase")
	b.fails(exitUsage, []string{"point", "list", "--passphrase-file", b.file("large", make([]byte, 1<<20))}, "does not hold a passphrase")
	b.fails(exitNotFound, []string{"point", "list", "--passphrase-file", b.path("none")}, "none")
	b.fails(exitUsage, []string{"point", "list", "--passphrase-file", b.dir}, "")
}

func TestDamagedStore(t *testing.T) {
	read := []string{"point", "list"}
	for name, tc := range map[string]struct {
		harm func(b *box)
		code int
		word string
	}{
		"superblock is no JSON": {func(b *box) { b.file("store/superblock", []byte("{")) }, exitCorrupt, "superblock"},
		"superblock is empty":   {func(b *box) { b.file("store/superblock", nil) }, exitCorrupt, "superblock"},
		"superblock was changed": {func(b *box) {
			p, _ := os.ReadFile(b.path("store/superblock"))
			b.file("store/superblock", []byte(strings.Replace(string(p), `"created": "20`, `"created": "19`, 1)))
		}, exitCorrupt, "signature"},
		"superblock of another version": {func(b *box) {
			p, _ := os.ReadFile(b.path("store/superblock"))
			b.file("store/superblock", []byte(strings.Replace(string(p), `"version": 1`, `"version": 2`, 1)))
		}, exitError, "newer Holdfast"},
		"superblock is missing": {func(b *box) { _ = os.Remove(b.path("store/superblock")) }, exitNotFound, "no Holdfast store"},
		"key is damaged":        {func(b *box) { damage(b.t, b.path("store/keys/master.age"), -20) }, exitCorrupt, "keys/ back from a copy of the store"},
		"key is missing":        {func(b *box) { _ = os.Remove(b.path("store/keys/master.age")) }, exitCorrupt, "back from a copy of the store"},
		"key of another store": {func(b *box) {
			o := newBox(b.t)
			p, _ := os.ReadFile(o.path("store/keys/master.age"))
			b.file("store/keys/master.age", p)
		}, exitDenied, "another store"},
	} {
		b := newBox(t)
		b.imports(b.disk("disk.raw", 1, mib), "web")
		tc.harm(b)
		t.Run(name, func(t *testing.T) {
			b.t = t
			b.fails(tc.code, read, tc.word)
			b.fails(tc.code, []string{"disk", "import", b.path("disk.raw"), "--vm", "web"}, tc.word)
		})
	}
}

func TestDamagedPoint(t *testing.T) {
	b := newBox(t)
	file := b.disk("disk.raw", 1, mib)
	bad, good := b.imports(file, "web").Point, b.imports(file, "web").Point
	damage(t, b.path("store/points/"+bad), -5)
	r := b.run("point", "list", "-o", "json")
	if b.failed(r, exitPartial, []string{"point", "list"}, bad, "1 point cannot be read"); strings.Contains(r.out, bad) || !strings.Contains(r.out, good) {
		t.Errorf("listed: %s", r.out)
	}
	b.fails(exitPartial, []string{"store", "status"}, "1 point record cannot be read")
	b.fails(exitCorrupt, []string{"store", "verify"}, "1 fault found")
	b.ok("store", "verify", good)
	b.fails(exitCorrupt, []string{"point", "show", bad}, "record is damaged")
	b.fails(exitCorrupt, []string{"point", "show", bad[:10]}, "record is damaged")
	b.fails(exitNotFound, []string{"point", "show", "damaged"}, "no such point")
	b.ok("point", "export", "web@latest", "--to", b.path("out"))
	if sum(t, b.path("out")) != sum(t, file) {
		t.Error("the other point is not what it was")
	}
	third := b.imports(file, "web")
	if third.New != 0 || third.Parent != good {
		t.Errorf("the next import: %+v", third)
	}
	b.fails(exitCorrupt, []string{"point", "rm", bad[:10]}, "record is damaged")
	b.ok("point", "rm", bad)
	b.clean(good, third.Point)
	alone := newBox(t)
	only := alone.imports(file, "web").Point
	damage(t, alone.path("store/points/"+only), 20)
	alone.fails(exitPartial, []string{"point", "list"}, only)
	alone.fails(exitCorrupt, []string{"store", "verify"}, "1 fault found")
}

func TestMissingAndDamagedPacks(t *testing.T) {
	b := newBox(t)
	file := b.disk("disk.raw", 1, 2*mib)
	one := b.imports(file, "web").Point
	packs, err := filepath.Glob(b.store + "/data/*/*.pack")
	if err != nil || len(packs) != 1 {
		t.Fatalf("packs %q, %v", packs, err)
	}
	keep, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	b.imports(b.disk("other.raw", 2, mib), "other")
	damage(t, packs[0], mib)
	b.fails(exitCorrupt, []string{"store", "verify"}, "1 fault found")
	b.fails(exitCorrupt, []string{"point", "export", one, "--to", b.path("out")})
	b.fails(exitCorrupt, []string{"point", "show", one, "--sha256"})
	if err := os.Remove(packs[0]); err != nil {
		t.Fatal(err)
	}
	b.fails(exitCorrupt, []string{"store", "verify"}, "faults found")
	b.fails(exitCorrupt, []string{"point", "export", one, "--to", b.path("out")}, "A file of the store is missing")
	b.ok("point", "list")
	b.ok("store", "verify", "other@latest")
	if left, _ := filepath.Glob(b.path(".out*")); len(left) > 0 {
		t.Errorf("a failed export left %q", left)
	}
	b.imports(b.path("other.raw"), "other") // the store still takes backups
	if err := os.WriteFile(packs[0], keep, 0o600); err != nil {
		t.Fatal(err)
	}
	b.clean(b.points()...)
}

func TestStoreInUse(t *testing.T) {
	b := newBox(t)
	file := b.disk("disk.raw", 1, mib)
	point := b.imports(file, "web").Point
	s, err := chunkstore.Open(t.Context(), b.store, chunkstore.Options{
		Unlock: chunkstore.WithPassphrase(func() ([]byte, error) { return []byte(passphrase), nil }),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{{"disk", "import", file, "--vm", "web"}, {"point", "rm", point}, {"init", b.store}} {
		b.fails(exitConflict, c, fmt.Sprintf("process %d", os.Getpid()), "Wait until it has ended")
	}
	b.ok("point", "list")
	b.ok("store", "verify")
	b.ok("point", "export", point, "--to", b.path("out"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b.clean(point)
}

func TestTargetsOfExport(t *testing.T) {
	b := newBox(t)
	b.imports(b.disk("disk.raw", 1, mib), "web")
	for _, tc := range []struct {
		to   string
		code int
		word string
	}{
		{b.path("passphrase/file"), exitUsage, "not a directory"}, {b.path("none/file"), exitNotFound, "none"}, {b.dir, exitUsage, "not a regular file"},
		{"/dev/null", exitUsage, "not a regular file"}, {"/proc/file", exitNotFound, "/proc/file"}, {"/sys/file", exitDenied, "/sys/file"},
	} {
		for _, more := range [][]string{nil, {"--force"}, {"--format", "qcow2"}} {
			args := append([]string{"point", "export", "web@latest", "--to", tc.to}, more...)
			if r := b.run(args...); tc.to == "/sys/file" {
				b.failed(r, r.code, args, tc.word) // what the kernel calls it depends on who asks
				continue
			}
			b.fails(tc.code, args, tc.word)
		}
	}
	if err := os.Symlink(b.path("passphrase"), b.path("link")); err != nil {
		t.Fatal(err)
	}
	b.fails(exitUsage, []string{"point", "export", "web@latest", "--to", b.path("link"), "--force"}, "not a regular file")
	b.fails(exitNotFound, []string{"point", "export", "nope", "--to", b.path("out")}, "no such point")
	b.fails(exitNotFound, []string{"point", "export", "web@latest", "--disk", "4", "--to", b.path("out")}, "It holds: 0")
	for _, f := range []string{"out", ".out.part-*", ".link*"} {
		if left, _ := filepath.Glob(b.path(f)); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

func TestAddressesThatCannotBeServed(t *testing.T) {
	b := newBox(t)
	b.imports(b.disk("disk.raw", 1, mib), "web")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	serve := func(addr string, more ...string) []string {
		return append([]string{"point", "serve", "web@latest", "--nfs", addr}, more...)
	}
	b.fails(exitConflict, serve(ln.Addr().String(), "--writable"), "address already in use")
	for _, a := range []string{"localhost", "127.0.0.1", ":2049", "127.0.0.1:x", "127.0.0.1:99999"} {
		b.fails(exitUsage, serve(a), "an address with a port is needed")
	}
	b.fails(exitUsage, serve("192.0.2.1:0"), "192.0.2.1:0")
	b.fails(exitNotFound, serve("127.0.0.1:0", "--disk", "7"), "It holds: 0")
	b.fails(exitNotFound, append(serve("127.0.0.1:0")[:2], "web@2020", "--nfs", "127.0.0.1:0"), "Its oldest")
	b.fails(exitUsage, serve("127.0.0.1:0", "--writable", "--overlay", b.path("passphrase")), "passphrase")
	if left, _ := filepath.Glob(b.store + "/overlays/*/*"); len(left) > 0 {
		t.Errorf("a server that did not start left %q", left)
	}
}

// TestInterruptedExport cancels when all that was begun has succeeded: a file must never appear that is not whole.
func TestInterruptedExport(t *testing.T) {
	b := newBox(t)
	b.imports(b.file("disk.raw", noise(1, 40*mib)), "web")
	r, err := chunkstore.OpenReader(t.Context(), b.store, chunkstore.Options{
		Unlock: chunkstore.WithPassphrase(func() ([]byte, error) { return []byte(passphrase), nil }),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := node.ResolvePoint(t.Context(), r, "web@latest", b.now)
	if err != nil {
		t.Fatal(err)
	}
	img, err := r.Image(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"raw", "qcow2"} {
		ctx, cancel := context.WithCancel(t.Context())
		err := node.Export(ctx, img, node.ExportOptions{To: b.path("out"), Format: formatOf(format), Progress: func(done, _ int64) {
			if format == "raw" && done == 0 { // only the first 4 MiB are on their way
				until(t, "them to be written", func() bool { return written(t, b.path(".out.part-*"), 4*mib) })
			}
			cancel()
		}})
		cancel()
		if !errs.Is(err, errs.Canceled) {
			t.Errorf("%s: %v", format, err)
		}
		if left, _ := filepath.Glob(b.dir + "/*out*"); len(left) > 0 {
			t.Errorf("%s: left %q", format, left)
		}
	}
}

func formatOf(s string) synthetic.Format { return synthetic.Format(s) }

// written tells whether the one file of a pattern takes some bytes on its disk.
func written(t *testing.T, pattern string, n int64) bool {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		return false
	}
	st, err := os.Stat(found[0])
	return err == nil && usedBytes(st) >= n
}
