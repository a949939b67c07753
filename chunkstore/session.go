package chunkstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/index"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Session writes one restore point: Ingest its disks, then Commit, or Abort. Until Commit returns nil nobody sees
// anything of it. Several sessions may run at once; one session is used by one goroutine.
type Session struct {
	s       *Store
	point   Point
	data    *packer
	meta    *packer
	stats   Stats
	asked   atomic.Int64 // look-ups in the index
	mu      sync.Mutex
	fresh   map[chunk.ID]chunk.Place // written by this session and not yet in the index
	batch   []index.Entry            // the same, of the open pack, in order
	done    bool
	broken  error    // why a disk could not be stored
	leases  []func() // gives back the leases on parents
	healing healing
	ended   chan struct{} // closed when the session can do nothing any more
}

// Stats counts what a session did.
type Stats struct {
	NewBytes    int64 // of chunks the store had not seen before, uncompressed
	KnownBytes  int64 // of chunks that were compared or looked up and found
	StoredBytes int64 // added to the store: packs and the point's record
	NewChunks   int64
	LookUps     int64 // in the index: for chunks that neither the parent has in their place nor this session has written
}

// Begin starts a point. labels and config are kept with it as they are.
func (s *Store) Begin(when time.Time, labels map[string]string, config []byte) *Session {
	x := &Session{
		s: s, fresh: map[chunk.ID]chunk.Place{},
		point: Point{ID: NewPointID(), Time: when.UTC(), Labels: maps.Clone(labels), Config: slices.Clone(config)},
	}
	x.data = &packer{s: s, kind: pack.Data, sealed: x.indexPack}
	x.meta = &packer{s: s, kind: pack.Meta}
	s.enter(x)
	if err := s.readQuarantine(context.Background()); err != nil {
		s.log.Error("what is known of damage cannot be read", "err", err)
	}
	return x
}

// enter lists a session among those that a collection must know of.
func (s *Store) enter(x *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.ended = make(chan struct{})
	s.sessions[x] = s.last
}

// leave ends what enter began, and gives back the parents. The point is committed by then, or will never be.
func (x *Session) leave() {
	for _, release := range x.leases {
		release()
	}
	x.s.mu.Lock()
	delete(x.s.sessions, x)
	x.s.mu.Unlock()
	close(x.ended)
}

// Stats returns what was counted so far.
func (x *Session) Stats() Stats {
	st := x.stats
	st.LookUps = x.asked.Load()
	st.StoredBytes += x.data.bytes + x.meta.bytes
	return st
}

// usable tells whether the session may go on.
func (x *Session) usable(op string) error {
	if x.done {
		return errs.Text(op, string(x.point.ID), errs.Bug, "the session has ended")
	}
	if x.broken != nil {
		return errs.New(op, string(x.point.ID), errs.Invalid, fmt.Errorf("a disk of the point could not be stored: %w", x.broken)).
			WithNext("Run the backup again: what was stored so far is found then.")
	}
	return nil
}

// known finds a chunk that is in the store already. A damaged index counts as "no": the chunk is stored once more.
func (x *Session) known(ctx context.Context, id chunk.ID) (chunk.Place, bool) {
	x.mu.Lock()
	p, ok := x.fresh[id]
	x.mu.Unlock()
	if ok {
		return p, true
	}
	x.asked.Add(1)
	p, ok, err := x.s.index.Get(id)
	if err != nil {
		x.s.log.Warn("index read failed, storing the chunk once more", "err", err)
		return chunk.Place{}, false
	}
	if ok = ok && x.s.holds(ctx, id, p); ok {
		x.healsFrom(ctx, id, p)
	}
	return p, ok
}

// keepChunk appends a chunk, unless this session has written it meanwhile.
func (x *Session) keepChunk(ctx context.Context, d chunk.Digest, c pack.Compressed, plain int) (chunk.Place, error) {
	x.mu.Lock()
	p, ok := x.fresh[d.ID()]
	x.mu.Unlock()
	if ok {
		x.stats.KnownBytes += int64(plain)
		return p, nil
	}
	p, err := x.data.append(ctx, d, c)
	if err != nil {
		return p, err
	}
	x.mu.Lock()
	x.fresh[d.ID()] = p
	x.mu.Unlock()
	x.batch = append(x.batch, index.Entry{ID: d.ID(), Place: p})
	x.heals(pack.Data, d.ID(), p)
	x.stats.NewBytes += int64(plain)
	x.stats.NewChunks++
	// Only now, with this chunk in the batch: the seal puts the batch into the index as all that the pack holds.
	return p, x.data.sealIfFull()
}

// indexPack runs when a data pack is sealed: only now may others find its chunks.
func (x *Session) indexPack(number uint32) error {
	if err := x.s.index.Put(x.batch); err != nil {
		return err
	}
	if err := x.s.index.MarkPack(number, len(x.batch)); err != nil {
		return err
	}
	x.mu.Lock()
	clear(x.fresh)
	x.mu.Unlock()
	x.batch = x.batch[:0]
	x.flushHeals(context.Background(), pack.Data)
	return nil
}

// pages keeps manifest pages in the session's meta pack.
type pages struct{ x *Session }

var _ manifest.Sink = pages{}

// Digest implements manifest.Sink.
func (p pages) Digest(page []byte) (chunk.Digest, error) {
	return manifest.PageDigest(p.x.s.digestKey[:], page)
}

