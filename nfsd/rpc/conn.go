package rpc

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"
)

// conn is one client connection.
type conn struct {
	srv      *Server
	nc       net.Conn
	peer     netip.Addr
	stranger bool // when it connected
	trusted  bool // known when it connected or later, and for the connection's life; the reader's own

	base   context.Context // ends with the listener's Serve: for calls that must not stop half way
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc

	count   *semaphore.Weighted // calls
	records *semaphore.Weighted // bytes of records longer than their share
	bulk    *semaphore.Weighted // bytes of bulk replies
	small   *semaphore.Weighted // bytes of other replies
	calls   sync.WaitGroup

	draining atomic.Bool
	broken   atomic.Bool
	armed    bool     // a read deadline is set; the reader's own
	stalled  bool     // a record was put off, and none has found room since; the reader's own
	next     *pending // the call whose record is being read; the reader's own

	turn turn
	vec  [2][]byte // whoever has the turn may use it
	bufs net.Buffers
}

// readBuffer holds many small calls, so that one system call brings them.
const readBuffer = 32 << 10

func newConn(ctx context.Context, s *Server, nc net.Conn, peer netip.Addr) *conn {
	c := &conn{srv: s, nc: nc, peer: peer, base: ctx,
		count:   semaphore.NewWeighted(int64(s.limits.Calls)),
		records: semaphore.NewWeighted(int64(s.limits.RecordBytes)),
		bulk:    semaphore.NewWeighted(int64(s.limits.BulkBytes)),
		small:   semaphore.NewWeighted(int64(s.limits.SmallBytes))}
	c.ctx, c.cancel = context.WithCancel(ctx)
	if tcp, ok := nc.(*net.TCPConn); ok {
		// A host that lost its power says nothing: 60 s + 4 * 15 s, then its connection is gone. Linux itself closes
		// after 5 idle minutes. Failing to set this is no reason to refuse a client.
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4})
	}
	return c
}

// serve reads calls until the client leaves, breaks the protocol, or the server stops. It returns after the last call.
func (c *conn) serve() {
	defer c.srv.forget(c)
	stop := context.AfterFunc(c.ctx, func() { _ = c.nc.Close() })
	err := c.read()
	switch {
	case err == io.EOF, c.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded):
		c.calls.Wait() // they may still be answered
	default:
		c.fail(err)
	}
	c.cancel()
	c.calls.Wait()
	stop()
	_ = c.nc.Close()
}

// fail breaks the connection.
func (c *conn) fail(err error) {
	left := errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	if c.base.Err() == nil && !left && c.broken.CompareAndSwap(false, true) {
		c.srv.counters.broken.Add(1)
		c.srv.log.Debug("connection closed", "op", "serve", "peer", c.peer, "err", err)
		if c.srv.events.Broken != nil {
			c.srv.events.Broken(c.peer, err)
		}
	}
	c.cancel()
}

