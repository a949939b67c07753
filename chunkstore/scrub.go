package chunkstore

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/chunkstore/scrub"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The objects of scrubbing; docs/format/store.md. These never change.
const (
	scrubName    = "scrub"
	verifiedName = "verified"
)

// Pass is one look at the whole store, as a scrub or a verification ended it. Its JSON is a stored format.
type Pass struct {
	Began   time.Time `json:"began"`
	Ended   time.Time `json:"ended"`
	Quick   bool      `json:"quick,omitempty"` // content was not read
	Packs   int64     `json:"packs"`
	Bytes   int64     `json:"bytes"`            // that were read and hashed again, as they are before compression
	Found   int64     `json:"found"`            // chunks and pages that were found damaged, which was not known
	Lifted  int64     `json:"lifted,omitempty"` // that were in quarantine, and are good again
	Faults  int64     `json:"faults"`           // what is not as it was stored, and not healed
	Objects []string  `json:"objects,omitempty"`
}

// maxObjects bounds how many damaged objects a pass names.
const maxObjects = 20

func (p *Pass) name(object string) {
	if len(p.Objects) < maxObjects && !slices.Contains(p.Objects, object) {
		p.Objects = append(p.Objects, object)
	}
}

// scrubRecord is the cursor of scrubbing, and what must not be forgotten over a restart. Its JSON is a stored format.
type scrubRecord struct {
	Pass *Pass     `json:"pass,omitempty"` // that is not at its end
	Kind string    `json:"kind,omitempty"` // of the last pack it has looked at, and its number
	Pack uint32    `json:"pack,omitempty"`
	Last *Pass     `json:"last,omitempty"` // that came to its end
	Told time.Time `json:"told,omitzero"`  // damage that was found up to then was told of
}

// done tells whether the pass has looked at a pack. Packs are looked at in the order of sealedPacks.
func (r *scrubRecord) done(key packKey) bool {
	if r.Kind == "" {
		return false
	}
	rank := func(kind string) int {
		if kind == pack.Meta.String() {
			return 0
		}
		return 1
	}
	if c := cmp.Compare(rank(key.kind.String()), rank(r.Kind)); c != 0 {
		return c < 0
	}
	return key.number <= r.Pack
}

// scrubbing is what a Store keeps of its scrubs.
type scrubbing struct {
	passing sync.Mutex // held by the one that runs
	noting  sync.Mutex // held while the record is changed; I/O is done under it
}

// ScrubOptions say how to scrub.
type ScrubOptions struct {
	Plan scrub.Plan
	// Busy tells whether the store has something better to do: then the scrub waits, unless it is late. Backups that run
	// are known anyway. May be nil.
	Busy func() bool
	// Ended is told when a pass has come to its end. May be nil.
	Ended func(Pass)
	pause time.Duration // between two looks at whether there is something to do; default 1 s. Tests make it short
}

// Scrub reads all packs again and again, as the plan says, until ctx ends, which is no error; nothing is read within a
// moment then. What is found damaged is written down. It goes on where the last one was cut short, at the pack. One scrub
// runs at a time: errs.Busy.
func (s *Store) Scrub(ctx context.Context, o ScrubOptions) error {
	if !s.passing.TryLock() {
		return errs.Text("scrub", s.dir, errs.Busy, "a scrub is running")
	}
	defer s.passing.Unlock()
	if o.pause <= 0 {
		o.pause = time.Second
	}
	for {
		err := s.scrubOnce(ctx, o)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return errs.Wrap("scrub", s.dir, err)
		}
	}
}

// scrubOnce waits until it is time for a pass, and brings it to its end.
func (s *Store) scrubOnce(ctx context.Context, o ScrubOptions) error {
	r, err := s.scrubRecord(ctx)
	if err != nil {
		return err
	}
	if r.Pass == nil {
		if err := s.awaitPass(ctx, o); err != nil {
			return err
		}
		err := s.noteScrub(ctx, func(r *scrubRecord) {
			r.Pass, r.Kind, r.Pack = &Pass{Began: time.Now().UTC()}, "", 0
		})
		if err != nil {
			return err
		}
		if r, err = s.scrubRecord(ctx); err != nil {
			return err
		}
	}
	x := scrubber{s: s, o: o, rec: r}
	return x.run(ctx)
}

