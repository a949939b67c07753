package chunkstore

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/collect"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// collectionName is the journal of collections. It never changes.
const collectionName = "collection"

// collectionRecord says what a collection may have begun, and what the store must not forget when packs are removed:
// the highest number it has given out. A number that was given out twice could lead a reader that has the old pack open
// into the wrong file. Its JSON is a stored format (docs/format/store.md).
type collectionRecord struct {
	LastPack uint32    `json:"last_pack"`
	Data     []uint32  `json:"data,omitempty"` // packs that may be half given back
	Meta     []uint32  `json:"meta,omitempty"`
	Ended    time.Time `json:"ended,omitzero"` // of the last collection that came to its end
}

// loadCollection reads the journal when the store is opened. Without it nothing is lost but space that was about to be
// given back.
func (s *Store) loadCollection(ctx context.Context) error {
	var r collectionRecord
	err := s.readSmall(ctx, collectionName, &r)
	switch {
	case errs.Is(err, errs.NotFound):
	case errs.Is(err, errs.Corrupt):
		s.log.Error("the journal of collections cannot be read, and is begun anew", "name", collectionName, "err", err)
		r = collectionRecord{}
	case err != nil:
		return err
	}
	s.collection.log = r
	s.last = max(s.last, r.LastPack)
	return nil
}

// keepCollection writes the journal. s.running is held.
func (s *Store) keepCollection(ctx context.Context, r collectionRecord) error {
	s.mu.Lock()
	r.LastPack = s.last
	s.mu.Unlock()
	err := s.keepSmall(ctx, collectionName, r)
	if err == nil {
		s.collection.log = r
	}
	return err
}

// Unfinished implements collect.Journal.
func (c collector) Unfinished() (out []collect.Pack) {
	for _, n := range c.s.collection.log.Data {
		out = append(out, collect.Pack{Kind: collect.Data, Number: n})
	}
	for _, n := range c.s.collection.log.Meta {
		out = append(out, collect.Pack{Kind: collect.Pages, Number: n})
	}
	return out
}

// Intend implements collect.Journal.
func (c collector) Intend(ctx context.Context, packs []collect.Pack) error {
	r := collectionRecord{Ended: c.s.collection.log.Ended}
	for _, p := range packs {
		if p.Kind == collect.Data {
			r.Data = append(r.Data, p.Number)
		} else {
			r.Meta = append(r.Meta, p.Number)
		}
	}
	return c.s.keepCollection(ctx, r)
}

// End implements collect.Journal.
func (c collector) End(ctx context.Context) error {
	return c.s.keepCollection(ctx, collectionRecord{Ended: time.Now().UTC().Truncate(time.Second)})
}
