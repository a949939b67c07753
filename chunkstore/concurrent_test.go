package chunkstore

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// goroutinesEnd waits until no more goroutines run than there were. Those that end need only to be scheduled.
func goroutinesEnd(t *testing.T, before int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
}

// TestSessionsSideBySide: several sessions store disks that have much in common, while points are listed, read and
// removed. Every point reads as it was stored.
func TestSessionsSideBySide(t *testing.T) {
	s, dir, o := realStore(t, Options{PackSize: 500 << 10, CacheBytes: 1 << 20})
	common := noise(1, 2<<20)
	var mu sync.Mutex
	want := map[string][]byte{}
	var writers, readers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			for round := range 3 {
				name := fmt.Sprintf("%d-%d", w, round)
				data := slices.Concat(common[:(w+1)*(512<<10)], noise(uint64(w*10+round+5), 300<<10), common)
				mu.Lock()
				want[name] = data
				mu.Unlock()
				p, err := tryBackup(t.Context(), s, name, &bytesSource{data: data}, nil)
				if err == nil && round == 1 {
					err = s.RemovePoint(t.Context(), p.ID)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var done atomic.Bool
	for range 2 {
		r, err := OpenReader(t.Context(), dir, o)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		readers.Go(func() {
			for last := false; !last; {
				last = done.Load()
				points, bad := r.Points(t.Context())
				if len(bad) > 0 {
					t.Error(bad)
					return
				}
				for _, p := range points {
					mu.Lock()
					content := want[p.Labels["name"]]
					mu.Unlock()
					got, err := readImage(t.Context(), r, p, 0)
					removed := strings.HasSuffix(p.Labels["name"], "-1") && errs.Is(err, errs.Stale)
					if !removed && (err != nil || !bytes.Equal(got, content)) {
						t.Errorf("point %s beside a writer: %v", p.Labels["name"], err)
						return
					}
				}
			}
		})
	}
	writers.Wait()
	done.Store(true)
	readers.Wait()
	checkPoints(t, s.Reader, want, "0-0", "0-2", "1-0", "1-2", "2-0", "2-2")
}

// TestReadAtFromMany reads one image from many goroutines, some of which give up at any moment: nobody else is failed by
// that, no wrong byte is read, nothing is left behind, and the cache is as good as before.
func TestReadAtFromMany(t *testing.T) {
	s, dir, _ := realStore(t, Options{PackSize: 300 << 10})
	data := slices.Concat(noise(1, 3<<20), make([]byte, 1<<20), noise(2, 2<<20+777))
	p, err := tryBackup(t.Context(), s, "x", &bytesSource{data: data}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, cache := range []int64{1, 1 << 20, 64 << 20} {
		r, err := OpenReader(t.Context(), dir, Options{Unlock: WithMaster(testKey), CacheBytes: cache})
		if err != nil {
			t.Fatal(err)
		}
		img, err := r.Image(p, 0)
		if err != nil {
			t.Fatal(err)
		}
		before := runtime.NumGoroutine()
		var wg sync.WaitGroup
		for g := range 12 {
			wg.Go(func() { readAndGiveUp(t, img, data, uint64(g)) })
		}
		wg.Wait()
		goroutinesEnd(t, before+2) // a cache may have begun its own maintenance
		if got, err := readImage(t.Context(), r, p, 0); err != nil || !bytes.Equal(got, data) {
			t.Fatal("after all that:", err)
		}
		_ = r.Close()
	}
}

func readAndGiveUp(t *testing.T, img *Image, data []byte, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 3))
	for range 40 {
		off := rng.IntN(len(data))
		want := data[off:min(len(data), off+1+rng.IntN(700_000))]
		ctx, cancel := context.WithCancel(t.Context())
		patience := rng.IntN(2000)
		if seed%2 == 0 {
			go func() {
				for range patience {
					runtime.Gosched()
				}
				cancel()
			}()
		}
		got := make([]byte, len(want))
		n, err := img.ReadAt(ctx, got, int64(off))
		if !bytes.Equal(got[:n], want[:n]) {
			t.Errorf("%d bytes at %d are not what was stored", n, off)
		}
		if err == nil != (n == len(want)) || err != nil && (seed%2 == 1 || !errs.Is(err, errs.Canceled)) {
			t.Errorf("read %d of %d bytes at %d: %v", n, len(want), off, err)
		}
		cancel()
	}
}

// stopping is a source that calls stop at its n-th read.
type stopping struct {
	*bytesSource
	left *atomic.Int64
	stop func() error
}

func (s stopping) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if s.left.Add(-1) == 0 {
		if err := s.stop(); err != nil {
			return 0, err
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return s.bytesSource.ReadAt(ctx, p, off)
}

// TestIngestCutShort cancels a backup, or fails its source, at every read: it ends, with the right error and without
// goroutines, and the next one works.
func TestIngestCutShort(t *testing.T) {
	s, _, _ := realStore(t, Options{PackSize: 1 << 20})
	data := noise(1, 40<<20) // five leaves: more than are on their way at once
	if raceEnabled {
		data = data[:25<<20]
	}
	before := runtime.NumGoroutine()
	failed := errs.Text("read", "source", errs.Transient, "made to fail")
	for n := int64(1); n <= 6; n++ {
		for _, cancelling := range []bool{true, false} {
			ctx, cancel := context.WithCancel(t.Context())
			src := stopping{&bytesSource{data: data}, &atomic.Int64{}, func() error { return failed }}
			src.left.Store(n)
			kind := errs.Transient
			if cancelling {
				src.stop, kind = func() error { cancel(); return nil }, errs.Canceled
			}
			x := s.Begin(time.Now(), nil, nil)
			err := x.Ingest(ctx, 0, lyingReads{src}, nil, nil)
			if n < 5 && !errs.Is(err, kind) {
				t.Errorf("read %d: %v, want kind %v", n, err, kind)
			}
			if err != nil {
				if _, cerr := x.Commit(t.Context()); !errs.Is(cerr, errs.Invalid) {
					t.Error("Commit after that:", cerr)
				}
			}
			x.Abort()
			cancel()
			goroutinesEnd(t, before)
		}
	}
	p, err := tryBackup(t.Context(), s, "x", &bytesSource{data: data}, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkPoints(t, s.Reader, map[string][]byte{"x": data}, "x")
	checkVerify(t, s.Reader, []*Point{p}, 0)
}

// lyingReads says that all is data.
type lyingReads struct{ stopping }

func (l lyingReads) Extents(_ context.Context, visit func(Extent) error) error {
	return visit(Extent{0, l.Size(), ExtentData})
}

// TestPointRemovedWhileRead: an image that was read goes on reading, in the process that removes its point and in others.
// One that comes too late is told that the point is gone.
func TestPointRemovedWhileRead(t *testing.T) {
	s, dir, _ := realStore(t, Options{})
	data := noise(1, 500<<10)
	p, err := tryBackup(t.Context(), s, "x", &bytesSource{data: data}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(t.Context(), dir, Options{Unlock: WithMaster(testKey)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var images []*Image
	for _, reader := range []*Reader{r, s.Reader} {
		img, err := reader.Image(p, 0)
		if err == nil {
			_, err = img.ReadAt(t.Context(), make([]byte, 1), 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, img)
	}
	if err := s.RemovePoint(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
	for i, reader := range []*Reader{r, s.Reader} {
		got := make([]byte, len(data))
		if n, err := images[i].ReadAt(t.Context(), got, 0); n != len(got) || !bytes.Equal(got, data) {
			t.Error(err)
		}
		late, err := reader.Image(p, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := late.ReadAt(t.Context(), got, 0); err != nil {
			t.Error("another image of a point that is being read:", err)
		}
		if _, err := reader.Point(t.Context(), p.ID); !errs.Is(err, errs.NotFound) {
			t.Error("the record:", err)
		}
	}
	if err := s.RemovePoint(t.Context(), p.ID); !errs.Is(err, errs.NotFound) {
		t.Error("removed twice:", err)
	}
	other, err := OpenReader(t.Context(), dir, Options{Unlock: WithMaster(testKey)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := readImage(t.Context(), other, p, 0); !errs.Is(err, errs.Stale) || errs.NextStep(err) == "" {
		t.Error("an image that was not read before:", err)
	}
}

// TestPackVanishes: a pack that is open goes on being read when its file is gone; when it had to be opened again, the
// error says which file is missing; when the file is back, it is read.
func TestPackVanishes(t *testing.T) {
	s, dir, _ := realStore(t, Options{})
	data := noise(1, 300<<10)
	p, err := tryBackup(t.Context(), s, "x", &bytesSource{data: data}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(t.Context(), dir, Options{Unlock: WithMaster(testKey), CacheBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	read := func() error {
		got, err := readImage(t.Context(), r, p, 0)
		if err == nil && !bytes.Equal(got, data) {
			t.Error("other bytes")
		}
		return err
	}
	if err := read(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, packName(pack.Data, 1))
	if err := os.Rename(name, name+".away"); err != nil {
		t.Fatal(err)
	}
	if err := read(); err != nil {
		t.Error("an open pack:", err)
	}
	r.packs.close()
	if err := read(); !errs.Is(err, errs.Corrupt) {
		t.Error("a missing pack:", err)
	}
	if err := os.Rename(name+".away", name); err != nil {
		t.Fatal(err)
	}
	if err := read(); err != nil {
		t.Error("the pack is back:", err)
	}
}
