package nfsd_test

import (
	"bytes"
	"testing"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
)

// TestRepeatedCallsHappenOnce: a client that did not get a reply sends the call again under the same XID, on the same
// connection or on a new one. It gets the reply of the first time, byte by byte, and nothing happens twice.
func TestRepeatedCallsHappenOnce(t *testing.T) {
	w := newWire(t, nfsd.Options{})
	w.file(w.root, "removed", "")
	w.mkdir(w.root, "rmdir")
	w.file(w.root, "old", "moved")
	one := w.file(w.root, "one", "content")
	sized, guarded := w.file(w.root, "sized", "0123456789"), w.file(w.root, "guarded", "0123456789")
	ctime := w.attr(guarded).Ctime
	size := func(fh []byte, n uint64) nfstest.Words {
		return nfstest.Words(nil).Opaque(fh).U32(0, 0, 0, 1).U64(n).U32(0, 0)
	}
	xid := uint32(0x5000)
	for name, c := range map[string]struct {
		p     nfs.NFSProcedure
		args  nfstest.Words
		anew  nfs.NFSStatus // what the same call is answered as a new one
		other func()        // happens between the call and its repetition
	}{
		"REMOVE":           {nfs.NFSProcedureRemove, at(w.root, "removed"), nfs.NFSStatusNoEnt, nil},
		"RMDIR":            {nfs.NFSProcedureRmDir, at(w.root, "rmdir"), nfs.NFSStatusNoEnt, nil},
		"RENAME":           {nfs.NFSProcedureRename, at(w.root, "old").Raw(at(w.root, "new")), nfs.NFSStatusNoEnt, nil},
		"CREATE, guarded":  {nfs.NFSProcedureCreate, at(w.root, "created").U32(1).Raw(same()), nfs.NFSStatusExist, nil},
		"MKDIR":            {nfs.NFSProcedureMkDir, at(w.root, "made").Raw(same()), nfs.NFSStatusExist, nil},
		"SYMLINK":          {nfs.NFSProcedureSymlink, at(w.root, "link").Raw(same()).Text("one"), nfs.NFSStatusExist, nil},
		"LINK":             {nfs.NFSProcedureLink, nfstest.Words(nil).Opaque(one).Raw(at(w.root, "two")), nfs.NFSStatusExist, nil},
		"SETATTR, guarded": {nfs.NFSProcedureSetAttr, size(guarded, 4).U32(1, ctime.Seconds, ctime.Nseconds), nfs.NFSStatusNotSync, nil},
		"SETATTR, truncating": {nfs.NFSProcedureSetAttr, size(sized, 4).U32(0), nfs.NFSStatusOk, func() {
			w.write(sized, 4, 2, "written since")
		}},
	} {
		xid++
		msg := nfstest.Record(nfstest.Message(xid, nfstest.NFS, 3, uint32(c.p), c.args))
		w.c.SendRaw(msg)
		first := w.c.Receive()
		want := first.Raw(first.Len())
		if first.XID != xid || !bytes.HasPrefix(want, words(0)) {
			t.Fatalf("%s: reply %d, %x", name, first.XID, want)
		}
		if c.other != nil {
			c.other()
		}
		for where, conn := range map[string]*nfstest.Conn{"the same": w.c, "a new": nfstest.Dial(t, w.s.addr)} {
			conn.SendRaw(msg)
			r := conn.Receive()
			if got := r.Raw(r.Len()); r.XID != xid || !bytes.Equal(got, want) {
				t.Errorf("%s on %s connection: %x, the first time %x", name, where, got, want)
			}
		}
		if c.other != nil && w.content(sized) != "0123written since" {
			t.Errorf("%s: a repetition took away what was written since: %q", name, w.content(sized))
		}
		w.want(name+" as a new call", c.p, c.args, c.anew)
	}
	if n := w.s.Stats().Replayed; n != 18 {
		t.Errorf("%d calls were answered from memory, want 18", n)
	}
}
