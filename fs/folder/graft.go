package folder

import (
	"context"
	"errors"
	"path"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// GraftInfo tells where a graft is.
type GraftInfo struct {
	Key  string
	ID   fs.ID
	Path string // below the root, slash-separated; the last one that was known if Gone
	Gone bool   // its file was removed
}

// attached is the stream of a graft.
type attached struct {
	fs.WritableStream
	used func() int64
}

// figures returns the size and the bytes of storage that stand behind it: those beneath the stream and, of a Sizer, its
// own, which may replace some of the others, so that together they are never more than the size.
func (a *attached) figures() (size, used int64) {
	size = a.Size()
	if a.used != nil {
		used = a.used()
	}
	if s, ok := a.WritableStream.(fs.Sizer); ok {
		used += s.Used()
	}
	return size, min(used, size)
}

// Graft serves a file from s. The key names the graft for ever: the first time its file is made at path, which has
// slashes and begins below the root, in a folder that exists; an empty file that lies there is taken. Later the file is
// where clients have moved it, and path does not matter. used tells the bytes of storage beneath the stream, nil none;
// if the stream is an fs.Sizer, that is added.
//
// errs.Stale: a client has removed the file, perhaps before a restart. errs.Exists: something else lies at path, or the
// graft has its stream. The tree does not close s.
func (t *Tree) Graft(key, path string, s fs.WritableStream, used func() int64) error {
	const op = "graft"
	if key == "" || len(key) > maxKey || !utf8.ValidString(key) {
		return errs.Text(op, path, errs.Invalid, "a key is a text of 1 to 128 bytes")
	}
	if s == nil {
		return errs.Text(op, path, errs.Invalid, "there is no stream")
	}
	f, err := t.graftFile(context.Background(), key, path)
	if err != nil {
		return graftError(op, path, err)
	}
	if !f.stream.CompareAndSwap(nil, &attached{s, used}) {
		return errs.Text(op, path, errs.Exists, "the graft has its stream already")
	}
	if f.gone.Load() {
		f.stream.Store(nil)
		return errs.Text(op, path, errs.Stale, "the file was removed")
	}
	f.touch(true) // it may have been written since the file was last touched
	return nil
}

// graftError gives a kind to the statuses of the operations that a graft is made of.
func graftError(op, path string, err error) error {
	var s fs.Status
	if !errors.As(err, &s) {
		return errs.Wrap(op, path, err)
	}
	kind := errs.Invalid // the path makes no sense
	switch s {
	case fs.StatusNotFound:
		kind = errs.NotFound
	case fs.StatusExists:
		kind = errs.Exists
	case fs.StatusNoSpace:
		kind = errs.NoSpace
	case fs.StatusDelay:
		kind = errs.Busy
	}
	return errs.New(op, path, kind, err)
}

// graftFile returns the file of a graft, made if the key is new.
func (t *Tree) graftFile(ctx context.Context, key, at string) (*file, error) {
	end, err := t.change(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	for _, g := range t.side.record.Grafts {
		if g.Key != key {
			continue
		}
		f, ok := t.nodes[g.ID].(*file)
		if !ok {
			return nil, errs.Text("find the file", g.Path, errs.Stale, "it was removed")
		}
		if t.side.dirty {
			err = t.store()
		}
		return f, err
	}
	f, err := t.newGraft(ctx, key, at)
	if err != nil {
		return nil, err
	}
	t.side.record.Grafts = append(t.side.record.Grafts, graftRecord{key, f.id, at})
	return f, t.store()
}

// newGraft makes the file of a graft. The caller holds changing.
func (t *Tree) newGraft(ctx context.Context, key, at string) (*file, error) {
	d := t.root
	names := strings.Split(at, "/")
	for i, name := range names {
		if err := fs.CheckName(name); err != nil {
			return nil, err
		}
		e := d.entries[name]
		if i == len(names)-1 {
			if e != nil {
				return t.convert(ctx, e.node, key)
			}
			n, err := d.bear(ctx, name, birth{mark: mark{kind: fs.KindFile, perm: graftPerm, graft: true, key: key}})
			if err != nil {
				return nil, err
			}
			return n.(*file), nil
		}
		if e == nil {
			return nil, fs.StatusNotFound
		}
		sub, ok := e.node.(*dir)
		if !ok {
			return nil, fs.StatusNotDir
		}
		d = sub
	}
	return nil, fs.StatusInvalid
}

// convert makes an empty file a graft.
func (t *Tree) convert(ctx context.Context, n anyNode, key string) (*file, error) {
	f, ok := n.(*file)
	if !ok {
		return nil, fs.StatusExists
	}
	select { // not waited for: who holds it may be waiting for changing
	case f.setting <- struct{}{}:
		defer func() { <-f.setting }()
	default:
		return nil, fs.StatusDelay
	}
	of, err := t.openNode(ctx, &f.node, unix.O_RDWR, true)
	if err != nil {
		return nil, err
	}
	defer of.Close()
	st, err := t.statOf(of)
	if err != nil {
		return nil, err
	}
	m := f.mark
	again := m.graft && m.key == key // left by a call whose last step failed
	if m.graft && !again || st.Size > 0 {
		return nil, fs.StatusExists
	}
	m.graft, m.key = true, key
	if err := t.writeMark(of, m); err != nil {
		return nil, err
	}
	f.grafted.Store(true)
	f.attrs.Lock()
	f.mark = m
	f.attrs.Unlock()
	if err := t.sync(of); err != nil || !again {
		return f, err
	}
	in, err := t.openDir(ctx, f.names[0].in)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return f, t.sync(in)
}

// Grafts lists all grafts that were ever made in this folder.
func (t *Tree) Grafts() []GraftInfo {
	t.changing <- struct{}{}
	defer func() { <-t.changing }()
	var all []GraftInfo
	for _, g := range t.side.record.Grafts {
		info := GraftInfo{Key: g.Key, ID: g.ID, Path: g.Path, Gone: true}
		if n := t.nodes[g.ID]; n != nil {
			if names, ok := n.base().placeLocked(); ok {
				info.Path, info.Gone = path.Join(names...), false
			}
		}
		all = append(all, info)
	}
	return all
}

// followGrafts notes where grafts have been moved. It is for people only, so a failure is no more than logged. The
// caller holds changing.
func (t *Tree) followGrafts() {
	moved := false
	for i, g := range t.side.record.Grafts {
		n := t.nodes[g.ID]
		if n == nil {
			continue
		}
		if names, ok := n.base().placeLocked(); ok && path.Join(names...) != g.Path {
			t.side.record.Grafts[i].Path = path.Join(names...)
			moved = true
		}
	}
	if !moved {
		return
	}
	if err := t.store(); err != nil {
		t.log.Warn("where a disk's file was moved could not be noted", "path", t.path, "err", err)
	}
}

// graftWasAt tells whether the file of a graft was last seen at a path.
func (t *Tree) graftWasAt(at string) bool {
	for _, g := range t.side.record.Grafts {
		if g.Path == at {
			return true
		}
	}
	return false
}

// adopt records grafts whose making a crash cut short between the file and its record.
func (t *Tree) adopt() error {
	recorded := map[fs.ID]bool{}
	for _, g := range t.side.record.Grafts {
		recorded[g.ID] = true
	}
	found := false
	for id, n := range t.nodes {
		f, ok := n.(*file)
		if !ok || !f.grafted.Load() || recorded[id] {
			continue
		}
		names, _ := f.placeLocked()
		t.side.record.Grafts = append(t.side.record.Grafts, graftRecord{f.mark.key, id, path.Join(names...)})
		found = true
	}
	if !found {
		return nil
	}
	return t.store()
}
