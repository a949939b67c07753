package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// seed returns a copy of one of the small images in testdata, all made by qemu-img 7.2 (testdata/README.md).
func seed(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// seeds returns the names of all of them.
func seeds(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.qcow2")
	if err != nil || len(files) < 4 {
		t.Fatalf("the images in testdata: %v, %v", files, err)
	}
	for i := range files {
		files[i] = filepath.Base(files[i])
	}
	return files
}

// result is all that can be read of an image.
type result struct {
	content []byte
	extents []extent
	dirty   map[string][]extent
}

// readAll reads everything, at most limit bytes of content. After an error it goes on with the rest, as a caller might.
func readAll(ctx context.Context, b []byte, limit int64) (result, error) {
	r := result{dirty: map[string][]extent{}}
	m, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return r, err
	}
	var all []error
	r.content = make([]byte, min(m.Size(), limit))
	if len(r.content) > 0 {
		n, err := m.ReadAt(ctx, r.content, 0)
		if n < len(r.content) && err == nil {
			panic("fewer bytes than asked for without an error")
		}
		all = append(all, err)
		if _, err = m.ReadAt(ctx, make([]byte, 1000), m.Size()-1); err != io.EOF {
			all = append(all, err)
		}
	}
	runs := 0
	all = append(all, m.Extents(ctx, 0, func(off, n int64, data bool) bool {
		if n <= 0 || off < 0 || off+n > m.Size() {
			panic("an extent outside the disk")
		}
		if data {
			r.extents = append(r.extents, extent{off, n})
		}
		runs++
		return runs < 10_000
	}))
	list, err := m.Bitmaps()
	all = append(all, err)
	for _, x := range list[:min(len(list), 8)] {
		all = append(all, m.Dirty(ctx, x.Name, func(off, n int64) bool {
			if n <= 0 || off < 0 || off+n > m.Size() {
				panic("a dirty range outside the disk")
			}
			r.dirty[x.Name] = append(r.dirty[x.Name], extent{off, n})
			return len(r.dirty[x.Name]) < 10_000
		}))
	}
	return r, errors.Join(all...)
}

// isDamage tells whether damage to a file may show as err. Stale is for a bitmap whose flags were hit.
func isDamage(err error) bool {
	switch errs.KindOf(err) {
	case errs.Corrupt, errs.Invalid, errs.Unsupported, errs.Stale:
		return true
	}
	return false
}

// TestTruncated cuts every seed at every length: either an error says so, or nothing that was lost was needed.
func TestTruncated(t *testing.T) {
	for _, name := range seeds(t) {
		b := seed(t, name)
		whole, err := readAll(t.Context(), b, 1<<20)
		if err != nil || len(whole.content) == 0 || len(whole.extents) == 0 {
			t.Fatalf("%s: %v", name, err)
		}
		failed := 0
		for n := range b {
			got, err := readAll(t.Context(), b[:n:n], 1<<20)
			switch {
			case err != nil && !isDamage(err):
				t.Fatalf("%s cut to %d: %v", name, n, err)
			case err != nil:
				failed++
			case !bytes.Equal(got.content, whole.content) || fmt.Sprint(got.extents, got.dirty) != fmt.Sprint(whole.extents, whole.dirty):
				t.Fatalf("%s cut to %d reads differently, and without an error", name, n)
			}
		}
		if failed < len(b)/2 {
			t.Fatalf("%s: only %d of %d lengths are noticed", name, failed, len(b))
		}
	}
}

// TestFlipped changes bytes: all of the header's, and many others.
func TestFlipped(t *testing.T) {
	rnd := newRand(t)
	for _, name := range seeds(t) {
		b := seed(t, name)
		for i := range 6000 {
			c := bytes.Clone(b)
			switch {
			case i < 4*130:
				c[i/4] ^= []byte{1, 0x80, 0xff, byte(1 + rnd.IntN(255))}[i%4]
			default:
				for range 1 + rnd.IntN(3) {
					c[rnd.IntN(len(c))] ^= byte(1 + rnd.IntN(255))
				}
			}
			start := time.Now()
			if _, err := readAll(t.Context(), c, 1<<20); err != nil && !isDamage(err) {
				t.Fatalf("%s, change %d: %v", name, i, err)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Fatalf("%s, change %d: took %v", name, i, d)
			}
		}
	}
}

