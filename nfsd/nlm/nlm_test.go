package nlm_test

import (
	"bytes"
	"context"
	"net/netip"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/fuzztest"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
	"github.com/holdfast-backup/holdfast/nfsd/nlm"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

var host = netip.MustParseAddr("192.0.2.7")

// lock is what a client sends behind its cookie; a refusal needs none of it.
func lock() nfstest.Words {
	return nfstest.Words(nil).U32(0, 1).Text("host").Opaque(make([]byte, 24)).Opaque([]byte("owner")).U32(77).U64(0, 1).U32(0, 5)
}

func TestNobodyGetsALock(t *testing.T) {
	asked := 0
	srv := rpc.New(rpc.Options{Programs: []rpc.Program{nlm.New(func(peer netip.Addr) {
		if peer != host {
			t.Errorf("peer %v", peer)
		}
		asked++
	})}})
	ask := func(procedure uint32, args nfstest.Words) nfstest.Reply {
		return nfstest.ParseReply(t, srv.Datagram(t.Context(), host, nfstest.Message(9, nlm.Number, nlm.Version, procedure, args)))
	}
	cookie := []byte("cookie!")
	const granted, noLocks = 0, 2
	for procedure, want := range map[uint32][]uint32{
		1: {noLocks}, 2: {noLocks}, 22: {noLocks}, 20: {noLocks, 0}, 3: {granted}, 4: {granted}, 21: {granted, 0},
	} {
		r := ask(procedure, nfstest.Words(nil).Opaque(cookie).Raw(lock()))
		if r.Stat != 0 || !bytes.Equal(r.Opaque(), cookie) {
			t.Errorf("procedure %d: status %d, or another cookie", procedure, r.Stat)
		}
		for _, w := range want {
			if got := r.U32(); got != w {
				t.Errorf("procedure %d: %d, want %d", procedure, got, w)
			}
		}
		r.End()
		if r := ask(procedure, nfstest.Words(nil).U32(2000)); r.Stat != 4 {
			t.Errorf("procedure %d without a cookie: %d", procedure, r.Stat)
		}
	}
	if asked != 4 {
		t.Errorf("%d refusals were told of", asked)
	}
	if r := ask(0, nil); r.Stat != 0 || r.Len() != 0 {
		t.Error("NULL")
	}
	for _, procedure := range []uint32{5, 7, 12, 23} {
		if r := ask(procedure, nfstest.Words(nil).Opaque(cookie)); r.Stat != 3 {
			t.Errorf("procedure %d: %d", procedure, r.Stat)
		}
	}
}

// FuzzArguments: whatever arguments, there is an answer of that procedure's form, or they are called garbage.
func FuzzArguments(f *testing.F) {
	srv := rpc.New(rpc.Options{Programs: []rpc.Program{nlm.New(nil)}})
	for p := range uint32(23) {
		f.Add(p, []byte(nfstest.Words(nil).Opaque([]byte("c")).Raw(lock())))
	}
	f.Add(uint32(2), []byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, p uint32, args []byte) {
		msg := nfstest.Message(1, nlm.Number, nlm.Version, p, args)
		var out []byte
		fuzztest.Bounded(t, len(msg), 64<<10, 8, func() { out = srv.Datagram(context.Background(), host, msg) })
		r := nfstest.ParseReply(t, out)
		if r.Denied || r.Stat != 0 && r.Stat != 3 && r.Stat != 4 || len(out) > 64+len(args) {
			t.Fatalf("denied %v, status %d, %d bytes", r.Denied, r.Stat, len(out))
		}
	})
}
