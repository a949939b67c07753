package pack

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/backend/local"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

const testName = "packs/test"

// unsealed puts b on a new disk as an unsealed object.
func unsealed(t *testing.T, b []byte) *local.Local {
	t.Helper()
	l := local.New(disk.NewCrash(), "/store")
	a, err := l.Append(t.Context(), testName)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return l
}

// unfinished writes a pack of chunks as it is before Seal.
func unfinished(t *testing.T, codec Codec, chunks ...[]byte) ([]byte, []chunk.Place) {
	t.Helper()
	obj := &object{}
	w, err := NewWriter(obj, testOpts)
	if err != nil {
		t.Fatal(err)
	}
	places := appendAll(t, w, codec, chunks...)
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	return obj.b, places
}

// checkRecovered opens the sealed pack and compares it with the first n chunks.
func checkRecovered(t *testing.T, b backend.Backend, n int, places []chunk.Place, chunks [][]byte) {
	t.Helper()
	list, err := b.List(t.Context(), "")
	if n == 0 {
		if err != nil || len(list) != 0 {
			t.Errorf("left after recovery of nothing: %v, %v", list, err)
		}
		return
	}
	if err != nil || len(list) != 1 || !list[0].Sealed {
		t.Errorf("after recovery: %v, %v", list, err)
		return
	}
	obj, err := b.Open(t.Context(), testName)
	if err != nil {
		t.Fatal(err)
	}
	r := mustOpen(t, obj, testRead)
	defer r.Close()
	checkListings(t, r, places[:n], chunks[:n])
	if err := r.VerifyFile(); err != nil {
		t.Errorf("VerifyFile: %v", err)
	}
	for i := range n {
		if got, _, err := r.ReadChunk(places[i], nameOf(chunks[i]).ID(), nil); err != nil || !bytes.Equal(got, chunks[i]) {
			t.Errorf("chunk %d: %v", i, err)
		}
	}
}

// TestRecoverEveryLength cuts a pack, unfinished or nearly sealed, at every length: the whole groups are kept.
func TestRecoverEveryLength(t *testing.T) {
	chunks := [][]byte{content(1, 40, 8), content(2, 130, 2), content(3, 20, 8)}
	b, places := unfinished(t, Zstd, chunks...)
	whole, _ := build(t, Zstd, testOpts, chunks...)
	if !bytes.HasPrefix(whole.b, b) {
		t.Fatal("a sealed pack does not begin like the unsealed one")
	}
	keyless := testRead
	keyless.Master = nil
	for n := range len(whole.b) + 1 {
		want := 0
		for want < len(places) && int64(n) >= places[want].ByteOffset()+int64(places[want].Stored) {
			want++
		}
		for _, o := range []ReaderOptions{testRead, keyless} {
			l := unsealed(t, whole.b[:n])
			got, err := Recover(t.Context(), l, testName, o)
			if err != nil || got.Chunks != want || got.Removed != (want == 0) || got.Lost != 0 {
				t.Fatalf("%d bytes, key %v: %+v, %v", n, o.Master != nil, got, err)
			}
			if want > 0 && got.Kept+got.Cut != int64(n) {
				t.Errorf("%d bytes: kept %d, cut %d", n, got.Kept, got.Cut)
			}
			checkRecovered(t, l, want, places, chunks)
		}
	}
}

// TestRecoverTornFrame: a crash may keep a header and lose what is behind it, in any group that was not synced.
func TestRecoverTornFrame(t *testing.T) {
	chunks := [][]byte{content(1, 5000, 8), content(2, 5000, 8), content(3, 5000, 8)}
	b, places := unfinished(t, None, chunks...)
	clear(b[places[1].ByteOffset()+1000 : places[1].ByteOffset()+2000])
	l := unsealed(t, b)
	got, err := Recover(t.Context(), l, testName, testRead)
	if err != nil || got.Chunks != 1 || got.Lost != 2 {
		t.Errorf("with a key: %+v, %v", got, err)
	}
	checkRecovered(t, l, 1, places, chunks)

	l = unsealed(t, b) // without a key the torn group stays, and is not believed in later
	keyless := testRead
	keyless.Master = nil
	if got, err = Recover(t.Context(), l, testName, keyless); err != nil || got.Chunks != 3 {
		t.Errorf("without a key: %+v, %v", got, err)
	}
	obj, err := l.Open(t.Context(), testName)
	if err != nil {
		t.Fatal(err)
	}
	r := mustOpen(t, obj, testRead)
	defer r.Close()
	dir, err := r.Directory()
	if err != nil || len(dir) != 2 || dir[0].Place != places[0] || dir[1].Place != places[2] {
		t.Errorf("Directory: %v, %v", dir, err)
	}
}

