package nfs3

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/fstest"
	"github.com/holdfast-backup/holdfast/nfsd/handle"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

var host = netip.MustParseAddr("192.0.2.7")

// rig is the program over exports in memory, called without a network. Export 1 is /x over m, 2 is /y over another
// tree, 3 is /ro over m, read-only.
type rig struct {
	t     testing.TB
	m     *fstest.Memory
	table *handle.Table
	srv   *rpc.Server
	peer  netip.Addr
}

func newRig(t testing.TB, limits rpc.Limits) *rig {
	t.Helper()
	table, err := handle.NewTable([]byte("a key for these tests"))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, m: fstest.NewMemory(fstest.MemoryOptions{CapacityBytes: 64 << 20, MaxFiles: 10000}), table: table, peer: host,
		srv: rpc.New(rpc.Options{Programs: []rpc.Program{New(table)}, Limits: limits})}
	r.export("/x", 1, r.m, false)
	r.export("/y", 2, fstest.NewMemory(fstest.MemoryOptions{}), false)
	r.export("/ro", 3, r.m, true)
	return r
}

func (r *rig) export(path string, id uint32, tree fs.Tree, readOnly bool) {
	r.t.Helper()
	e := handle.Export{Path: path, ID: id, Tree: tree, ReadOnly: readOnly, Allow: []netip.Prefix{netip.PrefixFrom(host, 32)}}
	if err := r.table.Add(e); err != nil {
		r.t.Fatal(err)
	}
}

// at returns the handle of a node in an export.
func (r *rig) at(export string, n fs.Node) []byte {
	r.t.Helper()
	e, _, ok := r.table.Match(export)
	if !ok {
		r.t.Fatalf("no export %s", export)
	}
	return r.table.Append(nil, e, n.ID())
}

// root returns the handle of an export's root.
func (r *rig) root(export string) []byte {
	r.t.Helper()
	e, _, _ := r.table.Match(export)
	return r.at(export, e.Tree.Root())
}

func (r *rig) put(name, content string) fs.File {
	r.t.Helper()
	f, err := r.m.Put(name, []byte(content))
	if err != nil {
		r.t.Fatal(err)
	}
	return f
}

// call runs a procedure; the RPC layer must not complain.
func (r *rig) call(p nfs.NFSProcedure, args nfstest.Words) (nfs.NFSStatus, *nfstest.Results) {
	r.t.Helper()
	msg := nfstest.Message(1, nfstest.NFS, 3, uint32(p), args)
	reply := nfstest.ParseReply(r.t, r.srv.Datagram(context.Background(), r.peer, msg))
	if reply.Denied || reply.Stat != 0 {
		r.t.Fatalf("%v: denied %v, status %d", p, reply.Denied, reply.Stat)
	}
	return nfs.NFSStatus(reply.U32()), &reply.Results
}

// listen serves the rig on loopback until the test's end, for what needs a connection, and returns the address.
func (r *rig) listen() string {
	r.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range r.table.List() {
		export := e.Export
		export.Allow = append(export.Allow, netip.MustParsePrefix("127.0.0.0/8"))
		if err := errors.Join(r.table.Remove(e.Path), r.table.Add(export)); err != nil {
			r.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.srv.Serve(ctx, ln) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
	return ln.Addr().String()
}

// must is call for a success.
func (r *rig) must(p nfs.NFSProcedure, args nfstest.Words) *nfstest.Results {
	r.t.Helper()
	s, res := r.call(p, args)
	if s != nfs.NFSStatusOk {
		r.t.Fatalf("%v: %v", p, s)
	}
	return res
}

// want checks a status only.
func (r *rig) want(what string, p nfs.NFSProcedure, args nfstest.Words, want nfs.NFSStatus) {
	r.t.Helper()
	if s, _ := r.call(p, args); s != want {
		r.t.Errorf("%s: %v is answered %v, want %v", what, p, s, want)
	}
}

func h(handle []byte) nfstest.Words { return nfstest.Words(nil).Opaque(handle) }

// noAttr is a sattr3 that changes nothing.
func noAttr() nfstest.Words { return nfstest.Words(nil).U32(0, 0, 0, 0, 0, 0) }

func dirOp(dir []byte, name string) nfstest.Words { return h(dir).Text(name) }

// arguments returns valid arguments of every procedure for a node.
func arguments(node []byte) [22]nfstest.Words {
	return [...]nfstest.Words{
		nfs.NFSProcedureNull:        nil,
		nfs.NFSProcedureGetAttr:     h(node),
		nfs.NFSProcedureSetAttr:     h(node).Raw(noAttr()).U32(0),
		nfs.NFSProcedureLookup:      dirOp(node, "name"),
		nfs.NFSProcedureAccess:      h(node).U32(0x3f),
		nfs.NFSProcedureReadlink:    h(node),
		nfs.NFSProcedureRead:        h(node).U64(0).U32(10),
		nfs.NFSProcedureWrite:       h(node).U64(0).U32(4, 2).Text("data"),
		nfs.NFSProcedureCreate:      dirOp(node, "name").U32(0).Raw(noAttr()),
		nfs.NFSProcedureMkDir:       dirOp(node, "name").Raw(noAttr()),
		nfs.NFSProcedureSymlink:     dirOp(node, "name").Raw(noAttr()).Text("target"),
		nfs.NFSProcedureMkNod:       dirOp(node, "name").U32(7).Raw(noAttr()),
		nfs.NFSProcedureRemove:      dirOp(node, "name"),
		nfs.NFSProcedureRmDir:       dirOp(node, "name"),
		nfs.NFSProcedureRename:      dirOp(node, "name").Raw(dirOp(node, "other")),
		nfs.NFSProcedureLink:        h(node).Raw(dirOp(node, "name")),
		nfs.NFSProcedureReadDir:     h(node).U64(0, 0).U32(4096),
		nfs.NFSProcedureReadDirPlus: h(node).U64(0, 0).U32(4096, 4096),
		nfs.NFSProcedureFSStat:      h(node),
		nfs.NFSProcedureFSInfo:      h(node),
		nfs.NFSProcedurePathConf:    h(node),
		nfs.NFSProcedureCommit:      h(node).U64(0).U32(0),
	}
}

// failure reads what follows a status that is not OK, which differs by procedure (RFC 1813).
func failure(p nfs.NFSProcedure, r *nfstest.Results) {
	switch p {
	case nfs.NFSProcedureNull, nfs.NFSProcedureGetAttr:
	case nfs.NFSProcedureSetAttr, nfs.NFSProcedureWrite, nfs.NFSProcedureCreate, nfs.NFSProcedureMkDir,
		nfs.NFSProcedureSymlink, nfs.NFSProcedureMkNod, nfs.NFSProcedureRemove, nfs.NFSProcedureRmDir,
		nfs.NFSProcedureCommit:
		r.Wcc()
	case nfs.NFSProcedureRename:
		r.Wcc()
		r.Wcc()
	case nfs.NFSProcedureLink:
		r.PostOp()
		r.Wcc()
	default:
		r.PostOp()
	}
	r.End()
}
