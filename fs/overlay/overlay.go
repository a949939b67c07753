// Package overlay keeps what is written over a read-only stream: a byte-level copy-on-write image whose unwritten part
// is read from its base.
//
// Terms. The base is any stream that can be read at an offset; it never changes. A block is 4 KiB of the image. It is
// in one of three states: base (read from there, zeros past its end), data (in a segment), zero (nowhere). The map
// holds the states. A segment is a sparse file that holds the data of 1 TiB of the image at the same offsets. The map
// log is the map's history on disk, one batch of changes after the other. A change is durable when a crash no longer
// loses it; a stable write is durable when it returns.
//
// Invariants:
//
//  1. A block is "data" in the log only after its bytes were synced.
//  2. The bytes of a segment count only where the map says "data"; the first write of a block therefore writes all of
//     it, and what a segment held before is never seen again.
//  3. In the last block, bytes past the end of the image are zeros before the image grows over them.
//  4. The base counts only below the base limit, which a shrink lowers and nothing raises.
//  5. After a failed sync nothing is synced and nothing is written any more: the overlay is poisoned. Reads go on.
//  6. A change that no caller was told of may be lost or kept at the grain of a disk's sector, and changes no other
//     bytes than its own.
//  7. While the image is held (Hold) no byte of it changes. Writers wait before they take a lock.
//
// Group commit: writers put their data in place, join the open batch and wait. One worker syncs the segments, appends
// the changes of the map to the log, syncs that, and answers the whole batch; what arrives meanwhile is the next
// batch. When all blocks of a batch were mapped before, one sync is all it costs.
//
// Memory: two bits per block that is not in company: at most 64 MiB for each TiB of the image, where leaves of 64 MiB
// in one state (untouched, all written, all discarded) take 24 bytes each. Rewriting the log takes as much again for a
// moment. The unsynced changes of the map are bounded too: a writer that finds many waits for a batch.
//
// The bytes on disk: docs/format/overlay.md. All methods may be called concurrently; writers of overlapping ranges
// are put in some order. Tested by a model with a seeded operation log, power cuts at every sync, a fault at every
// operation of the disk, kill -9 of a child on the real disk, damage of every part of the log, and a fuzzed decoder.
package overlay

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Base is the read-only stream below an overlay.
type Base interface {
	// ReadAt reads as io.ReaderAt does. It is called from several goroutines at once.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// Size returns the length in bytes; it never changes.
	Size() int64
}

// HoleFinder may be implemented by a Base that knows its holes, with the meaning it has in fs.HoleFinder.
type HoleFinder interface {
	NextData(ctx context.Context, off int64) (int64, error)
	NextHole(ctx context.Context, off int64) (int64, error)
}

// DefaultSegmentBytes is how much of the image one segment file holds. ext4 has no files of 16 TiB, and the image may
// be longer than its disk.
const DefaultSegmentBytes = 1 << 40

// Options says how an overlay is made or opened.
type Options struct {
	// Identity names the base, at most 256 bytes. The overlay remembers it and opens over no other.
	Identity string
	// MaxBytes bounds the bytes of data blocks; 0 is no bound. It is not remembered.
	MaxBytes int64
	// SegmentBytes is the length of a segment, a multiple of 4096; 0 is DefaultSegmentBytes. Only Create looks at it.
	SegmentBytes int64

	compactAfter int64 // tests: rewrite the log after this many sectors
}

// Overlay is an open overlay. Close it.
type Overlay struct {
	d    disk.Disk
	dir  string
	base Base
	opts Options
	seg  int64 // bytes in a segment
	lock disk.File

	// Lock order: life, ops, grow, ranges, making, mu. queue.mu is taken alone or under any of them.
	life   sync.RWMutex // held by Close to see the last reader out
	ops    sync.RWMutex // held shared while a write is put in place, exclusive by Truncate and Close
	grow   sync.Mutex   // held by a write that makes the image longer
	ranges *ranges
	making sync.Mutex // held while a segment is made

	mu          sync.RWMutex // guards all below up to queue
	st          mapState
	segments    map[int64]*segment
	pending     []entry // changes of the map that are not in the log, oldest first
	loggedSize  int64
	reserved    int64  // blocks that writers on their way will map
	zeroed      []span // blocks that gave up their data since the last batch was taken
	tailUnclean bool   // bytes past the end in the last block may not be zeros
	poison      error
	closed      bool
	generation  uint64

	writing atomic.Int64 // calls that may change the image: between admit and leave
	held    atomic.Pointer[hold]

	queue queue
	log   *mapLog // the worker's
	// punches is the worker's: blocks whose space can be given back as soon as nobody writes near them.
	punches []span
	worker  sync.WaitGroup
}

// segment is one open data file.
type segment struct {
	f     disk.File
	dirty bool // written since the last batch was taken; guarded by Overlay.mu
}

func segmentName(i int64) string { return fmt.Sprintf("seg-%08x.data", i) }

