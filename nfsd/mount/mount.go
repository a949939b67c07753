// Package mount is the MOUNT program, version 3 (RFC 1813, appendix I): it gives clients the handle of an export's
// root, or of a folder below it.
//
// Terms are those of nfsd/handle. What holds:
//
//  1. A mount is refused in the protocol's own words and never harms anything else.
//  2. A client sees only exports that allow it, in EXPORT and in DUMP.
//  3. The list of mounts (DUMP) is a courtesy to people: it is bounded, lost at a restart, and nothing depends on it.
//
// Concurrency: one mutex guards the list of mounts.
// Tests: go-nfs-client and raw calls in nfsd.
package mount

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"sync"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/nfsd/handle"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// Number and Version name the program.
const (
	Number  = 100005
	Version = 3
)

// maxMounts bounds the list of mounts; the oldest is forgotten.
const maxMounts = 1024

// Events are called on what happens; any may be nil.
type Events struct {
	Mounted   func(peer netip.Addr, path string)
	Unmounted func(peer netip.Addr, path string)
	Refused   func(peer netip.Addr, path string, status nfs.MountStatus)
}

type service struct {
	table  *handle.Table
	events Events

	mu     sync.Mutex // guards mounts
	mounts []mounted  // oldest first
}

type mounted struct {
	peer netip.Addr
	path string
}

// New returns the program for the exports of a table.
func New(t *handle.Table, ev Events) rpc.Program {
	s := &service{table: t, events: ev}
	procs := make([]rpc.Procedure, nfs.MountProcExport+1)
	for p, serve := range map[nfs.MountProcedure]func(context.Context, *rpc.Call, *rpc.Reply) error{
		nfs.MountProcNull:    func(context.Context, *rpc.Call, *rpc.Reply) error { return nil },
		nfs.MountProcMount:   s.mount,
		nfs.MountProcDump:    s.dump,
		nfs.MountProcUmnt:    s.unmount,
		nfs.MountProcUmntAll: s.unmountAll,
		nfs.MountProcExport:  s.export,
	} {
		procs[p] = rpc.Procedure{Name: p.String(), Serve: serve}
	}
	return rpc.Program{Number: Number, Name: "mount", Versions: map[uint32][]rpc.Procedure{Version: procs}}
}

func (s *service) mount(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	path := string(cur.Opaque(nfs.MntPathLen))
	if err := cur.Err(); err != nil {
		return err
	}
	e, id, status, err := s.resolve(ctx, c.Peer, path)
	r.Out = binary.BigEndian.AppendUint32(r.Out, uint32(status))
	if status != nfs.MountStatusOk {
		r.Status, r.Err = uint32(status), err
		if s.events.Refused != nil {
			s.events.Refused(c.Peer, path, status)
		}
		return nil
	}
	r.Out = binary.BigEndian.AppendUint32(r.Out, handle.Len)
	r.Out = s.table.Append(r.Out, e, id)
	r.Out = binary.BigEndian.AppendUint32(r.Out, 1) // flavors
	r.Out = binary.BigEndian.AppendUint32(r.Out, uint32(nfs.AuthFlavorUnix))
	s.note(mounted{c.Peer, path})
	if s.events.Mounted != nil {
		s.events.Mounted(c.Peer, path)
	}
	return nil
}

// resolve finds the folder that a path names.
func (s *service) resolve(ctx context.Context, peer netip.Addr, path string) (*handle.Entry, fs.ID, nfs.MountStatus, error) {
	e, rest, ok := s.table.Match(path)
	if !ok {
		return nil, 0, nfs.MountStatusErrNoEnt, nil
	}
	if !e.Allows(peer) {
		return nil, 0, nfs.MountStatusErrAcces, nil
	}
	dir := e.Tree.Root()
	for rest != "" {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if err := fs.CheckName(name); err != nil {
			return nil, 0, statusOf(err), err
		}
		n, err := dir.Lookup(ctx, name)
		if err != nil {
			return nil, 0, statusOf(err), err
		}
		if dir, ok = n.(fs.Dir); !ok {
			return nil, 0, nfs.MountStatusErrNotDir, nil
		}
	}
	return e, dir.ID(), nfs.MountStatusOk, nil
}

