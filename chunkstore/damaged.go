package chunkstore

import (
	"context"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Hurt says what of a point is known to be damaged, and not healed.
type Hurt struct {
	Bytes int64     // of its disks, in chunks and below pages that cannot be read
	Since time.Time // when the oldest of it was found
}

func (h *Hurt) add(o Hurt) {
	h.Bytes += o.Bytes
	if h.Since.IsZero() || !o.Since.IsZero() && o.Since.Before(h.Since) {
		h.Since = o.Since
	}
}

// damageMemo keeps what Hurts has found out.
type damageMemo struct {
	turn  uint64
	hurts map[PointID]Hurt // of all points that were looked at; most are zero
}

// Hurts tells which of the points are hit by damage that is known: it is found by verifying, by scrubbing, and by reads
// that fail. Nothing but manifests is read, and not even those as long as no damage is known.
func (r *Reader) Hurts(ctx context.Context, points []*Point) (map[PointID]Hurt, error) {
	const op = "find damaged points"
	known, err := r.damage.reread(ctx)
	if err != nil {
		return nil, errs.Wrap(op, r.dir, err)
	}
	out := map[PointID]Hurt{}
	if any, err := r.damage.unhealed(ctx, known); err != nil || !any {
		return out, errs.Wrap(op, r.dir, err)
	}
	memo := r.damage.memo()
	w := newDamageWalk(r)
	for _, p := range points {
		h, ok := memo[p.ID]
		for _, d := range p.Disks {
			if ok {
				break
			}
			below, err := w.page(ctx, d.Root.Ref(), d.Root.Level, 0)
			if err != nil {
				return nil, errs.Wrap(op, string(p.ID), err)
			}
			h.add(below)
		}
		if memo[p.ID] = h; h.Bytes > 0 {
			out[p.ID] = h
		}
	}
	r.damage.remember(memo)
	return out, nil
}

// memo returns what was found out since records changed last.
func (q *damageLog) memo() map[PointID]Hurt {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := map[PointID]Hurt{}
	if q.points.turn == q.turn {
		for id, h := range q.points.hurts {
			out[id] = h
		}
	} else {
		q.points = damageMemo{turn: q.turn}
	}
	return out
}

// remember keeps what was found out, unless records changed meanwhile.
func (q *damageLog) remember(hurts map[PointID]Hurt) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.points.turn == q.turn {
		q.points.hurts = hurts
	}
}

// unhealed tells whether any damage is known that is not healed.
func (q *damageLog) unhealed(ctx context.Context, known map[packKey]int64) (bool, error) {
	for key := range known {
		rec, err := q.record(ctx, key)
		if err != nil {
			return false, err
		}
		if rec == nil {
			continue
		}
		if !rec.Lost.IsZero() {
			return true, nil
		}
		for _, e := range rec.Entries {
			if _, bad, err := q.resolve(ctx, Spot{key.kind, e.ID, e.Place(key.number)}); err != nil || bad {
				return bad, err
			}
		}
	}
	return false, nil
}

// damageWalk walks manifests and compares them with what is known of damage. Pages that disks share are walked once.
type damageWalk struct {
	r     *Reader
	hurts map[pageKey]Hurt
	clean map[pageKey]bool
	// hit is told of each range of a disk that cannot be read; pages: because of a page. If it is set, every page is walked.
	hit func(off, n int64, pages bool)
	// meet is told of each spot that is in a record, healed or not, the first time at least.
	meet func(Spot)
	// blind: what is below some page is not known.
	blind bool
}

func newDamageWalk(r *Reader) *damageWalk {
	return &damageWalk{r: r, hurts: map[pageKey]Hurt{}, clean: map[pageKey]bool{}}
}

// state says whether a spot cannot be read.
func (w *damageWalk) state(ctx context.Context, s Spot) (Hurt, bool, error) {
	rec, err := w.r.damage.record(ctx, s.key())
	if err != nil || rec == nil {
		return Hurt{}, false, err
	}
	if _, listed := rec.Find(s.ID, s.Place); !listed {
		return Hurt{}, false, nil
	}
	if w.meet != nil {
		w.meet(s)
	}
	since, bad, err := w.r.damage.resolve(ctx, s)
	return Hurt{Since: since}, bad, err
}

func (w *damageWalk) page(ctx context.Context, ref manifest.Ref, level int, leaf int64) (Hurt, error) {
	key := pageKey{ref.ID, ref.Place}
	if ref.IsZero() || w.clean[key] {
		return Hurt{}, nil
	}
	if h, ok := w.hurts[key]; ok && w.hit == nil {
		return h, nil
	}
	if err := ctx.Err(); err != nil {
		return Hurt{}, err
	}
	h, bad, err := w.state(ctx, Spot{pack.Meta, ref.ID, ref.Place})
	if err == nil && !bad {
		h, bad, err = w.below(ctx, ref, level, leaf)
	}
	if err != nil {
		return h, err
	}
	if bad {
		h.Bytes, w.blind = ref.Data, true
		if w.hit != nil {
			w.hit(leaf*manifest.LeafSize, manifest.LeafSize<<(8*level), true)
		}
	}
	if h.Bytes == 0 {
		w.clean[key] = true
	} else {
		w.hurts[key] = h
	}
	return h, nil
}

