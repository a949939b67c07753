package api

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
)

// watched is a service that has a watch and nothing else.
type watched struct {
	Service
	watch func(ctx context.Context, f func(appliance.Task) error) error
}

func (w watched) WatchTask(ctx context.Context, _ string, f func(appliance.Task) error) error {
	return w.watch(ctx, f)
}

// streamed runs a stream and returns what was written.
func streamed(t *testing.T, ctx context.Context, watch func(ctx context.Context, f func(appliance.Task) error) error) *httptest.ResponseRecorder {
	t.Helper()
	s, _, err := build(Options{Service: watched{watch: watch}})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	s.stream(ctx, w, "t", "watch task")
	return w
}

// TestSignsOfLife: a comment every 15 s, while the service has nothing to tell.
func TestSignsOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := streamed(t, t.Context(), func(_ context.Context, f func(appliance.Task) error) error {
			_ = f(appliance.Task{ID: "t", State: appliance.TaskRunning})
			time.Sleep(50 * time.Second)
			return f(appliance.Task{ID: "t", State: appliance.TaskSucceeded})
		})
		events := strings.Split(strings.TrimSuffix(w.Body.String(), "\n\n"), "\n\n")
		if len(events) != 5 || !strings.HasPrefix(events[0], "event: task\ndata: {\"id\":\"t\"") || !strings.Contains(events[4], `"succeeded"`) {
			t.Fatalf("the stream was %q", events)
		}
		for _, e := range events[1:4] {
			if !strings.HasPrefix(e, ":") {
				t.Errorf("%q is no comment", e)
			}
		}
		if h := w.Result().Header; h.Get("Content-Type") != "text/event-stream" || h.Get("Cache-Control") != "no-store" || !w.Flushed {
			t.Errorf("headers %v, flushed %v", h, w.Flushed)
		}
	})
}

// TestStreamEnds: when the server ends, when the client goes, when the service fails or panics; the service's goroutine
// is waited for each time.
func TestStreamEnds(t *testing.T) {
	for name, c := range map[string]struct {
		ctx   func(context.Context) context.Context
		watch func(ctx context.Context, f func(appliance.Task) error) error
		says  string
	}{
		"the server ends": {
			func(ctx context.Context) context.Context {
				c := make(chan struct{})
				close(c)
				return context.WithValue(ctx, closingKey{}, (<-chan struct{})(c))
			}, func(ctx context.Context, _ func(appliance.Task) error) error { <-ctx.Done(); return ctx.Err() }, "",
		},
		"the client goes": {
			func(ctx context.Context) context.Context {
				ctx, cancel := context.WithCancel(ctx)
				cancel()
				return ctx
			}, func(ctx context.Context, _ func(appliance.Task) error) error { <-ctx.Done(); return ctx.Err() }, "",
		},
		"the service fails": {
			nil, func(context.Context, func(appliance.Task) error) error { return errors.New("lost") },
			"event: problem\ndata: {\"type\":\"urn:holdfast:problem:internal\",\"title\":\"internal error\",\"status\":500,\"detail\":\"watch task: lost\"",
		},
		"the service panics": {
			nil, func(context.Context, func(appliance.Task) error) error { panic("oh") }, "event: problem\ndata: {\"type\":\"urn:holdfast:problem:internal\"",
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			if c.ctx != nil {
				ctx = c.ctx(ctx)
			}
			ended := false
			got := streamed(t, ctx, func(ctx context.Context, f func(appliance.Task) error) error {
				defer func() { ended = true }()
				return c.watch(ctx, f)
			}).Body.String()
			if !strings.HasPrefix(got, c.says) || c.says == "" && got != "" {
				t.Errorf("%s: the stream was %q", name, got)
			}
			if !ended {
				t.Errorf("%s: the service still watches", name)
			}
		})
	}
}

// TestAStalledClient: one that takes nothing any more loses its stream.
func TestAStalledClient(t *testing.T) {
	s, _, err := build(Options{Service: watched{watch: func(ctx context.Context, f func(appliance.Task) error) error {
		return f(appliance.Task{ID: "t"})
	}}})
	if err != nil {
		t.Fatal(err)
	}
	w := &stalled{ResponseRecorder: httptest.NewRecorder()}
	began := time.Now()
	s.stream(t.Context(), w, "t", "watch task")
	if d := w.deadline.Sub(began); d < writeTime/2 || d > 2*writeTime {
		t.Errorf("the write had until %v after its beginning", d)
	}
}

// stalled is a connection that accepts nothing until its deadline.
type stalled struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (s *stalled) SetWriteDeadline(t time.Time) error { s.deadline = t; return nil }
func (s *stalled) Write([]byte) (int, error)          { return 0, http.ErrHandlerTimeout }
