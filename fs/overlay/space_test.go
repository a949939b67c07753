package overlay

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// fullDisk has no space for anything new once full is set: writes go through only where there is a block already.
type fullDisk struct {
	disk.Disk
	full atomic.Bool
}

type fullFile struct {
	disk.File
	d    *fullDisk
	log  bool
	mu   sync.Mutex
	have map[int64]bool
}

func (d *fullDisk) wrap(name string, f disk.File, err error) (disk.File, error) {
	if err != nil {
		return nil, err
	}
	return &fullFile{File: f, d: d, log: strings.Contains(name, logName), have: map[int64]bool{}}, nil
}

func (d *fullDisk) OpenRW(name string) (disk.File, error) {
	f, err := d.Disk.OpenRW(name)
	return d.wrap(name, f, err)
}

func (d *fullDisk) Create(name string) (disk.File, error) {
	if d.full.Load() {
		return nil, syscall.ENOSPC
	}
	f, err := d.Disk.Create(name)
	return d.wrap(name, f, err)
}

func (f *fullFile) Size() (int64, error) { return disk.Size(f.File) }

func (f *fullFile) Punch(off, n int64) error { return f.File.(disk.Puncher).Punch(off, n) }

func (f *fullFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	size, _ := disk.Size(f.File)
	for b := off / blockSize; b <= (off+int64(len(p))-1)/blockSize; b++ {
		if f.d.full.Load() && !f.have[b] && !(f.log && (b+1)*blockSize <= size) {
			return 0, syscall.ENOSPC
		}
		f.have[b] = true
	}
	return f.File.WriteAt(p, off)
}

// TestFullDisk: new blocks are refused, mapped ones are still written and acknowledged, and with space again all goes
// on; nothing acknowledged is lost at any time.
func TestFullDisk(t *testing.T) {
	c := disk.NewCrash()
	d := &fullDisk{Disk: c}
	base := newBase(rand.New(rand.NewPCG(1, 8)), 400*blockSize)
	o, err := Create(ctx, d, "/o", base, Options{Identity: "b"})
	if err != nil {
		t.Fatal(err)
	}
	m := newModel(bytes.Clone(base.data))
	write := func(off int, text string, stable bool) error {
		m.do(func(b []byte) []byte { copy(b[off:], text); return b })
		err := o.WriteAt(ctx, []byte(text), int64(off), stable)
		if err == nil && stable {
			m.ackRange(off, off+len(text))
		}
		return err
	}
	for i := range 10 {
		if err := write(i*2*blockSize, "before", true); err != nil {
			t.Fatal(err)
		}
	}
	d.full.Store(true)
	if err := write(300*blockSize, "new", true); !errs.Is(err, errs.NoSpace) {
		t.Errorf("a new block on a full disk: %v", err)
	}
	if err := write(2*blockSize, "rewritten", true); err != nil {
		t.Errorf("a mapped block on a full disk: %v", err)
	}
	if _, err := readAll(o); err != nil {
		t.Errorf("read on a full disk: %v", err)
	}
	d.full.Store(false)
	if err := write(300*blockSize, "new again", true); err != nil {
		t.Errorf("with space again: %v", err)
	}
	for s := range uint64(10) {
		p, err := Open(ctx, c.Clone(s), "/o", base, Options{Identity: "b"})
		if err != nil {
			t.Fatal(err)
		}
		got, err := readAll(p)
		if err == nil {
			err = m.check(got)
		}
		if err != nil {
			t.Error(err)
		}
		p.Close()
	}
	o.Close()
}

