package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

var ctx = context.Background()

// memBase is a base in memory. With holes it also tells where it has none but zeros.
type memBase struct{ data []byte }

func (b memBase) Size() int64 { return int64(len(b.data)) }

func (b memBase) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(b.data).ReadAt(p, off)
}

type holedBase struct{ memBase }

func (b holedBase) NextData(_ context.Context, off int64) (int64, error) {
	return b.next(off, true), nil
}
func (b holedBase) NextHole(_ context.Context, off int64) (int64, error) {
	return b.next(off, false), nil
}

func (b holedBase) next(off int64, data bool) int64 {
	for ; off < b.Size(); off++ {
		if (b.data[off] != 0) == data {
			return off
		}
	}
	return b.Size()
}

// newBase fills a base with what is never zero, and with zeros in every third stretch of 5000 bytes.
func newBase(r *rand.Rand, size int) memBase {
	b := make([]byte, size)
	for i := range b {
		if i/5000%3 != 1 {
			b[i] = byte(1 + r.IntN(255))
		}
	}
	return memBase{b}
}

// model says what an image may hold: its history since each byte was last known to be durable. An operation that was
// not acknowledged, or failed, leaves any of its bytes old or new.
type model struct {
	hist      [][]byte // the image after each operation, oldest first; the last one is the present
	floor     []int    // per byte: the oldest image that it may come from
	sizeFloor int      // the oldest image whose size the image may have
	minSize   int      // a stable write ended here
	unsure    bool     // an operation failed and may be half done: the present is not known
}

func newModel(image []byte) *model {
	return &model{hist: [][]byte{image}, floor: make([]int, len(image))}
}

func (m *model) now() []byte { return m.hist[len(m.hist)-1] }

// do begins an operation.
func (m *model) do(change func(image []byte) []byte) {
	m.hist = append(m.hist, change(bytes.Clone(m.now())))
	for len(m.floor) < len(m.now()) {
		m.floor = append(m.floor, 0)
	}
}

// ackRange says that a stable write of [off, end) was acknowledged.
func (m *model) ackRange(off, end int) {
	for i := off; i < end; i++ {
		m.floor[i] = len(m.hist) - 1
	}
	m.minSize = max(m.minSize, end)
}

// ackAll says that everything is durable.
func (m *model) ackAll() {
	if !m.unsure {
		*m = *newModel(m.now())
	}
}

// failed says that the last operation failed, and so may have been done in part.
func (m *model) failed() { m.unsure = true }

// saw takes an image that was checked as the present.
func (m *model) saw(image []byte) {
	if m.unsure {
		m.do(func([]byte) []byte { return image })
		m.unsure = false
	}
}

// check compares an image with what it may be.
func (m *model) check(got []byte) error {
	sizeOK := false
	for _, h := range m.hist[m.sizeFloor:] {
		sizeOK = sizeOK || len(h) == len(got)
	}
	if !sizeOK || len(got) < m.minSize && len(got) < len(m.now()) {
		return fmt.Errorf("the image has %d bytes, %d now, a stable write ended at %d", len(got), len(m.now()), m.minSize)
	}
	for i, c := range got {
		ok := false
		for j := m.floor[i]; j < len(m.hist) && !ok; j++ {
			ok = i < len(m.hist[j]) && m.hist[j][i] == c || i >= len(m.hist[j]) && c == 0
		}
		if !ok {
			return fmt.Errorf("byte %d of %d is %#x, not one of the %d last operations", i, len(got), c,
				len(m.hist)-m.floor[i])
		}
	}
	return nil
}

func readAll(o *Overlay) ([]byte, error) {
	got := make([]byte, o.Size())
	n, err := o.ReadAt(ctx, got, 0)
	if err == io.EOF {
		err = nil
	}
	if err == nil && n != len(got) {
		err = fmt.Errorf("read %d of %d bytes", n, len(got))
	}
	return got, err
}

// opLog draws operations from a seed and makes them on an overlay and on the model.
type opLog struct {
	r   *rand.Rand
	m   *model
	max int // the image stays below
}

// spot draws a range, often at the border of a block, a segment or the end.
func (l *opLog) spot() (off, n int) {
	size := len(l.m.now())
	switch l.r.IntN(4) {
	case 0:
		off = l.r.IntN(size + 1)
	case 1:
		off = l.r.IntN(size/blockSize+1)*blockSize + l.r.IntN(3) - 1
	case 2:
		off = l.r.IntN(size/(4*blockSize)+1) * 4 * blockSize
	default:
		off = size - l.r.IntN(2*blockSize)
	}
	n = []int{1, 56, 511, 512, blockSize - 1, blockSize, blockSize + 1, 3 * blockSize, 5*blockSize + 7}[l.r.IntN(9)]
	off = max(0, off)
	return off, min(n, max(1, l.max-off))
}

