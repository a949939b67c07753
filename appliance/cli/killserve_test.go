package cli

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
)

// writer writes numbered stretches of a disk until its server dies, and remembers which were acknowledged.
type writer struct {
	addr  string
	fh    []byte
	total *atomic.Int64 // of all writers
	acked []uint64
}

const stretch = 6000 // bytes: neither a block nor a sector

func stretchOf(n uint64) []byte {
	p := make([]byte, stretch)
	for i := 0; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], n)
	}
	return p
}

// run writes stretches first, first+step, and so on.
func (w *writer) run(first, step uint64) error {
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	for n := first; ; n += step {
		call := nfstest.Record(nfstest.Message(uint32(n), nfstest.NFS, 3, procWrite, writeArgs(w.fh, n*stretch, stretchOf(n))))
		if _, err := c.Write(call); err != nil {
			return nil
		}
		reply, err := nfstest.ReadRecord(c)
		if err != nil {
			return nil // the server is gone
		}
		if len(reply) < 28 || binary.BigEndian.Uint32(reply[20:]) != 0 || binary.BigEndian.Uint32(reply[24:]) != 0 {
			return fmt.Errorf("write %d: %x", n, reply)
		}
		w.acked = append(w.acked, n)
		w.total.Add(1)
	}
}

// TestKilledServer kills a server during writes, again and again over one kept overlay and at one address.
func TestKilledServer(t *testing.T) {
	b := newBox(t)
	point := b.imports(b.disk("disk.raw", 1, 2*mib), "web").Point
	before := b.sha256(point)
	args := []string{point, "--nfs", "127.0.0.1:0", "--writable", "--format", "raw", "--overlay", b.path("over")}
	p, r := b.serve(args...)
	u, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	addr := "127.0.0.1:" + u.Query().Get("nfsport")
	args[2] = addr
	d := open(t, r.URL)
	var acked []uint64
	const writers = 4
	for round := range 5 {
		var total atomic.Int64
		var all [writers]writer
		var wg sync.WaitGroup
		for i := range all {
			all[i] = writer{addr: addr, fh: d.fh, total: &total}
			wg.Go(func() {
				if err := all[i].run(uint64(round*400+i), writers); err != nil {
					t.Error(err)
				}
			})
		}
		until(t, "some writes", func() bool { return total.Load() >= int64(10+20*round) })
		if code := p.end(syscall.SIGKILL); code != -1 {
			t.Fatalf("the server ended with %d\n%s", code, p.said())
		}
		wg.Wait()
		for i := range all {
			acked = append(acked, all[i].acked...)
		}
		p, _ = b.serve(args...)
		again := d.reopen(t, addr)
		for _, n := range acked {
			if got := again.read(n*stretch, stretch); string(got) != string(stretchOf(n)) {
				t.Fatalf("round %d: the acknowledged write %d is not there", round, n)
			}
		}
	}
	t.Logf("%d acknowledged writes", len(acked))
	p.end(syscall.SIGINT)
	if b.sha256(point) != before {
		t.Error("the point has changed")
	}
	b.clean(point)
}

// TestKilledServerLeavesNothing kills servers whose overlay is to be dropped: as they start, serve and end.
func TestKilledServerLeavesNothing(t *testing.T) {
	b := newBox(t)
	point := b.imports(b.disk("disk.raw", 1, mib), "web").Point
	args := []string{point, "--nfs", "127.0.0.1:0", "--writable", "--format", "raw"}
	overlays := func() bool { found, _ := filepath.Glob(b.store + "/overlays/*/*"); return len(found) > 0 }
	p, r := b.serve(args...)
	open(t, r.URL).write(0, []byte("x"))
	p.end(syscall.SIGKILL)
	if !overlays() {
		t.Error("a killed server removed its overlay: this test tests nothing")
	}
	random := rand.New(rand.NewPCG(20260914, 1))
	for range 6 { // the start
		p = b.start(append([]string{"point", "serve"}, args...)...)
		<-time.After(time.Duration(random.Int64N(int64(80 * time.Millisecond))))
		p.end(syscall.SIGKILL)
	}
	for range 4 { // the end
		p, r = b.serve(args...)
		open(t, r.URL).write(0, []byte("x"))
		if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(random.Int64N(int64(5 * time.Millisecond))))
		p.end(syscall.SIGKILL)
	}
	p, _ = b.serve(args...)
	if code := p.end(syscall.SIGINT); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.said())
	}
	b.noOverlays()
	b.clean(point)
	// An overlay to be kept may be killed at any moment of its making.
	for i := range 8 {
		kept := append(args, "--overlay", b.path(fmt.Sprint("over", i/4)))
		p = b.start(append([]string{"point", "serve"}, kept...)...)
		<-time.After(time.Duration(random.Int64N(int64(80 * time.Millisecond))))
		p.end(syscall.SIGKILL)
		p, _ = b.serve(kept...)
		p.end(syscall.SIGKILL)
	}
}

