package nfsd_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/fstest"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
)

func words(vs ...uint32) nfstest.Words { return nfstest.Words(nil).U32(vs...) }

func read(fh []byte, off uint64, count uint32) nfstest.Words {
	return nfstest.Words(nil).Opaque(fh).U64(off).U32(count)
}

// mounted returns a connection, the root of /a and the handle of the file in it.
func mounted(t testing.TB, s *running) (c *nfstest.Conn, root, file []byte) {
	t.Helper()
	c = nfstest.Dial(t, s.addr)
	status, root := c.MNT("/a")
	if status != nfs.MountStatusOk {
		t.Fatalf("MNT: %d", status)
	}
	return c, root, c.Lookup(root, "file")
}

func TestABlockedReadDelaysNothingElse(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	image := put(t, m, "file", pattern(1<<20, 1)).ID()
	put(t, m, "ids", pattern(4096, 2))
	s := start(t, nfsd.Options{}, m)
	c, root, file := mounted(t, s)
	ids := c.Lookup(root, "ids")
	gate, entered := make(chan struct{}), make(chan struct{}, 300)
	m.SetHook(func(op string, id fs.ID) error {
		if op == "read" && id == image {
			entered <- struct{}{}
			<-gate
		}
		return nil
	})
	blocked := map[uint32]bool{}
	for range 20 {
		blocked[c.Send(nfstest.NFS, 3, uint32(nfs.NFSProcedureRead), read(file, 0, 4096))] = true
	}
	<-entered
	// On the same connection: attributes, and what a host's monitor reads and writes.
	c.MustNFS(nfs.NFSProcedureGetAttr, nfstest.Words(nil).Opaque(file))
	c.MustNFS(nfs.NFSProcedureRead, read(ids, 0, 512))
	c.MustNFS(nfs.NFSProcedureWrite, nfstest.Words(nil).Opaque(ids).U64(512).U32(512, 2).Opaque(make([]byte, 512)))
	c.MustNFS(nfs.NFSProcedureFSStat, nfstest.Words(nil).Opaque(root))
	close(gate)
	for len(blocked) > 0 {
		r := c.Receive()
		if !blocked[r.XID] || r.Stat != 0 {
			t.Fatalf("reply %d, status %d", r.XID, r.Stat)
		}
		delete(blocked, r.XID)
	}
}

func TestAllowListIsCheckedOnEveryCall(t *testing.T) {
	var mu sync.Mutex
	var refused []string
	s, err := nfsd.New(nfsd.Options{Key: testKey, Events: nfsd.Events{
		Refused: func(_ netip.Addr, path string, reason nfs.MountStatus) {
			mu.Lock()
			defer mu.Unlock()
			refused = append(refused, fmt.Sprint(path, reason))
		}}})
	if err != nil {
		t.Fatal(err)
	}
	m := fstest.NewMemory(fstest.MemoryOptions{})
	put(t, m, "file", []byte("content"))
	export := nfsd.Export{Path: "/a", ID: 1, Tree: m, Allow: loopback}
	if err := s.Add(export); err != nil {
		t.Fatal(err)
	}
	r := serveOn(t, s, "127.0.0.1:0")
	c, root, file := mounted(t, r)
	// The same export for others only: what the client holds is worth nothing any more.
	if err := s.Remove("/a"); err != nil {
		t.Fatal(err)
	}
	export.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	if err := s.Add(export); err != nil {
		t.Fatal(err)
	}
	for p, args := range map[nfs.NFSProcedure]nfstest.Words{
		nfs.NFSProcedureGetAttr: nfstest.Words(nil).Opaque(file),
		nfs.NFSProcedureRead:    read(file, 0, 10),
		nfs.NFSProcedureLookup:  nfstest.Words(nil).Opaque(root).Text("file"),
	} {
		if status, _ := c.NFS(p, args); status != nfs.NFSStatusAccess {
			t.Errorf("%v: %v", p, status)
		}
	}
	for path, want := range map[string]nfs.MountStatus{"/a": nfs.MountStatusErrAcces, "/a/none": nfs.MountStatusErrAcces, "/b": nfs.MountStatusErrNoEnt} {
		if status, _ := c.MNT(path); status != want {
			t.Errorf("MNT %s: %d, want %d", path, status, want)
		}
	}
	if res := c.Call(nfstest.Mount, 3, uint32(nfs.MountProcExport), nil); res.U32() != 0 {
		t.Error("EXPORT shows what the client may not have")
	}
	mu.Lock()
	defer mu.Unlock()
	if len(refused) != 3 {
		t.Errorf("events %q", refused)
	}
}