// step makes one operation and returns its name. The model is ahead of the overlay while it runs.
func (l *opLog) step(o *Overlay) (name string, err error) {
	off, n := l.spot()
	switch k := l.r.IntN(20); {
	case k < 12:
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(1 + l.r.IntN(255))
		}
		stable := k < 6
		name = fmt.Sprintf("write %d at %d stable=%v", n, off, stable)
		l.m.do(func(b []byte) []byte {
			if len(b) < off+n {
				b = append(b, make([]byte, off+n-len(b))...)
			}
			copy(b[off:], p)
			return b
		})
		if err = o.WriteAt(ctx, p, int64(off), stable); err == nil && stable {
			l.m.ackRange(off, off+n)
		}
	case k < 15:
		name = fmt.Sprintf("zero %d at %d", n, off)
		l.m.do(func(b []byte) []byte {
			if off < len(b) {
				clear(b[off:min(off+n, len(b))])
			}
			return b
		})
		err = o.WriteZeroes(ctx, int64(off), int64(n))
	case k < 17:
		size := max(1, min(l.max, len(l.m.now())+l.r.IntN(4*blockSize)-2*blockSize))
		if l.r.IntN(3) == 0 {
			size = 1 + l.r.IntN(l.max)
		}
		name = fmt.Sprintf("truncate to %d", size)
		l.m.do(func(b []byte) []byte { return append(b, make([]byte, max(0, size-len(b)))...)[:size] })
		l.m.minSize = min(l.m.minSize, size)
		if err = o.Truncate(ctx, int64(size)); err == nil {
			l.m.ackAll()
		}
	default:
		name = "commit"
		if err = o.Commit(ctx); err == nil {
			l.m.ackAll()
		}
	}
	return name, err
}

type config struct {
	baseSize int
	holes    bool
	opts     Options
}

// configs walks the corners: sizes around the borders of blocks and segments, odd ends, no base at all.
func configs() (all []config) {
	for _, size := range []int{0, 1, blockSize - 1, blockSize, 4*blockSize + 56, 8 * blockSize, 40000} {
		for _, seg := range []int64{blockSize, 4 * blockSize, DefaultSegmentBytes} {
			all = append(all, config{size, size%2 == 0, Options{Identity: "b", SegmentBytes: seg, compactAfter: seg % 7}})
		}
	}
	return all
}

func repeat(t *testing.T, seed uint64) {
	if t.Failed() {
		t.Logf("repeat with: go test ./fs/overlay -run '%s' -overlay.seed=%d", t.Name(), seed)
	}
}

// TestModel runs one operation log over every configuration, some of them on the real disk, and compares each answer with the model.
func TestModel(t *testing.T) {
	for i, c := range configs() {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			seed := firstSeed(uint64(time.Now().UnixNano()))
			defer repeat(t, seed)
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			mb := newBase(r, c.baseSize)
			var base Base = mb
			if c.holes {
				base = holedBase{mb}
			}
			var d disk.Disk = disk.NewCrash() // nothing crashes here, but it syncs for nothing
			dir := "/o"
			if i%5 == 0 {
				d, dir = disk.OS{}, t.TempDir()+"/o"
			}
			o, err := Create(ctx, d, dir, base, c.opts)
			if err != nil {
				t.Fatal(err)
			}
			l := &opLog{r: r, m: newModel(bytes.Clone(mb.data)), max: 60000}
			for n := range 120 {
				name, err := l.step(o)
				if err != nil {
					t.Fatalf("seed %d, step %d, %s: %v", seed, n, name, err)
				}
				if r.IntN(20) == 0 {
					if err := o.Close(); err != nil {
						t.Fatal(err)
					}
					if o, err = Open(ctx, d, dir, base, c.opts); err != nil {
						t.Fatalf("seed %d, step %d: %v", seed, n, err)
					}
				}
				l.m.ackAll() // while nothing crashes, only the present counts
				if err := compare(o, l); err != nil {
					t.Fatalf("seed %d, step %d, %s: %v", seed, n, name, err)
				}
			}
			if err := o.Close(); err != nil {
				t.Error(err)
			}
			if err := Remove(d, dir); err != nil {
				t.Error(err)
			}
		})
	}
}