// Put implements manifest.Sink.
func (p pages) Put(ctx context.Context, d chunk.Digest, page []byte) (chunk.Place, error) {
	c := pack.Compress(p.x.s.codec, page)
	defer c.Release()
	place, err := p.x.meta.append(ctx, d, c)
	if err == nil {
		p.x.heals(pack.Meta, d.ID(), place)
		err = p.x.meta.sealIfFull()
	}
	return place, err
}

// Commit makes the point visible and durable and returns it. The order is the store's promise: data packs are sealed,
// then indexed; then the manifest's pages are sealed; then the record, whose appearance is the only commit point.
func (x *Session) Commit(ctx context.Context) (*Point, error) {
	if err := x.usable("commit point"); err != nil {
		return nil, err
	}
	p, err := x.commit(ctx)
	if err != nil {
		x.Abort()
		return nil, errs.Wrap("commit point", string(x.point.ID), err)
	}
	x.done = true
	x.leave()
	return p, nil
}

func (x *Session) commit(ctx context.Context) (*Point, error) {
	if len(x.point.Disks) == 0 {
		return nil, errs.Text("commit point", string(x.point.ID), errs.Invalid, "it has no disks")
	}
	if err := x.data.seal(); err != nil {
		return nil, err
	}
	if err := x.meta.seal(); err != nil {
		return nil, err
	}
	x.flushHeals(ctx, pack.Meta)
	record, err := encodePoint(x.s.key.PointKey(), &x.point)
	if err != nil {
		return nil, err
	}
	if err := x.s.b.Put(ctx, pointName(x.point.ID), record); err != nil {
		x.retract(ctx, err)
		return nil, err
	}
	x.stats.StoredBytes += int64(len(record))
	return &x.point, nil
}

// retract removes a record whose Put failed: if only its last sync did, the record is there, and nobody may see a point
// that was not committed. If that fails too, a point is seen that is whole all the same.
func (x *Session) retract(ctx context.Context, why error) {
	if errs.Is(why, errs.Exists) {
		return // somebody else's
	}
	err := x.s.b.Remove(context.WithoutCancel(ctx), pointName(x.point.ID))
	if err != nil && !errs.Is(err, errs.NotFound) {
		x.s.log.Warn("the record of a failed point may be left", "point", string(x.point.ID), "err", err)
	}
}

// Abort ends the session without a point. Data packs that can still be sealed are kept: the next backup finds their
// chunks and need not store them again. It is safe to call after Commit, and more than once.
func (x *Session) Abort() {
	if x.done {
		return
	}
	x.done = true
	defer x.leave()
	for _, p := range []*packer{x.data, x.meta} {
		if err := p.salvage(); err != nil {
			x.s.log.Warn("unfinished pack left for recovery", "err", err)
		}
	}
	x.flushHeals(context.Background())
}

// packer writes a row of packs of one kind.
type packer struct {
	s      *Store
	kind   pack.Kind
	sealed func(number uint32) error // called after a pack was sealed; may be nil
	w      *pack.Writer
	name   string
	number uint32
	bytes  int64 // of finished packs
	failed bool
}

func (p *packer) append(ctx context.Context, d chunk.Digest, c pack.Compressed) (chunk.Place, error) {
	if p.w == nil {
		if err := p.begin(ctx); err != nil {
			return chunk.Place{}, err
		}
	}
	place, err := p.w.Append(d, c)
	if err != nil {
		p.failed = true
	}
	return place, err
}

// sealIfFull seals the open pack if it has reached its size.
func (p *packer) sealIfFull() error {
	if p.w == nil || p.w.Size() < p.s.packSize {
		return nil
	}
	return p.seal()
}

func (p *packer) begin(ctx context.Context) error {
	number, err := p.s.nextPack()
	if err != nil {
		return err
	}
	name := packName(p.kind, number)
	a, err := p.s.b.Append(ctx, name)
	if err != nil {
		return err
	}
	w, err := pack.NewWriter(a, pack.WriterOptions{
		Kind: p.kind, StoreUUID: [16]byte(p.s.super.UUID), PackUUID: [16]byte(NewUUID()), Number: number,
		Master: p.s.key, Created: time.Now(), Name: name,
	})
	if err != nil {
		_ = a.Close()
		return err
	}
	p.w, p.name, p.number = w, name, number
	return nil
}

// seal makes the open pack durable and complete, and only then lets the index know: whoever finds a chunk there finds it
// in a sealed pack, which nothing takes away (docs/adr/0001 has the reason).
func (p *packer) seal() error {
	if p.w == nil {
		return nil
	}
	if err := p.w.Seal(); err != nil {
		p.failed = true
		return err
	}
	p.bytes += p.w.Size()
	p.w = nil
	if p.sealed == nil {
		return nil
	}
	return p.sealed(p.number)
}

// salvage ends the open pack after a failure. A data pack that can still be sealed is kept; any other is removed:
// nothing refers to it, and on a full disk its space is what is needed most. What cannot be removed is left to recovery.
func (p *packer) salvage() error {
	if p.w == nil {
		return nil
	}
	w := p.w
	if !p.failed && p.kind == pack.Data && p.seal() == nil {
		return nil
	}
	p.w = nil
	if err := w.Abort(); err != nil {
		p.s.log.Warn("giving up a pack", "pack", p.name, "err", err)
	}
	return p.s.b.Remove(context.Background(), p.name)
}
