package chunkstore

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/chunkstore/quarantine"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// wanted are the chunks and pages that are damaged and not healed: whoever stores one of them, or meets it elsewhere in
// the store, heals it.
type wanted struct {
	n  atomic.Int64 // that there are; a look at it spares the lock
	mu sync.Mutex   // guards the rest
	// packs says in which packs the content is damaged.
	packs map[wantedKey][]uint32
	told  map[packKey]uint32 // the records that were read, and checksums of them
}

type wantedKey struct {
	kind pack.Kind
	id   chunk.ID
}

// maxWanted bounds what is remembered of a store in ruins: 100 bytes each. What is beyond it is healed when the store was
// opened again, after the rest.
const maxWanted = 256 << 10

func (w *wanted) add(k wantedKey, number uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.packs == nil {
		w.packs = map[wantedKey][]uint32{}
	}
	if have := w.packs[k]; !slices.Contains(have, number) && (have != nil || len(w.packs) < maxWanted) {
		w.packs[k] = append(have, number)
		w.n.Store(int64(len(w.packs)))
	}
}

func (w *wanted) has(k wantedKey) bool {
	if w.n.Load() == 0 {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.packs[k]) > 0
}

// of returns the packs in which the content is damaged.
func (w *wanted) of(k wantedKey) []uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.packs[k])
}

func (w *wanted) drop(k wantedKey) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.packs, k)
	w.n.Store(int64(len(w.packs)))
}

// readQuarantine learns of all damage that is known, when the store is opened, or that others have found since.
func (s *Store) readQuarantine(ctx context.Context) error {
	known, err := s.damage.reread(ctx)
	if err != nil {
		return err
	}
	for key := range known {
		rec, err := s.damage.record(ctx, key)
		if err != nil {
			s.log.Error("what is known of damage cannot be read", "name", quarantineName(key), "err", err)
			continue
		}
		if rec == nil || !s.wanted.news(key, s.damage.sum(key)) {
			continue
		}
		spots := make([]Spot, len(rec.Entries))
		for i, e := range rec.Entries {
			spots[i] = Spot{key.kind, e.ID, e.Place(key.number)}
		}
		s.shun(ctx, key, spots)
	}
	return nil
}

// news tells whether a record says something else than when it was last asked.
func (w *wanted) news(key packKey, sum uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	before, ok := w.told[key]
	if w.told == nil {
		w.told = map[packKey]uint32{}
	}
	w.told[key] = sum
	return !ok || before != sum
}

// shun makes the index forget damaged chunks, and looks whether it knows the same content elsewhere. Whatever fails here
// is no harm: holds keeps damaged chunks from being built on, and the index is asked again by the next backup.
func (s *Store) shun(ctx context.Context, key packKey, spots []Spot) {
	if key.kind == pack.Data {
		ids := make([]chunk.ID, len(spots))
		for i, spot := range spots {
			ids[i] = spot.ID
		}
		if _, err := s.index.DeleteIf(ids, key.number); err != nil {
			s.log.Warn("the index cannot forget damaged chunks", "pack", key.number, "err", err)
		}
	}
	rec, err := s.damage.record(ctx, key)
	if err != nil {
		return
	}
	var heals []heal
	for _, spot := range spots {
		if e, ok := rec.Find(spot.ID, spot.Place); !ok || !e.Healed.IsZero() {
			continue
		}
		k := wantedKey{key.kind, spot.ID}
		s.wanted.add(k, key.number)
		if key.kind != pack.Data {
			continue
		}
		if at, ok, err := s.index.Get(spot.ID); err == nil && ok {
			heals = append(heals, heal{k, at})
		}
	}
	s.healFrom(ctx, heals)
}

// heal says that what is wanted lies at a place.
type heal struct {
	wantedKey
	at chunk.Place
}

// healFrom heals with copies that lie in the store, outside of a session. A collection that runs might be about to give
// such a copy back, and does not wait for us: then it is left to the next one who asks.
func (s *Store) healFrom(ctx context.Context, heals []heal) {
	if len(heals) == 0 || !s.running.TryLock() {
		return
	}
	defer s.running.Unlock()
	good := heals[:0]
	for _, h := range heals {
		if s.sound(ctx, h) {
			good = append(good, h)
		}
	}
	s.heal(ctx, good)
}

// sound tells whether the copy can be read, and is what its pack's directory says.
func (s *Store) sound(ctx context.Context, h heal) bool {
	if h.kind == pack.Data && !s.holds(ctx, h.id, h.at) {
		return false
	}
	spot := Spot{h.kind, h.id, h.at}
	if rec, err := s.damage.record(ctx, spot.key()); err != nil || rec != nil {
		if _, bad := rec.Find(spot.ID, spot.Place); bad || err != nil {
			return false
		}
	}
	_, err := s.checkSpot(ctx, spot)
	return err == nil
}

