package nfs3

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/fuzztest"
	"github.com/holdfast-backup/holdfast/nfsd/handle"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// made takes apart the reply of CREATE, MKDIR and SYMLINK.
func made(res *nfstest.Results) []byte {
	if res.U32() != 1 {
		return nil
	}
	fh := res.Handle()
	res.PostOp()
	res.Wcc()
	res.End()
	return fh
}

func (r *rig) size(fh []byte) uint64 {
	r.t.Helper()
	res := r.must(nfs.NFSProcedureGetAttr, h(fh))
	a := res.Attr()
	return a.Filesize
}

func TestCreate(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	dir := r.root("/x")
	create := func(name string) nfstest.Words { return dirOp(dir, name) }
	const p = nfs.NFSProcedureCreate
	unchecked, guarded, exclusive := uint32(0), uint32(1), uint32(2)
	size := func(n uint64) nfstest.Words { return nfstest.Words(nil).U32(1, 0o600, 0, 0, 1).U64(n).U32(0, 0) }

	fh := made(r.must(p, create("file").U32(guarded).Raw(size(0))))
	r.write(fh, 0, fileSync, "content")
	if again := made(r.must(p, create("file").U32(unchecked).Raw(noAttr()))); !bytes.Equal(again, fh) || r.size(fh) != 7 {
		t.Error("a plain O_CREAT changed an existing file")
	}
	if made(r.must(p, create("file").U32(unchecked).Raw(size(3)))); r.size(fh) != 3 {
		t.Error("O_TRUNC was not obeyed")
	}
	r.want("guarded, exists", p, create("file").U32(guarded).Raw(noAttr()), nfs.NFSStatusExist)
	made(r.must(nfs.NFSProcedureMkDir, create("dir").Raw(noAttr())))
	if s, _ := r.call(p, create("dir").U32(unchecked).Raw(noAttr())); s != nfs.NFSStatusExist && s != nfs.NFSStatusIsDir {
		t.Errorf("create over a folder: %v", s)
	}
	r.want("8 EiB", p, create("huge").U32(guarded).Raw(size(1<<63)), nfs.NFSStatusFBig)
	r.want("huge is not there", nfs.NFSProcedureLookup, create("huge"), nfs.NFSStatusNoEnt)

	first := made(r.must(p, create("once").U32(exclusive).Raw([]byte("verifier"))))
	if again := made(r.must(p, create("once").U32(exclusive).Raw([]byte("verifier")))); !bytes.Equal(first, again) {
		t.Error("a repeated exclusive create found another file")
	}
	r.want("another verifier", p, create("once").U32(exclusive).Raw([]byte("VERIFIER")), nfs.NFSStatusExist)
}

