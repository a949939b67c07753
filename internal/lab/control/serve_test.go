package control

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// fakeLab is a lab that is made up: it notes what is asked of it.
type fakeLab struct {
	closeErr error
	closing  chan struct{} // Close waits until it is closed; nil: it does not

	mu   sync.Mutex
	done []string
}

func (f *fakeLab) note(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = append(f.done, what)
}

func (f *fakeLab) Exec(ctx context.Context, vm, command string) (string, int, error) {
	f.note("exec " + vm + " " + command)
	switch command {
	case "fail":
		return "out", 7, nil
	case "wait":
		<-ctx.Done()
		f.note("interrupted")
		return "", 0, ctx.Err()
	case "gone":
		return "", 0, errs.Text("run a command in the VM", vm, errs.NotFound, "it does not run").WithNext("Start it.")
	case "deep":
		return "", 0, errs.Wrap("outer", "thing", errs.Text("inner", "part", errs.Busy, "it is held"))
	case "plain":
		return "", 0, errors.New("no kind")
	}
	return "out\n", 0, nil
}

func (f *fakeLab) Fault(_ context.Context, name string) error { f.note("fault " + name); return nil }

func (f *fakeLab) Heal(name string) { f.note("heal " + name) }

func (f *fakeLab) Close() error {
	if f.closing != nil {
		<-f.closing
	}
	f.note("close")
	return f.closeErr
}

func (f *fakeLab) did() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.done)
}

// running is a lab that serve runs.
type running struct {
	dir   string
	lab   *fakeLab
	stop  context.CancelFunc
	ended chan error
	user  *Lab
}

// run serves a made-up lab. begin may be nil.
func run(t *testing.T, f *fakeLab, begin func(context.Context) error) *running {
	t.Helper()
	r := &running{dir: shortDir(t), lab: f, ended: make(chan error, 1)}
	folder, err := Take(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, r.stop = context.WithCancel(t.Context())
	go func() {
		err := serve(ctx, folder, func(ctx context.Context) (lab, Info, error) {
			if begin != nil {
				if err := begin(ctx); err != nil {
					return nil, Info{}, err
				}
			}
			return f, Info{Dir: r.dir, VMs: []string{"web1"}, PID: 42}, nil
		})
		_ = folder.Close()
		r.ended <- err
		close(r.ended)
	}()
	t.Cleanup(func() {
		r.stop()
		for range r.ended {
		}
	})
	r.user = Open(r.dir)
	return r
}

// ready waits until the lab is up.
func (r *running) ready(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		_, err := r.user.Info(t.Context())
		if err == nil {
			return
		}
		if !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.Busy) || time.Now().After(end) {
			t.Fatal(err)
		}
		<-time.After(time.Millisecond)
	}
}

