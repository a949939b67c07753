package fstest

import (
	"context"
	"io"
	"math"
	"time"

	"github.com/holdfast-backup/holdfast/fs"
)

type page [PageSize]byte

// maxSize keeps the arithmetic on page borders within an int64.
const maxSize = math.MaxInt64 &^ (PageSize - 1)

// memFile is a sparse file. pages is what is visible; undo keeps, for every page that an unstable write touched since
// the last commit, the page as it is on the pretended disk (nil for a hole).
type memFile struct {
	memNode
	size        int64
	durableSize int64
	pages       map[int64]*page
	undo        map[int64]*page
	verifier    [8]byte // of the exclusive creation, if exclusive
	exclusive   bool
}

var (
	_ fs.File       = (*memFile)(nil)
	_ fs.Writer     = (*memFile)(nil)
	_ fs.AttrSetter = (*memFile)(nil)
	_ fs.HoleFinder = (*memFile)(nil)
)

// Attr implements fs.Node.
func (f *memFile) Attr(ctx context.Context) (fs.Attr, error) {
	a, err := f.memNode.Attr(ctx)
	if err != nil {
		return a, err
	}
	f.tree.mu.RLock()
	defer f.tree.mu.RUnlock()
	return f.attrs(), nil
}

// attrs returns the attributes with the true size. The lock must be held.
func (f *memFile) attrs() fs.Attr {
	a := f.attr
	a.Size, a.Used = f.size, int64(len(f.pages))*PageSize
	return a
}

// ReadAt implements fs.File.
func (f *memFile) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.enter(ctx, "read"); err != nil {
		return 0, err
	}
	f.tree.mu.RLock()
	defer f.tree.mu.RUnlock()
	if f.gone {
		return 0, fs.StatusStale
	}
	if off < 0 {
		return 0, fs.StatusInvalid
	}
	if off >= f.size {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > f.size-off {
		p, end = p[:f.size-off], io.EOF
	}
	eachPage(off, len(p), func(no int64, from, to, at int) {
		if pg := f.pages[no]; pg != nil {
			copy(p[at:], pg[from:to])
		} else {
			clear(p[at : at+to-from])
		}
	})
	return len(p), end
}

// eachPage calls visit for each page that a range touches: bytes from..to of the page are byte at.. of the range.
func eachPage(off int64, n int, visit func(no int64, from, to, at int)) {
	for at := 0; at < n; {
		from := int((off + int64(at)) % PageSize)
		to := min(PageSize, from+n-at)
		visit((off+int64(at))/PageSize, from, to, at)
		at += to - from
	}
}

// WriteAt implements fs.Writer.
func (f *memFile) WriteAt(ctx context.Context, p []byte, off int64, stable bool) error {
	if err := f.enter(ctx, "write"); err != nil {
		return err
	}
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	switch {
	case f.gone:
		return fs.StatusStale
	case off < 0:
		return fs.StatusInvalid
	case off > maxSize-int64(len(p)):
		return fs.StatusTooLarge
	case len(p) == 0:
		return nil
	}
	fresh := int64(0)
	eachPage(off, len(p), func(no int64, _, _, _ int) {
		if f.pages[no] == nil {
			fresh += PageSize
		}
	})
	if f.tree.used+fresh > f.tree.o.CapacityBytes {
		return fs.StatusNoSpace
	}
	f.tree.used += fresh
	eachPage(off, len(p), func(no int64, from, to, at int) { f.writePage(no, from, p[at:at+to-from], stable) })
	end := off + int64(len(p))
	f.size = max(f.size, end)
	if stable {
		f.durableSize = max(f.durableSize, end)
	}
	f.attr.Mtime = f.tree.now()
	f.attr.Ctime = f.attr.Mtime
	return nil
}

