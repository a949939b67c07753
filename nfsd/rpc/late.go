package rpc

import (
	"sync"
	"time"
)

// graceShare is the part of Limits.Deadline that a procedure has, once its context has ended, to say so itself: what it
// says is better than what Late knows.
const graceShare = 16

// late answers a call whose procedure does not return: a read of a disk that hangs in the kernel heeds no context, and
// a client that is not answered gives its disk up.
type late struct {
	mu    sync.Mutex // guards due, and is held while the call is answered
	due   time.Time  // zero when nobody waits for the procedure
	timer *time.Timer

	// answered is written by the timer under mu, and read by the call's own goroutine after unwatch.
	answered bool
}

// watch begins to wait for the procedure of a call on a connection.
func (p *pending) watch(due time.Time) {
	if p.conn == nil {
		return
	}
	l := &p.late
	l.mu.Lock()
	l.due = due
	l.mu.Unlock()
	if l.timer == nil {
		l.timer = time.AfterFunc(time.Until(due), p.overdue)
		return
	}
	l.timer.Reset(time.Until(due))
}

// unwatch ends what watch began. If the call is being answered, it waits for that.
func (p *pending) unwatch() {
	if p.conn == nil {
		return
	}
	l := &p.late
	l.timer.Stop()
	l.mu.Lock()
	l.due = time.Time{}
	l.mu.Unlock()
}

// overdue runs when the timer ends, perhaps one that was stopped too late for a call that ended: the object may hold
// another one by now.
func (p *pending) overdue() {
	l := &p.late
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.due.IsZero() || time.Now().Before(l.due) {
		return
	}
	l.answered = true
	s := p.conn.srv
	s.counters.late.Add(1)
	s.log.Warn("a call was answered without its procedure, which does not return", "op", p.proc.Name, "peer", p.Peer)
	r := Reply{pool: &s.buffers}
	r.start(p.XID)
	p.proc.answer(&p.Call, &r)
	if p.entry != nil {
		s.cache.finish(p.Peer, p.entry, r.Out)
	}
	p.conn.reply(&r, false)
}

// answer completes the reply of a call that is not answered in time.
func (proc *Procedure) answer(c *Call, r *Reply) {
	if proc.Late != nil {
		proc.Late(c, r)
	} else {
		r.accept(acceptSystemErr)
	}
	r.finish()
}

// putOff completes the reply of a call of which only the beginning was read.
func (s *Server) putOff(p *pending) {
	if p.proc == nil {
		return // there is an answer already
	}
	s.counters.putOff.Add(1)
	p.proc.answer(&p.Call, &p.reply)
	p.proc = nil
}