// needMount skips, or fails where everything must be there.
func needMount(t *testing.T) {
	t.Helper()
	missing := ""
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		missing = "root and /dev/fuse"
	}
	if err := parts.Need(parts.Mount); err != nil {
		missing = err.Error()
	}
	needs(t, missing)
}

// needs skips when something is missing, or fails where everything must be there.
func needs(t *testing.T, missing string) {
	t.Helper()
	switch {
	case missing == "":
	case os.Getenv("HOLDFAST_REAL_PARTS") == "1":
		t.Fatal("this test needs " + missing)
	default:
		t.Skip("needs " + missing + "; `make test` runs it")
	}
}

// mount starts a mount and returns when the points are there.
func (b *box) mount(dir string) *process {
	b.t.Helper()
	p := b.start("mount", dir)
	var line struct {
		Mounted string `json:"mounted"`
	}
	if decode(b.t, p.line()+"\n", &line); line.Mounted != dir {
		b.t.Errorf("mounted at %q", line.Mounted)
	}
	return p
}

// mountPoint makes a folder to mount at; whatever is left there at the test's end is taken away.
func (b *box) mountPoint() string {
	b.t.Helper()
	dir := b.path("mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
	})
	return dir
}

func TestMount(t *testing.T) {
	needMount(t)
	b := newBox(t)
	dir := b.mountPoint()
	file := b.file("disk.raw", noise(1, mib)) // whole blocks: others are shown with zeros behind them
	b.now = time.Date(2026, 11, 23, 9, 0, 12, 0, time.UTC)
	b.imports(file, "web/a")
	p := b.mount(dir)
	disk := dir + "/points/web%2Fa/2026-11-23T09-00-12Z/disk0"
	if sum(t, disk+".raw") != sum(t, file) {
		t.Error("other bytes than were imported")
	}
	if f, err := os.Open(disk + ".qcow2"); err != nil {
		t.Error(err)
	} else {
		magic := make([]byte, 4)
		if _, err := io.ReadFull(f, magic); err != nil || string(magic) != "QFI\xfb" {
			t.Errorf("qcow2: %x, %v", magic, err)
		}
		_ = f.Close()
	}
	if err := os.WriteFile(disk+".raw", nil, 0o600); err == nil {
		t.Error("a point can be written")
	}
	b.imports(file, "db")
	until(t, "a new point to appear", func() bool { _, err := os.Stat(dir + "/points/db/2026-11-23T10-00-12Z/disk0.raw"); return err == nil })
	b.fails(exitConflict, []string{"mount", dir}, "another process has a tree mounted there")
	if code := p.end(syscall.SIGINT); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.said())
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("after the end: %v, %v", left, err)
	}
	p = b.mount(dir)
	if code := p.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.said())
	}
	p = b.mount(dir)
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(); code != 0 {
		t.Errorf("after umount: exit code %d\n%s", code, p.said())
	}
	b.fails(exitNotFound, []string{"mount", b.path("none")}, "mkdir")
	b.fails(exitUsage, []string{"mount", b.store}, "not empty")
	b.fails(exitUsage, []string{"mount", file}, "not a folder")
}

// TestKilledMount kills mounts as they start, while they are idle, and while somebody reads.
func TestKilledMount(t *testing.T) {
	needMount(t)
	b := newBox(t)
	dir := b.mountPoint()
	b.imports(b.file("disk.raw", noise(1, 64*mib)), "web")
	disk := dir + "/points/web/2026-09-14T02-00-00Z/disk0.raw"
	random := rand.New(rand.NewPCG(20260914, 2))
	for range 6 {
		p := b.start("mount", dir)
		<-time.After(time.Duration(random.Int64N(int64(80 * time.Millisecond))))
		p.end(syscall.SIGKILL)
	}
	b.mount(dir).end(syscall.SIGKILL)
	if _, err := os.Stat(dir); err == nil {
		t.Error("a killed mount answers: this test tests nothing")
	}
	for range 4 {
		p := b.mount(dir)
		var n atomic.Int64
		ended := make(chan error, 1)
		go func() { ended <- readAll(disk, &n) }()
		until(t, "a read to begin", func() bool { return n.Load() > 0 })
		p.end(syscall.SIGKILL)
		if err := <-ended; err == nil {
			t.Log("the read was faster than the kill")
		}
	}
	p := b.mount(dir)
	if sum(t, disk) != sum(t, b.path("disk.raw")) {
		t.Error("other bytes than were imported")
	}
	if code := p.end(syscall.SIGINT); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.said())
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("after the end: %v, %v", left, err)
	}
}

// readAll reads a file and counts as it goes.
func readAll(name string, n *atomic.Int64) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for buf := make([]byte, 128<<10); ; {
		k, err := f.Read(buf)
		n.Add(int64(k))
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
