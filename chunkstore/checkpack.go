package chunkstore

import (
	"bytes"
	"context"
	"fmt"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/chunkstore/quarantine"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// packReport is what a look at all of a pack has found.
type packReport struct {
	key    packKey
	gone   bool // the pack does not exist any more
	chunks int64
	bytes  int64          // of chunks, uncompressed, that were hashed
	bad    map[Spot]error // chunks and pages that cannot be used
	faults []error        // what is wrong with the pack itself, or lies where no chunk is known
	lost   bool           // nothing in it can be read

	record     *quarantine.Record // what was known of damage in it
	unreadable bool               // that cannot be read
	reopened   bool               // it was lost, and is not any more
	sound      map[Spot]bool      // what is in the record, and good
}

// news tells whether the report says anything that the record does not, or the other way round.
func (rep *packReport) news() bool {
	if rep.unreadable || rep.reopened || len(rep.sound) > 0 {
		return true
	}
	for s := range rep.bad {
		if !rep.record.Lists(s.ID, s.Place) {
			return true
		}
	}
	return false
}

// packLook says how to look at a pack.
type packLook struct {
	quick bool                // at headers, not at content
	pace  func(n int64) error // told of the bytes of each chunk that was read; its error, which is ctx's, ends the look
	good  func(pack.DirEntry) // told of each chunk that is as it was stored
}

// checkPack looks at a sealed pack. If it finds anything while a collection gives back space of the pack, or all of it, it
// looks once more: what the directory named may have been given back meanwhile. The error is that of ctx.
func (r *Reader) checkPack(ctx context.Context, key packKey, how packLook) (packReport, error) {
	for {
		before, berr := r.readRest(ctx, key)
		rep, err := r.checkPackOnce(ctx, key, how)
		if err != nil || len(rep.bad)+len(rep.faults) == 0 {
			return rep, err
		}
		if there, err := r.exists(ctx, key); err == nil && !there {
			return packReport{key: key, gone: true}, ctx.Err()
		}
		after, aerr := r.readRest(ctx, key)
		if berr != nil == (aerr != nil) && bytes.Equal(before, after) {
			return rep, ctx.Err()
		}
	}
}

// readRest reads the rest of a pack. errs.NotFound: it has none.
func (r *Reader) readRest(ctx context.Context, key packKey) ([]byte, error) {
	for _, f := range key.files() {
		b, err := readObject(ctx, r.b, f.rest(), pack.MaxRest)
		if !errs.Is(err, errs.NotFound) {
			return b, err
		}
	}
	return nil, errs.Text("read rest", key.first().name(), errs.NotFound, "it has none")
}

// checkPackOnce reads a sealed pack from front to back: every chunk is decoded and named again, or, if quick, has its
// header looked at; then the bytes are looked at that belong to no chunk. The error is that of ctx.
func (r *Reader) checkPackOnce(ctx context.Context, key packKey, how packLook) (packReport, error) {
	rep := packReport{key: key, bad: map[Spot]error{}, sound: map[Spot]bool{}}
	r.damage.forget(key) // another process may have changed it
	var err error
	if rep.record, err = r.damage.record(ctx, key); err != nil && !errs.Is(err, errs.Corrupt) {
		return rep, err
	}
	rep.unreadable = err != nil && !how.quick // what is lost with it is only found again by a look at everything
	p, err := r.openPack(ctx, key)            // not from the cache: the file may have been put back since
	if err != nil {
		if errs.Is(err, errs.NotFound) {
			rep.gone = true
		} else {
			rep.faults = append(rep.faults, err)
			rep.lost = isLost(err)
		}
		return rep, ctx.Err()
	}
	defer p.Close()
	rep.reopened = rep.record != nil && !rep.record.Lost.IsZero()
	if how.quick {
		err = p.Headers(func(e pack.DirEntry, err error) error {
			rep.look(e, err)
			return ctx.Err()
		})
	} else {
		err = p.Scrub(func(e pack.DirEntry, plain []byte, err error) error {
			if err == nil {
				rep.bytes += int64(len(plain))
				if err = r.checkContent(key.kind, e.Digest, plain); err == nil && rep.record.Lists(e.Digest.ID(), e.Place) {
					rep.sound[Spot{key.kind, e.Digest.ID(), e.Place}] = true
				}
			}
			rep.look(e, err)
			if err == nil && how.good != nil {
				how.good(e)
			}
			if how.pace != nil && ctx.Err() == nil {
				return how.pace(int64(e.Place.Stored))
			}
			return ctx.Err()
		})
	}
	if err == nil && !how.quick {
		err = p.Padding()
	}
	if err != nil && ctx.Err() == nil {
		rep.faults = append(rep.faults, err)
	}
	return rep, ctx.Err()
}

// look notes one entry of the pack.
func (rep *packReport) look(e pack.DirEntry, err error) {
	switch {
	case err == nil:
		rep.chunks++
	case e.Digest.IsZero():
		rep.faults = append(rep.faults, err)
	default:
		rep.chunks++
		rep.bad[Spot{rep.key.kind, e.Digest.ID(), e.Place}] = err
	}
}

// checkContent tells whether what was decoded is what it is named after, to the last bit of the name.
func (r *Reader) checkContent(kind pack.Kind, want chunk.Digest, plain []byte) error {
	if kind == pack.Meta {
		return r.checkPage(want.ID(), plain)
	}
	if got := r.nameOf(plain); got != want {
		return errs.Text("verify chunk", want.String(), errs.Corrupt, "its content has another digest: "+got.String())
	}
	return nil
}

// openPack opens a pack, past the cache. errs.NotFound if there is none.
func (r *Reader) openPack(ctx context.Context, key packKey) (p *pack.Reader, err error) {
	for _, f := range key.files() {
		if p, err = r.openFile(ctx, f); !errs.Is(err, errs.NotFound) {
			break
		}
	}
	return p, err
}

func (r *Reader) openFile(ctx context.Context, f packFile) (*pack.Reader, error) {
	name := f.name()
	o, err := r.b.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	p, err := pack.Open(o, pack.ReaderOptions{
		Master: &r.key, StoreUUID: [16]byte(r.super.UUID), Name: name,
		Rest: func() ([]byte, error) {
			return readObject(context.WithoutCancel(ctx), r.b, f.rest(), pack.MaxRest)
		},
	})
	if err != nil {
		_ = o.Close()
		return nil, err
	}
	if h := p.Header(); h.Number != f.number || h.Kind != f.kind || h.Compact != (f.form == compact) {
		_ = p.Close()
		return nil, errs.Text("open pack", name, errs.Corrupt, fmt.Sprintf("it is the %s pack %d", h.Kind, h.Number)).
			WithNext("Files of the store were renamed: put them back from a copy.")
	}
	return p, nil
}

// sealedPacks lists the packs that are finished, in the order of their numbers, pages first: there are few of them, and
// all else depends on them.
func (r *Reader) sealedPacks(ctx context.Context) ([]sealedPack, error) {
	var out []sealedPack
	for _, kind := range []pack.Kind{pack.Meta, pack.Data} {
		infos, err := r.b.List(ctx, kind.String()+"/")
		if err != nil {
			return nil, errs.Wrap("list packs", r.dir, err)
		}
		for _, h := range packsIn(kind, infos) {
			if h.sealed {
				out = append(out, sealedPack{h.packKey, h.info.Size})
			}
		}
	}
	return out, nil
}

type sealedPack struct {
	packKey
	size int64
}
