package folder

import (
	"fmt"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// scan reads the folder into memory and gives IDs to what has none.
func (t *Tree) scan() error {
	st, err := t.statOf(t.disk)
	if err != nil {
		return err
	}
	n, err := t.known(t.disk, &st, nil)
	if err != nil {
		return err
	}
	t.root = n.(*dir)
	if err := t.scanDir(t.disk, t.root, nil); err != nil {
		return err
	}
	opened := t.now() // later than all that was seen
	for _, n := range t.nodes {
		n.base().ctime = opened
		if err := n.base().separate(); err != nil {
			return err
		}
	}
	return nil
}

// separate gives numbers of their own to the names of a file that has several in one folder.
func (n *node) separate() error {
	in := map[*dir]int{}
	for _, e := range n.names {
		in[e.in]++
	}
	for _, e := range n.names {
		if in[e.in] < 2 {
			continue
		}
		id, err := n.t.newID()
		if err != nil {
			return err
		}
		e.in.cut(e)
		e.cookie = uint64(id)
		e.in.add(e)
	}
	return nil
}

// scanDir reads what lies in a folder. names is the way there.
func (t *Tree) scanDir(f *os.File, d *dir, names []string) error {
	if len(names) > maxDepth {
		return errs.Text("read folder", path.Join(names...), errs.Unsupported,
			fmt.Sprintf("more than %d folders deep", maxDepth))
	}
	in, err := t.openAt(f, ".", unix.O_RDONLY|unix.O_DIRECTORY) // with a reading position of its own
	if err != nil {
		return err
	}
	defer in.Close()
	all, err := in.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(all)
	for _, name := range all {
		if err := t.scanName(in, d, append(names, name)); err != nil {
			return errs.Wrap("read", path.Join(append(names, name)...), err)
		}
	}
	return nil
}

// scanName takes one name into the tree, or hides it.
func (t *Tree) scanName(in *os.File, d *dir, names []string) error {
	name := names[len(names)-1]
	var st unix.Stat_t
	err := t.use("stat", name, func() error { return unix.Fstatat(int(in.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err != nil {
		return err
	}
	format := st.Mode & unix.S_IFMT
	if format != unix.S_IFREG && (format != unix.S_IFDIR || st.Dev != t.side.dev) {
		t.hide(d, names, "neither a file nor a folder of this file system")
		return nil
	}
	f, err := t.openAt(in, name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := t.known(f, &st, names)
	if err != nil {
		return err
	}
	if n == nil {
		t.hide(d, names, "not made by this tree, in the place of a disk's file")
		return nil
	}
	// Change times grow, even if the clock was set back.
	t.last.Store(max(t.last.Load(), time.Unix(st.Ctim.Unix()).UnixNano()))
	e := &entry{name: name, cookie: uint64(n.ID()), in: d, node: n}
	n.base().names = append(n.base().names, e)
	d.add(e)
	if sub, ok := n.(*dir); ok {
		return t.scanDir(f, sub, names)
	}
	return nil
}

// hide keeps a name out of the tree, and from being taken in it.
func (t *Tree) hide(d *dir, names []string, why string) {
	if d.hidden == nil {
		d.hidden = map[string]bool{}
	}
	d.hidden[names[len(names)-1]] = true
	t.log.Warn("a name in the folder is not served", "path", path.Join(append([]string{t.path}, names...)...), "why", why)
}

// known returns the node of an open file, which is a new one unless this is a further name of a file. It returns nil
// for a file that must not be shown. names leads to it.
func (t *Tree) known(f *os.File, st *unix.Stat_t, names []string) (anyNode, error) {
	m, marked, err := readMark(f)
	if err != nil {
		return nil, err
	}
	foreign := marked && m.tree != t.side.record.Tree
	if foreign && m.graft || (foreign || !marked) && t.graftWasAt(path.Join(names...)) {
		return nil, nil
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if marked && !foreign {
		if (m.kind == fs.KindDir) != isDir {
			return nil, errs.Text("read mark", f.Name(), errs.Corrupt, "the mark is of another kind of node")
		}
		if old := t.nodes[m.id]; old != nil {
			if old.base().ino != st.Ino || isDir {
				return nil, errs.Text("read mark", f.Name(), errs.Corrupt, "a copy of it lies in the same folder").
					WithNext("Remove the one of the two that was made by hand.")
			}
			return old, nil
		}
		if uint64(m.id) >= t.next.Load() {
			return nil, errs.Text("read mark", f.Name(), errs.Corrupt,
				"the ID was not given out yet: the folder's record is older than the folder")
		}
	} else if m, err = t.mark(f, st, len(names) == 0); err != nil {
		return nil, err
	}
	n := t.make(m, st)
	t.nodes[m.id] = n
	return n, nil
}

// mark gives an ID to a file that came with the folder.
func (t *Tree) mark(f *os.File, st *unix.Stat_t, root bool) (mark, error) {
	m := mark{
		kind: fs.KindFile, tree: t.side.record.Tree, id: rootID,
		perm: uint32(st.Mode) & 0o7777, uid: fs.OwnerID, gid: fs.OwnerID,
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		m.kind = fs.KindDir
	}
	if !root {
		id, err := t.newID()
		if err != nil {
			return m, err
		}
		m.id = id
	}
	if err := t.writeMark(f, m); err != nil {
		return m, err
	}
	return m, t.sync(f)
}

// make returns the node for a file on disk.
func (t *Tree) make(m mark, st *unix.Stat_t) anyNode {
	switch m.kind {
	case fs.KindDir:
		d := &dir{entries: map[string]*entry{}}
		d.init(t, m, st)
		return d
	case fs.KindSymlink:
		l := &symlink{size: st.Size}
		l.init(t, m, st)
		return l
	}
	f := &file{}
	f.init(t, m, st)
	f.grafted.Store(m.graft)
	f.length.Store(st.Size)
	return f
}