// heal writes down where damaged content lies again, durably. What is there already must be durable as well.
func (s *Store) heal(ctx context.Context, heals []heal) {
	byPack := map[packKey][]heal{}
	for _, h := range heals {
		for _, number := range s.wanted.of(h.wantedKey) {
			key := packKey{h.kind, number}
			byPack[key] = append(byPack[key], h)
		}
	}
	failed := map[wantedKey]bool{}
	for key, list := range byPack {
		n := 0
		err := s.damage.change(context.WithoutCancel(ctx), key, func(rec *quarantine.Record) (bool, error) {
			to := map[chunk.ID]chunk.Place{}
			for _, h := range list {
				to[h.id] = h.at
			}
			n = rec.Heal(to)
			return n > 0, nil
		})
		if err != nil {
			s.log.Error("damage is healed, and that cannot be written down", "pack", packName(key.kind, key.number), "err", err)
			for _, h := range list {
				failed[h.wantedKey] = true
			}
			continue
		}
		if n > 0 {
			s.log.Info("damage is healed", "pack", packName(key.kind, key.number), "chunks", n)
		}
	}
	for _, h := range heals {
		if !failed[h.wantedKey] {
			s.wanted.drop(h.wantedKey)
		}
	}
}

// healing is what a session has found out about damage, until it is durable and can be written down.
type healing struct {
	mu      sync.Mutex // guards the rest
	ready   []heal
	pending map[pack.Kind][]heal // in packs that are not sealed
	lost    map[packKey][]Spot   // of packs that are lost as a whole
}

// heals notes that a chunk or a page that may be wanted was appended to the open pack.
func (x *Session) heals(kind pack.Kind, id chunk.ID, at chunk.Place) {
	k := wantedKey{kind, id}
	if !x.s.wanted.has(k) {
		return
	}
	x.healing.mu.Lock()
	defer x.healing.mu.Unlock()
	if x.healing.pending == nil {
		x.healing.pending = map[pack.Kind][]heal{}
	}
	x.healing.pending[kind] = append(x.healing.pending[kind], heal{k, at})
}

// healsFrom notes that a chunk that may be wanted was found by the index.
func (x *Session) healsFrom(ctx context.Context, id chunk.ID, at chunk.Place) {
	h := heal{wantedKey{pack.Data, id}, at}
	if !x.s.wanted.has(h.wantedKey) || !x.s.sound(ctx, h) {
		return
	}
	x.healing.mu.Lock()
	defer x.healing.mu.Unlock()
	x.healing.ready = append(x.healing.ready, h)
}

// flushHeals writes down what was healed, now that packs of some kinds are sealed. The session has not ended, so a
// collection waits for it, and sees what is written here.
func (x *Session) flushHeals(ctx context.Context, sealed ...pack.Kind) {
	h := &x.healing
	h.mu.Lock()
	for _, kind := range sealed {
		h.ready = append(h.ready, h.pending[kind]...)
		delete(h.pending, kind)
	}
	lost, ready := h.lost, h.ready
	h.lost, h.ready = nil, nil
	h.mu.Unlock()
	for key, spots := range lost {
		if _, err := x.s.quarantine(ctx, key, spots, false); err != nil {
			x.s.log.Error("damage was found, and cannot be written down", "pack", packName(key.kind, key.number), "err", err)
		}
	}
	x.s.heal(ctx, ready)
}

// holdsOld is holds for a chunk that the parent has in the same place. If it is damaged there, its content, which is at
// hand, is about to heal it.
func (x *Session) holdsOld(ctx context.Context, id chunk.ID, at chunk.Place) bool {
	if x.s.holds(ctx, id, at) {
		return true
	}
	s := Spot{pack.Data, id, at}
	rec, err := x.s.damage.record(ctx, s.key())
	if err != nil || rec.Lists(id, at) {
		return false
	}
	if rec == nil || rec.Lost.IsZero() {
		lost, err := x.s.checkSpot(ctx, s)
		if err == nil || !errs.Is(err, errs.Corrupt) { // only its pack's directory cannot be used
			return false
		}
		if _, err := x.s.quarantine(ctx, s.key(), []Spot{s}, lost); err != nil {
			x.s.log.Error("damage was found, and cannot be written down", "pack", s.Object(), "err", err)
		}
		return false
	}
	x.s.wanted.add(wantedKey{pack.Data, id}, at.Pack)
	x.healing.mu.Lock()
	defer x.healing.mu.Unlock()
	if x.healing.lost == nil {
		x.healing.lost = map[packKey][]Spot{}
	}
	x.healing.lost[s.key()] = append(x.healing.lost[s.key()], s)
	return false
}
