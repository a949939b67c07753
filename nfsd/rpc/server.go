package rpc

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Options makes a Server.
type Options struct {
	Programs []Program
	// Known tells whether a client may expect more than to be refused; nil knows everybody. It is asked often.
	Known  func(netip.Addr) bool
	Limits Limits
	Events Events
	Logger *slog.Logger // nil is silent
}

// Server runs programs for the connections of any number of listeners.
type Server struct {
	programs []*program
	known    func(netip.Addr) bool
	limits   Limits
	events   Events
	log      *slog.Logger
	cache    *cache
	buffers  pool
	pending  sync.Pool
	counters counters

	mu        sync.Mutex // guards what follows
	draining  bool
	listeners map[net.Listener]context.CancelFunc
	conns     map[*conn]struct{}
	strangers int
	running   sync.WaitGroup // connections
}

// program is a Program with counters.
type program struct {
	Program
	low, high uint32
	counts    map[uint32][]procedureCounters
}

type procedureCounters struct{ calls, failed, nanos, bytes atomic.Uint64 }

type counters struct {
	inFlight, accepted, replayed, dropped, panics, broken, late, putOff atomic.Int64
}

// New returns a Server that serves nothing yet.
func New(o Options) *Server {
	s := &Server{known: o.Known, limits: o.Limits.withDefaults(), events: o.Events, log: o.Logger, cache: newCache(),
		listeners: map[net.Listener]context.CancelFunc{}, conns: map[*conn]struct{}{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.known == nil {
		s.known = func(netip.Addr) bool { return true }
	}
	for _, p := range o.Programs {
		q := &program{Program: p, low: ^uint32(0), counts: map[uint32][]procedureCounters{}}
		for v, procs := range p.Versions {
			q.low, q.high = min(q.low, v), max(q.high, v)
			q.counts[v] = make([]procedureCounters, len(procs))
		}
		s.programs = append(s.programs, q)
	}
	return s
}

// Serve takes connections from ln, which it closes, until Shutdown was called or ctx ended, and then returns nil. The
// end of ctx breaks the connections and cancels their calls; Serve returns after the last of them.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !s.addListener(ln, cancel) {
		_ = ln.Close()
		return errs.Text("serve", ln.Addr().String(), errs.Invalid, "the server was shut down")
	}
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var mine sync.WaitGroup
	s.accept(ctx, ln, &mine)
	mine.Wait()
	s.mu.Lock()
	delete(s.listeners, ln)
	s.mu.Unlock()
	return nil
}

func (s *Server) addListener(ln net.Listener, cancel context.CancelFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return false
	}
	s.listeners[ln] = cancel
	return true
}

// accept starts a goroutine per connection. It outlasts a lack of file descriptors and ends when ln is closed.
func (s *Server) accept(ctx context.Context, ln net.Listener, mine *sync.WaitGroup) {
	const firstPause, longestPause = 5 * time.Millisecond, time.Second
	pause := firstPause
	for {
		nc, err := ln.Accept()
		if err == nil {
			pause = firstPause
			if c := s.newConn(ctx, nc); c != nil {
				mine.Go(c.serve)
			}
			continue
		}
		if ctx.Err() != nil || s.isDraining() || errors.Is(err, net.ErrClosed) {
			_ = ln.Close()
			return
		}
		s.log.Warn("cannot accept a connection", "op", "accept", "err", err)
		select {
		case <-time.After(pause):
			pause = min(2*pause, longestPause)
		case <-ctx.Done():
		}
	}
}

func (s *Server) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// newConn notes a connection, or closes it when there are too many.
func (s *Server) newConn(ctx context.Context, nc net.Conn) *conn {
	peer := peerOf(nc.RemoteAddr())
	stranger := !s.known(peer)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining || len(s.conns) >= s.limits.Conns || stranger && s.strangers >= (s.limits.Conns+7)/8 {
		_ = nc.Close()
		return nil
	}
	c := newConn(ctx, s, nc, peer)
	c.stranger, c.trusted = stranger, !stranger
	if stranger {
		s.strangers++
	}
	s.conns[c] = struct{}{}
	s.running.Add(1)
	s.counters.accepted.Add(1)
	return c
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	if c.stranger {
		s.strangers--
	}
	s.mu.Unlock()
	s.running.Done()
}

// Shutdown stops taking connections and calls, lets the calls that run finish and be answered, and closes the
// connections. When ctx ends first it breaks what is left and returns errs.Canceled. A client sends what was not
// answered again to the server's successor.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	cancels := make([]context.CancelFunc, 0, len(s.listeners))
	for ln, cancel := range s.listeners {
		_ = ln.Close()
		cancels = append(cancels, cancel)
	}
	for c := range s.conns {
		c.drain()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { // ends with the last connection, which ends soon after cancel at the latest
		s.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	for _, cancel := range cancels {
		cancel()
	}
	return errs.New("shut down the server", "", errs.Canceled, ctx.Err())
}

// peerOf returns a connection's address without port, never 4-in-6; the zero Addr if there is none.
func peerOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case nil:
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// ProcedureStats counts one procedure.
type ProcedureStats struct {
	Program   string
	Procedure string
	Calls     uint64
	Failed    uint64        // calls with a status other than 0
	Bytes     uint64        // file data moved
	Time      time.Duration // sum over all calls
}

// Stats is a reading of a Server's counters.
type Stats struct {
	Procedures []ProcedureStats // those that were called, in the order of programs, versions and numbers
	Conns      int              // open connections
	Accepted   int64            // connections ever taken
	InFlight   int64            // calls that run now
	Replayed   int64            // repeated calls answered from memory
	Dropped    int64            // repeated calls dropped because the first one was running
	Panics     int64
	Broken     int64 // connections closed because of what the client sent or did not take
	Late       int64 // calls that were answered before their procedure returned
	PutOff     int64 // calls that were answered unread because there was no room for their records
}

// Stats reads the counters. They are not read at one instant.
func (s *Server) Stats() Stats {
	c := &s.counters
	st := Stats{Accepted: c.accepted.Load(), InFlight: c.inFlight.Load(), Replayed: c.replayed.Load(),
		Dropped: c.dropped.Load(), Panics: c.panics.Load(), Broken: c.broken.Load(), Late: c.late.Load(),
		PutOff: c.putOff.Load()}
	s.mu.Lock()
	st.Conns = len(s.conns)
	s.mu.Unlock()
	for _, p := range s.programs {
		versions := make([]uint32, 0, len(p.counts))
		for v := range p.counts {
			versions = append(versions, v)
		}
		slices.Sort(versions)
		for _, v := range versions {
			for i := range p.counts[v] {
				n := &p.counts[v][i]
				if calls := n.calls.Load(); calls > 0 {
					st.Procedures = append(st.Procedures, ProcedureStats{Program: p.Name,
						Procedure: p.Versions[v][i].Name, Calls: calls, Failed: n.failed.Load(),
						Bytes: n.bytes.Load(), Time: time.Duration(n.nanos.Load())})
				}
			}
		}
	}
	return st
}
