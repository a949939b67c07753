package portmap_test

import (
	"net/netip"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/fuzztest"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
	"github.com/holdfast-backup/holdfast/nfsd/portmap"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// FuzzDatagrams: anybody on the network may send one. Whatever it holds there is a short answer or none, and a port is
// named only if it is one of ours.
func FuzzDatagrams(f *testing.F) {
	srv := rpc.New(rpc.Options{Programs: []rpc.Program{portmap.Program(entries)}})
	for p := range uint32(6) {
		f.Add([]byte(nfstest.Message(1, portmap.Number, portmap.Version, p, nfstest.Words(nil).U32(100003, 3, 6, 0))))
	}
	f.Add([]byte(nfstest.Message(1, portmap.Number, 4, 3, nil)))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, in []byte) {
		var out []byte
		fuzztest.Bounded(t, len(in), 64<<10, 16, func() { out = srv.Datagram(t.Context(), netip.Addr{}, in) })
		if out == nil {
			return
		}
		r := nfstest.ParseReply(t, out)
		if len(out) > 28+4+20*len(entries) {
			t.Fatalf("%d bytes in answer to %d", len(out), len(in))
		}
		if r.Stat == 0 && !r.Denied && r.Len() == 4 { // GETPORT, or a DUMP of nothing
			if port := r.U32(); port != 0 && port != 2049 && port != 20048 {
				t.Fatalf("port %d", port)
			}
		}
	})
}
