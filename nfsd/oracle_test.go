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

// answer is what is compared: a status and a text of everything else that both servers must agree on.
type answer struct {
	status nfs.NFSStatus
	text   string
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
		return answer{status, "no folder"}
	}
	in := nfstest.Words(nil).Opaque(dir).Text(s.name)
	none := words(0, 0, 0, 0, 0, 0)
	switch s.p {
	case nfs.NFSProcedureCreate:
		status, _ = o.c.NFS(s.p, in.U32(s.how, 1, s.mode, 0, 0, 1).U64(0).U32(0, 0))
		return answer{status, ""}
	case nfs.NFSProcedureMkDir:
		status, _ = o.c.NFS(s.p, in.U32(1, s.mode, 0, 0, 0, 0, 0))
		return answer{status, ""}
	case nfs.NFSProcedureSymlink:
		status, _ = o.c.NFS(s.p, in.Raw(none).Text(fmt.Sprintf("%x", s.off)))
		return answer{status, ""}
	case nfs.NFSProcedureRemove, nfs.NFSProcedureRmDir:
		status, _ = o.c.NFS(s.p, in)
		return answer{status, ""}
	case nfs.NFSProcedureRename:
		to, status := o.walk(s.toDir)
		if status != nfs.NFSStatusOk {
			return answer{status, "no target folder"}
		}
		status, _ = o.c.NFS(s.p, in.Opaque(to).Text(s.toName))
		return answer{status, ""}
	case nfs.NFSProcedureReadDirPlus:
		return o.list(dir)
	}
	h, status := o.walk(s.dir, s.name)
	if status != nfs.NFSStatusOk {
		return answer{status, "no node"}
	}
	return o.doNode(s, h)
}

// doNode runs a step on an existing node.
func (o *opinion) doNode(s step, h []byte) answer {
	on := nfstest.Words(nil).Opaque(h)
	switch s.p {
	case nfs.NFSProcedureGetAttr:
		status, res := o.c.NFS(s.p, on)
		return answer{status, attrs(res.Attr())}
	case nfs.NFSProcedureSetAttr:
		if s.truncate {
			on = on.U32(0, 0, 0, 1).U64(s.off).U32(0, 0, 0)
		} else {
			on = on.U32(1, s.mode, 0, 0, 0, 0, 0, 0)
		}
		o.c.Send(nfstest.NFS, 3, uint32(s.p), on)
		res := o.c.Receive()
		if res.Stat != 0 { // go-nfs answers some failures in the RPC layer
			return answer{nfs.NFSStatusServerFault, ""}
		}
		return answer{nfs.NFSStatus(res.U32()), ""}
	case nfs.NFSProcedureReadlink:
		status, res := o.c.NFS(s.p, on)
		if status != nfs.NFSStatusOk {
			return answer{status, ""}
		}
		res.PostOp()
		return answer{status, res.Text()}
	case nfs.NFSProcedureRead:
		status, res := o.c.NFS(s.p, on.U64(s.off).U32(5000))
		if status != nfs.NFSStatusOk {
			return answer{status, ""}
		}
		res.PostOp()
		return answer{status, fmt.Sprint(res.U32(), res.U32(), res.Text())}
	case nfs.NFSProcedureWrite:
		status, _ := o.c.NFS(s.p, on.U64(s.off).U32(uint32(len(s.data)), 2).Text(s.data))
		return answer{status, ""}
	}
	panic("a procedure that no step has: " + s.p.String())
}

// list returns the names in a folder with their attributes, sorted: the order is a server's own affair.
func (o *opinion) list(dir []byte) answer {
	status, res := o.c.NFS(nfs.NFSProcedureReadDirPlus, nfstest.Words(nil).Opaque(dir).U64(0, 0).U32(65536, 65536))
	if status != nfs.NFSStatusOk {
		return answer{status, ""}
	}
	res.PostOp()
	res.U64()
	var out []string
	for res.U32() == 1 {
		id, name := res.U64(), res.Text()
		res.U64()
		a := res.PostOp()
		if res.U32() == 1 {
			res.Handle()
		}
		if name != "." && name != ".." {
			out = append(out, fmt.Sprint(name, id, attrs(*a)))
		}
	}
	if res.U32() != 1 {
		out = append(out, "and more")
	}
	slices.Sort(out)
	return answer{status, strings.Join(out, "\n")}
}

// known lists where go-nfs answers with another status than we do, and why we do not follow it.
var known = map[string]string{
	"Rmdir NotEmpty IO":         "go-nfs knows no NOTEMPTY",
	"Rename NotEmpty IO":        "nor here",
	"Rename IsDir IO":           "go-nfs makes an I/O error of every refusal",
	"Rename NotDir IO":          "the same",
	"Rename Inval IO":           "the same: a folder into itself",
	"Write IsDir Inval":         "RFC 1813 allows both; ISDIR says why",
	"Read IsDir Access":         "go-nfs calls every failed open an access error",
	"Read Inval Access":         "the same: a link",
	"Create IsDir Exist":        "RFC 1813 allows both",
	"Create Exist Access":       "go-nfs calls every failed create an access error",
	"Mkdir Exist Access":        "the same",
	"SetAttr IsDir ServerFault": "go-nfs answers SYSTEM_ERR to a folder's size",
	"SetAttr Inval NotSupp":     "the size of a link: both say no",
}

// skip keeps the trees equal: go-nfs does here what RFC 1813 forbids, which only we refuse.
func skip(o *opinion, s step) string {
	if s.p != nfs.NFSProcedureRmDir && s.p != nfs.NFSProcedureRemove {
		return ""
	}
	n := find(o.tree, s.dir, s.name)
	_, isDir := n.(fs.Dir)
	switch {
	case n != nil && s.p == nfs.NFSProcedureRmDir && !isDir:
		return "go-nfs's RMDIR removes files"
	case n != nil && s.p == nfs.NFSProcedureRemove && isDir:
		return "go-nfs's REMOVE removes folders"
	}
	return ""
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
		nfs.NFSProcedureReadlink, nfs.NFSProcedureRead, nfs.NFSProcedureRead, nfs.NFSProcedureWrite, nfs.NFSProcedureWrite}
	return step{p: procedures[r.IntN(len(procedures))], dir: dir(), name: name(), toDir: dir(), toName: name(),
		off: r.Uint64N(10000), data: string(pattern(1+r.IntN(6000), byte(r.Uint32()))), how: r.Uint32N(2),
		mode: 0o600 | r.Uint32N(8)<<3, truncate: r.IntN(2) == 0}
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
	for i := range 4000 {
		s := randomStep(r)
		if why := skip(ours, s); why != "" {
			used[why]++
			continue
		}
		got, want := ours.do(s), theirs.do(s)
		if got == want {
			continue
		}
		key := fmt.Sprintf("%v %v %v", s.p, short(got.status), short(want.status))
		if known[key] == "" || got.status == want.status {
			t.Fatalf("seed %d, step %d: %s\nours:   %s %q\ntheirs: %s %q", seed, i, s, short(got.status), got.text,
				short(want.status), want.text)
		}
		used[key]++
	}
	if x, y := ours.do(step{p: nfs.NFSProcedureReadDirPlus}), theirs.do(step{p: nfs.NFSProcedureReadDirPlus}); x != y {
		t.Errorf("the trees differ:\n%s\n%s", x.text, y.text)
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
		"ROFS": nfs.NFSStatusROFS, "ServerFault": nfs.NFSStatusServerFault, "Perm": nfs.NFSStatusPerm} {
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