// TestHeaderFields sets each field of a good header to something that cannot be read. It is long for being a table.
func TestHeaderFields(t *testing.T) {
	put32 := binary.BigEndian.PutUint32
	put64 := binary.BigEndian.PutUint64
	for _, x := range []struct {
		what string
		kind errs.Kind
		set  func(b []byte)
	}{
		{"magic", errs.Invalid, func(b []byte) { b[0] = 'R' }},
		{"version 1", errs.Unsupported, func(b []byte) { put32(b[4:], 1) }},
		{"version 4", errs.Unsupported, func(b []byte) { put32(b[4:], 4) }},
		{"backing file", errs.Unsupported, func(b []byte) { put64(b[8:], 300); put32(b[16:], 4) }},
		{"AES", errs.Unsupported, func(b []byte) { put32(b[32:], 1) }},
		{"LUKS", errs.Unsupported, func(b []byte) { put32(b[32:], 2) }},
		{"cluster bits 8", errs.Corrupt, func(b []byte) { put32(b[20:], 8) }},
		{"cluster bits 22", errs.Corrupt, func(b []byte) { put32(b[20:], 22) }},
		{"cluster bits 2^31", errs.Corrupt, func(b []byte) { put32(b[20:], 1<<31) }},
		{"size beyond L1", errs.Corrupt, func(b []byte) { put64(b[24:], 1<<40) }},
		{"negative size", errs.Corrupt, func(b []byte) { put64(b[24:], 1<<63) }},
		{"L1 of gigabytes", errs.Corrupt, func(b []byte) { put32(b[36:], 1<<30) }},
		{"L1 of 2^32 entries", errs.Corrupt, func(b []byte) { put32(b[36:], 1<<32-1) }},
		{"L1 larger than the file", errs.Corrupt, func(b []byte) { put32(b[36:], 1<<20) }},
		{"L1 outside", errs.Corrupt, func(b []byte) { put64(b[40:], 1<<40) }},
		{"L1 far outside", errs.Corrupt, func(b []byte) { put64(b[40:], 1<<62) }},
		{"L1 at a negative offset", errs.Corrupt, func(b []byte) { put64(b[40:], 1<<63) }},
		{"L1 unaligned", errs.Corrupt, func(b []byte) { b[47] |= 8 }},
		{"corrupt bit", errs.Corrupt, func(b []byte) { b[79] |= 2 }},
		{"data file", errs.Unsupported, func(b []byte) { b[79] |= 4 }},
		{"compression bit alone", errs.Corrupt, func(b []byte) { b[79] |= 8 }},
		{"compression type alone", errs.Corrupt, func(b []byte) { b[104] = 1 }},
		{"compression type 2", errs.Unsupported, func(b []byte) { b[79] |= 8; b[104] = 2 }},
		{"extended L2", errs.Unsupported, func(b []byte) { b[79] |= 16 }},
		{"feature 5", errs.Unsupported, func(b []byte) { b[79] |= 32 }},
		{"feature 63", errs.Unsupported, func(b []byte) { b[72] |= 128 }},
		{"refcount order", errs.Corrupt, func(b []byte) { put32(b[96:], 7) }},
		{"header length 96", errs.Corrupt, func(b []byte) { put32(b[100:], 96) }},
		{"header length odd", errs.Corrupt, func(b []byte) { put32(b[100:], 107) }},
		{"header length above the cluster", errs.Corrupt, func(b []byte) { put32(b[100:], 1<<20) }},
		{"extension too long", errs.Corrupt, func(b []byte) { put32(b[112:], 0x1234); put32(b[116:], 1<<31) }},
		{"bitmaps extension too short", errs.Corrupt, func(b []byte) { put32(b[112:], extBitmaps); put32(b[116:], 8) }},
	} {
		b := seed(t, "plain.qcow2")
		x.set(b)
		_, err := Open(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			t.Errorf("%s: opened", x.what)
			continue
		}
		var e *errs.Error
		if !errors.As(err, &e) || e.Kind != x.kind {
			t.Errorf("%s: %v, want %v", x.what, err, x.kind)
		}
		if x.kind != errs.Invalid && e.Next == "" {
			t.Errorf("%s: %v says not what to do", x.what, err)
		}
	}
	for what, set := range map[string]func(b []byte){
		"dirty bit":          func(b []byte) { b[79] |= 1 },
		"compatible feature": func(b []byte) { b[87] |= 1 },
		"header length 104":  func(b []byte) { put32(b[100:], 104) },
		"unknown extension":  func(b []byte) { put32(b[112:], 0x1234); put32(b[116:], 5); put32(b[128:], 0) },
		"no end record":      func(b []byte) { put32(b[112:], 0x1234); put32(b[116:], 512-120) },
	} {
		b := seed(t, "plain.qcow2")
		set(b)
		if _, err := readAll(t.Context(), b, 1<<20); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestSmallFiles: almost nothing, claiming a lot.
func TestSmallFiles(t *testing.T) {
	for n := range 120 {
		b := seed(t, "plain.qcow2")[:n]
		if n >= 40 {
			binary.BigEndian.PutUint32(b[36:], 1<<22)
		}
		_, err := Open(bytes.NewReader(b), int64(n))
		if !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.Invalid) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	if _, err := Open(bytes.NewReader(nil), -1); !errs.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
}

// TestTableEntries: entries that point to where nothing can be.
func TestTableEntries(t *testing.T) {
	for _, x := range []struct {
		what  string
		level int
		entry uint64
	}{
		{"L1 outside", 1, 1<<40 | flagCopied}, {"L1 at the end", 1, 27136 | flagCopied}, {"L1 reserved", 1, 1024 | 1<<60},
		{"L1 reserved low", 1, 1024 | 1}, {"L2 outside", 2, 1<<40 | flagCopied}, {"L2 at the end", 2, 27136},
		{"L2 reserved", 2, 1024 | 1<<60}, {"L2 reserved low", 2, 1024 | 2},
		{"compressed outside", 2, flagCompressed | 1<<40}, {"compressed garbage", 2, flagCompressed | 100},
	} {
		b := seed(t, "plain.qcow2")
		l1 := be64(b[40:])
		at := l1
		if x.level == 2 {
			at = be64(b[l1:]) & offsetMask
		}
		binary.BigEndian.PutUint64(b[at:], x.entry)
		m, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.ReadAt(t.Context(), make([]byte, 10), 0)
		wantKind(t, err, errs.Corrupt)
		if x.level == 1 || x.entry&flagCompressed == 0 {
			wantKind(t, m.Extents(t.Context(), 0, func(int64, int64, bool) bool { return true }), errs.Corrupt)
		}
	}
	// Clusters of 1024 bytes can also be missed; version 2 knows no zero clusters.
	for name, entry := range map[string]uint64{"zstd.qcow2": 2048 + 512 | flagCopied, "deflate-v2.qcow2": 1} {
		b := seed(t, name)
		binary.BigEndian.PutUint64(b[be64(b[be64(b[40:]):])&offsetMask:], entry)
		m, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.ReadAt(t.Context(), make([]byte, 10), 0)
		wantKind(t, err, errs.Corrupt)
	}
}

// loop is a huge file whose every L1 entry names the same table.
type loop struct{ head []byte }

func (l loop) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(l.head)) {
		copy(p, l.head[off:])
	}
	if off >= 1<<16 && off < 1<<16+maxL1Bytes {
		for i := 0; i+8 <= len(p); i += 8 {
			binary.BigEndian.PutUint64(p[i:], 40<<20|flagCopied)
		}
	}
	return len(p), nil
}

