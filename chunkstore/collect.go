package chunkstore

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/collect"
	"github.com/holdfast-backup/holdfast/chunkstore/index"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// collection is what a Store keeps of collections.
type collection struct {
	collecting atomic.Bool      // a collection runs
	running    sync.Mutex       // held by it, and for each pack that is made compact
	log        collectionRecord // of the last one; guarded by running
	hopeless   hopeless
}

// CollectOptions say how to collect.
type CollectOptions struct {
	DryRun   bool                   // only say what would be given back
	Progress func(collect.Progress) // may be nil; is called often

	least int64 // see collect.Options.Least; tests make it small
}

// Collect gives back the space of what no point needs: see package collect. Backups and reads go on meanwhile; it waits
// for the backups that have begun before it chose. One collection runs at a time: errs.Busy. errs.Corrupt: a point cannot
// be read, so nobody can say what it needs, and nothing was given back.
func (s *Store) Collect(ctx context.Context, o CollectOptions) (*collect.Result, error) {
	if !s.collecting.CompareAndSwap(false, true) {
		return nil, errs.Text("collect", s.dir, errs.Busy, "a collection is running")
	}
	defer s.collecting.Store(false)
	s.running.Lock() // a pack that is being made compact takes seconds
	defer s.running.Unlock()
	x := collector{s}
	if !o.DryRun {
		if err := s.dropSpent(ctx); err != nil {
			return &collect.Result{}, errs.Wrap("give back space of store", s.dir, err)
		}
	}
	res, err := collect.Run(ctx, collect.Store{
		Points: x, Sessions: x, Packs: x, Space: x, Index: x, Journal: x,
	}, collect.Options{DryRun: o.DryRun, Progress: o.Progress, Logger: s.log, Least: o.least})
	if err == nil && !o.DryRun && res.Chunks > compactAfter {
		err = s.index.Compact()
	}
	return res, errs.Wrap("give back space of store", s.dir, err)
}

// compactAfter is how many chunks a collection has to forget for the index to be rewritten without them.
const compactAfter = 100_000

// Collected returns when the last collection ended, the zero time if there was none.
func (s *Store) Collected() time.Time {
	s.running.Lock()
	defer s.running.Unlock()
	return s.collection.log.Ended
}

// collector gives a collection what it needs of the store.
type collector struct{ s *Store }

var (
	_ collect.Points   = collector{}
	_ collect.Sessions = collector{}
	_ collect.Packs    = collector{}
	_ collect.Space    = collector{}
	_ collect.Index    = collector{}
	_ collect.Journal  = collector{}
)

// Page implements manifest.Source. The cache is left to those who read disks.
func (c collector) Page(ctx context.Context, ref manifest.Ref) ([]byte, error) {
	return c.s.rawPage(ctx, ref.ID, ref.Place)
}

// Roots implements collect.Points. With removals kept out, the leases of this process are asked before records are
// listed, and those of all after: a session that had a parent when the list began still has it, or has committed.
func (c collector) Roots(ctx context.Context) (collect.Roots, error) {
	var out collect.Roots
	c.s.retain.Lock()
	defer c.s.retain.Unlock()
	ours := c.s.leases.ours()
	ids, err := c.s.pointIDs(ctx, pointPrefix)
	if err != nil {
		return out, err
	}
	there := map[PointID]bool{}
	for _, id := range ids {
		p, err := c.s.Point(ctx, id)
		if errs.Is(err, errs.NotFound) {
			continue // removed by hand
		}
		if err != nil {
			return out, unknown(err)
		}
		there[id] = true
		out.Disks = appendRoots(out.Disks, p)
	}
	if err := c.s.lockedAreThere(ctx, there); err != nil {
		return out, err
	}
	if ids, err = c.s.pointIDs(ctx, removedPrefix); err != nil {
		return out, err
	}
	for _, id := range ids {
		leased := ours[id]
		if !leased && !there[id] {
			if leased, err = c.s.leases.leased(id); err != nil {
				return out, err
			}
		}
		if !leased || there[id] {
			out.Spent = append(out.Spent, string(id))
			continue
		}
		raw, err := readObject(ctx, c.s.b, removedName(id), pointMaxSize)
		if err != nil {
			return out, unknown(err)
		}
		p, err := decodePoint(c.s.key.PointKey(), id, raw)
		if err != nil {
			return out, unknown(err)
		}
		out.Held = append(out.Held, string(id))
		out.Disks = appendRoots(out.Disks, p)
	}
	out.Also, err = c.s.healedCopies(ctx)
	return out, err
}

