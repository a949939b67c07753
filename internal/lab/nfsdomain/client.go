package nfsdomain

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

//go:embed helper.py
var helper string

// again is how long a client waits when a server asks it to come back later. Linux waits 5 s.
const again = 500 * time.Millisecond

// credentials are those of a process on a host.
type credentials struct {
	name   string // what the helper calls them
	uid    int
	gid    int
	groups []int
}

// Who speaks to an export: vdsm.spec gives the numbers, and libvirt starts qemu in vdsm's group too.
var (
	asVDSM = credentials{"vdsm", 36, 36, []int{36}}
	asQemu = credentials{"qemu", 107, 107, []int{107, 36}}
)

// client is an NFS client for one export: a child process that is started when it is needed.
type client struct {
	where   where
	timeout time.Duration

	turn    chan struct{} // holds one token; whoever has it may use what follows
	process *proc.Process // nil when there is none
	stdin   *os.File
	stdout  *os.File
	answers *bufio.Reader

	mu     sync.Mutex         // guards what follows; never held during a request
	giveUp context.CancelFunc // ends the request that runs; nil when none does
	closed bool
}

func newClient(w where, timeout time.Duration) *client {
	c := &client{where: w, timeout: timeout, turn: make(chan struct{}, 1)}
	c.turn <- struct{}{}
	return c
}

// request is what the helper is asked; its member data, if any, is sent behind it.
type request map[string]any

// call does one request as vdsm and reads the answer into answer, which may be nil; for a *[]byte it takes the bytes that
// follow. Errors carry a syscall.Errno when the server or libnfs gave one.
func (c *client) call(ctx context.Context, r request, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	select {
	case <-c.turn:
	case <-ctx.Done():
		return c.late(r, ctx.Err())
	}
	defer func() { c.turn <- struct{}{} }()
	if !c.begin(cancel) {
		return errs.Text("use the export", c.where.String(), errs.Stale, "it was disconnected")
	}
	defer c.begin(nil)
	if err := c.mounted(ctx); err != nil {
		return err
	}
	for {
		err := c.exchange(ctx, r, answer)
		if !errors.Is(err, syscall.EAGAIN) {
			return err
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return err
		}
	}
}

// begin notes how the request that runs is ended, nil for none; false says that the client is closed.
func (c *client) begin(giveUp context.CancelFunc) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.giveUp = giveUp
	return !c.closed
}

// mounted starts the child unless it runs, and mounts the export.
func (c *client) mounted(ctx context.Context) error {
	if c.process != nil {
		return nil
	}
	if err := c.start(ctx); err != nil {
		return err
	}
	for _, who := range []credentials{asVDSM, asQemu} {
		r := request{"op": "mount", "as": who.name, "server": c.where.host, "path": c.where.path, "url": c.where.url(),
			"uid": who.uid, "gid": who.gid, "groups": who.groups}
		if err := c.exchange(ctx, r, nil); err != nil {
			c.end()
			return errs.New("MountError", c.where.String(), errs.KindOf(err), err)
		}
	}
	return nil
}

func (c *client) start(ctx context.Context) error {
	in, stdin, err := os.Pipe()
	if err != nil {
		return errs.Wrap("start", "an NFS client", err)
	}
	defer in.Close()
	stdout, out, err := os.Pipe()
	if err != nil {
		return errs.Wrap("start", "an NFS client", errors.Join(err, stdin.Close()))
	}
	defer out.Close()
	// The child lives until it is told to end, not until this request ends.
	c.process, err = proc.Start(context.WithoutCancel(ctx), proc.Spec{
		Args: []string{"/usr/bin/python3", "-I", "-c", helper}, Stdin: in, Stdout: out,
	})
	if err != nil {
		return errors.Join(err, stdin.Close(), stdout.Close())
	}
	c.stdin, c.stdout, c.answers = stdin, stdout, bufio.NewReader(stdout)
	return nil
}

