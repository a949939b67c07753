package nfsd_test

import (
	"context"
	"strings"
	"testing"
	"time"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
)

// TestStoreAway: while the store cannot be reached, a guest is put off, and nothing that hosts monitor notices.
func TestStoreAway(t *testing.T) {
	w := newWire(t, nfsd.Options{Limits: nfsd.Limits{Deadline: 800 * time.Millisecond}})
	dh := w.c.Lookup(w.root, wireDiskName)
	ids := w.file(w.root, "ids", strings.Repeat("i", 512))
	w.write(dh, 0, 2, strings.Repeat("w", 4096))
	hang := make(chan struct{})
	defer close(hang)
	for name, away := range map[string]func(context.Context) error{
		"fails":             func(context.Context) error { return errs.Text("read", "", errs.Transient, "the network is down") },
		"heeds its context": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"hangs":             func(context.Context) error { <-hang; return nil },
	} {
		w.base.fail.Store(&away)
		guest := map[uint32]string{
			w.c.Send(nfstest.NFS, 3, uint32(nfs.NFSProcedureRead), read(dh, 1<<20, 4096)): "read",
			w.c.Send(nfstest.NFS, 3, uint32(nfs.NFSProcedureWrite),
				writeArgs(dh, 2<<20+uint64(len(name))*4096, 2, "part of a block")): "partial write",
		}
		// What a monitor does, while the guest's calls are on their way.
		other := nfstest.Dial(t, w.s.addr)
		if got, res := other.NFS(nfs.NFSProcedureRead, read(ids, 0, 512)); got != nfs.NFSStatusOk || res.Len() < 512 {
			t.Errorf("the store %s: reading ids is answered %v", name, got)
		}
		other.MustNFS(nfs.NFSProcedureWrite, writeArgs(ids, 0, 2, "renewed"))
		other.MustNFS(nfs.NFSProcedureFSStat, nfstest.Words(nil).Opaque(w.root))
		other.MustNFS(nfs.NFSProcedureGetAttr, nfstest.Words(nil).Opaque(dh))
		other.MustNFS(nfs.NFSProcedureRead, read(dh, 0, 4096)) // what the guest has written itself
		for range len(guest) {
			r := w.c.Receive()
			if status := nfs.NFSStatus(r.U32()); status != nfs.NFSStatusJukebox {
				t.Errorf("the store %s: a %s is answered %v", name, guest[r.XID], status)
			}
		}
	}
	w.base.fail.Store(nil)
	if got, _, _ := w.read(dh, 1<<20, 4096); got != string(wireContent[1<<20:1<<20+4096]) {
		t.Error("with the store back, other bytes")
	}
}

// TestHeldDisk: while a disk is held to be kept, its guest reads and its writes are put off; they go on afterwards.
func TestHeldDisk(t *testing.T) {
	w := newWire(t, nfsd.Options{Limits: nfsd.Limits{Deadline: 400 * time.Millisecond}})
	dh, small := w.c.Lookup(w.root, wireDiskName), w.file(w.root, "small", "")
	w.write(dh, 0, 2, "before")
	release, err := w.over.Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before, _ := w.write(small, 0, 0, "x")
	size := nfstest.Words(nil).Opaque(dh).U32(0, 0, 0, 1).U64(1<<20).U32(0, 0, 0)
	for p, args := range map[nfs.NFSProcedure]nfstest.Words{nfs.NFSProcedureWrite: writeArgs(dh, 0, 2, "after!"), nfs.NFSProcedureSetAttr: size} {
		w.c.Send(nfstest.NFS, 3, uint32(p), args)
	}
	for range 2 {
		r := w.c.Receive()
		if status := nfs.NFSStatus(r.U32()); status != nfs.NFSStatusJukebox {
			t.Errorf("a change of a disk that is held is answered %v", status)
		}
	}
	if got, _, a := w.read(dh, 0, 6); got != "before" || a.Filesize != wireDiskSize {
		t.Errorf("%q, %d bytes", got, a.Filesize)
	}
	if w.commit(dh) != before {
		t.Error("nothing was lost, and the verifier changed")
	}
	release()
	w.write(dh, 0, 2, "after!")
	if got, _, _ := w.read(dh, 0, 6); got != "after!" {
		t.Errorf("afterwards: %q", got)
	}
}