func TestWhatUsersAskReachesTheLab(t *testing.T) {
	r := run(t, &fakeLab{}, nil)
	r.ready(t)
	ctx := t.Context()
	if i, err := r.user.Info(ctx); err != nil || i.PID != 42 || len(i.VMs) != 1 {
		t.Errorf("%+v, %v", i, err)
	}
	if b, err := os.ReadFile(filepath.Join(r.dir, infoName)); err != nil || !strings.Contains(string(b), `"pid": 42`) {
		t.Errorf("for people it says %q, %v", b, err)
	}
	for _, name := range []string{infoName, socketName} {
		if info, err := os.Stat(filepath.Join(r.dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if out, code, err := r.user.Exec(ctx, "web1", "echo"); out != "out\n" || code != 0 || err != nil {
		t.Errorf("%q, %d, %v", out, code, err)
	}
	if out, code, err := r.user.Exec(ctx, "web1", "fail"); out != "out" || code != 7 || err != nil {
		t.Errorf("%q, %d, %v", out, code, err)
	}
	for _, err := range []error{r.user.Fault(ctx, engine.FaultSlow, false), r.user.Fault(ctx, engine.FaultSlow, true),
		r.user.Fault(ctx, FaultNodeKilled, false)} {
		if err != nil {
			t.Error(err)
		}
	}
	want := []string{"exec web1 echo", "exec web1 fail", "fault slow", "heal slow", "fault node-killed"}
	if got := r.lab.did(); !slices.Equal(got, want) {
		t.Errorf("the lab did %q, want %q", got, want)
	}
}

func TestErrorsKeepWordsKindAndNextStep(t *testing.T) {
	r := run(t, &fakeLab{}, nil)
	r.ready(t)
	exec := func(command string) error {
		_, _, err := r.user.Exec(t.Context(), "web1", command)
		return err
	}
	const unknown, allFaults = "find the fault gremlins: there is none of that name", "See holdfast-lab fault --help."
	for _, c := range []struct {
		err  error
		kind errs.Kind
		text string
		next string
	}{
		{exec("gone"), errs.NotFound, "run a command in the VM web1: it does not run", "Start it."},
		{exec("deep"), errs.Busy, "outer thing: inner part: it is held", ""},
		{exec("plain"), errs.Bug, "ask the lab: no kind", ""},
		{r.user.Fault(t.Context(), "gremlins", false), errs.NotFound, unknown, allFaults},
		{r.user.Fault(t.Context(), "gremlins", true), errs.NotFound, unknown, allFaults},
		{r.user.Fault(t.Context(), FaultNodeKilled, true), errs.Invalid,
			"take back the fault node-killed: it does not last: the node was started again", ""},
	} {
		if !errs.Is(c.err, c.kind) || c.err.Error() != c.text || errs.NextStep(c.err) != c.next {
			t.Errorf("%v (kind %v, next step %q), want %q (%v, %q)",
				c.err, errs.KindOf(c.err), errs.NextStep(c.err), c.text, c.kind, c.next)
		}
	}
}

func TestACommandEndsWithItsUser(t *testing.T) {
	r := run(t, &fakeLab{}, nil)
	r.ready(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for len(r.lab.did()) == 0 {
			<-time.After(time.Millisecond)
		}
		cancel()
	}()
	if _, _, err := r.user.Exec(ctx, "web1", "wait"); !errs.Is(err, errs.Canceled) {
		t.Errorf("error %v", err)
	}
	for end := time.Now().Add(10 * time.Second); !slices.Contains(r.lab.did(), "interrupted"); {
		if time.Now().After(end) {
			t.Fatal("the command goes on")
		}
		<-time.After(time.Millisecond)
	}
}

func TestDownAnswersWhenNothingRuns(t *testing.T) {
	for _, keep := range []bool{false, true} {
		f := &fakeLab{closing: make(chan struct{})}
		r := run(t, f, nil)
		r.ready(t)
		write(t, r.dir, nodeName+"/store", LogName)
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if wasUp, err := r.user.Down(short, keep); !errs.Is(err, errs.Canceled) || !wasUp {
			t.Errorf("down did not wait: %v, %v", wasUp, err)
		}
		if _, err := r.user.Info(t.Context()); !errs.Is(err, errs.Busy) || !strings.Contains(err.Error(), "ending") {
			t.Errorf("meanwhile: %v", err)
		}
		close(f.closing)
		if wasUp, err := r.user.Down(t.Context(), keep); err != nil || !wasUp {
			t.Errorf("down: %v, %v", wasUp, err)
		}
		if got := f.did(); !slices.Equal(got, []string{"close"}) {
			t.Errorf("the lab did %q", got)
		}
		got := names(t, r.dir)
		if _, err := os.Stat(filepath.Join(r.dir, nodeName, "store")); keep != (err == nil) || !keep && got != nil {
			t.Errorf("keep %v: there is %v, %v", keep, got, err)
		}
		if slices.Contains(got, infoName) || slices.Contains(got, socketName) {
			t.Errorf("there is still %v, as if a lab were up", got)
		}
		if err := <-r.ended; err != nil {
			t.Error(err)
		}
	}
}

func TestDownTellsWhatDidNotEndWell(t *testing.T) {
	r := run(t, &fakeLab{closeErr: errs.Text("stop", "holdfastd", errs.Bug, "it did not end")}, nil)
	r.ready(t)
	write(t, r.dir, nodeName+"/store")
	wasUp, err := r.user.Down(t.Context(), false)
	if !wasUp || err == nil || !strings.Contains(err.Error(), "stop holdfastd: it did not end") {
		t.Errorf("%v, %v", wasUp, err)
	}
	if _, err := os.Stat(filepath.Join(r.dir, nodeName, "store")); err != nil {
		t.Errorf("the evidence is gone: %v", err)
	}
	if err := <-r.ended; err == nil {
		t.Error("the lab's process does not tell it")
	}
}

func TestDownOfALabThatIsNotUp(t *testing.T) {
	dir := shortDir(t)
	if wasUp, err := Open(dir).Down(t.Context(), false); wasUp || err != nil {
		t.Errorf("of none: %v, %v", wasUp, err)
	}
	write(t, dir, "precious", nodeName+"/x")
	if wasUp, err := Open(dir).Down(t.Context(), false); wasUp || err != nil || len(names(t, dir)) != 2 {
		t.Errorf("of a folder that is no lab's: %v, %v, left %v", wasUp, err, names(t, dir))
	}
	write(t, dir, lockName, LogName) // what a killed lab leaves, with a socket that nobody listens at
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, socketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	if _, err := Open(dir).Info(t.Context()); !errs.Is(err, errs.NotFound) || errs.NextStep(err) == "" {
		t.Errorf("error %v", err)
	}
	if wasUp, err := Open(dir).Down(t.Context(), false); wasUp || err != nil {
		t.Errorf("of a killed lab: %v, %v", wasUp, err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"precious"}) {
		t.Errorf("left are %v", got)
	}
}

func TestALabCanBeEndedWhileItStarts(t *testing.T) {
	begun := make(chan struct{})
	r := run(t, &fakeLab{}, func(ctx context.Context) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	})
	<-begun
	_, _, err := r.user.Exec(t.Context(), "web1", "true")
	if !errs.Is(err, errs.Busy) || !strings.Contains(err.Error(), "starting") {
		t.Errorf("a command meanwhile: %v", err)
	}
	if wasUp, err := r.user.Down(t.Context(), false); !wasUp || err != nil {
		t.Errorf("down: %v, %v", wasUp, err)
	}
	if err := <-r.ended; !errs.Is(err, errs.Canceled) {
		t.Errorf("the lab ended with %v", err)
	}
	if got := names(t, r.dir); got != nil {
		t.Errorf("left are %v", got)
	}
}

func TestALabThatCannotStartLeavesItsLogAlone(t *testing.T) {
	var r *running
	failed := errs.Text("start", "something", errs.Unsupported, "it cannot be")
	begin := make(chan struct{})
	r = run(t, &fakeLab{}, func(context.Context) error {
		<-begin
		write(t, r.dir, LogName, nodeName+"/x", centerName+"/y")
		return failed
	})
	close(begin)
	if err := <-r.ended; !errors.Is(err, failed) {
		t.Errorf("error %v", err)
	}
	if got := names(t, r.dir); !slices.Equal(got, []string{lockName, LogName}) {
		t.Errorf("left are %v", got)
	}
}

func TestARequestThatIsNoneIsRefused(t *testing.T) {
	r := run(t, &fakeLab{}, nil)
	r.ready(t)
	for _, path := range []string{"/exec", "/fault"} {
		resp, err := r.user.client.Post("http://lab"+path, "application/json", strings.NewReader("{"))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusInternalServerError || !strings.Contains(string(body), path) {
			t.Errorf("%s: %s %q", path, resp.Status, body)
		}
	}
	if got := r.lab.did(); got != nil {
		t.Errorf("the lab did %q", got)
	}
}
