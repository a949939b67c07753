package pack

import (
	"bytes"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// TestChecksFindEveryByte: Scrub and Padding together find a change of any byte of a pack; Headers finds any change but
// of what is in frames, and names the chunk.
func TestChecksFindEveryByte(t *testing.T) {
	chunks := [][]byte{content(1, 40, 8), content(2, 70, 2), content(3, 7, 8)}
	obj, places := build(t, Zstd, testOpts, chunks...)
	check := func(b []byte) (scrub, padding, headers error, named int) {
		r, err := Open(&fileLike{b}, testRead)
		if err != nil {
			return err, err, err, -1
		}
		named = -1
		scrub = r.Scrub(func(_ DirEntry, _ []byte, err error) error { return err })
		headers = r.Headers(func(e DirEntry, err error) error {
			for i, p := range places {
				if err != nil && p == e.Place {
					named = i
				}
			}
			return err
		})
		return scrub, r.Padding(), headers, named
	}
	if s, p, h, _ := check(obj.b); s != nil || p != nil || h != nil {
		t.Fatalf("a good pack: %v, %v, %v", s, p, h)
	}
	for _, reg := range regions(t, obj.b, places) {
		for at := reg.from; at < reg.to; at++ {
			b := bytes.Clone(obj.b)
			b[at] ^= 1 << (at % 8)
			scrub, padding, headers, named := check(b)
			if !errs.Is(scrub, errs.Corrupt) && !errs.Is(padding, errs.Corrupt) {
				t.Fatalf("byte %d in %s: Scrub %v, Padding %v", at, reg.name, scrub, padding)
			}
			quiet := reg.name == "frame" || reg.name == "tag" || reg.name == "padding"
			if errs.Is(headers, errs.Corrupt) == quiet || reg.name == "group header" && named != reg.chunk {
				t.Fatalf("byte %d in %s of chunk %d: Headers %v, names %d", at, reg.name, reg.chunk, headers, named)
			}
		}
	}
	for n := range obj.b {
		if n%3 != 0 && n > 200 {
			continue
		}
		if scrub, padding, headers, _ := check(obj.b[:n]); !errs.Is(scrub, errs.Corrupt) || !errs.Is(headers, errs.Corrupt) || !errs.Is(padding, errs.Corrupt) {
			t.Fatalf("cut to %d bytes: %v, %v, %v", n, scrub, headers, padding)
		}
	}
}

// TestGroup reads headers alone.
func TestGroup(t *testing.T) {
	data := content(1, 130, 2)
	obj, places := build(t, Zstd, testOpts, data)
	r := mustOpen(t, obj, testRead)
	id := nameOf(data).ID()
	if n, err := r.Group(places[0], id); err != nil || int(n) != len(data) {
		t.Errorf("%d bytes, %v", n, err)
	}
	if _, err := r.Group(places[0], nameOf([]byte("x")).ID()); !errs.Is(err, errs.Stale) {
		t.Error("another chunk:", err)
	}
	longer := places[0]
	longer.Stored++
	if _, err := r.Group(longer, id); !errs.Is(err, errs.Corrupt) {
		t.Error("another length:", err)
	}
}
