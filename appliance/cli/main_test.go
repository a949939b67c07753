package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/api/client"
	"github.com/holdfast-backup/holdfast/chunkstore"
)

// childEnv makes the test binary be the program, so that it can be killed and sent signals.
const childEnv = "HOLDFAST_CLI_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	os.Exit(m.Run())
}

// child does what cmd/holdfast does.
func child() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	usr1 := make(chan os.Signal, 1)
	signal.Notify(usr1, syscall.SIGUSR1)
	stats := make(chan struct{})
	go func() {
		for range usr1 {
			stats <- struct{}{}
		}
	}()
	return Run(ctx, World{
		Args: os.Args[1:], Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Now: time.Now, Stats: stats, Version: "test",
	})
}

const (
	passphrase = "correct horse battery"
	patience   = 30 * time.Second // how long a test waits for what must come
	mib        = 1 << 20
)

// box is a folder with a store and what a test puts beside it.
type box struct {
	t     *testing.T
	dir   string
	store string
	env   map[string]string
	now   time.Time
	node  *fakeNode // for the commands that ask one
}

// newBox makes an empty store whose key is wrapped with hardly any work.
func newBox(t *testing.T) *box {
	t.Helper()
	b := boxAt(t, t.TempDir())
	if _, err := chunkstore.Create(t.Context(), b.store, []byte(passphrase), 1, chunkstore.Options{}); err != nil {
		t.Fatal(err)
	}
	return b
}

// boxAt is a box without a store.
func boxAt(t *testing.T, dir string) *box {
	t.Helper()
	b := &box{t: t, dir: dir, store: filepath.Join(dir, "store"), now: time.Date(2026, 9, 14, 2, 0, 0, 0, time.UTC), node: theNode()}
	b.env = map[string]string{"HOLDFAST_STORE": b.store, "HOLDFAST_PASSPHRASE_FILE": b.file("passphrase", []byte(passphrase+"\n"))}
	return b
}

func (b *box) path(name string) string { return filepath.Join(b.dir, name) }

// file writes a file and returns its path.
func (b *box) file(name string, content []byte) string {
	b.t.Helper()
	if err := os.WriteFile(b.path(name), content, 0o600); err != nil {
		b.t.Fatal(err)
	}
	return b.path(name)
}

// noise is content that neither compresses nor repeats.
func noise(seed uint64, n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1}).Read(out)
	return out
}

// disk writes a raw disk: noise, then a hole, and a last byte off the grid.
func (b *box) disk(name string, seed uint64, data int) string {
	b.t.Helper()
	f := b.file(name, noise(seed, data))
	if err := os.Truncate(f, int64(data)+3*mib+513); err != nil {
		b.t.Fatal(err)
	}
	return f
}

// result is what a command did.
type result struct {
	code     int
	out, err string
}

// run runs the program in process.
func (b *box) run(args ...string) result {
	return b.runContext(b.t.Context(), args...)
}

func (b *box) runContext(ctx context.Context, args ...string) result {
	var out, note bytes.Buffer
	code := Run(ctx, World{
		Args: args, Getenv: func(k string) string { return b.env[k] }, Stdout: &out, Stderr: &note,
		Now: func() time.Time { return b.now }, Version: "test", Dial: b.dial, Zone: time.FixedZone("CEST", 2*60*60),
	})
	if all := out.String() + note.String(); strings.Contains(all, passphrase) {
		b.t.Errorf("%q shows the passphrase", args)
	}
	return result{code, out.String(), note.String()}
}

// dial is World.Dial.
func (b *box) dial(o client.Options) (api.Service, error) {
	b.node.at = o
	return b.node, b.node.fail["Dial"]
}

// ok runs a command that must succeed and returns what it printed.
func (b *box) ok(args ...string) string {
	b.t.Helper()
	r := b.run(args...)
	if r.code != 0 {
		b.t.Fatalf("%q: exit code %d\n%s", args, r.code, r.err)
	}
	return r.out
}

// json is ok with -o json: one line, which is decoded into v.
func (b *box) json(v any, args ...string) {
	b.t.Helper()
	decode(b.t, b.ok(append(args, "-o", "json")...), v)
}

func decode(t *testing.T, out string, v any) {
	t.Helper()
	if !strings.HasSuffix(out, "\n") || strings.Count(out, "\n") != 1 {
		t.Fatalf("not one line: %q", out)
	}
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
}

// fails runs a command that must fail: with a code, nothing on stdout, and two lines that hold the words.
func (b *box) fails(code int, args []string, words ...string) {
	b.t.Helper()
	b.failed(b.run(args...), code, args, words...)
}

func (b *box) failed(r result, code int, args []string, words ...string) {
	b.t.Helper()
	if r.code != code {
		b.t.Errorf("%q: exit code %d, want %d\n%s", args, r.code, code, r.err)
	}
	if r.out != "" && code != exitPartial && code != exitCorrupt {
		b.t.Errorf("%q: printed %q", args, r.out)
	}
	lines := strings.Split(strings.TrimSuffix(r.err, "\n"), "\n")
	if n := len(lines); n < 2 || !strings.HasPrefix(lines[n-2], "holdfast: ") || !strings.HasPrefix(lines[n-1], "  ") ||
		strings.TrimSpace(lines[n-1]) == "" {
		b.t.Errorf("%q: the error is not two lines:\n%s", args, r.err)
	}
	for _, w := range words {
		if !strings.Contains(r.err, w) {
			b.t.Errorf("%q: the error does not say %q:\n%s", args, w, r.err)
		}
	}
}

