package qcow2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

var _ fs.HoleFinder = (*View)(nil)
var _ Source = (*Image)(nil)

func mustView(t testing.TB, src Source, bits int) *View {
	t.Helper()
	v, err := NewView(src, bits)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// borders returns sizes just below, at and above the borders of a cluster and of an L2 table.
func borders(bits int) []int64 {
	c := int64(1) << bits
	table := c * c / 8
	list := []int64{512, c, c + 512, table - c, table - 512, table, table + 512, 2*table + c}
	if c > 512 {
		list = append(list, c-512)
	}
	return list
}

// TestViewQemu writes views out and has qemu look at them.
func TestViewQemu(t *testing.T) {
	for _, bits := range []int{9, 12, 16, 21} {
		for _, size := range borders(bits) {
			t.Run(fmt.Sprintf("%d bits/%d", bits, size), func(t *testing.T) {
				viewQemu(t, newRand(t), size, bits)
			})
		}
	}
}

func viewQemu(t *testing.T, rnd *rand.Rand, size int64, bits int) {
	d := randomDisk(rnd, size, bits, 6)
	v := mustView(t, d, bits)
	c := int64(1) << bits
	file, raw := viewFile(t, v), rawFile(t, d)
	checkClean(t, file)
	sameDisk(t, file, raw)
	want := clusterRuns(d.runs, c, size)
	got := mapped(t, file, func(guest int64) int64 { return v.DataOffset() + guest })
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("map shows data at %v, want %v", got, want)
	}
	var present int64
	for _, r := range want {
		present += r.n
	}
	var m struct{ Required int64 }
	if err := json.Unmarshal(qemuImg(t, "measure", "-f", "qcow2", "-O", "qcow2", "--output=json", file), &m); err != nil {
		t.Fatal(err)
	}
	// measure counts all tables of a target with 64 KiB clusters, and rounds each run.
	if room := present + int64(len(want))*2<<16 + size/4096 + 1<<20; m.Required > room {
		t.Fatalf("measure asks for %d bytes for %d bytes of data", m.Required, present)
	}
	out := filepath.Join(t.TempDir(), "out.raw")
	qemuImg(t, "convert", "-T", "none", "-f", "qcow2", "-O", "raw", file, out)
	qemuImg(t, "compare", "-f", "raw", "-F", "raw", out, raw)
	// Our own reader agrees on where data is.
	im, _ := openFile(t, file)
	var ours []extent
	if err := im.Extents(t.Context(), 0, func(off, n int64, data bool) bool {
		if data {
			ours = append(ours, extent{off, n})
		}
		return true
	}); err != nil || fmt.Sprint(ours) != fmt.Sprint(want) {
		t.Fatalf("extents %v, want %v (%v)", ours, want, err)
	}
}

// model recomputes the layout from what each part must be able to hold, by search instead of by iteration.
func model(size, c int64) (n, r, t, l, l1 int64) {
	up := func(a, b int64) int64 { return (a + b - 1) / b }
	guest := up(size, c)
	l = up(guest, c/8)
	l1 = up(l*8, c)
	rest := 1 + l1 + l + guest
	// The smallest r blocks and their table that count rest, themselves and the table.
	r = up(rest, c/2)
	for ; ; r++ {
		t = up(r*8, c)
		if r*(c/2) >= rest+r+t {
			return rest + r + t, r, t, l, l1
		}
	}
}

// TestViewLayout samples views of any size against the model: every kind of entry at random positions and at the ends.
func TestViewLayout(t *testing.T) {
	rnd := newRand(t)
	type shape struct {
		size int64
		bits int
	}
	shapes := []shape{{0, 16}, {8 << 40, 16}, {15 << 40, 16}, {16<<40 - 4096, 16}, {64 << 40, 16}, {64 << 40, 14},
		{64 << 40, 21}, {1 << 50, 21}, {2<<30 + 12288, 16}, {100 << 30, 9}}
	for bits := 9; bits <= 21; bits++ {
		for _, size := range borders(bits) {
			shapes = append(shapes, shape{size, bits})
		}
		for range 10 {
			shapes = append(shapes, shape{rnd.Int64N(1<<36/512) * 512, bits})
		}
	}
	for _, s := range shapes {
		d := randomDisk(rnd, s.size, s.bits, 40)
		checkLayout(t, rnd, mustView(t, d, s.bits), d, int64(1)<<s.bits)
	}
}

