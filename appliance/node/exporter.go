package node

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast/appliance/config"
	"github.com/holdfast-backup/holdfast/appliance/instant"
	"github.com/holdfast-backup/holdfast/appliance/instant/domain"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/folder"
	"github.com/holdfast-backup/holdfast/fs/overlay"
	"github.com/holdfast-backup/holdfast/fs/synthetic"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/nfsd"
)

// exporter serves sessions. Each has a folder: domain/ is the export's root, disk<N>/ the overlays.
type exporter struct {
	n     *Node
	dir   string
	allow []netip.Prefix
	mu    sync.Mutex // guards open; held while a session is opened or closed, which is rare
	open  map[string]*exported
}

var _ instant.Exporter = (*exporter)(nil)

// exported is a session that is served.
type exported struct {
	path  string
	tree  *folder.Tree
	disks map[int]*served
}

// served is a disk that is served, with a count of what was read of it.
type served struct {
	*overlay.Overlay
	read atomic.Int64
	disk chunkstore.Disk // of the point
	base fs.Stream       // as it was published
	gone bool            // its hosts have removed it
}

// ReadAt implements fs.Stream.
func (s *served) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := s.Overlay.ReadAt(ctx, p, off)
	s.read.Add(int64(n))
	return n, err
}

func newExporter(n *Node) (*exporter, error) {
	allow, err := config.ParseNetworks(n.o.Allow)
	if err != nil {
		return nil, errs.New("serve sessions", "", errs.Invalid, err)
	}
	e := &exporter{n: n, dir: filepath.Join(n.o.State, "sessions"), allow: allow, open: map[string]*exported{}}
	return e, errs.Wrap("serve sessions", e.dir, disk.OS{}.MkdirAll(e.dir))
}

func (e *exporter) folder(session string) string { return filepath.Join(e.dir, session) }

// Open implements instant.Exporter.
func (e *exporter) Open(ctx context.Context, r instant.Record) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open[r.ID] != nil {
		return nil
	}
	x, err := e.start(ctx, r)
	if err != nil {
		return errs.Wrap("serve session", r.ID, err)
	}
	if err := e.n.o.NFS.Add(nfsd.Export{Path: r.Path, ID: r.ExportID, Tree: x.tree, Allow: e.allow}); err != nil {
		return errs.Wrap("serve session", r.ID, errors.Join(err, x.close()))
	}
	e.open[r.ID] = x
	return nil
}

func (e *exporter) start(ctx context.Context, r instant.Record) (*exported, error) {
	root := filepath.Join(e.folder(r.ID), "domain")
	if err := (disk.OS{}).MkdirAll(root); err != nil {
		return nil, err
	}
	spec := domain.Spec{UUID: r.DomainID, Description: r.Domain, RemotePath: r.Export, Volumes: r.Volumes}
	if err := domain.Write(root, spec); err != nil {
		return nil, err
	}
	tree, err := folder.Open(root, folder.Options{
		Logger: e.n.log, Space: func(context.Context) (fs.Space, error) { return diskSpace(e.dir) },
	})
	if err != nil {
		return nil, err
	}
	x := &exported{path: r.Path, tree: tree, disks: map[int]*served{}}
	p, err := e.n.store.Point(ctx, chunkstore.PointID(r.Point))
	for i := 0; err == nil && i < len(r.Volumes); i++ {
		err = e.graft(ctx, x, r, spec, p, i)
	}
	if err != nil {
		return nil, errors.Join(err, x.close())
	}
	return x, nil
}

// graft puts a disk of the point in its place in the domain. One that the hosts have removed, after its migration, stays
// away.
func (e *exporter) graft(ctx context.Context, x *exported, r instant.Record, spec domain.Spec, p *chunkstore.Point, i int) error {
	number, v := r.Numbers[i], r.Volumes[i]
	img, err := e.n.store.Image(p, number)
	if err != nil {
		return err
	}
	img.ReadAhead()
	if err := img.Lease(ctx); err != nil { // now, not at the first read: the VM has the disk from now on
		return err
	}
	format := synthetic.FormatQcow2
	if v.Format == string(ovirt.FormatRaw) {
		format = synthetic.FormatRaw
	}
	base, err := synthetic.New(img, format)
	if err != nil {
		return err
	}
	o := overlay.Options{Identity: fmt.Sprintf("session %s point %s disk %d as %s", r.ID, r.Point, number, format)}
	dir := filepath.Join(e.folder(r.ID), fmt.Sprintf("disk%d", number))
	begin := overlay.Create
	if _, err := os.Stat(dir); err == nil {
		begin = overlay.Open
	} else if !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	w, err := begin(ctx, disk.OS{}, dir, base, o)
	if err != nil {
		return err
	}
	s := &served{Overlay: w, base: base}
	if s.disk, err = p.Disk(number); err != nil {
		return errors.Join(err, w.Close())
	}
	x.disks[number] = s
	err = x.tree.Graft(graftKey(number), spec.VolumePath(v), s, img.DataBytes)
	if errs.Is(err, errs.Stale) {
		s.gone = true
		e.n.log.Info("a disk of a session was removed by its hosts", "session", r.ID, "disk", number)
		return nil
	}
	return err
}

func graftKey(number int) string { return fmt.Sprint("disk", number) }

// Traffic implements instant.Exporter.
func (e *exporter) Traffic(session string, number int) (readBytes, dirtyBytes int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x := e.open[session]; x != nil && x.disks[number] != nil {
		return x.disks[number].read.Load(), x.disks[number].Used()
	}
	return 0, 0
}

// Close implements instant.Exporter.
func (e *exporter) Close(_ context.Context, session string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x := e.open[session]; x != nil {
		if err := e.n.o.NFS.Remove(x.path); err != nil && !errs.Is(err, errs.NotFound) {
			return errs.Wrap("stop serving session", session, err)
		}
		if err := x.close(); err != nil { // it is dropped: what could not be written does not matter
			e.n.log.Warn("closing a session's overlays", "session", session, "err", err)
		}
		delete(e.open, session)
	}
	return errs.Wrap("remove session's files", session, os.RemoveAll(e.folder(session)))
}

// shutdown stops serving and keeps everything.
func (e *exporter) shutdown() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []error
	for id, x := range e.open {
		_ = e.n.o.NFS.Remove(x.path) // the server is ending, or has
		all = append(all, x.close())
		delete(e.open, id)
	}
	return errors.Join(all...)
}

func (x *exported) close() error {
	all := []error{x.tree.Close()}
	for _, s := range x.disks {
		all = append(all, s.Close())
	}
	return errors.Join(all...)
}
