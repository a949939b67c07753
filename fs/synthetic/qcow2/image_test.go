package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// contents returns a disk in memory: random pieces, half of them easy to compress, between zeros.
func contents(rnd *rand.Rand, size, pieces int) []byte {
	b := make([]byte, size)
	for i := range pieces {
		off := rnd.IntN(size)
		p := b[off:min(off+1+rnd.IntN(size/pieces), size)]
		if i%2 == 0 {
			pattern(p, int64(off), rnd.Uint64())
		} else {
			copy(p, bytes.Repeat([]byte("a line of a log, much like the others\n"), len(p)/38+1))
		}
	}
	return b
}

func writeTemp(t testing.TB, name string, b []byte) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestImageConverted reads what qemu-img convert and create make, of every shape.
func TestImageConverted(t *testing.T) {
	rnd := newRand(t)
	for _, options := range []string{
		"-o compat=0.10", "-o compat=1.1", "-c -o compat=0.10", "-c -o compat=1.1", "-c -o compression_type=zstd",
		"-o preallocation=metadata", "-o preallocation=falloc", "-o lazy_refcounts=on", "-o refcount_bits=1",
	} {
		for _, c := range []int{512, 4096, 65536, 2 << 20} {
			t.Run(fmt.Sprint(options, " ", c), func(t *testing.T) {
				size := min(60*c, 5<<20) + 512*(1+rnd.IntN(7))
				want := contents(rnd, size, 6)
				raw := writeTemp(t, "raw", want)
				file := filepath.Join(t.TempDir(), "image")
				args := []string{"convert", "-f", "raw", "-O", "qcow2"}
				args = append(args, strings.Fields(options)...)
				args[len(args)-1] += ",cluster_size=" + itoa(int64(c))
				qemuImg(t, append(args, raw, file)...)
				m, n := openFile(t, file)
				if m.ClusterSize() != int64(c) {
					t.Fatalf("cluster size %d", m.ClusterSize())
				}
				sameAs(t, m, want, rnd)
				if list, err := m.Bitmaps(); err != nil || len(list) != 0 {
					t.Fatalf("bitmaps %v, %v", list, err)
				}
				if n.calls.Load() > int64(size) {
					t.Fatalf("%d reads", n.calls.Load())
				}
			})
		}
	}
}

// TestImageReadsNoZeros: a disk that is mostly holes costs its data and its tables.
func TestImageReadsNoZeros(t *testing.T) {
	d := &disk{size: 4 << 30, runs: []extent{{1 << 30, 3 << 20}, {3 << 30, 65536}}, seed: 5}
	m, n := openFile(t, viewFile(t, mustView(t, d, 16)))
	buf := make([]byte, 1<<20)
	for off := int64(0); off < m.Size(); off += int64(len(buf)) {
		if _, err := m.ReadAt(t.Context(), buf, off); err != nil {
			t.Fatal(err)
		}
	}
	tables := int64(9 * 65536) // 8 L2 tables, L1, and the header's cluster
	if got, most := n.bytes.Load(), 3<<20+65536+tables+65536; got > most {
		t.Fatalf("%d bytes were read, at most %d are needed", got, most)
	}
}