// awaitPass waits until the plan wants a pass. A verification of the whole store counts as one.
func (s *Store) awaitPass(ctx context.Context, o ScrubOptions) error {
	for {
		st, err := s.ScrubStatus(ctx)
		if err != nil {
			return err
		}
		last := time.Time{}
		if st.Last != nil {
			last = st.Last.Began
		}
		if v := st.Verified; v != nil && !v.Quick && v.Began.After(last) {
			last = v.Began
		}
		wait := time.Until(o.Plan.Next(last))
		if wait <= 0 {
			return nil
		}
		if err := sleep(ctx, min(wait, 10*time.Minute)); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// scrubRecord reads the cursor. Without it nothing is lost but where the pass was.
func (s *Store) scrubRecord(ctx context.Context) (r scrubRecord, err error) {
	err = s.readSmall(ctx, scrubName, &r)
	switch {
	case errs.Is(err, errs.NotFound):
		err = nil
	case errs.Is(err, errs.Corrupt):
		s.log.Error("the cursor of scrubbing cannot be read, and is begun anew", "name", scrubName, "err", err)
		r, err = scrubRecord{}, nil
	}
	return r, err
}

// noteScrub changes the record, durably.
func (s *Store) noteScrub(ctx context.Context, f func(*scrubRecord)) error {
	s.noting.Lock()
	defer s.noting.Unlock()
	r, err := s.scrubRecord(ctx)
	if err != nil {
		return err
	}
	f(&r)
	return s.keepSmall(ctx, scrubName, r)
}

// backingUp tells whether a session runs.
func (s *Store) backingUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions) > 0
}

// ScrubStatus says how scrubbing goes.
type ScrubStatus struct {
	Pass     *Pass // that is on its way; its Ended is zero
	Left     int64 // bytes of packs that it has not looked at
	Last     *Pass // that came to its end
	Verified *Pass // the last verification of the whole store
}

// ScrubStatus reads how scrubbing goes, in this process or another. What cannot be read is left out.
func (r *Reader) ScrubStatus(ctx context.Context) (ScrubStatus, error) {
	var rec scrubRecord
	var out ScrubStatus
	if err := r.readSmall(ctx, scrubName, &rec); err != nil && !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.Corrupt) {
		return out, err
	}
	var v Pass
	err := r.readSmall(ctx, verifiedName, &v)
	if err == nil {
		out.Verified = &v
	} else if !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.Corrupt) {
		return out, err
	}
	out.Pass, out.Last = rec.Pass, rec.Last
	if rec.Pass == nil {
		return out, nil
	}
	packs, err := r.sealedPacks(ctx)
	for _, p := range packs {
		if !rec.done(p.packKey) {
			out.Left += p.size
		}
	}
	return out, err
}

// KeepVerified notes the result of a VerifyStore that began at a time, for ScrubStatus.
func (r *Reader) KeepVerified(ctx context.Context, v Verified, quick bool, began time.Time) error {
	p := Pass{
		Began: began.UTC(), Ended: time.Now().UTC(), Quick: quick, Packs: v.Packs, Bytes: v.Bytes,
		Found: v.Quarantined, Lifted: v.Lifted, Faults: v.FaultCount,
	}
	for _, f := range v.Faults {
		p.name(f.Object)
	}
	return r.damage.locked(ctx, verifiedName, func() error { return r.keepSmall(ctx, verifiedName, p) })
}

// NewDamage returns when the newest damage was found that nobody was told of yet, the zero time if there is none.
func (s *Store) NewDamage(ctx context.Context) (time.Time, error) {
	q, err := s.Quarantined(ctx)
	if err != nil || q.Newest.IsZero() {
		return time.Time{}, err
	}
	r, err := s.scrubRecord(ctx)
	if err != nil || !q.Newest.After(r.Told) {
		return time.Time{}, err
	}
	return q.Newest, nil
}

// ToldOfDamage notes, durably, that a person was told of all damage that was found up to a time.
func (s *Store) ToldOfDamage(ctx context.Context, until time.Time) error {
	return s.noteScrub(ctx, func(r *scrubRecord) { r.Told = until })
}
