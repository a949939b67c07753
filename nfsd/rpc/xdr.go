package rpc

import "encoding/binary"

// Cursor decodes XDR (RFC 4506) from bytes that nobody vouches for. It allocates nothing and never reads past the
// end: once something is missing or too long, everything after it reads as zero and Err says so. So a decoder reads
// all its fields and asks once.
type Cursor struct {
	b   []byte
	bad bool
}

// NewCursor returns a cursor at the start of b.
func NewCursor(b []byte) Cursor { return Cursor{b: b} }

// Err returns ErrGarbage if any read so far failed.
func (c *Cursor) Err() error {
	if c.bad {
		return ErrGarbage
	}
	return nil
}

// Fail marks what was read as garbage, for a decoder that finds a value outside its enumeration.
func (c *Cursor) Fail() { c.bad = true }

// Rest returns the bytes not yet read.
func (c *Cursor) Rest() []byte {
	if c.bad {
		return nil
	}
	return c.b
}

// Fixed reads n bytes of opaque data of fixed length and its padding. The result is part of the input.
func (c *Cursor) Fixed(n int) []byte {
	end := (n + 3) &^ 3
	if c.bad || n < 0 || end > len(c.b) {
		c.bad = true
		return nil
	}
	p := c.b[:n:n]
	c.b = c.b[end:]
	return p
}

// Uint32 reads an unsigned integer or an enumeration.
func (c *Cursor) Uint32() uint32 {
	if c.bad || len(c.b) < 4 {
		c.bad = true
		return 0
	}
	v := binary.BigEndian.Uint32(c.b)
	c.b = c.b[4:]
	return v
}

// Uint64 reads an unsigned hyper.
func (c *Cursor) Uint64() uint64 {
	if c.bad || len(c.b) < 8 {
		c.bad = true
		return 0
	}
	v := binary.BigEndian.Uint64(c.b)
	c.b = c.b[8:]
	return v
}

// Bool reads a boolean; anything but 0 and 1 is garbage.
func (c *Cursor) Bool() bool {
	v := c.Uint32()
	if v > 1 {
		c.bad = true
	}
	return v == 1 && !c.bad
}

// Opaque reads opaque data or a string of variable length, of at most limit bytes. The result is part of the input.
func (c *Cursor) Opaque(limit int) []byte {
	n := c.Uint32()
	if uint64(n) > uint64(limit) {
		c.bad = true
		return nil
	}
	return c.Fixed(int(n))
}

// AppendOpaque appends variable length opaque data: length, bytes, padding.
func AppendOpaque(out, p []byte) []byte {
	out = binary.BigEndian.AppendUint32(out, uint32(len(p)))
	out = append(out, p...)
	return pad(out, len(p))
}

// AppendString appends a string.
func AppendString(out []byte, s string) []byte {
	out = binary.BigEndian.AppendUint32(out, uint32(len(s)))
	out = append(out, s...)
	return pad(out, len(s))
}

func pad(out []byte, n int) []byte {
	for ; n&3 != 0; n++ {
		out = append(out, 0)
	}
	return out
}
