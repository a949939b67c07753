package rpc

import (
	"bytes"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/fuzztest"
)

func TestCursor(t *testing.T) {
	c := NewCursor([]byte{0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 'a', 'b', 'c', 0, 0, 0, 0, 1, 9})
	if v := c.Uint32(); v != 7 {
		t.Errorf("Uint32: %d", v)
	}
	if v := c.Uint64(); v != 1<<32|2 {
		t.Errorf("Uint64: %x", v)
	}
	if v := c.Opaque(3); string(v) != "abc" {
		t.Errorf("Opaque: %q", v)
	}
	if !c.Bool() || c.Err() != nil {
		t.Errorf("Bool: %v", c.Err())
	}
	if rest := c.Rest(); len(rest) != 1 || rest[0] != 9 {
		t.Errorf("Rest: %x", rest)
	}
}

func TestCursorRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		in   []byte
		read func(*Cursor)
	}{
		"short word":          {[]byte{0, 0, 0}, func(c *Cursor) { c.Uint32() }},
		"short hyper":         {make([]byte, 7), func(c *Cursor) { c.Uint64() }},
		"a boolean of 2":      {[]byte{0, 0, 0, 2}, func(c *Cursor) { c.Bool() }},
		"over the limit":      {[]byte{0, 0, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0}, func(c *Cursor) { c.Opaque(4) }},
		"4 GiB":               {[]byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4}, func(c *Cursor) { c.Opaque(1 << 31) }},
		"no padding":          {[]byte{0, 0, 0, 3, 1, 2, 3}, func(c *Cursor) { c.Opaque(4) }},
		"fixed":               {[]byte{1, 2, 3}, func(c *Cursor) { c.Fixed(3) }},
		"negative":            {[]byte{1, 2, 3, 4}, func(c *Cursor) { c.Fixed(-1) }},
		"after a failed read": {[]byte{0, 0, 0, 9, 0, 0, 0, 1}, func(c *Cursor) { c.Opaque(1); c.Uint32() }},
		"told":                {nil, func(c *Cursor) { c.Fail() }},
	} {
		c := NewCursor(tc.in)
		tc.read(&c)
		if c.Err() != ErrGarbage {
			t.Errorf("%s: %v", name, c.Err())
		}
		if c.Uint32() != 0 || c.Uint64() != 0 || c.Bool() || c.Opaque(8) != nil || c.Rest() != nil {
			t.Errorf("%s: something was read after the failure", name)
		}
	}
}

func TestAppendOpaque(t *testing.T) {
	for n := range 9 {
		p := bytes.Repeat([]byte{0xaa}, n)
		out := AppendOpaque([]byte{1, 2, 3, 4}, p)
		if len(out)%4 != 0 || !bytes.Equal(out, AppendString([]byte{1, 2, 3, 4}, string(p))) {
			t.Fatalf("%d bytes: %x", n, out)
		}
		c := NewCursor(out[4:])
		if got := c.Opaque(n); !bytes.Equal(got, p) || c.Err() != nil || len(c.Rest()) != 0 {
			t.Errorf("%d bytes: %x read back as %x", n, out, got)
		}
	}
}

// FuzzCursor: whatever is read from whatever bytes, nothing panics, nothing outside the input is returned.
func FuzzCursor(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5}, []byte{0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 0, 1})
	f.Add([]byte{3, 3, 3}, []byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, program, in []byte) {
		c := NewCursor(in)
		read := 0
		fuzztest.Bounded(t, len(in), 0, 0, func() {
			for _, op := range program {
				switch op % 6 {
				case 0:
					c.Uint32()
				case 1:
					c.Uint64()
				case 2:
					c.Bool()
				case 3:
					read += len(c.Opaque(int(op)))
				case 4:
					read += len(c.Fixed(int(op)))
				case 5:
					read += len(c.Opaque(1 << 31))
				}
			}
		})
		if read+len(c.Rest()) > len(in) {
			t.Fatalf("%d bytes read and %d left of %d", read, len(c.Rest()), len(in))
		}
	})
}
