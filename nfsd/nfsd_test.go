package nfsd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	client "github.com/willscott/go-nfs-client/nfs"
	clientrpc "github.com/willscott/go-nfs-client/nfs/rpc"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/fstest"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/nfsd"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

var testKey = []byte("a key that is only for these tests")

// running is a server under test.
type running struct {
	*nfsd.Server
	addr string
	done chan error
	stop context.CancelFunc
}

// start serves trees under /a, /b, ... with export IDs from 1 on.
func start(t testing.TB, o nfsd.Options, trees ...fs.Tree) *running {
	t.Helper()
	return startOn(t, "127.0.0.1:0", o, trees...)
}

func startOn(t testing.TB, addr string, o nfsd.Options, trees ...fs.Tree) *running {
	t.Helper()
	s, err := nfsd.New(o)
	if err != nil {
		t.Fatal(err)
	}
	for i, tree := range trees {
		e := nfsd.Export{Path: fmt.Sprintf("/%c", 'a'+i), ID: uint32(i + 1), Tree: tree, Allow: loopback}
		if err := s.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	return serveOn(t, s, addr)
}

// serveOn serves s until the test's end.
func serveOn(t testing.TB, s *nfsd.Server, addr string) *running {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	r := &running{Server: s, addr: ln.Addr().String(), done: make(chan error, 1), stop: stop}
	go func() { r.done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() { r.end(t) })
	return r
}

// end stops the server; it may be called more than once.
func (r *running) end(t testing.TB) {
	r.stop()
	err, ok := <-r.done
	if ok && err != nil {
		t.Errorf("Serve: %v", err)
	}
	if ok {
		close(r.done)
	}
}

// mountAt mounts a path with go-nfs-client.
func mountAt(t testing.TB, addr, path string) (*client.Target, error) {
	t.Helper()
	c, err := clientrpc.DialTCP("tcp", addr, false)
	for errors.Is(err, syscall.EADDRINUSE) { // this client throws dice for its own port
		c, err = clientrpc.DialTCP("tcp", addr, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	m := &client.Mount{Client: c}
	return m.Mount(path, clientrpc.NewAuthUnix("host", 36, 36).Auth())
}

func mustMount(t testing.TB, addr, path string) *client.Target {
	t.Helper()
	target, err := mountAt(t, addr, path)
	if err != nil {
		t.Fatalf("mount %s: %v", path, err)
	}
	return target
}

func put(t testing.TB, m *fstest.Memory, name string, data []byte) fs.File {
	t.Helper()
	f, err := m.Put(name, data)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16) ^ seed
	}
	return p
}

func TestClientReads(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	want := pattern(3<<20+340, 7)
	put(t, m, "images/disk", want)
	for i := range 700 {
		put(t, m, fmt.Sprintf("many/%03d-%s", i, "a name of some length that fills the listing"), nil)
	}
	s := start(t, nfsd.Options{}, m)
	target := mustMount(t, s.addr, "/a")

	f, err := target.Open("/images/disk")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes, %v; want %d equal ones", len(got), err, len(want))
	}
	attr, err := target.Getattr("/images/disk")
	if err != nil || attr.Filesize != uint64(len(want)) || attr.FSID == 0 {
		t.Fatalf("attributes %+v, %v", attr, err)
	}
	entries, err := target.ReadDirPlus("/many")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, e := range entries {
		if seen[e.FileName] {
			t.Fatalf("%q is listed twice", e.FileName)
		}
		seen[e.FileName] = true
	}
	if len(seen) != 700 && len(seen) != 702 { // the client may leave out "." and ".."
		t.Fatalf("listed %d names, want 700", len(seen))
	}
	if _, _, err := target.Lookup("/none"); !os.IsNotExist(err) {
		t.Fatalf("lookup of a missing name: %v", err)
	}
	if n := s.Stats().BytesRead; n != uint64(len(want)) {
		t.Errorf("stats say %d bytes read, want %d", n, len(want))
	}
}

func TestClientMountsFolderInExport(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	put(t, m, "x/y/file", []byte("content"))
	var mu sync.Mutex
	var events []string
	note := func(s string) { mu.Lock(); events = append(events, s); mu.Unlock() }
	s := start(t, nfsd.Options{Events: nfsd.Events{
		Mounted: func(_ netip.Addr, p string) { note("mounted " + p) },
	}}, m)
	for path, want := range map[string]string{
		"/a/x/y": "", "/a/x/y/": "", "//a//x/../x/y": "",
		"/a/x/y/file": "MNT3ERR_NOTDIR", "/a/none": "MNT3ERR_NOENT", "/": "MNT3ERR_NOENT", "/ab": "MNT3ERR_NOENT",
		"": "MNT3ERR_NOENT", "a": "MNT3ERR_NOENT", "/a/" + strings.Repeat("n", 300): "MNT3ERR_NAMETOOLONG",
	} {
		target, err := mountAt(t, s.addr, path)
		if want != "" {
			if err == nil || err.Error() != want {
				t.Errorf("mount %q: %v, want %s", path, err, want)
			}
			continue
		}
		if err != nil {
			t.Errorf("mount %q: %v", path, err)
			continue
		}
		if _, _, err := target.Lookup("/file"); err != nil {
			t.Errorf("lookup below %q: %v", path, err)
		}
	}
	if len(events) != 3 {
		t.Errorf("events %q, want three mounts", events)
	}
}

