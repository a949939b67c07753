package overlay

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The stories here are sequences that the seeded logs meet too seldom; each was a line that could be taken out of the
// code while all other tests passed.

// TestUnsyncedLogCountsAfterReopening: a batch reached the kernel and not the disk when its process died. The next
// process reads it, so a later write that rests on it must not be answered before it is durable.
func TestUnsyncedLogCountsAfterReopening(t *testing.T) {
	c := disk.NewCrash()
	base := memBase{make([]byte, 20*blockSize)}
	d := &failSync{Disk: c}
	o, err := Create(ctx, d, "/o", base, Options{Identity: "b"})
	if err != nil {
		t.Fatal(err)
	}
	d.in.Store(2) // the first sync is of the data, the second of the log
	if err := o.WriteAt(ctx, []byte("unsynced"), 0, true); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	orphan(o)
	if o, err = Open(ctx, c, "/o", base, Options{Identity: "b"}); err != nil {
		t.Fatal(err)
	}
	if o.Used() != blockSize {
		t.Fatal("the story needs the batch to be read")
	}
	if err := o.WriteAt(ctx, []byte("answered"), 0, true); err != nil {
		t.Fatal(err)
	}
	wantAt(t, c.Clone(0), base, 0, "answered")
}

func wantAt(t *testing.T, d disk.Disk, base Base, off int64, want string) {
	t.Helper()
	o, err := Open(ctx, d, "/o", base, Options{Identity: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	got := make([]byte, len(want))
	if _, err := o.ReadAt(ctx, got, off); err != nil && err != io.EOF || string(got) != want {
		t.Errorf("at %d: %q, %v, want %q", off, got, err, want)
	}
}

// TestFailedGrowthLeavesNothing: a write past the end fails half way, in a block that is mapped; a later growth must
// not show what it left there.
func TestFailedGrowthLeavesNothing(t *testing.T) {
	d := &stuckDisk{Disk: disk.NewCrash()}
	base := memBase{nil}
	o, err := Create(ctx, d, "/o", base, Options{Identity: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if err := o.WriteAt(ctx, []byte("start"), 0, true); err != nil {
		t.Fatal(err)
	}
	if err := o.WriteAt(ctx, []byte("more"), 5, true); err != nil { // from here on the tail is known to be clean
		t.Fatal(err)
	}
	d.short.Store(true)
	if err := o.WriteAt(ctx, bytes.Repeat([]byte("x"), 1000), 9, true); err == nil {
		t.Fatal("the write was to fail")
	}
	d.short.Store(false)
	if err := o.Truncate(ctx, 100); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 91)
	if _, err := o.ReadAt(ctx, got, 9); err != nil || !allZero(got) {
		t.Errorf("after growing: %q, %v", got, err)
	}
}

// TestPunchSparesAWriter: a block was discarded and is being written again when its space is to be given back.
func TestPunchSparesAWriter(t *testing.T) {
	d := &stuckDisk{Disk: disk.NewCrash(), at: make(chan struct{}), leave: make(chan struct{})}
	base := memBase{make([]byte, 20*blockSize)}
	o, err := Create(ctx, d, "/o", base, Options{Identity: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.WriteAt(ctx, []byte("old"), 0, true); err != nil {
		t.Fatal(err)
	}
	if err := o.WriteZeroes(ctx, 0, blockSize); err != nil {
		t.Fatal(err)
	}
	d.stick.Store(true)
	done := make(chan error)
	go func() { done <- o.WriteAt(ctx, []byte("new"), 0, false) }()
	<-d.at // the data is in the segment, the map does not know
	for range 2 {
		if err := o.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	close(d.leave)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	wantAt(t, d.Disk, base, 0, "new")
}

// TestGrowersDoNotCleanEachOther: one writer appends to the last block, another one far behind it, and the bytes past
// the end have to be zeroed by whoever comes first: never after the other one has written there.
func TestGrowersDoNotCleanEachOther(t *testing.T) {
	base := memBase{nil}
	for range 300 {
		d := disk.NewCrash()
		o, err := Create(ctx, d, "/o", base, Options{Identity: "b"})
		if err != nil {
			t.Fatal(err)
		}
		if err := o.WriteAt(ctx, []byte("start"), 0, false); err != nil {
			t.Fatal(err)
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		if o, err = Open(ctx, d, "/o", base, Options{Identity: "b"}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for _, off := range []int64{5, 3 * blockSize, 5 * blockSize} {
			wg.Go(func() {
				<-begin
				if err := o.WriteAt(ctx, []byte("grown"), off, false); err != nil {
					t.Error(err)
				}
			})
		}
		o.ranges.lock(span{0, 1}) // all of them get as far as they can before the first one goes on
		close(begin)
		for range 50 {
			runtime.Gosched()
		}
		o.ranges.unlock(span{0, 1})
		wg.Wait()
		for _, off := range []int64{5, 3 * blockSize, 5 * blockSize} {
			got := make([]byte, 5)
			if _, err := o.ReadAt(ctx, got, off); err != nil || string(got) != "grown" {
				t.Fatalf("at %d: %q, %v", off, got, err)
			}
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRemoveInSteps: a removal that is cut short at any operation, with or without a power cut, leaves what a second
// Remove takes away and what Create accepts, or the whole overlay.
func TestRemoveInSteps(t *testing.T) {
	base := memBase{make([]byte, 10*blockSize)}
	for n := 0; ; n++ {
		c := disk.NewCrash()
		o, err := Create(ctx, c, "/o", base, Options{Identity: "b", SegmentBytes: blockSize})
		if err != nil {
			t.Fatal(err)
		}
		if err := o.WriteAt(ctx, make([]byte, 3*blockSize), 0, true); err != nil {
			t.Fatal(err)
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		f := disk.NewFaulty(c, n, syscall.EIO).Forever()
		err = Remove(f, "/o")
		if f.Ops() <= n {
			if err != nil || n < 8 {
				t.Errorf("%d operations: %v", n, err)
			}
			return
		}
		if err == nil {
			t.Errorf("operation %d failed and nobody says so", n)
		}
		for s := range uint64(5) {
			left := c.Clone(s)
			o, err := Open(ctx, left, "/o", base, Options{Identity: "b"})
			if errs.Is(err, errs.NotFound) {
				o, err = Create(ctx, left, "/o", base, Options{Identity: "b"})
			}
			if err != nil {
				t.Fatalf("operation %d, cut %d: %v", n, s, err)
			}
			if err := o.Close(); err != nil {
				t.Error(err)
			}
			for range 2 {
				if err := Remove(left, "/o"); err != nil {
					t.Errorf("operation %d, cut %d, once more: %v", n, s, err)
				}
			}
		}
	}
}

// TestUnstableBacklogIsBounded: writes that nobody commits do not pile up changes of the map without end.
func TestUnstableBacklogIsBounded(t *testing.T) {
	o, err := Create(ctx, disk.NewCrash(), "/o", memBase{make([]byte, 1)}, Options{Identity: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	for i := range int64(2*flushPending + 10) {
		if err := o.WriteAt(ctx, []byte("x"), i*2*blockSize, false); err != nil {
			t.Fatal(err)
		}
		o.mu.RLock()
		n := len(o.pending)
		o.mu.RUnlock()
		if n > maxPending {
			t.Fatalf("%d changes wait", n)
		}
	}
	if err := o.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	if len(o.pending) != 0 {
		t.Errorf("%d changes wait after a commit", len(o.pending))
	}
}

// stuckDisk writes segments short, or stops after writing until it is told to leave.
type stuckDisk struct {
	disk.Disk
	short, stick atomic.Bool
	at, leave    chan struct{}
}

type stuckFile struct {
	disk.File
	d *stuckDisk
}

func (d *stuckDisk) Create(name string) (disk.File, error) {
	f, err := d.Disk.Create(name)
	if err != nil || !strings.HasSuffix(name, ".data") {
		return f, err
	}
	return &stuckFile{f, d}, nil
}

func (f *stuckFile) Size() (int64, error)     { return disk.Size(f.File) }
func (f *stuckFile) Punch(off, n int64) error { return f.File.(disk.Puncher).Punch(off, n) }

func (f *stuckFile) WriteAt(p []byte, off int64) (int, error) {
	if f.d.short.Load() {
		n, _ := f.File.WriteAt(p[:len(p)/2], off)
		return n, syscall.EIO
	}
	n, err := f.File.WriteAt(p, off)
	if f.d.stick.CompareAndSwap(true, false) {
		f.d.at <- struct{}{}
		<-f.d.leave
	}
	return n, err
}
