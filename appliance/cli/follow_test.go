package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// slowBackup is a backup as it goes on from now: a step without progress for 25 s, one with progress for 30 s.
func slowBackup() []appliance.Task {
	start := time.Now()
	after := func(s float64) *time.Time { t := start.Add(time.Duration(s * float64(time.Second))); return &t }
	t := appliance.Task{ID: backupID, Kind: appliance.TaskBackup, Subject: "web", State: appliance.TaskRunning, Started: start,
		Steps: []appliance.Step{{Name: "start backup", Started: start, Detail: "the engine's backup is starting"}}}
	states := []appliance.Task{t}
	for i := range 3 {
		t.Steps = []appliance.Step{{Name: "start backup", Started: start, Ended: after(25)}, {Name: "read disks", Started: *after(25), Detail: "disk 0"}}
		t.Notes = []string{"Full: there is no earlier point."}
		done := int64(i) << 30
		t.Progress = &appliance.Progress{DoneBytes: done, TotalBytes: 4 << 30}
		if i > 0 {
			t.Progress.SecondsLeft = 25 * float64(4-i) / float64(i)
		}
		states = append(states, t)
	}
	t.Steps = []appliance.Step{t.Steps[0], {Name: "read disks", Started: *after(25), Ended: after(100)}}
	t.Progress, t.State, t.Ended, t.Result = nil, appliance.TaskSucceeded, after(100), map[string]any{"point": "aa00", "incremental": true, "dirty_bytes": 5}
	return append(states, t)
}

// TestWaitingInALog: where nobody's terminal is, a line every ten seconds, and none twice.
func TestWaitingInALog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node := theNode()
		node.states[backupID], node.pause = slowBackup(), 24*time.Second
		var out, note bytes.Buffer
		code := Run(t.Context(), World{
			Args: []string{"backup", "run", "web", "--wait"}, Getenv: func(string) string { return "" }, Stdout: &out, Stderr: &note, Now: time.Now,
			Dial: (&box{node: node}).dial, Zone: time.UTC,
		})
		want := strings.Join([]string{
			"  start backup: 10 s so far (the engine's backup is starting)",
			"  start backup: 20 s so far (the engine's backup is starting)",
			"  note: Full: there is no earlier point.",
			"  start backup: done in 25.0 s",
			"  read disks: 0 %, 0 B of 4.0 GiB (disk 0)",
			"  read disks: 0 %, 0 B of 4.0 GiB (disk 0)",
			"  read disks: 25 %, 1.0 GiB of 4.0 GiB, 41.0 MiB/s, about 75 s left (disk 0)",
			"  read disks: 25 %, 1.0 GiB of 4.0 GiB, 41.0 MiB/s, about 75 s left (disk 0)",
			"  read disks: 25 %, 1.0 GiB of 4.0 GiB, 41.0 MiB/s, about 75 s left (disk 0)",
			"  read disks: 50 %, 2.0 GiB of 4.0 GiB, 81.9 MiB/s, about 25 s left (disk 0)",
			"  read disks: 50 %, 2.0 GiB of 4.0 GiB, 81.9 MiB/s, about 25 s left (disk 0)",
			"  read disks: done in 75.0 s", "",
		}, "\n")
		if code != 0 || note.String() != want {
			t.Errorf("code %d, stderr\n%s\nwant\n%s", code, note.String(), want)
		}
		if !strings.Contains(out.String(), "incremental") || !strings.Contains(out.String(), "5 B, as the engine counts") || !strings.Contains(out.String(), "1 min 40 s") {
			t.Errorf("stdout\n%s", out.String())
		}
	})
}

