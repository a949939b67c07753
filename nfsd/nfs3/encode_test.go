package nfs3

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	nfs "github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs-client/nfs/xdr"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// theirs is a fs.Attr in go-nfs's words.
func theirs(fsid uint64, a *fs.Attr) *nfs.FileAttribute {
	types := map[fs.Kind]nfs.FileType{fs.KindFile: nfs.FileTypeRegular, fs.KindDir: nfs.FileTypeDirectory, fs.KindSymlink: nfs.FileTypeLink}
	return &nfs.FileAttribute{Type: types[a.Kind], FileMode: a.Perm, Nlink: a.Nlink, UID: a.UID, GID: a.GID,
		Filesize: uint64(a.Size), Used: uint64(a.Used), FSID: fsid, Fileid: uint64(a.ID),
		Atime: nfs.ToNFSTime(a.Atime), Mtime: nfs.ToNFSTime(a.Mtime), Ctime: nfs.ToNFSTime(a.Ctime)}
}

func randomAttr(r *rand.Rand) *fs.Attr {
	when := func() time.Time { return time.Unix(r.Int64N(1<<32), r.Int64N(1e9)) }
	return &fs.Attr{ID: fs.ID(r.Uint64()), Kind: fs.Kind(1 + r.IntN(3)), Perm: r.Uint32N(0o10000), Nlink: r.Uint32(),
		UID: r.Uint32(), GID: r.Uint32(), Size: r.Int64(), Used: r.Int64(), Atime: when(), Mtime: when(), Ctime: when()}
}

// written collects what go-nfs's encoder writes.
type written struct {
	t *testing.T
	bytes.Buffer
}

func (w *written) xdr(vs ...any) {
	w.t.Helper()
	for _, v := range vs {
		if err := xdr.Write(w, v); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *written) postOp(a *nfs.FileAttribute) {
	w.t.Helper()
	if err := nfs.WritePostOpAttrs(w, a); err != nil {
		w.t.Fatal(err)
	}
}

func (w *written) wcc(a *nfs.FileAttribute) {
	w.t.Helper()
	if err := nfs.WriteWcc(w, nil, a); err != nil {
		w.t.Fatal(err)
	}
}

func TestAttributesEqualGoNFS(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		a, fsid := randomAttr(r), r.Uint64()
		w := written{t: t}
		w.postOp(theirs(fsid, a))
		if got := appendSome(nil, fsid, a); !bytes.Equal(got, w.Bytes()) || len(got) != postOpLen {
			t.Fatalf("%+v:\n%x\n%x", a, got, w.Bytes())
		}
	}
}

// TestHotRepliesEqualGoNFS compares whole results, encoded from the same attributes.
func TestHotRepliesEqualGoNFS(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	f := r.put("file", "thirteen byte")
	e, _, _ := r.table.Match("/x")
	a, _ := f.Attr(t.Context())
	dirAttr, _ := r.m.Root().Attr(t.Context())
	attr, dir := theirs(e.FSID(), &a), theirs(e.FSID(), &dirAttr)
	fh, root := r.at("/x", f), r.root("/x")
	var verifier [8]byte
	binary.BigEndian.PutUint64(verifier[:], e.Verifier())

	for p, c := range map[nfs.NFSProcedure]struct {
		args nfstest.Words
		want func(w *written)
	}{
		nfs.NFSProcedureGetAttr: {h(fh), func(w *written) { w.xdr(attr) }},
		nfs.NFSProcedureLookup: {dirOp(root, "file"), func(w *written) {
			w.xdr(fh)
			w.postOp(attr)
			w.postOp(dir)
		}},
		nfs.NFSProcedureAccess: {h(fh).U32(accessRead | accessModify), func(w *written) {
			w.postOp(attr)
			w.xdr(uint32(accessRead | accessModify))
		}},
		nfs.NFSProcedureRead: {h(fh).U64(4).U32(100), func(w *written) {
			w.postOp(attr)
			w.xdr(uint32(9), uint32(1), []byte("teen byte"))
		}},
		nfs.NFSProcedureCommit: {h(fh).U64(0).U32(0), func(w *written) {
			w.wcc(attr)
			w.xdr(verifier)
		}},
	} {
		w := written{t: t}
		c.want(&w)
		if got := r.must(p, c.args); !bytes.Equal(got.Raw(got.Len()), w.Bytes()) {
			t.Errorf("%v differs from go-nfs's encoding", p)
		}
	}

	// WRITE last: it changes the attributes.
	got := r.must(nfs.NFSProcedureWrite, h(fh).U64(13).U32(3, fileSync).Text("abc"))
	a, _ = f.Attr(t.Context())
	w := written{t: t}
	w.wcc(theirs(e.FSID(), &a))
	w.xdr(uint32(3), uint32(fileSync), verifier)
	if !bytes.Equal(got.Raw(got.Len()), w.Bytes()) {
		t.Error("Write differs from go-nfs's encoding")
	}
}

