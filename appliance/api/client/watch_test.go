package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/api/apitest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func run(note string) appliance.Task {
	return appliance.Task{ID: "t", State: appliance.TaskRunning, Notes: []string{note}, Steps: []appliance.Step{}}
}

func done(note string) appliance.Task {
	t := run(note)
	t.State = appliance.TaskSucceeded
	return t
}

// start serves a handler on a socket, the whole API with its doorkeeper if h is made by api.New.
func start(t *testing.T, socket string, h http.Handler) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- api.Serve(ctx, api.Listeners{Socket: socket, Ready: func(api.Addresses) { close(ready) }}, h)
	}()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		t.Fatal(err)
	}
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func handler(t *testing.T, s api.Service) http.Handler {
	t.Helper()
	h, err := api.New(api.Options{Service: s})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// hasty returns a client that waits for nothing long.
func hasty(t *testing.T, socket string) *Client {
	t.Helper()
	c, err := Dial(Options{Node: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.pauses = []time.Duration{time.Millisecond, 10 * time.Millisecond}
	return c
}

func TestWatch(t *testing.T) {
	s := &apitest.Service{}
	s.Change(run("0"))
	socket := filepath.Join(t.TempDir(), "s")
	defer start(t, socket, handler(t, s))()
	var seen []string
	err := hasty(t, socket).WatchTask(t.Context(), "t", func(task appliance.Task) error {
		n := len(seen) + 1
		seen = append(seen, string(task.State)+task.Notes[0])
		switch {
		case n < 5:
			s.Change(run(fmt.Sprint(n)))
		case n == 5:
			s.Change(done("end"))
		}
		return nil
	})
	if want := "running0 running1 running2 running3 running4 succeededend"; err != nil || strings.Join(seen, " ") != want {
		t.Errorf("saw %q, %v; want %q", seen, err, want)
	}
}

// TestWatchEnds: for every reason but the end of the task.
func TestWatchEnds(t *testing.T) {
	s := &apitest.Service{}
	s.Change(run("0"))
	socket := filepath.Join(t.TempDir(), "s")
	defer start(t, socket, handler(t, s))()
	c := hasty(t, socket)
	enough := errors.New("enough")
	if err := c.WatchTask(t.Context(), "t", func(appliance.Task) error { return enough }); err != enough {
		t.Errorf("f's error became %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.WatchTask(ctx, "t", func(appliance.Task) error { cancel(); return nil }); err != context.Canceled {
		t.Errorf("after the end of the context: %v", err)
	}
	if err := c.WatchTask(t.Context(), "u", nil); !errs.Is(err, errs.NotFound) {
		t.Errorf("a task that is not there: %v", err)
	}
	lost := errs.Text("read task", "t", errs.Corrupt, "no JSON").WithNext("Look at it.")
	err := c.WatchTask(t.Context(), "t", func(appliance.Task) error { s.Fail(lost); return nil })
	if !errs.Is(err, errs.Corrupt) || err.Error() != lost.Error() || errs.NextStep(err) != "Look at it." {
		t.Errorf("a failure under way became %v", err)
	}
}

// TestWatchOutlivesARestart: the stream ends with the server and goes on with the next.
func TestWatchOutlivesARestart(t *testing.T) {
	s := &apitest.Service{}
	s.Change(run("before"))
	socket := filepath.Join(t.TempDir(), "s")
	stop := start(t, socket, handler(t, s))
	c := hasty(t, socket)
	c.pauses = []time.Duration{0, time.Minute}
	var seen []string
	err := c.WatchTask(t.Context(), "t", func(task appliance.Task) error {
		seen = append(seen, task.Notes[0])
		if len(seen) == 1 {
			stop()
			stop = start(t, socket, handler(t, s))
			s.Change(done("after"))
		}
		return nil
	})
	stop()
	if err != nil || strings.Join(seen, " ") != "before after" {
		t.Errorf("saw %q, %v", seen, err)
	}
}

// TestWatchOfANodeThatIsGone: it says so in the end, and does not try at all if it never began.
func TestWatchOfANodeThatIsGone(t *testing.T) {
	s := &apitest.Service{}
	s.Change(run("before"))
	socket := filepath.Join(t.TempDir(), "s")
	stop := start(t, socket, handler(t, s))
	c := hasty(t, socket)
	err := c.WatchTask(t.Context(), "t", func(appliance.Task) error { stop(); return nil })
	if !errs.Is(err, errs.Transient) || errs.NextStep(err) == "" {
		t.Errorf("the end is %v, next %q", err, errs.NextStep(err))
	}
	c.pauses = []time.Duration{time.Hour}
	if err := c.WatchTask(t.Context(), "t", nil); !errs.Is(err, errs.Transient) {
		t.Errorf("a node that is not there: %v", err)
	}
}

// TestWatchBreaks: streams that end or fall silent in the middle are taken up again, a bounded number of times.
func TestWatchBreaks(t *testing.T) {
	const event = "event: task\ndata: {\"id\":\"t\",\"state\":\"running\",\"notes\":[\"x\"]}\n\n"
	const last = "event: task\ndata: {\"id\":\"t\",\ndata: \"state\":\"succeeded\"}\n\n"
	for name, c := range map[string]struct {
		streams []string // the last one again and again
		silent  bool     // they stay open
		tries   int32
		ok      bool
	}{
		"at once":             {[]string{event}, false, 3, false},
		"in an event":         {[]string{event + "event: task\ndata: {\"id\":\"t\",\"state\":\"succeeded\"}\n", last}, false, 2, true},
		"once":                {[]string{event, last}, false, 2, true},
		"twice":               {[]string{event, "", last}, false, 3, true},
		"silence":             {[]string{event, event, last}, true, 3, true},
		"comments and others": {[]string{": hello\n\nevent: news\ndata: 1\n\nretry: 5\n\n" + last}, false, 1, true},
		"no JSON":             {[]string{"event: task\ndata: {\n\n"}, false, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int32
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				i := min(int(n.Add(1)), len(c.streams)) - 1
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = w.Write([]byte(c.streams[i]))
				_ = http.NewResponseController(w).Flush()
				if c.silent {
					<-r.Context().Done()
				}
			})
			socket := filepath.Join(t.TempDir(), "s")
			defer start(t, socket, h)()
			cl := hasty(t, socket)
			cl.quiet = time.Minute
			if c.silent {
				cl.quiet = 300 * time.Millisecond
			}
			err := cl.WatchTask(t.Context(), "t", func(appliance.Task) error { return nil })
			if (err == nil) != c.ok || n.Load() != c.tries {
				t.Errorf("%v after %d streams, want %d", err, n.Load(), c.tries)
			}
			if err != nil && name != "no JSON" && !errs.Is(err, errs.Transient) {
				t.Errorf("the kind is %v", errs.KindOf(err))
			}
		})
	}
}

// TestBrokenConnection: a server that dies in the middle of a chunk.
func TestBrokenConnection(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var n atomic.Int32
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			_, _ = http.ReadRequest(bufio.NewReader(c))
			body := "event: task\ndata: {\"id\":\"t\",\"state\":\"running\"}\n\n"
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s", len(body)+10, body)
			_ = c.Close()
		}
	}()
	seen := 0
	err = hasty(t, socket).WatchTask(t.Context(), "t", func(appliance.Task) error { seen++; return nil })
	if !errs.Is(err, errs.Transient) || n.Load() != 3 || seen != 3 {
		t.Errorf("%v after %d connections and %d events", err, n.Load(), seen)
	}
}

func FuzzEvents(f *testing.F) {
	f.Add("event: task\ndata: {}\n\n: x\n\ndata\n\n")
	f.Add("data: a\r\ndata: b\r\n\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := bufio.NewScanner(strings.NewReader(text))
		got := 0
		for {
			_, data, more := nextEvent(s, func() {})
			if !more {
				break
			}
			got += len(data) + 1
		}
		if got > len(text) {
			t.Errorf("%d bytes of events out of %d", got, len(text))
		}
	})
}