func (f *memFile) writePage(no int64, from int, p []byte, stable bool) {
	pg := f.pages[no]
	disk, pending := f.undo[no]
	switch {
	case !stable && !pending && pg == nil:
		f.undo[no] = nil
	case !stable && !pending:
		old := *pg
		f.undo[no] = &old
	case stable && pending: // the bytes around stay uncommitted, these do not
		if disk == nil {
			disk = new(page)
			f.undo[no] = disk
		}
		copy(disk[from:], p)
	}
	if pg == nil {
		pg = new(page)
		f.pages[no] = pg
	}
	copy(pg[from:], p)
}

// Commit implements fs.Writer.
func (f *memFile) Commit(ctx context.Context) error {
	if err := f.enter(ctx, "commit"); err != nil {
		return err
	}
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	if f.gone {
		return fs.StatusStale
	}
	clear(f.undo)
	f.durableSize = f.size
	return nil
}

// SetAttr implements fs.AttrSetter.
func (f *memFile) SetAttr(ctx context.Context, set fs.SetAttr, guard *time.Time) (fs.Attr, error) {
	if err := f.enter(ctx, "setattr"); err != nil {
		return fs.Attr{}, err
	}
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	if err := f.admit(guard); err != nil {
		return fs.Attr{}, err
	}
	if err := f.set(set); err != nil {
		return fs.Attr{}, err
	}
	return f.attrs(), nil
}

// set applies all of set or nothing. The lock must be held for writing.
func (f *memFile) set(set fs.SetAttr) error {
	if set.Size != nil {
		if *set.Size < 0 {
			return fs.StatusInvalid
		}
		if *set.Size > maxSize {
			return fs.StatusTooLarge
		}
		f.truncate(*set.Size)
		if set.Mtime == nil {
			f.attr.Mtime = f.tree.now()
		}
	}
	f.apply(set)
	return nil
}

// truncate sets the size, durably, and makes sure that what a later growth brings back is zero.
func (f *memFile) truncate(size int64) {
	for no, pg := range f.pages {
		switch start := no * PageSize; {
		case start >= size:
			delete(f.pages, no)
			f.tree.used -= PageSize
		case start+PageSize > size:
			clear(pg[size-start:])
		}
	}
	for no, pg := range f.undo {
		switch start := no * PageSize; {
		case start >= size:
			delete(f.undo, no)
		case pg != nil && start+PageSize > size:
			clear(pg[size-start:])
		}
	}
	f.size, f.durableSize = size, size
}

// crash goes back to the durable state.
func (f *memFile) crash() {
	for no, disk := range f.undo {
		if disk == nil {
			delete(f.pages, no)
			f.tree.used -= PageSize
		} else {
			f.pages[no] = disk
		}
	}
	clear(f.undo)
	f.size = f.durableSize
}

// forget gives the space back when the last name is gone.
func (f *memFile) forget() {
	f.tree.used -= int64(len(f.pages)) * PageSize
	f.pages, f.undo = nil, nil
}

// NextData implements fs.HoleFinder.
func (f *memFile) NextData(ctx context.Context, off int64) (int64, error) {
	return f.seek(ctx, "nextdata", off, func() int64 {
		if f.pages[off/PageSize] != nil {
			return off
		}
		next := f.size // pages are few: looking at all of them beats keeping them sorted
		for no := range f.pages {
			if start := no * PageSize; start >= off && start < next {
				next = start
			}
		}
		return next
	})
}

// NextHole implements fs.HoleFinder.
func (f *memFile) NextHole(ctx context.Context, off int64) (int64, error) {
	return f.seek(ctx, "nexthole", off, func() int64 {
		no := off / PageSize
		if f.pages[no] == nil {
			return off
		}
		for f.pages[no] != nil {
			no++
		}
		return min(no*PageSize, f.size)
	})
}

// seek checks what both directions have in common; at or past the end both answer the size.
func (f *memFile) seek(ctx context.Context, op string, off int64, find func() int64) (int64, error) {
	if err := f.enter(ctx, op); err != nil {
		return 0, err
	}
	f.tree.mu.RLock()
	defer f.tree.mu.RUnlock()
	switch {
	case f.gone:
		return 0, fs.StatusStale
	case off < 0:
		return 0, fs.StatusInvalid
	case off >= f.size:
		return f.size, nil
	}
	return find(), nil
}