func twoExports(t *testing.T) *nfstest.Conn {
	t.Helper()
	s := start(t, nfsd.Options{}, fstest.NewMemory(fstest.MemoryOptions{}), fstest.NewMemory(fstest.MemoryOptions{}))
	return nfstest.Dial(t, s.addr)
}

func TestExportList(t *testing.T) {
	c := twoExports(t)
	c.Call(nfstest.Mount, 3, uint32(nfs.MountProcNull), nil).End()
	res := c.Call(nfstest.Mount, 3, uint32(nfs.MountProcExport), nil)
	for _, want := range []string{"/a", "/b"} {
		if more, got := res.U32(), res.Text(); more != 1 || got != want {
			t.Errorf("export %q, want %q", got, want)
		}
		for _, want := range []string{"127.0.0.0/8", "::1/128"} {
			if more, got := res.U32(), res.Text(); more != 1 || got != want {
				t.Errorf("group %q, want %q", got, want)
			}
		}
		if res.U32() != 0 {
			t.Error("more groups")
		}
	}
	if res.U32() != 0 {
		t.Error("more exports")
	}
	res.End()
}

func TestMountList(t *testing.T) {
	c := twoExports(t)
	call := func(p nfs.MountProcedure, args nfstest.Words) *nfstest.Results {
		t.Helper()
		return c.Call(nfstest.Mount, 3, uint32(p), args)
	}
	dump := func() (out []string) {
		t.Helper()
		res := call(nfs.MountProcDump, nil)
		for res.U32() == 1 {
			out = append(out, res.Text()+" "+res.Text())
		}
		res.End()
		return out
	}
	for _, path := range []string{"/a", "/b", "/a"} {
		if status, _ := c.MNT(path); status != nfs.MountStatusOk {
			t.Errorf("MNT %s: %d", path, status)
		}
	}
	if got := fmt.Sprint(dump()); got != "[127.0.0.1 /b 127.0.0.1 /a]" {
		t.Errorf("mounts %s", got)
	}
	call(nfs.MountProcUmnt, nfstest.Words(nil).Text("/a")).End()
	call(nfs.MountProcUmnt, nfstest.Words(nil).Text("/never mounted")).End()
	if got := fmt.Sprint(dump()); got != "[127.0.0.1 /b]" {
		t.Errorf("mounts %s", got)
	}
	call(nfs.MountProcUmntAll, nil).End()
	if got := dump(); len(got) != 0 {
		t.Errorf("mounts %s", got)
	}
	for i := range 1100 {
		_, _ = c.MNT("/a" + string(bytes.Repeat([]byte("/"), 1+i%900)))
	}
	if n := len(dump()); n > 1024 {
		t.Errorf("%d mounts are remembered", n)
	}
}

