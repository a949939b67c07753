package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// needs returns the path of a program of qemu's. A fresh clone without it skips; with HOLDFAST_REAL_PARTS=1, as
// `make test` sets it, the test fails and names the package.
func needs(t testing.TB, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	if os.Getenv("HOLDFAST_REAL_PARTS") == "1" {
		t.Fatalf("%s is missing: install the Debian package qemu-utils", program)
	}
	t.Skipf("%s is missing; `make test` installs it and runs this test", program)
	return ""
}

// qemu runs a program of qemu's and returns what it printed; anything but success ends the test.
func qemu(t testing.TB, program string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(needs(t, program), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return out
}

func qemuImg(t testing.TB, args ...string) []byte { t.Helper(); return qemu(t, "qemu-img", args...) }

// checkClean holds an image to qemu-img check: neither errors nor leaks.
func checkClean(t testing.TB, file string) {
	t.Helper()
	qemuImg(t, "check", "-f", "qcow2", file)
}

// sameDisk has qemu-img compare a qcow2 file with a raw one.
func sameDisk(t testing.TB, image, raw string) {
	t.Helper()
	qemuImg(t, "compare", "-f", "qcow2", "-F", "raw", image, raw)
}

// extent is a range of a disk or a file.
type extent struct{ off, n int64 }

// mapped returns what qemu-img map says is data, neighbours joined, and checks each run's place by where.
func mapped(t testing.TB, file string, where func(guest int64) (host int64)) []extent {
	t.Helper()
	var rows []struct {
		Start, Length, Offset int64
		Data, Zero            bool
	}
	if err := json.Unmarshal(qemuImg(t, "map", "-f", "qcow2", "--output=json", file), &rows); err != nil {
		t.Fatal(err)
	}
	var list []extent
	for _, r := range rows {
		if r.Length == 0 { // a disk of no size
			continue
		}
		if r.Data == r.Zero {
			t.Fatalf("map row %+v is neither data nor zero", r)
		}
		if !r.Data {
			continue
		}
		if where != nil && r.Offset != where(r.Start) {
			t.Fatalf("map row %+v: expected at %d", r, where(r.Start))
		}
		list = join(list, r.Start, r.Length)
	}
	return list
}

func join(list []extent, off, n int64) []extent {
	if k := len(list) - 1; k >= 0 && list[k].off+list[k].n == off {
		list[k].n += n
		return list
	}
	return append(list, extent{off, n})
}

// disk is a Source whose present bytes are a function of the offset: it may have any size.
type disk struct {
	size  int64
	runs  []extent // ascending, not overlapping
	seed  uint64
	zeros []extent // present, but all zero

	presents, reads atomic.Int64 // calls
	fail            error        // of all calls from now on
}

func (d *disk) Size() int64 { return d.size }

func (d *disk) Present(ctx context.Context, off, n int64, visit func(off, n int64) bool) error {
	d.presents.Add(1)
	if d.fail != nil {
		return d.fail
	}
	if off < 0 || n < 0 || off+n > d.size {
		return fmt.Errorf("asked for [%d, +%d) of %d bytes", off, n, d.size)
	}
	i, _ := slices.BinarySearchFunc(d.runs, off, func(r extent, off int64) int {
		if r.off+r.n <= off {
			return -1
		}
		return 1
	})
	for ; i < len(d.runs) && d.runs[i].off < off+n; i++ {
		if !visit(d.runs[i].off, d.runs[i].n) {
			return nil
		}
	}
	return ctx.Err()
}

func (d *disk) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	d.reads.Add(1)
	if d.fail != nil {
		return 0, d.fail
	}
	n := int(min(int64(len(p)), d.size-off))
	clear(p[:n])
	for _, r := range d.runs {
		if r.off < off+int64(n) && r.off+r.n > off {
			a, b := max(r.off, off), min(r.off+r.n, off+int64(n))
			pattern(p[a-off:b-off], a, d.seed)
		}
	}
	for _, r := range d.zeros {
		if r.off < off+int64(n) && r.off+r.n > off {
			clear(p[max(r.off, off)-off : min(r.off+r.n, off+int64(n))-off])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, ctx.Err()
}

// pattern fills p with bytes that depend on the offset and are never zero for long.
func pattern(p []byte, off int64, seed uint64) {
	for i := range p {
		at := uint64(off + int64(i))
		x := (at>>3 + seed) * 0x9e3779b97f4a7c15
		x ^= x >> 29
		x *= 0xbf58476d1ce4e5b9
		p[i] = byte(x>>(8*(at&7))) | 1
	}
}

// randomDisk returns a disk with data here and there, in pieces around the size of a cluster, and some at both ends.
func randomDisk(rnd *rand.Rand, size int64, bits, pieces int) *disk {
	d := &disk{size: size, seed: rnd.Uint64()}
	var at int64
	gap := max(size/int64(pieces+1)/512, 1)
	for at < size {
		if at > 0 || rnd.IntN(2) == 0 {
			at += rnd.Int64N(2*gap) * 512
		}
		n := min((1+rnd.Int64N(3<<bits/512))*512, size-at)
		if n <= 0 {
			break
		}
		d.runs = append(d.runs, extent{at, n})
		if rnd.IntN(8) == 0 {
			d.zeros = append(d.zeros, extent{at, n})
		}
		at += n + 512*rnd.Int64N(2)
	}
	return d
}

// clusterRuns returns the ranges of whole clusters that runs touch, cut at size: what a map must show as data.
func clusterRuns(runs []extent, c, size int64) []extent {
	var list []extent
	done := int64(0)
	for _, r := range runs {
		a, b := r.off/c*c, min((r.off+r.n+c-1)/c*c, size)
		if a = max(a, done); a < b {
			list = join(list, a, b-a)
			done = b
		}
	}
	return list
}

// rawFile writes a disk to a sparse file.
func rawFile(t testing.TB, d *disk) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, r := range d.runs {
		copyRange(t, f, r.off, r.n, d.ReadAt)
	}
	if err := f.Truncate(d.size); err != nil {
		t.Fatal(err)
	}
	return name
}

// copyRange copies a range of something read with a context to the same place of a file.
func copyRange(t testing.TB, w io.WriterAt, off, n int64, read func(context.Context, []byte, int64) (int, error)) {
	t.Helper()
	buf := make([]byte, min(n, 1<<20))
	for end := off + n; off < end; {
		b := buf[:min(end-off, int64(len(buf)))]
		if k, err := read(t.Context(), b, off); k != len(b) {
			t.Fatalf("read of %d bytes at %d: %d, %v", len(b), off, k, err)
		}
		if _, err := w.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
		off += int64(len(b))
	}
}

// viewFile writes a view out to a sparse file, leaving out its holes.
func viewFile(t testing.TB, v *View) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "view.qcow2")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx := t.Context()
	for off := int64(0); off < v.Size(); {
		data, err := v.NextData(ctx, off)
		if err != nil {
			t.Fatal(err)
		}
		if off = data; off == v.Size() {
			break
		}
		hole, err := v.NextHole(ctx, data)
		if err != nil || hole <= data {
			t.Fatalf("hole after data at %d: %d, %v", data, hole, err)
		}
		copyRange(t, f, data, hole-data, v.ReadAt)
		off = hole
	}
	if err := f.Truncate(v.Size()); err != nil {
		t.Fatal(err)
	}
	return name
}