func TestNames(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	root, y := r.root("/x"), r.root("/y")
	sub := made(r.must(nfs.NFSProcedureMkDir, dirOp(root, "sub").Raw(noAttr())))
	file := made(r.must(nfs.NFSProcedureCreate, dirOp(sub, "file").U32(0).Raw(noAttr())))
	link := made(r.must(nfs.NFSProcedureSymlink, dirOp(sub, "link").Raw(noAttr()).Text("../file")))
	res := r.must(nfs.NFSProcedureReadlink, h(link))
	if res.PostOp(); res.Text() != "../file" {
		t.Error("the link's text changed")
	}
	const (
		remove, rmdir, rename = nfs.NFSProcedureRemove, nfs.NFSProcedureRmDir, nfs.NFSProcedureRename
		mkdir, hard, look     = nfs.NFSProcedureMkDir, nfs.NFSProcedureLink, nfs.NFSProcedureLookup
	)
	for _, c := range []struct {
		what string
		p    nfs.NFSProcedure
		args nfstest.Words
		want nfs.NFSStatus
	}{
		{"mkdir, exists", mkdir, dirOp(root, "sub").Raw(noAttr()), nfs.NFSStatusExist},
		{"rmdir of a full folder", rmdir, dirOp(root, "sub"), nfs.NFSStatusNotEmpty},
		{"rmdir of a file", rmdir, dirOp(sub, "file"), nfs.NFSStatusNotDir},
		{"remove of a folder", remove, dirOp(root, "sub"), nfs.NFSStatusIsDir},
		{"remove of nothing", remove, dirOp(root, "none"), nfs.NFSStatusNoEnt},
		{"remove in a file", remove, dirOp(file, "x"), nfs.NFSStatusNotDir},
		{"lookup in a file", look, dirOp(file, "x"), nfs.NFSStatusNotDir},
		{"hard link", hard, h(file).Raw(dirOp(root, "second")), nfs.NFSStatusOk},
		{"hard link, exists", hard, h(file).Raw(dirOp(root, "second")), nfs.NFSStatusExist},
		{"hard link across exports", hard, h(file).Raw(dirOp(y, "second")), nfs.NFSStatusXDev},
		{"rename across exports", rename, dirOp(sub, "file").Raw(dirOp(y, "file")), nfs.NFSStatusXDev},
		{"rename onto a file", rename, dirOp(sub, "file").Raw(dirOp(root, "second")), nfs.NFSStatusOk},
		{"rename of nothing", rename, dirOp(sub, "none").Raw(dirOp(root, "x")), nfs.NFSStatusNoEnt},
		{"rename of .", rename, dirOp(sub, ".").Raw(dirOp(root, "x")), nfs.NFSStatusInval},
		{"mkdir ..", mkdir, dirOp(root, "..").Raw(noAttr()), nfs.NFSStatusInval},
		{"name with a slash", mkdir, dirOp(root, "a/b").Raw(noAttr()), nfs.NFSStatusInval},
		{"name with NUL", look, dirOp(root, "a\x00"), nfs.NFSStatusInval},
		{"empty name", look, dirOp(root, ""), nfs.NFSStatusInval},
		{"name of 255", look, dirOp(root, strings.Repeat("n", 255)), nfs.NFSStatusNoEnt},
		{"name of 256", look, dirOp(root, strings.Repeat("n", 256)), nfs.NFSStatusNameTooLong},
		{"link text of 1025", nfs.NFSProcedureSymlink, dirOp(root, "l").Raw(noAttr()).Text(strings.Repeat("n", 1025)), nfs.NFSStatusNameTooLong},
		{"empty link text", nfs.NFSProcedureSymlink, dirOp(root, "l").Raw(noAttr()).Text(""), nfs.NFSStatusInval},
		{"readlink of a file", nfs.NFSProcedureReadlink, h(file), nfs.NFSStatusInval},
		{"mknod fifo", nfs.NFSProcedureMkNod, dirOp(root, "f").U32(7).Raw(noAttr()), nfs.NFSStatusNotSupp},
		{"mknod block", nfs.NFSProcedureMkNod, dirOp(root, "f").U32(3).Raw(noAttr()).U32(8, 0), nfs.NFSStatusNotSupp},
		{"the root's ..", look, dirOp(root, ".."), nfs.NFSStatusOk},
		{"another folder's ..", look, dirOp(sub, ".."), nfs.NFSStatusNotSupp},
		{".", look, dirOp(sub, "."), nfs.NFSStatusOk},
	} {
		r.want(c.what, c.p, c.args, c.want)
	}
	r.want("removed", remove, dirOp(root, "second"), nfs.NFSStatusOk)
	if s, _ := r.call(nfs.NFSProcedureGetAttr, h(file)); s != nfs.NFSStatusStale && s != nfs.NFSStatusOk {
		t.Errorf("handle of a removed name: %v", s)
	}
}

func TestSetAttr(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	f := r.put("file", "0123456789")
	fh := r.at("/x", f)
	const p = nfs.NFSProcedureSetAttr
	a := func() fs.Attr { a, _ := f.Attr(t.Context()); return a }
	res := r.must(p, h(fh).U32(1, 0o660, 1, 107, 1, 108, 1).U64(4).U32(2, 100, 5, 1).U32(0))
	if w := res.Wcc(); w == nil || w.Filesize != 4 || w.FileMode != 0o660 {
		t.Errorf("wcc %+v", w)
	}
	if got := a(); got.Perm != 0o660 || got.UID != 107 || got.GID != 108 || got.Size != 4 ||
		!got.Atime.Equal(time.Unix(100, 5)) || time.Since(got.Mtime) > time.Minute {
		t.Errorf("%+v", got)
	}
	ctime := a().Ctime
	guard := func(t time.Time) nfstest.Words {
		return nfstest.Words(nil).U32(1, 0o600, 0, 0, 0, 0, 0).U32(1, uint32(t.Unix()), uint32(t.Nanosecond()))
	}
	r.want("wrong guard", p, h(fh).Raw(guard(ctime.Add(-1))), nfs.NFSStatusNotSync)
	r.want("right guard", p, h(fh).Raw(guard(ctime)), nfs.NFSStatusOk)
	r.want("8 EiB", p, h(fh).U32(0, 0, 0, 1).U64(math.MaxUint64).U32(0, 0, 0), nfs.NFSStatusFBig)
	r.want("read-only", p, h(r.at("/ro", f)).Raw(guard(a().Ctime)), nfs.NFSStatusROFS)
	if a().Perm != 0o600 || a().Size != 4 {
		t.Errorf("%+v", a())
	}
}

