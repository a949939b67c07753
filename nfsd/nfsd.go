// Package nfsd serves trees (fs.Tree) over NFS v3: MOUNT and NFS on one TCP port, with an RPC loop and procedures of
// its own. A VM's disk may hang on every reply, so it is built to answer, whatever one client, one file or one disk
// does to it.
//
// Terms. An Export is a tree under a path for named clients; each has an ID that is part of its file handles. A bulk
// file is a disk image (nfs3.Bulker). A peer is a client's address.
//
// What holds:
//
//  1. What was answered as durable is durable: see nfs3, 1.
//  2. A client sees an export only if the export's list allows its address, at every call.
//  3. Handles outlive the server: with the same Options.Key and export IDs its successor understands them.
//  4. Every call ends within Limits.Deadline: with data, with an error, or put off.
//  5. Memory per connection is bounded, and small calls never wait for bulk ones: see rpc, 2.
//  6. No input stops the server or disturbs another connection: see rpc, 3 and 4.
//
// Layers: rpc (records, calls, repeated calls) runs mount and nfs3, which take nodes from a handle.Table, and nlm, which
// says no to locks. portmap is a server of its own. Of go-nfs only words and types are used here; its server and client are used in tests.
//
// Specifications: RFC 1813 (NFS v3, MOUNT v3), RFC 5531 (RPC), RFC 4506 (XDR), RFC 1833 (port mapper).
//
// Tests: go-nfs-client in process, raw sockets, libnfs and qemu as real clients, go-nfs's server as a second opinion.
package nfsd

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/nfsd/handle"
	"github.com/holdfast-backup/holdfast/nfsd/mount"
	"github.com/holdfast-backup/holdfast/nfsd/nfs3"
	"github.com/holdfast-backup/holdfast/nfsd/nlm"
	"github.com/holdfast-backup/holdfast/nfsd/portmap"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// DefaultPort is where NFS is served by custom.
const DefaultPort = 2049

// MinKey is the shortest key accepted, in bytes.
const MinKey = 16

// Export is a tree offered to named clients.
type Export = handle.Export

// Limits bounds what clients can make the server do; zero fields mean defaults.
type Limits = rpc.Limits

// CallInfo describes a finished call.
type CallInfo = rpc.CallInfo

// PanicInfo describes a panic that was caught.
type PanicInfo = rpc.PanicInfo

// Events are called on what happens; any may be nil. They must return soon and may be called concurrently.
type Events struct {
	Call      func(CallInfo)
	Mounted   func(peer netip.Addr, path string)
	Unmounted func(peer netip.Addr, path string)
	// Refused reports a MNT that was not granted.
	Refused func(peer netip.Addr, path string, reason nfs.MountStatus)
	// Locked reports that a client asked for a lock, which was refused: it has mounted without nolock.
	Locked func(peer netip.Addr)
	// Panic is an alarm: a bug of ours that cost one call.
	Panic func(PanicInfo)
	// Broken reports a connection that was closed because of what the client sent, or did not take.
	Broken func(peer netip.Addr, err error)
}

// Options makes a Server.
type Options struct {
	// Key makes file handles unforgeable and lasting: at least MinKey secret bytes, the same after a restart. Empty
	// means random: clients must then mount again after a restart.
	Key    []byte
	Limits Limits
	Events Events
	Logger *slog.Logger // nil is silent
}

// Server serves exports. Its methods may be called concurrently, Add and Remove also while it serves.
type Server struct {
	table *handle.Table
	rpc   *rpc.Server

	lockNoted atomic.Int64 // when the log was told of a refused lock, Unix seconds
}

// New returns a Server without exports.
func New(o Options) (*Server, error) {
	if len(o.Key) > 0 && len(o.Key) < MinKey {
		return nil, errs.Text("make the NFS server", "", errs.Invalid, "the handle key is too short")
	}
	table, err := handle.NewTable(o.Key)
	if err != nil {
		return nil, err
	}
	s := &Server{table: table}
	s.rpc = rpc.New(rpc.Options{
		Programs: []rpc.Program{nfs3.New(table), mount.New(table, mount.Events{
			Mounted: o.Events.Mounted, Unmounted: o.Events.Unmounted, Refused: o.Events.Refused}), nlm.New(s.locked(o))},
		Known:  table.Known,
		Limits: o.Limits,
		Events: rpc.Events{Call: o.Events.Call, Panic: o.Events.Panic, Broken: o.Events.Broken},
		Logger: o.Logger,
	})
	return s, nil
}

// lockNotes is how long the log is quiet about locks after it has told of one: a program that tries again and again
// must not fill it.
const lockNotes = time.Minute

// locked tells log and events of refused locks.
func (s *Server) locked(o Options) func(netip.Addr) {
	return func(peer netip.Addr) {
		now := time.Now().Unix()
		if last := s.lockNoted.Load(); o.Logger != nil && now-last >= int64(lockNotes/time.Second) && s.lockNoted.CompareAndSwap(last, now) {
			o.Logger.Warn("a client was refused a lock: there are none here, it has to mount with the option nolock",
				"op", "lock", "peer", peer)
		}
		if o.Events.Locked != nil {
			o.Events.Locked(peer)
		}
	}
}

// Add offers an export. Its path and ID must be free: errs.Exists, errs.Invalid.
func (s *Server) Add(e Export) error { return s.table.Add(e) }

// Remove takes an export away; its handles become stale: errs.NotFound.
func (s *Server) Remove(path string) error { return s.table.Remove(path) }

// Serve takes connections from ln, which it closes, until Shutdown was called or ctx ended, and then returns nil. The
// end of ctx breaks connections and cancels their calls; Shutdown lets them finish.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error { return s.rpc.Serve(ctx, ln) }

// Shutdown stops taking connections and calls, answers the calls that run, and closes. When ctx ends first, the rest
// is broken and the error is errs.Canceled. Clients ask again at the server's successor.
func (s *Server) Shutdown(ctx context.Context) error { return s.rpc.Shutdown(ctx) }

// PortmapEntries returns what a port mapper has to say about a server that listens on port.
func PortmapEntries(port uint16) []portmap.Entry {
	return []portmap.Entry{
		{Program: nfs3.Number, Version: nfs3.Version, Protocol: portmap.TCP, Port: uint32(port)},
		{Program: mount.Number, Version: mount.Version, Protocol: portmap.TCP, Port: uint32(port)},
		// So that a lock is refused rather than waited for: see nlm.
		{Program: nlm.Number, Version: nlm.Version, Protocol: portmap.TCP, Port: uint32(port)},
	}
}

// Stats is a reading of a Server's counters.
type Stats struct {
	rpc.Stats
	BytesRead    uint64
	BytesWritten uint64
}

// Stats reads the counters. They are not read at one instant.
func (s *Server) Stats() Stats {
	st := Stats{Stats: s.rpc.Stats()}
	for _, p := range st.Procedures {
		switch p.Procedure {
		case nfs.NFSProcedureRead.String():
			st.BytesRead += p.Bytes
		case nfs.NFSProcedureWrite.String():
			st.BytesWritten += p.Bytes
		}
	}
	return st
}
