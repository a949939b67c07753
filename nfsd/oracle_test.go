package nfsd_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/fstest"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
)

// opinion is one server with a tree of its own, and what it answers.
type opinion struct {
	c    *nfstest.Conn
	root []byte
	tree *fstest.Memory
}

// oracleServer serves a tree with go-nfs.
func oracleServer(t testing.TB, tree fs.Tree) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	nfs.Log.SetLevel(nfs.PanicLevel)
	go func() { _ = nfs.Serve(ln, nfstest.Oracle(tree)) }() // ends with the listener
	return ln.Addr().String()
}

// answer is what is compared: a status, a text of everything else that both servers must agree on, and their own words,
// in which they may differ as known has it.
type answer struct {
	status nfs.NFSStatus
	text   string
	own    string
}

// step is one operation of the log.
type step struct {
	p        nfs.NFSProcedure
	dir      string // "" is the root
	name     string
	toDir    string // RENAME
	toName   string
	off      uint64
	data     string
	how      uint32 // CREATE
	mode     uint32
	truncate bool
	guard    bool // SETATTR: only if the file has changed at a time when it has not
}

func (s step) String() string {
	return fmt.Sprintf("%v %s/%s to %s/%s, offset %d, %d bytes, how %d, mode %o, truncate %v", s.p, s.dir, s.name, s.toDir,
		s.toName, s.off, len(s.data), s.how, s.mode, s.truncate)
}

// walk returns the handle of a path with at most two names.
func (o *opinion) walk(path ...string) ([]byte, nfs.NFSStatus) {
	h := o.root
	for _, name := range path {
		if name == "" {
			continue
		}
		status, res := o.c.NFS(nfs.NFSProcedureLookup, nfstest.Words(nil).Opaque(h).Text(name))
		if status != nfs.NFSStatusOk {
			return nil, status
		}
		h = res.Handle()
	}
	return h, nfs.NFSStatusOk
}

func attrs(a nfs.FileAttribute) string {
	size := a.Filesize
	if a.Type != nfs.FileTypeRegular {
		size = 0 // folders and links may say any size
	}
	return fmt.Sprint(a.Type, a.FileMode&0o777, a.Nlink, a.UID, a.GID, size, a.Fileid, a.Mtime.Seconds > 0)
}

// do runs a step and returns the answer.
func (o *opinion) do(s step) answer {
	dir, status := o.walk(s.dir)
	if status != nfs.NFSStatusOk {
		return answer{status, "no folder", ""}
	}
	in := nfstest.Words(nil).Opaque(dir).Text(s.name)
	none := words(0, 0, 0, 0, 0, 0)
	switch s.p {
	case nfs.NFSProcedureCreate:
		if s.how == 2 {
			status, _ = o.c.NFS(s.p, in.U32(2).Raw([]byte("verifier")))
			return answer{status, "", ""}
		}
		status, _ = o.c.NFS(s.p, in.U32(s.how, 1, s.mode, 0, 0, 1).U64(0).U32(0, 0))
		return answer{status, "", ""}
	case nfs.NFSProcedureMkDir:
		status, _ = o.c.NFS(s.p, in.U32(1, s.mode, 0, 0, 0, 0, 0))
		return answer{status, "", ""}
	case nfs.NFSProcedureSymlink:
		status, _ = o.c.NFS(s.p, in.Raw(none).Text(fmt.Sprintf("%x", s.off)))
		return answer{status, "", ""}
	case nfs.NFSProcedureMkNod:
		status, _ = o.c.NFS(s.p, in.U32(7).Raw(none))
		return answer{status, "", ""}
	case nfs.NFSProcedureRemove, nfs.NFSProcedureRmDir:
		status, _ = o.c.NFS(s.p, in)
		return answer{status, "", ""}
	case nfs.NFSProcedureRename:
		to, status := o.walk(s.toDir)
		if status != nfs.NFSStatusOk {
			return answer{status, "no target folder", ""}
		}
		status, _ = o.c.NFS(s.p, in.Opaque(to).Text(s.toName))
		return answer{status, "", ""}
	case nfs.NFSProcedureReadDir, nfs.NFSProcedureReadDirPlus:
		return o.list(s.p, dir)
	case nfs.NFSProcedureLookup:
		status, res := o.c.NFS(s.p, in)
		if status != nfs.NFSStatusOk {
			return answer{status, "", ""}
		}
		res.Handle()
		return answer{status, attrs(*res.PostOp()) + attrs(*res.PostOp()), ""}
	case nfs.NFSProcedureFSStat, nfs.NFSProcedureFSInfo, nfs.NFSProcedurePathConf:
		return o.about(s.p, dir)
	}
	h, status := o.walk(s.dir, s.name)
	if status != nfs.NFSStatusOk {
		return answer{status, "no node", ""}
	}
	return o.doNode(s, h)
}