// imported is the document of `disk import`.
type imported struct {
	Point       string  `json:"point"`
	VM          string  `json:"vm"`
	Disk        int     `json:"disk"`
	Parent      string  `json:"parent"`
	Incremental bool    `json:"incremental"`
	Size        int64   `json:"size_bytes"`
	Data        int64   `json:"data_bytes"`
	Read        int64   `json:"read_bytes"`
	New         int64   `json:"new_bytes"`
	Known       int64   `json:"known_bytes"`
	Stored      int64   `json:"stored_bytes"`
	Ratio       float64 `json:"dedup_ratio"`
	Seconds     float64 `json:"seconds"`
}

// imports keeps a file as a point of a machine, an hour after the last one.
func (b *box) imports(file, vm string, more ...string) imported {
	b.t.Helper()
	var res imported
	b.json(&res, append([]string{"disk", "import", file, "--vm", vm}, more...)...)
	b.now = b.now.Add(time.Hour)
	return res
}

// points returns the IDs that `point list` shows, oldest first.
func (b *box) points() []string {
	b.t.Helper()
	var list []struct{ Point string }
	if err := json.Unmarshal([]byte(b.ok("point", "list", "-o", "json")), &list); err != nil {
		b.t.Fatal(err)
	}
	ids := []string{}
	for _, p := range list {
		ids = append(ids, p.Point)
	}
	return ids
}

// sha256 returns the digest of a point's first disk.
func (b *box) sha256(point string) string {
	b.t.Helper()
	var doc struct{ Disks []struct{ SHA256 string } }
	if err := json.Unmarshal([]byte(b.ok("point", "show", point, "--sha256", "-o", "json")), &doc); err != nil {
		b.t.Fatal(err)
	}
	return doc.Disks[0].SHA256
}

// process is the program as a process of its own.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	lines  chan string // of stdout; closed at its end
	mu     sync.Mutex  // guards stderr
	stderr bytes.Buffer
	ended  chan struct{}
}

// start starts the program. It is killed at the test's end if it still runs.
func (b *box) start(args ...string) *process {
	b.t.Helper()
	p := &process{t: b.t, cmd: exec.Command("/proc/self/exe", args...), lines: make(chan string, 100), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), childEnv+"=1")
	for k, v := range b.env {
		p.cmd.Env = append(p.cmd.Env, k+"="+v)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	p.cmd.Stderr = p
	if err := p.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
		close(p.lines)
		_ = p.cmd.Wait() // the state says how it ended
	}()
	b.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
	})
	return p
}

// Write implements io.Writer for stderr.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.Write(b)
}

func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// line returns the next line of stdout.
func (p *process) line() string {
	p.t.Helper()
	select {
	case s, ok := <-p.lines:
		if !ok {
			p.t.Fatalf("%q ended early:\n%s", p.cmd.Args[1:], p.said())
		}
		return s
	case <-time.After(patience):
		p.t.Fatalf("%q says nothing:\n%s", p.cmd.Args[1:], p.said())
	}
	return ""
}

// end sends a signal and returns how the program ended; -1 when a signal did it.
func (p *process) end(sig syscall.Signal) int {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
	return p.wait()
}

// wait waits for the end.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("%q does not end:\n%s", p.cmd.Args[1:], p.said())
	}
	return p.cmd.ProcessState.ExitCode()
}

// result is how the program ended, after wait.
func (p *process) result() result {
	p.t.Helper()
	return result{p.wait(), "", p.said()}
}

// until waits for a condition.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick, late := time.NewTicker(time.Millisecond), time.After(patience)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("waited in vain for " + what)
		}
	}
}

// leftovers returns what in a store is neither finished nor wanted.
func (b *box) leftovers() []string {
	b.t.Helper()
	var found []string
	err := filepath.WalkDir(b.store, func(path string, e os.DirEntry, err error) error {
		name := e.Name()
		if err == nil && (strings.HasSuffix(name, ".open") || strings.HasSuffix(name, ".tmp") || strings.Contains(name, ".bad-")) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(b.store, "lock")); err == nil && st.Size() != 0 {
		found = append(found, "a lock that names a process")
	}
	return found
}

// clean fails when something was left, or the store is not whole, or it does not hold exactly these points.
func (b *box) clean(points ...string) {
	b.t.Helper()
	if left := b.leftovers(); len(left) > 0 {
		b.t.Errorf("left behind: %q", left)
	}
	b.whole(points...)
}

// whole fails when the store is damaged or does not hold exactly these points.
func (b *box) whole(points ...string) {
	b.t.Helper()
	if r := b.run("store", "verify"); r.code != 0 {
		b.t.Errorf("store verify: exit code %d\n%s%s", r.code, r.out, r.err)
	}
	if got := b.points(); !slices.Equal(got, points) {
		b.t.Errorf("points %q, want %q", got, points)
	}
}
