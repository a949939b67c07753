package overlay

import (
	"context"
	"io"
	"path"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// ReadAt reads as io.ReaderAt does: fewer bytes than asked for only with an error, io.EOF at the end of the image.
func (o *Overlay) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	const op = "read"
	o.life.RLock()
	defer o.life.RUnlock()
	if off < 0 {
		return 0, errs.Text(op, o.dir, errs.Invalid, "negative offset")
	}
	o.mu.RLock()
	size, closed := o.st.size, o.closed
	o.mu.RUnlock()
	if closed {
		return 0, errs.New(op, o.dir, errs.Stale, errClosed)
	}
	want := len(p)
	p = p[:max(0, min(int64(want), size-off))]
	for done := 0; done < len(p); {
		n, err := o.readRun(ctx, p[done:], off+int64(done))
		if err != nil {
			return done, errs.Wrap(op, o.dir, err)
		}
		done += n
	}
	if len(p) < want {
		return len(p), io.EOF
	}
	return len(p), nil
}

// readRun reads the part of p that lies in blocks of one state.
func (o *Overlay) readRun(ctx context.Context, p []byte, off int64) (int, error) {
	first, count := blocks(off, off+int64(len(p)))
	o.mu.RLock()
	s, n := o.st.blocks.run(first, count)
	o.mu.RUnlock()
	p = p[:min(int64(len(p)), (first+n)*blockSize-off)]
	switch s {
	case stateData:
		return len(p), o.readSegments(p, off)
	case stateZero:
		clear(p)
		return len(p), nil
	}
	return len(p), o.readBase(ctx, p, off)
}

func (o *Overlay) readSegments(p []byte, off int64) error {
	for len(p) > 0 {
		i := off / o.seg
		n := min(int64(len(p)), (i+1)*o.seg-off)
		got, err := o.existing(i).f.ReadAt(p[:n], off-i*o.seg)
		if int64(got) < n {
			if err == nil || err == io.EOF {
				err = errs.Text("read", path.Join(o.dir, segmentName(i)), errs.Corrupt, "shorter than the map says")
			}
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readBase reads from the base, as far as it is visible, and zeros beyond.
func (o *Overlay) readBase(ctx context.Context, p []byte, off int64) error {
	o.mu.RLock()
	visible := max(0, min(int64(len(p)), o.st.baseLimit-off))
	o.mu.RUnlock()
	clear(p[visible:])
	if visible == 0 {
		return nil
	}
	n, err := o.base.ReadAt(ctx, p[:visible], off)
	if int64(n) == visible {
		return nil
	}
	if err == nil || err == io.EOF {
		return errs.Text("read base", o.opts.Identity, errs.Corrupt, "it ends before its size")
	}
	return errs.Wrap("read base", o.opts.Identity, err)
}

// NextData returns the offset of the first byte at or after off that may be data, or the size when there is none.
func (o *Overlay) NextData(ctx context.Context, off int64) (int64, error) {
	return o.next(ctx, off, true)
}

// NextHole returns the offset of the first byte at or after off that lies in a hole; the end of the image is one.
func (o *Overlay) NextHole(ctx context.Context, off int64) (int64, error) {
	return o.next(ctx, off, false)
}

// next walks the runs of the map until one begins, or contains, what is looked for.
func (o *Overlay) next(ctx context.Context, off int64, data bool) (int64, error) {
	const op = "find data"
	if off < 0 {
		return 0, errs.Text(op, o.dir, errs.Invalid, "negative offset")
	}
	o.life.RLock()
	defer o.life.RUnlock()
	for {
		o.mu.RLock()
		size, limit, closed := o.st.size, o.st.baseLimit, o.closed
		if closed || off >= size {
			o.mu.RUnlock()
			if closed {
				return 0, errs.New(op, o.dir, errs.Stale, errClosed)
			}
			return size, nil
		}
		first, count := blocks(off, size)
		s, n := o.st.blocks.run(first, count)
		o.mu.RUnlock()
		end := min((first+n)*blockSize, size)
		at, err := end, error(nil)
		switch {
		case s == stateBase:
			at, err = o.nextInBase(ctx, off, min(end, limit), end, data)
		case (s == stateData) == data:
			at = off
		}
		if err != nil {
			return 0, errs.Wrap(op, o.dir, err)
		}
		if at < end {
			return at, nil
		}
		off = end
	}
}

// nextInBase looks in [off, end), where the base counts up to limit. It returns end when it found nothing.
func (o *Overlay) nextInBase(ctx context.Context, off, limit, end int64, data bool) (int64, error) {
	if off >= limit {
		if data {
			return end, nil
		}
		return off, nil
	}
	finder, can := o.base.(HoleFinder)
	at, err := off, error(nil)
	switch {
	case !can && !data:
		at = limit
	case can && data:
		at, err = finder.NextData(ctx, off)
	case can:
		at, err = finder.NextHole(ctx, off)
	}
	if err != nil {
		return 0, errs.Wrap("find data in base", o.opts.Identity, err)
	}
	switch {
	case at < limit:
		return max(at, off), nil
	case data:
		return end, nil
	}
	return limit, nil
}