// checkLayout is long because a file has that many parts.
func checkLayout(t *testing.T, rnd *rand.Rand, v *View, d *disk, c int64) {
	t.Helper()
	n, r, rt, l, l1 := model(d.size, c)
	guest := n - (1 + rt + r + l1 + l)
	if v.Size() != n*c || v.DataOffset() != (n-guest)*c || v.VirtualSize() != d.size {
		t.Fatalf("V %d, C %d: file of %d, data at %d; want %d clusters, data at cluster %d", d.size, c, v.Size(), v.DataOffset(), n, n-guest)
	}
	word := func(off int64, width int) uint64 {
		p := make([]byte, width)
		if _, err := v.ReadAt(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
		var x uint64
		for _, b := range p {
			x = x<<8 | uint64(b)
		}
		return x
	}
	expect := func(what string, i int64, got, want uint64) {
		t.Helper()
		if got != want {
			t.Fatalf("V %d, C %d: %s %d is %#x, want %#x", d.size, c, what, i, got, want)
		}
	}
	// some returns the first, the last and random numbers below limit.
	some := func(limit int64) []int64 {
		if limit <= 0 {
			return nil
		}
		return []int64{0, limit - 1, rnd.Int64N(limit), rnd.Int64N(limit), rnd.Int64N(limit)}
	}
	expect("L1 size", 0, word(36, 4), uint64(l))
	expect("L1 offset", 0, word(40, 8), uint64((1+rt+r)*c))
	expect("refcount table offset", 0, word(48, 8), uint64(c))
	expect("refcount table clusters", 0, word(56, 4), uint64(rt))
	for _, i := range some(rt * c / 8) {
		want := uint64((1 + rt + i) * c)
		if i >= r {
			want = 0
		}
		expect("refcount table entry", i, word(c+8*i, 8), want)
	}
	for _, i := range append(some(r*c/2), n-1, n) {
		want := uint64(1)
		if i >= n {
			want = 0
		}
		if i < r*c/2 {
			expect("refcount", i, word((1+rt)*c+2*i, 2), want)
		}
	}
	for _, i := range some(l1 * c / 8) {
		want := uint64((1+rt+r+l1+i)*c) | 1<<63
		if i >= l {
			want = 0
		}
		expect("L1 entry", i, word((1+rt+r)*c+8*i, 8), want)
	}
	data := clusterRuns(d.runs, c, guest*c)
	for _, i := range append(some(l*c/8), guest-1) {
		if i < 0 {
			continue
		}
		want := uint64((n-guest+i)*c) | 1<<63 | 1
		for _, x := range data {
			if x.off <= i*c && i*c < x.off+x.n {
				want &^= 1
			}
		}
		if i >= guest {
			want = 0
		}
		expect("L2 entry", i, word((1+rt+r+l1)*c+8*i, 8), want)
	}
	for _, x := range d.runs {
		p, q := make([]byte, min(x.n, 8)), make([]byte, min(x.n, 8))
		d.ReadAt(t.Context(), p, x.off)
		if _, err := v.ReadAt(t.Context(), q, v.DataOffset()+x.off); err != nil || !bytes.Equal(p, q) {
			t.Fatalf("V %d, C %d: data at %d is %x, want %x (%v)", d.size, c, x.off, q, p, err)
		}
	}
}

// TestViewReads holds reads at any offset and of any length, many at a time, to the view read in one go.
func TestViewReads(t *testing.T) {
	rnd := newRand(t)
	v := mustView(t, randomDisk(rnd, 100_000*512+512, 9, 200), 9)
	whole := make([]byte, v.Size())
	if n, err := v.ReadAt(t.Context(), whole, 0); n != len(whole) || err != nil {
		t.Fatal(n, err)
	}
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(k), 1))
			for range 500 {
				off := rnd.Int64N(v.Size() + 100)
				p := make([]byte, rnd.IntN(20_000))
				n, err := v.ReadAt(context.Background(), p, off)
				want := whole[min(off, v.Size()):min(off+int64(len(p)), v.Size())]
				if !bytes.Equal(p[:n], want) || (err == io.EOF) != (len(want) < len(p)) || err != nil && err != io.EOF {
					t.Errorf("read of %d bytes at %d: %d, %v", len(p), off, n, err)
				}
			}
		})
	}
	wg.Wait()
	_, err := v.ReadAt(t.Context(), make([]byte, 1), -1)
	wantKind(t, err, errs.Invalid)
}

