// Package storetest holds the conformance suites of the chunk store's interfaces. A new backend is tested in three
// lines: a test that calls TestBackend with a function that makes an empty one.
//
// The suite uses only the interface, and Resumer, Replacer and Reclaimer where the backend has them. It knows nothing of power
// cuts: those are the business of a backend's own tests, for each has its own way to lose what was not synced.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// TestBackend holds a backend to everything package backend promises. empty makes a backend without objects and is
// called for each part anew.
func TestBackend(t *testing.T, empty func(t *testing.T) backend.Backend) {
	for _, part := range []struct {
		name string
		test func(t *testing.T, s *subject)
	}{
		{"Put", testPut}, {"Append", testAppend}, {"Unsealed", testUnsealed}, {"Closed", testClosed},
		{"NeverOverwritten", testNeverOverwritten}, {"NotFound", testNotFound}, {"Names", testNames}, {"List", testList},
		{"Remove", testRemove}, {"ReadAt", testReadAt}, {"OpenOutlivesSeal", testOpenOutlivesSeal},
		{"Concurrent", testConcurrent}, {"Canceled", testCanceled}, {"Resume", testResume}, {"Replace", testReplace},
		{"Reclaim", testReclaim},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, &subject{t, empty(t)}) })
	}
}

// subject is the backend under test, with calls that have to succeed.
type subject struct {
	t *testing.T
	backend.Backend
}

func (s *subject) put(name string, data []byte) {
	s.t.Helper()
	if err := s.Put(s.t.Context(), name, data); err != nil {
		s.t.Fatalf("Put %s: %v", name, err)
	}
}

func (s *subject) begin(name string, parts ...string) backend.Appender {
	s.t.Helper()
	a, err := s.Append(s.t.Context(), name)
	if err != nil {
		s.t.Fatalf("Append %s: %v", name, err)
	}
	s.write(a, parts...)
	return a
}

func (s *subject) write(a backend.Appender, parts ...string) {
	s.t.Helper()
	for _, p := range parts {
		if n, err := io.WriteString(a, p); n != len(p) || err != nil {
			s.t.Fatalf("Write of %d: %d, %v", len(p), n, err)
		}
	}
}

func (s *subject) ok(what string, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
}

// want checks that err is an *errs.Error of a kind.
func (s *subject) want(what string, err error, k errs.Kind) {
	s.t.Helper()
	var e *errs.Error
	if !errs.Is(err, k) || !errors.As(err, &e) {
		s.t.Errorf("%s: %v, want an *errs.Error of kind %q", what, err, k)
	}
}

// holds checks the content of an object.
func (s *subject) holds(name, want string) {
	s.t.Helper()
	o, err := s.Open(s.t.Context(), name)
	if err != nil {
		s.t.Errorf("Open %s: %v", name, err)
		return
	}
	got, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
	if err != nil || string(got) != want {
		s.t.Errorf("%s holds %d bytes, want %d; %v", name, len(got), len(want), err)
	}
	s.ok("Close", o.Close())
}

// lists checks what List returns: "name size" for a sealed object, "name size open" for another.
func (s *subject) lists(prefix string, want ...string) {
	s.t.Helper()
	got, err := s.List(s.t.Context(), prefix)
	var lines []string
	for _, i := range got {
		line := fmt.Sprint(i.Name, " ", i.Size)
		if !i.Sealed {
			line += " open"
		}
		lines = append(lines, line)
	}
	if err != nil || !slices.Equal(lines, want) {
		s.t.Errorf("List %q:\n got %q, %v\nwant %q", prefix, lines, err, want)
	}
}

func testPut(t *testing.T, s *subject) {
	s.put("one", []byte("content"))
	s.put("a/b/c/two", nil)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	s.put("a/big", big)
	s.holds("one", "content")
	s.holds("a/b/c/two", "")
	s.holds("a/big", string(big))
	s.lists("", "a/b/c/two 0", "a/big 1048576", "one 7")
}

func testAppend(t *testing.T, s *subject) {
	a := s.begin("packs/p1", "one, ", "", "two, ")
	s.ok("Sync", a.Sync())
	s.write(a, "three")
	s.ok("Seal", a.Seal())
	s.ok("Close after Seal", a.Close())
	s.ok("Close again", a.Close())
	s.holds("packs/p1", "one, two, three")
	s.lists("", "packs/p1 15")
	if _, err := a.Write([]byte("x")); err == nil {
		t.Error("Write after Seal succeeds")
	}
	if a.Sync() == nil || a.Seal() == nil {
		t.Error("Sync or Seal after Seal succeeds")
	}
	s.holds("packs/p1", "one, two, three")
	s.ok("Seal of nothing", s.begin("empty").Seal())
	s.holds("empty", "")
}

// testUnsealed: what was synced can be seen and read while the writer still writes.
func testUnsealed(t *testing.T, s *subject) {
	a := s.begin("p", "synced")
	s.ok("Sync", a.Sync())
	s.lists("p", "p 6 open")
	s.holds("p", "synced")
	s.write(a, ", more")
	s.ok("Seal", a.Seal())
	s.lists("p", "p 12")
	s.holds("p", "synced, more")
}