// compare holds an overlay against the model's present: all bytes, one random range, the end, the holes, the space.
func compare(o *Overlay, l *opLog) error {
	got, err := readAll(o)
	if err == nil {
		err = l.m.check(got)
	}
	if err != nil {
		return err
	}
	want := l.m.now()
	off, n := l.spot()
	p := bytes.Repeat([]byte{0xaa}, n)
	got1, err := o.ReadAt(ctx, p, int64(off))
	left := max(0, len(want)-off)
	if got1 != min(n, left) || (err == io.EOF) != (n > left) || err != nil && err != io.EOF {
		return fmt.Errorf("read %d at %d of %d: %d, %v", n, off, len(want), got1, err)
	}
	if !bytes.Equal(p[:got1], want[min(off, len(want)):][:got1]) {
		return fmt.Errorf("read %d at %d: wrong bytes", n, off)
	}
	if used := o.Used(); used < 0 || used > int64(len(want)+blockSize) {
		return fmt.Errorf("%d bytes used by an image of %d", used, len(want))
	}
	return compareHoles(o, want)
}

func compareHoles(o *Overlay, want []byte) error {
	size := int64(len(want))
	for at := int64(0); at < size; {
		data, err := o.NextData(ctx, at)
		if err != nil {
			return err
		}
		if data < at || data > size || !allZero(want[at:data]) {
			return fmt.Errorf("NextData(%d) = %d skips data", at, data)
		}
		if data == size {
			return nil
		}
		hole, err := o.NextHole(ctx, data)
		if err != nil {
			return err
		}
		if hole <= data || hole > size {
			return fmt.Errorf("NextHole(%d) = %d of %d", data, hole, size)
		}
		at = hole
	}
	return nil
}

func TestIdentityAndLock(t *testing.T) {
	dir := t.TempDir() + "/o"
	base := newBase(rand.New(rand.NewPCG(1, 1)), 10000)
	if _, err := Open(ctx, disk.OS{}, dir, base, Options{Identity: "a"}); !errs.Is(err, errs.NotFound) {
		t.Errorf("open of nothing: %v", err)
	}
	o, err := Create(ctx, disk.OS{}, dir, base, Options{Identity: "a"})
	if err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]func() error{
		"create": func() error { _, err := Create(ctx, disk.OS{}, dir, base, Options{Identity: "a"}); return err },
		"open":   func() error { _, err := Open(ctx, disk.OS{}, dir, base, Options{Identity: "a"}); return err },
		"remove": func() error { return Remove(disk.OS{}, dir) },
	} {
		if err := try(); !errs.Is(err, errs.Busy) || errs.NextStep(err) == "" {
			t.Errorf("%s while open: %v", name, err)
		}
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if _, err := Create(ctx, disk.OS{}, dir, base, Options{Identity: "a"}); !errs.Is(err, errs.Exists) {
		t.Errorf("create over an overlay: %v", err)
	}
	for _, c := range []struct {
		base Base
		id   string
	}{{base, "b"}, {memBase{base.data[:9999]}, "a"}} {
		_, err := Open(ctx, disk.OS{}, dir, c.base, Options{Identity: c.id})
		if !errs.Is(err, errs.Stale) || errs.NextStep(err) == "" {
			t.Errorf("open over another base: %v", err)
		}
	}
	for range 2 {
		if err := Remove(disk.OS{}, dir); err != nil {
			t.Error(err)
		}
	}
}