// exchange writes a request and reads its answer. A child that did not answer in time is killed.
func (c *client) exchange(ctx context.Context, r request, answer any) error {
	message, err := r.encode()
	if err != nil {
		return errs.Wrap("ask", "the NFS client", err)
	}
	stop := endWith(ctx, c.stdin, c.stdout)
	defer stop()
	var line, data []byte
	if _, err = c.stdin.Write(message); err == nil {
		line, data, err = c.answer()
	}
	if err != nil {
		said := c.process.Tail()
		c.end()
		if ctx.Err() != nil {
			return c.late(r, ctx.Err())
		}
		return errs.New("ask", "the NFS client", errs.Bug, fmt.Errorf("%w; it said: %s", err, said))
	}
	return decode(r, line, data, answer)
}

func (r request) encode() ([]byte, error) {
	line := maps.Clone(r)
	data, _ := line["data"].([]byte)
	if delete(line, "data"); data != nil {
		line["bytes"] = len(data)
	}
	message, err := json.Marshal(line)
	return append(append(message, '\n'), data...), err
}

// answer reads an answer, and the bytes that follow it.
func (c *client) answer() (line, data []byte, err error) {
	if line, err = c.answers.ReadBytes('\n'); err != nil {
		return nil, nil, err
	}
	var follow struct{ Bytes int }
	if err := json.Unmarshal(line, &follow); err != nil {
		return nil, nil, err
	}
	data = make([]byte, follow.Bytes)
	_, err = io.ReadFull(c.answers, data)
	return line, data, err
}

// endWith makes reads and writes of pipes fail when ctx ends, until stop is called.
func endWith(ctx context.Context, pipes ...*os.File) (stop func()) {
	set := func(t time.Time) {
		for _, p := range pipes {
			_ = p.SetDeadline(t) // a pipe that is closed already needs no deadline
		}
	}
	set(time.Time{})
	ended := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		set(time.Now())
		close(ended)
	})
	return func() {
		if !cancel() {
			<-ended // a deadline must not be left for the next request
		}
	}
}

func decode(r request, line, data []byte, answer any) error {
	var failed struct {
		Errno *int
		Error string
	}
	if err := json.Unmarshal(line, &failed); err != nil {
		return errs.New("read the answer of", "the NFS client", errs.Bug, err)
	}
	if failed.Errno != nil {
		return &ioError{op: fmt.Sprint(r["op"]), path: fmt.Sprint(r["path"]), errno: syscall.Errno(*failed.Errno),
			said: failed.Error}
	}
	switch p := answer.(type) {
	case nil:
		return nil
	case *[]byte:
		*p = data
		return nil
	}
	return errs.Wrap("read the answer of", "the NFS client", json.Unmarshal(line, answer))
}

// late is the error for a request that did not end in time, or was given up.
func (c *client) late(r request, cause error) error {
	what := fmt.Sprintf("%v of %v", r["op"], r["path"])
	if errors.Is(cause, context.DeadlineExceeded) {
		return errs.Text(what, c.where.String(), errs.Transient,
			fmt.Sprintf("the server did not answer within %s", c.timeout))
	}
	return errs.Wrap(what, c.where.String(), cause)
}

// end kills the child. The caller has the turn.
func (c *client) end() {
	if c.process == nil {
		return
	}
	_ = c.stdin.Close() // nothing is buffered in them
	_ = c.stdout.Close()
	c.process.Kill()
	c.process = nil
}

// kill ends the client for good, and the request that runs.
func (c *client) kill() {
	c.mu.Lock()
	c.closed = true
	if c.giveUp != nil {
		c.giveUp()
	}
	c.mu.Unlock()
	<-c.turn
	c.end()
	c.turn <- struct{}{}
}

// ioError is a request that failed.
type ioError struct {
	op, path string
	errno    syscall.Errno // 0: no answer that the protocol has
	said     string
}

// Error implements error.
func (e *ioError) Error() string {
	if e.errno == 0 {
		return fmt.Sprintf("%s %s: %s", e.op, e.path, e.said)
	}
	return fmt.Sprintf("%s %s: %v (%s)", e.op, e.path, e.errno, e.said) // libnfs sometimes has nothing to say
}

// Unwrap gives callers the errno.
func (e *ioError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

// missing tells whether an error says that a file is not there.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
