package cli

import (
	"bytes"
	"encoding/json"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
)

// ready is the line that a server prints first.
type ready struct {
	URL    string   `json:"url"`
	URLs   []string `json:"urls"`
	Point  string   `json:"point"`
	Format string   `json:"format"`
	Writes string   `json:"writes"`
	Allow  []string `json:"allow"`
}

// serve starts a server and waits until it is ready.
func (b *box) serve(args ...string) (*process, ready) {
	b.t.Helper()
	p := b.start(append([]string{"point", "serve"}, args...)...)
	var r ready
	decode(b.t, p.line()+"\n", &r)
	return p, r
}

// remote is one served disk, seen by a client.
type remote struct {
	*nfstest.Conn
	fh []byte
}

// NFS procedures by number (RFC 1813).
const (
	procRead, procWrite, procCommit = 6, 7, 21
	fileSync                        = 2
)

// open opens the disk behind a URL, as libnfs takes it apart.
func open(t *testing.T, text string) remote {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if u.Scheme != "nfs" || q.Get("nfsport") == "" || q.Get("nfsport") != q.Get("mountport") || q.Get("version") != "3" {
		t.Fatalf("url %s", text)
	}
	c := nfstest.Dial(t, u.Host+":"+q.Get("nfsport"))
	status, root := c.MNT(path.Dir(u.Path))
	if status != 0 {
		t.Fatalf("mount %s: %v", path.Dir(u.Path), status)
	}
	return remote{c, c.Lookup(root, path.Base(u.Path))}
}

// reopen uses the handle of an earlier server.
func (r remote) reopen(t *testing.T, addr string) remote { return remote{nfstest.Dial(t, addr), r.fh} }

func (r remote) read(off uint64, n int) []byte {
	res := r.MustNFS(procRead, nfstest.Words(nil).Opaque(r.fh).U64(off).U32(uint32(n)))
	res.PostOp()
	res.U32()
	res.U32()
	return res.Opaque()
}

func writeArgs(fh []byte, off uint64, p []byte) nfstest.Words {
	return nfstest.Words(nil).Opaque(fh).U64(off).U32(uint32(len(p)), fileSync).Opaque(p)
}

func (r remote) write(off uint64, p []byte) { r.MustNFS(procWrite, writeArgs(r.fh, off, p)) }

func TestServeReadsAndEnds(t *testing.T) {
	b := newBox(t)
	file := b.disk("disk.raw", 1, mib)
	point := b.imports(file, "web").Point
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		p, r := b.serve("web@latest", "--nfs", "127.0.0.1:0", "--format", "raw")
		if r.Point != point || r.Format != "raw" || r.Writes != "refused" || len(r.URLs) != 1 || r.URL != r.URLs[0] || len(r.Allow) == 0 ||
			!strings.HasSuffix(strings.Split(r.URL, "?")[0], "/"+point+"/disk0.raw") {
			t.Errorf("ready: %+v", r)
		}
		d := open(t, r.URL)
		if got := d.read(4096, 8192); !bytes.Equal(got, noise(1, mib)[4096:4096+8192]) {
			t.Error("other bytes than were imported")
		}
		if status, _ := d.NFS(procWrite, writeArgs(d.fh, 0, []byte("x"))); status != 30 {
			t.Errorf("a write to a point: status %v", status)
		}
		if err := p.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		var stats struct {
			Stats struct {
				Calls     int64 `json:"calls"`
				Reads     int64 `json:"reads"`
				BytesRead int64 `json:"bytes_read"`
			} `json:"stats"`
		}
		if err := json.Unmarshal([]byte(p.line()), &stats); err != nil || stats.Stats.Reads != 1 || stats.Stats.BytesRead != 8192 {
			t.Errorf("stats %+v, %v", stats, err)
		}
		if code := p.end(sig); code != 0 {
			t.Errorf("%v: exit code %d\n%s", sig, code, p.said())
		}
	}
	b.clean(point)
}