func TestReadOnlyExportRefusesEveryChange(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	f := r.put("name", "content")
	for p, args := range arguments(r.root("/ro")) {
		p := nfs.NFSProcedure(p)
		switch p {
		case nfs.NFSProcedureSetAttr, nfs.NFSProcedureCreate, nfs.NFSProcedureMkDir, nfs.NFSProcedureSymlink,
			nfs.NFSProcedureMkNod, nfs.NFSProcedureRemove, nfs.NFSProcedureRmDir, nfs.NFSProcedureRename, nfs.NFSProcedureLink:
			status, res := r.call(p, args)
			if status != nfs.NFSStatusROFS {
				t.Errorf("%v: %v", p, status)
			}
			failure(p, res)
		}
	}
	res := r.must(nfs.NFSProcedureAccess, h(r.at("/ro", f)).U32(0x3f))
	res.PostOp()
	if bits := res.U32(); bits != accessRead {
		t.Errorf("ACCESS grants %x", bits)
	}
}

func TestAccess(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	f := r.put("file", "")
	static := fs.NewStatic(fs.NewStaticDir(1, time.Unix(1, 0)), nil)
	r.export("/static", 5, static, false)
	access := func(fh []byte, ask uint32) uint32 {
		res := r.must(nfs.NFSProcedureAccess, h(fh).U32(ask))
		res.PostOp()
		defer res.End()
		return res.U32()
	}
	for what, c := range map[string][2]uint32{
		"file":                {access(r.at("/x", f), 0x3f), accessRead | accessModify | accessExtend},
		"only what was asked": {access(r.at("/x", f), accessModify), accessModify},
		"folder":              {access(r.root("/x"), 0xffffffff), 0x1f},
		"static folder":       {access(r.root("/static"), 0x3f), accessRead | accessLookup},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: %x, want %x", what, c[0], c[1])
		}
	}
	x := uint32(0o755)
	if _, err := f.(fs.AttrSetter).SetAttr(t.Context(), fs.SetAttr{Perm: &x}, nil); err != nil {
		t.Fatal(err)
	}
	if bits := access(r.at("/x", f), 0x3f); bits&accessExecute == 0 {
		t.Errorf("a program: %x", bits)
	}
}

func TestStaticTreesAreReadOnly(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	static := fs.NewStatic(fs.NewStaticDir(1, time.Unix(1, 0)), nil)
	r.export("/static", 5, static, false)
	args := arguments(r.root("/static"))
	for _, p := range []nfs.NFSProcedure{nfs.NFSProcedureSetAttr, nfs.NFSProcedureCreate, nfs.NFSProcedureMkDir,
		nfs.NFSProcedureSymlink, nfs.NFSProcedureRemove, nfs.NFSProcedureRmDir, nfs.NFSProcedureRename, nfs.NFSProcedureLink} {
		r.want("static", p, args[p], nfs.NFSStatusROFS)
	}
}

func TestHandlesAreCheckedByEveryProcedure(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	good := r.root("/x")
	forged := bytes.Clone(good)
	forged[9] ^= 1
	gone := r.root("/y")
	if err := r.table.Remove("/y"); err != nil {
		t.Fatal(err)
	}
	f := r.put("removed", "")
	removed := r.at("/x", f)
	if err := r.m.Root().(fs.Remover).Remove(t.Context(), "removed"); err != nil {
		t.Fatal(err)
	}
	check := func(what string, fh []byte, want nfs.NFSStatus) {
		t.Helper()
		for p, args := range arguments(fh) {
			if p := nfs.NFSProcedure(p); p != nfs.NFSProcedureNull {
				status, res := r.call(p, args)
				if status != want {
					t.Errorf("%s: %v is answered %v, want %v", what, p, status, want)
				}
				failure(p, res)
			}
		}
	}
	check("forged", forged, nfs.NFSStatusBadHandle)
	check("short", []byte{1}, nfs.NFSStatusBadHandle)
	check("empty", nil, nfs.NFSStatusBadHandle)
	check("64 bytes", make([]byte, 64), nfs.NFSStatusBadHandle)
	check("removed export", gone, nfs.NFSStatusStale)
	check("removed file", removed, nfs.NFSStatusStale)
	r.peer = host.Next()
	check("another client", good, nfs.NFSStatusAccess)
}

