package index

import (
	"context"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

var (
	storeA = [16]byte{1, 2, 3, 15: 0xaa}
	storeB = [16]byte{9, 8, 7, 15: 0xbb}
)

// small makes an index that fills several tables with few entries.
var small = Options{memTable: 256 << 10}

func open(tb testing.TB, dir string, o Options) *Index {
	tb.Helper()
	x, err := Open(dir, storeA, o)
	if err != nil {
		tb.Fatal(err)
	}
	return x
}

// fresh opens an index in a new folder and closes it at the end of the test.
func fresh(tb testing.TB, o Options) *Index {
	tb.Helper()
	x := open(tb, filepath.Join(tb.TempDir(), "index"), o)
	tb.Cleanup(func() { mustClose(tb, x) })
	return x
}

func mustClose(tb testing.TB, x *Index) {
	tb.Helper()
	if err := x.Close(); err != nil {
		tb.Error(err)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func randomID(r *rand.Rand) (id chunk.ID) {
	for i := range id {
		id[i] = byte(r.Uint32())
	}
	id[0] |= 1 // never the zero ID
	return id
}

func placeOf(i int) chunk.Place {
	return chunk.Place{Pack: uint32(i/1000) + 1, Offset: uint32(i % 1000 * 100), Stored: uint32(i%4096) + 64}
}

// wantPlace checks one answer; the zero place stands for "not known".
func wantPlace(tb testing.TB, x *Index, id chunk.ID, want chunk.Place) {
	tb.Helper()
	got, found, err := x.Get(id)
	if err != nil || got != want || found == want.IsZero() {
		tb.Errorf("Get(%v) = %v, %v, %v, want %v", id, got, found, err, want)
	}
}

func wantKind(tb testing.TB, err error, want errs.Kind) {
	tb.Helper()
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != want {
		tb.Errorf("got error %v, want one of the kind %v", err, want)
	}
}

func TestPutGetDelete(t *testing.T) {
	x := fresh(t, Options{})
	if !x.Fresh() || x.Reason() == "" {
		t.Errorf("a new index is fresh for a reason, got %v %q", x.Fresh(), x.Reason())
	}
	a, b, c := chunk.ID{1}, chunk.ID{2}, chunk.ID{3}
	p, q := chunk.Place{Pack: 1, Stored: 64}, chunk.Place{Pack: 2, Offset: 7, Stored: 1 << 17}
	wantPlace(t, x, a, chunk.Place{})
	must(t, x.Put(nil))
	must(t, x.Put([]Entry{{a, p}, {b, q}}))
	wantPlace(t, x, a, p)
	wantPlace(t, x, b, q)
	must(t, x.Put([]Entry{{a, q}}))
	wantPlace(t, x, a, q)
	must(t, x.Put([]Entry{{c, p}, {c, q}})) // the later one of the same call counts
	wantPlace(t, x, c, q)
	must(t, x.Delete([]chunk.ID{b, {77}}))
	wantPlace(t, x, b, chunk.Place{})
	wantPlace(t, x, a, q)
	must(t, x.Put([]Entry{{b, p}}))
	wantPlace(t, x, b, p)
	if n, err := x.Count(); n != 3 || err != nil {
		t.Errorf("Count = %d, %v, want 3", n, err)
	}
}

func TestDeleteIf(t *testing.T) {
	x := fresh(t, Options{})
	in5, in6, unknown := chunk.ID{5}, chunk.ID{6}, chunk.ID{7}
	must(t, x.Put([]Entry{{in5, chunk.Place{Pack: 5, Stored: 1}}, {in6, chunk.Place{Pack: 6, Stored: 1}}}))
	n, err := x.DeleteIf([]chunk.ID{in5, in6, unknown}, 5)
	if n != 1 || err != nil {
		t.Errorf("DeleteIf = %d, %v, want 1", n, err)
	}
	wantPlace(t, x, in5, chunk.Place{})
	wantPlace(t, x, in6, chunk.Place{Pack: 6, Stored: 1})
}

func TestMarks(t *testing.T) {
	x := fresh(t, Options{})
	for _, pack := range []uint32{300, 1, 1 << 31} {
		must(t, x.MarkPack(pack, int(pack)+1))
	}
	must(t, x.MarkPack(1, 9)) // a pack that grew is marked again
	must(t, x.UnmarkPack(300))
	must(t, x.UnmarkPack(4711))
	got, err := x.Packs()
	if want := []PackMark{{1, 9}, {1 << 31, 1<<31 + 1}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Packs = %v, %v, want %v", got, err, want)
	}
	if n, err := x.Count(); n != 0 || err != nil {
		t.Errorf("marks are counted as chunks: %d, %v", n, err)
	}
}

func TestInvalidInput(t *testing.T) {
	x := fresh(t, Options{})
	good := chunk.Place{Pack: 1, Stored: 1}
	for name, err := range map[string]error{
		"zero ID":          x.Put([]Entry{{chunk.ID{}, good}}),
		"no pack":          x.Put([]Entry{{chunk.ID{1}, chunk.Place{Stored: 1}}}),
		"nothing stored":   x.Put([]Entry{{chunk.ID{1}, chunk.Place{Pack: 1}}}),
		"bad among good":   x.Put([]Entry{{chunk.ID{1}, good}, {chunk.ID{}, good}}),
		"mark no pack":     x.MarkPack(0, 1),
		"mark less than 0": x.MarkPack(1, -1),
	} {
		t.Run(name, func(t *testing.T) { wantKind(t, err, errs.Invalid) })
	}
	wantPlace(t, x, chunk.ID{1}, chunk.Place{}) // a refused call does nothing at all
	must(t, x.Put([]Entry{{chunk.ID{1}, good}}))
}

func TestClosed(t *testing.T) {
	x := open(t, filepath.Join(t.TempDir(), "index"), Options{})
	must(t, x.Close())
	must(t, x.Close())
	_, _, getErr := x.Get(chunk.ID{1})
	_, packsErr := x.Packs()
	_, countErr := x.Count()
	_, ifErr := x.DeleteIf([]chunk.ID{{1}}, 1)
	for name, err := range map[string]error{
		"Get": getErr, "Packs": packsErr, "Count": countErr, "DeleteIf": ifErr,
		"Put":    x.Put([]Entry{{chunk.ID{1}, chunk.Place{Pack: 1, Stored: 1}}}),
		"Delete": x.Delete([]chunk.ID{{1}}), "MarkPack": x.MarkPack(1, 1), "UnmarkPack": x.UnmarkPack(1),
		"Verify": x.Verify(context.Background()), "Compact": x.Compact(),
	} {
		t.Run(name, func(t *testing.T) { wantKind(t, err, errs.Stale) })
	}
}

// TestVectors holds the stored form: an index of this version must be readable by every later program that claims to
// read this version.
func TestVectors(t *testing.T) {
	id := chunk.ID{0: 0x10, 15: 0x1f}
	key := chunkKey(id)
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"chunk key", key[:], "63" + "1000000000000000000000000000001f"},
		{"place", encodePlace(chunk.Place{Pack: 1, Offset: 0x01020304, Stored: 0xa0b0c0d0}), "01000000" + "04030201" + "d0c0b0a0"},
		{"mark key", markKey(0x01020304), "70" + "01020304"},
		{"ring key", ringKey(0x1_0203), "71" + "0203"},
		{"state", state{1, storeA, 0x0102}.encode(), "4846494e44455800" + "01000000" + "00000000" +
			"010203000000000000000000000000aa" + "0201000000000000" + "00000000" + "58270820"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s is %s, want %s", c.name, got, c.want)
		}
	}
}

// TestStoredForm: values of another form are damage, not absence.
func TestStoredForm(t *testing.T) {
	x := fresh(t, Options{})
	id := chunk.ID{1}
	key := chunkKey(id)
	for name, value := range map[string][]byte{"short": {1, 2, 3}, "empty": {}, "no pack": make([]byte, placeSize)} {
		must(t, x.inBatches("test", 1, func(txn *badger.Txn, _, _ int) error { return txn.Set(key[:], value) }))
		if _, found, err := x.Get(id); found || err == nil {
			t.Errorf("%s: found %v, error %v", name, found, err)
		} else {
			wantKind(t, err, errs.Corrupt)
		}
	}
	must(t, x.inBatches("test", 1, func(txn *badger.Txn, _, _ int) error { return txn.Set([]byte{prefixMark, 1}, nil) }))
	_, err := x.Packs()
	wantKind(t, err, errs.Corrupt)
}

func TestPanicOfBadgerIsAnError(t *testing.T) {
	x := &Index{}
	_, found, err := x.Get(chunk.ID{1}) // there is no database at all
	wantKind(t, err, errs.Corrupt)
	if found {
		t.Error("found")
	}
	_, err = x.Packs()
	wantKind(t, err, errs.Corrupt)
}

// TestModel compares the index with a map over a random sequence of operations, reopening and compacting in between.
func TestModel(t *testing.T) {
	for _, seed := range []uint64{1, 2} {
		r := rand.New(rand.NewPCG(seed, 0))
		dir := filepath.Join(t.TempDir(), "index")
		x := open(t, dir, small)
		known := make([]chunk.ID, 1500)
		for i := range known {
			known[i] = randomID(r)
		}
		some := func(most int) []chunk.ID {
			from := r.IntN(len(known))
			return known[from:min(from+1+r.IntN(most), len(known))]
		}
		model, marks := map[chunk.ID]chunk.Place{}, map[uint32]int{}
		for range 150 {
			switch pack := uint32(r.IntN(9) + 1); r.IntN(12) {
			default:
				var entries []Entry
				for i, id := range some(800) {
					e := Entry{id, chunk.Place{Pack: pack, Offset: uint32(i), Stored: r.Uint32() | 1}}
					model[id], entries = e.Place, append(entries, e)
				}
				must(t, x.Put(entries))
			case 0:
				ids := some(200)
				for _, id := range ids {
					delete(model, id)
				}
				must(t, x.Delete(ids))
			case 1:
				ids, want := some(200), 0
				for _, id := range ids {
					if model[id].Pack == pack {
						delete(model, id)
						want++
					}
				}
				if n, err := x.DeleteIf(ids, pack); n != want || err != nil {
					t.Fatalf("seed %d: DeleteIf = %d, %v, want %d", seed, n, err, want)
				}
			case 2:
				marks[pack] = r.IntN(1000)
				must(t, x.MarkPack(pack, marks[pack]))
			case 3:
				delete(marks, pack)
				must(t, x.UnmarkPack(pack))
			case 4:
				must(t, x.Close())
				if x = open(t, dir, small); x.Fresh() {
					t.Fatalf("seed %d: fresh after reopen: %s", seed, x.Reason())
				}
			case 5:
				must(t, x.Compact())
				must(t, x.Verify(context.Background()))
			}
		}
		compare(t, x, known, model, marks)
		mustClose(t, x)
	}
}

func compare(t *testing.T, x *Index, known []chunk.ID, model map[chunk.ID]chunk.Place, marks map[uint32]int) {
	t.Helper()
	for _, id := range known {
		wantPlace(t, x, id, model[id])
	}
	if n, err := x.Count(); n != int64(len(model)) || err != nil {
		t.Errorf("Count = %d, %v, want %d", n, err, len(model))
	}
	got, err := x.Packs()
	if err != nil || len(got) != len(marks) {
		t.Errorf("Packs = %v, %v, want %v", got, err, marks)
	}
	for _, m := range got {
		if marks[m.Pack] != m.Entries {
			t.Errorf("mark %v, want %d", m, marks[m.Pack])
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	x := fresh(t, small)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			next := idsOf(uint64(w))
			for i := range 20 {
				var entries []Entry
				for range 300 {
					entries = append(entries, Entry{next(), placeOf(i)})
				}
				if err := x.Put(entries); err != nil {
					t.Error(err)
					return
				}
				for _, e := range entries {
					wantPlace(t, x, e.ID, e.Place)
				}
				if err := x.Verify(context.Background()); err != nil {
					t.Error(err)
				}
				if _, err := x.Packs(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n, err := x.Count(); n != 4*20*300 || err != nil {
		t.Errorf("Count = %d, %v", n, err)
	}
}

func TestCloseWaitsForReaders(t *testing.T) {
	x := open(t, filepath.Join(t.TempDir(), "index"), small)
	load(t, x, 5000, 1000, 1)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for next := idsOf(1); ; {
				_, found, err := x.Get(next())
				if errs.Is(err, errs.Stale) || err == nil && !found {
					return // closed, or at the end of the known ones
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	must(t, x.Close())
	wg.Wait()
}

// TestSizeAndCount: Size is what the files occupy, and Count is an estimate once there are many entries.
func TestSizeAndCount(t *testing.T) {
	x := fresh(t, small)
	load(t, x, 8_000, 1000, 1)
	n, err := x.Size()
	if err != nil || n < 8_000*20 || n > 8<<20 {
		t.Errorf("Size = %d, %v", n, err)
	}
	if n, err := x.Count(); n != 8_000 || err != nil {
		t.Errorf("Count = %d, %v", n, err)
	}
}

func TestVerifyStops(t *testing.T) {
	x := fresh(t, small)
	load(t, x, 8_000, 1000, 1)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	wantKind(t, x.Verify(ctx), errs.Canceled)
}

// TestFailedWriteStopsWriting: after a failure nothing is known of the state, so nothing more is written, and reads
// go on.
func TestFailedWriteStopsWriting(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := open(t, dir, small)
	p := chunk.Place{Pack: 1, Stored: 1}
	must(t, x.Put([]Entry{{chunk.ID{1}, p}}))
	must(t, x.state.f.Close()) // the next acknowledgement fails
	for range 2 {
		err := x.Put([]Entry{{chunk.ID{2}, p}})
		if err == nil || errs.NextStep(err) == "" {
			t.Errorf("Put = %v, want an error with a next step", err)
		}
	}
	if err := x.MarkPack(1, 1); err == nil {
		t.Error("a mark was written after a failed Put")
	}
	wantPlace(t, x, chunk.ID{1}, p)
	if err := x.Close(); err == nil {
		t.Error("Close hides that the state file could not be synced")
	}
	x = open(t, dir, small)
	defer mustClose(t, x)
	if x.Fresh() {
		t.Errorf("fresh: %s", x.Reason())
	}
	wantPlace(t, x, chunk.ID{1}, p)
	must(t, x.Put([]Entry{{chunk.ID{3}, p}}))
}

// TestBadgerRules holds the settings that no test can miss by their effect: killing a process does not lose what was
// not synced, only a power cut does.
func TestBadgerRules(t *testing.T) {
	o := fresh(t, Options{}).db.Opts()
	for rule, kept := range map[string]bool{
		"every transaction is synced": o.SyncWrites,
		"one version is kept":         o.NumVersionsToKeep == 1,
		"no compression":              o.Compression == options.None,
		"no conflict detection":       !o.DetectConflicts,
		"blocks are checked on read":  o.ChecksumVerificationMode == options.OnBlockRead,
		"caches are bounded":          o.BlockCacheSize == 0 && o.IndexCacheSize == 0,
		"values stay with their keys": o.ValueThreshold > placeSize,
	} {
		if !kept {
			t.Error(rule)
		}
	}
}

func TestNoSpace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := open(t, dir, Options{})
	must(t, x.Put([]Entry{{chunk.ID{1}, placeOf(1)}}))
	x.opt.reserve = 1 << 62
	wantKind(t, x.Put([]Entry{{chunk.ID{2}, placeOf(2)}}), errs.NoSpace)
	x.opt.reserve = 1
	must(t, x.Put([]Entry{{chunk.ID{2}, placeOf(2)}})) // space came back: refusing had changed nothing
	must(t, x.Close())
	_, err := Open(dir, storeA, Options{reserve: 1 << 62})
	wantKind(t, err, errs.NoSpace)
	x = open(t, dir, Options{})
	defer mustClose(t, x)
	if x.Fresh() {
		t.Errorf("a full disk cost the index: %s", x.Reason())
	}
	wantPlace(t, x, chunk.ID{2}, placeOf(2))
}
