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
	for tries := 0; ; {
		began := time.Now()
		ended, err := c.follow(ctx, path, f)
		if ended || ctx.Err() != nil || !errs.Is(err, errs.Transient) {
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
		tries++
	}
}

// follow reads one stream. ended tells that there is nothing to come back for: the task has ended or f wants no more.
func (c *Client) follow(ctx context.Context, path string, f func(appliance.Task) error) (ended bool, err error) {
	own, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := c.send(own, http.MethodGet, path, nil)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	alive := time.AfterFunc(c.quiet, func() { cancel(errQuiet) })
	defer alive.Stop()
	err = events(resp.Body, func() { alive.Reset(c.quiet) }, func(name string, data []byte) error {
		switch name {
		case api.EventTask:
			var t appliance.Task
			if err := json.Unmarshal(data, &t); err != nil {
				return errs.New("read the events of node", c.node, errs.Bug, err)
			}
			if err := f(t); err != nil || t.State.Ended() {
				ended = true
				return err
			}
		case api.EventProblem:
			var p api.ProblemDetails
			if err := json.Unmarshal(data, &p); err != nil {
				return errs.New("read the events of node", c.node, errs.Bug, err)
			}
			ended = true
			return p.Err()
		}
		return nil
	}, &ended)
	switch {
	case ended:
		return true, err
	case ctx.Err() != nil:
		return false, ctx.Err()
	case context.Cause(own) == errQuiet:
		err = errQuiet
	case err == nil || errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	var known *errs.Error
	if errors.As(err, &known) {
		return false, err
	}
	return false, errs.New("watch a task of node", c.node, errs.Transient, err).
		WithNext("The task goes on without being watched. Is holdfastd still running? See `systemctl status holdfastd` on the node.")
}

// maxEvent bounds an event in bytes.
const maxEvent = 16 << 20

// events reads server-sent events until done, the end of the stream or an error of f. heard is called for each line.
func events(r io.Reader, heard func(), f func(name string, data []byte) error, done *bool) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4096), maxEvent)
	var name string
	var data []string
	for s.Scan() {
		heard()
		field, value, _ := strings.Cut(s.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case s.Text() == "":
			if len(data) > 0 {
				if err := f(name, []byte(strings.Join(data, "\n"))); err != nil || *done {
					return err
				}
			}
			name, data = "", nil
		case field == "event":
			name = value
		case field == "data":
			data = append(data, value)
		}
	}
	return s.Err()
}