// qemuIO runs commands on an image in one process.
func qemuIO(t testing.TB, file string, commands []string) {
	t.Helper()
	args := []string{"-f", "qcow2", "-d", "unmap"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if out := qemu(t, "qemu-io", append(args, file)...); bytes.Contains(out, []byte("failed")) {
		t.Fatalf("%q\n%s", commands, out)
	}
}

// compress writes some compressed clusters, to the image and to want. qemu 7.2 goes on filling a cluster of compressed
// data after that was freed and given to something else (write -c, discard, write elsewhere, write -c), so one process
// frees the places and another fills them, and neither does anything else.
func compress(t testing.TB, rnd *rand.Rand, file string, c int64, want []byte) (written []extent) {
	t.Helper()
	var discards, writes []string
	for i := range 6 {
		off := (rnd.Int64N(int64(len(want))/c/6)*6 + int64(i)) * c // never one twice
		v := byte(1 + rnd.IntN(255))
		discards = append(discards, fmt.Sprintf("discard %d %d", off, c))
		writes = append(writes, fmt.Sprintf("write -c -P %d %d %d", v, off, c))
		copy(want[off:off+c], bytes.Repeat([]byte{v}, int(c)))
		written = append(written, extent{off, c})
	}
	qemuIO(t, file, discards)
	qemuIO(t, file, writes)
	return written
}

// operations applies a random log to an image by one qemu-io and to want, the same disk in memory. Without
// discards no cluster loses its place.
func operations(t testing.TB, rnd *rand.Rand, file string, c int64, want []byte, count int, discards bool) (written []extent) {
	t.Helper()
	var commands []string
	size := int64(len(want))
	for range count {
		off := rnd.Int64N(size/512) * 512
		n := min((1+rnd.Int64N(4*c/512))*512, size-off)
		var op string
		kind := rnd.IntN(8)
		if !discards && (kind == 1 || kind == 2) { // -u frees places as a discard does
			kind = 0
		}
		switch kind {
		case 0:
			op = "write -z"
			clear(want[off : off+n])
		case 1:
			op = "write -z -u"
			clear(want[off : off+n])
		case 2: // whole clusters only: what a discard does to the rest of one is not said
			off = off / c * c
			n = min((n+c-1)/c*c, size-off)
			if n%c != 0 && off+n != size {
				continue
			}
			op = "discard"
			clear(want[off : off+n])
		default:
			if n = min(n, size-off); rnd.IntN(10) == 0 {
				commands = append(commands, "flush")
			}
			v := byte(1 + rnd.IntN(255))
			op = fmt.Sprintf("write -P %d", v)
			copy(want[off:off+n], bytes.Repeat([]byte{v}, int(n)))
		}
		commands = append(commands, fmt.Sprintf("%s %d %d", op, off, n))
		written = append(written, extent{off, n})
	}
	qemuIO(t, file, commands)
	return written
}

// TestImageOperations reads images that qemu has worked on, fresh ones and views that a guest wrote to.
func TestImageOperations(t *testing.T) {
	for _, bits := range []int{9, 12, 16} {
		for _, kind := range []string{"view", "dense", "created", "created v2"} {
			t.Run(fmt.Sprintf("%s/%d bits", kind, bits), func(t *testing.T) { imageOperations(t, newRand(t), kind, bits) })
		}
	}
}

func imageOperations(t *testing.T, rnd *rand.Rand, kind string, bits int) {
	c := int64(1) << bits
	size := min(c*300, 8<<20) + 4096
	d := randomDisk(rnd, size, bits, 12)
	want := make([]byte, size)
	var file string
	switch kind {
	case "view":
		file = viewFile(t, mustView(t, d, bits))
		d.ReadAt(t.Context(), want, 0)
	case "dense":
		file = filepath.Join(t.TempDir(), "dense.qcow2")
		writeFile(t, file, d, bits)
		d.ReadAt(t.Context(), want, 0)
	default:
		compat := map[string]string{"created": "1.1", "created v2": "0.10"}[kind]
		file = filepath.Join(t.TempDir(), "created.qcow2")
		qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size="+itoa(c)+",compat="+compat, file, itoa(size))
	}
	length := fileLength(t, file)
	operations(t, rnd, file, c, want, 120, false)
	checkClean(t, file)
	if kind == "view" && fileLength(t, file) != length {
		t.Fatalf("the guest's writes made the file grow from %d to %d", length, fileLength(t, file))
	}
	m, _ := openFile(t, file)
	sameAs(t, m, want, rnd)
	operations(t, rnd, file, c, want, 60, true)
	compress(t, rnd, file, c, want)
	operations(t, rnd, file, c, want, 60, true)
	qemuImg(t, "resize", "-q", file, "+"+itoa(37*c+1024))
	want = append(want, make([]byte, 37*c+1024)...)
	if kind != "created v2" {
		qemuImg(t, "bitmap", "--add", "-g", "65536", file, "b0")
	}
	written := operations(t, rnd, file, c, want, 60, true)
	written = append(written, compress(t, rnd, file, c, want)...)
	checkClean(t, file)
	m, _ = openFile(t, file)
	sameAs(t, m, want, rnd)
	if kind != "created v2" {
		checkDirty(t, m, "b0", 65536, written)
	}
	// Kept as a new disk, which is what an image as a Source is for.
	again := filepath.Join(t.TempDir(), "again.qcow2")
	writeFile(t, again, m, bits)
	checkClean(t, again)
	qemuImg(t, "compare", "-f", "qcow2", "-F", "qcow2", file, again)
}

func writeFile(t testing.TB, name string, src Source, bits int) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Write(t.Context(), f, src, WriteOptions{ClusterBits: bits}); err != nil {
		t.Fatal(err)
	}
}

