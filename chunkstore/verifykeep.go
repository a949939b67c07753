package chunkstore

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/quarantine"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// keepEvery is how many damaged spots a verification remembers until it writes them down.
const keepEvery = 4096

// mend looks whether a damaged spot is healed. If not, it is written down, soon, and cause is the answer.
func (v *verifier) mend(ctx context.Context, s Spot, cause error, look func(Spot) error) error {
	if !errs.Is(cause, errs.Corrupt) {
		return cause
	}
	for range maxHops {
		next, ok := v.r.damage.next(ctx, s)
		if !ok {
			break
		}
		if s = next; look(s) == nil {
			if !v.healed[s] {
				v.out.Healed++
				v.healed[s] = true
			}
			return nil
		}
	}
	if v.found = append(v.found, s); len(v.found) >= keepEvery {
		v.keep(ctx)
	}
	return cause
}

// keep writes down what was found damaged.
func (v *verifier) keep(ctx context.Context) {
	byPack := map[packKey][]Spot{}
	for _, s := range v.found {
		byPack[s.key()] = append(byPack[s.key()], s)
	}
	v.found = v.found[:0]
	for key, spots := range byPack {
		p, err := v.r.openPack(ctx, key)
		if err == nil {
			_ = p.Close() // it was only opened
		}
		n, kerr := v.r.quarantine(ctx, key, spots, isLost(err))
		v.out.Quarantined += int64(n)
		v.unkept(kerr)
	}
}

// unkept notes why something cannot be written down. On a store that may only be read, looking for damage is worth
// something all the same.
func (v *verifier) unkept(err error) {
	if err != nil && v.out.Unkept == nil {
		v.out.Unkept = err
	}
}

// settled is what a look at a pack has changed in what is known of damage.
type settled struct{ found, lifted int }

// settle writes down what a look at a whole pack has found damaged, and lifts what was in quarantine and is good again. A
// record that cannot be read is made anew.
func (r *Reader) settle(ctx context.Context, rep packReport) (out settled, err error) {
	if !rep.lost && !rep.news() {
		return out, nil
	}
	spots := make([]Spot, 0, len(rep.bad))
	for s := range rep.bad {
		spots = append(spots, s)
	}
	if rep.unreadable {
		if err := r.damage.renew(ctx, rep.key); err != nil {
			return out, err
		}
	}
	if rep.reopened || len(rep.sound) > 0 {
		err = r.damage.change(context.WithoutCancel(ctx), rep.key, func(rec *quarantine.Record) (bool, error) {
			opened := !rec.Lost.IsZero() && !rep.lost
			if opened {
				rec.Lost = time.Time{}
			}
			out.lifted = rec.Lift(func(e quarantine.Entry) bool { return rep.sound[Spot{rep.key.kind, e.ID, e.Place(rep.key.number)}] })
			return opened || out.lifted > 0, nil
		})
		if err != nil {
			return settled{}, err
		}
		if out.lifted > 0 {
			r.damage.log.Info("what was damaged is good again", "pack", packName(rep.key.kind, rep.key.number), "chunks", out.lifted)
		}
	}
	if len(spots) > 0 || rep.lost {
		out.found, err = r.quarantine(ctx, rep.key, spots, rep.lost)
	}
	return out, err
}

// isLost tells whether the error of openPack says that nothing in the pack can be read.
func isLost(err error) bool {
	return err != nil && (errs.Is(err, errs.NotFound) || unusable(err) && !errs.Is(err, errs.Unsupported))
}

// quarantine looks at the records of damage.
func (w *storeWalk) quarantine(ctx context.Context) error {
	known, err := w.r.damage.look(ctx)
	for key := range known {
		w.r.damage.forget(key)
		if _, err := w.r.damage.record(ctx, key); err != nil {
			w.object(quarantineName(key), err)
		}
	}
	return err
}

// anew makes records that cannot be read anew also for packs that are not there any more: they stand in the way of a
// collection.
func (w *storeWalk) anew(ctx context.Context) error {
	known, err := w.r.damage.look(ctx)
	if err != nil || w.quick {
		return err
	}
	for key := range known {
		if _, err := w.r.damage.record(ctx, key); errs.Is(err, errs.Corrupt) {
			w.unkept(w.r.damage.renew(ctx, key))
		}
	}
	return nil
}