func TestSecondHandleIsCheckedToo(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	good := r.root("/x")
	f := r.at("/x", r.put("name", ""))
	r.want("rename", nfs.NFSProcedureRename, dirOp(good, "name").Raw(dirOp([]byte{1}, "x")), nfs.NFSStatusBadHandle)
	r.want("link", nfs.NFSProcedureLink, h(f).Raw(dirOp([]byte{1}, "x")), nfs.NFSStatusBadHandle)
	r.want("rename to read-only", nfs.NFSProcedureRename, dirOp(good, "name").Raw(dirOp(r.root("/ro"), "x")), nfs.NFSStatusROFS)
}

// listed reads a listing to its end and returns names and cookies.
func (r *rig) listed(dir []byte, plus bool, count uint32, after func(page int)) (names []string, cookies []uint64) {
	r.t.Helper()
	cookie, eof := uint64(0), uint32(0)
	for page := 0; eof == 0; page++ {
		p, args := nfs.NFSProcedureReadDir, h(dir).U64(cookie, 0).U32(count)
		if plus {
			p, args = nfs.NFSProcedureReadDirPlus, h(dir).U64(cookie, 0).U32(math.MaxUint32, count)
		}
		res := r.must(p, args)
		if res.Len() > int(min(count, maxListing)) {
			r.t.Fatalf("a listing of %d bytes where %d are allowed", res.Len(), count)
		}
		res.PostOp()
		if v := res.U64(); v != 0 {
			r.t.Fatalf("cookie verifier %x", v)
		}
		n := len(names)
		for res.U32() == 1 {
			id, name := res.U64(), res.Text()
			cookie = res.U64()
			names, cookies = append(names, name), append(cookies, cookie)
			if plus {
				if a := res.PostOp(); a != nil && a.Fileid != id {
					r.t.Fatalf("%q has two numbers", name)
				}
				if res.U32() == 1 {
					if _, got, s := r.table.Parse(res.Handle(), host); s != fs.StatusOK || got != fs.ID(id) {
						r.t.Fatalf("%q has a wrong handle", name)
					}
				}
			}
		}
		eof = res.U32()
		res.End()
		if len(names) == n && eof == 0 {
			r.t.Fatal("a page without entries that is not the last")
		}
		if after != nil {
			after(page)
		}
	}
	return names, cookies
}

func TestListings(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	want := []string{".", ".."}
	for i := range 300 {
		name := fmt.Sprintf("%d%s", i, strings.Repeat("n", i%60))
		r.put("dir/"+name, "")
		want = append(want, name)
	}
	dir, err := r.m.Root().Lookup(t.Context(), "dir")
	if err != nil {
		t.Fatal(err)
	}
	fh := r.at("/x", dir)
	for _, plus := range []bool{false, true} {
		for _, count := range []uint32{400, 401, 402, 403, 1024, 4096, 65536, math.MaxUint32} {
			names, cookies := r.listed(fh, plus, count, nil)
			if strings.Join(names, "/") != strings.Join(want, "/") {
				t.Fatalf("plus %v, %d bytes: %d names, want %d", plus, count, len(names), len(want))
			}
			for i, c := range cookies {
				if i > 0 && c <= cookies[i-1] || i < 2 && c != uint64(i+1) {
					t.Fatalf("cookie %d follows %d", c, cookies[i-1])
				}
			}
		}
	}
}

func TestListingWhileNamesGo(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	for i := range 200 {
		r.put(fmt.Sprintf("%03d", i), "")
	}
	seen := map[string]int{}
	next := 0
	names, _ := r.listed(r.root("/x"), true, 2048, func(int) {
		for range 10 { // as rm -r does: remove what was listed, and make new names
			_ = r.m.Root().(fs.Remover).Remove(t.Context(), fmt.Sprintf("%03d", next))
			next++
		}
	})
	for _, n := range names {
		seen[n]++
	}
	for i := range 200 {
		if n := seen[fmt.Sprintf("%03d", i)]; n != 1 {
			t.Errorf("%03d was listed %d times", i, n)
		}
	}
}

func TestListingRefuses(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	r.put(strings.Repeat("n", 255), "")
	root := r.root("/x")
	const plain, plus = nfs.NFSProcedureReadDir, nfs.NFSProcedureReadDirPlus
	r.want("a verifier that is not ours", plain, h(root).U64(1, 5).U32(4096), nfs.NFSStatusBadCookie)
	r.want("no room for an entry", plain, h(root).U64(0, 0).U32(listingLen+entryLen+3), nfs.NFSStatusTooSmall)
	r.want("room for one", plain, h(root).U64(0, 0).U32(listingLen+entryLen+4), nfs.NFSStatusOk)
	r.want("no room at all", plus, h(root).U64(0, 0).U32(0, 0), nfs.NFSStatusTooSmall)
	r.want("no room for the long name", plus, h(root).U64(2, 0).U32(4096, 400), nfs.NFSStatusTooSmall)
	r.want("dircount is a hint", plus, h(root).U64(2, 0).U32(0, 4096), nfs.NFSStatusOk)
	r.want("a file", plain, h(r.at("/x", r.put("file", ""))).U64(0, 0).U32(4096), nfs.NFSStatusNotDir)
	res := r.must(plain, h(root).U64(math.MaxUint64, 0).U32(4096))
	res.PostOp()
	if _, more, eof := res.U64(), res.U32(), res.U32(); more != 0 || eof != 1 {
		t.Error("a cookie after the end is not the end")
	}
}