// statuses says what a client is told for each fs.Status. What has no word of its own in mountstat3 is an I/O error.
var statuses = [len(fs.Statuses)]nfs.MountStatus{
	fs.StatusOK:           nfs.MountStatusOk,
	fs.StatusPermission:   nfs.MountStatusErrPerm,
	fs.StatusNotFound:     nfs.MountStatusErrNoEnt,
	fs.StatusIO:           nfs.MountStatusErrIO,
	fs.StatusAccess:       nfs.MountStatusErrAcces,
	fs.StatusExists:       nfs.MountStatusErrIO,
	fs.StatusCrossDevice:  nfs.MountStatusErrIO,
	fs.StatusNotDir:       nfs.MountStatusErrNotDir,
	fs.StatusIsDir:        nfs.MountStatusErrIO,
	fs.StatusInvalid:      nfs.MountStatusErrInval,
	fs.StatusTooLarge:     nfs.MountStatusErrIO,
	fs.StatusNoSpace:      nfs.MountStatusErrIO,
	fs.StatusReadOnly:     nfs.MountStatusErrAcces,
	fs.StatusTooManyLinks: nfs.MountStatusErrIO,
	fs.StatusNameTooLong:  nfs.MountStatusErrNameTooLong,
	fs.StatusNotEmpty:     nfs.MountStatusErrIO,
	fs.StatusStale:        nfs.MountStatusErrNoEnt,
	fs.StatusBadHandle:    nfs.MountStatusErrNoEnt,
	fs.StatusNotSync:      nfs.MountStatusErrIO,
	fs.StatusBadCookie:    nfs.MountStatusErrIO,
	fs.StatusNotSupported: nfs.MountStatusErrNotSupp,
	fs.StatusServerFault:  nfs.MountStatusErrServerFault,
	fs.StatusDelay:        nfs.MountStatusErrIO,
}

func statusOf(err error) nfs.MountStatus { return statuses[fs.StatusOf(err)] }

func (s *service) note(m mounted) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.mounts, m); i >= 0 {
		s.mounts = slices.Delete(s.mounts, i, i+1)
	}
	if len(s.mounts) >= maxMounts {
		s.mounts = slices.Delete(s.mounts, 0, 1)
	}
	s.mounts = append(s.mounts, m)
}

func (s *service) drop(match func(mounted) bool) {
	s.mu.Lock()
	var gone []mounted
	s.mounts = slices.DeleteFunc(s.mounts, func(m mounted) bool {
		if match(m) {
			gone = append(gone, m)
			return true
		}
		return false
	})
	s.mu.Unlock()
	if s.events.Unmounted != nil {
		for _, m := range gone {
			s.events.Unmounted(m.peer, m.path)
		}
	}
}

func (s *service) unmount(_ context.Context, c *rpc.Call, _ *rpc.Reply) error {
	cur := rpc.NewCursor(c.Args)
	path := string(cur.Opaque(nfs.MntPathLen))
	if err := cur.Err(); err != nil {
		return err
	}
	s.drop(func(m mounted) bool { return m == mounted{c.Peer, path} })
	return nil
}

func (s *service) unmountAll(_ context.Context, c *rpc.Call, _ *rpc.Reply) error {
	s.drop(func(m mounted) bool { return m.peer == c.Peer })
	return nil
}

// maxList bounds the replies of DUMP and EXPORT in bytes. What does not fit is left out.
const maxList = 64 << 10

// listed tells whether another entry of n bytes fits.
func listed(r *rpc.Reply, n int) bool { return len(r.Results())+n <= maxList }

func (s *service) dump(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	if err := c.Reserve(ctx, false, maxList); err != nil {
		return err
	}
	s.mu.Lock()
	mounts := slices.Clone(s.mounts)
	s.mu.Unlock()
	for _, m := range mounts {
		if e, _, ok := s.table.Match(m.path); !ok || !e.Allows(c.Peer) {
			continue
		}
		if name := m.peer.String(); listed(r, 20+len(name)+len(m.path)) {
			r.Out = binary.BigEndian.AppendUint32(r.Out, 1)
			r.Out = rpc.AppendString(r.Out, name)
			r.Out = rpc.AppendString(r.Out, m.path)
		}
	}
	r.Out = binary.BigEndian.AppendUint32(r.Out, 0)
	return nil
}

func (s *service) export(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	if err := c.Reserve(ctx, false, maxList); err != nil {
		return err
	}
	for _, e := range s.table.List() {
		if !e.Allows(c.Peer) || !listed(r, 20+len(e.Path)+56*len(e.Allow)) {
			continue
		}
		r.Out = binary.BigEndian.AppendUint32(r.Out, 1)
		r.Out = rpc.AppendString(r.Out, e.Path)
		for _, p := range e.Allow {
			r.Out = binary.BigEndian.AppendUint32(r.Out, 1)
			r.Out = rpc.AppendString(r.Out, p.String())
		}
		r.Out = binary.BigEndian.AppendUint32(r.Out, 0)
	}
	r.Out = binary.BigEndian.AppendUint32(r.Out, 0)
	return nil
}
