package scenario_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// nodeCommands are all commands that ask a node.
var nodeCommands = []string{
	"manager add x --url e --user u@d --password-file PASSWORD", "manager list", "manager show x", "manager rm x",
	"vm list", "vm show web1", "backup run web1", "backup run web1 --wait",
	"restore instant web1", "restore instant web1 --wait",
	"session list", "session show x", "session migrate x --to y", "session release x",
	"task list", "task show x", "task watch x", "task cancel x",
}

// TestNodeDown asks a node that is not there, one that does not let us in, and one that ends meanwhile.
func TestNodeDown(t *testing.T) {
	y := newYard(t, yardOptions{address: "127.0.0.18"})
	t.Run("strangers", func(t *testing.T) { y.in(t).strangers() })
	y.add()
	y.works(nil, backup...)
	t.Run("killed meanwhile", func(t *testing.T) { y.in(t).killedMeanwhile() })
	if err := y.node.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, c := range nodeCommands {
		args := strings.Fields(strings.ReplaceAll(c, "PASSWORD", y.center.PasswordFile))
		y.fails(codeUnreachable, []string{y.node.Socket, "systemctl status holdfastd"}, args...)
		y.fails(codeUnreachable, []string{y.node.API, "refused"},
			append(args, "--node", y.node.API, "--token-file", y.node.TokenFile, "--node-ca-file",
				filepath.Join(y.dir, "node", "state", "tls", "cert.pem"))...)
	}
	// A store needs no node.
	y.works(nil, "point", "list")
	y.works(nil, "store", "verify")
	if err := y.node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	y.works(nil, backup...)
	y.clean("checkpoint")
}

// strangers ask a node that does not know them.
func (y *yard) strangers() {
	y.t.Helper()
	cert := filepath.Join(y.dir, "node", "state", "tls", "cert.pem")
	if _, err := os.Stat(cert); err != nil {
		y.t.Fatal(err)
	}
	remote := func(more ...string) []string { return append([]string{"vm", "list", "--node", y.node.API}, more...) }
	y.works(nil, remote("--token-file", y.node.TokenFile, "--node-ca-file", cert)...)
	y.fails(codeUsage, []string{"token", "--token-file"}, remote("--node-ca-file", cert)...)
	y.fails(codeDenied, []string{"token"},
		remote("--token-file", y.file("token", strings.Repeat("ab", 32)+"\n"), "--node-ca-file", cert)...)
	y.fails(codeNotFound, []string{"nowhere"},
		remote("--token-file", filepath.Join(y.dir, "nowhere"), "--node-ca-file", cert)...)
	y.fails(codeDenied, []string{"certificate", "--node-ca-file"}, remote("--token-file", y.node.TokenFile)...)
	y.fails(codeDenied, []string{"certificate"},
		remote("--token-file", y.node.TokenFile, "--node-ca-file", y.center.CAFile)...)
	y.fails(codeUnreachable, []string{"nowhere", "systemctl status holdfastd"}, "vm", "list", "--node",
		filepath.Join(y.dir, "nowhere"))
	y.fails(codeUsage, []string{"gopher", "https://"}, "vm", "list", "--node", "gopher://x")
}

// killedMeanwhile kills the node while a command waits for a backup. The command says how to go on, and what the node
// left on the engine is gone after its next start.
func (y *yard) killedMeanwhile() {
	y.t.Helper()
	y.front.on(once(finalizing, first(y.node.Kill)))
	defer y.front.on(nil)
	y.fails(codeUnreachable, []string{"systemctl status holdfastd", "goes on while the node runs",
		"holdfast task watch"}, backup...)
	y.front.on(nil)
	if err := y.node.Start(y.t.Context()); err != nil {
		y.t.Fatal(err)
	}
	y.until("the node has cleaned up", func() bool {
		return !strings.Contains(y.works(nil, "task", "list").Stdout, "running")
	})
	out := y.works(nil, "task", "list")
	if !strings.Contains(out.Stdout, "the node ended while the backup ran") {
		y.t.Error("nobody is told what became of the backup")
	}
	y.kept(1)
	y.works(nil, backup...)
}

// TestOldEngine backs up where the engine takes no snapshot of its own: there a restart of the engine ends a backup,
// and a lost checkpoint takes all others with it.
func TestOldEngine(t *testing.T) {
	y := newYard(t, yardOptions{address: "127.0.0.19", level: "4.6"})
	y.add()
	y.works(nil, backup...)
	y.meanwhile(once(opening, late(func() { y.fault(engine.FaultRestart) })), func() {
		y.fails(codeConflict, []string{"ticket", "Cleaned up: nothing"}, append(backup, "--full")...)
	})
	y.kept(1)
	y.fault(engine.FaultLostCheckpoint)
	if out := y.works(nil, backup...); !strings.Contains(out.Stderr, "everything is read") {
		t.Error("it does not say that everything is read")
	}
	y.kept(2)
	y.fault(engine.FaultInvalidCheckpoint)
	if out := y.works(nil, backup...); !strings.Contains(out.Stderr, "invalid") {
		t.Error("it does not say why everything is read")
	}
	y.kept(3)
	if out := y.works(nil, backup...); !strings.Contains(out.Stdout, "incremental") {
		t.Error("the next backup is not incremental")
	}
}