func fileLength(t testing.TB, name string) int64 {
	t.Helper()
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// checkDirty holds a bitmap to what was written: exactly the grains touched.
func checkDirty(t testing.TB, m *Image, name string, grain int64, written []extent) {
	t.Helper()
	dirty := make([]bool, (m.Size()+grain-1)/grain)
	for _, w := range written {
		for g := w.off / grain; g*grain < w.off+w.n; g++ {
			dirty[g] = true
		}
	}
	var want []extent
	for g, is := range dirty {
		if off := int64(g) * grain; is {
			want = join(want, off, min(grain, m.Size()-off))
		}
	}
	var got []extent
	if err := m.Dirty(t.Context(), name, func(off, n int64) bool {
		got = append(got, extent{off, n})
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("dirty are %v, want %v", got, want)
	}
}

// TestBitmaps reads bitmaps of several grains, from tables of several entries, beside each other.
func TestBitmaps(t *testing.T) {
	rnd := newRand(t)
	for _, c := range []int64{512, 4096, 65536} {
		size := int64(20<<20) + 4096
		file := filepath.Join(t.TempDir(), "image")
		qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size="+itoa(c), file, itoa(size))
		want := make([]byte, size)
		operations(t, rnd, file, c, want, 20, true)
		grains := []int64{512, 4096, 65536, 1 << 21, 1 << 30}
		for _, g := range grains {
			qemuImg(t, "bitmap", "--add", "-g", itoa(g), file, fmt.Sprintf("checkpoint %d", g))
		}
		qemuImg(t, "bitmap", "--add", "--disable", file, "stopped")
		written := operations(t, rnd, file, c, want, 40, true)
		m, n := openFile(t, file)
		list, err := m.Bitmaps()
		if err != nil || len(list) != len(grains)+1 {
			t.Fatalf("bitmaps %v, %v", list, err)
		}
		for i, g := range grains {
			if b := list[i]; b.Name != fmt.Sprintf("checkpoint %d", g) || b.Granularity != g || b.InUse || !b.Auto {
				t.Fatalf("bitmap %+v", b)
			}
			checkDirty(t, m, list[i].Name, g, written)
		}
		if b := list[len(grains)]; b.Name != "stopped" || b.Auto {
			t.Fatalf("bitmap %+v", b)
		}
		checkDirty(t, m, "stopped", 65536, nil)
		before := n.calls.Load()
		if err := m.Dirty(t.Context(), "checkpoint 512", func(int64, int64) bool { return false }); err != nil {
			t.Fatal(err)
		}
		if calls := n.calls.Load() - before; calls > 12 {
			t.Fatalf("a walk stopped at its first range took %d reads", calls)
		}
		wantKind(t, m.Dirty(t.Context(), "another", nil), errs.NotFound)
	}
}

// TestBitmapNotClosed: a qemu that died left a bitmap which must not be believed, and a disk which can be read.
func TestBitmapNotClosed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", file, "8M")
	qemuImg(t, "bitmap", "--add", file, "b")
	// abort ends qemu-io by a signal, so its exit status says nothing.
	out, _ := exec.Command(needs(t, "qemu-io"), "-f", "qcow2", "-c", "write -P 9 1M 64k", "-c", "flush", "-c", "abort", file).CombinedOutput()
	m, _ := openFile(t, file)
	list, err := m.Bitmaps()
	if err != nil || len(list) != 1 || !list[0].InUse {
		t.Fatalf("bitmaps %+v, %v\n%s", list, err, out)
	}
	wantKind(t, m.Dirty(t.Context(), "b", nil), errs.Stale)
	b := make([]byte, 8<<20)
	if raw, _ := os.ReadFile(file); binary.BigEndian.Uint64(raw[72:])&incompatDirty == 0 {
		t.Fatal("the dirty bit is not set: this tests nothing")
	}
	if _, err := m.ReadAt(t.Context(), b, 0); err != nil || b[1<<20] != 9 || b[1<<20-1] != 0 {
		t.Fatalf("%x, %v", b[1<<20], err)
	}
}

// TestBitmapForgotten: a program without bitmaps has written since, and said so by clearing the feature bit.
func TestBitmapForgotten(t *testing.T) {
	b := seed(t, "bitmap.qcow2")
	binary.BigEndian.PutUint64(b[88:], 0)
	m, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if list, err := m.Bitmaps(); err != nil || list != nil {
		t.Fatalf("bitmaps %v, %v", list, err)
	}
	wantKind(t, m.Dirty(t.Context(), "b", nil), errs.Stale)
}

// TestBitmapByHand covers what qemu reads but does not write: entries that are all ones, unknown types, extra data.
func TestBitmapByHand(t *testing.T) {
	dirty := func(change func(b, record, table []byte)) ([]extent, error) {
		b := seed(t, "bitmap.qcow2")
		m, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		x := m.h.bitmaps
		record := b[x.directory:][:x.size]
		change(b, record, b[be64(record):])
		var got []extent
		err = m.Dirty(t.Context(), "b", func(off, n int64) bool { got = append(got, extent{off, n}); return true })
		return got, err
	}
	m, _ := Open(bytes.NewReader(seed(t, "bitmap.qcow2")), int64(len(seed(t, "bitmap.qcow2"))))
	got, err := dirty(func(_, _, table []byte) { binary.BigEndian.PutUint64(table, 1) })
	if err != nil || fmt.Sprint(got) != fmt.Sprint([]extent{{0, m.Size()}}) {
		t.Errorf("all ones: %v, %v", got, err)
	}
	got, err = dirty(func(_, _, table []byte) { binary.BigEndian.PutUint64(table, 0) })
	if err != nil || got != nil {
		t.Errorf("all zeros: %v, %v", got, err)
	}
	for what, x := range map[string]struct {
		kind   errs.Kind
		change func(b, record, table []byte)
	}{
		"type":        {errs.Unsupported, func(_, r, _ []byte) { r[16] = 2 }},
		"in use":      {errs.Stale, func(_, r, _ []byte) { r[15] |= 1 }},
		"grain":       {errs.Corrupt, func(_, r, _ []byte) { r[17] = 40 }},
		"name length": {errs.Corrupt, func(_, r, _ []byte) { r[18] = 3 }},
		"no name":     {errs.Corrupt, func(_, r, _ []byte) { r[18], r[19] = 0, 0 }},
		"extra":       {errs.Corrupt, func(_, r, _ []byte) { r[20] = 0xff }},
		"table size":  {errs.Corrupt, func(_, r, _ []byte) { r[8] = 1 }},
		"table":       {errs.Corrupt, func(_, r, _ []byte) { r[3] = 1 }},
		"unaligned":   {errs.Corrupt, func(_, r, _ []byte) { r[7] |= 8 }},
		"reserved":    {errs.Corrupt, func(_, _, e []byte) { e[7] |= 4 }},
		"bits":        {errs.Corrupt, func(_, _, e []byte) { e[2] = 1 }},
		"both":        {errs.Corrupt, func(_, _, e []byte) { e[7] |= 1 }},
	} {
		_, err := dirty(x.change)
		if !errs.Is(err, x.kind) {
			t.Errorf("%s: %v, want %v", what, err, x.kind)
		}
	}
}

// TestDirtyRuns holds the bit walk to the obvious one, on random bits and limits.
func TestDirtyRuns(t *testing.T) {
	rnd := newRand(t)
	for range 2000 {
		b := make([]byte, 1+rnd.IntN(12))
		for i := range b {
			b[i] = []byte{0, 0xff, byte(rnd.Uint32()), 0x80, 1}[rnd.IntN(5)]
		}
		count := int64(len(b)*8 - rnd.IntN(8))
		size := count*512 - rnd.Int64N(512)
		var want, got []extent
		for i := range count {
			if b[i/8]>>(i%8)&1 == 1 {
				want = join(want, i*512, min(512, size-i*512))
			}
		}
		w := dirtyWalk{m: &Image{h: header{size: size}}, grain: 512, count: count, start: -1,
			visit: func(off, n int64) bool { got = append(got, extent{off, n}); return true }}
		cut := rnd.IntN(len(b) + 1)
		w.bits(b[:cut], 0, count)
		w.bits(b[cut:], int64(cut)*8, count)
		w.clean(count)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%x of %d: %v, want %v", b, count, got, want)
		}
	}
}

