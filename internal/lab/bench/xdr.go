package bench

import (
	"encoding/binary"
	"io"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// words builds the arguments of a call (RFC 4506).
type words struct{ b []byte }

func (w *words) u32(values ...uint32) *words {
	for _, v := range values {
		w.b = binary.BigEndian.AppendUint32(w.b, v)
	}
	return w
}

func (w *words) u64(v uint64) *words {
	w.b = binary.BigEndian.AppendUint64(w.b, v)
	return w
}

func (w *words) opaque(p []byte) *words {
	w.u32(uint32(len(p)))
	w.b = append(append(w.b, p...), make([]byte, -len(p)&3)...)
	return w
}

// cursor reads a reply. A reply that is too short sets bad, and reads as zeros from there.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.b, c.bad = nil, true
		return nil
	}
	p := c.b[:n]
	c.b = c.b[n:]
	return p
}

func (c *cursor) u32() uint32 {
	p := c.take(4)
	if p == nil {
		return 0
	}
	return binary.BigEndian.Uint32(p)
}

func (c *cursor) opaque() []byte {
	n := int(c.u32())
	p := c.take(n)
	if len(c.b) > 0 {
		c.take(-n & 3)
	}
	return p
}

// postOpAttr skips attributes that may or may not be there (RFC 1813, 2.6).
func (c *cursor) postOpAttr() {
	if c.u32() != 0 {
		c.take(84)
	}
}

// readRecord reads one record (RFC 5531, section 11) into buf, which bounds it.
func readRecord(r io.Reader, buf []byte) ([]byte, error) {
	n := 0
	for {
		var mark [4]byte
		if _, err := io.ReadFull(r, mark[:]); err != nil {
			return nil, err
		}
		word := binary.BigEndian.Uint32(mark[:])
		size := int(word & (1<<31 - 1))
		if size > len(buf)-n {
			return nil, errs.Text("read a reply", "", errs.Corrupt, "it is longer than anything that was asked for")
		}
		if _, err := io.ReadFull(r, buf[n:n+size]); err != nil {
			return nil, err
		}
		n += size
		if word>>31 != 0 {
			return buf[:n], nil
		}
	}
}
