package api

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/holdfast-backup/holdfast/appliance"
)

// The names of events on a stream.
const (
	EventTask    = "task"    // its data is an appliance.Task
	EventProblem = "problem" // its data is a ProblemDetails; the stream ends
)

// writeTime is how long a client may take to accept an event. One that has gone must not hold a goroutine for ever.
const writeTime = 30 * time.Second

// closingKey leads to the channel that Serve closes when streams have to end.
type closingKey struct{}

// closing returns a channel that is closed when the server wants to end; nil if nobody serves it so.
func closing(ctx context.Context) <-chan struct{} {
	c, _ := ctx.Value(closingKey{}).(<-chan struct{})
	return c
}

// events registers the stream of a task's changes.
func (s *server) events(tag string) {
	op := get("watch-task", "/tasks/{id}/events", tag, "Follow a task until it ends")
	op.Description = "Server-sent events: `task` with the task, now and after each change. A comment every 15 s shows " +
		"that the stream lives. It ends when the task has; if it ends before, ask again. A `problem` says why it could " +
		"not go on."
	text := map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}}}
	op.Responses = map[string]*huma.Response{"200": {Description: "events", Content: text}}
	s.describe(&op)
	huma.Register(s.api, op, func(ctx context.Context, in *byID) (*huma.StreamResponse, error) {
		if _, err := s.Service.GetTask(ctx, in.ID); err != nil {
			return nil, s.refuse(&op, err)
		}
		return &huma.StreamResponse{Body: func(ctx huma.Context) {
			r, w := humago.Unwrap(ctx)
			s.stream(r.Context(), w, in.ID, verb(&op))
		}}, nil
	})
}

// stream writes a task's changes until it ends, the client goes or the server wants to end. One goroutine asks the
// service; this one writes, so that signs of life go out while the service has nothing to tell.
func (s *server) stream(ctx context.Context, w http.ResponseWriter, id, op string) {
	ctx, cancel := context.WithCancel(ctx)
	changes, ended := make(chan appliance.Task), make(chan error, 1)
	go func() {
		ended <- s.watch(ctx, id, func(t appliance.Task) error {
			select {
			case changes <- t:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		close(ended)
	}()
	defer func() {
		cancel()
		for range ended { // wait for the goroutine
		}
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	e := &eventWriter{w: w, c: http.NewResponseController(w)}
	beat := time.NewTicker(s.beat)
	defer beat.Stop()
	for {
		var err error
		select {
		case t := <-changes:
			err = e.event(EventTask, t)
		case <-beat.C:
			err = e.write(": still here\n\n")
		case failed := <-ended:
			if failed != nil && ctx.Err() == nil {
				_ = e.event(EventProblem, ProblemOf(op, failed))
			}
			return
		case <-closing(ctx):
			return
		}
		if err != nil {
			return
		}
	}
}

// watch is the service's WatchTask; what panics in it ends the stream and not the node.
func (s *server) watch(ctx context.Context, id string, f func(appliance.Task) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked("watch task", p)
		}
	}()
	return s.Service.WatchTask(ctx, id, f)
}

// eventWriter writes server-sent events, each at once and in bounded time.
type eventWriter struct {
	w io.Writer
	c *http.ResponseController
}

func (e *eventWriter) event(name string, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	return e.write("event: " + name + "\ndata: " + string(b) + "\n\n")
}

func (e *eventWriter) write(text string) error {
	// A recorder in place of a connection has no deadlines, and needs none.
	_ = e.c.SetWriteDeadline(time.Now().Add(writeTime))
	if _, err := io.WriteString(e.w, text); err != nil {
		return err
	}
	return e.c.Flush()
}