// TestViewGolden freezes the bytes: sessions of an older version must go on after an update (invariant 1).
func TestViewGolden(t *testing.T) {
	for _, g := range []struct {
		size   int64
		bits   int
		header string
	}{
		{512, 9, "514649fb00000003000000000000000000000000000000090000000000000200" +
			"0000000000000001000000000000060000000000000002000000000100000000" +
			"0000000000000000000000000000000000000000000000000000000000000000" +
			"0000000400000070000000000000000000000000000000000000000000000000"},
		{2<<30 + 12288, 16, "514649fb00000003000000000000000000000000000000100000000080003000" +
			"0000000000000005000000000004000000000000000100000000000100000000" +
			"0000000000000000000000000000000000000000000000000000000000000000" +
			"0000000400000070000000000000000000000000000000000000000000000000"},
		{8 << 40, 16, "514649fb00000003000000000000000000000000000000100000080000000000" +
			"0000000000004000000000001003000000000000000100000000000100000000" +
			"0000000000000000000000000000000000000000000000000000000000000000" +
			"0000000400000070000000000000000000000000000000000000000000000000"},
	} {
		p := make([]byte, 128)
		if _, err := mustView(t, &disk{size: g.size}, g.bits).ReadAt(t.Context(), p, 0); err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(p); got != g.header {
			t.Errorf("header for %d bytes, %d bits:\n got %s\nwant %s", g.size, g.bits, got, g.header)
		}
	}
	d := &disk{size: 1<<20 + 512, runs: []extent{{4096, 4096}, {70_000 &^ 511, 1024}, {1 << 20, 512}}}
	h := sha256.New()
	v := mustView(t, d, 9)
	if _, err := io.Copy(h, io.NewSectionReader(plainReader{v}, 0, v.Size())); err != nil {
		t.Fatal(err)
	}
	const want = "e710a77aca31d6905ebde06863989d10a2f4f945d90afafab425408b31b68f99"
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		t.Errorf("a whole view has SHA-256 %s, want %s", got, want)
	}
}

// plainReader drops the context.
type plainReader struct {
	r interface {
		ReadAt(context.Context, []byte, int64) (int, error)
	}
}

func (p plainReader) ReadAt(b []byte, off int64) (int, error) {
	return p.r.ReadAt(context.Background(), b, off)
}

// TestViewHoles holds NextData and NextHole to the zero bits of the tables, at every offset of interest.
func TestViewHoles(t *testing.T) {
	rnd := newRand(t)
	for range 20 {
		size := (1 + rnd.Int64N(2000)) * 512
		d := randomDisk(rnd, size, 10, 8)
		v := mustView(t, d, 10)
		hole := make([]bool, v.Size()+1) // by byte; the end counts as one
		hole[v.Size()] = true
		for i := v.DataOffset(); i < v.Size(); i++ {
			hole[i] = true
		}
		for _, x := range clusterRuns(d.runs, 1024, 1<<40) {
			for i := x.off; i < x.off+x.n; i++ {
				hole[v.DataOffset()+i] = false
			}
		}
		nextData, nextHole := v.Size(), v.Size()
		for off := v.Size(); off >= 0; off-- {
			if hole[off] {
				nextHole = off
			} else {
				nextData = off
			}
			if off%509 != 0 && off > 0 && hole[off] == hole[off-1] {
				continue
			}
			if got, err := v.NextData(t.Context(), off); got != nextData || err != nil {
				t.Fatalf("data after %d: %d, %v; want %d", off, got, err, nextData)
			}
			if got, err := v.NextHole(t.Context(), off); got != nextHole || err != nil {
				t.Fatalf("hole after %d: %d, %v; want %d", off, got, err, nextHole)
			}
		}
		for _, next := range []func(context.Context, int64) (int64, error){v.NextData, v.NextHole} {
			if got, err := next(t.Context(), v.Size()+5); got != v.Size() || err != nil {
				t.Fatalf("behind the end: %d, %v", got, err)
			}
		}
	}
}

// TestViewAsksOnce: a table read in 4 KiB pieces costs one question, and the answers kept are bounded.
func TestViewAsksOnce(t *testing.T) {
	d := &disk{size: 64 << 40}
	v := mustView(t, d, 16)
	if d.presents.Load()+d.reads.Load() != 0 {
		t.Fatal("opening the view asked the source")
	}
	p := make([]byte, 4096)
	l2 := v.lay.l2
	for off := int64(0); off < 3<<16; off += 4096 {
		if _, err := v.ReadAt(t.Context(), p, l2+off); err != nil {
			t.Fatal(err)
		}
	}
	if n := d.presents.Load(); n != 3 {
		t.Fatalf("3 tables took %d questions", n)
	}
	for i := range v.lay.tables {
		if _, err := v.ReadAt(t.Context(), p[:8], l2+i<<16); err != nil {
			t.Fatal(err)
		}
	}
	if v.bits.bytes > viewCacheBytes {
		t.Fatalf("%d bytes of presence bits are kept", v.bits.bytes)
	}
	if n := len(v.bits.byKey); n != v.bits.order.Len() || n < 8<<10 {
		t.Fatalf("%d tables are kept", n)
	}
}

