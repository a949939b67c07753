// Package nfs3 is the NFS program, version 3 (RFC 1813): 22 procedures over the trees of a handle.Table.
//
// Terms are those of fs and nfsd/handle. A bulk file is a disk image: its reads and writes are guest I/O, have a
// budget of their own, and may be put off (JUKEBOX) while the store is away. All other files are what host monitors
// read: they never wait for bulk files.
//
// What holds:
//
//  1. FILE_SYNC, DATA_SYNC and COMMIT are answered only after the tree said that the data is durable. An unstable
//     WRITE carries the verifier from before the write, COMMIT the one from after it, and a failure in between changes
//     it: no client can take lost data for committed.
//  2. Any credential is accepted; who may do something is decided by address and export (handle.Table). ACCESS grants
//     what the nodes can do. vdsm, qemu and sanlock come with several identities and all need the same files.
//  3. Attributes before an operation (wcc, section 2.6) are never sent: they would have to be atomic with it.
//  4. READ says eof if and only if its end reaches the size; 0 bytes without eof are never sent.
//  5. Cookies 1 and 2 are "." and ".."; a tree's cookie c is sent as c + 2. The cookie verifier is always 0.
//  6. A reply is never longer than the client's count, maxcount or rtmax asked for.
//  7. A folder's listing is taken before its nodes are asked for attributes: no tree is called from within List.
//  8. A call that hangs in a tree is answered without it: JUKEBOX, or IO if the node said that it is no disk image.
//
// The replies of GETATTR, LOOKUP, ACCESS, READ, WRITE and COMMIT are encoded by hand without allocation; a test holds
// them equal to go-nfs's encoder, whose words (NFSStatus, NFSProcedure, FileType, ...) are used throughout.
//
// Concurrency: the program has no state but the table. Tests: here (tables, arguments, fuzz) and in nfsd (clients).
package nfs3

