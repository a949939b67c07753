package chunkstore

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/collect"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/chunkstore/quarantine"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// dropSpent forgets damage in what no point needs any more, so that the copies that healed it are given back as well.
// s.running is held.
func (s *Store) dropSpent(ctx context.Context) error {
	known, err := s.damage.look(ctx)
	if err != nil || len(known) == 0 {
		return err
	}
	roots, err := collector{s}.Roots(ctx)
	if err != nil {
		return err
	}
	need, err := s.needed(ctx, roots.Disks)
	if errs.Is(err, errs.Corrupt) {
		return nil // the collection will say what cannot be read
	}
	if err != nil {
		return err
	}
	inPack := map[packKey]bool{}
	for spot := range need {
		inPack[spot.key()] = true
	}
	for key := range known {
		err := s.damage.change(ctx, key, func(rec *quarantine.Record) (bool, error) {
			n := rec.Lift(func(e quarantine.Entry) bool {
				spot := Spot{key.kind, e.ID, e.Place(key.number)}
				spot.Place.Stored = 0
				return !need[spot]
			})
			spent := !rec.Lost.IsZero() && !inPack[key]
			if spent {
				rec.Lost = time.Time{}
			}
			return n > 0 || spent, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// healedCopies are the places that are read in place of damaged ones.
func (s *Store) healedCopies(ctx context.Context) (out []collect.Needed, err error) {
	known, err := s.damage.look(ctx)
	if err != nil {
		return nil, err
	}
	for key := range known {
		rec, err := s.damage.record(ctx, key)
		if err != nil {
			return nil, errs.New("find what heals damage", quarantineName(key), errs.KindOf(err), err).
				WithNext("Nothing is given back as long as that is not known: run `holdfast store verify`, which makes the record anew.")
		}
		if rec == nil {
			continue
		}
		kind := collect.Data
		if key.kind == pack.Meta {
			kind = collect.Pages
		}
		for _, e := range rec.Entries {
			if !e.Healed.IsZero() {
				out = append(out, collect.Needed{Kind: kind, Place: e.Healed})
			}
		}
	}
	return out, nil
}

// unquarantined leaves out what is damaged: the index must not learn of it again.
func (s *Store) unquarantined(ctx context.Context, number uint32, chunks []collect.Chunk) ([]collect.Chunk, error) {
	rec, err := s.damage.record(ctx, packKey{pack.Data, number})
	if err != nil || rec == nil {
		return chunks, err
	}
	var out []collect.Chunk
	for _, e := range chunks {
		if !rec.Lists(e.ID, e.Place) {
			out = append(out, e)
		}
	}
	return out, nil
}
