package overlay

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// TestRuns holds the runs against what was done, block by block.
func TestRuns(t *testing.T) {
	base := newBase(rand.New(rand.NewPCG(1, 3)), 100*blockSize+100)
	o, err := Create(ctx, disk.NewCrash(), "/o", base, Options{Identity: "b", SegmentBytes: 8 * blockSize})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	want := make([]Kind, 101)
	mark := func(k Kind, from, to int) {
		for i := from; i < to; i++ {
			want[i] = k
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(o.WriteAt(ctx, []byte("x"), 3*blockSize+7, false))
	mark(KindData, 3, 4)
	must(o.WriteAt(ctx, make([]byte, 20*blockSize), 30*blockSize, true))
	mark(KindData, 30, 50)
	must(o.WriteZeroes(ctx, 40*blockSize, 20*blockSize))
	mark(KindZero, 40, 60)
	must(o.WriteAt(ctx, []byte("end"), 100*blockSize+50, true))
	mark(KindData, 100, 101)
	for _, r := range [][2]int64{{0, 1 << 50}, {0, 101 * blockSize}, {3*blockSize + 5, 10}, {35*blockSize + 1, 20 * blockSize}, {100 * blockSize, 50}, {1 << 30, 5}, {7, 0}} {
		at, last := r[0], Kind(255)
		must(o.Runs(r[0], r[1], func(off, n int64, k Kind) bool {
			if off != at || n <= 0 || k == last {
				t.Fatalf("%v: run %d+%d of kind %d after %d of kind %d", r, off, n, k, at, last)
			}
			for b := off / blockSize; b <= (off+n-1)/blockSize; b++ {
				if want[b] != k {
					t.Fatalf("%v: block %d is of kind %d, want %d", r, b, k, want[b])
				}
			}
			at, last = off+n, k
			return true
		}))
		if end := min(r[0]+r[1], o.Size()); r[0] < o.Size() && at != end {
			t.Errorf("%v: the runs end at %d, not at %d", r, at, end)
		}
	}
	calls := 0
	must(o.Runs(0, 1<<40, func(int64, int64, Kind) bool { calls++; return false }))
	if calls != 1 {
		t.Errorf("%d calls after one said enough", calls)
	}
	if err := o.Runs(-1, 5, nil); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
	must(o.Truncate(ctx, 10*blockSize))
	must(o.Truncate(ctx, 20*blockSize))
	if got := o.BaseLimit(); got != 10*blockSize {
		t.Errorf("the base is visible up to %d", got)
	}
}

// TestHold: while an overlay is held nothing changes, whoever writes in whatever way; afterwards everything arrives.
func TestHold(t *testing.T) {
	base := newBase(rand.New(rand.NewPCG(1, 4)), 200*blockSize)
	o, err := Create(ctx, disk.NewCrash(), "/o", base, Options{Identity: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	busy, end := disturb(t, o)
	for range 20 {
		<-busy
		release, err := o.Hold(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.Hold(ctx); !errs.Is(err, errs.Busy) {
			t.Errorf("held twice: %v", err)
		}
		first, err := readAll(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Commit(ctx); err != nil {
			t.Errorf("commit: %v", err)
		}
		if second, err := readAll(o); err != nil || !bytes.Equal(first, second) {
			t.Fatalf("it changed while it was held (%v)", err)
		}
		// A writer waits as long as its context lasts.
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		if err := o.WriteAt(short, []byte("x"), 0, true); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a write: %v", err)
		}
		if err := o.Truncate(short, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a truncation: %v", err)
		}
		cancel()
		release()
		<-busy
	}
	end()
}

// disturb writes to an overlay in every way until end is called. busy tells of progress.
func disturb(t *testing.T, o *Overlay) (busy chan struct{}, end func()) {
	stop := make(chan struct{})
	busy = make(chan struct{}, 1)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(w)))
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				off := r.Int64N(220 * blockSize)
				var err error
				switch n % 8 {
				case 0:
					err = o.WriteZeroes(ctx, off, r.Int64N(5*blockSize))
				case 1:
					err = o.Truncate(ctx, 150*blockSize+off)
				default:
					err = o.WriteAt(ctx, bytes.Repeat([]byte{byte(n)}, 1+r.IntN(3*blockSize)), off, n%2 == 0)
				}
				if err != nil {
					t.Error(err)
				}
				select {
				case busy <- struct{}{}:
				default:
				}
			}
		})
	}
	return busy, func() {
		close(stop)
		wg.Wait()
	}
}

// TestHoldIsGivenUp: a writer hangs in the base; who wants to hold the image meanwhile waits as long as its context
// lasts, and leaves nothing behind. Closing waits for no hold.
func TestHoldIsGivenUp(t *testing.T) {
	hang := make(chan struct{})
	o, err := Create(ctx, disk.NewCrash(), "/o", hangingBase{memBase{make([]byte, 10*blockSize)}, hang}, Options{Identity: "b"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- o.WriteAt(ctx, []byte("x"), 0, false) }()
	hang <- struct{}{} // it is in the base
	short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	defer cancel()
	if _, err := o.Hold(short); !errs.Is(err, errs.Canceled) {
		t.Errorf("a hold under a hanging writer: %v", err)
	}
	if err := o.WriteAt(ctx, make([]byte, blockSize), blockSize, true); err != nil {
		t.Errorf("a write after the hold was given up: %v", err)
	}
	hang <- struct{}{}
	if err := <-done; err != nil {
		t.Error(err)
	}
	release, err := o.Hold(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Errorf("closing what is held: %v", err)
	}
	release()
	if _, err := o.Hold(ctx); !errs.Is(err, errs.Stale) {
		t.Errorf("holding what is closed: %v", err)
	}
	if err := o.Runs(0, 1, nil); !errs.Is(err, errs.Stale) {
		t.Errorf("runs of what is closed: %v", err)
	}
}

// hangingBase stops in each read until it is told twice to go on.
type hangingBase struct {
	memBase
	hang chan struct{}
}

func (b hangingBase) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	<-b.hang
	<-b.hang
	return b.memBase.ReadAt(ctx, p, off)
}
