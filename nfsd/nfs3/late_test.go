package nfs3

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// TestLateAnswersAreWhole: what a client gets for a call that hangs has the form of a failure of that procedure.
func TestLateAnswersAreWhole(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	for p, proc := range New(r.table).Versions[Version] {
		p := nfs.NFSProcedure(p)
		if p == nfs.NFSProcedureNull {
			continue
		}
		reply := rpc.Reply{Out: make([]byte, 28)} // as after its header
		proc.Late(&rpc.Call{}, &reply)
		res := nfstest.ResultsOf(t, reply.Results())
		if s := nfs.NFSStatus(res.U32()); s != nfs.NFSStatusJukebox || reply.Status != uint32(s) {
			t.Errorf("%v: %v", p, s)
		}
		failure(p, res)
	}
}

// TestHangingTreesAreAnswered: a tree that heeds no context, over the wire.
func TestHangingTreesAreAnswered(t *testing.T) {
	for bulk, want := range map[bool]nfs.NFSStatus{true: nfs.NFSStatusJukebox, false: nfs.NFSStatusIO} {
		gate := make(chan struct{})
		r := newRig(t, rpc.Limits{Deadline: 40 * time.Millisecond})
		fh := r.odd(&oddFile{size: 1000, bulk: bulk, read: func(context.Context, []byte, int64) (int, error) {
			<-gate
			return 0, io.EOF
		}})
		c := nfstest.Dial(t, r.listen())
		status, res := c.NFS(nfs.NFSProcedureRead, h(fh).U64(0).U32(100))
		if status != want {
			t.Errorf("bulk %v: %v, want %v", bulk, status, want)
		}
		failure(nfs.NFSProcedureRead, res)
		close(gate)
	}
}

// TestShrinkingFile: a file is cut while it is read. The size in the reply is what READ gives.
func TestShrinkingFile(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	f := &oddFile{size: 1000}
	f.read = func(_ context.Context, p []byte, off int64) (int, error) {
		f.size = 60
		return int(60 - off), io.EOF
	}
	res := r.must(nfs.NFSProcedureRead, h(r.odd(f)).U64(20).U32(100))
	a := res.PostOp()
	if n, eof := res.U32(), res.U32(); a.Filesize != 60 || n != 40 || eof != 1 {
		t.Errorf("size %d, %d bytes, eof %d", a.Filesize, n, eof)
	}
}

// sizedFile is an oddFile whose size can be set, to an error.
type sizedFile struct {
	*oddFile
	err error
}

func (f *sizedFile) SetAttr(ctx context.Context, _ fs.SetAttr, _ *time.Time) (fs.Attr, error) {
	a, _ := f.Attr(ctx)
	return a, f.err
}

// TestVerifierTellsOfLossesBySize: a truncation syncs the file, and when that fails unstable writes of before may be lost.
func TestVerifierTellsOfLossesBySize(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	f := &sizedFile{oddFile: &oddFile{id: 42}}
	tree := fs.NewStatic(fs.NewStaticDir(1, time.Unix(1, 0), fs.Entry{Name: "f", Node: f}), nil)
	r.export("/sized", 9, tree, false)
	e, _, _ := r.table.Match("/sized")
	for _, c := range []struct {
		size int // 1: a size is set
		err  error
		lost bool
	}{
		{1, nil, false}, {1, fs.StatusNotSync, false}, {1, fs.StatusPermission, false}, {0, fs.StatusIO, false},
		{1, fs.StatusIO, true}, {1, errors.New("what is this"), true}, {1, fs.StatusNoSpace, true},
	} {
		was := e.Verifier()
		args := h(r.at("/sized", f)).U32(0, 0, 0, uint32(c.size))
		if c.size == 1 {
			args = args.U64(5)
		}
		f.err = c.err
		r.call(nfs.NFSProcedureSetAttr, args.U32(0, 0, 0))
		if changed := e.Verifier() != was; changed != c.lost {
			t.Errorf("size set %d, %v: verifier changed %v", c.size, c.err, changed)
		}
	}
}
