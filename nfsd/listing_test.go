package nfsd_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	nfs "github.com/willscott/go-nfs"
	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/folder"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
)

// walkListing reads a folder to its end, page by page and calling between after each, and returns how often each name came.
func walkListing(t *testing.T, c *nfstest.Conn, dir []byte, plus bool, r *rand.Rand, between func()) map[string]int {
	t.Helper()
	seen, cookies := map[string]int{}, map[uint64]bool{}
	for cookie, eof := uint64(0), uint32(0); eof == 0; {
		count := 512 + r.Uint32N(40_000)
		p, args := nfs.NFSProcedureReadDir, nfstest.Words(nil).Opaque(dir).U64(cookie, 0).U32(count)
		if plus {
			p, args = nfs.NFSProcedureReadDirPlus, args.U32(count)
		}
		res := c.MustNFS(p, args)
		if res.Len() > int(count) { // the status before does not count
			t.Fatalf("%d bytes where %d are allowed", res.Len(), count)
		}
		res.PostOp()
		if v := res.U64(); v != 0 {
			t.Fatalf("cookie verifier %x", v)
		}
		for res.U32() == 1 {
			id, name := res.U64(), res.Text()
			last := cookie
			if cookie = res.U64(); cookie <= last || cookies[cookie] {
				t.Fatalf("cookie %d of %q after %d", cookie, name, last)
			}
			cookies[cookie] = true
			seen[name]++
			if plus {
				if a := res.PostOp(); a != nil && a.Fileid != id {
					t.Fatalf("%q has two numbers", name)
				}
				if res.U32() == 1 {
					res.Handle()
				}
			}
		}
		eof = res.U32()
		res.End()
		between()
	}
	return seen
}

// TestListingsOf10000NamesWhileNamesComeAndGo: what is there all the time is listed once by each READDIR and READDIRPLUS
// that goes through the folder, whatever else comes, goes and moves meanwhile.
func TestListingsOf10000NamesWhileNamesComeAndGo(t *testing.T) {
	tree, names := manyNames(t)
	s := start(t, nfsd.Options{}, tree)
	defer s.end(t)
	c, top := mountedDir(t, s)
	dir := c.Lookup(top, "dir")
	node, err := tree.Root().Lookup(t.Context(), "dir")
	if err != nil {
		t.Fatal(err)
	}
	d := node.(interface {
		fs.Dir
		fs.Maker
		fs.Remover
	})
	var wg sync.WaitGroup
	for k := range 4 {
		conn := nfstest.Dial(t, s.addr)
		wg.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(k)))
			n := 0
			seen := walkListing(t, conn, dir, k%2 == 0, r, func() {
				for range 20 { // failures are as good as changes: the names of the others are taken, or gone
					goes, name := names[r.IntN(2000)*5], fmt.Sprintf("new-%d-%d", k, n%300)
					n++
					_ = d.Remove(t.Context(), goes)
					_, _ = d.Create(t.Context(), name, fs.CreateUnchecked, fs.SetAttr{}, [8]byte{})
					_ = d.Rename(t.Context(), fmt.Sprintf("new-%d-%d", k, r.IntN(n)), d, goes)
				}
			})
			for i, name := range names {
				if i%5 != 0 && seen[name] != 1 {
					t.Errorf("%s was listed %d times", name, seen[name])
					return
				}
			}
			if seen["."] != 1 || seen[".."] != 1 {
				t.Error(`"." or ".." are missing`)
			}
		})
	}
	wg.Wait()
}

// manyNames returns a folder with the folder "dir" in it, and the names that lie there: every fifth will go.
func manyNames(t *testing.T) (*folder.Tree, []string) {
	t.Helper()
	var names []string
	for i := range 10_000 {
		kind := "stays"
		if i%5 == 0 {
			kind = "goes"
		}
		names = append(names, fmt.Sprintf("%s-%d%s", kind, i, strings.Repeat("x", i%90)))
	}
	root := filepath.Join(quickDir(t), "domain")
	if err := os.MkdirAll(filepath.Join(root, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(root, "dir", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := folder.Open(root, folder.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tree.Close() })
	return tree, names
}

// quickDir returns a folder in memory if there is one with extended attributes: this is not about syncs.
func quickDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "holdfast")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if unix.Setxattr(dir, "user.holdfast.test", []byte("x"), 0) != nil {
		return t.TempDir()
	}
	return dir
}

// mountedDir returns a connection and the root of /a.
func mountedDir(t *testing.T, s *running) (*nfstest.Conn, []byte) {
	t.Helper()
	c := nfstest.Dial(t, s.addr)
	status, root := c.MNT("/a")
	if status != nfs.MountStatusOk {
		t.Fatalf("MNT: %d", status)
	}
	return c, root
}
