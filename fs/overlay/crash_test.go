package overlay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

var crashOptions = Options{Identity: "b", SegmentBytes: 4 * blockSize, compactAfter: 12}

// recovered opens what a power cut left and holds it against the model; then it grows the image, so that stale bytes
// past the end show, writes a little, and cuts the power once more.
func recovered(c *disk.Crash, base Base, m *model, seed uint64) error {
	o, err := Open(ctx, c, "/o", base, crashOptions)
	if err != nil {
		return err
	}
	defer o.Close()
	got, err := readAll(o)
	if err == nil {
		err = m.check(got)
	}
	if err != nil {
		return err
	}
	if err := o.Truncate(ctx, int64(len(got)+2*blockSize)); err != nil {
		return err
	}
	grown, err := readAll(o)
	if err != nil {
		return err
	}
	if !bytes.Equal(grown[:len(got)], got) || !allZero(grown[len(got):]) {
		return errors.New("growing after the crash shows stale bytes")
	}
	off := int(seed % uint64(len(grown)))
	if err := o.WriteAt(ctx, []byte("again"), int64(off), true); err != nil {
		return err
	}
	grown = append(grown, make([]byte, max(0, off+5-len(grown)))...)
	copy(grown[off:], "again")
	again, err := Open(ctx, c.Clone(seed+1), "/o", base, crashOptions)
	if err != nil {
		return fmt.Errorf("second crash: %w", err)
	}
	defer again.Close()
	after, err := readAll(again)
	if err == nil && !bytes.Equal(after, grown) {
		err = errors.New("the second crash lost what the first one had left, or a stable write")
	}
	return err
}

// TestCrashAtEverySync cuts the power around every sync of an operation log. More seeds: -overlay.rounds.
func TestCrashAtEverySync(t *testing.T) {
	first := firstSeed(1)
	for seed := first; seed < first+uint64(*roundsFlag); seed++ {
		crashRun(t, seed)
		if t.Failed() {
			repeat(t, seed)
			return
		}
		if *seedFlag != 0 {
			return
		}
	}
}

func crashRun(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	base := newBase(r, []int{0, 5000, 4 * blockSize, 20001}[seed%4])
	c := disk.NewCrash()
	o, err := Create(ctx, c, "/o", base, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	l := &opLog{r: r, m: newModel(bytes.Clone(base.data)), max: 40000}
	name, cuts := "", uint64(0)
	cut := func() {
		cuts++
		for _, s := range []uint64{cuts % 3, seed<<20 + cuts} { // nothing or all of the unsynced, then some of it
			if err := recovered(c.Clone(s), base, l.m, s); err != nil && !t.Failed() {
				t.Errorf("seed %d, cut %d (%d), during %s: %v", seed, cuts, s, name, err)
			}
		}
	}
	c.OnSync(cut)
	for n := range 40 {
		name = fmt.Sprintf("step %d", n)
		if name, err = l.step(o); err != nil {
			t.Fatalf("seed %d: %s: %v", seed, name, err)
		}
		if r.IntN(4) == 0 {
			cut()
		}
		if t.Failed() {
			return
		}
		if r.IntN(15) == 0 { // killed without a power cut: the next life finds unsynced writes in the kernel's memory
			c.OnSync(nil)
			orphan(o)
			if o, err = Open(ctx, c, "/o", base, crashOptions); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, n, err)
			}
			got, err := readAll(o)
			if err == nil {
				err = l.m.check(got)
			}
			if err != nil {
				t.Fatalf("seed %d, step %d, killed: %v", seed, n, err)
			}
			l.m = newModel(got)
			c.OnSync(cut)
		}
	}
	c.OnSync(nil)
	o.Close()
}

// orphan stops an overlay's worker without committing, as a kill would.
func orphan(o *Overlay) {
	o.queue.stop()
	o.worker.Wait()
}

// TestCrashUnderManyWriters: stable writers at work on blocks of their own, the power cut at every sync: each sector
// shows a write not older than the last one acknowledged before the cut.
func TestCrashUnderManyWriters(t *testing.T) {
	const writers, rounds = 8, 40
	base := memBase{make([]byte, writers*2*blockSize)}
	c := disk.NewCrash()
	o, err := Create(ctx, c, "/o", base, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	var acked, begun [writers]atomic.Uint64
	var cuts atomic.Uint64
	c.OnSync(func() {
		var least [writers]uint64
		for w := range least {
			least[w] = acked[w].Load()
		}
		clone := c.Clone(cuts.Add(1))
		p, err := Open(ctx, clone, "/o", base, crashOptions)
		if err != nil {
			t.Error(err)
			return
		}
		defer p.Close()
		got, err := readAll(p)
		if err != nil {
			t.Error(err)
			return
		}
		for w := range least {
			for at := w * 2 * blockSize; at < (w+1)*2*blockSize; at += 512 {
				if v := binary.LittleEndian.Uint64(got[at:]); v < least[w] || v > begun[w].Load() {
					t.Errorf("writer %d, byte %d: write %d after %d was acknowledged", w, at, v, least[w])
					return
				}
			}
		}
	})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := uint64(1); n <= rounds; n++ {
				begun[w].Store(n)
				if err := o.WriteAt(ctx, stamp(make([]byte, 2*blockSize), n), int64(w*2*blockSize), true); err != nil {
					t.Error(err)
					return
				}
				acked[w].Store(n)
			}
		})
	}
	wg.Wait()
	c.OnSync(nil)
	if err := o.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("%d cuts for %d writes", cuts.Load(), writers*rounds)
}

