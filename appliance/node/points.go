package node

import (
	"context"
	"fmt"
	"hash/fnv"
	iofs "io/fs"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/synthetic"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// PointsTree shows every restore point of a store as read-only files: /points/<vm>/<time>/disk<N>.raw and .qcow2.
// New points appear by themselves. IDs are derived from the points' own, so handles outlive a restart.
type PointsTree struct {
	r      *chunkstore.Reader
	now    func() time.Time
	mu     sync.Mutex // guards the rest
	listed time.Time
	root   *fs.StaticDir
	nodes  map[fs.ID]fs.Node
}

var _ fs.Tree = (*PointsTree)(nil)

// NewPointsTree returns the tree of a store's points.
func NewPointsTree(r *chunkstore.Reader) *PointsTree { return &PointsTree{r: r, now: time.Now} }

// refreshAfter is how old the list of points may be before a look into the tree makes it anew.
const refreshAfter = time.Second

// pointsRoot is the folder whose content is always looked up afresh.
type pointsRoot struct{ t *PointsTree }

// rootID and pointsID name the two fixed folders.
var (
	rootID   = fs.PathID("/")
	pointsID = fs.PathID("/points")
)

// Root implements fs.Tree.
func (t *PointsTree) Root() fs.Dir {
	return fs.NewStaticDir(rootID, time.Unix(0, 0), fs.Entry{Name: "points", Node: pointsRoot{t}})
}

// below is the tree whose root is the folder "points" itself.
type below struct{ *PointsTree }

// Root implements fs.Tree.
func (b below) Root() fs.Dir { return pointsRoot{b.PointsTree} }

// Node implements fs.Tree.
func (t *PointsTree) Node(ctx context.Context, id fs.ID) (fs.Node, error) {
	switch id {
	case rootID:
		return t.Root(), nil
	case pointsID:
		return pointsRoot{t}, nil
	}
	if err := t.refresh(ctx); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n, ok := t.nodes[id]; ok {
		return n, nil
	}
	return nil, fs.StatusStale
}

// Space implements fs.Tree: it is that of the disk the store lies on.
func (t *PointsTree) Space(context.Context) (fs.Space, error) { return diskSpace(t.r.Dir()) }

func diskSpace(dir string) (fs.Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fs.Space{}, err
	}
	return fs.Space{
		TotalBytes: int64(st.Blocks) * st.Bsize, FreeBytes: int64(st.Bavail) * st.Bsize,
		TotalFiles: int64(st.Files), FreeFiles: int64(st.Ffree),
	}, nil
}

func (d pointsRoot) ID() fs.ID { return pointsID }

func (d pointsRoot) dir(ctx context.Context) (*fs.StaticDir, error) {
	if err := d.t.refresh(ctx); err != nil {
		return nil, err
	}
	d.t.mu.Lock()
	defer d.t.mu.Unlock()
	return d.t.root, nil
}

func (d pointsRoot) Attr(ctx context.Context) (fs.Attr, error) {
	s, err := d.dir(ctx)
	if err != nil {
		return fs.Attr{}, err
	}
	return s.Attr(ctx)
}

func (d pointsRoot) Lookup(ctx context.Context, name string) (fs.Node, error) {
	s, err := d.dir(ctx)
	if err != nil {
		return nil, err
	}
	return s.Lookup(ctx, name)
}

func (d pointsRoot) List(ctx context.Context, after uint64, visit func(fs.Entry) bool) error {
	s, err := d.dir(ctx)
	if err != nil {
		return err
	}
	return s.List(ctx, after, visit)
}

