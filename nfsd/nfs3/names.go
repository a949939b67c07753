package nfs3

import (
	"context"
	"encoding/binary"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/nfsd/handle"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// maxHandle bounds handles in arguments: a longer one is garbage, a shorter one that is not ours is BADHANDLE.
const maxHandle = handle.Max

// maxPath bounds names and link texts in arguments. A name over fs.MaxName is NAMETOOLONG, not garbage.
const maxPath = 4096

// maxTarget is the longest text of a symbolic link.
const maxTarget = 1024

// place is a diropargs3: a name in a folder.
type place struct {
	dir  []byte
	name string
}

func readPlace(c *rpc.Cursor) place {
	h := c.Opaque(maxHandle)
	return place{h, string(c.Opaque(maxPath))}
}

func (s *service) lookup(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	at := readPlace(&cur)
	if err := cur.Err(); err != nil {
		return err
	}
	t, d, err := s.resolveDir(ctx, c, at.dir)
	var found target
	var a fs.Attr
	if err == nil {
		found, err = t.find(ctx, d, at.name)
	}
	if err == nil {
		a, err = found.node.Attr(ctx)
	}
	result(r, t, err)
	if err == nil {
		r.Out = binary.BigEndian.AppendUint32(r.Out, handle.Len)
		r.Out = s.table.Append(r.Out, t.entry, found.node.ID())
		r.Out = appendSome(r.Out, t.entry.FSID(), &a)
	}
	r.Out = appendPostOp(ctx, r.Out, t)
	return nil
}

// find looks a name up, also the two that no tree knows.
func (t target) find(ctx context.Context, d fs.Dir, name string) (target, error) {
	switch name {
	case ".":
		return t, nil
	case "..":
		parent, err := t.parent(ctx, d)
		return target{t.entry, parent}, err
	}
	if err := fs.CheckName(name); err != nil {
		return target{}, err
	}
	n, err := d.Lookup(ctx, name)
	return target{t.entry, n}, err
}

func (t target) parent(ctx context.Context, d fs.Dir) (fs.Dir, error) {
	if d.ID() == t.entry.Tree.Root().ID() {
		return d, nil
	}
	if p, ok := d.(Parented); ok {
		return p.Parent(ctx)
	}
	return nil, fs.StatusNotSupported
}

func (s *service) readlink(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	h := cur.Opaque(maxHandle)
	if err := cur.Err(); err != nil {
		return err
	}
	t, err := s.resolve(ctx, c, h)
	var text string
	if err == nil {
		if l, ok := t.node.(fs.Symlink); ok {
			text, err = l.Readlink(ctx)
		} else {
			err = fs.StatusInvalid
		}
	}
	result(r, t, err)
	r.Out = appendPostOp(ctx, r.Out, t)
	if err == nil {
		r.Out = rpc.AppendString(r.Out, text)
	}
	return nil
}

// changeDir finds a folder that names are to be added to or taken from, and checks the name.
func (s *service) changeDir(ctx context.Context, c *rpc.Call, at place) (target, fs.Dir, error) {
	t, d, err := s.resolveDir(ctx, c, at.dir)
	if err == nil {
		err = t.writable()
	}
	if err == nil {
		err = fs.CheckName(at.name)
	}
	return t, d, err
}

// makerOf and removerOf return the folder as something to change.
func makerOf(d fs.Dir) (fs.Maker, error) {
	if m, ok := d.(fs.Maker); ok {
		return m, nil
	}
	return nil, fs.StatusReadOnly
}

func removerOf(d fs.Dir) (fs.Remover, error) {
	if m, ok := d.(fs.Remover); ok {
		return m, nil
	}
	return nil, fs.StatusReadOnly
}

// made runs create in a folder and appends the reply that CREATE, MKDIR, SYMLINK and MKNOD share: handle and attributes
// of what was made, and the folder's.
func (s *service) made(ctx context.Context, c *rpc.Call, r *rpc.Reply, at place, create func(fs.Maker) (fs.Node, error)) {
	t, d, err := s.changeDir(ctx, c, at)
	var m fs.Maker
	if err == nil {
		m, err = makerOf(d)
	}
	var n fs.Node
	if err == nil {
		n, err = create(m)
	}
	result(r, t, err)
	if err == nil {
		r.Out = binary.BigEndian.AppendUint32(r.Out, 1)
		r.Out = binary.BigEndian.AppendUint32(r.Out, handle.Len)
		r.Out = s.table.Append(r.Out, t.entry, n.ID())
		r.Out = appendPostOp(ctx, r.Out, target{t.entry, n})
	}
	r.Out = appendWcc(ctx, r.Out, t)
}

func (s *service) create(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	at := readPlace(&cur)
	mode := cur.Uint32()
	var set fs.SetAttr
	var verifier [8]byte
	var bad error
	switch mode {
	case uint32(fs.CreateUnchecked), uint32(fs.CreateGuarded):
		set, bad = readSetAttr(&cur)
	case uint32(fs.CreateExclusive):
		copy(verifier[:], cur.Fixed(8))
	default:
		cur.Fail()
	}
	if err := cur.Err(); err != nil {
		return err
	}
	s.made(ctx, c, r, at, func(m fs.Maker) (fs.Node, error) {
		if bad != nil {
			return nil, bad
		}
		return m.Create(ctx, at.name, fs.CreateMode(mode), set, verifier)
	})
	return nil
}

func (s *service) mkdir(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	at := readPlace(&cur)
	set, bad := readSetAttr(&cur)
	if err := cur.Err(); err != nil {
		return err
	}
	set.Size = nil // of a folder means nothing
	s.made(ctx, c, r, at, func(m fs.Maker) (fs.Node, error) {
		if bad != nil {
			return nil, bad
		}
		return m.Mkdir(ctx, at.name, set)
	})
	return nil
}

func (s *service) symlink(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	at := readPlace(&cur)
	set, bad := readSetAttr(&cur)
	text := string(cur.Opaque(maxPath))
	if err := cur.Err(); err != nil {
		return err
	}
	set.Size = nil
	s.made(ctx, c, r, at, func(m fs.Maker) (fs.Node, error) {
		switch {
		case bad != nil:
			return nil, bad
		case text == "":
			return nil, fs.StatusInvalid
		case len(text) > maxTarget:
			return nil, fs.StatusNameTooLong
		}
		return m.Symlink(ctx, at.name, text, set)
	})
	return nil
}

// The ftype3 values that MKNOD may carry.
const (
	typeBlock  = 3
	typeChar   = 4
	typeSocket = 6
	typeFIFO   = 7
)

func (s *service) mknod(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	at := readPlace(&cur)
	switch cur.Uint32() {
	case typeBlock, typeChar:
		_, _ = readSetAttr(&cur)
		_ = cur.Uint64() // device numbers
	case typeSocket, typeFIFO:
		_, _ = readSetAttr(&cur)
	}
	if err := cur.Err(); err != nil {
		return err
	}
	s.made(ctx, c, r, at, func(fs.Maker) (fs.Node, error) { return nil, fs.StatusNotSupported })
	return nil
}

func (s *service) remove(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	return s.removed(ctx, c, r, fs.Remover.Remove)
}

func (s *service) rmdir(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	return s.removed(ctx, c, r, fs.Remover.RemoveDir)
}

func (s *service) removed(ctx context.Context, c *rpc.Call, r *rpc.Reply,
	remove func(fs.Remover, context.Context, string) error) error {
	cur := rpc.NewCursor(c.Args)
	at := readPlace(&cur)
	if err := cur.Err(); err != nil {
		return err
	}
	t, d, err := s.changeDir(ctx, c, at)
	var m fs.Remover
	if err == nil {
		m, err = removerOf(d)
	}
	if err == nil {
		err = remove(m, ctx, at.name)
	}
	result(r, t, err)
	r.Out = appendWcc(ctx, r.Out, t)
	return nil
}

func (s *service) rename(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	old, next := readPlace(&cur), readPlace(&cur)
	if err := cur.Err(); err != nil {
		return err
	}
	from, fromDir, err := s.changeDir(ctx, c, old)
	var to target
	var toDir fs.Dir
	if err == nil {
		to, toDir, err = s.changeDir(ctx, c, next)
	}
	if err == nil && from.entry != to.entry {
		err = fs.StatusCrossDevice
	}
	var m fs.Remover
	if err == nil {
		m, err = removerOf(fromDir)
	}
	if err == nil {
		err = m.Rename(ctx, old.name, toDir, next.name)
	}
	result(r, from, err)
	r.Out = appendWcc(ctx, r.Out, from)
	r.Out = appendWcc(ctx, r.Out, to)
	return nil
}

func (s *service) link(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	h := cur.Opaque(maxHandle)
	at := readPlace(&cur)
	if err := cur.Err(); err != nil {
		return err
	}
	t, err := s.resolve(ctx, c, h)
	var in target
	var d fs.Dir
	if err == nil {
		in, d, err = s.changeDir(ctx, c, at)
	}
	if err == nil && t.entry != in.entry {
		err = fs.StatusCrossDevice
	}
	var m fs.Maker
	if err == nil {
		m, err = makerOf(d)
	}
	if err == nil {
		err = m.Link(ctx, t.node, at.name)
	}
	result(r, t, err)
	r.Out = appendPostOp(ctx, r.Out, t)
	r.Out = appendWcc(ctx, r.Out, in)
	return nil
}