// testClosed: an object that was given up stays for recovery.
func testClosed(t *testing.T, s *subject) {
	a := s.begin("p", "synced")
	s.ok("Sync", a.Sync())
	s.ok("Close", a.Close())
	s.ok("Close again", a.Close())
	if _, err := a.Write([]byte("x")); err == nil {
		t.Error("Write after Close succeeds")
	}
	if a.Sync() == nil || a.Seal() == nil {
		t.Error("Sync or Seal after Close succeeds")
	}
	s.lists("", "p 6 open")
	s.holds("p", "synced")
	s.ok("Remove", s.Backend.Remove(t.Context(), "p"))
	s.lists("")
}

func testNeverOverwritten(t *testing.T, s *subject) {
	ctx := t.Context()
	s.put("small", []byte("first"))
	s.ok("Seal", s.begin("long", "first").Seal())
	a := s.begin("open", "first")
	for _, name := range []string{"small", "long", "open"} {
		s.want("Put "+name, s.Put(ctx, name, []byte("second")), errs.Exists)
		_, err := s.Append(ctx, name)
		s.want("Append "+name, err, errs.Exists)
	}
	s.ok("Seal", a.Seal())
	for _, name := range []string{"small", "long", "open"} {
		s.holds(name, "first")
	}
}

func testNotFound(t *testing.T, s *subject) {
	s.put("folder/object", nil)
	for _, name := range []string{"nothing", "folder", "folder/nothing", "no/folder", "folder/object/below"} {
		_, err := s.Open(t.Context(), name)
		s.want("Open "+name, err, errs.NotFound)
		s.want("Remove "+name, s.Remove(t.Context(), name), errs.NotFound)
	}
	s.lists("", "folder/object 0")
}

func testNames(t *testing.T, s *subject) {
	long := strings.Repeat("long/", 39) + "12345"
	for _, name := range []string{"a", "0", "a.b", "a-b_c.d", "x/0/-/_", long} {
		s.put(name, []byte(name))
		s.holds(name, name)
	}
	for _, name := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "A", "ä", "a b", "a\x00", "a\\b", "a\n", long + "6"} {
		s.want(fmt.Sprintf("Put %q", name), s.Put(t.Context(), name, nil), errs.Invalid)
		_, err := s.Append(t.Context(), name)
		s.want(fmt.Sprintf("Append %q", name), err, errs.Invalid)
		_, err = s.Open(t.Context(), name)
		s.want(fmt.Sprintf("Open %q", name), err, errs.Invalid)
		s.want(fmt.Sprintf("Remove %q", name), s.Remove(t.Context(), name), errs.Invalid)
	}
}

func testList(t *testing.T, s *subject) {
	s.lists("")
	s.lists("no/such/")
	for _, name := range []string{"packs/00/b", "packs/00/a", "packs/01/c", "packs.old", "points/vm/1", "packs/00x", "p"} {
		s.put(name, []byte(name))
	}
	a := s.begin("packs/00/open", "12")
	defer a.Close()
	s.ok("Sync", a.Sync())
	s.lists("packs/00/", "packs/00/a 10", "packs/00/b 10", "packs/00/open 2 open")
	s.lists("packs/00", "packs/00/a 10", "packs/00/b 10", "packs/00/open 2 open", "packs/00x 9")
	s.lists("packs/0", "packs/00/a 10", "packs/00/b 10", "packs/00/open 2 open", "packs/00x 9", "packs/01/c 10")
	s.lists("packs/00/a", "packs/00/a 10")
	s.lists("packs/00/o", "packs/00/open 2 open")
	s.lists("packs/00/open", "packs/00/open 2 open")
	s.lists("packs/00/a/")
	s.lists("packs/00/openx")
	s.lists("po", "points/vm/1 11")
	s.lists("", "p 1", "packs.old 9", "packs/00/a 10", "packs/00/b 10", "packs/00/open 2 open", "packs/00x 9", "packs/01/c 10", "points/vm/1 11")
	for _, prefix := range []string{"../", "a/../", "/", "A"} {
		_, err := s.List(t.Context(), prefix)
		s.want(fmt.Sprintf("List %q", prefix), err, errs.Invalid)
	}
}

func testRemove(t *testing.T, s *subject) {
	s.put("dir/a", []byte("first"))
	s.put("dir/b", nil)
	s.ok("Close", s.begin("dir/c").Close())
	for _, name := range []string{"dir/a", "dir/c"} {
		s.ok("Remove", s.Remove(t.Context(), name))
		_, err := s.Open(t.Context(), name)
		s.want("Open", err, errs.NotFound)
		s.want("Remove again", s.Remove(t.Context(), name), errs.NotFound)
	}
	s.lists("", "dir/b 0")
	s.put("dir/a", []byte("second")) // the name is free again
	s.holds("dir/a", "second")
}

