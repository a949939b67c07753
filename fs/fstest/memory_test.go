package fstest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-backup/holdfast/fs"
)

func TestMemoryConforms(t *testing.T) {
	Test(t, func(*testing.T) fs.Tree { return NewMemory(MemoryOptions{}) })
}

func TestStaticConforms(t *testing.T) {
	TestReadOnly(t, func(t *testing.T) fs.Tree {
		files := NewMemory(MemoryOptions{}) // only a source of files: Static brings folders alone
		for _, p := range []string{"one", "two", "three"} {
			if _, err := files.Put(p, []byte(strings.Repeat(p, 5000))); err != nil {
				t.Fatal(err)
			}
		}
		sparse, err := files.Put("sparse", []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		write(t, sparse, "y", 3<<20)
		when := time.Unix(1_700_000_000, 0)
		entry := func(name string) fs.Entry {
			n, err := files.Root().Lookup(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			return fs.Entry{Name: name, Node: n}
		}
		sub := fs.NewStaticDir(fs.PathID("/sub"), when, entry("two"), entry("sparse"))
		root := fs.NewStaticDir(fs.PathID("/"), when, entry("one"), fs.Entry{Name: "sub", Node: sub}, entry("three"))
		return fs.NewStatic(root, files.Space)
	})
}

// TestMemoryAgainstBytes does random writes, truncations, commits and crashes on one file and on two plain slices, one
// for what is visible and one for what is durable.
func TestMemoryAgainstBytes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	m := NewMemory(MemoryOptions{})
	file, err := m.Put("f", nil)
	if err != nil {
		t.Fatal(err)
	}
	w, ctx := file.(fs.Writer), t.Context()
	var seen, disk []byte
	put := func(to []byte, p []byte, off int) []byte {
		if grow := off + len(p) - len(to); grow > 0 {
			to = append(to, make([]byte, grow)...)
		}
		copy(to[off:], p)
		return to
	}
	for step := range 3000 {
		off, p := r.IntN(40_000), bytes.Repeat([]byte{byte(step) | 1}, 1+r.IntN(9000))
		switch op := r.IntN(20); {
		case op < 7:
			err = w.WriteAt(ctx, p, int64(off), false)
			seen = put(seen, p, off)
		case op < 13:
			err = w.WriteAt(ctx, p, int64(off), true)
			seen, disk = put(seen, p, off), put(disk, p, off)
		case op < 15:
			size := int64(off)
			_, err = file.(fs.AttrSetter).SetAttr(ctx, fs.SetAttr{Size: &size}, nil)
			// The size is durable at once, and so is that there is nothing behind it.
			seen = put(seen[:min(off, len(seen))], nil, off)
			disk = put(disk[:min(off, len(disk))], nil, off)
		case op < 17:
			err = w.Commit(ctx)
			disk = bytes.Clone(seen)
		case op < 18:
			m.Crash()
			seen = bytes.Clone(disk)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := content(t, file); got != string(seen) {
			t.Fatalf("step %d of seed %d: %d bytes differ from the %d expected", step, seed, len(got), len(seen))
		}
	}
}

func TestMemorySpaceIsBounded(t *testing.T) {
	m := NewMemory(MemoryOptions{CapacityBytes: 10 * PageSize, MaxFiles: 3})
	f, err := m.Put("f", make([]byte, 8*PageSize))
	if err != nil {
		t.Fatal(err)
	}
	w, ctx := f.(fs.Writer), t.Context()
	want(t, "a write of three pages into two", w.WriteAt(ctx, make([]byte, 3*PageSize), 8*PageSize, true), fs.StatusNoSpace)
	if a := attr(t, f); a.Size != 8*PageSize || a.Used != 8*PageSize {
		t.Errorf("the refused write left %+v", a)
	}
	want(t, "overwrite", w.WriteAt(ctx, make([]byte, 8*PageSize), 0, true), fs.StatusOK)
	want(t, "two pages", w.WriteAt(ctx, make([]byte, 2*PageSize), 100*PageSize, false), fs.StatusOK)
	want(t, "one more", w.WriteAt(ctx, []byte{1}, 1<<40, true), fs.StatusNoSpace)
	m.Crash()
	want(t, "after the crash gave two back", w.WriteAt(ctx, []byte{1}, 1<<40, true), fs.StatusOK)
	_, err = m.Put("g", nil)
	want(t, "third node", err, fs.StatusOK)
	_, err = m.Put("h", nil)
	want(t, "fourth node", err, fs.StatusNoSpace)
	if s, _ := m.Space(ctx); s.FreeBytes != PageSize || s.FreeFiles != 0 {
		t.Errorf("space %+v", s)
	}
}

func TestMemoryHook(t *testing.T) {
	m := NewMemory(MemoryOptions{})
	f, err := m.Put("f", []byte("abc"))
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	var ops atomic.Int32
	m.SetHook(func(op string, id fs.ID) error {
		ops.Add(1)
		if op == "read" && id == f.ID() {
			return boom
		}
		return nil
	})
	if _, err := f.ReadAt(t.Context(), make([]byte, 1), 0); err != boom {
		t.Errorf("read: %v", err)
	}
	attr(t, f)
	if ops.Load() != 2 {
		t.Errorf("the hook ran %d times", ops.Load())
	}
}

// TestMemoryHookDelay shows that a call leaves a hook behind that outlasts its context, and changes nothing.
func TestMemoryHookDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		f, err := m.Put("f", []byte("abc"))
		if err != nil {
			t.Fatal(err)
		}
		m.SetHook(func(op string, _ fs.ID) error {
			if op == "write" {
				time.Sleep(time.Hour)
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		err = f.(fs.Writer).WriteAt(ctx, []byte("x"), 0, true)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		time.Sleep(2 * time.Hour)
		if got := content(t, f); got != "abc" {
			t.Errorf("the abandoned write left %q", got)
		}
	})
}

func TestMemoryPut(t *testing.T) {
	m := NewMemory(MemoryOptions{})
	for _, text := range []string{"first", "2nd"} {
		f, err := m.Put("/a/b/c", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := content(t, f); got != text {
			t.Errorf("content %q", got)
		}
	}
	if _, err := m.Put("a/b/c/d", nil); fs.StatusOf(err) != fs.StatusNotDir {
		t.Errorf("a file as a folder: %v", err)
	}
	if _, err := m.Put("a/b", nil); fs.StatusOf(err) != fs.StatusIsDir {
		t.Errorf("a folder as a file: %v", err)
	}
}

func TestMemoryBounds(t *testing.T) {
	m := NewMemory(MemoryOptions{})
	f, err := m.Put("f", nil)
	if err != nil {
		t.Fatal(err)
	}
	write(t, f, "x", maxSize-1)
	h := f.(fs.HoleFinder)
	if hole, err := h.NextHole(t.Context(), maxSize-1); hole != maxSize || err != nil {
		t.Errorf("NextHole in the last page: %d, %v", hole, err)
	}
	if data, err := h.NextData(t.Context(), 0); data != maxSize-PageSize || err != nil {
		t.Errorf("NextData: %d, %v", data, err)
	}
	if n, err := f.ReadAt(t.Context(), make([]byte, 9), maxSize-1); n != 1 || err != io.EOF {
		t.Errorf("read of the last byte: %d, %v", n, err)
	}
	want(t, "write past the largest size", f.(fs.Writer).WriteAt(t.Context(), []byte("xy"), maxSize-1, true), fs.StatusTooLarge)
	set(t, f, fs.SetAttr{Size: new(int64(maxSize - 2))})
}
