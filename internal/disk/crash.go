package disk

import (
	"cmp"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Crash is an in-memory Disk that keeps apart what has been synced and what has not, and can be cloned as a power cut
// at this moment might have left it. A caller that relies on more than the package promises loses data on some clone.
//
// Of a file it keeps the synced content and the changes since (writes, truncations, punches); of a folder the synced
// names and the changes of names since, removals too: a model that can only lose additions does not see a successor
// lost together with a predecessor that was removed too early.
type Crash struct {
	mu     sync.Mutex // guards everything reachable from here; never held while hook runs
	root   *inode
	lastID uint64
	seq    uint64       // numbers every change, so that a seed decides each of them independently
	names  []nameChange // unsynced changes of names in the whole disk, oldest first
	hook   func()
}

var _ Disk = (*Crash)(nil)

// inode is a file or a folder. live is what callers see; saved is what no crash takes away.
type inode struct {
	id      uint64
	entries map[string]*inode // folders only: the names as callers see them
	kept    map[string]*inode // folders only: the synced names

	live, saved content
	unsynced    []change
}

func (n *inode) isDir() bool { return n.entries != nil }

// nameChange is one unsynced change of names: it takes node away from (fromDir, from), puts it at (toDir, to), or both.
type nameChange struct {
	seq        uint64
	node       *inode
	fromDir    *inode // nil for a creation
	from       string
	toDir      *inode // nil for a removal
	to         string
	mustBeFree bool // a creation: to must be free for the change to apply
}

// NewCrash returns an empty disk with one folder, "/". Relative names are taken from there.
func NewCrash() *Crash {
	c := &Crash{}
	c.root = c.newDir()
	return c
}

func (c *Crash) newDir() *inode {
	c.lastID++
	return &inode{id: c.lastID, entries: map[string]*inode{}, kept: map[string]*inode{}}
}

func (c *Crash) newFile() *inode {
	c.lastID++
	return &inode{
		id: c.lastID, live: content{pages: map[int64]*[pageSize]byte{}},
		saved: content{pages: map[int64]*[pageSize]byte{}},
	}
}

// OnSync has f called before and after every Sync and SyncDir (those within MkdirAll too), so that a test can Clone the
// disk at every point where something becomes durable. f runs without any lock and may be called concurrently.
func (c *Crash) OnSync(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hook = f
}

// aroundSync runs do under the lock, with the hook before and after.
func (c *Crash) aroundSync(do func() error) error {
	c.mu.Lock()
	hook := c.hook
	c.mu.Unlock()
	if hook != nil {
		hook()
	}
	c.mu.Lock()
	err := do()
	c.mu.Unlock()
	if hook != nil {
		hook()
	}
	return err
}

// split cleans a name into the elements below the root.
func split(name string) []string {
	clean := path.Clean("/" + name)
	if clean == "/" {
		return nil
	}
	return strings.Split(clean[1:], "/")
}

func pathError(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// find walks to a node.
func (c *Crash) find(op, name string) (*inode, error) {
	n := c.root
	for _, e := range split(name) {
		if !n.isDir() {
			return nil, pathError(op, name, syscall.ENOTDIR)
		}
		if n = n.entries[e]; n == nil {
			return nil, pathError(op, name, syscall.ENOENT)
		}
	}
	return n, nil
}

// findParent walks to the folder that holds or would hold name.
func (c *Crash) findParent(op, name string) (*inode, string, error) {
	elems := split(name)
	if len(elems) == 0 {
		return nil, "", pathError(op, name, syscall.EINVAL)
	}
	n, err := c.find(op, path.Dir(path.Clean("/"+name)))
	if err == nil && !n.isDir() {
		err = pathError(op, name, syscall.ENOTDIR)
	}
	return n, elems[len(elems)-1], err
}

// Open implements Disk.
func (c *Crash) Open(name string) (File, error) { return c.open(name, false) }

// OpenRW implements Disk.
func (c *Crash) OpenRW(name string) (File, error) { return c.open(name, true) }

func (c *Crash) open(name string, writable bool) (File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.find("open", name)
	if err != nil {
		return nil, err
	}
	if n.isDir() { // the real disk opens a folder for reading and fails later; nobody needs that
		return nil, pathError("open", name, syscall.EISDIR)
	}
	return &crashFile{disk: c, node: n, name: name, writable: writable}, nil
}

// Create implements Disk.
func (c *Crash) Create(name string) (File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	dir, base, err := c.findParent("open", name)
	if err != nil {
		return nil, err
	}
	if dir.entries[base] != nil {
		return nil, pathError("open", name, syscall.EEXIST)
	}
	n := c.newFile()
	c.change(nameChange{node: n, toDir: dir, to: base, mustBeFree: true})
	return &crashFile{disk: c, node: n, name: name, writable: true}, nil
}

// Rename implements Disk.
func (c *Crash) Rename(oldName, newName string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	fromDir, from, err := c.findParent("rename", oldName)
	if err != nil {
		return err
	}
	toDir, to, err := c.findParent("rename", newName)
	if err != nil {
		return err
	}
	n, old := fromDir.entries[from], toDir.entries[to]
	switch {
	case n == nil:
		return pathError("rename", oldName, syscall.ENOENT)
	case n == old:
		return nil
	case n.isDir() && within(split(newName), split(oldName)):
		return pathError("rename", newName, syscall.EINVAL)
	case old == nil:
	case old.isDir() && !n.isDir():
		return pathError("rename", newName, syscall.EEXIST)
	case !old.isDir() && n.isDir():
		return pathError("rename", newName, syscall.ENOTDIR)
	case old.isDir() && len(old.entries) > 0:
		return pathError("rename", newName, syscall.ENOTEMPTY)
	}
	c.change(nameChange{node: n, fromDir: fromDir, from: from, toDir: toDir, to: to})
	return nil
}

// within tells whether the path p lies in folder dir.
func within(p, dir []string) bool { return len(p) > len(dir) && slices.Equal(p[:len(dir)], dir) }

// Remove implements Disk.
func (c *Crash) Remove(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	dir, base, err := c.findParent("remove", name)
	if err != nil {
		return err
	}
	n := dir.entries[base]
	if n == nil {
		return pathError("remove", name, syscall.ENOENT)
	}
	if n.isDir() && len(n.entries) > 0 {
		return pathError("remove", name, syscall.ENOTEMPTY)
	}
	c.change(nameChange{node: n, fromDir: dir, from: base})
	return nil
}

// MkdirAll implements Disk.
func (c *Crash) MkdirAll(name string) error {
	at := "/"
	for _, e := range split(name) {
		parent := at
		at = path.Join(at, e)
		made, err := c.mkdir(at)
		if err == nil && made {
			err = c.SyncDir(parent)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Crash) mkdir(name string) (made bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	dir, base, err := c.findParent("mkdir", name)
	if err != nil {
		return false, err
	}
	if n := dir.entries[base]; n != nil {
		if !n.isDir() {
			return false, pathError("mkdir", name, syscall.ENOTDIR)
		}
		return false, nil
	}
	c.change(nameChange{node: c.newDir(), toDir: dir, to: base, mustBeFree: true})
	return true, nil
}

// ReadDir implements Disk.
func (c *Crash) ReadDir(name string) ([]fs.DirEntry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.find("open", name)
	if err != nil {
		return nil, err
	}
	if !n.isDir() {
		return nil, pathError("readdirent", name, syscall.ENOTDIR)
	}
	var list []fs.DirEntry
	for base, e := range n.entries {
		list = append(list, fs.FileInfoToDirEntry(crashInfo{base, e.isDir(), e.live.size, e.live.occupied()}))
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return list, nil
}

// crashInfo describes a node; a Crash disk keeps no times.
type crashInfo struct {
	name string
	dir  bool
	size int64
	used int64
}

func (i crashInfo) Name() string       { return i.name }
func (i crashInfo) Size() int64        { return i.size }
func (i crashInfo) ModTime() time.Time { return time.Time{} }
func (i crashInfo) IsDir() bool        { return i.dir }
func (i crashInfo) Sys() any           { return occupied(i.used) }
func (i crashInfo) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}

// crashFile is one opening of a file; the file outlives its name while it is open.
type crashFile struct {
	disk     *Crash
	node     *inode
	name     string
	writable bool
	closed   bool // guarded by disk.mu
}

// check is called under the lock, first thing in every method.
func (f *crashFile) check(op string, write bool, off int64) error {
	switch {
	case f.closed:
		return pathError(op, f.name, fs.ErrClosed)
	case write && !f.writable:
		return pathError(op, f.name, syscall.EBADF)
	case off < 0:
		return pathError(op, f.name, syscall.EINVAL)
	}
	return nil
}

// ReadAt implements io.ReaderAt.
func (f *crashFile) ReadAt(p []byte, off int64) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if err := f.check("read", false, off); err != nil {
		return 0, err
	}
	n := f.node.live.read(p, off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt.
func (f *crashFile) WriteAt(p []byte, off int64) (int, error) {
	err := f.apply("write", off, change{kind: changeWrite, off: off, data: slices.Clone(p)})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Truncate implements File.
func (f *crashFile) Truncate(size int64) error {
	return f.apply("truncate", size, change{kind: changeTruncate, off: size})
}

// Punch implements Puncher.
func (f *crashFile) Punch(off, n int64) error {
	if n <= 0 {
		off = -1
	}
	return f.apply("fallocate", off, change{kind: changePunch, off: off, n: n})
}

func (f *crashFile) apply(op string, off int64, ch change) error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if err := f.check(op, true, off); err != nil {
		return err
	}
	f.disk.seq++
	ch.seq = f.disk.seq
	f.node.unsynced = append(f.node.unsynced, ch)
	ch.apply(&f.node.live)
	return nil
}

// Sync implements File.
func (f *crashFile) Sync() error {
	return f.disk.aroundSync(func() error {
		if err := f.check("sync", false, 0); err != nil {
			return err
		}
		for _, ch := range f.node.unsynced {
			ch.apply(&f.node.saved)
		}
		f.node.unsynced = nil
		return nil
	})
}

// Size implements Sizer.
func (f *crashFile) Size() (int64, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if err := f.check("stat", false, 0); err != nil {
		return 0, err
	}
	return f.node.live.size, nil
}

// Occupied implements Occupier. A file of a Crash disk has one name, or none any more.
func (f *crashFile) Occupied() (int64, int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if err := f.check("stat", false, 0); err != nil {
		return 0, 0, err
	}
	return f.node.live.occupied(), 1, nil
}

// Close implements io.Closer. It syncs nothing.
func (f *crashFile) Close() error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if err := f.check("close", false, 0); err != nil {
		return err
	}
	f.closed = true
	return nil
}