func TestRefusals(t *testing.T) {
	d := disk.NewCrash()
	base := memBase{make([]byte, 100)}
	for _, o := range []Options{{}, {Identity: string(make([]byte, 257))}, {Identity: "a", SegmentBytes: 5000}} {
		if _, err := Create(ctx, d, "/o", base, o); !errs.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	o, err := Create(ctx, d, "/o", base, Options{Identity: "a"})
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	p := make([]byte, 10)
	for name, c := range map[string]struct {
		err  error
		kind errs.Kind
	}{
		"write before 0":    {o.WriteAt(ctx, p, -1, true), errs.Invalid},
		"write far out":     {o.WriteAt(ctx, p, maxSize-9, true), errs.NoSpace},
		"write, canceled":   {o.WriteAt(gone, p, 0, true), errs.Canceled},
		"zero before 0":     {o.WriteZeroes(ctx, -1, 1), errs.Invalid},
		"zero less":         {o.WriteZeroes(ctx, 0, -1), errs.Invalid},
		"truncate below 0":  {o.Truncate(ctx, -1), errs.Invalid},
		"truncate far out":  {o.Truncate(ctx, maxSize+1), errs.NoSpace},
		"commit, canceled":  {o.Commit(gone), errs.Canceled},
		"create, canceled":  {func() error { _, err := Create(gone, d, "/p", base, Options{Identity: "a"}); return err }(), errs.Canceled},
		"open, canceled":    {func() error { _, err := Open(gone, d, "/o", base, Options{Identity: "a"}); return err }(), errs.Canceled},
		"data before 0":     {func() error { _, err := o.NextData(ctx, -1); return err }(), errs.Invalid},
		"read before 0":     {func() error { _, err := o.ReadAt(ctx, p, -1); return err }(), errs.Invalid},
		"zero, all far out": {o.WriteZeroes(ctx, maxSize-1, 1<<62), errs.Bug},
	} {
		if name == "zero, all far out" {
			if c.err != nil {
				t.Errorf("%s: %v", name, c.err)
			}
			continue
		}
		if !errs.Is(c.err, c.kind) {
			t.Errorf("%s: %v, want %v", name, c.err, c.kind)
		}
	}
	if o.Size() != 100 || o.Used() != 0 {
		t.Errorf("refused operations changed the image: %d bytes, %d used", o.Size(), o.Used())
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	_, rerr := o.ReadAt(ctx, p, 0)
	for _, err := range []error{rerr, o.WriteAt(ctx, p, 0, true), o.Commit(ctx), o.Truncate(ctx, 1)} {
		if !errs.Is(err, errs.Stale) {
			t.Errorf("use after close: %v", err)
		}
	}
}

// TestFarGrowth: an image of many TiB with a few bytes in it, discarded as a whole.
func TestFarGrowth(t *testing.T) {
	d := disk.NewCrash()
	o, err := Create(ctx, d, "/o", memBase{[]byte("base")}, Options{Identity: "a"})
	if err != nil {
		t.Fatal(err)
	}
	const far = 15<<40 + 13
	if err := o.WriteAt(ctx, []byte("far"), far, true); err != nil {
		t.Fatal(err)
	}
	if at, err := o.NextData(ctx, blockSize); err != nil || at != far/blockSize*blockSize {
		t.Errorf("data at %d, %v", at, err)
	}
	if err := o.WriteZeroes(ctx, 0, 1<<62); err != nil {
		t.Fatal(err)
	}
	if at, err := o.NextData(ctx, 0); err != nil || at != far+3 || o.Used() != 0 || o.Size() != far+3 {
		t.Errorf("after discarding all: data at %d, %v, %d used, size %d", at, err, o.Used(), o.Size())
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if o, err = Open(ctx, d, "/o", memBase{[]byte("base")}, Options{Identity: "a"}); err != nil || o.Size() != far+3 {
		t.Fatal(err)
	}
	got := []byte("xxxx")
	if _, err := o.ReadAt(ctx, got, 0); err != nil || !allZero(got) {
		t.Errorf("read %q, %v", got, err)
	}
	o.Close()
}

type brokenBase struct {
	memBase
	err error
	n   int
}

func (b brokenBase) ReadAt(context.Context, []byte, int64) (int, error) { return b.n, b.err }

// TestBaseErrors: what the base says comes out with its kind, and a write that needed it changes nothing.
func TestBaseErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		kind errs.Kind
	}{{errs.Text("read pack", "7", errs.Transient, "away"), errs.Transient}, {io.EOF, errs.Corrupt}, {nil, errs.Corrupt}} {
		base := brokenBase{memBase{make([]byte, 10000)}, c.err, 3}
		o, err := Create(ctx, disk.NewCrash(), "/o", base, Options{Identity: "a"})
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 100)
		if _, err := o.ReadAt(ctx, p, 0); !errs.Is(err, c.kind) {
			t.Errorf("read: %v, want %v", err, c.kind)
		}
		if err := o.WriteAt(ctx, p, 5, true); !errs.Is(err, c.kind) || o.Used() != 0 {
			t.Errorf("partial write: %v, want %v", err, c.kind)
		}
		if err := o.WriteAt(ctx, make([]byte, blockSize), 0, true); err != nil {
			t.Errorf("a whole block needs no base: %v", err)
		}
		if err := o.Close(); err != nil && !errors.Is(err, c.err) {
			t.Error(err)
		}
	}
}