// about asks for what is known of a file system.
func (o *opinion) about(p nfs.NFSProcedure, dir []byte) answer {
	status, res := o.c.NFS(p, nfstest.Words(nil).Opaque(dir))
	if status != nfs.NFSStatusOk {
		return answer{status, "", ""}
	}
	text := attrs(*res.PostOp())
	if p == nfs.NFSProcedureFSStat {
		text += fmt.Sprint(res.U64(), res.U64(), res.U64(), res.U64(), res.U64(), res.U64())
	}
	return answer{status, text, fmt.Sprintf("%x", res.Raw(res.Len()))}
}

// doNode runs a step on an existing node.
func (o *opinion) doNode(s step, h []byte) answer {
	on := nfstest.Words(nil).Opaque(h)
	switch s.p {
	case nfs.NFSProcedureGetAttr:
		status, res := o.c.NFS(s.p, on)
		return answer{status, attrs(res.Attr()), ""}
	case nfs.NFSProcedureAccess:
		status, res := o.c.NFS(s.p, on.U32(0x3f))
		a := attrs(*res.PostOp())
		return answer{status, a, fmt.Sprintf("%v %x", a[:4], res.U32())}
	case nfs.NFSProcedureCommit:
		status, res := o.c.NFS(s.p, on.U64(0).U32(0))
		if status != nfs.NFSStatusOk {
			return answer{status, "", ""}
		}
		a := attrs(*res.Wcc())
		res.U64()
		return answer{status, a, ""}
	case nfs.NFSProcedureLink:
		to, status := o.walk(s.toDir)
		if status != nfs.NFSStatusOk {
			return answer{status, "no target folder", ""}
		}
		status, _ = o.c.NFS(s.p, on.Opaque(to).Text(s.toName))
		return answer{status, "", ""}
	case nfs.NFSProcedureSetAttr:
		return o.setAttr(s, on)
	case nfs.NFSProcedureReadlink:
		status, res := o.c.NFS(s.p, on)
		if status != nfs.NFSStatusOk {
			return answer{status, "", ""}
		}
		res.PostOp()
		return answer{status, res.Text(), ""}
	case nfs.NFSProcedureRead:
		status, res := o.c.NFS(s.p, on.U64(s.off).U32(5000))
		if status != nfs.NFSStatusOk {
			return answer{status, "", ""}
		}
		res.PostOp()
		return answer{status, fmt.Sprint(res.U32(), res.U32(), res.Text()), ""}
	case nfs.NFSProcedureWrite:
		status, _ := o.c.NFS(s.p, on.U64(s.off).U32(uint32(len(s.data)), 2).Text(s.data))
		return answer{status, "", ""}
	}
	panic("a procedure that no step has: " + s.p.String())
}

// setAttr sets the mode or the size of a node, whose handle begins the arguments.
func (o *opinion) setAttr(s step, on nfstest.Words) answer {
	if s.truncate {
		on = on.U32(0, 0, 0, 1).U64(s.off).U32(0, 0)
	} else {
		on = on.U32(1, s.mode, 0, 0, 0, 0, 0)
	}
	if s.guard {
		on = on.U32(1, 4711, 0)
	} else {
		on = on.U32(0)
	}
	o.c.Send(nfstest.NFS, 3, uint32(s.p), on)
	res := o.c.Receive()
	if res.Stat != 0 { // go-nfs answers some failures in the RPC layer
		return answer{nfs.NFSStatusServerFault, "", ""}
	}
	return answer{nfs.NFSStatus(res.U32()), "", ""}
}

// list returns the names in a folder with their attributes, sorted: the order is a server's own affair.
func (o *opinion) list(p nfs.NFSProcedure, dir []byte) answer {
	plus := p == nfs.NFSProcedureReadDirPlus
	args := nfstest.Words(nil).Opaque(dir).U64(0, 0).U32(65536)
	if plus {
		args = args.U32(65536)
	}
	status, res := o.c.NFS(p, args)
	if status != nfs.NFSStatusOk {
		return answer{status, "", ""}
	}
	res.PostOp()
	res.U64()
	var out []string
	for res.U32() == 1 {
		id, name := res.U64(), res.Text()
		res.U64()
		line := fmt.Sprint(name, id)
		if plus {
			a := res.PostOp()
			if res.U32() == 1 {
				res.Handle()
			}
			if a != nil {
				line += attrs(*a)
			}
		}
		if name != "." && name != ".." {
			out = append(out, line)
		}
	}
	if res.U32() != 1 {
		out = append(out, "and more")
	}
	slices.Sort(out)
	return answer{status, strings.Join(out, "\n"), ""}
}