func TestClientWrites(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	s := start(t, nfsd.Options{}, m)
	target := mustMount(t, s.addr, "/a")
	if _, err := target.Mkdir("/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := target.OpenFile("/dir/file", 0o644)
	if err != nil {
		t.Fatal(err)
	}
	want := pattern(2<<20+7, 3)
	if n, err := io.Copy(f, bytes.NewReader(want)); err != nil || n != int64(len(want)) {
		t.Fatalf("wrote %d: %v", n, err)
	}
	if err := f.Close(); err != nil { // commits
		t.Fatal(err)
	}
	m.Crash()
	if err := target.Rename("/dir/file", "/dir/renamed"); err != nil {
		t.Fatal(err)
	}
	g, err := target.Open("/dir/renamed")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(g); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("after a crash: %d bytes, %v", len(got), err)
	}
	if err := target.RmDir("/dir"); !client.IsNotEmptyError(err) {
		t.Fatalf("removing a full folder: %v", err)
	}
	if err := target.Symlink("/dir/renamed", "/dir/link"); err != nil {
		t.Logf("symlink: %v", err)
	}
	if err := target.RemoveAll("/dir"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := target.Lookup("/dir"); !os.IsNotExist(err) {
		t.Fatalf("removed folder: %v", err)
	}
}

func TestHandlesOutliveTheServer(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	put(t, m, "file", []byte("content"))
	first := start(t, nfsd.Options{Key: testKey}, m)
	_, h, err := mustMount(t, first.addr, "/a").Lookup("/file")
	if err != nil {
		t.Fatal(err)
	}
	first.end(t)
	second := start(t, nfsd.Options{Key: testKey}, m)
	if a, err := mustMount(t, second.addr, "/a").GetAttr(h); err != nil || a.Filesize != 7 {
		t.Errorf("same key: %+v, %v", a, err)
	}
	other := start(t, nfsd.Options{}, m)
	if _, err := mustMount(t, other.addr, "/a").GetAttr(h); err == nil {
		t.Error("another key understood the handle")
	}
	if err := second.Remove("/a"); err != nil {
		t.Fatal(err)
	}
	if _, err := mountAt(t, second.addr, "/a"); err == nil {
		t.Error("a removed export was mounted")
	}
}

func TestNewAndAddRefuse(t *testing.T) {
	if _, err := nfsd.New(nfsd.Options{Key: []byte("short")}); !errs.Is(err, errs.Invalid) {
		t.Errorf("short key: %v", err)
	}
	s, err := nfsd.New(nfsd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := fstest.NewMemory(fstest.MemoryOptions{})
	ok := nfsd.Export{Path: "/a", ID: 1, Tree: m, Allow: loopback}
	if err := s.Add(ok); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*nfsd.Export)
		want   errs.Kind
	}{
		"relative":  {func(e *nfsd.Export) { e.Path = "b" }, errs.Invalid},
		"unclean":   {func(e *nfsd.Export) { e.Path = "/b/" }, errs.Invalid},
		"no tree":   {func(e *nfsd.Export) { e.Path, e.Tree = "/b", nil }, errs.Invalid},
		"same path": {func(e *nfsd.Export) { e.ID = 2 }, errs.Exists},
		"same ID":   {func(e *nfsd.Export) { e.Path = "/b" }, errs.Exists},
		"no net":    {func(e *nfsd.Export) { e.Path, e.ID, e.Allow = "/b", 2, []netip.Prefix{{}} }, errs.Invalid},
	} {
		e := ok
		c.change(&e)
		if err := s.Add(e); !errs.Is(err, c.want) {
			t.Errorf("%s: %v, want kind %v", name, err, c.want)
		}
	}
	if err := s.Remove("/none"); !errs.Is(err, errs.NotFound) {
		t.Errorf("remove: %v", err)
	}
}

func TestShutdownAnswersWhatRuns(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	m := fstest.NewMemory(fstest.MemoryOptions{})
	put(t, m, "file", []byte("content"))
	var once sync.Once
	m.SetHook(func(op string, _ fs.ID) error {
		if op == "read" {
			once.Do(func() { close(entered) })
			<-release
		}
		return nil
	})
	s := start(t, nfsd.Options{}, m)
	target := mustMount(t, s.addr, "/a")
	f, err := target.Open("/file")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		p := make([]byte, 7)
		n, err := f.Read(p)
		if err == nil && string(p[:n]) != "content" {
			err = errors.New("wrong content")
		}
		got <- err
	}()
	<-entered
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(t.Context()) }()
	for { // the listener is closed before anything else waits
		c, err := net.DialTimeout("tcp", s.addr, time.Second)
		if err != nil {
			break
		}
		_ = c.Close()
	}
	close(release)
	if err := <-got; err != nil && err != io.EOF {
		t.Errorf("the running read: %v", err)
	}
	if err := <-down; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-s.done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	close(s.done)
}