// TestImageStops: visits that say stop are not called again, contexts that ended are obeyed.
func TestImageStops(t *testing.T) {
	b := seed(t, "plain.qcow2")
	m, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	if err := m.Extents(t.Context(), 0, func(int64, int64, bool) bool { calls++; return false }); err != nil || calls != 1 {
		t.Fatalf("%d calls, %v", calls, err)
	}
	ctx, cancel := contextCanceled(t)
	defer cancel()
	_, err = m.ReadAt(ctx, make([]byte, 1), 0)
	wantKind(t, err, errs.Canceled)
	wantKind(t, m.Extents(ctx, 0, nil), errs.Canceled)
	_, err = m.ReadAt(t.Context(), make([]byte, 1), -1)
	wantKind(t, err, errs.Invalid)
	wantKind(t, m.Extents(t.Context(), -1, nil), errs.Invalid)
	if n, err := m.ReadAt(t.Context(), make([]byte, 1), m.Size()); n != 0 || err != io.EOF {
		t.Fatalf("at the end: %d, %v", n, err)
	}
	if err := m.Extents(t.Context(), m.Size()+9, nil); err != nil {
		t.Fatal(err)
	}
}

// TestImageConcurrent reads images from many goroutines, decoders and caches being shared.
func TestImageConcurrent(t *testing.T) {
	for _, name := range seeds(t) {
		b := seed(t, name)
		want, err := readAll(t.Context(), b, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for k := range 4 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(k), 2))
				for range 200 {
					off := rnd.IntN(len(want.content))
					p := make([]byte, rnd.IntN(len(want.content)-off))
					if _, err := m.ReadAt(context.Background(), p, int64(off)); err != nil || !bytes.Equal(p, want.content[off:off+len(p)]) {
						t.Errorf("%s: %d bytes at %d: %v", name, len(p), off, err)
					}
				}
			})
		}
		wg.Wait()
	}
}