func segmentIndex(name string) (int64, bool) {
	var i int64
	n, err := fmt.Sscanf(name, "seg-%08x.data", &i)
	return i, n == 1 && err == nil && name == segmentName(i)
}

// Create makes a new overlay in the folder dir, which is made too if need be, and opens it.
func Create(ctx context.Context, d disk.Disk, dir string, base Base, o Options) (*Overlay, error) {
	const op = "create overlay"
	if o.SegmentBytes == 0 {
		o.SegmentBytes = DefaultSegmentBytes
	}
	size := base.Size()
	switch {
	case o.Identity == "" || len(o.Identity) > maxIdentity:
		return nil, errs.Text(op, dir, errs.Invalid, "the base's identity must have 1 to 256 bytes")
	case !validSegment(o.SegmentBytes):
		return nil, errs.Text(op, dir, errs.Invalid, "a segment is a multiple of 4096 bytes, at most 64 TiB")
	case size < 0 || size > maxSize:
		return nil, errs.Text(op, dir, errs.Unsupported, "the base is longer than 64 TiB")
	case ctx.Err() != nil:
		return nil, errs.Wrap(op, dir, ctx.Err())
	}
	if err := d.MkdirAll(dir); err != nil {
		return nil, errs.Wrap(op, dir, err)
	}
	lock, err := lockDir(d, dir)
	if err != nil {
		return nil, errs.Wrap(op, dir, err)
	}
	if err = prepare(d, dir, size, o); err == nil {
		var ov *Overlay
		if ov, err = open(d, dir, base, o, lock); err == nil {
			return ov, nil
		}
	}
	_ = lock.Close()
	return nil, errs.Wrap(op, dir, err)
}

// prepare writes the first log of an empty overlay.
func prepare(d disk.Disk, dir string, baseSize int64, o Options) error {
	entries, err := d.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == logName {
			return errs.Text("create", path.Join(dir, logName), errs.Exists, "the folder holds an overlay already")
		}
	}
	if err := removeData(d, dir); err != nil { // of an overlay whose removal was cut short
		return err
	}
	h := header{identity: o.Identity, baseSize: baseSize, segmentBytes: o.SegmentBytes}
	l := &mapLog{d: d, dir: dir, header: h}
	st := mapState{size: baseSize, baseLimit: baseSize}
	if f := l.rewrite(st.snapshot()); f != nil {
		if l.f != nil {
			_ = l.f.Close()
		}
		return f.err
	}
	return l.f.Close()
}

// Open opens an existing overlay over the base it was made for.
func Open(ctx context.Context, d disk.Disk, dir string, base Base, o Options) (*Overlay, error) {
	const op = "open overlay"
	if ctx.Err() != nil {
		return nil, errs.Wrap(op, dir, ctx.Err())
	}
	// Look before the lock file is made: a wrong folder must not get one.
	f, err := d.Open(path.Join(dir, logName))
	if err != nil {
		return nil, errs.Wrap(op, dir, err)
	}
	_ = f.Close()
	lock, err := lockDir(d, dir)
	if err != nil {
		return nil, errs.Wrap(op, dir, err)
	}
	ov, err := open(d, dir, base, o, lock)
	if err != nil {
		_ = lock.Close()
		return nil, errs.Wrap(op, dir, err)
	}
	return ov, nil
}

// open is called with the folder locked.
func open(d disk.Disk, dir string, base Base, o Options, lock disk.File) (_ *Overlay, err error) {
	var seed [8]byte
	_, _ = rand.Read(seed[:]) // never fails
	ov := &Overlay{
		d: d, dir: dir, base: base, opts: o, lock: lock, ranges: newRanges(), segments: map[int64]*segment{},
		generation: binary.LittleEndian.Uint64(seed[:]),
	}
	defer func() {
		if err != nil {
			ov.closeFiles()
		}
	}()
	l, c, err := openLog(d, dir)
	if err != nil {
		return nil, err
	}
	ov.log, ov.st, ov.loggedSize, ov.seg = l, *c.state, c.state.size, c.header.segmentBytes
	if c.header.identity != o.Identity || c.header.baseSize != base.Size() {
		return nil, errs.New("open", path.Join(dir, logName), errs.Stale, fmt.Errorf(
			"the overlay was made over %q with %d bytes, not over %q with %d", c.header.identity, c.header.baseSize,
			o.Identity, base.Size())).
			WithNext("Open it over the restore point it was made for, or remove it and start a new session.")
	}
	if err := ov.openSegments(); err != nil {
		return nil, err
	}
	if o.compactAfter > 0 {
		l.compact = l.end + o.compactAfter
	}
	ov.tailUnclean = true
	ov.queue.wake = make(chan struct{}, 1)
	ov.worker.Go(ov.work)
	return ov, nil
}

