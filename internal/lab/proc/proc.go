// Package proc starts the child processes of the lab and makes sure that none outlives it.
//
// A Process is killed when the context it was started with ends, and by the kernel when this process dies in any
// other way (also by kill -9). Its goroutine ends when the process has been reaped, so a caller that waits for Done
// leaves nothing behind. Everything may be called concurrently.
//
// Tests start real, tiny programs.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// tailBytes is how much of a child's standard error is kept for messages.
const tailBytes = 4 << 10

// Spec says what to start.
type Spec struct {
	Args   []string  // program and arguments; the program is looked up in PATH
	Env    []string  // added to this process's environment
	Dir    string    // working folder; empty for ours
	Stdin  io.Reader // nil: nothing to read
	Stdout io.Writer // nil: thrown away
	Stderr io.Writer // sees what the child says; its end is kept for error messages in any case
}

// Process is a started child.
type Process struct {
	name string
	cmd  *exec.Cmd
	tail tail
	done chan struct{}
	err  error // set before done is closed
}

// Start starts a child that is killed when ctx ends.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	name := spec.Args[0]
	p := &Process{name: name, done: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, name, spec.Args[1:]...)
	p.cmd.Env = append(os.Environ(), spec.Env...)
	p.cmd.Dir, p.cmd.Stdin, p.cmd.Stdout = spec.Dir, spec.Stdin, spec.Stdout
	p.cmd.Stderr = &p.tail
	if spec.Stderr != nil {
		p.cmd.Stderr = io.MultiWriter(&p.tail, spec.Stderr)
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	// A grandchild that keeps our pipe open must not keep us waiting.
	p.cmd.WaitDelay = 5 * time.Second
	started := make(chan error, 1)
	go func() {
		// The death signal is bound to the thread that forked, not to the process: the thread is kept until the end.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.explain(ctx, p.cmd.Wait())
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, errs.Wrap("start", name, err)
	}
	return p, nil
}

// PID returns the child's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the child has ended and was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal; one that comes too late is no error.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errs.Wrap("signal", p.name, err)
	}
	return nil
}

// Wait waits for the end: nil when the child ended with exit code 0, else an error with the end of what it said.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return errs.Wrap("wait for", p.name, ctx.Err())
	}
}

// Stop sends sig and waits; a child that is still there after grace is killed, which is an error.
func (p *Process) Stop(sig syscall.Signal, grace time.Duration) error {
	if err := p.Signal(sig); err != nil {
		return err
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.err
	case <-timer.C:
		p.Kill()
		return errs.Text("stop", p.name, errs.Bug, fmt.Sprintf("it did not end within %s of signal %q", grace, sig))
	}
}

// Kill ends the child at once and waits until it is reaped.
func (p *Process) Kill() {
	_ = p.Signal(syscall.SIGKILL) // the only failure is that there is nothing left to kill
	<-p.done
}

// ExitCode returns the exit code once Done is closed; -1 for a child that a signal ended.
func (p *Process) ExitCode() int {
	<-p.done
	return p.cmd.ProcessState.ExitCode()
}

// Tail returns the end of what the child wrote to its standard error.
func (p *Process) Tail() string { return p.tail.String() }

func (p *Process) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	kind := errs.Bug
	if ctx.Err() != nil {
		kind = errs.Canceled
	}
	if said := strings.TrimSpace(p.tail.String()); said != "" {
		err = fmt.Errorf("%w; it said: %s", err, said)
	}
	return errs.New("run", p.name, kind, err)
}

// Run starts a child, waits for it and returns its standard output.
func Run(ctx context.Context, args ...string) ([]byte, error) {
	return Output(ctx, Spec{Args: args})
}

// Output does what Run does for a child that needs more than arguments. Its standard output goes nowhere else.
func Output(ctx context.Context, spec Spec) ([]byte, error) {
	var out bytes.Buffer
	spec.Stdout = &out
	p, err := Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	<-p.Done()
	return out.Bytes(), p.err
}

// tail is a writer that remembers the end of what went through it.
type tail struct {
	mu  sync.Mutex // guards buf
	buf []byte
}

// Write implements io.Writer and never fails.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if n := len(t.buf) - tailBytes; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	return len(b), nil
}

// String returns what is remembered.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
