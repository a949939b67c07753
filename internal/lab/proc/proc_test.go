package proc

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

func TestRunGivesOutputAndSaysWhyItFailed(t *testing.T) {
	out, err := Run(t.Context(), "sh", "-c", "echo fine")
	if err != nil || string(out) != "fine\n" {
		t.Fatalf("output %q, error %v", out, err)
	}
	_, err = Run(t.Context(), "sh", "-c", "echo the reason >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "the reason") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v does not say what the child said", err)
	}
	if _, err = Run(t.Context(), "no-such-program-here"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("error %v for a missing program", err)
	}
}

func TestContextEndKillsTheChild(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p, err := Start(ctx, Spec{Args: []string{"sleep", "600"}})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := p.Wait(t.Context()); !errs.Is(err, errs.Canceled) {
		t.Errorf("error %v, want a cancellation", err)
	}
	if err := syscall.Kill(p.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the child is still there: %v", err)
	}
}

func TestStopReportsHowTheChildEnded(t *testing.T) {
	polite := "trap 'exit 0' INT; echo up; while :; do sleep 0.05; done"
	deaf := "trap '' INT; echo up; while :; do sleep 0.05; done"
	for _, c := range []struct {
		script string
		grace  time.Duration
		ok     bool
	}{{polite, 20 * time.Second, true}, {deaf, 200 * time.Millisecond, false}} {
		up := make(chan struct{}, 1)
		p, err := Start(t.Context(), Spec{Args: []string{"sh", "-c", c.script}, Stdout: first(up)})
		if err != nil {
			t.Fatal(err)
		}
		<-up
		if err := p.Stop(syscall.SIGINT, c.grace); (err == nil) != c.ok {
			t.Errorf("%q: Stop = %v", c.script, err)
		}
		<-p.Done()
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var b tail
	for range 100 {
		_, _ = b.Write([]byte(strings.Repeat("x", 100)))
	}
	_, _ = b.Write([]byte("the end"))
	if s := b.String(); len(s) != tailBytes || !strings.HasSuffix(s, "the end") {
		t.Errorf("%d bytes kept, ending in %q", len(s), s[len(s)-10:])
	}
}

// first signals the channel at the first write.
type first chan struct{}

func (f first) Write(b []byte) (int, error) {
	select {
	case f <- struct{}{}:
	default:
	}
	return len(b), nil
}

func TestOutputIsOfTheChildThatWasDescribed(t *testing.T) {
	dir := t.TempDir()
	out, err := Output(t.Context(), Spec{Args: []string{"sh", "-c", `echo "$WORD"; pwd`}, Env: []string{"WORD=hello"}, Dir: dir})
	if err != nil || string(out) != "hello\n"+dir+"\n" {
		t.Errorf("%q, %v", out, err)
	}
	out, err = Output(t.Context(), Spec{Args: []string{"sh", "-c", "echo out; echo why >&2; exit 3"}})
	if err == nil || !strings.Contains(err.Error(), "why") || string(out) != "out\n" {
		t.Errorf("%q, %v", out, err)
	}
}