// below looks at what a page refers to. bad: the page cannot be read, which was not known.
func (w *damageWalk) below(ctx context.Context, ref manifest.Ref, level int, leaf int64) (h Hurt, bad bool, err error) {
	page, err := w.r.rawPage(ctx, ref.ID, ref.Place)
	if errs.Is(err, errs.Corrupt) {
		return Hurt{Since: time.Now()}, true, nil
	}
	if err != nil {
		return h, false, err
	}
	if level == 0 {
		l, err := manifest.DecodeLeaf(page)
		if err == nil {
			h, err = w.leaf(ctx, l, leaf*manifest.LeafSize)
		}
		return h, false, err
	}
	children, err := manifest.Children(page, level)
	for _, c := range children {
		below, err := w.page(ctx, c.Ref, level-1, leaf+int64(c.Index)<<(8*(level-1)))
		if err != nil {
			return h, false, err
		}
		h.add(below)
	}
	return h, false, err
}

func (w *damageWalk) leaf(ctx context.Context, l manifest.Leaf, base int64) (h Hurt, err error) {
	start := int64(0)
	for _, e := range l {
		off, size := base+start*chunk.Grid, (int64(e.End)-start)*chunk.Grid
		start = int64(e.End)
		if e.IsZero() {
			continue
		}
		one, bad, err := w.state(ctx, Spot{pack.Data, e.ID, e.Place})
		if err != nil {
			return h, err
		}
		if !bad {
			continue
		}
		one.Bytes = size
		h.add(one)
		if w.hit != nil {
			w.hit(off, size, false)
		}
	}
	return h, nil
}

// needed are the spots in records that some disks need, and those that a healed copy was found damaged in. errs.Corrupt: a
// page cannot be read, so nobody knows.
func (r *Reader) needed(ctx context.Context, roots []manifest.Root) (map[Spot]bool, error) {
	need := map[Spot]bool{}
	w := newDamageWalk(r)
	w.meet = func(s Spot) {
		s.Place.Stored = 0 // it does not tell spots apart
		need[s] = true
	}
	for _, root := range roots {
		if _, err := w.page(ctx, root.Ref(), root.Level, 0); err != nil {
			return nil, err
		}
	}
	if w.blind {
		return nil, errs.Text("find what points need", "", errs.Corrupt, "a manifest page cannot be read")
	}
	for s := range need {
		for range maxHops {
			next, ok := r.damage.next(ctx, s)
			if !ok {
				break
			}
			s = next
			s.Place.Stored = 0
			need[s] = true
		}
	}
	return need, nil
}

// lostRange is a stretch of a disk that cannot be read, in bytes.
type lostRange struct {
	off, end int64
	pages    bool // because a page of its manifest cannot be read
}

// lostRanges returns what is known to be damaged of a disk, in order.
func (r *Reader) lostRanges(ctx context.Context, d Disk) (lost []lostRange, err error) {
	known, err := r.damage.look(ctx)
	if err != nil {
		return nil, err
	}
	if any, err := r.damage.unhealed(ctx, known); err != nil || !any {
		return nil, err
	}
	w := newDamageWalk(r)
	w.hit = func(off, n int64, pages bool) {
		end := min(off+n, d.Root.Size)
		if k := len(lost) - 1; k >= 0 && lost[k].end == off && lost[k].pages == pages {
			lost[k].end = end
			return
		}
		lost = append(lost, lostRange{off, end, pages})
	}
	_, err = w.page(ctx, d.Root.Ref(), d.Root.Level, 0)
	return lost, err
}

// lostAt finds the first of some ranges that ends behind a byte.
func lostAt(lost []lostRange, off int64) int {
	i, _ := slices.BinarySearchFunc(lost, off, func(l lostRange, off int64) int {
		if l.end <= off {
			return -1
		}
		return 1
	})
	return i
}

// Quarantined counts what is known of damage.
type Quarantined struct {
	Chunks, Pages int64     // damaged, and not healed; of packs that are lost as a whole, as far as they are known
	LostPacks     int64     // of which nothing can be read
	Healed        int64     // chunks and pages that are damaged, and lie elsewhere as well
	Since         time.Time // when the oldest damage was found that is not healed
	Newest        time.Time // and the newest
}

// Quarantined counts what is known of damage. It reads records, not packs.
func (r *Reader) Quarantined(ctx context.Context) (out Quarantined, err error) {
	known, err := r.damage.reread(ctx)
	if err != nil {
		return out, err
	}
	seen := func(t time.Time) {
		if out.Since.IsZero() || t.Before(out.Since) {
			out.Since = t
		}
		if t.After(out.Newest) {
			out.Newest = t
		}
	}
	for key := range known {
		rec, err := r.damage.record(ctx, key)
		if err != nil {
			return out, err
		}
		if rec == nil {
			continue
		}
		if !rec.Lost.IsZero() {
			out.LostPacks++
			seen(rec.Lost)
		}
		for _, e := range rec.Entries {
			since, bad, err := r.damage.resolve(ctx, Spot{key.kind, e.ID, e.Place(key.number)})
			switch {
			case err != nil:
				return out, err
			case !bad:
				out.Healed++
				continue
			case key.kind == pack.Meta:
				out.Pages++
			default:
				out.Chunks++
			}
			seen(since)
		}
	}
	return out, nil
}
