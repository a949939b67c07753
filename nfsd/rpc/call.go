package rpc

import (
	"context"
	"errors"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"time"

	nfs "github.com/willscott/go-nfs"
)

// pending is a call from its record to its reply. Objects are reused: whoever holds one past its end is a bug.
type pending struct {
	Call
	reply   Reply
	head    [1024]byte // where reply.Out begins; enough for every reply but listings
	rec     *buffer
	arrived time.Time

	recordLen int // bytes of the record so far

	prog  *program
	proc  *Procedure // nil: the reply is complete
	count *procedureCounters
	entry *cacheEntry

	conn     *conn // nil for a datagram
	places   int64 // weight held of the connection's budgets
	records  int64
	bulk     int64
	small    int64
	marked   atomic.Bool // see Call.MarkSmall
	late     late
	reserved func(ctx context.Context, bulk bool, n int) error // bound once per object
}

func (s *Server) getPending() *pending {
	p, ok := s.pending.Get().(*pending)
	if !ok {
		p = &pending{}
		p.reply.pool = &s.buffers
		p.reserved = p.take
	}
	p.reply.Out = p.head[:0]
	return p
}

// putPending gives back everything p holds.
func (s *Server) putPending(p *pending) {
	s.buffers.put(p.rec)
	s.buffers.put(p.reply.body)
	if c := p.conn; c != nil {
		c.count.Release(p.places)
		c.records.Release(p.records)
		c.bulk.Release(p.bulk)
		c.small.Release(p.small)
	}
	p.Call = Call{}
	p.reply = Reply{pool: p.reply.pool}
	p.rec, p.prog, p.proc, p.count, p.entry, p.conn = nil, nil, nil, nil, nil, nil
	p.recordLen, p.places, p.records, p.bulk, p.small = 0, 0, 0, 0, 0
	p.marked.Store(false)
	p.late.answered = false
	s.pending.Put(p)
}

// take implements Call.Reserve.
func (p *pending) take(ctx context.Context, bulk bool, n int) error {
	c := p.conn
	if c == nil {
		return ctx.Err()
	}
	l := &c.srv.limits
	if bulk {
		// One semaphore holds count and bytes: a call weighs at least its share of the count.
		w := int64(min(max(n, l.BulkBytes/l.BulkCalls), l.BulkBytes))
		if err := c.bulk.Acquire(ctx, w); err != nil {
			return err
		}
		p.bulk = w
		return nil
	}
	w := int64(min(n, l.SmallBytes))
	if err := c.small.Acquire(ctx, w); err != nil {
		return err
	}
	p.small = w
	return nil
}

// errNoCall closes a connection that carries something else than calls.
var errNoCall = errors.New("the record holds no RPC call")

// begin reads a record's header. It leaves p.proc nil if the reply is complete already, and fails if there can be no
// reply.
func (s *Server) begin(p *pending, rec []byte, peer netip.Addr) error {
	cur := NewCursor(rec)
	p.XID = cur.Uint32()
	kind := cur.Uint32()
	version := cur.Uint32()
	if cur.Err() != nil || kind != msgCall {
		return errNoCall
	}
	p.reply.start(p.XID)
	if version != rpcVersion {
		p.reply.deny(rejectRPCMismatch, rpcVersion, rpcVersion)
		return nil
	}
	p.Program, p.Version, p.Procedure = cur.Uint32(), cur.Uint32(), cur.Uint32()
	if cur.Err() != nil {
		return errNoCall
	}
	if stat := parseAuth(&cur, &p.Cred); stat != nfs.AuthStatOK {
		p.reply.deny(rejectAuthError, uint32(stat))
		return nil
	}
	p.Peer, p.Args, p.reserve, p.Call.small = peer, cur.Rest(), p.reserved, &p.marked
	s.find(p)
	return nil
}

// find sets p.proc, or answers that there is none.
func (s *Server) find(p *pending) {
	for _, prog := range s.programs {
		if prog.Number != p.Program {
			continue
		}
		procs, ok := prog.Versions[p.Version]
		if !ok {
			p.reply.accept(acceptProgMismatch, prog.low, prog.high)
			return
		}
		if uint64(p.Procedure) >= uint64(len(procs)) || procs[p.Procedure].Serve == nil {
			p.reply.accept(acceptProcUnavail)
			return
		}
		p.prog, p.proc = prog, &procs[p.Procedure]
		p.count = &prog.counts[p.Version][p.Procedure]
		return
	}
	p.reply.accept(acceptProgUnavail)
}

// execute runs the procedure and completes the reply, whatever happens.
func (s *Server) execute(ctx context.Context, p *pending) {
	s.counters.inFlight.Add(1)
	due := p.arrived.Add(s.limits.Deadline)
	ctx, cancel := context.WithDeadline(ctx, due.Add(-s.limits.Deadline/graceShare))
	p.watch(due)
	s.guarded(ctx, p)
	p.unwatch()
	cancel()
	s.counters.inFlight.Add(-1)
	took := time.Since(p.arrived)
	p.count.calls.Add(1)
	p.count.nanos.Add(uint64(took))
	if p.reply.Status != 0 {
		p.count.failed.Add(1)
	}
	p.count.bytes.Add(uint64(p.reply.Bytes))
	if s.events.Call != nil {
		s.events.Call(CallInfo{Program: p.prog.Name, Procedure: p.proc.Name, Peer: p.Peer, Duration: took,
			Bytes: p.reply.Bytes, Status: p.reply.Status, Err: p.reply.Err})
	}
	if p.entry != nil && !p.late.answered {
		p.reply.finish()
		s.cache.finish(p.Peer, p.entry, p.reply.Out)
	}
}

// statusSystemErr stands in Reply.Status for a call that ended without a result of its program.
const statusSystemErr = ^uint32(0)

func (s *Server) guarded(ctx context.Context, p *pending) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		// The procedure may have kept slices of these: they must not be reused.
		p.rec, p.reply.body = nil, nil
		p.reply.accept(acceptSystemErr)
		p.reply.Status = statusSystemErr
		s.counters.panics.Add(1)
		stack := debug.Stack()
		s.log.Error("a procedure panicked", "op", p.proc.Name, "peer", p.Peer, "panic", v, "stack", string(stack))
		if s.events.Panic != nil {
			s.events.Panic(PanicInfo{Program: p.prog.Name, Procedure: p.proc.Name, Peer: p.Peer, Value: v, Stack: stack})
		}
	}()
	switch err := p.proc.Serve(ctx, &p.Call, &p.reply); {
	case err == nil:
	case errors.Is(err, ErrGarbage):
		p.reply.accept(acceptGarbageArgs)
		p.reply.Status, p.reply.Err = statusSystemErr, err
	default:
		p.reply.accept(acceptSystemErr)
		p.reply.Status, p.reply.Err = statusSystemErr, err
		s.log.Error("a procedure failed", "op", p.proc.Name, "peer", p.Peer, "err", err)
	}
}

// Datagram answers one call that came in a datagram, or returns nil if there is nothing to answer. Large replies and
// the memory for repeated calls are for connections only.
func (s *Server) Datagram(ctx context.Context, peer netip.Addr, in []byte) []byte {
	p := s.getPending()
	defer s.putPending(p)
	p.arrived = time.Now()
	if s.begin(p, in, peer) != nil {
		return nil
	}
	if p.proc != nil {
		s.execute(ctx, p)
	}
	p.reply.finish()
	return append(append([]byte{}, p.reply.Out[4:]...), p.reply.padded()...)
}
