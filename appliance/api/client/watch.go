package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// WatchTask implements api.Service. A stream that breaks off is taken up again, so that a watch outlives a restart of
// the node: f then sees the same state once more.
func (c *Client) WatchTask(ctx context.Context, id string, f func(appliance.Task) error) error {
	path, err := at("tasks", id, "/events")
	if err != nil {
		return err
	}
	w := &watch{c: c, f: f}
	for tries := 0; ; tries++ {
		began := time.Now()
		err := w.follow(ctx, path)
		switch {
		case w.ended:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case !errs.Is(err, errs.Transient) || !w.seen: // it never began: whoever asked wants to know that now
			return err
		}
		if time.Since(began) > c.quiet {
			tries = 0 // it had gone well for long: this is another break
		}
		if tries == len(c.pauses) {
			return err
		}
		select {
		case <-time.After(c.pauses[tries]):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watch is one WatchTask, over as many streams as it takes.
type watch struct {
	c     *Client
	f     func(appliance.Task) error
	seen  bool // there was an event
	ended bool // the task has ended, f wants no more, or the node has said why it cannot go on
}

// errQuiet ends a stream over which nothing comes any more, not even the signs of life.
var errQuiet = errors.New("no sign of life for too long")

// follow reads one stream to its end. Without w.ended, the error says why there was nothing more.
func (w *watch) follow(ctx context.Context, path string) error {
	own, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := w.c.send(own, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	alive := time.AfterFunc(w.c.quiet, func() { cancel(errQuiet) })
	defer alive.Stop()
	s := bufio.NewScanner(resp.Body)
	s.Buffer(make([]byte, 0, 4096), maxEvent)
	for {
		name, data, more := nextEvent(s, func() { alive.Reset(w.c.quiet) })
		if !more {
			break
		}
		if err := w.event(name, data); err != nil || w.ended {
			return err
		}
	}
	err = s.Err()
	if context.Cause(own) == errQuiet {
		err = errQuiet
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return errs.New("watch a task of node", w.c.node, errs.Transient, err).
		WithNext("The task goes on without being watched. Is holdfastd still running? " +
			"On the node, see `systemctl status holdfastd`.")
}

// event acts on one event. Names that are not known yet are left alone.
func (w *watch) event(name string, data []byte) error {
	w.seen = true
	var task appliance.Task
	var problem api.ProblemDetails
	var into any = &task
	switch name {
	case api.EventTask:
	case api.EventProblem:
		into = &problem
	default:
		return nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return errs.New("read the events of node", w.c.node, errs.Bug, err)
	}
	if name == api.EventProblem {
		w.ended = true
		return problem.Err()
	}
	err := w.f(task)
	w.ended = err != nil || task.State.Ended()
	return err
}

// maxEvent bounds a line of an event in bytes.
const maxEvent = 16 << 20

// nextEvent reads a server-sent event. heard is called for every line, comments too. An event that the end of the stream
// cuts short is none.
func nextEvent(s *bufio.Scanner, heard func()) (name string, data []byte, more bool) {
	var lines []string
	for s.Scan() {
		heard()
		field, value, _ := strings.Cut(s.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case s.Text() == "" && lines != nil:
			return name, []byte(strings.Join(lines, "\n")), true
		case s.Text() == "":
			name = ""
		case field == "event":
			name = value
		case field == "data":
			lines = append(lines, value)
		}
	}
	return "", nil, false
}
