package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	// maxTranscript bounds what is kept of a console. Beyond it the oldest half goes.
	maxTranscript = 4 << 20
	// maxLine is the longest line a Linux terminal takes in canonical mode: 4095 bytes and the newline.
	maxLine = 4095
	// shownTail is how much of the transcript an error shows.
	shownTail = 1500
)

// Console is a machine's serial line. One goroutine reads it; Wait and Run are for one caller at a time.
type Console struct {
	conn net.Conn
	done chan struct{}

	mu      sync.Mutex
	text    []byte        // everything read, without carriage returns
	from    int           // what lies before it was taken by an earlier wait
	changed chan struct{} // closed and replaced whenever text grows or the line ends
	ended   bool

	shell bool // Login has set the shell up
	next  int  // number of the next command
}

// ExitError is the outcome of a command that ran in the guest and failed there.
type ExitError struct {
	Command string
	Code    int
	Output  string
}

// Error implements error.
func (e *ExitError) Error() string {
	return fmt.Sprintf("exit status %d in the guest, output %q", e.Code, e.Output)
}

func newConsole(conn net.Conn) *Console {
	c := &Console{conn: conn, done: make(chan struct{}), changed: make(chan struct{})}
	go c.read()
	return c
}

func (c *Console) read() {
	defer close(c.done)
	buf := make([]byte, 4096)
	for {
		n, err := c.conn.Read(buf)
		c.mu.Lock()
		c.text = append(c.text, bytes.ReplaceAll(buf[:n], []byte("\r"), nil)...)
		if len(c.text) > maxTranscript {
			cut := len(c.text) / 2
			c.text = append(c.text[:0], c.text[cut:]...)
			c.from = max(0, c.from-cut)
		}
		c.ended = err != nil
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *Console) close() {
	_ = c.conn.Close() // the guest is gone already
	<-c.done
}

// Transcript returns what the guest has written so far.
func (c *Console) Transcript() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

// tail is the end of the transcript, for messages.
func (c *Console) tail() string {
	t := c.Transcript()
	return t[max(0, len(t)-shownTail):]
}

// Wait waits until the guest has written text, and returns what came before it. The next wait looks behind it.
func (c *Console) Wait(ctx context.Context, text string) (string, error) {
	before, err := c.take(ctx, func(b []byte) (int, int) {
		i := bytes.Index(b, []byte(text))
		return i, i + len(text)
	})
	if err != nil {
		return "", errs.New("wait on the console for", strconv.Quote(text), errs.KindOf(err),
			fmt.Errorf("%w; the console ends with:\n%s", err, c.tail()))
	}
	return before, nil
}

// take waits until find answers a place in the text not yet taken, returns what lies before it and goes on at end.
func (c *Console) take(ctx context.Context, find func([]byte) (begin, end int)) (string, error) {
	for {
		c.mu.Lock()
		rest, changed, ended := c.text[c.from:], c.changed, c.ended
		begin, end := find(rest)
		if begin >= 0 {
			before := string(rest[:begin])
			c.from += end
			c.mu.Unlock()
			return before, nil
		}
		c.mu.Unlock()
		if ended {
			return "", errs.Text("read", "console", errs.Stale, "the machine has ended")
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// Send types text.
func (c *Console) Send(text string) error {
	if _, err := c.conn.Write([]byte(text)); err != nil {
		return errs.New("write to", "console", errs.Stale, err)
	}
	return nil
}

// Login waits for the prompt of a root shell and makes the shell fit for Run: no echo, no line editing, no prompt,
// and a kernel that keeps its messages to itself.
func (c *Console) Login(ctx context.Context, prompt string) error {
	if _, err := c.Wait(ctx, prompt); err != nil {
		return err
	}
	setup := "stty -echo -onlcr; dmesg -n 1; PS1= PS2= exec bash --noediting --noprofile --norc\n"
	if err := c.Send(setup); err != nil {
		return err
	}
	c.shell = true
	if _, err := c.Run(ctx, "true"); err != nil {
		c.shell = false
		return err
	}
	return nil
}

// Run runs a command in the guest's shell and returns what it wrote to standard output and standard error. The shell
// stays the same: folder, variables and background jobs live on. A command that fails gives an error whose cause is
// an *ExitError, together with its output.
//
// The command is quoted and evaluated, so that even a syntax error ends where it began; its output lies between two
// marks that carry a number and are put together in the guest, so that no echo can be mistaken for them.
func (c *Console) Run(ctx context.Context, command string) (string, error) {
	if !c.shell {
		return "", errs.Text("run in the guest", command, errs.Bug, "nobody has logged in")
	}
	line, begin, end := frame(command, c.next)
	c.next++
	for _, l := range strings.Split(line, "\n") {
		if len(l) >= maxLine {
			return "", errs.Text("run in the guest", "", errs.Invalid, "a line of the command is longer than a terminal takes")
		}
	}
	if err := c.Send(line); err != nil {
		return "", err
	}
	if _, err := c.Wait(ctx, begin); err != nil {
		c.interrupt(ctx)
		return "", errs.Wrap("run in the guest", command, err)
	}
	code := 0
	out, err := c.take(ctx, func(b []byte) (i, after int) {
		i, after, code = findEnd(b, end)
		return i, after
	})
	if err != nil {
		c.interrupt(ctx)
		return "", errs.New("run in the guest", command, errs.KindOf(err),
			fmt.Errorf("%w; the console ends with:\n%s", err, c.tail()))
	}
	if code != 0 {
		return out, errs.New("run in the guest", command, errs.Invalid, &ExitError{command, code, out})
	}
	return out, nil
}

// interrupt types Ctrl-C if a command was given up: the shell drops it and what is left of the line, so that the next
// command does not wait behind it.
func (c *Console) interrupt(ctx context.Context) {
	if ctx.Err() != nil {
		_ = c.Send("\x03") // a console that takes nothing any more gives its error to the next command
	}
}

// frame returns the line to type and the marks that will come back around the output.
func frame(command string, number int) (line, begin, end string) {
	begin = fmt.Sprintf("\n<holdfast-%d-begin>\n", number)
	end = fmt.Sprintf("\n<holdfast-%d-end:", number)
	line = fmt.Sprintf("printf '\\n<hold%%s-%d-begin>\\n' fast; eval %s </dev/null 2>&1; printf '\\n<hold%%s-%d-end:%%d>\\n' fast $?\n",
		number, quote(command), number)
	return line, begin, end
}

// findEnd looks for a whole end mark; begin is -1 when it is not there yet.
func findEnd(b []byte, mark string) (begin, after, code int) {
	i := bytes.Index(b, []byte(mark))
	if i < 0 {
		return -1, 0, 0
	}
	rest := b[i+len(mark):]
	n := bytes.Index(rest, []byte(">\n"))
	if n < 0 {
		return -1, 0, 0
	}
	code, err := strconv.Atoi(string(rest[:n]))
	if err != nil {
		code = -1
	}
	return i, i + len(mark) + n + len(">\n"), code
}

// quote makes one word of s for a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// ExitCode returns the exit code of a command that failed in the guest, and false for any other error.
func ExitCode(err error) (int, bool) {
	var e *ExitError
	if errors.As(err, &e) {
		return e.Code, true
	}
	return 0, false
}
