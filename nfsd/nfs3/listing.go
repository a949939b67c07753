package nfs3

import (
	"context"
	"encoding/binary"
	"math"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/nfsd/handle"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// The cookies of "." and "..", and how far a tree's own cookies are moved to make room for them.
const (
	cookieSelf   = 1
	cookieParent = 2
	cookieShift  = 2
)

// maxListing is the largest listing sent at once, whatever the client allows (dtpref).
const maxListing = 64 << 10

// Encoded sizes (RFC 1813, sections 3.3.16 and 3.3.17): a listing without entries, an entry without its name, what
// READDIRPLUS adds to an entry, and what counts as "directory information" there.
const (
	listingLen   = postOpLen + 8 + 4 + 4
	entryLen     = 4 + 8 + 4 + 8
	entryPlusLen = postOpLen + 4 + 4 + handle.Len
	entryDirLen  = 8 + 4 + 8
)

// listing is one READDIR or READDIRPLUS.
type listing struct {
	plus     bool
	handle   []byte
	cookie   uint64
	verifier uint64
	limit    int // bytes of the whole result
	dirs     int // bytes of names, file IDs and cookies
	entries  []fs.Entry
	eof      bool
	tooTiny  bool // not even the first entry fits
}

func (s *service) readdir(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	l := listing{handle: cur.Opaque(maxHandle), cookie: cur.Uint64(), verifier: cur.Uint64(), dirs: math.MaxInt}
	l.limit = int(min(cur.Uint32(), maxListing))
	if err := cur.Err(); err != nil {
		return err
	}
	return s.list(ctx, c, r, &l)
}

func (s *service) readdirplus(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	l := listing{plus: true, handle: cur.Opaque(maxHandle), cookie: cur.Uint64(), verifier: cur.Uint64()}
	l.dirs = int(cur.Uint32())
	l.limit = int(min(cur.Uint32(), maxListing))
	if err := cur.Err(); err != nil {
		return err
	}
	return s.list(ctx, c, r, &l)
}

func (s *service) list(ctx context.Context, c *rpc.Call, r *rpc.Reply, l *listing) error {
	t, d, err := s.resolveDir(ctx, c, l.handle)
	if err == nil && l.verifier != 0 {
		err = fs.StatusBadCookie
	}
	if err == nil {
		err = c.Reserve(ctx, false, l.limit)
	}
	if err == nil {
		err = l.collect(ctx, t, d)
	}
	if err == nil && l.tooTiny {
		resultTooSmall(r)
		r.Out = appendPostOp(ctx, r.Out, t)
		return nil
	}
	result(r, t, err)
	if err != nil {
		r.Out = appendPostOp(ctx, r.Out, t)
		return nil
	}
	r.Grow(l.limit)
	r.Out = appendPostOp(ctx, r.Out, t)
	r.Out = binary.BigEndian.AppendUint64(r.Out, 0)
	for i := range l.entries {
		s.appendEntry(ctx, r, t, l.plus, &l.entries[i])
	}
	r.Out = binary.BigEndian.AppendUint32(r.Out, 0)
	end := uint32(0)
	if l.eof {
		end = 1
	}
	r.Out = binary.BigEndian.AppendUint32(r.Out, end)
	return nil
}

// collect takes as many entries as fit.
func (l *listing) collect(ctx context.Context, t target, d fs.Dir) error {
	if l.limit < listingLen {
		l.tooTiny = true
		return nil
	}
	l.limit -= listingLen
	defer func() { l.limit += listingLen }()
	left, dirs := l.limit, l.dirs
	add := func(e fs.Entry) bool {
		name := (len(e.Name) + 3) &^ 3
		size := entryLen + name
		if l.plus {
			size += entryPlusLen
		}
		// dircount is a hint: one entry is always given.
		if size > left || entryDirLen+name > dirs && len(l.entries) > 0 {
			l.tooTiny = len(l.entries) == 0
			return false
		}
		left -= size
		dirs -= entryDirLen + name
		l.entries = append(l.entries, e)
		return true
	}
	if l.cookie < cookieSelf && !add(fs.Entry{Name: ".", Cookie: cookieSelf, Node: d}) {
		return nil
	}
	if l.cookie < cookieParent && !add(fs.Entry{Name: "..", Cookie: cookieParent, Node: t.parentNode(ctx, d)}) {
		return nil
	}
	after := uint64(0)
	if l.cookie > cookieShift {
		after = l.cookie - cookieShift
	}
	l.eof = true
	return d.List(ctx, after, func(e fs.Entry) bool {
		if e.Cookie > math.MaxUint64-cookieShift {
			return true // no tree counts that far; passing it on would wrap around to ".."
		}
		e.Cookie += cookieShift
		l.eof = add(e)
		return l.eof
	})
}

// parentNode returns what to list as "..": the parent if it is known, else the export's root. Clients show its number
// and do not use it otherwise.
func (t target) parentNode(ctx context.Context, d fs.Dir) fs.Node {
	if p, err := t.parent(ctx, d); err == nil {
		return p
	}
	return t.entry.Tree.Root()
}

func (s *service) appendEntry(ctx context.Context, r *rpc.Reply, t target, plus bool, e *fs.Entry) {
	r.Out = binary.BigEndian.AppendUint32(r.Out, 1)
	r.Out = binary.BigEndian.AppendUint64(r.Out, uint64(e.Node.ID()))
	r.Out = rpc.AppendString(r.Out, e.Name)
	r.Out = binary.BigEndian.AppendUint64(r.Out, e.Cookie)
	if !plus {
		return
	}
	if e.Cookie == cookieParent {
		// It may be the root in the place of an unknown parent: a client must not learn a wrong handle.
		r.Out = binary.BigEndian.AppendUint64(r.Out, 0) // neither attributes nor handle
		return
	}
	r.Out = appendPostOp(ctx, r.Out, target{t.entry, e.Node})
	r.Out = binary.BigEndian.AppendUint32(r.Out, 1)
	r.Out = binary.BigEndian.AppendUint32(r.Out, handle.Len)
	r.Out = s.table.Append(r.Out, t.entry, e.Node.ID())
}