// TestWaitingAtATerminal: the line that changes never wraps, and leaves nothing behind.
func TestWaitingAtATerminal(t *testing.T) {
	far, near := terminal(t)
	if err := unix.IoctlSetWinsize(int(far.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 50}); err != nil {
		t.Fatal(err)
	}
	node := theNode()
	states := backupStates()
	states[1].Steps[1].Detail = "disk 0 (web_Disk1), " + strings.Repeat("ü", 80)
	node.states[backupID], node.pause = states, 500*time.Millisecond
	seen := make(chan string)
	go func() {
		var all []byte
		buf := make([]byte, 4096)
		for !bytes.Contains(all, []byte("\x04end")) {
			n, err := far.Read(buf)
			if all = append(all, buf[:n]...); err != nil {
				break
			}
		}
		seen <- string(all)
	}()
	var out bytes.Buffer
	code := Run(t.Context(), World{
		Args: []string{"task", "watch", backupID}, Getenv: func(string) string { return "" }, Stdout: &out, Stderr: near, Now: func() time.Time { return at(5) },
		Dial: (&box{node: node}).dial,
	})
	if _, err := near.WriteString("\x04end"); err != nil {
		t.Fatal(err)
	}
	got := <-seen
	if code != 0 || !strings.Contains(got, "\r  check: 5 s so far") || !strings.Contains(got, "\r  read disks: 25 %, 1.0 GiB of 4.0 GiB, 102.4 Mi…\r") {
		t.Errorf("code %d, seen %q", code, got)
	}
	for line := range strings.SplitSeq(strings.ReplaceAll(got, "\n", "\r"), "\r") {
		if n := len([]rune(strings.TrimSuffix(line, "\x04end"))); n > 49 {
			t.Errorf("%d letters on a terminal of 50: %q", n, line)
		}
	}
	last := got[strings.LastIndex(got, "  commit: done in 0.6 s"):]
	if strings.Trim(last, "\r\n") != "  commit: done in 0.6 s\r\n\x04end" {
		t.Errorf("left on the terminal: %q", last)
	}
}

// TestPasswordAtATerminal: it is asked for, and not shown.
func TestPasswordAtATerminal(t *testing.T) {
	far, near := terminal(t)
	node := theNode()
	var note bytes.Buffer
	if _, err := far.WriteString("hush hush\n"); err != nil {
		t.Fatal(err)
	}
	code := Run(t.Context(), World{
		Args: []string{"manager", "add", "n", "--url", "e", "--user", "u@d"}, Getenv: func(string) string { return "" }, Stdin: near, Stdout: &note, Stderr: &note,
		Now: time.Now, Dial: (&box{node: node}).dial,
	})
	if code != 0 || !strings.Contains(node.asked("AddManager"), "Password:hush hush CA: ") || !strings.HasPrefix(note.String(), "Password of u@d: \n") {
		t.Errorf("code %d, asked %s\n%s", code, node.asked("AddManager"), note.String())
	}
}

// TestInterruptedWaiting: the task is left alone, and the way back to it is shown.
func TestInterruptedWaiting(t *testing.T) {
	for _, args := range [][]string{
		{"backup", "run", "web", "--wait"}, {"backup", "run", "web", "--wait", "-o", "json"}, {"task", "watch", "3f"}, {"restore", "instant", "web", "--wait"},
	} {
		b := boxAt(t, t.TempDir())
		for id, states := range b.node.states {
			b.node.states[id] = states[:1]
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			until(t, "the watch", func() bool { return b.node.asked("WatchTask") != "" })
			cancel()
		}()
		r := b.runContext(ctx, args...)
		id := backupID
		if args[0] == "restore" {
			id = instantID
		}
		b.failed(r, exitInterrupted, args, "the task goes on without this command", "holdfast task watch "+id, "holdfast task cancel "+id)
		if got := b.node.asked("CancelTask"); got != "" {
			t.Errorf("%q: %s", args, got)
		}
	}
}

// TestInterruptedStart: what the node has begun by then is not known.
func TestInterruptedStart(t *testing.T) {
	b := boxAt(t, t.TempDir())
	b.node.fail["StartBackup"] = errs.New("connect to node", "/run/x", errs.Canceled, context.Canceled)
	b.fails(exitInterrupted, []string{"backup", "run", "web", "--wait"}, "holdfast task list")
	b.node.fail["StartBackup"] = errs.New("connect to node", "/run/x", errs.Canceled, context.DeadlineExceeded)
	b.fails(exitTimeout, []string{"backup", "run", "web", "--wait"}, "holdfast task list")
}

