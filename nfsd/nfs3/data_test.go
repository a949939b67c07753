package nfs3

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// oddFile is a file whose reads and writes do what a test says, and that says itself whether it is bulk.
type oddFile struct {
	id     fs.ID
	size   int64
	bulk   bool
	read   func(ctx context.Context, p []byte, off int64) (int, error)
	write  func(ctx context.Context, stable bool) error
	commit func() error
}

func (f *oddFile) ID() fs.ID { return f.id }
func (f *oddFile) Attr(context.Context) (fs.Attr, error) {
	return fs.Attr{ID: f.id, Kind: fs.KindFile, Size: f.size, Nlink: 1}, nil
}
func (f *oddFile) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return f.read(ctx, p, off)
}
func (f *oddFile) WriteAt(ctx context.Context, _ []byte, _ int64, stable bool) error {
	return f.write(ctx, stable)
}
func (f *oddFile) Commit(context.Context) error { return f.commit() }
func (f *oddFile) Bulk() bool                   { return f.bulk }

// odd exports a static tree with the file and returns the file's handle.
func (r *rig) odd(f *oddFile) []byte {
	r.t.Helper()
	f.id = 42
	tree := fs.NewStatic(fs.NewStaticDir(1, time.Unix(1, 0), fs.Entry{Name: "odd", Node: f}), nil)
	r.export("/odd", 9, tree, false)
	return r.at("/odd", f)
}

func TestReadRules(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	content := strings.Repeat("0123456789", 34) // 340 bytes, as a volume's metadata
	fh := r.at("/x", r.put("meta", content))
	for name, tc := range map[string]struct {
		off   uint64
		count uint32
		want  string
		eof   uint32
	}{
		"whole, asked for more":  {0, 4096, content, 1},
		"exactly":                {0, 340, content, 1},
		"one less":               {0, 339, content[:339], 0},
		"in the middle":          {100, 50, content[100:150], 0},
		"the end":                {330, 50, content[330:], 1},
		"nothing, inside":        {10, 0, "", 0},
		"nothing, at the end":    {340, 0, "", 1},
		"at the end":             {340, 10, "", 1},
		"beyond":                 {1 << 40, 10, "", 1},
		"beyond every file":      {math.MaxUint64, math.MaxUint32, "", 1},
		"as much as can be said": {0, math.MaxUint32, content, 1},
	} {
		res := r.must(nfs.NFSProcedureRead, h(fh).U64(tc.off).U32(tc.count))
		if a := res.PostOp(); a == nil || a.Filesize != 340 {
			t.Errorf("%s: attributes %+v", name, a)
		}
		n, eof, data := res.U32(), res.U32(), res.Text()
		if int(n) != len(data) || data != tc.want || eof != tc.eof {
			t.Errorf("%s: %d bytes, eof %d; want %d, %d", name, n, eof, len(tc.want), tc.eof)
		}
		res.End()
	}
}

func TestReadNeverExceedsItsLimit(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	fh := r.at("/x", r.put("big", strings.Repeat("x", MaxTransfer+5)))
	res := r.must(nfs.NFSProcedureRead, h(fh).U64(0).U32(math.MaxUint32))
	res.PostOp()
	if n, eof := res.U32(), res.U32(); n != MaxTransfer || eof != 0 {
		t.Errorf("%d bytes, eof %d", n, eof)
	}
}

func TestShortReads(t *testing.T) {
	failed := errs.Text("read", "", errs.Corrupt, "bad chunk")
	for name, tc := range map[string]struct {
		n      int
		err    error
		status nfs.NFSStatus
		eof    uint32
	}{
		"an error later":        {60, failed, nfs.NFSStatusOk, 0},
		"an error at once":      {0, failed, nfs.NFSStatusIO, 0},
		"shorter than it said":  {60, io.EOF, nfs.NFSStatusOk, 1},
		"empty after all":       {0, io.EOF, nfs.NFSStatusOk, 1},
		"everything and an end": {100, io.EOF, nfs.NFSStatusOk, 0},
		"nothing at all":        {0, nil, nfs.NFSStatusServerFault, 0},
	} {
		r := newRig(t, rpc.Limits{})
		fh := r.odd(&oddFile{size: 1000, read: func(_ context.Context, p []byte, _ int64) (int, error) {
			return copy(p, bytes.Repeat([]byte("x"), tc.n)), tc.err
		}})
		status, res := r.call(nfs.NFSProcedureRead, h(fh).U64(0).U32(100))
		if status != tc.status {
			t.Errorf("%s: %v", name, status)
		}
		res.PostOp()
		if status == nfs.NFSStatusOk {
			n, eof, data := res.U32(), res.U32(), res.Opaque()
			if int(n) != tc.n || len(data) != tc.n || eof != tc.eof {
				t.Errorf("%s: %d bytes, eof %d", name, n, eof)
			}
		}
		res.End()
	}
}