// refresh makes the tree anew if it is old. Damaged records are left out: the others must be there.
func (t *PointsTree) refresh(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.root != nil && t.now().Sub(t.listed) < refreshAfter {
		return nil
	}
	points, bad := t.r.Points(ctx)
	if points == nil && len(bad) > 0 {
		return bad[0]
	}
	byVM := map[string][]*chunkstore.Point{}
	for _, p := range points {
		byVM[VMOf(p)] = append(byVM[VMOf(p)], p)
	}
	nodes := map[fs.ID]fs.Node{}
	var vms []fs.Entry
	for vm, points := range byVM {
		dir, err := vmDir(t.r, vm, points, nodes)
		if err != nil {
			return err
		}
		nodes[dir.ID()] = dir
		vms = append(vms, fs.Entry{Name: fileName(vm), Node: dir})
	}
	sort.Slice(vms, func(i, j int) bool { return vms[i].Name < vms[j].Name })
	t.root, t.nodes, t.listed = newDir(pointsID, newest(points), vms), nodes, t.now()
	return nil
}

func newest(points []*chunkstore.Point) time.Time {
	if len(points) == 0 {
		return time.Unix(0, 0)
	}
	return points[len(points)-1].Time
}

// newDir gives entries cookies that depend on their names only, so that a listing survives the tree being made anew.
func newDir(id fs.ID, when time.Time, entries []fs.Entry) *fs.StaticDir {
	d := fs.NewStaticDir(id, when, entries...)
	d.SetCookies(func(name string) uint64 {
		h := fnv.New64a()
		_, _ = h.Write([]byte(name))
		return h.Sum64()>>2 | 1
	})
	return d
}

// fileName makes a machine's name a file name. Names that need no change are not changed.
func fileName(vm string) string {
	s := strings.NewReplacer("%", "%25", "/", "%2F", "\x00", "%00").Replace(vm)
	if s == "." || s == ".." || s == "" {
		return "%" + s
	}
	return s
}

// vmDir makes the folder of one machine.
func vmDir(r *chunkstore.Reader, vm string, points []*chunkstore.Point, nodes map[fs.ID]fs.Node) (*fs.StaticDir, error) {
	var entries []fs.Entry
	taken := map[string]bool{}
	for _, p := range points {
		name := appliance.PathTime(p.Time)
		if taken[name] { // two points of one second
			name += "-" + string(p.ID)
		}
		taken[name] = true
		files, err := diskFiles(r, p, nodes)
		if err != nil {
			return nil, err
		}
		dir := newDir(fs.PathID("point/"+string(p.ID)), p.Time, files)
		nodes[dir.ID()] = dir
		entries = append(entries, fs.Entry{Name: name, Node: dir})
	}
	return newDir(fs.PathID("vm/"+vm), newest(points), entries), nil
}

func diskFiles(r *chunkstore.Reader, p *chunkstore.Point, nodes map[fs.ID]fs.Node) ([]fs.Entry, error) {
	var files []fs.Entry
	for _, d := range p.Disks {
		img, err := r.Image(p, d.Number)
		if err != nil {
			return nil, err
		}
		for _, f := range []synthetic.Format{synthetic.FormatRaw, synthetic.FormatQcow2} {
			stream, err := synthetic.New(img, f)
			if err != nil {
				return nil, err
			}
			file := fs.NewStreamFile(fs.StreamFileOptions{
				ID: diskFileID(p, d.Number, f), Perm: 0o440, When: p.Time, Used: img.DataBytes(), Stream: stream,
			})
			nodes[file.ID()] = file
			files = append(files, fs.Entry{Name: appliance.DiskFileName(d.Number, string(f)), Node: file})
		}
	}
	return files, nil
}

// diskFileID is the ID of a published disk, the same in every process.
func diskFileID(p *chunkstore.Point, number int, f synthetic.Format) fs.ID {
	return fs.PathID(fmt.Sprintf("point/%s/disk%d.%s", p.ID, number, f))
}

// StoreSpace returns what all files of a store take on its disk, and what is free there, in bytes.
func StoreSpace(dir string) (used, free int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e iofs.DirEntry, err error) error {
		if err != nil {
			return nil // it went away, or is not ours to see
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			used += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		return 0, 0, errs.Wrap("measure store", dir, err)
	}
	s, err := diskSpace(dir)
	return used, s.FreeBytes, errs.Wrap("measure store", dir, err)
}