func TestRecoverRefuses(t *testing.T) {
	b, _ := unfinished(t, None, content(1, 100, 8))
	headless := bytes.Clone(b)
	headless[20] ^= 1
	newer := bytes.Clone(b)
	le.PutUint16(newer[4:6], compactVersion+1)
	sealCRC(newer[:headerSize])
	for _, c := range []struct {
		name string
		b    []byte
		o    ReaderOptions
		want errs.Kind
	}{
		{"groups without a header", headless, testRead, errs.Corrupt},
		{"a newer version", newer, testRead, errs.Unsupported},
		{"another store", b, ReaderOptions{StoreUUID: [16]byte{1}}, errs.Invalid},
	} {
		l := unsealed(t, c.b)
		got, err := Recover(t.Context(), l, testName, c.o)
		if !errs.Is(err, c.want) || errs.NextStep(err) == "" || got.Removed {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
		if list, err := l.List(t.Context(), ""); err != nil || len(list) != 1 || list[0].Sealed || list[0].Size != int64(len(c.b)) {
			t.Errorf("%s: the object was touched: %v, %v", c.name, list, err)
		}
	}
	l := unsealed(t, b)
	if _, err := Recover(t.Context(), l, "nothing", testRead); !errs.Is(err, errs.NotFound) {
		t.Errorf("nothing: %v", err)
	}
	if _, err := Recover(t.Context(), struct{ backend.Backend }{l}, testName, testRead); !errs.Is(err, errs.Unsupported) {
		t.Errorf("no Resumer: %v", err)
	}
	for _, content := range [][]byte{nil, b} { // whole objects, one of them worthless: neither is recovery's to touch
		name := fmt.Sprintf("sealed/%d", len(content))
		if err := l.Put(t.Context(), name, content); err != nil {
			t.Fatal(err)
		}
		if _, err := Recover(t.Context(), l, name, testRead); err == nil {
			t.Errorf("recovers a sealed object")
		}
		if o, err := l.Open(t.Context(), name); err != nil || o.Size() != int64(len(content)) {
			t.Errorf("a sealed object is gone: %v", err)
		}
	}
}

// writeStory writes a pack with syncs in between. acked is told how many chunks are acknowledged.
func writeStory(t *testing.T, b backend.Backend, chunks [][]byte, acked func(n int, sealed bool)) error {
	a, err := b.Append(t.Context(), testName)
	if err != nil {
		return err
	}
	w, err := NewWriter(a, testOpts)
	if err != nil {
		_ = a.Close() // the error says more
		return err
	}
	defer w.Abort()
	for i, p := range chunks {
		c := Compress(S2, p)
		_, err := w.Append(nameOf(p), c)
		c.Release()
		if err != nil {
			return err
		}
		if i%3 == 2 {
			if err := w.Sync(); err != nil {
				return err
			}
			acked(i+1, false)
		}
	}
	if err := w.Seal(); err != nil {
		return err
	}
	acked(len(chunks), true)
	return nil
}

func storyChunks() ([][]byte, []chunk.Place) {
	var chunks [][]byte
	for i := range 8 {
		chunks = append(chunks, content(uint64(i), 2000+300*i, 4))
	}
	obj := &object{}
	w, err := NewWriter(obj, testOpts)
	if err != nil {
		panic(err)
	}
	var places []chunk.Place
	for _, b := range chunks {
		c := Compress(S2, b)
		p, err := w.Append(nameOf(b), c)
		if err != nil {
			panic(err)
		}
		places = append(places, p)
		c.Release()
	}
	return chunks, places
}

// afterCrash recovers what a crash left on d and checks that at least the acknowledged chunks are there, whole.
func afterCrash(t *testing.T, d disk.Disk, acked int, sealed bool, chunks [][]byte, places []chunk.Place) {
	t.Helper()
	l := local.New(d, "/store")
	list, err := l.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 {
		if acked > 0 {
			t.Errorf("the pack is gone with %d chunks acknowledged", acked)
		}
		return
	}
	var n int
	if list[0].Sealed { // by its writer, or by a recovery before this crash
		n = countChunks(t, l)
		if n < acked {
			t.Errorf("%d chunks, %d acknowledged", n, acked)
		}
	} else {
		if sealed {
			t.Error("a sealed pack is unsealed")
		}
		got, err := Recover(t.Context(), l, testName, testRead)
		if err != nil || got.Chunks < acked {
			t.Errorf("%d acknowledged: %+v, %v", acked, got, err)
			return
		}
		n = got.Chunks
	}
	checkRecovered(t, l, n, places, chunks)
}

func countChunks(t *testing.T, b backend.Backend) int {
	t.Helper()
	obj, err := b.Open(t.Context(), testName)
	if err != nil {
		t.Fatal(err)
	}
	r := mustOpen(t, obj, testRead)
	defer r.Close()
	dir, err := r.Directory()
	if err != nil {
		t.Fatal(err)
	}
	return len(dir)
}

// TestCrash cuts the power at every sync while a pack is written, recovers, and cuts it again at every sync of the
// recovery.
func TestCrash(t *testing.T) {
	chunks, places := storyChunks()
	d := disk.NewCrash()
	acked, sealed, crashes := 0, false, 0
	d.OnSync(func() {
		for seed := range uint64(12) {
			again := d.Clone(seed)
			again.OnSync(func() {
				for seed := range uint64(4) {
					afterCrash(t, again.Clone(seed), acked, sealed, chunks, places)
					crashes++
				}
			})
			afterCrash(t, again, acked, sealed, chunks, places)
			if t.Failed() {
				t.FailNow()
			}
		}
	})
	if err := writeStory(t, local.New(d, "/store"), chunks, func(n int, s bool) { acked, sealed = n, s }); err != nil {
		t.Fatal(err)
	}
	if crashes < 100 {
		t.Errorf("only %d crashes during recovery", crashes)
	}
}

// TestFaults fails every operation of writing a pack in turn, then cuts the power, then recovers.
func TestFaults(t *testing.T) {
	chunks, places := storyChunks()
	for n := 0; ; n++ {
		under := disk.NewCrash()
		d := disk.NewFaulty(under, n, syscall.EIO)
		acked, sealed := 0, false
		err := writeStory(t, local.New(d, "/store"), chunks, func(n int, s bool) { acked, sealed = n, s })
		if d.Ops() <= n {
			if err != nil {
				t.Error(err)
			}
			break
		}
		for seed := range uint64(12) {
			afterCrash(t, under.Clone(seed), acked, sealed, chunks, places)
		}
		if t.Failed() {
			t.Fatalf("operation %d: %v", n, err)
		}
	}
}

// TestRecoveryFaults fails every operation of a recovery in turn: it says so, and run again it succeeds.
func TestRecoveryFaults(t *testing.T) {
	chunks, places := storyChunks()
	for _, codecAndCut := range []int{0, 100} {
		b, _ := unfinished(t, S2, chunks...)
		b = b[:len(b)-codecAndCut]
		want := len(chunks)
		if codecAndCut > 0 {
			want--
		}
		for n := 0; ; n++ {
			under := disk.NewCrash()
			l := local.New(under, "/store")
			if a, err := l.Append(t.Context(), testName); err != nil {
				t.Fatal(err)
			} else if _, err := a.Write(b); err != nil || a.Sync() != nil || a.Close() != nil {
				t.Fatal(err)
			}
			d := disk.NewFaulty(under, n, syscall.EIO)
			_, err := Recover(t.Context(), local.New(d, "/store"), testName, testRead)
			if d.Ops() <= n {
				if err != nil {
					t.Error(err)
				}
				checkRecovered(t, l, want, places, chunks)
				break
			}
			for seed := range uint64(4) {
				afterCrash(t, under.Clone(seed), want, false, chunks, places)
			}
			if t.Failed() {
				t.Fatalf("operation %d: %v", n, err)
			}
		}
	}
}