func TestDelayIsForImagesOnly(t *testing.T) {
	wait := func(ctx context.Context, _ []byte, _ int64) (int, error) { <-ctx.Done(); return 0, ctx.Err() }
	refuse := func(context.Context, []byte, int64) (int, error) { return 0, fs.StatusDelay }
	for name, tc := range map[string]struct {
		bulk bool
		read func(context.Context, []byte, int64) (int, error)
		want nfs.NFSStatus
	}{
		"an image past its deadline":      {true, wait, nfs.NFSStatusJukebox},
		"a small file past its deadline":  {false, wait, nfs.NFSStatusIO},
		"an image whose store is away":    {true, refuse, nfs.NFSStatusJukebox},
		"a small file that should not":    {false, refuse, nfs.NFSStatusIO},
		"an image with a transient fault": {true, func(context.Context, []byte, int64) (int, error) { return 0, errs.Text("get", "", errs.Transient, "x") }, nfs.NFSStatusJukebox},
	} {
		r := newRig(t, rpc.Limits{Deadline: 10 * time.Millisecond})
		fh := r.odd(&oddFile{size: 1000, bulk: tc.bulk, read: tc.read})
		r.want(name, nfs.NFSProcedureRead, h(fh).U64(0).U32(100), tc.want)
	}
	// A tree that does not say what is an image is believed.
	r := newRig(t, rpc.Limits{Deadline: 10 * time.Millisecond})
	fh := r.at("/x", r.put("file", "content"))
	r.m.SetHook(func(op string, _ fs.ID) error {
		if op == "read" {
			return fs.StatusDelay
		}
		return nil
	})
	r.want("a file of a tree that says nothing", nfs.NFSProcedureRead, h(fh).U64(0).U32(100), nfs.NFSStatusJukebox)
}

// write sends a WRITE and returns its results: the level reached and the verifier.
func (r *rig) write(fh []byte, off uint64, how uint32, data string) (uint32, uint64) {
	r.t.Helper()
	res := r.must(nfs.NFSProcedureWrite, h(fh).U64(off).U32(uint32(len(data)), how).Text(data))
	if a := res.Wcc(); a == nil {
		r.t.Error("a WRITE without attributes")
	}
	if n := res.U32(); int(n) != len(data) {
		r.t.Errorf("%d bytes written, want %d", n, len(data))
	}
	level, verifier := res.U32(), res.U64()
	res.End()
	return level, verifier
}

func (r *rig) committed(fh []byte) uint64 {
	r.t.Helper()
	res := r.must(nfs.NFSProcedureCommit, h(fh).U64(0).U32(0))
	res.Wcc()
	v := res.U64()
	res.End()
	return v
}

func TestWritesAreAsDurableAsTheySay(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	f := r.put("file", "")
	fh := r.at("/x", f)
	_, v1 := r.write(fh, 0, fileSync, "synced")
	level, v2 := r.write(fh, 6, unstable, " unstable")
	if level != unstable || v1 != v2 {
		t.Errorf("level %d, verifiers %x %x", level, v1, v2)
	}
	content := func() string {
		p := make([]byte, 100)
		n, _ := f.ReadAt(t.Context(), p, 0)
		return string(p[:n])
	}
	r.m.Crash()
	if got := content(); got != "synced" {
		t.Errorf("after a crash: %q", got)
	}
	r.write(fh, 6, unstable, " committed")
	if v := r.committed(fh); v != v1 {
		t.Errorf("COMMIT has verifier %x, WRITE %x", v, v1)
	}
	if level, _ := r.write(fh, 16, dataSync, " more"); level != fileSync {
		t.Errorf("DATA_SYNC reached level %d", level)
	}
	r.m.Crash()
	if got := content(); got != "synced committed more" {
		t.Errorf("after a second crash: %q", got)
	}
}

