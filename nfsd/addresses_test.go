package nfsd_test

import (
	"net"
	"net/netip"
	"testing"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs/fstest"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
)

// TestAllowListsOfBothFamilies: a listener for IPv6 takes IPv4 too, and sees its clients under 4-in-6 addresses. What
// decides is the list, in whatever family it names a client.
func TestAllowListsOfBothFamilies(t *testing.T) {
	s, err := nfsd.New(nfsd.Options{Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	lists := map[string][2]bool{ // who may come over IPv4 and IPv6
		"127.0.0.0/8": {true, false}, "::ffff:127.0.0.1/128": {true, false}, "::1/128": {false, true},
		"0.0.0.0/0": {true, false}, "::/0": {false, true}, "192.0.2.0/24": {false, false}, "2001:db8::/32": {false, false},
	}
	trees := map[string]*fstest.Memory{}
	id := uint32(0)
	for list := range lists {
		id++
		trees[list] = fstest.NewMemory(fstest.MemoryOptions{})
		put(t, trees[list], "file", []byte("content"))
		e := nfsd.Export{Path: "/" + list, ID: id, Tree: trees[list], Allow: []netip.Prefix{netip.MustParsePrefix(list)}}
		if err := s.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	r := serveOn(t, s, "[::]:0")
	_, port, err := net.SplitHostPort(r.addr)
	if err != nil {
		t.Fatal(err)
	}
	c := []*nfstest.Conn{nfstest.Dial(t, net.JoinHostPort("127.0.0.1", port)), nfstest.Dial(t, net.JoinHostPort("::1", port))}
	for list, may := range lists {
		var root []byte
		for family, ok := range may {
			want := nfs.MountStatusErrAcces
			if ok {
				want = nfs.MountStatusOk
			}
			status, fh := c[family].MNT("/" + list)
			if status != want {
				t.Errorf("%s: MNT over family %d is answered %v, want %v", list, family, status, want)
			}
			if ok {
				root = fh
			}
		}
		if root == nil {
			continue
		}
		// Who may not mount may not use a handle either, whoever told of it.
		for family, ok := range may {
			want := nfs.NFSStatusAccess
			if ok {
				want = nfs.NFSStatusOk
			}
			for p, args := range everyCall(root) {
				if status, _ := c[family].NFS(p, args); (status == nfs.NFSStatusAccess) == ok || !ok && status != want {
					t.Errorf("%s: %v over family %d is answered %v", list, p, family, status)
				}
			}
		}
	}
}

// everyCall has arguments of every procedure that takes a handle, for a folder with a file in it.
func everyCall(dir []byte) map[nfs.NFSProcedure]nfstest.Words {
	on := func() nfstest.Words { return nfstest.Words(nil).Opaque(dir) }
	return map[nfs.NFSProcedure]nfstest.Words{
		nfs.NFSProcedureGetAttr:     on(),
		nfs.NFSProcedureSetAttr:     on().Raw(same()).U32(0),
		nfs.NFSProcedureLookup:      at(dir, "file"),
		nfs.NFSProcedureAccess:      on().U32(0x3f),
		nfs.NFSProcedureReadlink:    on(),
		nfs.NFSProcedureRead:        read(dir, 0, 10),
		nfs.NFSProcedureWrite:       writeArgs(dir, 0, 2, "data"),
		nfs.NFSProcedureCreate:      at(dir, "file").U32(1).Raw(same()),
		nfs.NFSProcedureMkDir:       at(dir, "file").Raw(same()),
		nfs.NFSProcedureSymlink:     at(dir, "file").Raw(same()).Text("target"),
		nfs.NFSProcedureMkNod:       at(dir, "file").U32(7).Raw(same()),
		nfs.NFSProcedureRemove:      at(dir, "none"),
		nfs.NFSProcedureRmDir:       at(dir, "none"),
		nfs.NFSProcedureRename:      at(dir, "none").Raw(at(dir, "other")),
		nfs.NFSProcedureLink:        on().Raw(at(dir, "file")),
		nfs.NFSProcedureReadDir:     on().U64(0, 0).U32(4096),
		nfs.NFSProcedureReadDirPlus: on().U64(0, 0).U32(4096, 4096),
		nfs.NFSProcedureFSStat:      on(),
		nfs.NFSProcedureFSInfo:      on(),
		nfs.NFSProcedurePathConf:    on(),
		nfs.NFSProcedureCommit:      on().U64(0).U32(0),
	}
}