// openSegments opens what data files there are, checks that they can hold what the map says, and makes durable what an
// earlier process may have left in the kernel's memory only: it counts from here on.
func (o *Overlay) openSegments() error {
	entries, err := o.d.ReadDir(o.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		i, is := segmentIndex(e.Name())
		if !is {
			continue
		}
		f, err := o.d.OpenRW(path.Join(o.dir, e.Name()))
		if err != nil {
			return err
		}
		o.segments[i] = &segment{f: f}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := o.log.f.Sync(); err != nil {
		return err
	}
	if err := o.d.SyncDir(o.dir); err != nil {
		return err
	}
	return o.checkSegments()
}

func (o *Overlay) checkSegments() error {
	per := o.seg / blockSize
	limit := int64(len(o.st.blocks.leaves)) * leafBlocks
	for at := int64(0); at < limit; {
		s, n := o.st.blocks.run(at, limit-at)
		if s != stateData {
			at += n
			continue
		}
		i := at / per
		end := o.st.blocks.lastData(at, min((i+1)*per, limit))
		name := path.Join(o.dir, segmentName(i))
		seg := o.segments[i]
		if seg == nil {
			return errs.Text("open", name, errs.Corrupt, "the map says that there is data, but the file is missing")
		}
		size, err := disk.Size(seg.f)
		if err != nil {
			return err
		}
		if want := end*blockSize - i*o.seg; size < want {
			return errs.New("open", name, errs.Corrupt, fmt.Errorf("%d bytes long, the map needs %d", size, want))
		}
		at = end
	}
	if end := (o.st.size + blockSize - 1) / blockSize; o.st.blocks.lastData(end, limit) > 0 {
		return errs.Text("open", path.Join(o.dir, logName), errs.Corrupt, "the map has data past the end of the image")
	}
	return nil
}

// logError names the log in a failure to parse it.
func logError(name string, err error) error {
	var device deviceError
	switch {
	case errors.As(err, &device):
		return errs.Wrap("read", name, device.error)
	case errors.Is(err, errUnsupported):
		return errs.New("read", name, errs.Unsupported, err).WithNext("Use the version of Holdfast that wrote it.")
	}
	return errs.New("read", name, errs.Corrupt, err).
		WithNext("What was written in this session cannot be told from garbage: end it and start a new one.")
}

// Remove deletes the overlay in dir and the folder. It may be repeated until it succeeds; what is gone already is no
// error. An overlay that is open in any process is Busy.
func Remove(d disk.Disk, dir string) error {
	const op = "remove overlay"
	if _, err := d.ReadDir(dir); errs.Is(err, errs.NotFound) {
		return nil
	}
	lock, err := lockDir(d, dir)
	if err != nil {
		return errs.Wrap(op, dir, err)
	}
	defer lock.Close()
	// The log goes first, and durably: without it the rest is garbage that Create clears away.
	if err := removeFile(d, path.Join(dir, logName)); err != nil {
		return errs.Wrap(op, dir, err)
	}
	if err := d.SyncDir(dir); err != nil {
		return errs.Wrap(op, dir, err)
	}
	if err := removeData(d, dir); err != nil {
		return errs.Wrap(op, dir, err)
	}
	if err := removeFile(d, path.Join(dir, lockName)); err != nil {
		return errs.Wrap(op, dir, err)
	}
	if err := d.Remove(dir); err != nil {
		return errs.Wrap(op, dir, err)
	}
	return errs.Wrap(op, dir, d.SyncDir(path.Dir(dir)))
}

// removeData deletes segments and unfinished logs.
func removeData(d disk.Disk, dir string) error {
	entries, err := d.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, is := segmentIndex(e.Name()); is || strings.HasSuffix(e.Name(), disk.TempSuffix) {
			if err := removeFile(d, path.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func removeFile(d disk.Disk, name string) error {
	if err := d.Remove(name); err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	return nil
}

// Size returns the length of the image in bytes.
func (o *Overlay) Size() int64 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.st.size
}

// Used returns the bytes that data blocks take.
func (o *Overlay) Used() int64 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.st.blocks.data * blockSize
}

// Generation returns a number that is another one whenever unstable writes may have been lost: after each opening and
// after a failed sync. A protocol makes its write verifier from it.
func (o *Overlay) Generation() uint64 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.generation
}

// Close commits, waits for all readers and writers, and gives the folder free. It returns the error of the commit; the
// overlay is closed in any case.
func (o *Overlay) Close() error {
	o.ops.Lock()
	defer o.ops.Unlock()
	o.mu.Lock()
	closed := o.closed
	o.closed = true
	o.mu.Unlock()
	if closed {
		return nil
	}
	err := o.join(context.Background(), &waiter{whole: true})
	o.queue.stop()
	o.worker.Wait()
	o.life.Lock()
	defer o.life.Unlock()
	o.closeFiles()
	_ = o.lock.Close()
	return errs.Wrap("close overlay", o.dir, err)
}

// closeFiles closes what is open; everything that matters was synced.
func (o *Overlay) closeFiles() {
	for _, s := range o.segments {
		_ = s.f.Close()
	}
	if o.log != nil {
		_ = o.log.f.Close()
	}
}
