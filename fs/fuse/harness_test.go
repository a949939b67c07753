package fuse

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/fstest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The test binary plays three parts: the tests, which serve; clients, which use a mount; and servers that can be killed.
// A serving process must not use its own mount, so everything that touches one is a client.
const (
	roleEnv = "HOLDFAST_FUSE_ROLE"
	uidEnv  = "HOLDFAST_FUSE_UID" // a server gives up root for this user
)

func TestMain(m *testing.M) {
	role := strings.Split(os.Getenv(roleEnv), "\x1f")
	switch role[0] {
	case "client":
		c := &client{dir: role[2], args: role[3:], in: bufio.NewReader(os.Stdin)}
		clients[role[1]](c)
		os.Exit(0)
	case "serve":
		serve(role[1])
	case "inside":
		must(os.Unsetenv(roleEnv))
	default:
		if os.Geteuid() == 0 {
			goInside()
		}
	}
	os.Exit(m.Run())
}

// goInside runs the tests once more in a mount namespace of their own. Nothing they leave then stays on the machine, and
// no namespace that another program makes meanwhile copies a mount of theirs, which would keep it alive. It returns when
// namespaces are not to be had.
func goInside() {
	runtime.LockOSThread() // the child is told when this thread ends
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleEnv+"=inside")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if cmd.Start() != nil {
		return
	}
	_ = cmd.Wait() // its exit code says it
	os.Exit(cmd.ProcessState.ExitCode())
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// client is the process that uses a mount.
type client struct {
	dir  string
	args []string
	in   *bufio.Reader
}

// clients are what a client can do, by name.
var clients = map[string]func(*client){
	"walk": walkClient, "extents": extentsClient, "reads": readsClient, "direct": directClient,
	"change": changeClient, "write": writeClient, "list": listClient, "statfs": statfsClient,
	"errnos": errnosClient, "fill": fillClient, "refused": refusedClient, "slow": slowClient,
	"interrupt": interruptClient, "hang": hangClient, "busy": busyClient, "access": accessClient,
	"stat": statClient, "elsewhere": elsewhereClient, "hello": helloClient, "bench": benchClient, "map": mapClient,
}

func (c *client) path(name string) string { return filepath.Join(c.dir, name) }

// failf ends the client; its test shows what it printed.
func (c *client) failf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "client: "+format+"\n", args...)
	os.Exit(1)
}

// must fails when an operation did.
func (c *client) must(what string, err error) {
	if err != nil {
		c.failf("%s: %v", what, err)
	}
}

// refuses fails unless an operation failed with an errno.
func (c *client) refuses(what string, err error, want syscall.Errno) {
	if e := errnoOf(err); e != want {
		c.failf("%s: %v, want %v", what, err, want)
	}
}

func errnoOf(err error) syscall.Errno {
	for err != nil {
		if e, ok := err.(syscall.Errno); ok {
			return e
		}
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return 0xffff
		}
		err = u.Unwrap()
	}
	return 0
}

// wait waits for a line of the test.
func (c *client) wait() { _, _ = c.in.ReadString('\n') }

// needFUSE skips, or fails where everything must be there.
func needFUSE(t testing.TB) {
	t.Helper()
	missing := ""
	if f, err := os.OpenFile(device, os.O_RDWR, 0); err != nil {
		missing = device + " (" + err.Error() + ")"
	} else {
		_ = f.Close()
	}
	if os.Geteuid() != 0 {
		missing = "the right to mount (root)"
	}
	switch {
	case missing == "":
	case os.Getenv("HOLDFAST_REAL_PARTS") == "1":
		t.Fatalf("this test needs %s", missing)
	default:
		t.Skipf("needs %s; `make test` runs it", missing)
	}
}

// show mounts a tree for the time of the test.
func show(t testing.TB, o Options) *Mount {
	t.Helper()
	needFUSE(t)
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	m, err := New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(); err != nil {
			t.Error(err)
		}
		select {
		case <-m.Done():
		case <-time.After(20 * time.Second):
			t.Error("the mount is still served after its test")
		}
	})
	return m
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// process is a running client or server.
type process struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err bytes.Buffer
	end context.CancelFunc
}

// start begins a client or server; it is killed after a minute, so that nothing hangs.
func start(t testing.TB, role ...string) *process {
	t.Helper()
	return startWith(t, nil, role...)
}