func TestTimesAtTheEdges(t *testing.T) {
	for want, when := range map[[2]uint32]time.Time{
		{0, 0}:                      {},
		{math.MaxUint32, 5}:         time.Unix(1<<33, 5),
		{math.MaxUint32, 999999999}: time.Unix(math.MaxUint32, 999999999),
		{1, 2}:                      time.Unix(1, 2),
	} {
		out := appendTime(nil, when)
		if got := [2]uint32{binary.BigEndian.Uint32(out), binary.BigEndian.Uint32(out[4:])}; got != want {
			t.Errorf("%v: %d, want %d", when, got, want)
		}
	}
}

func TestEncodersDoNotAllocate(t *testing.T) {
	a := randomAttr(rand.New(rand.NewPCG(1, 2)))
	out := make([]byte, 0, 512)
	if n := testing.AllocsPerRun(100, func() { appendReadOK(out, 7, a, 4096, true) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestSetAttrDecodesAsGoNFS(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	optional := func(w nfstest.Words, f func(nfstest.Words) nfstest.Words) nfstest.Words {
		if r.IntN(2) == 0 {
			return w.U32(0)
		}
		return f(w.U32(1))
	}
	word := func(w nfstest.Words) nfstest.Words { return w.U32(r.Uint32N(0o10000)) }
	when := func(w nfstest.Words) nfstest.Words {
		if r.IntN(2) == 0 {
			return w.U32(timeKeep)
		}
		return w.U32(timeClient, r.Uint32(), r.Uint32N(1e9))
	}
	for range 500 {
		in := optional(nil, word)
		in = optional(in, word)
		in = optional(in, word)
		in = optional(in, func(w nfstest.Words) nfstest.Words { return w.U64(r.Uint64() >> 1) })
		in = when(when(in))
		c := rpc.NewCursor(in)
		got, err := readSetAttr(&c)
		if err != nil || c.Err() != nil || len(c.Rest()) != 0 {
			t.Fatalf("%x: %v, %v", in, err, c.Err())
		}
		want, err := nfs.ReadSetFileAttributes(bytes.NewReader(in))
		if err != nil {
			t.Fatal(err)
		}
		same := func(name string, got, want any) {
			if got != want {
				t.Fatalf("%x: %s %v, want %v", in, name, got, want)
			}
		}
		same("mode", deref(got.Perm), deref(want.SetMode))
		same("uid", deref(got.UID), deref(want.SetUID))
		same("gid", deref(got.GID), deref(want.SetGID))
		same("size", uint64(deref(got.Size)), deref(want.SetSize))
		same("atime", deref(got.Atime).UnixNano(), deref(want.SetAtime).UnixNano())
		same("mtime", deref(got.Mtime).UnixNano(), deref(want.SetMtime).UnixNano())
	}
}

// deref returns what p points to; a zero value stands for nil.
func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func TestSetAttrRefuses(t *testing.T) {
	for name, in := range map[string]nfstest.Words{
		"boolean of 2":     nfstest.Words(nil).U32(2, 0, 0, 0, 0, 0),
		"way 3 of a time":  nfstest.Words(nil).U32(0, 0, 0, 0, 3, 0),
		"a second of 1e9":  nfstest.Words(nil).U32(0, 0, 0, 0, 2, 5, 1e9, 0),
		"cut in the times": nfstest.Words(nil).U32(0, 0, 0, 0, 2, 5),
	} {
		c := rpc.NewCursor(in)
		if _, err := readSetAttr(&c); err != nil || c.Err() == nil {
			t.Errorf("%s: %v, %v", name, err, c.Err())
		}
	}
	c := rpc.NewCursor(nfstest.Words(nil).U32(0, 0, 0, 1).U64(1<<63).U32(0, 0))
	if _, err := readSetAttr(&c); err != fs.StatusTooLarge || c.Err() != nil {
		t.Errorf("8 EiB: %v, %v", err, c.Err())
	}
}

func TestEveryStatusHasAWord(t *testing.T) {
	seen := map[nfs.NFSStatus]fs.Status{}
	for _, s := range fs.Statuses {
		got := statuses[s]
		if (got == nfs.NFSStatusOk) != (s == fs.StatusOK) {
			t.Errorf("%v is answered %v", s, got)
		}
		if other, ok := seen[got]; ok {
			t.Errorf("%v and %v are both answered %v", s, other, got)
		}
		seen[got] = s
	}
}

func BenchmarkPostOpAttr(b *testing.B) {
	a := randomAttr(rand.New(rand.NewPCG(1, 2)))
	b.Run("hand", func(b *testing.B) {
		b.ReportAllocs()
		out := make([]byte, 0, 128)
		for b.Loop() {
			appendSome(out, 7, a)
		}
	})
	b.Run("go-nfs", func(b *testing.B) {
		b.ReportAllocs()
		var buf bytes.Buffer
		for b.Loop() {
			buf.Reset()
			_ = nfs.WritePostOpAttrs(&buf, theirs(7, a))
		}
	})
}
