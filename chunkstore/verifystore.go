package chunkstore

import (
	"context"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/index"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// VerifyOptions say how VerifyStore looks.
type VerifyOptions struct {
	// Quick looks at headers instead of the content of chunks: it finds what is missing, not what has rotted.
	Quick bool
	// Progress is told after each pack, and then after each leaf of 8 MiB; it may be nil.
	Progress func(Verified)
}

// VerifyStore looks at every object of the store: records, keys, locks, every pack from its first byte to its last,
// whether a point needs it or not, and the index if nobody has it open. Then it walks the manifests of all points, to see
// that everything they need is there, and to tell which ranges of which disks are hit by what was found.
func (r *Reader) VerifyStore(ctx context.Context, o VerifyOptions) (Verified, error) {
	const op = "verify store"
	w := newStoreWalk(r, o)
	points, err := w.records(ctx) // before packs are listed: what these points need is there by then
	if err == nil {
		err = w.smallObjects(ctx)
	}
	if err == nil {
		err = w.packs(ctx)
	}
	if err == nil {
		err = w.anew(ctx)
	}
	if err == nil {
		w.index()
		err = w.points(ctx, points)
	}
	if err != nil {
		return w.out, errs.Wrap(op, r.dir, err)
	}
	w.unneeded(ctx)
	return w.out, nil
}

func newStoreWalk(r *Reader, o VerifyOptions) *storeWalk {
	w := &storeWalk{verifier: newVerifier(r, o.Progress), quick: o.Quick, bad: map[Spot]error{}, dirs: map[uint32][]dirPlain{}}
	w.cheap, w.chunk = true, w.look
	return w
}

// points walks the manifests of points.
func (w *storeWalk) points(ctx context.Context, points []*Point) error {
	for _, p := range points {
		if err := w.point(ctx, p); err != nil {
			return err
		}
	}
	w.keep(ctx)
	return nil
}

// beside looks at all but the packs' content: at records and other small objects, and at whether what points need is there.
func (w *storeWalk) beside(ctx context.Context) error {
	points, err := w.records(ctx)
	if err == nil {
		err = w.smallObjects(ctx)
	}
	if err == nil {
		err = w.points(ctx, points)
	}
	return err
}

// storeWalk verifies a whole store.
type storeWalk struct {
	*verifier
	quick bool
	bad   map[Spot]error // what the look at packs has found
	dirs  map[uint32][]dirPlain
}

// dirPlain is what is kept of an entry of a directory while manifests are walked.
type dirPlain struct {
	dirPlace
	plain uint32
}

// dirsKept bounds how many directories are kept. A disk's chunks lie close together.
const dirsKept = 64

func (w *storeWalk) object(name string, err error) {
	w.fault(Fault{Off: -1, Object: name, Err: err})
}

// records reads all point records.
func (w *storeWalk) records(ctx context.Context) ([]*Point, error) {
	infos, err := w.r.b.List(ctx, pointPrefix)
	if err != nil {
		return nil, err
	}
	var out []*Point
	for _, i := range infos {
		p, err := w.r.Point(ctx, PointID(strings.TrimPrefix(i.Name, pointPrefix)))
		switch {
		case err == nil:
			out = append(out, p)
		case errs.Is(err, errs.NotFound): // removed meanwhile
		case ctx.Err() != nil:
			return nil, ctx.Err()
		default:
			w.object(i.Name, err)
		}
	}
	return out, nil
}

// smallObjects looks at what is neither a pack nor a record.
func (w *storeWalk) smallObjects(ctx context.Context) error {
	ks, err := w.r.Keys(ctx)
	if err != nil {
		return err
	}
	for _, k := range ks {
		if k.Err != nil {
			w.object(keyObject(k.Name, k.Form), k.Err)
		}
	}
	var names []string
	for _, prefix := range []string{lockPrefix, auditPrefix, clockName, collectionName, scrubName, verifiedName} {
		infos, err := w.r.b.List(ctx, prefix)
		if err != nil {
			return err
		}
		for _, i := range infos {
			names = append(names, i.Name)
		}
	}
	for _, name := range names {
		var any map[string]any
		if err := w.r.readSmall(ctx, name, &any); err != nil && !errs.Is(err, errs.NotFound) {
			w.object(name, err)
		}
	}
	if err := w.quarantine(ctx); err != nil {
		return err
	}
	return w.removed(ctx)
}

// removed reads the records of removed points. One that is damaged hurts only whoever still reads the point.
func (w *storeWalk) removed(ctx context.Context) error {
	ids, err := w.r.pointIDs(ctx, removedPrefix)
	if err != nil {
		return err
	}
	for _, id := range ids {
		raw, err := readObject(ctx, w.r.b, removedName(id), pointMaxSize)
		if err == nil {
			_, err = decodePoint(w.r.key.PointKey(), id, raw)
		}
		if err != nil && !errs.Is(err, errs.NotFound) && ctx.Err() == nil {
			w.object(removedName(id), err)
		}
	}
	return ctx.Err()
}

// packs looks at all packs, several at a time.
func (w *storeWalk) packs(ctx context.Context) error {
	all, err := w.r.sealedPacks(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(min(runtime.GOMAXPROCS(0), maxWorkers))
	var mu sync.Mutex // guards w
	for _, p := range all {
		g.Go(func() error {
			rep, err := w.r.checkPack(ctx, p.packKey, packLook{quick: w.quick})
			if err != nil {
				return err
			}
			done, err := w.r.settle(ctx, rep)
			mu.Lock()
			defer mu.Unlock()
			w.unkept(err)
			w.out.Quarantined += int64(done.found)
			w.out.Lifted += int64(done.lifted)
			w.add(rep)
			return nil
		})
	}
	return g.Wait()
}

func (w *storeWalk) add(rep packReport) {
	if rep.gone {
		return // if a point needs it, the walk will tell
	}
	w.out.Packs++
	w.out.Bytes += rep.bytes
	if rep.key.kind == pack.Data {
		w.out.Chunks += rep.chunks
	}
	for s, err := range rep.bad {
		if len(w.bad) >= maxFaults {
			err = errRuins
		}
		w.bad[s] = err
	}
	for _, err := range rep.faults {
		w.object(w.r.objectOf(rep.key), err)
	}
	if w.progress != nil {
		w.progress(w.out)
	}
}

// index looks at the index, unless somebody has it open: that process has looked when it opened it.
func (w *storeWalk) index() {
	if w.r.indexDir == "" {
		return
	}
	if err := index.Examine(w.r.indexDir, [16]byte(w.r.super.UUID)); errs.Is(err, errs.Corrupt) {
		w.object(path.Base(w.r.indexDir), err)
	}
}

// look tells whether a chunk that a manifest names is there, by what the look at packs has found. Where a pack's
// directory says nothing, the chunk itself is looked at.
func (w *storeWalk) look(ctx context.Context, s Spot, size int64) error {
	if err, found := w.bad[s]; found {
		return damage("verify chunk", s.ID, err)
	}
	dir, err := w.directory(ctx, s.Place.Pack)
	if err != nil {
		return err
	}
	i, found := slices.BinarySearchFunc(dir, s.Place.Offset, func(e dirPlain, offset uint32) int {
		return int(int64(e.offset) - int64(offset))
	})
	if found && dir[i].id == s.ID && dir[i].stored == s.Place.Stored && int64(dir[i].plain) == size {
		return nil
	}
	if w.quick {
		return w.glance(ctx, s, size)
	}
	return w.read(ctx, s, size)
}

// directory returns a pack's directory; none if it cannot be used.
func (w *storeWalk) directory(ctx context.Context, number uint32) ([]dirPlain, error) {
	if dir, ok := w.dirs[number]; ok {
		return dir, nil
	}
	if len(w.dirs) >= dirsKept {
		clear(w.dirs)
	}
	var out []dirPlain
	p, err := w.r.openPack(ctx, packKey{pack.Data, number})
	if err == nil {
		defer p.Close()
		var entries []pack.DirEntry
		entries, err = p.Directory()
		for _, e := range entries {
			out = append(out, dirPlain{dirPlace{e.Place.Offset, e.Place.Stored, e.Digest.ID()}, e.PlainLen})
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		out = nil // told of by the look at packs
	}
	w.dirs[number] = out
	return out, nil
}

// unneeded tells of what was found, is not healed, and hits no point.
func (w *storeWalk) unneeded(ctx context.Context) {
	hit := map[Spot]bool{}
	for _, f := range w.out.Faults {
		hit[f.Spot] = true
	}
	spots := make([]Spot, 0, len(w.bad))
	for s := range w.bad {
		_, asked := w.chunks[s]
		if _, bad, err := w.r.damage.resolve(ctx, s); !asked && !hit[s] && (bad || err != nil) {
			spots = append(spots, s)
		}
	}
	slices.SortFunc(spots, compareSpots)
	for _, s := range spots {
		w.fault(Fault{Off: -1, Spot: s, Object: s.Object(), Err: w.bad[s]})
	}
}

func compareSpots(a, b Spot) int {
	if a.Kind != b.Kind {
		return int(a.Kind) - int(b.Kind)
	}
	return comparePlaces(a.Place, b.Place)
}

func comparePlaces(a, b chunk.Place) int {
	if a.Pack != b.Pack {
		return int(int64(a.Pack) - int64(b.Pack))
	}
	return int(int64(a.Offset) - int64(b.Offset))
}