// known lists where go-nfs answers with another status than we do, or in its own words, and why we do not follow it.
var known = map[string]string{
	"Rmdir NotEmpty IO":                  "go-nfs knows no NOTEMPTY",
	"Rename NotEmpty IO":                 "nor here",
	"Rename IsDir IO":                    "go-nfs makes an I/O error of every refusal",
	"Rename NotDir IO":                   "the same",
	"Rename Inval IO":                    "the same: a folder into itself",
	"Write IsDir Inval":                  "RFC 1813 allows both; ISDIR says why",
	"Read IsDir Access":                  "go-nfs calls every failed open an access error",
	"Read Inval Access":                  "the same: a link",
	"Create IsDir Exist":                 "RFC 1813 allows both",
	"Create Exist Access":                "go-nfs calls every failed create an access error",
	"Mkdir Exist Access":                 "the same",
	"SetAttr IsDir ServerFault":          "go-nfs answers SYSTEM_ERR to a folder's size",
	"SetAttr Inval NotSupp":              "the size of a link: both say no",
	"Create Exist NotSupp":               "go-nfs has no exclusive creation",
	"Create NotDir NotSupp":              "the same",
	"Commit IsDir OK":                    "go-nfs's COMMIT does nothing, for whatever it is given",
	"Commit Inval OK":                    "the same: a link",
	"Link Exist Inval":                   "go-nfs reads the arguments of SYMLINK",
	"Link IsDir Inval":                   "the same",
	"Link NotDir Inval":                  "the same",
	"Mknod NotSupp Access":               "RFC 1813 names NOTSUPP",
	"Mknod NotDir Access":                "go-nfs looks at nothing first",
	"Access Dire 1f / Dire 3f":           "go-nfs grants what is asked for: a folder is looked into, not executed",
	"Access Regu 2d / Regu 3f":           "the same: nothing can be looked up in a file, or deleted from it",
	"Access Regu d / Regu 3f":            "the same, and without the mode for it a file is not executed",
	"Access Symb 1 / Symb 3f":            "the same",
	"FSStat 00000000 / 0000000000000000": "go-nfs writes 8 bytes where invarsec has 4",
	"FSInfo 001000000010000000001000001000000010000000001000000100007fffffffffffffff000000000000000100000019 / " +
		"40000000400000000000100040000000400000000000100000002000400000000000000000000000000000010000001b": "transfers " +
		"of 1 GiB, 8 KiB of listing, its own largest file; we do not announce symbolic links, which static trees lack",
	"PathConf 00007d00000000ff00000001000000010000000000000001 / 00000001000000ff00000001000000000000000000000001": "" +
		"go-nfs has no links, and lets anybody give files away",
}

// skip keeps the trees equal: go-nfs does here what RFC 1813 forbids, which only we refuse.
func skip(o *opinion, s step) string {
	n := find(o.tree, s.dir, s.name)
	_, isDir := n.(fs.Dir)
	_, isFile := n.(fs.File)
	_, inDir := find(o.tree, s.dir).(fs.Dir)
	_, toDir := find(o.tree, s.toDir).(fs.Dir)
	switch {
	case s.p == nfs.NFSProcedureCreate && s.how == 2 && n == nil && inDir:
		return "go-nfs has no exclusive creation"
	case s.p == nfs.NFSProcedureCreate && s.how == 0 && isFile && modeOf(n) != s.mode:
		return "go-nfs's unchecked CREATE changes the mode of a file that is there"
	case s.p == nfs.NFSProcedureLink && n != nil && !isDir && toDir && find(o.tree, s.toDir, s.toName) == nil:
		return "go-nfs makes no hard links"
	case n != nil && s.p == nfs.NFSProcedureRmDir && !isDir:
		return "go-nfs's RMDIR removes files"
	case n != nil && s.p == nfs.NFSProcedureRemove && isDir:
		return "go-nfs's REMOVE removes folders"
	}
	return ""
}

func modeOf(n fs.Node) uint32 {
	a, _ := n.Attr(context.Background())
	return a.Perm
}

func find(tree fs.Tree, path ...string) fs.Node {
	var n fs.Node = tree.Root()
	for _, name := range path {
		if name == "" {
			continue
		}
		d, ok := n.(fs.Dir)
		if !ok {
			return nil
		}
		var err error
		if n, err = d.Lookup(context.Background(), name); err != nil {
			return nil
		}
	}
	return n
}

