package index

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4/table"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// damageSeed makes the IDs of the folders that are damaged here.
const damageSeed = 99

// sample is a folder to be damaged, and what was acknowledged in it.
type sample struct {
	dir     string
	entries int
	deleted int // the first so many entries were deleted again, and the next so many put elsewhere
}

// makeSample fills a folder. Without closing it looks as after kill -9: with a log that must be replayed.
func makeSample(t *testing.T, entries int, closed bool) sample {
	t.Helper()
	s := sample{filepath.Join(t.TempDir(), "index"), entries, entries / 10}
	x := open(t, s.dir, small)
	load(t, x, entries, 500, damageSeed)
	next := idsOf(damageSeed)
	var gone []chunk.ID
	var moved []Entry
	for range s.deleted {
		gone = append(gone, next())
	}
	for i := range s.deleted {
		moved = append(moved, Entry{next(), chunk.Place{Pack: 1 << 20, Offset: uint32(i), Stored: 1}})
	}
	must(t, x.Delete(gone))
	must(t, x.Put(moved))
	must(t, x.MarkPack(1, entries))
	if closed {
		must(t, x.Close())
		return s
	}
	dead := filepath.Join(t.TempDir(), "index")
	copyFolder(t, s.dir, dead)
	mustClose(t, x)
	s.dir = dead
	return s
}

func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	must(t, os.MkdirAll(to, 0o700))
	names, err := os.ReadDir(from)
	must(t, err)
	for _, d := range names {
		b, err := os.ReadFile(filepath.Join(from, d.Name()))
		must(t, err)
		name := filepath.Join(to, d.Name())
		must(t, os.WriteFile(name, bytes.TrimRight(b, "\x00"), 0o600)) // most of a log is a hole
		must(t, os.Truncate(name, int64(len(b))))
	}
}

// check opens a damaged copy. Either it is begun anew, or all of it is right; never an error, never a wrong place.
func (s sample) check(t *testing.T, dir, what string) (fresh bool) {
	t.Helper()
	said := Examine(dir, storeA)
	x, err := Open(dir, storeA, small)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return false
	}
	if none := errs.Is(said, errs.NotFound) && x.Reason() == reasonCut; (errs.Is(said, errs.Corrupt) || none) != x.Fresh() || !x.Fresh() && said != nil {
		t.Errorf("%s: Examine says %v, and Open begins anew: %v %s", what, said, x.Fresh(), x.Reason())
	}
	defer func() {
		if err := x.Close(); err != nil {
			t.Errorf("%s: close: %v", what, err)
		}
	}()
	next := idsOf(damageSeed)
	for i := range s.entries {
		want := placeOf(i)
		switch {
		case x.Fresh() || i < s.deleted:
			want = chunk.Place{}
		case i < 2*s.deleted:
			want = chunk.Place{Pack: 1 << 20, Offset: uint32(i - s.deleted), Stored: 1}
		}
		if id := next(); i < 3*s.deleted || i%7 == 0 {
			if got, _, err := x.Get(id); err != nil || got != want {
				t.Errorf("%s: entry %d is at %v, %v, want %v", what, i, got, err, want)
				return x.Fresh()
			}
		}
	}
	if err := x.Put([]Entry{{chunk.ID{0xee}, placeOf(1)}}); err != nil {
		t.Errorf("%s: put: %v", what, err)
	}
	return x.Fresh()
}

// TestDamageToEveryFile flips, cuts and removes each file of the folder in turn.
func TestDamageToEveryFile(t *testing.T) {
	for _, c := range []struct {
		name    string
		entries int
		closed  bool
	}{{"closed", 8_000, true}, {"killed", 2_000, false}} {
		t.Run(c.name, func(t *testing.T) {
			s := makeSample(t, c.entries, c.closed)
			plain := filepath.Join(t.TempDir(), "index")
			copyFolder(t, s.dir, plain)
			if s.check(t, plain, "undamaged") {
				t.Fatal("an undamaged folder is begun anew")
			}
			names, err := os.ReadDir(s.dir)
			must(t, err)
			kinds := map[string]bool{}
			for _, d := range names {
				kinds[filepath.Ext(d.Name())] = true
				s.damageFile(t, d.Name())
			}
			if want := map[bool]string{true: ".sst", false: ".mem"}[c.closed]; !kinds[want] {
				t.Errorf("the sample has no %s file, so that nothing was tried on one", want)
			}
		})
	}
}