import (
	"context"
	"encoding/binary"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/nfsd/handle"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// Number and Version name the program.
const (
	Number  = 100003
	Version = 3
)

// MaxTransfer is rtmax and wtmax: Linux never goes beyond 1 MiB.
const MaxTransfer = 1 << 20

// Bulker is implemented by files (and folders) that know whether they are disk images. A file that does not say is
// not bulk, but it may be put off.
type Bulker interface{ Bulk() bool }

// Parented is implemented by folders that know the folder they lie in. Others answer LOOKUP of ".." NOTSUPP, except
// for an export's root, which is its own parent.
type Parented interface {
	Parent(ctx context.Context) (fs.Dir, error)
}

type service struct{ table *handle.Table }

// New returns the program for the exports of a table.
func New(t *handle.Table) rpc.Program {
	s := &service{table: t}
	procs := make([]rpc.Procedure, nfs.NFSProcedureCommit+1)
	for _, p := range []struct {
		number nfs.NFSProcedure
		once   bool
		serve  func(context.Context, *rpc.Call, *rpc.Reply) error
	}{
		{nfs.NFSProcedureNull, false, func(context.Context, *rpc.Call, *rpc.Reply) error { return nil }},
		{nfs.NFSProcedureGetAttr, false, s.getattr},
		// An unguarded SETATTR too: a late repetition of a truncation would take away what was written since.
		{nfs.NFSProcedureSetAttr, true, s.setattr},
		{nfs.NFSProcedureLookup, false, s.lookup},
		{nfs.NFSProcedureAccess, false, s.access},
		{nfs.NFSProcedureReadlink, false, s.readlink},
		{nfs.NFSProcedureRead, false, s.read},
		{nfs.NFSProcedureWrite, false, s.write},
		{nfs.NFSProcedureCreate, true, s.create},
		{nfs.NFSProcedureMkDir, true, s.mkdir},
		{nfs.NFSProcedureSymlink, true, s.symlink},
		{nfs.NFSProcedureMkNod, true, s.mknod},
		{nfs.NFSProcedureRemove, true, s.remove},
		{nfs.NFSProcedureRmDir, true, s.rmdir},
		{nfs.NFSProcedureRename, true, s.rename},
		{nfs.NFSProcedureLink, true, s.link},
		{nfs.NFSProcedureReadDir, false, s.readdir},
		{nfs.NFSProcedureReadDirPlus, false, s.readdirplus},
		{nfs.NFSProcedureFSStat, false, s.fsstat},
		{nfs.NFSProcedureFSInfo, false, s.fsinfo},
		{nfs.NFSProcedurePathConf, false, s.pathconf},
		{nfs.NFSProcedureCommit, false, s.commit},
	} {
		procs[p.number] = rpc.Procedure{Name: p.number.String(), Once: p.once, Serve: p.serve, Late: lateOf(p.number)}
	}
	procs[nfs.NFSProcedureNull].Late = nil // it has no status, and waits for nothing
	return rpc.Program{Number: Number, Name: "nfs", Versions: map[uint32][]rpc.Procedure{Version: procs}}
}

// target is a handle that was understood. A zero target has no attributes.
type target struct {
	entry *handle.Entry
	node  fs.Node
}

// resolve finds the node of a handle.
func (s *service) resolve(ctx context.Context, c *rpc.Call, h []byte) (target, error) {
	e, id, status := s.table.Parse(h, c.Peer)
	if status != fs.StatusOK {
		return target{}, status
	}
	n, err := e.Tree.Node(ctx, id)
	if err != nil {
		return target{}, err
	}
	t := target{e, n}
	if t.small() {
		c.MarkSmall()
	}
	return t, nil
}

// resolveDir finds the folder of a handle.
func (s *service) resolveDir(ctx context.Context, c *rpc.Call, h []byte) (target, fs.Dir, error) {
	t, err := s.resolve(ctx, c, h)
	if err != nil {
		return t, nil, err
	}
	d, ok := t.node.(fs.Dir)
	if !ok {
		return t, nil, fs.StatusNotDir
	}
	return t, d, nil
}

// resolveFile finds the regular file of a handle.
func (s *service) resolveFile(ctx context.Context, c *rpc.Call, h []byte) (target, fs.File, error) {
	t, err := s.resolve(ctx, c, h)
	if err != nil {
		return t, nil, err
	}
	switch n := t.node.(type) {
	case fs.File:
		return t, n, nil
	case fs.Dir:
		return t, nil, fs.StatusIsDir
	}
	return t, nil, fs.StatusInvalid
}

// writable returns StatusReadOnly for an export that must not change.
func (t target) writable() error {
	if t.entry.ReadOnly {
		return fs.StatusReadOnly
	}
	return nil
}

// bulk tells whether the node is a disk image.
func (t target) bulk() bool {
	b, ok := t.node.(Bulker)
	return ok && b.Bulk()
}

// small tells whether the node said that it is none.
func (t target) small() bool {
	b, ok := t.node.(Bulker)
	return ok && !b.Bulk()
}

// result appends the status of an operation on t.
func result(r *rpc.Reply, t target, err error) {
	status := nfs.NFSStatusOk
	if err != nil {
		s := fs.StatusOf(err)
		if s == fs.StatusDelay && t.small() {
			// A monitor gives up after 10 s whether it waits or fails; waiting without end would hide the fault.
			s = fs.StatusIO
		}
		status = statuses[s]
		r.Status, r.Err = uint32(status), err
	}
	r.Out = binary.BigEndian.AppendUint32(r.Out, uint32(status))
}

// statuses translates fs.Status to nfsstat3.
var statuses = [len(fs.Statuses)]nfs.NFSStatus{
	fs.StatusOK:           nfs.NFSStatusOk,
	fs.StatusPermission:   nfs.NFSStatusPerm,
	fs.StatusNotFound:     nfs.NFSStatusNoEnt,
	fs.StatusIO:           nfs.NFSStatusIO,
	fs.StatusAccess:       nfs.NFSStatusAccess,
	fs.StatusExists:       nfs.NFSStatusExist,
	fs.StatusCrossDevice:  nfs.NFSStatusXDev,
	fs.StatusNotDir:       nfs.NFSStatusNotDir,
	fs.StatusIsDir:        nfs.NFSStatusIsDir,
	fs.StatusInvalid:      nfs.NFSStatusInval,
	fs.StatusTooLarge:     nfs.NFSStatusFBig,
	fs.StatusNoSpace:      nfs.NFSStatusNoSPC,
	fs.StatusReadOnly:     nfs.NFSStatusROFS,
	fs.StatusTooManyLinks: nfs.NFSStatusMlink,
	fs.StatusNameTooLong:  nfs.NFSStatusNameTooLong,
	fs.StatusNotEmpty:     nfs.NFSStatusNotEmpty,
	fs.StatusStale:        nfs.NFSStatusStale,
	fs.StatusBadHandle:    nfs.NFSStatusBadHandle,
	fs.StatusNotSync:      nfs.NFSStatusNotSync,
	fs.StatusBadCookie:    nfs.NFSStatusBadCookie,
	fs.StatusNotSupported: nfs.NFSStatusNotSupp,
	fs.StatusServerFault:  nfs.NFSStatusServerFault,
	fs.StatusDelay:        nfs.NFSStatusJukebox,
}
