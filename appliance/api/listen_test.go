package api_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/api/apitest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// served is a running Serve.
type served struct {
	t    *testing.T
	at   api.Addresses
	log  *syncBuffer
	stop context.CancelFunc
	done chan error
	once sync.Once
}

// end ends the server; it may have ended.
func (s *served) end() {
	s.once.Do(func() {
		s.stop()
		if err := <-s.done; err != nil {
			s.t.Error(err)
		}
	})
}

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// listen begins a Serve and waits until it listens, or has failed.
func listen(t *testing.T, l api.Listeners, h http.Handler) (*served, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &served{t: t, log: &syncBuffer{}, stop: cancel, done: make(chan error, 1)}
	ready := make(chan struct{})
	l.Logger = slog.New(slog.NewTextHandler(s.log, nil))
	l.Ready = func(at api.Addresses) { s.at = at; close(ready) }
	go func() { s.done <- api.Serve(ctx, l, h) }()
	select {
	case <-ready:
		t.Cleanup(s.end)
		return s, nil
	case err := <-s.done:
		cancel()
		return nil, err
	}
}

// on returns an HTTP client of a socket.
func on(t *testing.T, socket string) *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func get(t *testing.T, c *http.Client, path string) *http.Response {
	t.Helper()
	resp, err := c.Get("http://holdfast" + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func TestSocket(t *testing.T) {
	h, _ := newHandler(t, &apitest.Service{})
	socket := filepath.Join(t.TempDir(), "run", "holdfast", "s")
	s, err := listen(t, api.Listeners{Socket: socket}, h)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(socket); err != nil || st.Mode() != os.ModeSocket|0o660 {
		t.Errorf("the socket is %v, %v", st.Mode(), err)
	}
	if s.at != (api.Addresses{Socket: socket}) {
		t.Errorf("listens at %+v", s.at)
	}
	if resp := get(t, on(t, socket), "/api/v1/status"); resp.StatusCode != 200 {
		t.Errorf("status: %s", resp.Status)
	}
	// A second server must not take it, and the first one goes on.
	_, err = listen(t, api.Listeners{Socket: socket}, h)
	if !errs.Is(err, errs.Busy) || !strings.Contains(err.Error(), socket) || errs.NextStep(err) == "" {
		t.Errorf("a live socket was taken: %v", err)
	}
	if resp := get(t, on(t, socket), "/api/v1/status"); resp.StatusCode != 200 {
		t.Errorf("status after the second server: %s", resp.Status)
	}
	s.end()
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

// TestNoDoor: a server that nobody could reach is a mistake.
func TestNoDoor(t *testing.T) {
	h, _ := newHandler(t, &apitest.Service{})
	if _, err := listen(t, api.Listeners{}, h); !errs.Is(err, errs.Invalid) {
		t.Errorf("it began: %v", err)
	}
}

// TestPlacesThatAreNoSocket: nothing that is there is removed but a stale socket.
func TestPlacesThatAreNoSocket(t *testing.T) {
	h, _ := newHandler(t, &apitest.Service{})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/does/not/exist", link); err != nil {
		t.Fatal(err)
	}
	for path, kind := range map[string]errs.Kind{file: errs.Exists, link: errs.Exists, filepath.Join(file, "s"): errs.Invalid, "/" + strings.Repeat("x", 120): errs.Invalid} {
		if _, err := listen(t, api.Listeners{Socket: path}, h); !errs.Is(err, kind) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %v", path, err, kind)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "x" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

// TestEndWhileStreaming: the end of the server ends streams at once, and lets requests finish.
func TestEndWhileStreaming(t *testing.T) {
	entered, hold := make(chan struct{}), make(chan struct{})
	service := &apitest.Service{}
	service.Change(appliance.Task{ID: "t", State: appliance.TaskRunning})
	h, _ := newHandler(t, service)
	s, err := listen(t, api.Listeners{Socket: filepath.Join(t.TempDir(), "s")}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(entered)
			<-hold
			if r.Context().Err() != nil {
				t.Error("a request that runs was cut off")
			}
		}
		h.ServeHTTP(w, r)
	}))
	if err != nil {
		t.Fatal(err)
	}
	stream := bufio.NewReader(get(t, on(t, s.at.Socket), "/api/v1/tasks/t/events").Body)
	if line, err := stream.ReadString('\n'); err != nil || line != "event: task\n" {
		t.Fatalf("%q %v", line, err)
	}
	status := inBackground(t, on(t, s.at.Socket), "/slow")
	<-entered
	s.stop()
	began := time.Now()
	if _, err := io.ReadAll(stream); err != nil {
		t.Errorf("the stream broke: %v", err)
	}
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("the stream went on for %v", d)
	}
	close(hold)
	if got := <-status; got != 404 {
		t.Errorf("the request that ran was answered with %d", got)
	}
	s.end()
}

// TestEndOfEndlessRequests: they have their time, are told to end, and are waited for.
func TestEndOfEndlessRequests(t *testing.T) {
	t.Parallel() // it takes five seconds
	entered, left := make(chan struct{}), false
	s, err := listen(t, api.Listeners{Socket: filepath.Join(t.TempDir(), "s")}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		<-time.After(200 * time.Millisecond) // as long as it takes to put things away
		left = true
	}))
	if err != nil {
		t.Fatal(err)
	}
	status := inBackground(t, on(t, s.at.Socket), "/")
	<-entered
	began := time.Now()
	s.end()
	if d := time.Since(began); d < 4*time.Second || d > 9*time.Second || !left {
		t.Errorf("the server ended after %v; the request had ended: %v", d, left)
	}
	if got := <-status; got != 0 {
		t.Errorf("the request was answered with %d", got)
	}
}

// inBackground asks and sends the answer's status, or 0 if there is none.
func inBackground(t *testing.T, c *http.Client, path string) <-chan int {
	t.Helper()
	status := make(chan int, 1)
	go func() {
		resp, err := c.Get("http://holdfast" + path)
		if err != nil {
			status <- 0
			return
		}
		_ = resp.Body.Close()
		status <- resp.StatusCode
	}()
	return status
}
