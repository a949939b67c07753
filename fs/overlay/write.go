package overlay

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

var errClosed = errors.New("the overlay is closed")

// usable tells whether anything may be written.
func (o *Overlay) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.closed {
		return errs.New("use", o.dir, errs.Stale, errClosed)
	}
	return o.poison
}

// WriteAt writes all of p at off, or fails. With stable the data, and the size if it grew, is durable on return;
// without, after the next Commit that returns nil. After an error any part of p may have been written. A full disk or
// the bound of Options is errs.NoSpace: blocks that hold data already can still be written.
func (o *Overlay) WriteAt(ctx context.Context, p []byte, off int64, stable bool) error {
	const op = "write"
	if off < 0 {
		return errs.Text(op, o.dir, errs.Invalid, "negative offset")
	}
	if int64(len(p)) > maxSize-off {
		return errs.New(op, o.dir, errs.NoSpace, fs.StatusTooLarge)
	}
	full, err := o.place(ctx, p, off)
	if err == nil && len(p) > 0 && (stable || full) {
		err = o.join(ctx, &waiter{off: off, end: off + int64(len(p))})
	}
	return errs.Wrap(op, o.dir, err)
}

// place puts a write where reads find it. full asks the writer to wait for a batch although its write is not stable.
func (o *Overlay) place(ctx context.Context, p []byte, off int64) (full bool, err error) {
	if err := o.admit(ctx); err != nil {
		return false, err
	}
	defer o.leave()
	o.ops.RLock()
	defer o.ops.RUnlock()
	if err := o.usable(ctx); err != nil || len(p) == 0 {
		return false, err
	}
	end := off + int64(len(p))
	if end > o.Size() {
		o.grow.Lock()
		defer o.grow.Unlock()
		if err := o.cleanTail(end); err != nil {
			return false, err
		}
	}
	first, count := blocks(off, end)
	s := span{first, first + count}
	o.ranges.lock(s)
	defer o.ranges.unlock(s)
	return o.put(ctx, p, off)
}

// put is called with the range of p locked, and with grow held if p ends past the end of the image.
func (o *Overlay) put(ctx context.Context, p []byte, off int64) (full bool, err error) {
	end := off + int64(len(p))
	first, count := blocks(off, end)
	o.mu.Lock()
	fresh := o.st.blocks.notData(first, count)
	if o.opts.MaxBytes > 0 && fresh > 0 && (o.st.blocks.data+o.reserved+fresh)*blockSize > o.opts.MaxBytes {
		o.mu.Unlock()
		return false, errs.New("map blocks", o.dir, errs.NoSpace, fmt.Errorf(
			"the overlay may hold %d bytes of data", o.opts.MaxBytes)).
			WithNext("Migrate the disk to production storage, or raise the session's bound.")
	}
	o.reserved += fresh
	o.mu.Unlock()

	err = o.complete(ctx, p, off, fresh > 0)

	o.mu.Lock()
	defer o.mu.Unlock()
	o.reserved -= fresh
	// Also after an error: what was written of mapped blocks is read from now on, so the next Commit must keep it.
	for i := off / o.seg; i <= (end-1)/o.seg; i++ {
		if s := o.segments[i]; s != nil {
			s.dirty = true
		}
	}
	if err != nil {
		// Part of a longer last block may have been written past the end.
		o.tailUnclean = o.tailUnclean || end > o.st.size
		return false, err
	}
	if fresh > 0 {
		o.st.blocks.set(first, count, stateData)
		o.change(entry{kind: entryData, a: first, b: count})
	}
	o.st.size = max(o.st.size, end)
	return len(o.pending) > maxPending, nil
}

// buffers holds room for completed writes; most are one block, the longest that a guest sends is 1 MiB.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// complete writes p, and around it the rest of those first and last blocks that are not in a segment yet.
func (o *Overlay) complete(ctx context.Context, p []byte, off int64, fresh bool) error {
	end := off + int64(len(p))
	from, to := off, end
	if fresh {
		if from%blockSize != 0 && o.stateAt(off/blockSize) != stateData {
			from -= from % blockSize
		}
		if to%blockSize != 0 && o.stateAt(end/blockSize) != stateData {
			to += blockSize - to%blockSize
		}
	}
	if from == off && to == end {
		return o.writeSegments(p, off)
	}
	pooled := buffers.Get().(*[]byte)
	defer buffers.Put(pooled)
	if int64(cap(*pooled)) < to-from {
		*pooled = make([]byte, to-from)
	}
	buf := (*pooled)[:to-from]
	if err := o.readOld(ctx, buf[:off-from], from); err != nil {
		return err
	}
	if err := o.readOld(ctx, buf[end-from:], end); err != nil {
		return err
	}
	copy(buf[off-from:], p)
	return o.writeSegments(buf, from)
}

func (o *Overlay) stateAt(block int64) state {
	o.mu.RLock()
	defer o.mu.RUnlock()
	s, _ := o.st.blocks.run(block, 1)
	return s
}

// readOld reads what a block that is in no segment holds in the part of it that is not being written.
func (o *Overlay) readOld(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	if o.stateAt(off/blockSize) == stateZero {
		clear(p)
		return nil
	}
	return o.readBase(ctx, p, off)
}