// TestEveryFault fails each operation of the disk once, and from each on for ever, with an error of the device and with
// a full disk. What was acknowledged is there, live, after closing, and after a power cut.
func TestEveryFault(t *testing.T) {
	seed := firstSeed(1)
	for _, fault := range []error{syscall.EIO, syscall.ENOSPC} {
		for _, forever := range []bool{false, true} {
			for n := 0; faultRun(t, seed, n, fault, forever); n++ {
				if t.Failed() {
					break
				}
			}
			if t.Failed() {
				repeat(t, seed)
				return
			}
			if *seedFlag == 0 {
				seed++
			}
		}
	}
}

// faultRun reports whether the fault was reached.
func faultRun(t *testing.T, seed uint64, n int, fault error, forever bool) bool {
	r := rand.New(rand.NewPCG(seed, 3))
	base := newBase(r, 20001)
	c := disk.NewCrash()
	f := disk.NewFaulty(c, n, fault)
	if forever {
		f.Forever()
	}
	where := fmt.Sprintf("seed %d, operation %d fails with %v, forever=%v", seed, n, fault, forever)
	o, err := Create(ctx, f, "/o", base, crashOptions)
	if err != nil {
		if f.Ops() <= n || !errors.Is(err, fault) {
			t.Errorf("%s: create: %v", where, err)
		}
		if err := Remove(c, "/o"); err != nil {
			t.Errorf("%s: remove after a failed create: %v", where, err)
		}
		if o, err = Create(ctx, c, "/o", base, crashOptions); err != nil {
			t.Errorf("%s: create after a failed create: %v", where, err)
			return true
		}
		o.Close()
		return true
	}
	l := &opLog{r: r, m: newModel(bytes.Clone(base.data)), max: 40000}
	for range 25 {
		name, err := l.step(o)
		if err != nil && (f.Ops() <= n || !errors.Is(err, fault)) {
			t.Errorf("%s: %s: %v", where, name, err)
			return false
		}
		if err != nil {
			l.m.failed()
		}
		if got, err := readAll(o); err == nil {
			if err = l.m.check(got); err != nil {
				t.Errorf("%s: live after %s: %v", where, name, err)
				return false
			}
			l.m.saw(got)
		} else if !errors.Is(err, fault) {
			t.Errorf("%s: read after %s: %v", where, name, err)
		}
	}
	if err := o.Close(); err == nil {
		l.m.ackAll()
	}
	for s := range uint64(3) {
		if err := recovered(c.Clone(s), base, l.m, s); err != nil {
			t.Errorf("%s: after a power cut (%d): %v", where, s, err)
			return false
		}
	}
	if n%8 == 0 {
		openFaults(t, c, base, where)
	}
	return f.Ops() > n
}

// openFaults fails every operation of opening: it is an error, and the next attempt succeeds.
func openFaults(t *testing.T, c *disk.Crash, base Base, where string) {
	for n := 0; ; n++ {
		f := disk.NewFaulty(c.Clone(1), n, syscall.EIO)
		o, err := Open(ctx, f, "/o", base, crashOptions)
		if err == nil {
			ops := f.Ops()
			o.Close()
			if ops > n {
				t.Errorf("%s: opening bore the failure of operation %d", where, n)
			}
			return
		}
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: open, operation %d: %v", where, n, err)
		}
	}
}

// TestPoison: after a failed sync nothing is written any more, the generation changes, reads go on.
func TestPoison(t *testing.T) {
	c := disk.NewCrash()
	base := memBase{make([]byte, 5*blockSize)}
	for n := 0; ; n++ {
		d := &failSync{Disk: c.Clone(1)}
		o, err := Create(ctx, d, "/o", base, Options{Identity: "a"})
		if err != nil {
			t.Fatal(err)
		}
		before := o.Generation()
		if err := o.WriteAt(ctx, []byte("first"), 0, true); err != nil {
			t.Fatal(err)
		}
		d.in.Store(int64(n) + 1)
		err = o.WriteAt(ctx, []byte("second"), 3*blockSize, true)
		if err == nil {
			if n < 2 {
				t.Errorf("a stable write of a new block costs two syncs, not %d", n)
			}
			o.Close()
			return
		}
		d.in.Store(0)
		if !errors.Is(err, syscall.EIO) || errs.NextStep(err) == "" || o.Generation() == before {
			t.Errorf("sync %d: %v, generation changed: %v", n, err, o.Generation() != before)
		}
		for _, err := range []error{
			o.WriteAt(ctx, []byte("x"), 0, false), o.Commit(ctx), o.Truncate(ctx, 1), o.WriteZeroes(ctx, 0, 1), o.Close(),
		} {
			if !errors.Is(err, syscall.EIO) {
				t.Errorf("after the failed sync %d: %v", n, err)
			}
		}
	}
}

// failSync fails the in-th Sync of any file.
type failSync struct {
	disk.Disk
	in atomic.Int64
}

type failSyncFile struct {
	disk.File
	d *failSync
}

func (d *failSync) wrap(f disk.File, err error) (disk.File, error) {
	if err != nil {
		return nil, err
	}
	return &failSyncFile{f, d}, nil
}

func (d *failSync) Create(name string) (disk.File, error) { return d.wrap(d.Disk.Create(name)) }
func (d *failSync) OpenRW(name string) (disk.File, error) { return d.wrap(d.Disk.OpenRW(name)) }
func (f *failSyncFile) Size() (int64, error)              { return disk.Size(f.File) }

func (f *failSyncFile) Sync() error {
	if f.d.in.Add(-1) == 0 {
		return syscall.EIO
	}
	return f.File.Sync()
}