func randomStep(r *rand.Rand) step {
	name := func() string { return string(rune('a' + r.IntN(5))) }
	dir := func() string { return []string{"", "", "a", "b"}[r.IntN(4)] }
	procedures := []nfs.NFSProcedure{nfs.NFSProcedureCreate, nfs.NFSProcedureCreate, nfs.NFSProcedureMkDir,
		nfs.NFSProcedureSymlink, nfs.NFSProcedureRemove, nfs.NFSProcedureRmDir, nfs.NFSProcedureRename,
		nfs.NFSProcedureRename, nfs.NFSProcedureReadDirPlus, nfs.NFSProcedureGetAttr, nfs.NFSProcedureSetAttr,
		nfs.NFSProcedureReadlink, nfs.NFSProcedureRead, nfs.NFSProcedureRead, nfs.NFSProcedureWrite, nfs.NFSProcedureWrite,
		nfs.NFSProcedureLookup, nfs.NFSProcedureAccess, nfs.NFSProcedureCommit, nfs.NFSProcedureLink, nfs.NFSProcedureMkNod,
		nfs.NFSProcedureReadDir, nfs.NFSProcedureFSStat, nfs.NFSProcedureFSInfo, nfs.NFSProcedurePathConf}
	return step{p: procedures[r.IntN(len(procedures))], dir: dir(), name: name(), toDir: dir(), toName: name(),
		off: r.Uint64N(10000), data: string(pattern(1+r.IntN(6000), byte(r.Uint32()))), how: r.Uint32N(3),
		mode: 0o600 | r.Uint32N(8)<<3, truncate: r.IntN(2) == 0, guard: r.IntN(3) == 0}
}

// TestSecondOpinion runs one log of operations against our server and go-nfs's, each over a tree of its own. Both must
// answer the same, but for what known and skip list; and the trees must be the same at the end.
func TestSecondOpinion(t *testing.T) {
	const seed = 11
	r := rand.New(rand.NewPCG(seed, 0))
	a, b := fstest.NewMemory(fstest.MemoryOptions{}), fstest.NewMemory(fstest.MemoryOptions{})
	ours := &opinion{c: nfstest.Dial(t, start(t, nfsd.Options{}, a).addr), tree: a}
	theirs := &opinion{c: nfstest.Dial(t, oracleServer(t, b)), tree: b}
	_, ours.root = ours.c.MNT("/a")
	_, theirs.root = theirs.c.MNT("/")
	used := map[string]int{}
	asked := map[nfs.NFSProcedure]bool{nfs.NFSProcedureNull: true}
	for i := range 4500 {
		s := randomStep(r)
		asked[s.p] = true
		if why := skip(ours, s); why != "" {
			used[why]++
			continue
		}
		got, want := ours.do(s), theirs.do(s)
		if got == want {
			continue
		}
		key := fmt.Sprintf("%v %v %v", s.p, short(got.status), short(want.status))
		if got.status == want.status && got.text == want.text {
			key = fmt.Sprintf("%v %s / %s", s.p, got.own, want.own)
		}
		if known[key] == "" || got.status == want.status && got.text != want.text {
			t.Fatalf("seed %d, step %d: %s\nours:   %s %q\ntheirs: %s %q\n%q", seed, i, s, short(got.status), got.text,
				short(want.status), want.text, key)
		}
		used[key]++
	}
	if x, y := ours.do(step{p: nfs.NFSProcedureReadDirPlus}), theirs.do(step{p: nfs.NFSProcedureReadDirPlus}); x != y {
		t.Errorf("the trees differ:\n%s\n%s", x.text, y.text)
	}
	for p := range nfs.NFSProcedureCommit + 1 {
		if !asked[p] {
			t.Errorf("%v was never compared", p)
		}
	}
	for key, why := range known {
		if used[key] == 0 {
			t.Errorf("%s (%s) was never met: the list is longer than the truth", key, why)
		}
	}
}

// short names a status without blanks.
func short(s nfs.NFSStatus) string {
	for name, v := range map[string]nfs.NFSStatus{"OK": nfs.NFSStatusOk, "NoEnt": nfs.NFSStatusNoEnt, "IO": nfs.NFSStatusIO,
		"Access": nfs.NFSStatusAccess, "Exist": nfs.NFSStatusExist, "NotDir": nfs.NFSStatusNotDir, "IsDir": nfs.NFSStatusIsDir,
		"Inval": nfs.NFSStatusInval, "NotEmpty": nfs.NFSStatusNotEmpty, "NotSupp": nfs.NFSStatusNotSupp, "Stale": nfs.NFSStatusStale,
		"NotSync": nfs.NFSStatusNotSync, "ROFS": nfs.NFSStatusROFS, "ServerFault": nfs.NFSStatusServerFault, "Perm": nfs.NFSStatusPerm} {
		if v == s {
			return name
		}
	}
	return fmt.Sprint(uint32(s))
}

// BenchmarkGoNFS is BenchmarkServer with go-nfs's server over the same file: the baseline.
func BenchmarkGoNFS(b *testing.B) {
	addr := oracleServer(b, benchTree())
	c := nfstest.Dial(b, addr)
	_, root := c.MNT("/")
	benchmarks(b, addr, c.Lookup(root, "file"))
}