func (s sample) damageFile(t *testing.T, name string) {
	orig, err := os.ReadFile(filepath.Join(s.dir, name))
	must(t, err)
	try := func(what string, damaged []byte) bool {
		dir := filepath.Join(t.TempDir(), "index")
		copyFolder(t, s.dir, dir)
		must(t, os.Remove(filepath.Join(dir, name)))
		if damaged != nil {
			must(t, os.WriteFile(filepath.Join(dir, name), damaged, 0o600))
		}
		fresh := s.check(t, dir, name+" "+what)
		must(t, os.RemoveAll(filepath.Dir(dir)))
		return fresh
	}
	vital := name == stateName || name == "MANIFEST" || strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".mem")
	if fresh := try("removed", nil); vital && !fresh {
		t.Errorf("%s removed: not noticed", name)
	}
	r := rand.New(rand.NewPCG(uint64(len(orig)), 5))
	cuts, flips := []int{0, 19, len(orig) / 2, len(orig) - 1}, 8
	if !vital {
		cuts, flips = cuts[:2], 2 // badger keeps nothing of ours there; it must only not die of it
	}
	for _, size := range cuts {
		if size >= 0 && size < len(orig) {
			try(fmt.Sprintf("cut to %d bytes", size), orig[:size])
		}
	}
	used := len(strings.TrimRight(string(orig), "\x00")) // most of a log is a hole
	for i := range flips {
		if used == 0 {
			break
		}
		off := r.IntN(used)
		switch {
		case i < 3:
			off = min(i*7, used-1)
		case i < 6:
			off = max(used-1-(i-3)*5, 0)
		}
		b := append([]byte{}, orig...)
		b[off] ^= 1 << r.IntN(8)
		fresh := try(fmt.Sprintf("flipped in byte %d", off), b)
		if strings.HasSuffix(name, ".sst") && !fresh {
			t.Errorf("%s flipped in byte %d: not noticed", name, off)
		}
	}
}

// TestEveryLossOfTheLogIsNoticed cuts the log of a killed process at many lengths: a place that was replaced or deleted
// must not come back.
func TestEveryLossOfTheLogIsNoticed(t *testing.T) {
	s := makeSample(t, 2_000, false)
	logs, err := filepath.Glob(filepath.Join(s.dir, "*.mem"))
	must(t, err)
	if len(logs) != 1 {
		t.Fatalf("logs %v, want one", logs)
	}
	orig, err := os.ReadFile(logs[0])
	must(t, err)
	used := len(strings.TrimRight(string(orig), "\x00"))
	for cut := 0; cut < used; cut += used/17 + 1 {
		dir := filepath.Join(t.TempDir(), "index")
		copyFolder(t, s.dir, dir)
		b := append([]byte{}, orig...)
		clear(b[cut:])
		must(t, os.WriteFile(filepath.Join(dir, filepath.Base(logs[0])), b, 0o600))
		if !s.check(t, dir, fmt.Sprintf("log zeroed from %d", cut)) {
			t.Errorf("log zeroed from %d of %d: not noticed", cut, used)
		}
	}
}

// TestDamageWhileOpen: badger says nothing when a block is damaged that it reads; Verify does, and no wrong place comes
// out in between.
func TestDamageWhileOpen(t *testing.T) {
	s := makeSample(t, 8_000, true)
	x := open(t, s.dir, small)
	must(t, x.Verify(context.Background()))
	for id := range x.tables() {
		flipEvery(t, table.NewFilename(id, s.dir), 1500)
	}
	next, missed := idsOf(damageSeed), 0
	for i := range s.entries {
		id := next()
		if i < 2*s.deleted {
			continue
		}
		switch p, found, err := x.Get(id); {
		case err != nil:
			wantKind(t, err, errs.Corrupt)
			missed++
		case !found:
			missed++
		case p != placeOf(i):
			t.Fatalf("entry %d is at %v, want %v", i, p, placeOf(i))
		}
	}
	if missed == 0 {
		t.Error("the damage was not met")
	}
	err := x.Verify(context.Background())
	wantKind(t, err, errs.Corrupt)
	if errs.NextStep(err) == "" {
		t.Error("no next step")
	}
	_ = x.Close() // whatever badger makes of it
	if !s.check(t, s.dir, "after Verify") {
		t.Error("Open does not see what Verify saw")
	}
}

// flipEvery changes one bit in every n bytes of the blocks; it leaves the table's index alone, at the end.
func flipEvery(t *testing.T, name string, n int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	st, err := f.Stat()
	must(t, err)
	index, err := readIndex(f, st.Size())
	must(t, err)
	var b [1]byte
	for off := n / 2; off < st.Size()-int64(len(index))-100; off += n {
		_, err := f.ReadAt(b[:], off)
		must(t, err)
		b[0] ^= 4
		_, err = f.WriteAt(b[:], off)
		must(t, err)
	}
}

// FuzzCheckBlocks: whatever a table holds, checking it ends, without a panic that guard does not catch and without
// asking for more memory than the file has bytes.
func FuzzCheckBlocks(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "index")
	x := open(f, dir, small)
	load(f, x, 200, 200, 1)
	mustClose(f, x)
	names, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	must(f, err)
	for _, name := range names {
		b, err := os.ReadFile(name)
		must(f, err)
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Add([]byte{})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = guard(func() error { return checkBlocks(readerAt(b), int64(len(b))) })
	})
}

// readerAt is a file in memory that insists on reads within it.
type readerAt []byte

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(r)) {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(p, r[off:]), nil
}
