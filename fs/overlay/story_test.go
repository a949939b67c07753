package overlay

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/disk"
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
