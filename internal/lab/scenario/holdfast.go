package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"syscall"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// stopGrace is how long a command in the foreground may take to end after SIGINT.
const stopGrace = 30 * time.Second

// holdfast runs the command line.
type holdfast struct {
	bin  string // the program
	dir  string // the work folder
	tell *narrator
}

// The store and its passphrase, in the work folder.
const (
	storeName      = "store"
	passphraseName = "passphrase"
)

// environment names the store once for all commands.
var environment = []string{"HOLDFAST_STORE=" + storeName, "HOLDFAST_PASSPHRASE_FILE=" + passphraseName}

// importDone is what `disk import -o json` prints.
type importDone struct {
	Point       string `json:"point"`
	ReadBytes   int64  `json:"read_bytes"`
	NewBytes    int64  `json:"new_bytes"`
	StoredBytes int64  `json:"stored_bytes"`
}

// point is an element of what `point list -o json` prints; `point show` adds the sum.
type point struct {
	Point string    `json:"point"`
	VM    string    `json:"vm"`
	Time  time.Time `json:"time"`
	Disks []struct {
		Disk   int    `json:"disk"`
		Size   int64  `json:"size_bytes"`
		SHA256 string `json:"sha256"`
	} `json:"disks"`
}

// run runs a command to its end. What it prints is shown; with a result it is asked for JSON, which is decoded.
func (h *holdfast) run(ctx context.Context, result any, args ...string) error {
	if result != nil {
		args = append(args, "-o", "json")
	}
	h.tell.command(append([]string{"holdfast"}, args...), "")
	var out bytes.Buffer
	spec := proc.Spec{Args: append([]string{h.bin}, args...), Dir: h.dir, Env: environment,
		Stderr: h.tell.quoted(), Stdout: &out}
	if result == nil {
		spec.Stdout = h.tell.quoted()
	}
	p, err := proc.Start(ctx, spec)
	if err != nil {
		return err
	}
	<-p.Done()
	if err := p.Wait(ctx); err != nil {
		return err
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(out.Bytes(), result); err != nil {
		return wrong("the output of holdfast "+args[0], "%q is not the JSON that was promised: %v", out.String(), err)
	}
	return nil
}

// server is a command that stays in the foreground and says lines on its standard output.
type server struct {
	process *proc.Process
	lines   chan string
}

// start starts a command and waits for its first line.
func (h *holdfast) start(ctx context.Context, args ...string) (*server, string, error) {
	h.tell.command(append([]string{"holdfast"}, args...), " &")
	s := &server{lines: make(chan string, 64)}
	var err error
	s.process, err = proc.Start(ctx, proc.Spec{
		Args: append([]string{h.bin}, args...), Dir: h.dir, Env: environment,
		Stdout: &liner{lines: s.lines}, Stderr: h.tell.quoted(),
	})
	if err != nil {
		return nil, "", err
	}
	first, err := s.line(ctx)
	if err != nil {
		s.process.Kill()
		return nil, "", err
	}
	return s, first, nil
}

// line waits for the next line.
func (s *server) line(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	select {
	case l := <-s.lines:
		return l, nil
	case <-s.process.Done():
		return "", errs.Text("wait for", "holdfast", errs.Bug, "it ended instead of going on; it said: "+s.process.Tail())
	case <-ctx.Done():
		return "", errs.Wrap("wait for", "a line of holdfast", ctx.Err())
	}
}

// counters are what a server counts.
type counters struct {
	Reads     int64 `json:"reads"`
	Writes    int64 `json:"writes"`
	BytesRead int64 `json:"bytes_read"`
}

// counters asks a server for them.
func (s *server) counters(ctx context.Context) (counters, error) {
	if err := s.process.Signal(syscall.SIGUSR1); err != nil {
		return counters{}, err
	}
	line, err := s.line(ctx)
	if err != nil {
		return counters{}, err
	}
	var answer struct {
		Stats *counters `json:"stats"`
	}
	if err := json.Unmarshal([]byte(line), &answer); err != nil || answer.Stats == nil {
		return counters{}, wrong("the server's counters", "%q is not the JSON that was promised", line)
	}
	return *answer.Stats, nil
}

// stats asks a server how much was read.
func (s *server) stats(ctx context.Context) (reads, bytesRead int64, err error) {
	c, err := s.counters(ctx)
	return c.Reads, c.BytesRead, err
}

// interrupt ends a server as Ctrl-C does; it must end with exit code 0.
func (s *server) interrupt() error { return s.process.Stop(syscall.SIGINT, stopGrace) }

// liner cuts what a program writes into lines. Lines that nobody fetches are lost after the first 64.
type liner struct {
	rest  []byte
	lines chan string
}

// Write implements io.Writer and never fails.
func (l *liner) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return len(b), nil
		}
		select {
		case l.lines <- string(l.rest[:i]):
		default:
		}
		l.rest = l.rest[i+1:]
	}
}