func testReadAt(t *testing.T, s *subject) {
	data := make([]byte, 10000)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	s.put("o", data)
	o, err := s.Open(t.Context(), "o")
	s.ok("Open", err)
	defer o.Close()
	if o.Size() != 10000 {
		t.Errorf("Size %d", o.Size())
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			buf := make([]byte, 700)
			for off := g; off < len(data)+900; off += 313 {
				n, err := o.ReadAt(buf, int64(off))
				want := data[min(off, len(data)):min(off+len(buf), len(data))]
				if !bytes.Equal(buf[:n], want) || (err != nil) != (len(want) < len(buf)) || err != nil && err != io.EOF {
					t.Errorf("ReadAt %d: %d, %v", off, n, err)
				}
			}
		})
	}
	wg.Wait()
	if n, err := o.ReadAt(make([]byte, 1), -1); n != 0 || err == nil {
		t.Errorf("ReadAt -1: %d, %v", n, err)
	}
}

// testOpenOutlivesSeal: a reader of an unsealed object goes on reading when it is sealed.
func testOpenOutlivesSeal(t *testing.T, s *subject) {
	a := s.begin("p", "content")
	s.ok("Sync", a.Sync())
	o, err := s.Open(t.Context(), "p")
	s.ok("Open", err)
	s.ok("Seal", a.Seal())
	got := make([]byte, 7)
	if _, err := o.ReadAt(got, 0); err != nil && err != io.EOF || string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
	s.ok("Close", o.Close())
}

func testConcurrent(t *testing.T, s *subject) {
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 10 {
				name := fmt.Sprintf("shared/%d/%d", i, g)
				if err := s.Put(t.Context(), name, []byte(name)); err != nil {
					t.Errorf("Put: %v", err)
				}
				a, err := s.Append(t.Context(), name+"-long")
				if err != nil {
					t.Errorf("Append: %v", err)
					continue
				}
				if _, err := io.WriteString(a, name); err != nil {
					t.Errorf("Write: %v", err)
				}
				if err := a.Seal(); err != nil {
					t.Errorf("Seal: %v", err)
				}
				if _, err := s.List(t.Context(), "shared/"); err != nil {
					t.Errorf("List: %v", err)
				}
			}
		})
	}
	wg.Wait()
	got, err := s.List(t.Context(), "")
	if err != nil || len(got) != 80 {
		t.Errorf("%d objects, %v", len(got), err)
	}
	for _, i := range got {
		s.holds(i.Name, strings.TrimSuffix(i.Name, "-long"))
	}
}

// testCanceled: a call whose context is done starts nothing.
func testCanceled(t *testing.T, s *subject) {
	s.put("there", nil)
	s.ok("Close", s.begin("open", "x").Close())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.want("Put", s.Put(ctx, "a", nil), errs.Canceled)
	_, err := s.Append(ctx, "b")
	s.want("Append", err, errs.Canceled)
	_, err = s.Open(ctx, "there")
	s.want("Open", err, errs.Canceled)
	_, err = s.List(ctx, "")
	s.want("List", err, errs.Canceled)
	s.want("Remove", s.Remove(ctx, "there"), errs.Canceled)
	if r, ok := s.Backend.(backend.Resumer); ok {
		_, err = r.Resume(ctx, "open", 0)
		s.want("Resume", err, errs.Canceled)
	}
	if r, ok := s.Backend.(backend.Replacer); ok {
		s.want("Replace", r.Replace(ctx, "there", []byte("x")), errs.Canceled)
	}
	s.lists("", "open 1 open", "there 0")
}

func testResume(t *testing.T, s *subject) {
	r, ok := s.Backend.(backend.Resumer)
	if !ok {
		t.Skip("the backend is no Resumer")
	}
	a := s.begin("p", "content to keep, and to drop")
	s.ok("Sync", a.Sync())
	s.ok("Close", a.Close())
	for _, keep := range []int64{-1, 29} {
		_, err := r.Resume(t.Context(), "p", keep)
		s.want(fmt.Sprint("Resume ", keep), err, errs.Invalid)
	}
	s.holds("p", "content to keep, and to drop")
	a, err := r.Resume(t.Context(), "p", 15)
	s.ok("Resume", err)
	s.write(a, ", and more")
	s.ok("Close", a.Close())
	a, err = r.Resume(t.Context(), "p", 25) // all of it
	s.ok("Resume", err)
	s.write(a, "!")
	s.ok("Seal", a.Seal())
	s.holds("p", "content to keep, and more!")
	_, err = r.Resume(t.Context(), "p", 3)
	s.want("Resume of a sealed object", err, errs.Exists)
	_, err = r.Resume(t.Context(), "nothing", 0)
	s.want("Resume of nothing", err, errs.NotFound)
	_, err = r.Resume(t.Context(), "../p", 0)
	s.want("Resume of no name", err, errs.Invalid)
	s.lists("", "p 26")
}

func testReplace(t *testing.T, s *subject) {
	r, ok := s.Backend.(backend.Replacer)
	if !ok {
		t.Skip("the backend is no Replacer")
	}
	for _, content := range []string{"first", "second, longer", ""} {
		s.ok("Replace", r.Replace(t.Context(), "keys/master", []byte(content)))
		s.holds("keys/master", content)
	}
	s.want("Replace of no name", r.Replace(t.Context(), "a/../b", nil), errs.Invalid)
	s.lists("", "keys/master 0")
}