func (o *Overlay) writeSegments(p []byte, off int64) error {
	for len(p) > 0 {
		i := off / o.seg
		s, err := o.segmentFor(i)
		if err != nil {
			return err
		}
		n := min(int64(len(p)), (i+1)*o.seg-off)
		if _, err := s.f.WriteAt(p[:n], off-i*o.seg); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// cleanTail makes the bytes between the end of the image and the end of its last block zeros, before the image grows
// to newEnd. A write past the end that failed or was lost in a crash, and a shrink, leave something there. The caller
// holds grow or, exclusively, ops.
func (o *Overlay) cleanTail(newEnd int64) error {
	o.mu.RLock()
	size, unclean := o.st.size, o.tailUnclean
	o.mu.RUnlock()
	if !unclean || newEnd <= size {
		return nil
	}
	if block := size / blockSize; size%blockSize != 0 {
		s := span{block, block + 1}
		o.ranges.lock(s)
		defer o.ranges.unlock(s)
		if o.stateAt(block) == stateData {
			if err := o.writeSegments(make([]byte, blockSize-size%blockSize), size); err != nil {
				return err
			}
			o.mu.Lock()
			o.segments[size/o.seg].dirty = true
			o.mu.Unlock()
		}
	}
	o.mu.Lock()
	o.tailUnclean = false
	o.mu.Unlock()
	return nil
}

// WriteZeroes makes [off, off+n) read as zeros, as far as it lies within the image, and gives back the space of whole
// blocks after the next batch. It is also what a discard does. It is durable after the next Commit.
func (o *Overlay) WriteZeroes(ctx context.Context, off, n int64) error {
	const op = "write zeroes"
	if off < 0 || n < 0 {
		return errs.Text(op, o.dir, errs.Invalid, "negative offset or length")
	}
	return errs.Wrap(op, o.dir, o.placeZeroes(ctx, off, n))
}

func (o *Overlay) placeZeroes(ctx context.Context, off, n int64) error {
	if err := o.admit(ctx); err != nil {
		return err
	}
	defer o.leave()
	o.ops.RLock()
	defer o.ops.RUnlock()
	if err := o.usable(ctx); err != nil || off >= maxSize || n == 0 {
		return err
	}
	end := min(off+min(n, maxSize), maxSize)
	first, count := blocks(off, end)
	s := span{first, first + count}
	o.ranges.lock(s)
	defer o.ranges.unlock(s)
	// Under the lock: until then a write may have moved the end of the image into this range.
	size := o.Size()
	if end >= size {
		end = (size + blockSize - 1) / blockSize * blockSize // what follows in the last block is zeros anyway
	}
	if off >= end {
		return nil
	}
	from, to := (off+blockSize-1)/blockSize, end/blockSize
	if from > to { // within one block
		return o.zeroPart(ctx, off, end)
	}
	if err := o.zeroPart(ctx, off, from*blockSize); err != nil {
		return err
	}
	if err := o.zeroPart(ctx, to*blockSize, end); err != nil {
		return err
	}
	o.zeroBlocks(from, to)
	return nil
}

// zeroPart zeroes a part of one block, which is a write unless it reads as zeros already.
func (o *Overlay) zeroPart(ctx context.Context, off, end int64) error {
	if off >= end || o.stateAt(off/blockSize) == stateZero {
		return nil
	}
	end = min(end, max(o.Size(), off))
	if off == end {
		return nil
	}
	_, err := o.put(ctx, make([]byte, end-off), off)
	return err
}

// zeroBlocks sets whole blocks to stateZero. The caller holds their range.
func (o *Overlay) zeroBlocks(first, end int64) {
	if first >= end {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.change(entry{kind: entryZero, a: first, b: end - first})
	o.release(first, end, stateZero)
}

// release puts blocks into a state without data and remembers where that frees space. The caller holds mu.
func (o *Overlay) release(first, end int64, s state) {
	for first < end {
		to := min(end, (first/leafBlocks+1)*leafBlocks)
		if o.st.blocks.set(first, to-first, s) > 0 {
			o.zeroed = append(o.zeroed, span{first, to})
		}
		first = to
	}
}

// Truncate sets the length of the image, durably. What a shrink cuts off reads as zeros when the image grows again.
func (o *Overlay) Truncate(ctx context.Context, size int64) error {
	const op = "truncate"
	if size < 0 {
		return errs.Text(op, o.dir, errs.Invalid, "negative size")
	}
	if size > maxSize {
		return errs.New(op, o.dir, errs.NoSpace, fs.StatusTooLarge)
	}
	return errs.Wrap(op, o.dir, o.resize(ctx, size))
}

func (o *Overlay) resize(ctx context.Context, size int64) error {
	if err := o.admit(ctx); err != nil {
		return err
	}
	defer o.leave()
	o.ops.Lock()
	defer o.ops.Unlock()
	if err := o.usable(ctx); err != nil {
		return err
	}
	if err := o.cleanTail(size); err != nil {
		return err
	}
	o.mu.Lock()
	if size < o.st.size {
		o.change(entry{kind: entryTruncate, a: size})
		o.release((size+blockSize-1)/blockSize, int64(len(o.st.blocks.leaves))*leafBlocks, stateBase)
		o.st.truncate(size)
		o.tailUnclean = true
	}
	o.st.size = size
	o.mu.Unlock()
	// Not ctx: no write may follow before the batch is through. A growth would clean the last block, and if the shrink
	// were then lost in a crash, so were the bytes cleaned away.
	return o.join(context.WithoutCancel(ctx), &waiter{whole: true})
}