// counter is an io.ReaderAt that remembers what was read.
type counter struct {
	r     io.ReaderAt
	bytes atomic.Int64
	calls atomic.Int64
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.bytes.Add(int64(n))
	c.calls.Add(1)
	return n, err
}

// openFile opens an image file.
func openFile(t testing.TB, name string) (*Image, *counter) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{r: f}
	m, err := Open(c, st.Size())
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	return m, c
}

// sameAs holds an image to a disk kept in memory: whole, at random places, and by its extents.
func sameAs(t testing.TB, m *Image, want []byte, rnd *rand.Rand) {
	t.Helper()
	ctx := t.Context()
	if m.Size() != int64(len(want)) {
		t.Fatalf("the disk has %d bytes, want %d", m.Size(), len(want))
	}
	got := make([]byte, len(want))
	if n, err := m.ReadAt(ctx, got, 0); n != len(got) || err != nil {
		t.Fatalf("read all: %d, %v", n, err)
	}
	if i := firstDifference(got, want); i >= 0 {
		t.Fatalf("byte %#x is %#x, want %#x", i, got[i], want[i])
	}
	for range 50 {
		off := rnd.IntN(len(want) + 1)
		p := make([]byte, rnd.IntN(200_000))
		n, err := m.ReadAt(ctx, p, int64(off))
		if w := want[off:min(off+len(p), len(want))]; !bytes.Equal(p[:n], w) {
			t.Fatalf("read of %d bytes at %d differs", len(p), off)
		}
		if (err == io.EOF) != (n < len(p)) || err != nil && err != io.EOF {
			t.Fatalf("read of %d bytes at %d: %d, %v", len(p), off, n, err)
		}
	}
	checkExtents(t, m, want, 0)
	checkExtents(t, m, want, rnd.Int64N(int64(len(want))))
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// checkExtents holds Extents to its word: no gaps, neighbours differ, what is not data is zero.
func checkExtents(t testing.TB, m *Image, want []byte, from int64) {
	t.Helper()
	at, last := from, -1
	err := m.Extents(t.Context(), from, func(off, n int64, data bool) bool {
		kind := 0
		if data {
			kind = 1
		}
		if off != at || n <= 0 || kind == last {
			t.Fatalf("extent %d +%d %v after one that ended at %d", off, n, data, at)
		}
		if !data && !allZero(want[off:off+n]) {
			t.Fatalf("extent %d +%d is said to be zero", off, n)
		}
		at, last = off+n, kind
		return true
	})
	if err != nil || at != m.Size() {
		t.Fatalf("extents from %d ended at %d of %d: %v", from, at, m.Size(), err)
	}
}

// memory is a file in memory that can be read and written.
type memory struct{ b []byte }

func (m *memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m.b).ReadAt(p, off) }
func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(m.b) {
		m.b = append(m.b, make([]byte, end-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

// wantKind ends the test unless err is an *errs.Error of kind k; where k asks for a person, it must say what to do.
func wantKind(t testing.TB, err error, k errs.Kind) {
	t.Helper()
	var e *errs.Error
	if !errors.As(err, &e) || !errs.Is(err, k) {
		t.Fatalf("error %v, want kind %v", err, k)
	}
	if (k == errs.Unsupported || k == errs.Corrupt) && errs.NextStep(err) == "" {
		t.Fatalf("error %v does not say what to do next", err)
	}
}

func be64(p []byte) int64 { return int64(binary.BigEndian.Uint64(p)) }

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// newRand returns a random source and logs how to repeat it.
func newRand(t testing.TB) *rand.Rand {
	seed := uint64(1)
	if s := os.Getenv("HOLDFAST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("repeat with: HOLDFAST_SEED=%d go test -run '^%s$' ./fs/synthetic/qcow2", seed, t.Name())
	return rand.New(rand.NewPCG(seed, 0))
}
