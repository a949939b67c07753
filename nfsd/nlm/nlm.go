// Package nlm says no to locks: it is the lock manager's program (NLM, version 4: X/Open XNFS, chapter 14, and RFC 1813,
// appendix II) as far as is needed to refuse.
//
// NFS v3 has no locks of its own, and we keep none: qemu and sanlock lock on their hosts, with mounts that say nolock,
// as vdsm's do. A mount without it works until the first lock. Nobody at the server can tell it from others before, so
// that is where it has to fail, and clearly: without this program a Linux client asks the port mapper for it every three
// seconds and hangs for ever in fcntl; with it the program gets ENOLCK, "No locks available".
//
// Terms: a cookie is what a client knows its request by; it comes back in the answer.
//
// What holds: nothing is ever locked; a lock, a test and a share are answered LCK_DENIED_NOLOCKS; taking back what was
// never given (UNLOCK, CANCEL, UNSHARE) is answered LCK_GRANTED; the requests that want no reply but a call back
// (TEST_MSG and the like) do not exist here.
//
// Concurrency: there is no state. Tests: every procedure, over the wire in nfsd too, and a fuzz target.
package nlm

import (
	"context"
	"encoding/binary"
	"net/netip"

	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// Number and Version name the program.
const (
	Number  = 100021
	Version = 4
)

// The procedures that are answered.
const (
	procNull    = 0
	procTest    = 1
	procLock    = 2
	procCancel  = 3
	procUnlock  = 4
	procShare   = 20
	procUnshare = 21
	procNMLock  = 22 // a lock that is not monitored
)

// The answers (nlm4_stats).
const (
	granted = 0
	noLocks = 2
)

// maxCookie bounds a cookie in bytes (LM_MAXSTRLEN of the protocol's description).
const maxCookie = 1024

// New returns the program. refused, which may be nil, is told of every lock that was asked for.
func New(refused func(peer netip.Addr)) rpc.Program {
	procs := make([]rpc.Procedure, procNMLock+1)
	procs[procNull] = rpc.Procedure{Name: "Null", Serve: func(context.Context, *rpc.Call, *rpc.Reply) error { return nil }}
	for _, p := range []struct {
		number int
		name   string
		answer uint32
		tail   int // words behind the answer
	}{
		{procTest, "Test", noLocks, 0},
		{procLock, "Lock", noLocks, 0},
		{procCancel, "Cancel", granted, 0},
		{procUnlock, "Unlock", granted, 0},
		{procShare, "Share", noLocks, 1},
		{procUnshare, "Unshare", granted, 1},
		{procNMLock, "NMLock", noLocks, 0},
	} {
		procs[p.number] = rpc.Procedure{Name: p.name, Serve: func(_ context.Context, c *rpc.Call, r *rpc.Reply) error {
			cur := rpc.NewCursor(c.Args)
			cookie := cur.Opaque(maxCookie)
			if err := cur.Err(); err != nil {
				return err
			}
			r.Out = rpc.AppendOpaque(r.Out, cookie)
			r.Out = binary.BigEndian.AppendUint32(r.Out, p.answer)
			for range p.tail {
				r.Out = binary.BigEndian.AppendUint32(r.Out, 0)
			}
			if r.Status = p.answer; p.answer == noLocks && refused != nil {
				refused(c.Peer)
			}
			return nil
		}}
	}
	return rpc.Program{Number: Number, Name: "nlm", Versions: map[uint32][]rpc.Procedure{Version: procs}}
}