func TestMountRefusesMalformedPaths(t *testing.T) {
	c := twoExports(t)
	c.Send(nfstest.Mount, 3, 1, words(1<<32-1))
	if r := c.Receive(); r.Stat != 4 {
		t.Errorf("4 GiB of path: %d", r.Stat)
	}
	c.Send(nfstest.Mount, 3, 1, nfstest.Words(nil).Text(string(make([]byte, 1025))))
	if r := c.Receive(); r.Stat != 4 {
		t.Errorf("a path of 1025 bytes: %d", r.Stat)
	}
	c.Send(nfstest.Mount, 1, 1, nfstest.Words(nil).Text("/a"))
	if r := c.Receive(); r.Stat != 2 || r.U32() != 3 || r.U32() != 3 {
		t.Error("MOUNT version 1 is no mismatch 3-3")
	}
}

func TestNegotiation(t *testing.T) {
	s := start(t, nfsd.Options{}, fstest.NewMemory(fstest.MemoryOptions{}))
	c := nfstest.Dial(t, s.addr)
	for _, version := range []uint32{2, 4} { // a client that tries 4.2 first falls back
		c.Send(nfstest.NFS, version, 0, nil)
		if r := c.Receive(); r.Stat != 2 || r.U32() != 3 || r.U32() != 3 {
			t.Errorf("version %d is no mismatch 3-3", version)
		}
	}
	for _, program := range []uint32{100227, 100024, nfstest.Port} { // NFSACL, NSM, port mapper
		c.Send(program, 3, 0, nil)
		if r := c.Receive(); r.Stat != 1 {
			t.Errorf("program %d: %d", program, r.Stat)
		}
	}
	for _, version := range []uint32{1, 3} { // NLM without 64 bits
		c.Send(100021, version, 0, nil)
		if r := c.Receive(); r.Stat != 2 || r.U32() != 4 || r.U32() != 4 {
			t.Errorf("NLM version %d is no mismatch 4-4", version)
		}
	}
	c.Send(nfstest.NFS, 3, 22, nil)
	if r := c.Receive(); r.Stat != 3 {
		t.Errorf("procedure 22: %d", r.Stat)
	}
	c.Call(nfstest.NFS, 3, 0, nil).End()
}

func TestArgumentsCutShortAreGarbage(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	put(t, m, "file", []byte("content"))
	s := start(t, nfsd.Options{}, m)
	c, root, file := mounted(t, s)
	whole := nfstest.Words(nil).Opaque(file).U64(0).U32(4, 2).Text("data")
	for n := 0; n < len(whole); n += 4 {
		c.Send(nfstest.NFS, 3, uint32(nfs.NFSProcedureWrite), whole[:n])
		if r := c.Receive(); r.Stat != 4 {
			t.Errorf("WRITE cut at %d: %d", n, r.Stat)
		}
	}
	for name, args := range map[string]nfstest.Words{
		"handle of 4 GiB":   words(1<<32 - 1),
		"handle of 65":      nfstest.Words(nil).Opaque(make([]byte, 65)).U64(0).U32(4, 2).Text("data"),
		"data of 4 GiB":     nfstest.Words(nil).Opaque(file).U64(0).U32(1<<32-1, 2, 1<<32-1),
		"stable_how of 3":   nfstest.Words(nil).Opaque(file).U64(0).U32(4, 3).Text("data"),
		"data over the end": nfstest.Words(nil).Opaque(file).U64(0).U32(8, 2, 8, 0),
	} {
		c.Send(nfstest.NFS, 3, uint32(nfs.NFSProcedureWrite), args)
		if r := c.Receive(); r.Stat != 4 {
			t.Errorf("%s: %d", name, r.Stat)
		}
	}
	c.Send(nfstest.NFS, 3, uint32(nfs.NFSProcedureLookup), nfstest.Words(nil).Opaque(root).U32(1<<31))
	if r := c.Receive(); r.Stat != 4 {
		t.Errorf("name of 2 GiB: %d", r.Stat)
	}
	if a := c.MustNFS(nfs.NFSProcedureGetAttr, nfstest.Words(nil).Opaque(file)).Attr(); a.Filesize != 7 {
		t.Errorf("the file has %d bytes now", a.Filesize)
	}
}

