// Package rpc serves ONC RPC version 2 (RFC 5531) over TCP: it takes calls off connections, runs procedures and sends
// their replies. It knows no NFS.
//
// Terms. A record is one RPC message on a TCP stream, in one or more fragments. A Program has versions, a version has
// Procedures. A Call is what came in, a Reply is what goes out. A peer is a client's address without its port: one
// host uses many ports over time and one connection for all its mounts. A stranger is a peer that Options.Known does
// not know.
//
// What holds:
//
//  1. The calls of a connection run concurrently and are answered in any order: a slow disk read never holds up a
//     small call that came after it.
//  2. Memory is bounded per connection by count and by bytes: records by Limits.RecordBytes, replies by
//     Limits.BulkBytes and Limits.SmallBytes. The reader stops at the first bound, and TCP makes the client wait.
//     Calls that are not bulk never wait for a place among the bulk ones, and their replies pass those of bulk calls:
//     at most one of these is on its way to the client already. Records too large for the rest of the budget are
//     waited for no longer than Limits.Stall; then they are put off, so that what comes behind them is read.
//  3. Whatever a client sends, only its own connection can suffer. A message that is no call, is cut short or is
//     larger than Limits.Record closes the connection; anything else is answered as RFC 5531, section 9, says.
//  4. A panic of a procedure is answered SYSTEM_ERR and reported to Events.Panic.
//  5. A procedure marked Once runs once for one call even if the client sends it again, also over a new connection:
//     see cache.
//  6. Every call is answered within Limits.Deadline from its arrival, the time it waited for a place included. Its
//     context ends a sixteenth of that earlier. A procedure that does not return even then goes on, and keeps its
//     places, but the client is answered without it (Procedure.Late).
//  7. A client that does not take its replies loses its connection after Limits.WriteTimeout.
//
// Concurrency. One goroutine reads each connection, one runs each call; the turn to write to a connection is held for
// one reply. The Server's lock guards its sets of listeners and connections and is never held during I/O. A pending
// call's own lock is held while it is answered late.
//
// Tests: raw sockets with every malformed input, fuzz targets for records, headers and cursors, synctest for
// everything about time.
package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"
)

// ErrGarbage is returned by a procedure whose arguments cannot be decoded: the client gets GARBAGE_ARGS.
var ErrGarbage = errors.New("the arguments cannot be decoded")

// Procedure is one entry of a program.
type Procedure struct {
	Name string
	// Once marks what must not happen twice when a client repeats a call whose reply it did not get.
	Once bool
	// Serve appends the results to r.Out. ErrGarbage becomes GARBAGE_ARGS, any other error SYSTEM_ERR. c and all it
	// refers to are valid until Serve returns.
	Serve func(ctx context.Context, c *Call, r *Reply) error
	// Late appends the results that a client gets for a call that is not answered in time: "try again" or a failure. It
	// may run at the same time as Serve, and must not wait for anything. c.Args may be cut short. Without it the answer
	// is SYSTEM_ERR.
	Late func(c *Call, r *Reply)
}

// Program is one RPC program.
type Program struct {
	Number uint32
	Name   string
	// Versions holds, per version, the procedures by number. An entry without Serve is answered PROC_UNAVAIL.
	Versions map[uint32][]Procedure
}

// Call is one request.
type Call struct {
	XID       uint32
	Program   uint32
	Version   uint32
	Procedure uint32
	Cred      Cred
	Peer      netip.Addr // never a 4-in-6 address
	Args      []byte

	small   *atomic.Bool
	reserve func(ctx context.Context, bulk bool, n int) error
}

// MarkSmall notes that the call is of those that a host's monitor makes. Small tells Late of it.
func (c *Call) MarkSmall() {
	if c.small != nil {
		c.small.Store(true)
	}
}

// Small tells whether MarkSmall was called.
func (c *Call) Small() bool { return c.small != nil && c.small.Load() }

// Reserve waits until n bytes of reply fit into the connection's budget for bulk or for small calls; they are given
// back when the reply was sent. It must be called at most once per call, before a large reply is built, and fails
// only with ctx's error.
func (c *Call) Reserve(ctx context.Context, bulk bool, n int) error {
	if c.reserve == nil {
		return ctx.Err()
	}
	return c.reserve(ctx, bulk, n)
}

// headerLen is the record marker and the header of an accepted reply (RFC 5531, section 9): XID, REPLY, MSG_ACCEPTED,
// an AUTH_NONE verifier of length 0 and the accept_stat.
const headerLen = 4 + 24

// Reply is one answer.
type Reply struct {
	// Out is the encoded reply; procedures append to it. What it holds before is the header.
	Out []byte
	// Status is the program's own result code, for events and counters; 0 is success.
	Status uint32
	// Bytes counts the file data moved, for events and counters.
	Bytes int
	// Err is why Status is not 0, for the log; the client never sees it.
	Err error

	body *buffer
	n    int // bytes of body to send
	pool *pool
}

// Body returns a buffer of n bytes that is sent after Out, padded to a multiple of four. Its content is undefined.
// It may be called once per call, after Call.Reserve.
func (r *Reply) Body(n int) []byte {
	r.body = r.pool.get(n + 3)
	r.n = n
	return r.body.b[:n]
}

// SetBody shortens what Body returned to its first n bytes.
func (r *Reply) SetBody(n int) { r.n = n }

