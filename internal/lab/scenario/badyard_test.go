package scenario_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/datacenter"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/product"
)

// The tests in the files bad*_test.go meet the product as an administrator on a bad day does: by its built programs,
// with wrong input, an engine that misbehaves and a disk that is full. Whatever happens, the exit code is the
// documented one, what is said tells what failed, why, and what to do next, nothing is left behind, and the same thing
// works once the cause is gone. Each test has a data center and a node of its own, at an address of its own, so that they run side
// by side: most of the time is spent in waiting.

// Exit codes, as docs/cli.md lists them.
const (
	codeDone        = 0
	codeFailed      = 1
	codeUsage       = 2
	codeNotFound    = 3
	codeConflict    = 4
	codePartial     = 5
	codeDenied      = 7
	codeUnreachable = 9
	codeInterrupted = 130
)

// yard is a data center with a node beside it.
type yard struct {
	t      *testing.T
	dir    string
	center *datacenter.DataCenter
	front  *front
	node   *product.Node
	before *engine.Snapshot // what the engine had when nothing of ours was there
}

// yardOptions say how a yard differs from the usual one.
type yardOptions struct {
	address string // in 127.0.0.0/8
	write   []string
	level   string
	allow   string           // who may mount; default everybody here
	store   func(dir string) // prepares the node's folder
}

// newYard starts a data center with a VM "web1" whose disk has some data but nothing to boot from, and a node.
func newYard(t *testing.T, o yardOptions) *yard {
	t.Helper()
	if os.Getenv(realParts) != "1" {
		t.Skip("runs real programs and machines; `make test` runs it")
	}
	bin := programs(t)
	t.Parallel()
	y := &yard{t: t, dir: t.TempDir()}
	image := filepath.Join(y.dir, "disk.qcow2")
	write := []string{"-c", "write -P 7 1M 8M", "-c", "write -P 9 40M 64k"}
	if o.write != nil {
		write = o.write
	}
	y.tool("qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
	y.tool("qemu-io", append(write, image)...)
	var err error
	y.center, err = datacenter.Start(t.Context(), datacenter.Options{
		Dir: filepath.Join(y.dir, "oVirt"), Disk: image, Scale: 0.01, Address: o.address, ClusterLevel: o.level,
		Log: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(y.center.Close)
	y.front = newFront(t, y.center.Engine, o.address)
	home := filepath.Join(y.dir, "node")
	if o.store != nil {
		o.store(home)
	}
	if o.allow == "" {
		o.allow = "127.0.0.0/8"
	}
	y.node, err = product.Install(t.Context(),
		product.Options{BinDir: bin, Dir: home, Address: o.address, Allow: o.allow, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	if err := y.node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(y.node.Kill)
	before := y.center.Engine.Snapshot()
	y.before = &before
	return y
}

// tool runs a foreign program.
func (y *yard) tool(name string, args ...string) {
	y.t.Helper()
	if out, err := exec.CommandContext(y.t.Context(), name, args...).CombinedOutput(); err != nil {
		y.t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// file writes a file and returns its name.
func (y *yard) file(name, content string) string {
	y.t.Helper()
	name = filepath.Join(y.dir, name)
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		y.t.Fatal(err)
	}
	return name
}

// ask runs a command of the product.
func (y *yard) ask(args ...string) product.Outcome {
	y.t.Helper()
	out, err := y.node.Ask(y.t.Context(), args...)
	if err != nil {
		y.t.Fatal(err)
	}
	y.t.Logf("$ holdfast %s\n%s%s[%d]", strings.Join(args, " "), out.Stdout, out.Stderr, out.Code)
	return out
}

// works runs a command that must work, and decodes what it prints if result is not nil.
func (y *yard) works(result any, args ...string) product.Outcome {
	y.t.Helper()
	if result != nil {
		args = append(args, "-o", "json")
	}
	out := y.ask(args...)
	if out.Code != codeDone {
		y.t.Fatalf("holdfast %s ends with %d:\n%s", strings.Join(args, " "), out.Code, out.Stderr)
	}
	if result != nil {
		if err := json.Unmarshal([]byte(out.Stdout), result); err != nil {
			y.t.Fatalf("holdfast %s prints %q: %v", strings.Join(args, " "), out.Stdout, err)
		}
	}
	return out
}

// fails runs a command that must fail with a code, in two lines at the end that say what failed, why, and what to do
// next; each of says must be in what is said.
func (y *yard) fails(code int, says []string, args ...string) product.Outcome {
	y.t.Helper()
	out := y.ask(args...)
	y.failed(out, code, says, "holdfast "+strings.Join(args, " "))
	return out
}

func (y *yard) failed(out product.Outcome, code int, says []string, what string) {
	y.t.Helper()
	if out.Code != code {
		y.t.Errorf("%s ends with %d, want %d:\n%s", what, out.Code, code, out.Stderr)
	}
	lines := strings.Split(strings.TrimRight(out.Stderr, "\n"), "\n")
	n := len(lines)
	if n < 2 || !strings.HasPrefix(lines[n-2], "holdfast: ") || !strings.HasPrefix(lines[n-1], "  ") {
		y.t.Errorf("%s does not end in the two lines of an error:\n%s", what, out.Stderr)
	}
	for _, s := range says {
		if !strings.Contains(out.Stderr, s) {
			y.t.Errorf("%s does not say %q:\n%s", what, s, out.Stderr)
		}
	}
	if strings.Contains(out.Stderr, "fault of Holdfast") {
		y.t.Errorf("%s takes the blame for what others did:\n%s", what, out.Stderr)
	}
}

// add makes the engine known under the usual name, by way of the front.
func (y *yard) add() {
	y.t.Helper()
	y.works(nil, y.adding("lab")...)
}

// adding is the command that adds the engine under a name, and more if you like.
func (y *yard) adding(name string, more ...string) []string {
	return append([]string{"manager", "add", name, "--url", y.front.url, "--user", datacenter.User, "--password-file",
		y.center.PasswordFile,
		"--ca-file", y.center.CAFile}, more...)
}

// clean sees that nothing of ours is on the engine but kinds of objects that are named.
func (y *yard) clean(but ...string) {
	y.t.Helper()
	left := slices.DeleteFunc(y.center.Engine.Leftovers(*y.before), func(line string) bool {
		kind, _, _ := strings.Cut(line, " ")
		return slices.Contains(but, kind)
	})
	if len(left) > 0 {
		y.t.Errorf("left on the engine: %s", strings.Join(left, "; "))
	}
}

// points counts the store's points, after having read all of it. One checkpoint is on the engine if there is one.
func (y *yard) points() int {
	y.t.Helper()
	var list []struct{}
	y.works(&list, "point", "list")
	y.works(nil, "store", "verify")
	return len(list)
}

// until waits for something that nobody tells.
func (y *yard) until(what string, is func() bool) {
	y.t.Helper()
	late := time.After(time.Minute)
	for !is() {
		select {
		case <-late:
			y.t.Fatal("waited a minute for: ", what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// fault makes something go wrong on the engine.
func (y *yard) fault(name string) {
	y.t.Helper()
	if err := y.center.Engine.Fault(name); err != nil {
		y.t.Fatal(err)
	}
}
