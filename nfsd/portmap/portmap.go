// Package portmap is a port mapper, version 2 (RFC 1833, section 3), for clients that cannot be told a port: qemu's own
// NFS driver, and mounts without port options. It answers NULL, GETPORT and DUMP from a fixed list, on TCP and UDP.
//
// Nobody can register anything, and nothing is called on behalf of others (CALLIT). Versions 3 and 4 are answered
// PROG_MISMATCH, after which clients ask again with version 2. A UDP answer is at most a few times larger than its
// question.
//
// Concurrency: the list never changes. Tests: every procedure over both transports, malformed datagrams, and libnfs
// and qemu in nfsd's tests.
package portmap

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// Number and Version name the program; Port is where clients look for it.
const (
	Number  = 100000
	Version = 2
	Port    = 111
)

// The transports that an Entry names by their IP protocol numbers.
const (
	TCP = 6
	UDP = 17
)

// Entry says where a program is served.
type Entry struct {
	Program, Version, Protocol, Port uint32
}

// The procedures (RFC 1833, section 3.2).
const (
	procNull    = 0
	procGetPort = 3
	procDump    = 4
)

// Program returns the port mapper's program, for a server that has it on a port of its own.
func Program(entries []Entry) rpc.Program {
	procs := make([]rpc.Procedure, procDump+1)
	procs[procNull] = rpc.Procedure{Name: "Null", Serve: func(context.Context, *rpc.Call, *rpc.Reply) error { return nil }}
	procs[procGetPort] = rpc.Procedure{Name: "GetPort", Serve: func(_ context.Context, c *rpc.Call, r *rpc.Reply) error {
		cur := rpc.NewCursor(c.Args)
		program, version, protocol, _ := cur.Uint32(), cur.Uint32(), cur.Uint32(), cur.Uint32()
		if err := cur.Err(); err != nil {
			return err
		}
		r.Out = binary.BigEndian.AppendUint32(r.Out, find(entries, program, version, protocol))
		return nil
	}}
	procs[procDump] = rpc.Procedure{Name: "Dump", Serve: func(_ context.Context, _ *rpc.Call, r *rpc.Reply) error {
		for _, e := range entries {
			for _, w := range [...]uint32{1, e.Program, e.Version, e.Protocol, e.Port} {
				r.Out = binary.BigEndian.AppendUint32(r.Out, w)
			}
		}
		r.Out = binary.BigEndian.AppendUint32(r.Out, 0)
		return nil
	}}
	return rpc.Program{Number: Number, Name: "portmap", Versions: map[uint32][]rpc.Procedure{Version: procs}}
}

// find returns a port, or 0. A program in another version than asked for is better than none: the client then hears
// from the program itself which versions there are.
func find(entries []Entry, program, version, protocol uint32) uint32 {
	other := uint32(0)
	for _, e := range entries {
		if e.Program != program || e.Protocol != protocol {
			continue
		}
		if e.Version == version {
			return e.Port
		}
		other = e.Port
	}
	return other
}

// Server is a port mapper on one address.
type Server struct {
	rpc    *rpc.Server
	tcp    net.Listener
	udp    net.PacketConn
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// limits are tight: whoever can reach the port may ask. All are strangers, so 64 connections are taken at once.
var limits = rpc.Limits{Record: 1024, Calls: 8, RecordBytes: 8192, SmallBytes: 8192, BulkBytes: 1, BulkCalls: 1,
	Conns: 512, StrangerIdle: 30 * time.Second}

// Listen serves entries on addr ("address:port"), on TCP and UDP, until ctx ends or Close is called.
func Listen(ctx context.Context, addr string, entries []Entry) (*Server, error) {
	return ListenLog(ctx, addr, entries, nil)
}

// ListenLog is Listen with a logger.
func ListenLog(ctx context.Context, addr string, entries []Entry, log *slog.Logger) (*Server, error) {
	const op = "serve port mapper"
	var lc net.ListenConfig
	tcp, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, errs.Wrap(op, addr, err)
	}
	// With port 0 the second transport takes the port that the first one got.
	udp, err := lc.ListenPacket(ctx, "udp", tcp.Addr().String())
	if err != nil {
		_ = tcp.Close()
		return nil, errs.Wrap(op, addr, err)
	}
	s := &Server{tcp: tcp, udp: udp}
	// Every client is a stranger here: idle connections are closed.
	s.rpc = rpc.New(rpc.Options{Programs: []rpc.Program{Program(entries)}, Limits: limits, Logger: log,
		Known: func(netip.Addr) bool { return false }})
	ctx, s.cancel = context.WithCancel(ctx)
	s.done.Go(func() { _ = s.rpc.Serve(ctx, tcp) }) // returns nil: the server is never drained
	s.done.Go(func() { s.datagrams(ctx) })
	return s, nil
}

// Addr returns the address served, the same for both transports.
func (s *Server) Addr() netip.AddrPort { return s.tcp.Addr().(*net.TCPAddr).AddrPort() }

// Close stops the server.
func (s *Server) Close() {
	s.cancel()
	s.done.Wait()
}

// datagrams answers calls on UDP one after the other: none of them waits for anything.
func (s *Server) datagrams(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = s.udp.Close() })
	defer stop()
	buf := make([]byte, limits.Record)
	for {
		n, from, err := s.udp.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of an earlier answer; the socket is fine
		}
		if ua, ok := from.(*net.UDPAddr); ok {
			if out := s.rpc.Datagram(ctx, ua.AddrPort().Addr().Unmap(), buf[:n]); out != nil {
				_, _ = s.udp.WriteTo(out, from) // a lost answer is asked for again
			}
		}
	}
}
