package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// maxQueuedEvents bounds what one Events holds for a reader that does not come. A real machine sends a handful.
const maxQueuedEvents = 1024

// QMP is a client of qemu's machine protocol. One goroutine reads; any number may execute and wait at the same time.
type QMP struct {
	conn net.Conn
	done chan struct{} // closed when the reader has ended

	mu      sync.Mutex // guards what follows, and writing to conn
	next    uint64
	waiting map[uint64]chan reply
	events  map[*Events]bool
	err     error // why the connection ended; set once
}

// QMPError is an answer by which qemu refuses a command.
type QMPError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// Error implements error.
func (e *QMPError) Error() string { return e.Desc + " (" + e.Class + ")" }

// Event is something that happened in the machine.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// Field returns a text of the event's data, or "".
func (e Event) Field(name string) string {
	var m map[string]any
	_ = json.Unmarshal(e.Data, &m) // an event without data has no fields
	s, _ := m[name].(string)
	return s
}

// message is any line that qemu sends.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *QMPError       `json:"error"`
	Event
}

type reply struct {
	value json.RawMessage
	err   error
}

// request is any line that qemu is sent.
type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

// NewQMP speaks the greeting and leaves the negotiation mode. It owns conn from then on.
func NewQMP(ctx context.Context, conn net.Conn) (*QMP, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	dec := json.NewDecoder(conn)
	var hello message
	err := dec.Decode(&hello)
	if err == nil && hello.Greeting == nil {
		err = errors.New("the other side does not greet as qemu does")
	}
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, errs.Wrap("open", "QMP", err)
	}
	q := &QMP{conn: conn, done: make(chan struct{}), waiting: map[uint64]chan reply{}, events: map[*Events]bool{}}
	go q.read(dec)
	if err := q.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		q.Close()
		return nil, err
	}
	return q, nil
}

// Close ends the connection and waits for the reader.
func (q *QMP) Close() {
	_ = q.conn.Close() // nothing is left to be written
	<-q.done
}

// Execute runs a command. arguments may be nil; what qemu returns is decoded into result unless that is nil.
func (q *QMP) Execute(ctx context.Context, command string, arguments, result any) error {
	id, answer, err := q.send(command, arguments)
	if err != nil {
		return errs.Wrap("execute", command, err)
	}
	var r reply
	select {
	case r = <-answer:
	case <-ctx.Done():
		q.mu.Lock()
		delete(q.waiting, id)
		q.mu.Unlock()
		return errs.Wrap("execute", command, ctx.Err())
	}
	if r.err != nil {
		return errs.New("execute", command, kindOf(r.err), r.err)
	}
	if result != nil {
		if err := json.Unmarshal(r.value, result); err != nil {
			return errs.New("read the answer of", command, errs.Bug, err)
		}
	}
	return nil
}

func (q *QMP) send(command string, arguments any) (uint64, chan reply, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return 0, nil, q.err
	}
	q.next++
	line, err := json.Marshal(request{command, arguments, q.next})
	if err != nil {
		return 0, nil, err
	}
	answer := make(chan reply, 1)
	q.waiting[q.next] = answer
	if _, err := q.conn.Write(append(line, '\n')); err != nil {
		delete(q.waiting, q.next)
		return 0, nil, gone(err)
	}
	return q.next, answer, nil
}

// read hands out every line until the connection ends.
func (q *QMP) read(dec *json.Decoder) {
	defer close(q.done)
	for {
		var m message
		if err := dec.Decode(&m); err != nil {
			q.end(gone(err))
			return
		}
		switch {
		case m.ID != nil:
			q.mu.Lock()
			answer := q.waiting[*m.ID]
			delete(q.waiting, *m.ID)
			q.mu.Unlock()
			if answer == nil {
				continue // whoever asked has given up
			}
			if m.Error != nil {
				answer <- reply{err: m.Error}
			} else {
				answer <- reply{value: m.Return}
			}
		case m.Name != "":
			q.mu.Lock()
			for e := range q.events {
				e.offer(m.Event)
			}
			q.mu.Unlock()
		}
	}
}

// end answers everybody who still waits.
func (q *QMP) end(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = err
	for id, answer := range q.waiting {
		answer <- reply{err: err}
		delete(q.waiting, id)
	}
	for e := range q.events {
		close(e.queue)
		delete(q.events, e)
	}
}

// gone is the error of a connection that ended: the machine we held is no more.
func gone(err error) error {
	if errors.Is(err, io.EOF) {
		err = errors.New("qemu closed the connection")
	}
	return errs.New("talk to", "qemu", errs.Stale, err)
}

func kindOf(err error) errs.Kind {
	var e *QMPError
	if !errors.As(err, &e) {
		return errs.KindOf(err)
	}
	switch e.Class {
	case "DeviceNotFound", "DeviceNotActive":
		return errs.NotFound
	case "CommandNotFound":
		return errs.Unsupported
	}
	return errs.Invalid
}

// Events collects events from the moment it was made, so that none is missed between a command and its outcome.
type Events struct {
	q     *QMP
	names map[string]bool
	queue chan Event
}

// Events starts to collect the events of the given names. The caller closes it.
func (q *QMP) Events(names ...string) *Events {
	e := &Events{q: q, names: map[string]bool{}, queue: make(chan Event, maxQueuedEvents)}
	for _, n := range names {
		e.names[n] = true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		close(e.queue)
		return e
	}
	q.events[e] = true
	return e
}

// offer is called with q.mu held. Nobody may hold up the reader: what does not fit is lost, and Next would time out.
func (e *Events) offer(ev Event) {
	if !e.names[ev.Name] {
		return
	}
	select {
	case e.queue <- ev:
	default:
	}
}

// Next returns the next event that match accepts; others are dropped. A nil match accepts all.
func (e *Events) Next(ctx context.Context, match func(Event) bool) (Event, error) {
	for {
		select {
		case ev, ok := <-e.queue:
			if !ok {
				return Event{}, errs.Text("wait for", "an event", errs.Stale, "qemu closed the connection")
			}
			if match == nil || match(ev) {
				return ev, nil
			}
		case <-ctx.Done():
			return Event{}, errs.Wrap("wait for", fmt.Sprint("an event of ", e.list()), ctx.Err())
		}
	}
}

func (e *Events) list() (names []string) {
	for n := range e.names {
		names = append(names, n)
	}
	return names
}

// Close stops collecting.
func (e *Events) Close() {
	e.q.mu.Lock()
	defer e.q.mu.Unlock()
	delete(e.q.events, e)
}