// TestViewFailures: the source's failures come through with their kind, and a cancelled context starts nothing.
func TestViewFailures(t *testing.T) {
	d := &disk{size: 1 << 30, runs: []extent{{0, 1 << 30}}}
	v := mustView(t, d, 16)
	d.fail = errs.Text("read chunk", "", errs.Transient, "the store is away")
	p := make([]byte, 512)
	_, err := v.ReadAt(t.Context(), p, v.lay.l2)
	wantKind(t, err, errs.Transient)
	_, err = v.ReadAt(t.Context(), p, v.lay.data)
	wantKind(t, err, errs.Transient)
	_, err = v.NextData(t.Context(), v.lay.data)
	wantKind(t, err, errs.Transient)
	_, err = v.NextHole(t.Context(), 0)
	wantKind(t, err, errs.Transient)
	if n, err := v.ReadAt(t.Context(), p, 0); n != len(p) || err != nil {
		t.Fatalf("the header needs no source: %d, %v", n, err)
	}
	d.fail = fs.StatusDelay
	if _, err = v.ReadAt(t.Context(), p, v.lay.l2); fs.StatusOf(err) != fs.StatusDelay {
		t.Fatalf("a status of the source became %v", err)
	}
	d.fail = nil
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := d.presents.Load()
	if _, err = v.ReadAt(ctx, p, v.lay.l2+1<<16); !errors.Is(err, context.Canceled) || d.presents.Load() != before {
		t.Fatalf("cancelled: %v", err)
	}
	// Nothing of the failures was kept.
	if _, err := v.ReadAt(t.Context(), p, v.lay.l2); err != nil || p[7] != 0 {
		t.Fatalf("afterwards: %v", err)
	}
	d.runs = []extent{{1 << 29, 512}, {0, 512}}
	_, err = mustView(t, d, 16).NextHole(t.Context(), 0)
	wantKind(t, err, errs.Bug)
	_, err = mustView(t, &short{d}, 16).ReadAt(t.Context(), p, v.lay.data)
	wantKind(t, err, errs.Bug)
}

// short ends before its size.
type short struct{ *disk }

func (*short) ReadAt(context.Context, []byte, int64) (int, error) { return 3, io.EOF }

// TestViewLimits: sizes that cannot be are refused, the largest that can be are not.
func TestViewLimits(t *testing.T) {
	for _, x := range []struct {
		size int64
		bits int
		ok   bool
	}{
		{513, 16, false}, {-512, 16, false}, {512, 8, false}, {512, 22, false}, {512, 9, true}, {512, 21, true},
		{2 << 50, 16, false}, {1<<51 - 1<<40, 16, true}, {128 << 30, 9, false}, {120 << 30, 9, true},
		{1 << 56, 21, false}, {1<<56 - 1<<50, 21, true}, {1<<63 - 512, 21, false},
	} {
		v, err := NewView(&disk{size: x.size}, x.bits)
		if (err == nil) != x.ok {
			t.Errorf("%d bytes, %d bits: %v", x.size, x.bits, err)
		}
		if err != nil {
			wantKind(t, err, errs.Invalid)
			continue
		}
		if _, err := v.ReadAt(t.Context(), make([]byte, 4096), max(v.Size()-4096, 0)); err != nil && err != io.EOF {
			t.Errorf("%d bytes, %d bits: the end: %v", x.size, x.bits, err)
		}
	}
}

// TestViewLargestQemu shows qemu the header and tables of a 15 TiB view, the data being holes: it opens it and maps a
// part that has data at both ends.
func TestViewLargestQemu(t *testing.T) {
	d := &disk{size: 15 << 40, runs: []extent{{0, 4096}, {7 << 40, 1 << 20}, {15<<40 - 4096, 4096}}}
	v := mustView(t, d, 21) // 2 MiB clusters keep the tables written out at 61 MiB
	file := viewFile(t, v)
	raw := rawFile(t, d)
	got := mapped(t, file, func(guest int64) int64 { return v.DataOffset() + guest })
	if want := clusterRuns(d.runs, 2<<20, d.size); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("map shows data at %v, want %v", got, want)
	}
	sameDisk(t, file, raw)
	if st, err := os.Stat(file); err != nil || st.Size() != v.Size() {
		t.Fatal(err)
	}
}

// TestViewExample holds the worked example of docs/format/qcow2-view.md.
func TestViewExample(t *testing.T) {
	for present, want := range map[bool]string{true: "80000000123e0000", false: "80000000123e0001"} {
		d := &disk{size: 2<<30 + 12<<10}
		if present {
			d.runs = []extent{{0x12345678 &^ 511, 512}}
		}
		v := mustView(t, d, 16)
		if v.DataOffset() != 0xa0000 || v.Size() != 2148204544 {
			t.Fatalf("data at %#x of %d", v.DataOffset(), v.Size())
		}
		p := make([]byte, 8)
		if _, err := v.ReadAt(t.Context(), p, 0x591a0); err != nil || hex.EncodeToString(p) != want {
			t.Fatalf("entry %x, want %s (%v)", p, want, err)
		}
	}
}