// TestLostConnection: the node goes away while a task is watched.
func TestLostConnection(t *testing.T) {
	b := boxAt(t, t.TempDir())
	b.node.states[backupID] = backupStates()[:2]
	b.node.broken = errs.Text("watch a task of node", "n", errs.Transient, "connection refused").WithNext("Is holdfastd running?")
	b.fails(exitUnreachable, []string{"backup", "run", "web", "--wait"}, "connection refused", "goes on while the node runs", "holdfast task watch "+backupID)
	b.node.states[backupID] = nil
	b.node.fail["WatchTask"] = b.node.broken
	b.fails(exitUnreachable, []string{"task", "watch", backupID}, "connection refused", "Is holdfastd running?")
}

// closed is a stdout that nobody reads any more.
type closed struct{ written int }

func (c *closed) Write(p []byte) (int, error) {
	if c.written++; c.written > 1 {
		return 0, errors.New("broken pipe")
	}
	return len(p), nil
}

func TestWatchingEndsWithItsReader(t *testing.T) {
	node := theNode()
	out, note := &closed{}, bytes.Buffer{}
	code := Run(t.Context(), World{
		Args: []string{"task", "watch", backupID, "-o", "json"}, Getenv: func(string) string { return "" }, Stdout: out, Stderr: &note, Now: time.Now, Dial: (&box{node: node}).dial,
	})
	if code == 0 || out.written != 2 || !strings.Contains(note.String(), "broken pipe") {
		t.Errorf("code %d after %d lines\n%s", code, out.written, note.String())
	}
}

// TestManyEnded: a table of years of tasks shows those that live and the newest others.
func TestManyEnded(t *testing.T) {
	b := boxAt(t, t.TempDir())
	b.node.tasks, b.node.sessions = nil, nil
	for i := range 30 {
		task := backupStates()[2]
		task.ID, task.Started = "f"+strconv.Itoa(100000000+i), at(float64(-i))
		session := theSession(appliance.SessionReleased)
		session.ID, session.Created = task.ID, task.Started
		if i == 29 {
			task.State, task.Ended, session.State = appliance.TaskRunning, nil, appliance.SessionRunning
		}
		b.node.tasks, b.node.sessions = append(b.node.tasks, task), append(b.node.sessions, session)
	}
	for _, noun := range []string{"task", "session"} {
		r := b.run(noun, "list")
		lines := strings.Split(strings.TrimSpace(r.out), "\n")
		if len(lines) != 22 || !strings.Contains(lines[1], "running") || !strings.HasPrefix(lines[21], "f100000000") || r.err != "9 older "+noun+"s not shown: use --all.\n" {
			t.Errorf("%s: %d lines\n%s%s", noun, len(lines), r.out, r.err)
		}
		if out := b.ok(noun, "list", "--all"); strings.Count(out, "\n") != 31 {
			t.Errorf("%s --all\n%s", noun, out)
		}
		var list []json.RawMessage
		if b.json(&list, noun, "list"); len(list) != 30 {
			t.Errorf("JSON has %d", len(list))
		}
	}
}

// TestAProcessAsksADaemon: the program and the server as they are, a fake behind; Ctrl-C in the middle.
func TestAProcessAsksADaemon(t *testing.T) {
	b := boxAt(t, t.TempDir())
	b.node.states[backupID] = backupStates()[:2]
	socket := serveAPI(t, b.node)
	b.env["HOLDFAST_NODE"] = socket
	p := b.start("vm", "show", "web", "-o", "json")
	var v appliance.VM
	if decode(t, p.line()+"\n", &v); v.Name != "web" || len(v.Disks) != 2 || p.wait() != 0 {
		t.Errorf("%+v\n%s", v, p.said())
	}
	b.failed(b.start("vm", "show", "nonsense").result(), exitNotFound, nil, "no engine has a VM of that name or ID", "See `holdfast vm list`.")
	w := b.start("task", "watch", "3f1c", "-o", "json")
	var seen appliance.Task
	decode(t, w.line()+"\n", &seen)
	decode(t, w.line()+"\n", &seen)
	if seen.Progress == nil || seen.Progress.DoneBytes != 1<<30 {
		t.Errorf("%+v", seen)
	}
	w.end(syscall.SIGINT)
	b.failed(w.result(), exitInterrupted, nil, "the task goes on", "holdfast task watch "+backupID)
	b.env["HOLDFAST_NODE"] = filepath.Join(filepath.Dir(socket), "nobody")
	b.failed(b.start("vm", "list").result(), exitUnreachable, nil, "nobody", "holdfastd")
}