func TestServeDropsItsOverlay(t *testing.T) {
	b := newBox(t)
	point := b.imports(b.disk("disk.raw", 1, mib), "web").Point
	before := b.sha256(point)
	p, r := b.serve(point, "--nfs", "127.0.0.1:0", "--format", "raw", "--writable")
	d := open(t, r.URL)
	d.write(8192, []byte("written"))
	if got := d.read(8192, 7); r.Writes != "dropped" || string(got) != "written" {
		t.Errorf("%s writes, read %q", r.Writes, got)
	}
	other, or := b.serve(point, "--nfs", "127.0.0.1:0", "--format", "raw", "--writable")
	if got := open(t, or.URL).read(8192, 7); string(got) == "written" {
		t.Error("two servers share an overlay")
	}
	if code := other.end(syscall.SIGINT); code != 0 {
		t.Errorf("exit code %d\n%s", code, other.said())
	}
	if got := d.read(8192, 7); string(got) != "written" {
		t.Errorf("after another server ended: %q", got)
	}
	if code := p.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.said())
	}
	b.noOverlays()
	if b.sha256(point) != before {
		t.Error("the point has changed")
	}
	b.clean(point)
}

// noOverlays fails when the store holds an overlay.
func (b *box) noOverlays() {
	b.t.Helper()
	if left, err := filepath.Glob(b.store + "/overlays/*/*"); err != nil || len(left) > 0 {
		b.t.Errorf("overlays: %q, %v", left, err)
	}
	if left, _ := os.ReadDir(b.store + "/overlays"); len(left) > 1 {
		b.t.Errorf("in the folder of overlays: %v", left)
	}
}

func TestServeKeepsAnOverlay(t *testing.T) {
	b := newBox(t)
	point := b.imports(b.disk("disk.raw", 1, mib), "web").Point
	other := b.imports(b.disk("disk2.raw", 2, mib), "web").Point
	before := b.sha256(point)
	args := func(more ...string) []string {
		return append([]string{point, "--nfs", "127.0.0.1:0", "--writable", "--overlay", b.path("over"), "--format"}, more...)
	}
	p, r := b.serve(args("raw")...)
	if r.Writes != "kept" {
		t.Errorf("writes are %s", r.Writes)
	}
	open(t, r.URL).write(100, []byte("first"))
	p.end(syscall.SIGINT)
	p, r = b.serve(args("raw")...)
	d := open(t, r.URL)
	if got := d.read(100, 5); string(got) != "first" {
		t.Errorf("the second server reads %q", got)
	}
	d.write(200, []byte("second"))
	serve := append([]string{"point", "serve"}, args("raw")...)
	b.fails(exitConflict, serve, "another process has this overlay open")
	if got := d.read(200, 6); string(got) != "second" {
		t.Errorf("after a third server was refused: %q", got)
	}
	p.end(syscall.SIGINT)
	serve[2] = other
	b.fails(exitConflict, serve, "the overlay was made over", "restore point it was made for")
	// The making of an overlay that was cut short is no overlay.
	if err := os.MkdirAll(b.path("over2/disk0.raw"), 0o700); err != nil {
		t.Fatal(err)
	}
	p, _ = b.serve(point, "--nfs", "127.0.0.1:0", "--writable", "--format", "raw", "--overlay", b.path("over2"))
	p.end(syscall.SIGINT)
	if b.sha256(point) != before {
		t.Error("the point has changed")
	}
	b.clean(point, other)
}

func TestServeAllDisksAndFormats(t *testing.T) {
	b := newBox(t)
	b.imports(b.disk("disk.raw", 1, mib), "web")
	p, r := b.serve("web@latest", "--nfs", "[::1]:0", "--allow", "::1")
	if r.Format != "qcow2" || !strings.HasPrefix(r.URL, "nfs://[::1]/") || !strings.Contains(r.URL, "/disk0.qcow2?") || len(r.Allow) != 1 {
		t.Errorf("ready: %+v", r)
	}
	p.end(syscall.SIGINT)
	p, r = b.serve("web@latest", "--nfs", "0.0.0.0:0", "--disk", "0", "--allow", "192.0.2.0/24")
	if !strings.HasPrefix(r.URL, "nfs://127.0.0.1/") {
		t.Errorf("ready: %+v", r)
	}
	u, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := nfstest.Dial(t, "127.0.0.1:"+u.Query().Get("nfsport"))
	if status, _ := c.MNT(path.Dir(u.Path)); status == 0 {
		t.Error("a client that is not on the list could mount")
	}
	if code := p.end(syscall.SIGINT); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