func TestWriteRefuses(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	f := r.put("file", "content")
	fh, dir := r.at("/x", f), r.root("/x")
	link, err := r.m.Root().(fs.Maker).Symlink(t.Context(), "link", "file", fs.SetAttr{})
	if err != nil {
		t.Fatal(err)
	}
	const p = nfs.NFSProcedureWrite
	r.want("count above length", p, h(fh).U64(0).U32(8, 2).Text("1234567"), nfs.NFSStatusInval)
	r.want("count below length", p, h(fh).U64(0).U32(6, 2).Text("1234567"), nfs.NFSStatusInval)
	r.want("beyond 8 EiB", p, h(fh).U64(math.MaxInt64).U32(1, 2).Text("x"), nfs.NFSStatusFBig)
	r.want("at 2^64", p, h(fh).U64(math.MaxUint64).U32(1, 2).Text("x"), nfs.NFSStatusFBig)
	r.want("a folder", p, h(dir).U64(0).U32(1, 2).Text("x"), nfs.NFSStatusIsDir)
	r.want("a link", p, h(r.at("/x", link)).U64(0).U32(1, 2).Text("x"), nfs.NFSStatusInval)
	r.want("read-only export", p, h(r.at("/ro", f)).U64(0).U32(1, 2).Text("x"), nfs.NFSStatusROFS)
	r.want("nothing", p, h(fh).U64(0).U32(0, 2).Text(""), nfs.NFSStatusOk)
	r.want("READ of a folder", nfs.NFSProcedureRead, h(dir).U64(0).U32(1), nfs.NFSStatusIsDir)
	r.want("READ of a link", nfs.NFSProcedureRead, h(r.at("/x", link)).U64(0).U32(1), nfs.NFSStatusInval)
	r.want("COMMIT, read-only export", nfs.NFSProcedureCommit, h(r.at("/ro", f)).U64(0).U32(0), nfs.NFSStatusROFS)
	if a, _ := f.Attr(t.Context()); a.Size != 7 {
		t.Errorf("the file has %d bytes now", a.Size)
	}
}

func TestVerifierTellsOfLosses(t *testing.T) {
	var fail error
	var during func()
	f := &oddFile{size: 1000}
	f.write = func(_ context.Context, stable bool) error {
		if during != nil {
			during()
		}
		if stable {
			return fail
		}
		return nil
	}
	f.commit = func() error { return fail }
	r := newRig(t, rpc.Limits{})
	fh := r.odd(f)
	e, _, _ := r.table.Match("/odd")
	_, before := r.write(fh, 0, unstable, "data")

	// Failures that tried nothing, or that say "later", lose nothing.
	for _, err := range []error{fs.StatusDelay, fs.StatusReadOnly, context.DeadlineExceeded, fs.StatusStale} {
		fail = err
		r.call(nfs.NFSProcedureCommit, h(fh).U64(0).U32(0))
		r.call(nfs.NFSProcedureWrite, h(fh).U64(0).U32(1, fileSync).Text("x"))
	}
	if e.Verifier() != before {
		t.Error("the verifier changed without a loss")
	}
	for _, p := range []nfs.NFSProcedure{nfs.NFSProcedureCommit, nfs.NFSProcedureWrite} {
		for _, err := range []error{fs.StatusIO, errors.New("what is this"), fs.StatusNoSpace} {
			fail = err
			was := e.Verifier()
			args := h(fh).U64(0).U32(0)
			if p == nfs.NFSProcedureWrite {
				args = h(fh).U64(0).U32(1, fileSync).Text("x")
			}
			r.call(p, args)
			if e.Verifier() == was {
				t.Errorf("%v failed with %v and the verifier stayed", p, err)
			}
		}
	}
	fail = nil
	// A loss while an unstable write runs: its reply must carry the verifier from before.
	was := e.Verifier()
	during = func() { e.Lost() }
	if _, v := r.write(fh, 0, unstable, "data"); v != was {
		t.Error("the write claims to have survived a loss")
	}
	during = nil
	f.commit = func() error { e.Lost(); return nil }
	if v := r.committed(fh); v == was || v != e.Verifier() {
		t.Error("the commit hides a loss")
	}
}