func TestRetriedRenameSucceeds(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	put(t, m, "file", []byte("content"))
	s := start(t, nfsd.Options{}, m)
	c, root, _ := mounted(t, s)
	args := nfstest.Words(nil).Opaque(root).Text("file").Opaque(root).Text("renamed")
	msg := nfstest.Record(nfstest.Message(4711, nfstest.NFS, 3, uint32(nfs.NFSProcedureRename), args))
	c.SendRaw(msg)
	first := c.Receive()
	again := nfstest.Dial(t, s.addr) // the connection broke before the reply came
	again.SendRaw(msg)
	second := again.Receive()
	if a, b := first.Raw(first.Len()), second.Raw(second.Len()); !bytes.Equal(a, b) {
		t.Errorf("%x\n%x", a, b)
	}
	if status, _ := again.NFS(nfs.NFSProcedureRename, args); status != nfs.NFSStatusNoEnt {
		t.Errorf("a new call: %v", status)
	}
}

// TestManyClients runs readers, writers and browsers at once; the race detector looks on.
func TestManyClients(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	want := pattern(1<<20, 9)
	put(t, m, "file", want)
	s := start(t, nfsd.Options{}, m)
	var wg sync.WaitGroup
	for i := range 8 {
		c, root, file := mounted(t, s)
		wg.Go(func() {
			name := fmt.Sprintf("mine-%d", i)
			for j := range 40 {
				off := uint64(j*31337) % (1 << 20)
				res := c.MustNFS(nfs.NFSProcedureRead, read(file, off, 65536))
				res.PostOp()
				n, _, data := res.U32(), res.U32(), res.Opaque()
				if int(n) != len(data) || !bytes.Equal(data, want[off:off+uint64(n)]) {
					t.Error("wrong bytes")
				}
				none := words(0, 0, 0, 0, 0, 0)
				c.MustNFS(nfs.NFSProcedureCreate, nfstest.Words(nil).Opaque(root).Text(name).U32(0).Raw(none))
				mine := c.Lookup(root, name)
				c.MustNFS(nfs.NFSProcedureWrite, nfstest.Words(nil).Opaque(mine).U64(off).U32(n, 0).Opaque(data))
				c.MustNFS(nfs.NFSProcedureReadDirPlus, nfstest.Words(nil).Opaque(root).U64(0, 0).U32(8192, 8192))
				c.MustNFS(nfs.NFSProcedureRemove, nfstest.Words(nil).Opaque(root).Text(name))
			}
		})
	}
	wg.Wait()
	if st := s.Stats(); st.InFlight != 0 || st.Panics != 0 || st.Broken != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestDeadlineReachesTheTree(t *testing.T) {
	m := fstest.NewMemory(fstest.MemoryOptions{})
	put(t, m, "file", []byte("content"))
	s := start(t, nfsd.Options{Limits: nfsd.Limits{Deadline: 20 * time.Millisecond}}, m)
	c, _, file := mounted(t, s)
	gate := make(chan struct{})
	m.SetHook(func(op string, _ fs.ID) error {
		if op == "read" {
			<-gate
		}
		return nil
	})
	defer close(gate)
	if status, _ := c.NFS(nfs.NFSProcedureRead, read(file, 0, 10)); status != nfs.NFSStatusJukebox {
		t.Errorf("%v", status)
	}
}

// TestHandlesNeverChange holds what clients keep over an update of this software.
func TestHandlesNeverChange(t *testing.T) {
	s := start(t, nfsd.Options{Key: testKey}, fs.NewStatic(fs.NewStaticDir(7, time.Unix(1, 0)), func(context.Context) (fs.Space, error) {
		return fs.Space{}, nil
	}))
	_, root := nfstest.Dial(t, s.addr).MNT("/a")
	const want = "010000000000000100000000000000077338bac8102d8c3c"
	if got := hex.EncodeToString(root); got != want {
		t.Errorf("handle %s, want %s", got, want)
	}
}