// Grow makes room for n more bytes in Out.
func (r *Reply) Grow(n int) {
	if cap(r.Out)-len(r.Out) < n {
		grown := make([]byte, len(r.Out), len(r.Out)+n)
		copy(grown, r.Out)
		r.Out = grown
	}
}

// Clear takes back all results written so far.
func (r *Reply) Clear() {
	r.Out = r.Out[:headerLen]
	r.n = 0
	r.Bytes = 0
}

// Results returns what was appended to Out so far.
func (r *Reply) Results() []byte { return r.Out[headerLen:] }

// padded returns the body with its XDR padding (RFC 4506, section 4.10).
func (r *Reply) padded() []byte {
	if r.body == nil || r.n == 0 {
		return nil
	}
	end := (r.n + 3) &^ 3
	clear(r.body.b[r.n:end])
	return r.body.b[:end]
}

// The words of RFC 5531, section 9.
const (
	msgCall  = 0
	msgReply = 1

	msgAccepted = 0
	msgDenied   = 1

	acceptSuccess      = 0
	acceptProgUnavail  = 1
	acceptProgMismatch = 2
	acceptProcUnavail  = 3
	acceptGarbageArgs  = 4
	acceptSystemErr    = 5

	rejectRPCMismatch = 0
	rejectAuthError   = 1

	rpcVersion = 2
)

// start writes the header of an accepted reply; finish fills in the record marker.
func (r *Reply) start(xid uint32) {
	out := binary.BigEndian.AppendUint32(r.Out[:0], 0)
	out = binary.BigEndian.AppendUint32(out, xid)
	out = binary.BigEndian.AppendUint32(out, msgReply)
	out = binary.BigEndian.AppendUint32(out, msgAccepted)
	out = binary.BigEndian.AppendUint64(out, 0) // verifier: AUTH_NONE, no bytes
	r.Out = binary.BigEndian.AppendUint32(out, acceptSuccess)
}

// accept replaces the results by an accept_stat and its words.
func (r *Reply) accept(stat uint32, words ...uint32) {
	r.Clear()
	binary.BigEndian.PutUint32(r.Out[headerLen-4:], stat)
	for _, w := range words {
		r.Out = binary.BigEndian.AppendUint32(r.Out, w)
	}
}

// deny turns the reply into a rejected one.
func (r *Reply) deny(words ...uint32) {
	r.Clear()
	r.Out = binary.BigEndian.AppendUint32(r.Out[:12], msgDenied)
	for _, w := range words {
		r.Out = binary.BigEndian.AppendUint32(r.Out, w)
	}
}

// finish writes the record marker in front: one last fragment.
func (r *Reply) finish() {
	n := len(r.Out) - 4 + len(r.padded())
	binary.BigEndian.PutUint32(r.Out, lastFragment|uint32(n))
}

// Limits bounds what clients can make the server do. A zero field means its default.
type Limits struct {
	Record       int           // largest record in bytes; 1 MiB + 4 KiB
	Calls        int           // calls of one connection read and not yet answered; 4096
	RecordBytes  int           // bytes of those of their records that are longer than their share; 32 MiB
	BulkCalls    int           // bulk calls of one connection that run at once; 128
	BulkBytes    int           // bytes of their replies; 32 MiB
	SmallBytes   int           // bytes of the replies of all other calls; 8 MiB
	Conns        int           // connections; 1024, of which strangers get one in eight
	Deadline     time.Duration // from a call's arrival to its answer; 8 s
	Stall        time.Duration // for a record to wait for its budget before it is put off; 3 s
	WriteTimeout time.Duration // for a client to take one reply; 30 s
	RecordTime   time.Duration // for a client to send the rest of a record it began; 60 s
	StrangerIdle time.Duration // for a stranger to send its next call; 30 s
}

func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		field *int
		value int
	}{
		{&l.Record, 1<<20 + 4096}, {&l.Calls, 4096}, {&l.RecordBytes, 32 << 20}, {&l.BulkCalls, 128},
		{&l.BulkBytes, 32 << 20}, {&l.SmallBytes, 8 << 20}, {&l.Conns, 1024},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&l.Deadline, 8 * time.Second}, {&l.WriteTimeout, 30 * time.Second}, {&l.Stall, 3 * time.Second},
		{&l.RecordTime, 60 * time.Second}, {&l.StrangerIdle, 30 * time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	// A record that never fits would stop its connection for ever.
	l.RecordBytes = max(l.RecordBytes, 2*l.Record)
	return l
}

// strangerRecord is the largest record of a stranger: enough to be refused a mount in a civil way.
const strangerRecord = 4096

// CallInfo describes a finished call.
type CallInfo struct {
	Program   string
	Procedure string
	Peer      netip.Addr
	Duration  time.Duration // from arrival to the encoded reply
	Bytes     int           // file data moved
	Status    uint32        // the program's result code
	Err       error         // why Status is not 0, if known
}

// PanicInfo describes a panic that was caught.
type PanicInfo struct {
	Program   string
	Procedure string
	Peer      netip.Addr
	Value     any
	Stack     []byte
}

// Events are called on what happens; any may be nil. They must return soon and may be called concurrently.
type Events struct {
	Call  func(CallInfo)
	Panic func(PanicInfo)
	// Broken reports a connection that was closed because of what the client sent, or did not take.
	Broken func(peer netip.Addr, err error)
}