// lockedAreThere fails if a point that is locked has no record: somebody deleted the file, and its data must not follow.
// s.retain is held.
func (s *Store) lockedAreThere(ctx context.Context, there map[PointID]bool) error {
	locked, err := s.pointIDs(ctx, lockPrefix)
	if err != nil {
		return err
	}
	for _, id := range locked {
		if there[id] {
			continue
		}
		l, err := s.PointLock(ctx, id)
		if err != nil {
			return unknown(err)
		}
		clock, err := s.believe(ctx)
		if err != nil {
			return unknown(err)
		}
		if l.Holds(clock.Seen) {
			return unknown(errs.Text("find locked point", string(id), errs.Corrupt,
				"its record is gone, and it is locked until "+l.Until.Format(time.RFC3339)))
		}
	}
	return nil
}

func appendRoots(to []manifest.Root, p *Point) []manifest.Root {
	for _, d := range p.Disks {
		to = append(to, d.Root)
	}
	return to
}

// unknown explains why one bad record keeps all space from being given back.
func unknown(err error) error {
	return errs.New("find what points need", "", errs.KindOf(err), err).
		WithNext("Nothing is given back as long as it is not known what this point needs: put its record back from a copy of the store, or remove the point if it is not locked.")
}

// Drop implements collect.Points.
func (c collector) Drop(ctx context.Context, spent []string) error {
	for _, id := range spent {
		if err := c.s.b.Remove(ctx, removedName(PointID(id))); err != nil && !errs.Is(err, errs.NotFound) {
			return err
		}
	}
	return nil
}

// Drain implements collect.Sessions.
func (c collector) Drain(ctx context.Context, waiting func(int)) error {
	c.s.mu.Lock()
	running := make([]*Session, 0, len(c.s.sessions))
	for x := range c.s.sessions {
		running = append(running, x)
	}
	c.s.mu.Unlock()
	for i, x := range running {
		waiting(len(running) - i)
		select {
		case <-x.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// packKinds are the kinds of packs, as the collection calls them and as packs do.
var packKinds = map[collect.Kind]pack.Kind{collect.Data: pack.Data, collect.Pages: pack.Meta}

func keyOf(p collect.Pack) packKey { return packKey{packKinds[p.Kind], p.Number} }

// List implements collect.Packs.
func (c collector) List(ctx context.Context) ([]collect.Pack, error) {
	newest := c.s.settled()
	var out []collect.Pack
	for _, kind := range []collect.Kind{collect.Data, collect.Pages} {
		infos, err := c.s.b.List(ctx, packKinds[kind].String()+"/")
		if err != nil {
			return nil, err
		}
		out = append(out, listPacks(kind, infos, newest)...)
	}
	return out, nil
}

// settled returns the highest number of a pack that no session which runs, or will begin, can have written.
func (s *Store) settled() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	newest := s.last
	for _, begun := range s.sessions {
		newest = min(newest, begun)
	}
	return newest
}

// listPacks picks the sealed packs up to a number from a sorted list of objects.
func listPacks(kind collect.Kind, infos []backend.Info, newest uint32) (out []collect.Pack) {
	for _, h := range packsIn(packKinds[kind], infos) {
		if h.sealed && h.number <= newest {
			out = append(out, collect.Pack{
				Kind: kind, Number: h.number, Size: h.info.Size, Occupied: h.info.Occupied + h.restBytes,
				HasRest: h.hasRest, Compact: h.form == compact,
			})
		}
	}
	return out
}

// Directory implements collect.Packs.
func (c collector) Directory(ctx context.Context, p collect.Pack) ([]collect.Chunk, error) {
	var out []collect.Chunk
	err := c.s.packs.use(ctx, keyOf(p), func(r *pack.Reader) error {
		dir, err := r.Directory()
		for _, e := range dir {
			out = append(out, collect.Chunk{ID: e.Digest.ID(), Place: e.Place, Lies: e.Lies()})
		}
		return err
	})
	return out, err
}

// Forget implements collect.Index.
func (c collector) Forget(number uint32, ids []chunk.ID) error {
	if err := c.s.index.UnmarkPack(number); err != nil {
		return err
	}
	_, err := c.s.index.DeleteIf(ids, number)
	return err
}

// Learn implements collect.Index.
func (c collector) Learn(number uint32, chunks []collect.Chunk, left int) error {
	chunks, err := c.s.unquarantined(context.Background(), number, chunks)
	if err != nil {
		return err
	}
	batch := make([]index.Entry, len(chunks))
	for i, e := range chunks {
		batch[i] = index.Entry{ID: e.ID, Place: e.Place}
	}
	if err := c.s.index.Put(batch); err != nil {
		return err
	}
	return c.s.index.MarkPack(number, left)
}
