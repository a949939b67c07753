package chunkstore

import (
	"context"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/chunkstore/quarantine"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func (s Spot) key() packKey { return packKey{s.Kind, s.Place.Pack} }

// maxHops bounds how often a chunk is looked for elsewhere: a healed copy can be damaged in its turn, and be healed.
const maxHops = 16

// next returns where the content of a damaged spot lies again.
func (q *damageLog) next(ctx context.Context, s Spot) (Spot, bool) {
	rec, err := q.record(ctx, s.key())
	if err != nil {
		q.log.Error("what is known of damage cannot be read", "name", quarantineName(s.key()), "err", err)
		return s, false
	}
	e, ok := rec.Find(s.ID, s.Place)
	if !ok || e.Healed.IsZero() {
		return s, false
	}
	s.Place = e.Healed
	return s, true
}

// resolve follows a spot to where its content can be read. bad: nowhere, since a time.
func (q *damageLog) resolve(ctx context.Context, s Spot) (since time.Time, bad bool, err error) {
	for range maxHops {
		rec, err := q.record(ctx, s.key())
		if err != nil {
			return since, false, err
		}
		e, ok := rec.Find(s.ID, s.Place)
		if !ok {
			return since, false, nil
		}
		if e.Healed.IsZero() {
			return e.Since, true, nil
		}
		since, s.Place = e.Since, e.Healed
	}
	return since, true, nil
}

// elsewhere deals with a read that failed with cause. If it is damage, read is asked to read what healed it; if that is
// not to be had, what was found is written down, and cause is the answer.
func (r *Reader) elsewhere(ctx context.Context, s Spot, cause error, read func(at chunk.Place) error) error {
	if cause == nil || !errs.Is(cause, errs.Corrupt) {
		return cause
	}
	fresh := false
	for range maxHops {
		next, ok := r.damage.next(ctx, s)
		if !ok && !fresh { // another process may have healed it since
			if _, err := r.damage.look(ctx); err != nil {
				return cause
			}
			r.damage.forget(s.key())
			fresh = true
			next, ok = r.damage.next(ctx, s)
		}
		if !ok {
			break
		}
		err := read(next.Place)
		if err == nil || !errs.Is(err, errs.Corrupt) {
			return err
		}
		s, fresh = next, false
	}
	r.report(ctx, s)
	return cause
}

// forget makes the next look at a pack's record read it again.
func (q *damageLog) forget(key packKey) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop(key)
}

// report writes down that a spot is damaged, unless that is known or it turns out to be good when it is read once more,
// past everything that is kept open.
func (r *Reader) report(ctx context.Context, s Spot) {
	if rec, err := r.damage.record(ctx, s.key()); err == nil {
		if _, known := rec.Find(s.ID, s.Place); known {
			return
		}
	}
	lost, err := r.checkSpot(ctx, s)
	if err == nil {
		r.packs.forget(s.key())
		return
	}
	if !errs.Is(err, errs.Corrupt) {
		return
	}
	if _, err := r.quarantine(ctx, s.key(), []Spot{s}, lost); err != nil {
		r.damage.log.Error("damage was found, and cannot be written down", "pack", s.Object(), s.what(), s.ID.String(), "err", err)
	}
}

// checkSpot reads a chunk or a page as a whole, past all caches, and names it again. lost: nothing in its pack can be read.
func (r *Reader) checkSpot(ctx context.Context, s Spot) (lost bool, err error) {
	p, err := r.openPack(ctx, s.key())
	if err != nil {
		if lost = isLost(err); lost {
			err = errs.New("open pack", s.Object(), errs.Corrupt, err)
		}
		return lost, err
	}
	defer p.Close()
	plain, d, err := p.ReadChunk(s.Place, s.ID, nil)
	if err == nil {
		err = r.checkContent(s.Kind, d, plain)
	}
	return false, damage("verify "+s.what(), s.ID, err)
}

// quarantine writes down, durably, that spots of a pack are damaged; lost: that nothing in the pack can be read. It returns
// how many of the spots are news.
func (r *Reader) quarantine(ctx context.Context, key packKey, spots []Spot, lost bool) (int, error) {
	ctx = context.WithoutCancel(ctx) // it was found, and costs milliseconds
	now := time.Now()
	var fresh []Spot
	news := false
	slices.SortFunc(spots, compareSpots)
	err := r.damage.change(ctx, key, func(rec *quarantine.Record) (bool, error) {
		if lost && rec.Lose(now) {
			news = true
		}
		for _, s := range spots {
			added, err := rec.Add(s.ID, s.Place, now)
			if err != nil {
				return false, err
			}
			if added {
				fresh = append(fresh, s)
			}
		}
		return news || len(fresh) > 0, nil
	})
	if err != nil || !news && len(fresh) == 0 {
		return 0, err
	}
	r.damage.log.Error("damage was found in the store, what is hit is in quarantine until a backup brings it again",
		"pack", packName(key.kind, key.number), "hit", len(fresh), "lost", lost)
	if r.damage.found != nil && len(fresh) > 0 {
		r.damage.found(ctx, key, fresh)
	}
	return len(fresh), nil
}

// rawPage reads a page past the cache, or what healed it.
func (r *Reader) rawPage(ctx context.Context, id chunk.ID, at chunk.Place) ([]byte, error) {
	var page []byte
	read := func(at chunk.Place) error {
		err := r.packs.use(ctx, packKey{pack.Meta, at.Pack}, func(p *pack.Reader) (err error) {
			page, _, err = p.ReadChunk(at, id, nil)
			return err
		})
		return damage("read manifest page", id, err)
	}
	err := r.elsewhere(ctx, Spot{pack.Meta, id, at}, read(at), read)
	return page, err
}