func startWith(t testing.TB, attr *syscall.SysProcAttr, role ...string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	p := &process{t: t, end: cancel, cmd: exec.CommandContext(ctx, os.Args[0], "-test.run=^$")}
	p.cmd.Env = append(os.Environ(), roleEnv+"="+strings.Join(role, "\x1f"),
		"GORACE=atexit_sleep_ms=0") // the race detector sleeps a second at every exit
	p.cmd.Stderr, p.cmd.SysProcAttr = &p.err, attr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill() })
	return p
}

// line reads what the process says next.
func (p *process) line() string {
	p.t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		_ = p.cmd.Wait()
		p.t.Fatalf("the process ended early: %v\n%s", err, &p.err)
	}
	return strings.TrimSpace(s)
}

// finish waits for a good end and returns the rest of the output.
func (p *process) finish() string {
	p.t.Helper()
	_ = p.in.Close()
	rest, _ := io.ReadAll(p.out)
	err := p.cmd.Wait()
	p.end()
	if err != nil {
		p.t.Fatalf("%v\n%s", err, &p.err)
	}
	return string(rest)
}

// kill ends it with SIGKILL.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	_ = p.cmd.Wait()
	p.end()
}

// use runs a client to its end.
func use(t testing.TB, dir, what string, args ...string) string {
	t.Helper()
	return start(t, append([]string{"client", what, dir}, args...)...).finish()
}

// serve is the part of a server that can be killed. It shows a small tree and prints "ready".
func serve(dir string) {
	m := fstest.NewMemory(fstest.MemoryOptions{Hook: func(op string, id fs.ID) error {
		if op == "read" && id == stuckID {
			select {} // until killed
		}
		return nil
	}})
	for i, name := range []string{"stuck", "hello"} {
		f, err := m.Put(name, []byte("hello from "+name))
		if err != nil || i == 0 && f.ID() != stuckID {
			panic(fmt.Sprint("put ", name, ": ", f, err))
		}
	}
	if uid, err := strconv.Atoi(os.Getenv(uidEnv)); err == nil {
		must(syscall.Setresuid(uid, uid, uid))
	}
	mount, err := New(context.Background(), Options{Tree: m, Dir: dir})
	if err != nil {
		fmt.Printf("%v: %v; %s\n", errs.KindOf(err), err, errs.NextStep(err))
		os.Exit(0)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	must(mount.Unmount())
	os.Exit(0)
}

const (
	stuckID = fs.ID(2)
	userID  = 1000 // any user but root and 36
)

// pattern is a file whose bytes are a function of their place, so that a client can check any read by itself.
type pattern struct {
	id    fs.ID
	size  int64
	table []byte
}

func newPattern(id fs.ID, size int64) *pattern { return &pattern{id, size, patternTable()} }

// patternTable is longer than a request and of a length that divides nothing, so that misplaced reads show.
func patternTable() []byte {
	t := make([]byte, 3<<20+8)
	for i := 0; i+8 <= len(t); i += 8 {
		binary.LittleEndian.PutUint64(t[i:], uint64(i)*0x9E3779B97F4A7C15+1)
	}
	return t
}

func patternFill(table, p []byte, off int64) {
	for n := 0; n < len(p); {
		n += copy(p[n:], table[(off+int64(n))%int64(len(table)):])
	}
}

func (f *pattern) ID() fs.ID { return f.id }

func (f *pattern) Attr(context.Context) (fs.Attr, error) {
	when := time.Unix(1_700_000_000, 42)
	return fs.Attr{
		ID: f.id, Kind: fs.KindFile, Perm: 0o440, Nlink: 1, UID: fs.OwnerID, GID: fs.OwnerID, Size: f.size,
		Used: f.size, Atime: when, Mtime: when, Ctime: when,
	}, nil
}

func (f *pattern) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if off >= f.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), f.size-off))
	patternFill(f.table, p[:n], off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// withRead is a pattern whose reads are the test's.
type withRead struct {
	*pattern
	read func(ctx context.Context, p []byte, off int64) (int, error)
}

func (f withRead) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return f.read(ctx, p, off)
}

// static puts nodes under names into one folder.
func static(nodes map[string]fs.Node) *fs.Static {
	var entries []fs.Entry
	for name, n := range nodes {
		entries = append(entries, fs.Entry{Name: name, Node: n})
	}
	slices.SortFunc(entries, func(a, b fs.Entry) int { return strings.Compare(a.Name, b.Name) })
	root := fs.NewStaticDir(fs.PathID("/"), time.Unix(1_700_000_000, 0), entries...)
	return fs.NewStatic(root, func(context.Context) (fs.Space, error) {
		return fs.Space{TotalBytes: 100 * blockSize, FreeBytes: 40 * blockSize, TotalFiles: 9, FreeFiles: 4}, nil
	})
}
