package chunkstore

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/chunkstore/scrub"
)

// scrubber is one pass, or what is left of it.
type scrubber struct {
	s       *Store
	o       ScrubOptions
	rec     scrubRecord
	left    int64 // bytes of packs that were not looked at
	pacer   scrub.Pacer
	since   int64 // bytes read since the last look around
	late    bool  // was told of
	copies  []heal
	current packKey
}

func (x *scrubber) run(ctx context.Context) error {
	packs, err := x.s.sealedPacks(ctx)
	if err != nil {
		return err
	}
	var todo []sealedPack
	for _, p := range packs {
		if !x.rec.done(p.packKey) {
			todo = append(todo, p)
			x.left += p.size
		}
	}
	for _, p := range todo {
		if err := x.pack(ctx, p); err != nil {
			return err
		}
	}
	return x.end(ctx)
}

// lookEvery is after how many bytes it looks whether others have something better to do.
const lookEvery = 256 << 10

// pace waits as the plan says, and while others are busy.
func (x *scrubber) pace(ctx context.Context, n int64) error {
	if x.since += n; x.since < lookEvery {
		return ctx.Err()
	}
	read := x.since
	x.since = 0
	began := x.rec.Pass.Began
	for !x.o.Plan.Late(began, time.Now()) && (x.s.backingUp() || x.o.Busy != nil && x.o.Busy()) {
		if err := sleep(ctx, x.o.pause); err != nil {
			return err
		}
	}
	rate, inTime := x.o.Plan.Rate(began, time.Now(), x.left)
	if !inTime && !x.late {
		x.late = true
		x.s.log.Warn("the scrub is not done in time at the rate that it may have", "left", x.left, "rate", rate, "period", x.o.Plan.Period)
	}
	x.pacer.Rate = rate
	return sleep(ctx, x.pacer.Read(read, time.Now()))
}

// pack looks at one pack, and moves the cursor behind it.
func (x *scrubber) pack(ctx context.Context, p sealedPack) error {
	x.copies, x.current = nil, p.packKey
	rep, err := x.s.checkPack(ctx, p.packKey, packLook{
		pace: func(n int64) error { return x.pace(ctx, n) },
		good: x.good,
	})
	if err != nil {
		return err
	}
	done, err := x.s.settle(ctx, rep)
	if err != nil {
		return err
	}
	x.s.healFrom(ctx, x.copies)
	x.left -= p.size
	faults := int64(len(rep.faults))
	for s := range rep.bad {
		if _, bad, err := x.s.damage.resolve(ctx, s); bad || err != nil {
			faults++
		}
	}
	err = x.s.noteScrub(ctx, func(r *scrubRecord) {
		if r.Pass == nil { // the record was lost meanwhile
			r.Pass = x.rec.Pass
		}
		r.Kind, r.Pack = p.kind.String(), p.number
		r.Pass.Packs++
		r.Pass.Bytes += rep.bytes
		r.Pass.Found += int64(done.found)
		r.Pass.Lifted += int64(done.lifted)
		if r.Pass.Faults += faults; faults > 0 {
			r.Pass.name(packName(p.kind, p.number))
		}
	})
	return err
}

// good notes a copy of what is damaged elsewhere.
func (x *scrubber) good(e pack.DirEntry) {
	k := wantedKey{x.current.kind, e.Digest.ID()}
	if x.s.wanted.has(k) {
		x.copies = append(x.copies, heal{k, e.Place})
	}
}

// end looks at what is not in packs, and at whether all that points need is there at all; then the pass is over.
func (x *scrubber) end(ctx context.Context) error {
	w := newStoreWalk(x.s.Reader, VerifyOptions{})
	if err := w.beside(ctx); err != nil {
		return err
	}
	var ended Pass
	err := x.s.noteScrub(ctx, func(r *scrubRecord) {
		if r.Pass == nil {
			r.Pass = x.rec.Pass
		}
		p := r.Pass
		p.Ended = time.Now().UTC()
		p.Found += w.out.Quarantined
		p.Faults += w.out.FaultCount
		for _, f := range w.out.Faults {
			p.name(f.Object)
		}
		ended = *p
		r.Last, r.Pass, r.Kind, r.Pack = p, nil, "", 0
	})
	if err != nil {
		return err
	}
	if ended.Faults > 0 {
		x.s.log.Error("a scrub has found the store damaged", "faults", ended.Faults, "new", ended.Found, "objects", ended.Objects)
	} else {
		x.s.log.Info("a scrub has read the whole store, and found no damage", "packs", ended.Packs, "bytes", ended.Bytes)
	}
	if x.o.Ended != nil {
		x.o.Ended(ended)
	}
	return nil
}