func TestInfo(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	root := r.root("/x")
	sp, _ := r.m.Space(t.Context())
	res := r.must(nfs.NFSProcedureFSStat, h(root))
	res.PostOp()
	for i, want := range []int64{sp.TotalBytes, sp.FreeBytes, sp.FreeBytes, sp.TotalFiles, sp.FreeFiles, sp.FreeFiles} {
		if got := res.U64(); got != uint64(want) {
			t.Errorf("FSSTAT %d: %d, want %d", i, got, want)
		}
	}
	if res.U32() != 0 {
		t.Error("invarsec")
	}
	res.End()

	res = r.must(nfs.NFSProcedureFSInfo, h(root))
	res.PostOp()
	for i, want := range []uint32{1 << 20, 1 << 20, 4096, 1 << 20, 1 << 20, 4096, 64 << 10} {
		if got := res.U32(); got != want {
			t.Errorf("FSINFO %d: %d, want %d", i, got, want)
		}
	}
	if size, sec, ns, props := res.U64(), res.U32(), res.U32(), res.U32(); size != math.MaxInt64 || sec != 0 || ns != 1 || props != 0x19 {
		t.Errorf("FSINFO: %x %d %d %x", size, sec, ns, props)
	}
	res.End()

	res = r.must(nfs.NFSProcedurePathConf, h(root))
	res.PostOp()
	for i, want := range []uint32{32000, 255, 1, 1, 0, 1} {
		if got := res.U32(); got != want {
			t.Errorf("PATHCONF %d: %d, want %d", i, got, want)
		}
	}
	res.End()
}

func TestEveryReplyHasItsExportsFSID(t *testing.T) {
	r := newRig(t, rpc.Limits{})
	seen := map[uint64]bool{}
	for _, path := range []string{"/x", "/y", "/ro"} {
		res := r.must(nfs.NFSProcedureGetAttr, h(r.root(path)))
		a := res.Attr()
		if seen[a.FSID] || a.FSID == 0 {
			t.Errorf("%s has file system id %x", path, a.FSID)
		}
		seen[a.FSID] = true
	}
}

// FuzzProcedures: whatever arguments, every procedure answers or calls them garbage; none panics.
func FuzzProcedures(f *testing.F) {
	r := newRig(f, rpc.Limits{Deadline: time.Second})
	file := r.at("/x", r.put("name", "content"))
	dir := r.root("/x")
	for _, fh := range [][]byte{file, dir, r.root("/ro"), make([]byte, handle.Len)} {
		for p, args := range arguments(fh) {
			f.Add(uint32(p), []byte(args))
			f.Add(uint32(p), []byte(args[:len(args)/2]))
		}
	}
	f.Add(uint32(7), []byte(h(file).U64(0).U32(math.MaxUint32, 2, math.MaxUint32)))
	f.Add(uint32(8), []byte(dirOp(dir, "n").U32(9)))
	f.Fuzz(func(t *testing.T, p uint32, args []byte) {
		if p > uint32(nfs.NFSProcedureCommit) {
			t.Skip()
		}
		msg := nfstest.Message(1, nfstest.NFS, 3, p, args)
		var out []byte
		// A READ may ask for 1 MiB, which is copied for a datagram; a WRITE makes pages of the tree.
		fuzztest.Bounded(t, len(msg), 3*MaxTransfer, 64, func() { out = r.srv.Datagram(t.Context(), host, msg) })
		reply := nfstest.ParseReply(t, out)
		const garbage = 4
		if reply.Denied || reply.Stat != 0 && reply.Stat != garbage {
			t.Fatalf("procedure %d: denied %v, status %d", p, reply.Denied, reply.Stat)
		}
		if reply.Stat == 0 && p != 0 {
			if s := nfs.NFSStatus(reply.U32()); s != nfs.NFSStatusOk {
				failure(nfs.NFSProcedure(p), &reply.Results)
			}
		}
		if len(out) > MaxTransfer+4096 {
			t.Fatalf("a reply of %d bytes", len(out))
		}
	})
}
