package chunkstore

import (
	"context"
	"fmt"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// ExtentKind says what a Source knows about a range without reading it.
type ExtentKind uint8

// The kinds of extents.
const (
	ExtentData      ExtentKind = iota // must be read
	ExtentZero                        // reads as zeros
	ExtentUnchanged                   // equals the parent point's content
)

// Extent is a range of a disk in bytes.
type Extent struct {
	Off, Len int64
	Kind     ExtentKind
}

// Source is a disk to be stored.
type Source interface {
	// Size returns the exact size in bytes.
	Size() int64
	// Extents calls visit with extents that cover [0, Size) in order. Where borders lie off the 4 KiB grid the block
	// is read, so ReadAt must be able to read it.
	Extents(ctx context.Context, visit func(Extent) error) error
	// ReadAt is as io.ReaderAt and is called concurrently. Only blocks that are not wholly zero or unchanged are read.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
}

// Progress is told after each stretch of disk that was dealt with.
type Progress struct {
	DoneBytes int64 // of the disk, from its start
	Stats     Stats
}

// Parent is the disk of an earlier point that a new one is compared with and shares with.
type Parent struct {
	Point *Point
	Disk  Disk
}

// Ingest stores a disk as number of the session's point. parent may be nil; then no extent may be unchanged. Reading,
// hashing, compressing and writing run side by side; memory is bounded by two leaves of 8 MiB for each of at most
// maxWorkers processors. After an error the session can only be aborted: a point without one of its disks would look
// like a whole one.
func (x *Session) Ingest(ctx context.Context, number int, src Source, parent *Parent, progress func(Progress)) error {
	const op = "store disk"
	if err := x.usable(op); err != nil {
		return errs.Wrap(op, fmt.Sprint(number), err)
	}
	err := x.ingest(ctx, number, src, parent, progress)
	if errs.Is(err, errs.Corrupt) && parent != nil && x.mayMend(ctx, src, parent) {
		err = x.ingest(ctx, number, src, parent, progress)
	}
	x.broken = errs.Wrap(op, fmt.Sprint(number), err)
	return x.broken
}

func (x *Session) ingest(ctx context.Context, number int, src Source, parent *Parent, progress func(Progress)) error {
	for _, d := range x.point.Disks {
		if d.Number >= number {
			return errs.Text("add disk", fmt.Sprint(number), errs.Bug, "disks come in ascending order")
		}
	}
	in := &ingest{x: x, src: src, size: src.Size(), progress: progress}
	var base *manifest.Tree
	if parent != nil {
		// What does not change is taken from the parent without a look: it must stay until the new point says it needs it.
		release, err := x.s.Lease(ctx, parent.Point.ID)
		if err != nil {
			return err
		}
		x.leases = append(x.leases, release)
		in.old = x.s.tree(parent.Disk)
		in.oldImage = x.s.image(parent.Disk)
		in.rebuild = parent.Disk.Root.Size > in.size // a shrunk disk
		if err := in.seekLost(ctx, parent.Disk); err != nil {
			return err
		}
		if !in.rebuild { // or else every leaf is put anew
			base = in.old
		}
	}
	var err error
	if in.build, err = manifest.NewBuilder(in.size, base, pages{x}); err != nil {
		return err
	}
	if err := in.run(ctx); err != nil {
		return err
	}
	root, err := in.build.Finish(ctx)
	if err != nil {
		return err
	}
	x.point.Disks = append(x.point.Disks, Disk{
		Number: number, Root: root, Cutter: x.s.super.Cutter, Digest: x.s.super.Digest,
	})
	return nil
}

// ingest is one run of the pipeline: plan → work (several goroutines) → write (one goroutine, in order).
type ingest struct {
	x        *Session
	src      Source
	size     int64
	old      *manifest.Tree // the parent's tree, nil without a parent
	oldImage *Image
	rebuild  bool        // leaves that do not change must be put as well
	lost     []lostRange // of the parent, in order: to be read from the source
	build    *manifest.Builder
	progress func(Progress)
}

// blockKinds says for each block of a leaf what is to be done with it.
type blockKinds [manifest.LeafBlocks]ExtentKind

// job is one leaf on its way through the pipeline.
type job struct {
	n      int64
	kinds  *blockKinds // nil: the whole leaf is zeros
	result chan []piece
}

// piece is a stretch of a finished leaf: zeros, a known chunk, or a new one to be appended.
type piece struct {
	end    int // in blocks of the leaf
	digest chunk.Digest
	id     chunk.ID // zero: zeros
	place  chunk.Place
	fresh  bool // compressed is to be appended
	known  bool // was read, and found in the store
	size   int  // uncompressed bytes
	data   pack.Compressed
}

// maxWorkers bounds memory on large machines: the one goroutine that encrypts and writes keeps no more than these busy.
const maxWorkers = 8

func (in *ingest) run(ctx context.Context) error {
	workers := min(max(2, runtime.GOMAXPROCS(0)), maxWorkers)
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan *job)
	order := make(chan *job, workers+1)
	g.Go(func() error {
		defer close(work)
		defer close(order)
		return in.plan(ctx, func(j *job) error {
			j.result = make(chan []piece, 1)
			for _, c := range [...]chan<- *job{order, work} {
				select {
				case c <- j:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	})
	for range workers {
		g.Go(func() error {
			w := newWorker(in)
			for j := range work {
				pieces, err := w.leaf(ctx, j)
				if err != nil {
					return err
				}
				j.result <- pieces
			}
			return nil
		})
	}
	g.Go(func() error { return in.writeAll(ctx, order) })
	err := g.Wait()
	for j := range order { // what a failure left behind; the planner has closed it
		select {
		case pieces := <-j.result:
			release(pieces)
		default:
		}
	}
	return err
}

func (in *ingest) writeAll(ctx context.Context, order <-chan *job) error {
	for j := range order {
		select {
		case pieces := <-j.result:
			if err := in.write(ctx, j.n, pieces); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// release gives the buffers of pieces back that nobody has appended.
func release(pieces []piece) {
	for i := range pieces {
		pieces[i].data.Release()
	}
}

// write appends the new chunks of a leaf and puts the leaf into the tree.
func (in *ingest) write(ctx context.Context, n int64, pieces []piece) error {
	defer release(pieces)
	var l manifest.Leaf
	for i := range pieces {
		p := &pieces[i]
		if p.known {
			in.x.stats.KnownBytes += int64(p.size)
		}
		if p.fresh {
			place, err := in.x.keepChunk(ctx, p.digest, p.data, p.size)
			if err != nil {
				return err
			}
			p.place = place
			p.data.Release() // now, for the workers to use again
		}
		if k := len(l) - 1; p.id.IsZero() && k >= 0 && l[k].IsZero() {
			l[k].End = uint16(p.end)
			continue
		}
		l = append(l, manifest.Entry{End: uint16(p.end), ID: p.id, Place: p.place})
	}
	if err := in.build.Put(ctx, n, l); err != nil {
		return err
	}
	if in.progress != nil {
		in.progress(Progress{DoneBytes: min((n+1)*manifest.LeafSize, in.size), Stats: in.x.Stats()})
	}
	return nil
}
