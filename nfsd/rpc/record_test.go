package rpc

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/holdfast-backup/holdfast/internal/fuzztest"
)

// stream joins fragments; the marker of the last one in each group says so.
func stream(records ...[][]byte) []byte {
	var out []byte
	for _, fragments := range records {
		for i, f := range fragments {
			marker := uint32(len(f))
			if i == len(fragments)-1 {
				marker |= lastFragment
			}
			out = append(binary.BigEndian.AppendUint32(out, marker), f...)
		}
	}
	return out
}

func newReader(r io.Reader, limit int) *recordReader {
	return &recordReader{r: bufio.NewReaderSize(r, 64), pool: &pool{}, limit: func(int) int { return limit },
		take: func(int, bool) error { return nil }, wait: func(bool) {}}
}

func TestRecords(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 1000)
	in := stream([][]byte{[]byte("one")}, [][]byte{{}}, [][]byte{[]byte("t"), {}, []byte("wo")},
		[][]byte{big[:100], big[100:101], big[101:]}, [][]byte{big})
	want := [][]byte{[]byte("one"), {}, []byte("two"), big, big}
	for _, slow := range []bool{false, true} {
		var src io.Reader = bytes.NewReader(in)
		if slow {
			src = iotest.OneByteReader(src)
		}
		r := newReader(src, len(big))
		for i, w := range want {
			rec, buf, err := r.next()
			if err != nil || !bytes.Equal(rec, w) {
				t.Fatalf("record %d: %d bytes, %v; want %d", i, len(rec), err, len(w))
			}
			r.pool.put(buf)
		}
		if _, _, err := r.next(); err != io.EOF {
			t.Fatalf("at the end: %v", err)
		}
	}
}

func TestRecordsRefused(t *testing.T) {
	huge := binary.BigEndian.AppendUint32(nil, 1<<31-1)
	for name, tc := range map[string]struct {
		in   []byte
		want error
	}{
		"cut marker":          {[]byte{0x80, 0}, io.ErrUnexpectedEOF},
		"cut record":          {stream([][]byte{[]byte("abcdef")})[:6], io.ErrUnexpectedEOF},
		"no last fragment":    {binary.BigEndian.AppendUint32(nil, 0), io.ErrUnexpectedEOF},
		"2 GiB":               {huge, errOversize},
		"2 GiB, last":         {binary.BigEndian.AppendUint32(nil, 1<<32-1), errOversize},
		"too large in sum":    {stream([][]byte{make([]byte, 60), make([]byte, 41)}), errOversize},
		"empty ones for ever": {make([]byte, 4*(maxFragments+1)), errFragments},
	} {
		_, buf, err := newReader(bytes.NewReader(tc.in), 100).next()
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		if buf != nil && len(buf.b) > 8192 {
			t.Errorf("%s: %d bytes were taken", name, len(buf.b))
		}
	}
}

func TestRecordBudgetIsAskedBeforeMemory(t *testing.T) {
	full := errors.New("full")
	r := newReader(bytes.NewReader(stream([][]byte{make([]byte, 50)})), 100)
	r.take = func(n int, _ bool) error {
		if n != 50 {
			t.Errorf("asked for %d", n)
		}
		return full
	}
	if _, buf, err := r.next(); err != full || buf != nil {
		t.Fatalf("%v, buffer %v", err, buf)
	}
}

// FuzzRecords: no panic, no record over the limit, and what comes out is what the fragments held.
func FuzzRecords(f *testing.F) {
	f.Add(stream([][]byte{[]byte("one")}, [][]byte{[]byte("t"), []byte("wo")}))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		const limit = 512
		r := newReader(bytes.NewReader(in), limit)
		total, records := 0, 0
		r.take = func(_ int, whole bool) error { // every third one that may be is put off
			if records++; records%3 == 0 && whole {
				return errPutOff
			}
			return nil
		}
		fuzztest.Bounded(t, len(in), 64<<10, 16, func() {
			for {
				rec, buf, err := r.next()
				if err != nil && err != errPutOff {
					return
				}
				total += len(rec)
				if len(rec) > limit || total > len(in) || len(buf.b) > 4*limit {
					t.Fatalf("record of %d bytes in %d, %d in all", len(rec), len(buf.b), total)
				}
				r.pool.put(buf)
			}
		})
	})
}

func TestPool(t *testing.T) {
	var p pool
	for _, n := range []int{0, 1, 512, 513, 4096, 5000, 1 << 20, 1<<20 + 4096, 1<<20 + 8193} {
		b := p.get(n)
		if len(b.b) < n {
			t.Errorf("asked for %d, got %d", n, len(b.b))
		}
		p.put(b)
	}
	p.put(nil)
}
