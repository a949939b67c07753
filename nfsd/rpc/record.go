package rpc

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"sync"
)

// Record marking (RFC 5531, section 11): 31 bits of length, the top bit says that the fragment is the record's last.
const (
	lastFragment = 1 << 31
	// maxFragments stops a client that sends empty fragments for ever.
	maxFragments = 4096
)

var (
	errOversize  = errors.New("the record is larger than allowed")
	errFragments = errors.New("the record has too many fragments")
	errPutOff    = errors.New("the record found no room in time")
)

// classes are the sizes of pooled buffers: small calls, 4 KiB replies, 4 KiB writes, listings, 1 MiB replies, 1 MiB
// writes.
var classes = [...]int{512, 4096 + 64, 8192, 1 << 16, 1 << 18, 1<<20 + 64, 1<<20 + 8192}

// buffer is a byte slice that knows where it came from.
type buffer struct {
	b     []byte
	class int // index in classes, or -1
}

// pool keeps buffers for reuse. What is out is bounded by the budgets, what is in by the garbage collector.
type pool struct{ class [len(classes)]sync.Pool }

// get returns a buffer of at least n bytes with any content.
func (p *pool) get(n int) *buffer {
	for i, size := range classes {
		if n > size {
			continue
		}
		if b, ok := p.class[i].Get().(*buffer); ok {
			return b
		}
		return &buffer{b: make([]byte, size), class: i}
	}
	return &buffer{b: make([]byte, n), class: -1}
}

// put gives a buffer back; nil is allowed.
func (p *pool) put(b *buffer) {
	if b != nil && b.class >= 0 {
		p.class[b.class].Put(b)
	}
}

// recordReader takes records off a stream.
type recordReader struct {
	r    *bufio.Reader
	pool *pool
	// limit returns the largest record that is accepted now, asked with the bytes wanted.
	limit func(n int) int
	// take waits until n more bytes of records fit into the budget. It may answer errPutOff for a whole record.
	take func(n int, whole bool) error
	// wait is called before the reader waits for bytes: within a record or (idle) between two.
	wait func(idle bool)
}

// next returns a record and the buffer that holds it. io.EOF means that the stream ended between two records. With
// errPutOff there is a record all the same, of which only the beginning was kept.
func (r *recordReader) next() (rec []byte, buf *buffer, err error) {
	total := 0
	for range maxFragments {
		if r.r.Buffered() < 4 {
			r.wait(buf == nil)
		}
		marker, err := r.r.Peek(4)
		if err != nil {
			if err == io.EOF && (len(marker) > 0 || buf != nil) {
				err = io.ErrUnexpectedEOF
			}
			return nil, buf, err
		}
		word := binary.BigEndian.Uint32(marker)
		_, _ = r.r.Discard(4) // cannot fail after Peek(4)
		n := int(word &^ lastFragment)
		if total+n > r.limit(total+n) {
			return nil, buf, errOversize
		}
		whole := buf == nil && word&lastFragment != 0
		switch err := r.take(n, whole); {
		case err == errPutOff && whole:
			return r.skim(n)
		case err != nil:
			return nil, buf, err
		}
		buf = r.enlarge(buf, total, total+n)
		if r.r.Buffered() < n {
			r.wait(false)
		}
		if _, err := io.ReadFull(r.r, buf.b[total:total+n]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, buf, err
		}
		total += n
		if word&lastFragment != 0 {
			return buf.b[:total], buf, nil
		}
	}
	return nil, buf, errFragments
}

// skimmed is how much is kept of a record that is put off: its header, and some arguments.
const skimmed = 512

// skim reads a record of n bytes without holding it.
func (r *recordReader) skim(n int) (rec []byte, buf *buffer, err error) {
	buf = r.pool.get(skimmed)
	rec = buf.b[:min(n, skimmed)]
	r.wait(false)
	if _, err = io.ReadFull(r.r, rec); err == nil {
		_, err = r.r.Discard(n - len(rec))
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, buf, err
	}
	return rec, buf, errPutOff
}

// enlarge returns a buffer of at least n bytes that starts with buf's first used ones.
func (r *recordReader) enlarge(buf *buffer, used, n int) *buffer {
	if buf != nil && len(buf.b) >= n {
		return buf
	}
	larger := r.pool.get(n)
	if buf != nil {
		copy(larger.b, buf.b[:used])
		r.pool.put(buf)
	}
	return larger
}
