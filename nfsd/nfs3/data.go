package nfs3

import (
	"context"
	"encoding/binary"
	"io"
	"math"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

func (s *service) read(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	h := cur.Opaque(maxHandle)
	off, count := cur.Uint64(), cur.Uint32()
	if err := cur.Err(); err != nil {
		return err
	}
	t, f, err := s.resolveFile(ctx, c, h)
	var a fs.Attr
	if err == nil {
		a, err = f.Attr(ctx)
	}
	n, eof := 0, false
	if err == nil {
		n, eof, err = fill(ctx, c, r, t, extent{off, min(count, MaxTransfer), a.Size})
	}
	if err == nil && eof && off+uint64(n) < uint64(a.Size) {
		// It became shorter while it was read: the reply must not state a size that READ does not give.
		a, err = f.Attr(ctx)
	}
	result(r, t, err)
	if err != nil {
		r.SetBody(0)
		r.Out = appendPostOp(ctx, r.Out, t)
		return nil
	}
	r.SetBody(n)
	r.Bytes = n
	r.Out = appendReadOK(r.Out, t.entry.FSID(), &a, n, eof)
	return nil
}

// extent is what a READ asks for, in a file of the size that its reply will state.
type extent struct {
	off   uint64
	count uint32
	size  int64
}

// fill reads into the reply's body. It returns the bytes read and whether they end at the end of the file.
func fill(ctx context.Context, c *rpc.Call, r *rpc.Reply, t target, x extent) (int, bool, error) {
	if x.off >= uint64(x.size) {
		return 0, true, nil
	}
	left := x.size - int64(x.off)
	want := int(min(int64(x.count), left))
	if want == 0 {
		return 0, false, nil
	}
	if err := c.Reserve(ctx, t.bulk(), want); err != nil {
		return 0, false, err
	}
	n, err := t.node.(fs.File).ReadAt(ctx, r.Body(want), int64(x.off))
	switch {
	case n == want:
		return n, int64(want) == left, nil
	case err == io.EOF: // became shorter since its size was asked
		return n, true, nil
	case n > 0: // a short read is legal: the client asks for the rest, and then gets the error
		return n, false, nil
	case err == nil:
		return 0, false, io.ErrNoProgress
	}
	return 0, false, err
}

// appendReadOK appends a READ3resok up to its data.
func appendReadOK(out []byte, fsid uint64, a *fs.Attr, n int, eof bool) []byte {
	out = appendSome(out, fsid, a)
	out = binary.BigEndian.AppendUint32(out, uint32(n))
	end := uint32(0)
	if eof {
		end = 1
	}
	out = binary.BigEndian.AppendUint32(out, end)
	return binary.BigEndian.AppendUint32(out, uint32(n))
}

// The values of stable_how (RFC 1813, section 3.3.7).
const (
	unstable = iota
	dataSync
	fileSync
)

func (s *service) write(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	h := cur.Opaque(maxHandle)
	off, count, stable := cur.Uint64(), cur.Uint32(), cur.Uint32()
	data := cur.Opaque(MaxTransfer)
	if stable > fileSync {
		cur.Fail()
	}
	if err := cur.Err(); err != nil {
		return err
	}
	t, _, err := s.resolveFile(ctx, c, h)
	var verifier uint64
	if err == nil {
		// Taken before the write: if a sync fails in between, the client must see that its verifier is an old one.
		verifier = t.entry.Verifier()
		switch {
		case int(count) != len(data):
			err = fs.StatusInvalid
		case off > math.MaxInt64-MaxTransfer:
			err = fs.StatusTooLarge
		default:
			err = put(ctx, c, t, payload{data, int64(off), stable != unstable})
		}
	}
	result(r, t, err)
	r.Out = appendWcc(ctx, r.Out, t)
	if err != nil {
		return nil
	}
	r.Bytes = len(data)
	how := uint32(unstable)
	if stable != unstable {
		how = fileSync // at least what was asked for
	}
	r.Out = binary.BigEndian.AppendUint32(r.Out, count)
	r.Out = binary.BigEndian.AppendUint32(r.Out, how)
	r.Out = binary.BigEndian.AppendUint64(r.Out, verifier)
	return nil
}

// writer returns the file as something to write to.
func (t target) writer() (fs.Writer, error) {
	if err := t.writable(); err != nil {
		return nil, err
	}
	w, ok := t.node.(fs.Writer)
	if !ok {
		return nil, fs.StatusReadOnly
	}
	return w, nil
}

// payload is what a WRITE brings.
type payload struct {
	data   []byte
	off    int64
	stable bool
}

func put(ctx context.Context, c *rpc.Call, t target, p payload) error {
	w, err := t.writer()
	if err != nil || len(p.data) == 0 {
		return err
	}
	// The data itself is held by the budget for records; here only a place is needed.
	if err := c.Reserve(ctx, t.bulk(), 0); err != nil {
		return err
	}
	err = w.WriteAt(ctx, p.data, p.off, p.stable)
	if p.stable && mayHaveLost(err) {
		t.entry.Lost()
	}
	return err
}

// mayHaveLost tells whether a failed sync may have cost unstable writes that were answered before. Statuses that say
// that nothing was tried did not; in doubt it did, which costs clients only a repetition.
func mayHaveLost(err error) bool {
	if err == nil {
		return false
	}
	switch fs.StatusOf(err) {
	case fs.StatusReadOnly, fs.StatusInvalid, fs.StatusTooLarge, fs.StatusNotSupported, fs.StatusStale,
		fs.StatusBadHandle, fs.StatusDelay, fs.StatusAccess, fs.StatusPermission, fs.StatusNotSync, fs.StatusIsDir:
		return false
	}
	return true
}

func (s *service) commit(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	h := cur.Opaque(maxHandle)
	_, _ = cur.Uint64(), cur.Uint32() // a tree commits whole files, which is more than asked for
	if err := cur.Err(); err != nil {
		return err
	}
	t, _, err := s.resolveFile(ctx, c, h)
	var w fs.Writer
	if err == nil {
		w, err = t.writer()
	}
	if err == nil {
		err = c.Reserve(ctx, t.bulk(), 0)
	}
	if err == nil {
		if err = w.Commit(ctx); mayHaveLost(err) {
			t.entry.Lost()
		}
	}
	result(r, t, err)
	r.Out = appendWcc(ctx, r.Out, t)
	if err == nil {
		// Taken after the commit: another one that failed meanwhile may have lost what this client counts on.
		r.Out = binary.BigEndian.AppendUint64(r.Out, t.entry.Verifier())
	}
	return nil
}
