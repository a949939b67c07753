package qemu

import (
	"bufio"
	"context"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// openConsole returns a console whose other end is the test's.
func openConsole(t *testing.T) (*Console, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	c := newConsole(ours)
	t.Cleanup(func() { _ = theirs.Close(); c.close() })
	return c, theirs
}

func TestWaitTakesTheTextPieceByPiece(t *testing.T) {
	c, guest := openConsole(t)
	go func() {
		for _, piece := range []string{"boot\r\nhold", "fast-l", "ab# rest", " and more$"} {
			_, _ = guest.Write([]byte(piece))
		}
	}()
	before, err := c.Wait(t.Context(), "holdfast-lab# ")
	if err != nil || before != "boot\n" {
		t.Errorf("before %q, error %v", before, err)
	}
	if before, err = c.Wait(t.Context(), "$"); err != nil || before != "rest and more" {
		t.Errorf("before %q, error %v", before, err)
	}
	if got := c.Transcript(); got != "boot\nholdfast-lab# rest and more$" {
		t.Errorf("transcript %q", got)
	}
}

func TestAWaitInVainShowsTheConsole(t *testing.T) {
	c, guest := openConsole(t)
	_, _ = guest.Write([]byte("Kernel panic - not syncing"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Wait(ctx, "login"); !errs.Is(err, errs.Canceled) || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("error %v", err)
	}
	_ = guest.Close()
	if _, err := c.Wait(t.Context(), "login"); !errs.Is(err, errs.Stale) {
		t.Errorf("error %v after the machine's end", err)
	}
}

// TestRunThroughARealShell puts a real shell behind the console instead of a guest: it has no terminal, so nothing is
// echoed, as after Login.
func TestRunThroughARealShell(t *testing.T) {
	c, guest := openConsole(t)
	shell := exec.Command("bash", "--noediting", "--noprofile", "--norc")
	shell.Stdin, shell.Stdout, shell.Stderr = guest, guest, guest
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Send("exit\n"); _ = guest.Close(); _ = shell.Wait() }()
	c.shell = true
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, x := range []struct {
		command, output string
		code            int
	}{
		{"true", "", 0},
		{"echo hello", "hello\n", 0},
		{"printf 'no newline'", "no newline", 0},
		{"echo out; echo err >&2; false", "out\nerr\n", 1},
		{"X='it'\\''s kept'; cd /", "", 0},
		{`echo "$X $PWD"`, "it's kept /\n", 0},
		{"(exit 7)", "", 7},
		{"cat", "", 0}, // nothing to read, rather than the next command
		{"echo first\necho second", "first\nsecond\n", 0},
		{"echo '<holdfast-9-end:0>'", "<holdfast-9-end:0>\n", 0}, // not a mark: no line before it
	} {
		out, err := c.Run(ctx, x.command)
		code, failed := ExitCode(err)
		if out != x.output || code != x.code || failed != (x.code != 0) {
			t.Errorf("%q: output %q, error %v; want %q and code %d", x.command, out, err, x.output, x.code)
		}
	}
	if out, err := c.Run(ctx, "if then (("); err == nil {
		t.Errorf("a syntax error passed: %q", out)
	}
	if out, err := c.Run(ctx, "echo still here"); err != nil || out != "still here\n" {
		t.Errorf("after a syntax error: output %q, error %v", out, err)
	}
	if _, err := c.Run(ctx, strings.Repeat("x", maxLine)); !errs.Is(err, errs.Invalid) {
		t.Errorf("error %v for a line no terminal takes", err)
	}
}

func TestLoginSetsTheShellUp(t *testing.T) {
	c, guest := openConsole(t)
	go func() {
		_, _ = guest.Write([]byte("login: root (automatic login)\r\nholdfast-lab# "))
		lines := bufio.NewScanner(guest)
		for lines.Scan() {
			_, _ = guest.Write([]byte(lines.Text() + "\r\n")) // the echo that is still on
			if strings.HasPrefix(lines.Text(), "printf") {
				_, _ = guest.Write([]byte("\n<holdfast-0-begin>\n\n<holdfast-0-end:0>\n"))
			}
		}
	}()
	if _, err := c.Run(t.Context(), "true"); !errs.Is(err, errs.Bug) {
		t.Errorf("error %v before the login", err)
	}
	if err := c.Login(t.Context(), "holdfast-lab# "); err != nil {
		t.Fatal(err)
	}
}

func TestACommandThatIsGivenUpIsInterrupted(t *testing.T) {
	c, guest := openConsole(t)
	c.shell = true
	ctx, cancel := context.WithCancel(t.Context())
	typed := make(chan string, 1)
	go func() {
		in := bufio.NewReader(guest)
		_, _ = in.ReadString('\n')
		_, _ = guest.Write([]byte("\n<holdfast-0-begin>\nworking"))
		cancel()
		b, _ := in.ReadByte()
		typed <- string(b)
		_, _ = guest.Write([]byte("\n<holdfast-0-begin>\nstale\n"))
		_, _ = in.ReadString('\n')
		_, _ = guest.Write([]byte("\n<holdfast-1-begin>\nnew\n\n<holdfast-1-end:0>\n"))
	}()
	if _, err := c.Run(ctx, "sleep 1000"); !errs.Is(err, errs.Canceled) {
		t.Errorf("error %v", err)
	}
	if got := <-typed; got != "\x03" {
		t.Errorf("typed %q, want Ctrl-C", got)
	}
	if out, err := c.Run(t.Context(), "echo new"); err != nil || out != "new\n" {
		t.Errorf("the next command: output %q, error %v", out, err)
	}
}