// drain makes the reader stop at the record it is at.
func (c *conn) drain() {
	c.draining.Store(true)
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

// read starts the calls of the connection.
func (c *conn) read() error {
	s := c.srv
	r := recordReader{r: bufio.NewReaderSize(c.nc, readBuffer), pool: &s.buffers, limit: c.recordLimit,
		take: c.takeRecord, wait: c.waitForBytes}
	for {
		p := s.getPending()
		p.conn, c.next = c, p
		rec, buf, err := r.next()
		p.rec = buf
		putOff := err == errPutOff
		if putOff {
			err = nil
		}
		if err == nil && c.draining.Load() {
			err = os.ErrDeadlineExceeded
		}
		if err == nil {
			p.arrived = time.Now()
			err = s.begin(p, rec, c.peer)
		}
		if putOff && err == nil {
			s.putOff(p)
		}
		if err != nil {
			s.putPending(p)
			return err
		}
		c.start(p)
	}
}

// start runs a call, unless it is the repetition of one that runs.
func (c *conn) start(p *pending) {
	var replay []byte
	if p.proc != nil && p.proc.Once {
		v, entry := c.srv.cache.begin(&p.Call)
		switch v {
		case verdictDrop:
			c.srv.counters.dropped.Add(1)
			c.srv.putPending(p)
			return
		case verdictReplay:
			c.srv.counters.replayed.Add(1)
			replay = entry.reply
		case verdictRun:
			p.entry = entry
		}
	}
	c.calls.Add(1)
	go c.run(p, replay)
}

func (c *conn) run(p *pending, replay []byte) {
	defer c.calls.Done()
	defer c.srv.putPending(p)
	switch {
	case replay != nil:
		p.reply.Out = append(p.reply.Out[:0], replay...)
	case p.proc == nil: // answered by begin
		p.reply.finish()
	default:
		ctx := c.ctx
		if p.proc.Once {
			// A change whose client went away is finished: the client comes back and asks for the reply.
			ctx = c.base
		}
		c.srv.execute(ctx, p)
		p.reply.finish()
	}
	if !p.late.answered {
		c.reply(&p.reply, p.bulk > 0)
	}
}

// reply sends a finished reply, or breaks the connection.
func (c *conn) reply(r *Reply, bulk bool) {
	if c.ctx.Err() != nil {
		return
	}
	if err := c.send(r.Out, r.padded(), bulk); err != nil {
		c.fail(err)
	}
}

// send writes one reply.
func (c *conn) send(head, body []byte, bulk bool) error {
	if err := c.turn.take(c.ctx, bulk); err != nil {
		return err
	}
	defer c.turn.pass()
	if err := c.nc.SetWriteDeadline(time.Now().Add(c.srv.limits.WriteTimeout)); err != nil {
		return err
	}
	if len(body) == 0 {
		_, err := c.nc.Write(head)
		return err
	}
	c.vec = [2][]byte{head, body}
	c.bufs = c.vec[:]
	_, err := c.bufs.WriteTo(c.nc)
	c.vec = [2][]byte{}
	return err
}

// takeRecord takes budget for n more bytes of the record being read: one place in the count, and of the bytes what the
// record has beyond a call's share of them. A whole record that finds no room for long, because the calls before it
// hang, is put off, and so are those behind it until there is room: a small call that follows must not wait.
func (c *conn) takeRecord(n int, whole bool) error {
	l, p := &c.srv.limits, c.next
	if p.places == 0 {
		if err := c.count.Acquire(c.ctx, 1); err != nil {
			return err
		}
		p.places = 1
	}
	p.recordLen += n
	w := int64(p.recordLen) - p.records
	if p.recordLen <= l.RecordBytes/l.Calls {
		return nil
	}
	ok := c.records.TryAcquire(w)
	if !ok && whole && c.stalled {
		return errPutOff
	}
	if !ok {
		ctx, cancel := c.ctx, context.CancelFunc(func() {})
		if whole {
			ctx, cancel = context.WithTimeout(c.ctx, l.Stall)
		}
		err := c.records.Acquire(ctx, w)
		cancel()
		switch {
		case err != nil && c.ctx.Err() != nil:
			return c.ctx.Err()
		case err != nil:
			c.stalled = true
			return errPutOff
		}
	}
	c.stalled = false
	p.records += w
	return nil
}

// known tells whether the client is no stranger. An export added since it connected makes it known.
func (c *conn) known() bool {
	if !c.trusted {
		c.trusted = c.srv.known(c.peer)
	}
	return c.trusted
}

// recordLimit returns how large a record of n bytes may be.
func (c *conn) recordLimit(n int) int {
	if n <= strangerRecord || c.known() {
		return c.srv.limits.Record
	}
	return strangerRecord
}

// waitForBytes sets the time the client has for its next bytes: for ever between two calls of a known client.
func (c *conn) waitForBytes(idle bool) {
	d := c.srv.limits.RecordTime
	if idle {
		d = 0
		if !c.known() {
			d = c.srv.limits.StrangerIdle
		}
	}
	switch {
	case d > 0:
		_ = c.nc.SetReadDeadline(time.Now().Add(d)) // fails only on a closed connection, where reading fails too
		c.armed = true
	case c.armed:
		_ = c.nc.SetReadDeadline(time.Time{})
		c.armed = false
	}
	if c.draining.Load() { // drain may have set its deadline just before ours
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}
