package folder

import (
	"context"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
)

// The modes of what is made without one.
const (
	filePerm    = 0o644
	dirPerm     = 0o755
	symlinkPerm = 0o777
	graftPerm   = 0o660
)

// birth is something to be made.
type birth struct {
	mark   mark
	set    fs.SetAttr
	target string // of a symbolic link
}

// alterNames is the frame of every operation on names: f runs with changing held, on a folder that is there.
func (d *dir) alterNames(ctx context.Context, name string, f func() error) error {
	if err := d.enter(ctx); err != nil {
		return err
	}
	if err := fs.CheckName(name); err != nil {
		return err
	}
	end, err := d.t.change(ctx)
	if err != nil {
		return err
	}
	defer end()
	if d.gone.Load() {
		return fs.StatusStale
	}
	return f()
}

// room refuses a new name when the name is taken or the tree is full. As all that reads names here it needs no more
// than changing, without which nobody writes them.
func (d *dir) room(name string) error {
	if d.entries[name] != nil || d.hidden[name] {
		return fs.StatusExists
	}
	if d.t.names >= maxNames {
		return fs.StatusNoSpace
	}
	return nil
}

// Create implements fs.Maker.
func (d *dir) Create(
	ctx context.Context, name string, mode fs.CreateMode, set fs.SetAttr, verifier [8]byte,
) (fs.File, error) {
	var f *file
	var cut *int64 // the size for a file that was there
	err := d.alterNames(ctx, name, func() (err error) {
		if e := d.entries[name]; e != nil {
			cut = set.Size
			f, err = existing(e.node, mode, verifier)
			return err
		}
		b := birth{mark: mark{kind: fs.KindFile, perm: filePerm}, set: set}
		if mode == fs.CreateExclusive {
			b.mark.exclusive, b.mark.verifier = true, verifier
		}
		n, err := d.bear(ctx, name, b)
		if err == nil {
			f = n.(*file)
		}
		return err
	})
	if err == nil && cut != nil && mode == fs.CreateUnchecked {
		_, err = f.SetAttr(ctx, fs.SetAttr{Size: cut}, nil)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// existing answers Create for a name that is there.
func existing(n anyNode, mode fs.CreateMode, verifier [8]byte) (*file, error) {
	f, isFile := n.(*file)
	switch mode {
	case fs.CreateUnchecked:
		if isFile {
			return f, nil
		}
		if _, isDir := n.(*dir); isDir {
			return nil, fs.StatusIsDir
		}
	case fs.CreateExclusive:
		if isFile && f.madeWith(verifier) {
			return f, nil
		}
	}
	return nil, fs.StatusExists
}

// madeWith tells whether a file is from an exclusive creation with the verifier.
func (f *file) madeWith(verifier [8]byte) bool {
	f.attrs.Lock()
	defer f.attrs.Unlock()
	return f.mark.exclusive && f.mark.verifier == verifier
}

// Mkdir implements fs.Maker.
func (d *dir) Mkdir(ctx context.Context, name string, set fs.SetAttr) (fs.Dir, error) {
	var sub *dir
	err := d.alterNames(ctx, name, func() error {
		if set.Size != nil && d.room(name) == nil {
			return fs.StatusInvalid
		}
		if d.depth()+1 > maxDepth {
			return fs.StatusNameTooLong
		}
		n, err := d.bear(ctx, name, birth{mark: mark{kind: fs.KindDir, perm: dirPerm}, set: set})
		if err == nil {
			sub = n.(*dir)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return sub, nil
}

// depth tells how many folders lie above.
func (d *dir) depth() int {
	n := 0
	for ; d.parent() != d; d = d.parent() {
		n++
	}
	return n
}

// Symlink implements fs.Maker.
func (d *dir) Symlink(ctx context.Context, name, target string, set fs.SetAttr) (fs.Symlink, error) {
	var l *symlink
	err := d.alterNames(ctx, name, func() error {
		switch {
		case d.room(name) != nil: // bear answers
		case set.Size != nil || target == "":
			return fs.StatusInvalid
		case len(target) > maxTarget:
			return fs.StatusNameTooLong
		}
		n, err := d.bear(ctx, name, birth{mark{kind: fs.KindSymlink, perm: symlinkPerm}, set, target})
		if err == nil {
			l = n.(*symlink)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// bear makes a node and gives it a free name. After a failed sync the node shows, as it lies on disk, though it may be
// lost in a crash and the caller is told that it failed. The caller holds changing.
func (d *dir) bear(ctx context.Context, name string, b birth) (anyNode, error) {
	if err := d.room(name); err != nil {
		return nil, err
	}
	if b.set.Size != nil && *b.set.Size < 0 {
		return nil, fs.StatusInvalid
	}
	t := d.t
	id, err := t.newID()
	if err != nil {
		return nil, err
	}
	b.mark.id, b.mark.tree, b.mark.uid, b.mark.gid = id, t.side.record.Tree, fs.OwnerID, fs.OwnerID
	b.mark.apply(b.set)
	in, err := t.openDir(ctx, d)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	stage := strconv.FormatUint(uint64(id), 10)
	f, err := t.prepare(stage, b)
	if err != nil {
		t.discard(stage, b.mark.kind)
		return nil, err
	}
	defer f.Close()
	st, err := t.statOf(f)
	if err == nil && b.mark.kind == fs.KindDir {
		err = t.rename(t.side.stage, stage, in, name)
	} else if err == nil {
		err = t.link(t.side.stage, stage, in, name)
	}
	if err != nil {
		t.discard(stage, b.mark.kind)
		return nil, err
	}
	err = t.sync(in)
	if b.mark.kind != fs.KindDir {
		t.discard(stage, b.mark.kind)
	}
	return d.show(name, b, &st), err
}

// show puts a node that was made into the tree.
func (d *dir) show(name string, b birth, st *unix.Stat_t) anyNode {
	t := d.t
	n := t.make(b.mark, st)
	t.mu.Lock()
	defer t.mu.Unlock()
	e := &entry{name: name, cookie: uint64(b.mark.id), in: d, node: n}
	n.base().names = []*entry{e}
	t.nodes[b.mark.id] = n
	d.add(e)
	d.touch(true)
	return n
}

// prepare makes the file of a node in the stage, complete and durable.
func (t *Tree) prepare(name string, b birth) (f *os.File, err error) {
	flags := unix.O_RDWR | unix.O_CREAT | unix.O_EXCL
	if b.mark.kind == fs.KindDir {
		flags = unix.O_RDONLY | unix.O_DIRECTORY
		err := t.alter("mkdir", name, func() error { return unix.Mkdirat(int(t.side.stage.Fd()), name, 0o700) })
		if err != nil {
			return nil, err
		}
	}
	if err := t.alter("open", name, func() (err error) {
		f, err = t.openAt(t.side.stage, name, flags)
		return err
	}); err != nil {
		return nil, err
	}
	steps := []func() error{func() error { return t.writeMark(f, b.mark) }}
	if b.target != "" {
		steps = append(steps, func() error {
			_, err := f.WriteAt([]byte(b.target), 0)
			return err
		})
	}
	if b.set.Size != nil {
		steps = append(steps, func() error {
			return t.alter("truncate", name, func() error { return unix.Ftruncate(int(f.Fd()), *b.set.Size) })
		})
	}
	if b.set.Atime != nil || b.set.Mtime != nil {
		steps = append(steps, func() error { return t.setTimes(f, b.set) })
	}
	steps = append(steps, func() error { return t.sync(f) })
	for _, step := range steps {
		if err := step(); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
	return f, nil
}

// discard takes a name out of the stage. What stays there is cleared away by the next opening.
func (t *Tree) discard(name string, kind fs.Kind) {
	flags := 0
	if kind == fs.KindDir {
		flags = unix.AT_REMOVEDIR
	}
	_ = t.unlink(t.side.stage, name, flags)
}