// TestFullLog: the segments have space and the log has none. Whoever needs the log is refused, who does not is served,
// and as soon as there is space the changes that waited are recorded.
func TestFullLog(t *testing.T) {
	c := disk.NewCrash()
	d := &fullLog{Disk: c}
	base := memBase{make([]byte, 100*blockSize)}
	o, err := Create(ctx, d, "/o", base, Options{Identity: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.WriteAt(ctx, []byte("mapped"), 0, true); err != nil {
		t.Fatal(err)
	}
	d.full.Store(true)
	for range 2 {
		if err := o.WriteAt(ctx, []byte("new"), 8*blockSize, true); !errs.Is(err, errs.NoSpace) {
			t.Errorf("a block the log has no space for: %v", err)
		}
		if err := o.WriteAt(ctx, []byte("MAPPED"), 0, true); err != nil {
			t.Errorf("a block that needs no log: %v", err)
		}
		if err := o.Commit(ctx); !errs.Is(err, errs.NoSpace) {
			t.Errorf("commit: %v", err)
		}
	}
	d.full.Store(false)
	if err := o.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	p, err := Open(ctx, c.Clone(0), "/o", base, Options{Identity: "b"})
	if err != nil {
		t.Fatal(err)
	}
	for off, want := range map[int64]string{0: "MAPPED", 8 * blockSize: "new"} {
		got := make([]byte, len(want))
		if _, err := p.ReadAt(ctx, got, off); err != nil || string(got) != want {
			t.Errorf("at %d: %q, %v", off, got, err)
		}
	}
}

// fullLog refuses writes to logs, after writing a part.
type fullLog struct {
	disk.Disk
	full atomic.Bool
}

type fullLogFile struct {
	disk.File
	d *fullLog
}

func (d *fullLog) wrap(name string, f disk.File, err error) (disk.File, error) {
	if err != nil || !strings.Contains(name, logName) {
		return f, err
	}
	return &fullLogFile{f, d}, nil
}

func (d *fullLog) OpenRW(name string) (disk.File, error) {
	f, err := d.Disk.OpenRW(name)
	return d.wrap(name, f, err)
}

func (d *fullLog) Create(name string) (disk.File, error) {
	f, err := d.Disk.Create(name)
	return d.wrap(name, f, err)
}

func (f *fullLogFile) Size() (int64, error) { return disk.Size(f.File) }

func (f *fullLogFile) WriteAt(p []byte, off int64) (int, error) {
	if f.d.full.Load() {
		n, _ := f.File.WriteAt(p[:len(p)/2], off)
		return n, syscall.ENOSPC
	}
	return f.File.WriteAt(p, off)
}

// TestMaxBytes: the bound counts data blocks; rewriting needs none, discarding gives them back.
func TestMaxBytes(t *testing.T) {
	base := memBase{make([]byte, 100*blockSize)}
	o, err := Create(ctx, disk.NewCrash(), "/o", base, Options{Identity: "b", MaxBytes: 4 * blockSize})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	var wg sync.WaitGroup
	var refused atomic.Int32
	for i := range 8 {
		wg.Go(func() {
			err := o.WriteAt(ctx, []byte("x"), int64(i)*blockSize, true)
			if errs.Is(err, errs.NoSpace) && errs.NextStep(err) != "" {
				refused.Add(1)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if o.Used() != 4*blockSize || refused.Load() != 4 {
		t.Fatalf("%d used, %d refused", o.Used(), refused.Load())
	}
	first, err := o.NextData(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	used := int64(-1)
	for i := range int64(8) {
		if o.stateAt(i) == stateData {
			used = i
		}
	}
	if err := o.WriteAt(ctx, []byte("again"), used*blockSize, true); err != nil {
		t.Errorf("rewriting at %d (data from %d): %v", used, first, err)
	}
	if err := o.WriteZeroes(ctx, used*blockSize, blockSize); err != nil {
		t.Fatal(err)
	}
	if err := o.WriteAt(ctx, []byte("y"), 50*blockSize, true); err != nil {
		t.Errorf("after a discard: %v", err)
	}
}

// TestPunch: what is discarded gives its space back on the real disk.
func TestPunch(t *testing.T) {
	dir := t.TempDir() + "/o"
	o, err := Create(ctx, disk.OS{}, dir, memBase{make([]byte, 16<<20)}, Options{Identity: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if err := o.WriteAt(ctx, bytes.Repeat([]byte{1}, 8<<20), 0, true); err != nil {
		t.Fatal(err)
	}
	before := allocated(t, dir+"/"+segmentName(0))
	if err := o.WriteZeroes(ctx, 100, 7<<20); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the space comes back after the answer; a second batch waits for that
		if err := o.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if after := allocated(t, dir+"/"+segmentName(0)); after > before-6<<20 {
		t.Errorf("the segment took %d bytes, after the discard %d", before, after)
	}
}

func allocated(t *testing.T, name string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestOverlappingWriters: writers of different bytes of the same blocks, unmapped at first, lose nothing of each other,
// while the same blocks are read and others discarded.
func TestOverlappingWriters(t *testing.T) {
	const writers, n = 8, 6 * blockSize
	base := newBase(rand.New(rand.NewPCG(1, 9)), n)
	for range 20 {
		o, err := Create(ctx, disk.NewCrash(), "/o", base, Options{Identity: "b", SegmentBytes: 2 * blockSize})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for at := w * 16; at < n; at += writers * 16 {
					if err := o.WriteAt(ctx, bytes.Repeat([]byte{byte(w + 1)}, 16), int64(at), at%64 == 0); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Go(func() {
			for range 20 {
				if _, err := readAll(o); err != nil {
					t.Error(err)
				}
				if err := o.WriteZeroes(ctx, n, 10*blockSize); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Wait()
		got, err := readAll(o)
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range got {
			if want := byte(i/16%writers + 1); b != want {
				t.Fatalf("byte %d is %d, want %d", i, b, want)
			}
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}
}
