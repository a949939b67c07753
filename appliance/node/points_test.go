package node

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/fs"
)

// memory is a disk of some bytes.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) Extents(_ context.Context, visit func(chunkstore.Extent) error) error {
	return visit(chunkstore.Extent{Len: m.Size()})
}

func (m memory) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// newStore makes a store.
func newStore(t *testing.T) *chunkstore.Store {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	if _, err := chunkstore.Create(t.Context(), dir, []byte("x"), 1, chunkstore.Options{}); err != nil {
		t.Fatal(err)
	}
	s, err := chunkstore.Open(t.Context(), dir, chunkstore.Options{
		Unlock: chunkstore.WithPassphrase(func() ([]byte, error) { return []byte("x"), nil }),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// keep stores a point with disks of 64 KiB.
func keep(t *testing.T, s *chunkstore.Store, vm string, when time.Time, disks ...int) *chunkstore.Point {
	t.Helper()
	x := s.Begin(when, map[string]string{appliance.LabelVM: vm}, nil)
	defer x.Abort()
	for _, n := range disks {
		content := memory(strings.Repeat(fmt.Sprintf("%s %d %v\n", vm, n, when), 4096)[:64<<10])
		if err := x.Ingest(t.Context(), n, content, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	p, err := x.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// tree is a PointsTree whose clock stands still until the test moves it.
type tree struct {
	*PointsTree
	t   *testing.T
	now time.Time
}

func newTree(t *testing.T, r *chunkstore.Reader) *tree {
	x := &tree{PointsTree: NewPointsTree(r), t: t, now: noon}
	x.PointsTree.now = func() time.Time { return x.now }
	return x
}

func (x *tree) tick() { x.now = x.now.Add(2 * refreshAfter) }

// at walks to a path.
func (x *tree) at(path string) (fs.Node, error) {
	var n fs.Node = x.Root()
	for _, name := range strings.FieldsFunc(path, func(r rune) bool { return r == '/' }) {
		d, ok := n.(fs.Dir)
		if !ok {
			return nil, fs.StatusNotDir
		}
		var err error
		if n, err = d.Lookup(x.t.Context(), name); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// names lists a folder.
func (x *tree) names(path string) []string {
	x.t.Helper()
	n, err := x.at(path)
	if err != nil {
		x.t.Fatalf("%s: %v", path, err)
	}
	names := []string{}
	if err := n.(fs.Dir).List(x.t.Context(), 0, func(e fs.Entry) bool { names = append(names, e.Name); return true }); err != nil {
		x.t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func (x *tree) lists(path string, want ...string) {
	x.t.Helper()
	if got := x.names(path); !slices.Equal(got, append([]string{}, want...)) {
		x.t.Errorf("%s: %q, want %q", path, got, want)
	}
}

func TestPointsTree(t *testing.T) {
	s := newStore(t)
	x := newTree(t, s.Reader)
	x.lists("/", "points")
	x.lists("/points")
	for _, vm := range []string{"web", "a/b", "100%", ".", "..", "x@y", "ünïcode", "%2F"} {
		keep(t, s, vm, noon, 0, 3)
	}
	x.lists("/points") // the list is fresh enough
	x.tick()
	x.lists("/points", "%.", "%..", "%252F", "100%25", "a%2Fb", "web", "x@y", "ünïcode")
	x.lists("/points/a%2Fb", "2026-09-14T12-00-00Z")
	x.lists("/points/web/2026-09-14T12-00-00Z", "disk0.qcow2", "disk0.raw", "disk3.qcow2", "disk3.raw")
	n, err := x.at("/points/web/2026-09-14T12-00-00Z/disk3.raw")
	if err != nil {
		t.Fatal(err)
	}
	a, err := n.Attr(t.Context())
	if err != nil || a.Size != 64<<10 || a.Perm != 0o440 || !a.Mtime.Equal(noon) || a.Used <= 0 {
		t.Errorf("attributes %+v, %v", a, err)
	}
	buf := make([]byte, 16)
	if _, err := n.(fs.File).ReadAt(t.Context(), buf, 0); err != nil || !strings.HasPrefix(string(buf), "web 3 2026") {
		t.Errorf("read %q, %v", buf, err)
	}
	if _, err := x.at("/points/none"); err != fs.StatusNotFound {
		t.Errorf("a machine without points: %v", err)
	}
}

// TestPointsOfOneSecond gives each a name of its own, which stays when more come and go.
func TestPointsOfOneSecond(t *testing.T) {
	s := newStore(t)
	x := newTree(t, s.Reader)
	const plain = "2026-09-14T12-00-00Z"
	first := keep(t, s, "web", noon.Add(time.Millisecond), 0)
	second := keep(t, s, "web", noon.Add(2*time.Millisecond), 0)
	keep(t, s, "db", noon, 0)
	x.lists("/points/web", plain, plain+"-"+string(second.ID))
	n, err := x.at("/points/web/" + plain)
	if err != nil || n.ID() != fs.PathID("point/"+string(first.ID)) {
		t.Errorf("the plain name is %v, %v", n, err)
	}
}

// TestHandlesOutliveARebuild finds every node by its ID again, in the same tree made anew and in another process's.
func TestHandlesOutliveARebuild(t *testing.T) {
	s := newStore(t)
	gone := keep(t, s, "web", noon, 0)
	keep(t, s, "db", noon, 0)
	x := newTree(t, s.Reader)
	paths := []string{"/", "/points", "/points/web", "/points/db", "/points/db/2026-09-14T12-00-00Z", "/points/db/2026-09-14T12-00-00Z/disk0.raw",
		"/points/db/2026-09-14T12-00-00Z/disk0.qcow2", "/points/web/2026-09-14T12-00-00Z/disk0.raw"}
	ids := map[fs.ID]string{}
	for _, p := range paths {
		n, err := x.at(p)
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		if other, twice := ids[n.ID()]; twice {
			t.Errorf("%s and %s have one ID", p, other)
		}
		ids[n.ID()] = p
	}
	keep(t, s, "web", noon.Add(time.Hour), 0)
	x.tick()
	for _, tree := range []*tree{x, newTree(t, s.Reader)} {
		for id, p := range ids {
			if n, err := tree.Node(t.Context(), id); err != nil || n.ID() != id {
				t.Errorf("%s: %v, %v", p, n, err)
			}
		}
	}
	if err := s.RemovePoint(t.Context(), gone.ID); err != nil {
		t.Fatal(err)
	}
	x.tick()
	if _, err := x.Node(t.Context(), diskFileID(gone, 0, "raw")); err != fs.StatusStale {
		t.Errorf("a disk of a removed point: %v", err)
	}
	x.lists("/points/web", "2026-09-14T13-00-00Z")
}

// TestListingGoesOn lists in steps of one while points come: no name that was there is left out or told twice.
func TestListingGoesOn(t *testing.T) {
	s := newStore(t)
	x := newTree(t, s.Reader)
	for i := range 12 {
		keep(t, s, fmt.Sprint("vm", i), noon, 0)
	}
	seen := map[string]int{}
	var after uint64
	for i := 0; ; i++ {
		n, err := x.at("/points")
		if err != nil {
			t.Fatal(err)
		}
		more := false
		if err := n.(fs.Dir).List(t.Context(), after, func(e fs.Entry) bool {
			seen[e.Name]++
			after, more = e.Cookie, true
			return false
		}); err != nil {
			t.Fatal(err)
		}
		if !more {
			break
		}
		if i < 6 {
			keep(t, s, fmt.Sprint("new", i), noon, 0)
			x.tick()
		}
	}
	for i := range 12 {
		if n := seen[fmt.Sprint("vm", i)]; n != 1 {
			t.Errorf("vm%d was told %d times", i, n)
		}
	}
	for name, n := range seen {
		if n != 1 {
			t.Errorf("%s was told %d times", name, n)
		}
	}
}

func TestSpaceOfAStore(t *testing.T) {
	s := newStore(t)
	before, free, err := StoreSpace(s.Dir())
	if err != nil || free <= 0 {
		t.Fatalf("%d free, %v", free, err)
	}
	keep(t, s, "web", noon, 0)
	after, _, err := StoreSpace(s.Dir())
	if err != nil || after <= before {
		t.Errorf("%d bytes, then %d, %v", before, after, err)
	}
	if sp, err := newTree(t, s.Reader).Space(t.Context()); err != nil || sp.FreeBytes <= 0 || sp.TotalBytes < sp.FreeBytes {
		t.Errorf("%+v, %v", sp, err)
	}
	if _, _, err := StoreSpace("/nowhere"); err == nil {
		t.Error("a folder that is not there has space")
	}
}

func TestAttachedNetworks(t *testing.T) {
	has := func(addr, in string) bool {
		t.Helper()
		nets, err := attachedNetworks(netip.MustParseAddr(addr))
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(in)) })
	}
	for _, addr := range []string{"127.0.0.1", "::1", "0.0.0.0", "::", "192.0.2.1"} {
		if !has(addr, "127.0.0.1") || !has(addr, "::1") {
			t.Errorf("%s: this machine may not come", addr)
		}
		if has(addr, "198.51.100.7") {
			t.Errorf("%s: a stranger may come", addr)
		}
	}
	nets, err := attachedNetworks(netip.MustParseAddr("127.0.0.1"))
	if err != nil || len(nets) != 2 {
		t.Errorf("loopback: %v, %v", nets, err)
	}
}
