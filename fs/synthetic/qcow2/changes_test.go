package qcow2

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// compared is a file beside what it was: blocks that differ were written.
type compared struct {
	before, now []byte
	asked       int // blocks looked at
}

const comparedBlock = 4096

func (c *compared) Runs(off, n int64, visit func(off, n int64, written bool) bool) error {
	for at := off; at < off+n; {
		to := min((at/comparedBlock+1)*comparedBlock, off+n)
		part := func(b []byte) []byte {
			first := at / comparedBlock * comparedBlock
			return b[min(first, int64(len(b))):min(first+comparedBlock, int64(len(b)))]
		}
		c.asked++
		if !visit(at, to-at, !bytes.Equal(part(c.before), part(c.now))) {
			return nil
		}
		at = to
	}
	return nil
}

// TestChanges lets qemu work on a view as a guest's host does, and holds every run to the bytes before and after.
func TestChanges(t *testing.T) {
	for _, bits := range []int{9, 12, 16} {
		t.Run(fmt.Sprintf("%d bits", bits), func(t *testing.T) {
			rnd := newRand(t)
			c := int64(1) << bits
			size := min(c*300, 8<<20) + 4096
			d := randomDisk(rnd, size, bits, 80) // mostly data, so that clusters that had some move
			v := mustView(t, d, bits)
			file := viewFile(t, v)
			before, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			old := make([]byte, size)
			d.ReadAt(t.Context(), old, 0)
			want := bytes.Clone(old)
			if got := checkChanges(t, v, file, before, old, want); got != [3]int64{size, 0, 0} {
				t.Errorf("before anything was written: %v", got)
			}
			qemuIO(t, file, []string{fmt.Sprintf("write -P 7 %d 512", 5*c)})
			copy(want[5*c:], bytes.Repeat([]byte{7}, 512))
			if got := checkChanges(t, v, file, before, old, want); got[Written] == 0 || got[Written] > max(c, comparedBlock) {
				t.Errorf("after one sector: %v", got)
			}
			operations(t, rnd, file, c, want, 40, false) // in place
			checkChanges(t, v, file, before, old, want)
			operations(t, rnd, file, c, want, 60, true) // clusters move
			compress(t, rnd, file, c, want)
			checkChanges(t, v, file, before, old, want)
			qemuImg(t, "resize", "-q", file, "+"+itoa(37*c+1024))
			want = append(want, make([]byte, 37*c+1024)...)
			qemuImg(t, "bitmap", "--add", "-g", "65536", file, "b0")
			operations(t, rnd, file, c, want, 60, true)
			checkClean(t, file)
			checkChanges(t, v, file, before, old, want)
			qemuImg(t, "resize", "-q", "--shrink", file, itoa(100*c))
			checkChanges(t, v, file, before, old, want[:100*c])
		})
	}
}

// checkChanges returns the bytes of each kind of change.
func checkChanges(t *testing.T, v *View, file string, before, old, want []byte) (sum [3]int64) {
	t.Helper()
	now, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m, _ := openFile(t, file)
	at, last := int64(0), Change(99)
	err = m.Changes(t.Context(), v, &compared{before: before, now: now}, func(off, n int64, c Change) bool {
		if off != at || n <= 0 || c == last {
			t.Fatalf("run %d+%d of change %d after %d of change %d", off, n, c, at, last)
		}
		part := want[off : off+n]
		switch c {
		case Unchanged:
			if !bytes.Equal(part, old[off:off+n]) {
				t.Fatalf("%d+%d is said to be unchanged", off, n)
			}
		case Zeroed:
			if len(bytes.Trim(part, "\x00")) > 0 {
				t.Fatalf("%d+%d is said to be zeros", off, n)
			}
		}
		at, last = off+n, c
		sum[c] += n
		return true
	})
	if err != nil || at != int64(len(want)) || m.Size() != at {
		t.Fatalf("the runs end at %d of %d, %v", at, len(want), err)
	}
	return sum
}

// TestChangesOfALargeDiskAreCheap: what was not touched is not walked, cluster by cluster; and a walk can be ended.
func TestChangesOfALargeDiskAreCheap(t *testing.T) {
	d := &disk{size: 1 << 40, runs: []extent{{1 << 39, 1 << 30}}}
	v := mustView(t, d, DefaultClusterBits)
	r := &viewReader{t: t, v: v}
	m, err := Open(r, v.Size())
	if err != nil {
		t.Fatal(err)
	}
	touched := v.DataOffset() + 1<<30
	o := &oneTouch{at: touched}
	var runs []string
	if err := m.Changes(t.Context(), v, o, func(off, n int64, c Change) bool {
		runs = append(runs, fmt.Sprint(off, "+", n, " ", c))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	// Absent before and a zero cluster still, whatever lies in its place: nothing has changed.
	if want := fmt.Sprintf("[0+%d 0]", int64(1<<40)); fmt.Sprint(runs) != want {
		t.Errorf("runs %v, want %s", runs, want)
	}
	if o.asked > 20_000 {
		t.Errorf("%d questions for 1 TiB", o.asked)
	}
	calls := 0
	o.at = v.DataOffset() + 1<<39
	if err := m.Changes(t.Context(), v, o, func(int64, int64, Change) bool { calls++; return false }); err != nil || calls != 1 {
		t.Errorf("%d calls after one said enough, %v", calls, err)
	}
}

type viewReader struct {
	t *testing.T
	v *View
}

func (r *viewReader) ReadAt(p []byte, off int64) (int, error) {
	return r.v.ReadAt(r.t.Context(), p, off)
}

// oneTouch is a file of which one block was written.
type oneTouch struct {
	at    int64
	asked int
}

func (o *oneTouch) Runs(off, n int64, visit func(off, n int64, written bool) bool) error {
	o.asked++
	end := off + n
	for _, r := range [...]struct {
		from, to int64
		written  bool
	}{{off, min(end, o.at), false}, {max(off, o.at), min(end, o.at+comparedBlock), true}, {max(off, o.at+comparedBlock), end, false}} {
		if r.from < r.to && !visit(r.from, r.to-r.from, r.written) {
			return nil
		}
	}
	return nil
}

func TestChangesRefuses(t *testing.T) {
	d := &disk{size: 1 << 20}
	var b memory
	if err := Write(t.Context(), &b, d, WriteOptions{ClusterBits: 12}); err != nil {
		t.Fatal(err)
	}
	m, err := Open(&b, int64(len(b.b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Changes(t.Context(), mustView(t, d, 16), &oneTouch{}, nil); !errs.Is(err, errs.Invalid) {
		t.Errorf("other clusters: %v", err)
	}
}
