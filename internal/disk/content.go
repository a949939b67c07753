package disk

import "maps"

const pageSize = 4096

// content is the sparse content of a file on a Crash disk. Pages are never changed once they are in the map, only
// replaced, so that copies of the map may share them; that is what makes cloning a disk cheap.
type content struct {
	size  int64
	pages map[int64]*[pageSize]byte // by offset / pageSize; absent pages are zeros
}

func (c *content) clone() content { return content{size: c.size, pages: maps.Clone(c.pages)} }

// occupied is what crashInfo tells as Sys.
type occupied int64

func (c *content) occupied() int64 { return int64(len(c.pages)) * pageSize }

// read copies from off on and returns how many bytes lie before the end of the file.
func (c *content) read(p []byte, off int64) int {
	if off >= c.size {
		return 0
	}
	p = p[:min(int64(len(p)), c.size-off)]
	for done := 0; done < len(p); {
		i, in := (off+int64(done))/pageSize, int((off+int64(done))%pageSize)
		part := p[done:min(len(p), done+pageSize-in)]
		if pg := c.pages[i]; pg != nil {
			copy(part, pg[in:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	return len(p)
}

func (c *content) write(p []byte, off int64) {
	c.size = max(c.size, off+int64(len(p)))
	for len(p) > 0 {
		i, in := off/pageSize, int(off%pageSize)
		n := min(len(p), pageSize-in)
		pg := new([pageSize]byte)
		if old := c.pages[i]; old != nil && n < pageSize {
			*pg = *old
		}
		copy(pg[in:], p[:n])
		c.pages[i] = pg
		p, off = p[n:], off+int64(n)
	}
}

// zero makes [off, off+n) read as zeros without changing the size.
func (c *content) zero(off, n int64) {
	if n <= 0 {
		return
	}
	end := off + n
	if first, last := off/pageSize, (end-1)/pageSize; last-first < int64(len(c.pages)) {
		for i := first; i <= last; i++ {
			c.zeroIn(i, off, end)
		}
		return
	}
	for i := range c.pages {
		c.zeroIn(i, off, end)
	}
}

// zeroIn zeroes what page i has in common with [off, end).
func (c *content) zeroIn(i, off, end int64) {
	old := c.pages[i]
	from, to := max(off-i*pageSize, 0), min(end-i*pageSize, pageSize)
	switch {
	case old == nil || from >= to:
	case to-from == pageSize:
		delete(c.pages, i)
	default:
		pg := *old
		clear(pg[from:to])
		c.pages[i] = &pg
	}
}

func (c *content) truncate(size int64) {
	if size < c.size {
		c.zero(size, c.size-size)
	}
	c.size = size
}
