package mount

import (
	"net/netip"
	"testing"

	"github.com/holdfast-backup/holdfast/fs/fstest"
	"github.com/holdfast-backup/holdfast/internal/fuzztest"
	"github.com/holdfast-backup/holdfast/nfsd/handle"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// FuzzArguments: whatever arguments, every procedure answers or calls them garbage, in bounded memory; a mount is
// granted only below an export, and gives a handle that the export understands.
func FuzzArguments(f *testing.F) {
	host := netip.MustParseAddr("192.0.2.7")
	table, err := handle.NewTable([]byte("a key for these tests"))
	if err != nil {
		f.Fatal(err)
	}
	m := fstest.NewMemory(fstest.MemoryOptions{})
	if _, err := m.Put("a/b/file", nil); err != nil {
		f.Fatal(err)
	}
	e := handle.Export{Path: "/x", ID: 1, Tree: m, Allow: []netip.Prefix{netip.PrefixFrom(host, 32)}}
	if err := table.Add(e); err != nil {
		f.Fatal(err)
	}
	srv := rpc.New(rpc.Options{Programs: []rpc.Program{New(table, Events{})}})
	for p := range uint32(7) {
		for _, path := range []string{"/x", "/x/a/b", "/x/a/b/file", "/x/../x/a/", "/", "", "x", "/y"} {
			f.Add(p, []byte(nfstest.Words(nil).Text(path)))
		}
	}
	f.Add(uint32(1), []byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, p uint32, args []byte) {
		msg := nfstest.Message(1, Number, Version, p, args)
		var out []byte
		fuzztest.Bounded(t, len(msg), 4*maxList, 64, func() { out = srv.Datagram(t.Context(), host, msg) })
		r := nfstest.ParseReply(t, out)
		if r.Denied || r.Stat != 0 && r.Stat != 3 && r.Stat != 4 || len(out) > maxList+100 {
			t.Fatalf("denied %v, status %d, %d bytes", r.Denied, r.Stat, len(out))
		}
		if p != 1 || r.Stat != 0 || r.U32() != 0 {
			return
		}
		if got, _, s := table.Parse(r.Handle(), host); s != 0 || got.Path != "/x" {
			t.Fatalf("a mount of %q gave a handle that is answered %v", args, s)
		}
	})
}
