package nfs3

import (
	"context"
	"encoding/binary"
	"math"
	"time"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// Encoded sizes of fattr3 and of a post_op_attr that holds one (RFC 1813, section 2.6).
const (
	attrLen   = 84
	postOpLen = 4 + attrLen
)

var fileTypes = [...]nfs.FileType{
	fs.KindFile:    nfs.FileTypeRegular,
	fs.KindDir:     nfs.FileTypeDirectory,
	fs.KindSymlink: nfs.FileTypeLink,
}

// appendAttr appends a fattr3.
func appendAttr(out []byte, fsid uint64, a *fs.Attr) []byte {
	be := binary.BigEndian
	out = be.AppendUint32(out, uint32(fileTypes[a.Kind]))
	out = be.AppendUint32(out, a.Perm&0o7777)
	out = be.AppendUint32(out, a.Nlink)
	out = be.AppendUint32(out, a.UID)
	out = be.AppendUint32(out, a.GID)
	out = be.AppendUint64(out, uint64(a.Size))
	out = be.AppendUint64(out, uint64(a.Used))
	out = be.AppendUint64(out, 0) // specdata: no device nodes here
	out = be.AppendUint64(out, fsid)
	out = be.AppendUint64(out, uint64(a.ID))
	out = appendTime(out, a.Atime)
	out = appendTime(out, a.Mtime)
	return appendTime(out, a.Ctime)
}

// appendTime appends an nfstime3. Times it cannot hold become the nearest it can.
func appendTime(out []byte, t time.Time) []byte {
	sec, ns := t.Unix(), t.Nanosecond()
	if sec < 0 {
		sec, ns = 0, 0
	}
	out = binary.BigEndian.AppendUint32(out, uint32(min(sec, math.MaxUint32)))
	return binary.BigEndian.AppendUint32(out, uint32(ns))
}

// appendSome appends a post_op_attr with attributes.
func appendSome(out []byte, fsid uint64, a *fs.Attr) []byte {
	return appendAttr(binary.BigEndian.AppendUint32(out, 1), fsid, a)
}

// appendNone appends a post_op_attr without.
func appendNone(out []byte) []byte { return binary.BigEndian.AppendUint32(out, 0) }

// appendPostOp appends the attributes of t's node, or that they are not known.
func appendPostOp(ctx context.Context, out []byte, t target) []byte {
	if t.node == nil {
		return appendNone(out)
	}
	a, err := t.node.Attr(ctx)
	if err != nil {
		return appendNone(out)
	}
	return appendSome(out, t.entry.FSID(), &a)
}

// appendWcc appends a wcc_data: nothing known from before, the attributes after.
func appendWcc(ctx context.Context, out []byte, t target) []byte {
	return appendPostOp(ctx, appendNone(out), t)
}

// readSetAttr decodes a sattr3 (RFC 1813, section 2.6).
func readSetAttr(c *rpc.Cursor) (set fs.SetAttr, err error) {
	word := func() *uint32 {
		if !c.Bool() {
			return nil
		}
		v := c.Uint32()
		return &v
	}
	if p := word(); p != nil {
		perm := *p & 0o7777
		set.Perm = &perm
	}
	set.UID, set.GID = word(), word()
	if c.Bool() {
		size := c.Uint64()
		if size > math.MaxInt64 {
			err = fs.StatusTooLarge
		}
		v := int64(size)
		set.Size = &v
	}
	set.Atime = readSetTime(c)
	set.Mtime = readSetTime(c)
	return set, err
}

// The ways to set a time: leave it, the server's clock, the time given.
const (
	timeKeep = iota
	timeServer
	timeClient
)

func readSetTime(c *rpc.Cursor) *time.Time {
	switch c.Uint32() {
	case timeKeep:
		return nil
	case timeServer:
		t := time.Now().Round(0) // a stored time has no monotonic clock
		return &t
	case timeClient:
		t := readTime(c)
		return &t
	}
	c.Fail()
	return nil
}

func readTime(c *rpc.Cursor) time.Time {
	sec, ns := c.Uint32(), c.Uint32()
	if ns >= 1e9 {
		c.Fail()
	}
	return time.Unix(int64(sec), int64(ns))
}

func (s *service) getattr(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	h := cur.Opaque(maxHandle)
	if err := cur.Err(); err != nil {
		return err
	}
	t, err := s.resolve(ctx, c, h)
	var a fs.Attr
	if err == nil {
		a, err = t.node.Attr(ctx)
	}
	result(r, t, err)
	if err == nil {
		r.Out = appendAttr(r.Out, t.entry.FSID(), &a)
	}
	return nil
}

func (s *service) setattr(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	h := cur.Opaque(maxHandle)
	set, bad := readSetAttr(&cur)
	var guard *time.Time
	if cur.Bool() {
		t := readTime(&cur)
		guard = &t
	}
	if err := cur.Err(); err != nil {
		return err
	}
	t, err := s.resolve(ctx, c, h)
	if err == nil {
		err = t.writable()
	}
	if err == nil {
		err = bad
	}
	if err == nil {
		if setter, ok := t.node.(fs.AttrSetter); ok {
			_, err = setter.SetAttr(ctx, set, guard)
			if set.Size != nil && mayHaveLost(err) {
				t.entry.Lost() // a size is set durably: what could not be synced may be unstable writes of before
			}
		} else {
			err = fs.StatusReadOnly
		}
	}
	result(r, t, err)
	r.Out = appendWcc(ctx, r.Out, t)
	return nil
}

// The bits of ACCESS (RFC 1813, section 3.3.4).
const (
	accessRead    = 0x01
	accessLookup  = 0x02
	accessModify  = 0x04
	accessExtend  = 0x08
	accessDelete  = 0x10
	accessExecute = 0x20
)

// granted returns what can be done with a node, whoever asks.
func (t target) granted(a *fs.Attr) uint32 {
	bits := uint32(accessRead)
	_, setter := t.node.(fs.AttrSetter)
	switch n := t.node.(type) {
	case fs.Dir:
		bits |= accessLookup
		_, maker := n.(fs.Maker)
		_, remover := n.(fs.Remover)
		if maker {
			bits |= accessExtend
		}
		if remover {
			bits |= accessDelete
		}
		if maker || remover || setter {
			bits |= accessModify
		}
	case fs.File:
		if _, ok := n.(fs.Writer); ok {
			bits |= accessModify | accessExtend
		}
		if a.Perm&0o111 != 0 {
			bits |= accessExecute
		}
	}
	if t.entry.ReadOnly {
		bits &^= accessModify | accessExtend | accessDelete
	}
	return bits
}

func (s *service) access(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	h := cur.Opaque(maxHandle)
	asked := cur.Uint32()
	if err := cur.Err(); err != nil {
		return err
	}
	t, err := s.resolve(ctx, c, h)
	var a fs.Attr
	if err == nil {
		a, err = t.node.Attr(ctx)
	}
	result(r, t, err)
	if err != nil {
		r.Out = appendNone(r.Out)
		return nil
	}
	r.Out = appendSome(r.Out, t.entry.FSID(), &a)
	r.Out = binary.BigEndian.AppendUint32(r.Out, asked&t.granted(&a))
	return nil
}