// TestWalkIsBounded: a file of 64 MiB claims a disk of 2 PiB; the walk ends with an error and little memory.
func TestWalkIsBounded(t *testing.T) {
	y := layout{bits: 16, size: 2 << 50, l1Size: maxL1Bytes / 8, l1: 1 << 16}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	m, err := Open(loop{encodeHeader(&y)}, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	err = m.Extents(t.Context(), 0, func(int64, int64, bool) bool { return true })
	wantKind(t, err, errs.Corrupt)
	for i := range int64(2000) { // reads everywhere keep the cache at its bound
		if _, err := m.ReadAt(t.Context(), make([]byte, 1), i<<40); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := int64(after.HeapAlloc) - int64(before.HeapAlloc); n > tableCacheBytes+8<<20 {
		t.Fatalf("%d bytes are held", n)
	}
	if m.tables.bytes > tableCacheBytes {
		t.Fatalf("%d bytes of tables are held", m.tables.bytes)
	}
	runtime.KeepAlive(m)
}

// sick fails reads from some offset on.
type sick struct {
	io.ReaderAt
	from int64
	err  error
}

func (s sick) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > s.from {
		return 0, s.err
	}
	return s.ReaderAt.ReadAt(p, off)
}

// TestReadFailures: failures below come through with their kind.
func TestReadFailures(t *testing.T) {
	b := seed(t, "bitmap.qcow2")
	for from := int64(0); from < int64(len(b)); from += 256 {
		m, err := Open(sick{bytes.NewReader(b), from, syscall.EBUSY}, int64(len(b)))
		if err != nil {
			wantKind(t, err, errs.Busy)
			continue
		}
		for _, err := range []error{
			second(m.ReadAt(t.Context(), make([]byte, m.Size()), 0)),
			m.Extents(t.Context(), 0, func(int64, int64, bool) bool { return true }),
			second(m.Bitmaps()), m.Dirty(t.Context(), "b", func(int64, int64) bool { return true }),
		} {
			if err != nil {
				wantKind(t, err, errs.Busy)
			}
		}
	}
	// A file that became shorter than it was is damage.
	m, err := Open(bytes.NewReader(b[:8000]), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.ReadAt(t.Context(), make([]byte, m.Size()), 0)
	if !errs.Is(err, errs.Corrupt) {
		t.Fatal(err)
	}
}

func second[T any](_ T, err error) error { return err }
