package nfsd_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs/folder"
	"github.com/holdfast-backup/holdfast/fs/overlay"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
)

// wireBase is a restore point below a session's disk: a pattern, of which half is stored, until it is told to fail.
type wireBase struct {
	fail atomic.Pointer[func(ctx context.Context) error]
}

const (
	wireDiskName = "disk"
	wireDiskSize = 4 << 20
	wireBaseUsed = wireDiskSize / 2
)

func (b *wireBase) Size() int64 { return wireDiskSize }

func (b *wireBase) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if f := b.fail.Load(); f != nil {
		if err := (*f)(ctx); err != nil {
			return 0, err
		}
	}
	n := copy(p, wireContent[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

var wireContent = pattern(wireDiskSize, 77)

// wire is a session as hosts see it, with a client that speaks the protocol word by word: a folder of small files, and a
// disk in it, which is an overlay over wireBase. All of it can be ended and begun anew, over what lies on disk.
type wire struct {
	t     *testing.T
	dir   string
	disks disk.Disk // what the overlay lies on
	name  string    // the overlay's folder there
	base  *wireBase
	o     nfsd.Options

	s    *running
	tree *folder.Tree
	over *overlay.Overlay
	c    *nfstest.Conn
	root []byte
}

func newWire(t *testing.T, o nfsd.Options) *wire {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "domain"), 0o755); err != nil {
		t.Fatal(err)
	}
	o.Key = testKey
	w := &wire{t: t, dir: dir, disks: disk.OS{}, name: filepath.Join(dir, "overlay"), base: &wireBase{}, o: o}
	w.begin()
	return w
}

// begin serves what lies on disk.
func (w *wire) begin() {
	t := w.t
	t.Helper()
	oo := overlay.Options{Identity: "test"}
	var err error
	if w.over, err = overlay.Open(t.Context(), w.disks, w.name, w.base, oo); errs.Is(err, errs.NotFound) {
		w.over, err = overlay.Create(t.Context(), w.disks, w.name, w.base, oo)
	}
	if err != nil {
		t.Fatal(err)
	}
	if w.tree, err = folder.Open(filepath.Join(w.dir, "domain"), folder.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := w.tree.Graft("disk", wireDiskName, w.over, func() int64 { return wireBaseUsed }); err != nil && !errs.Is(err, errs.Stale) {
		t.Fatal(err)
	}
	w.s = startOn(t, "127.0.0.1:0", w.o, w.tree)
	w.c = nfstest.Dial(t, w.s.addr)
	var status nfs.MountStatus
	if status, w.root = w.c.MNT("/a"); status != nfs.MountStatusOk {
		t.Fatalf("MNT: %d", status)
	}
	t.Cleanup(w.end)
}

// end takes it all away; it may be called more than once.
func (w *wire) end() {
	w.s.end(w.t)
	_ = w.tree.Close()
	_ = w.over.Close() // a poisoned one says so
}

// restart is end and begin.
func (w *wire) restart() {
	w.t.Helper()
	w.end()
	w.begin()
}

func at(dir []byte, name string) nfstest.Words { return nfstest.Words(nil).Opaque(dir).Text(name) }

// same is a sattr3 that changes nothing.
func same() nfstest.Words { return words(0, 0, 0, 0, 0, 0) }

// want checks the status of a call.
func (w *wire) want(what string, p nfs.NFSProcedure, args nfstest.Words, want nfs.NFSStatus) {
	w.t.Helper()
	if status, _ := w.c.NFS(p, args); status != want {
		w.t.Errorf("%s: %v is answered %v, want %v", what, p, status, want)
	}
}

// made makes a file, folder or link and returns its handle.
func (w *wire) made(p nfs.NFSProcedure, args nfstest.Words) []byte {
	w.t.Helper()
	res := w.c.MustNFS(p, args)
	if res.U32() != 1 {
		w.t.Fatalf("%v gave no handle", p)
	}
	return res.Handle()
}

func (w *wire) file(dir []byte, name, content string) []byte {
	w.t.Helper()
	fh := w.made(nfs.NFSProcedureCreate, at(dir, name).U32(1).Raw(same()))
	if content != "" {
		w.write(fh, 0, 2, content)
	}
	return fh
}

func (w *wire) mkdir(dir []byte, name string) []byte {
	w.t.Helper()
	return w.made(nfs.NFSProcedureMkDir, at(dir, name).Raw(same()))
}

func (w *wire) attr(fh []byte) nfs.FileAttribute {
	w.t.Helper()
	return w.c.MustNFS(nfs.NFSProcedureGetAttr, nfstest.Words(nil).Opaque(fh)).Attr()
}

// writeArgs are the arguments of a WRITE; how is UNSTABLE, DATA_SYNC or FILE_SYNC.
func writeArgs(fh []byte, off uint64, how uint32, data string) nfstest.Words {
	return nfstest.Words(nil).Opaque(fh).U64(off).U32(uint32(len(data)), how).Text(data)
}

// write writes, and returns the verifier and the attributes after it.
func (w *wire) write(fh []byte, off uint64, how uint32, data string) (uint64, *nfs.FileAttribute) {
	w.t.Helper()
	res := w.c.MustNFS(nfs.NFSProcedureWrite, writeArgs(fh, off, how, data))
	a := res.Wcc()
	if n, reached := res.U32(), res.U32(); int(n) != len(data) || reached < how {
		w.t.Fatalf("%d bytes, level %d", n, reached)
	}
	return res.U64(), a
}

func (w *wire) commit(fh []byte) uint64 {
	w.t.Helper()
	res := w.c.MustNFS(nfs.NFSProcedureCommit, nfstest.Words(nil).Opaque(fh).U64(0).U32(0))
	res.Wcc()
	return res.U64()
}

// read reads, and returns the data, whether it ends the file, and the attributes.
func (w *wire) read(fh []byte, off uint64, count uint32) (string, bool, *nfs.FileAttribute) {
	w.t.Helper()
	res := w.c.MustNFS(nfs.NFSProcedureRead, read(fh, off, count))
	a := res.PostOp()
	n, eof := res.U32(), res.U32()
	data := res.Text()
	if int(n) != len(data) {
		w.t.Fatalf("%d bytes are said to be %d", len(data), n)
	}
	return data, eof == 1, a
}

// content reads a small file.
func (w *wire) content(fh []byte) string {
	w.t.Helper()
	data, _, _ := w.read(fh, 0, 1<<16)
	return data
}
