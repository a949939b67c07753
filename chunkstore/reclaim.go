package chunkstore

import (
	"context"
	"strings"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/collect"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// restName is where the rest of a pack lies, if space of it was given back.
func restName(k packKey) string {
	return strings.TrimSuffix(packName(k.kind, k.number), packSuffix) + restSuffix
}

// restNumber parses the name of a rest.
func restNumber(kind pack.Kind, name string) (uint32, bool) {
	stem, ok := strings.CutSuffix(name, restSuffix)
	if !ok {
		return 0, false
	}
	return packNumber(kind, stem+packSuffix)
}

// shrinker is what a backend has to be for parts of a pack to be given back.
type shrinker interface {
	backend.Reclaimer
	backend.Replacer
}

func (c collector) shrinker(k packKey) (shrinker, error) {
	if b, ok := c.s.b.(shrinker); ok {
		return b, nil
	}
	return nil, errs.Text("give back part of", packName(k.kind, k.number), errs.Unsupported, "the backend cannot")
}

// CanShrink implements collect.Space.
func (c collector) CanShrink(ctx context.Context, p collect.Pack) error {
	k := keyOf(p)
	b, err := c.shrinker(k)
	if err != nil {
		return err
	}
	return b.CanPunch(ctx, packName(k.kind, k.number))
}

func places(chunks []collect.Chunk) []chunk.Place {
	out := make([]chunk.Place, len(chunks))
	for i, e := range chunks {
		out[i] = e.Place
	}
	return out
}

// Gain implements collect.Space. The first rest of a pack costs its own space; with a later one the gaps of the one
// before are there already.
func (c collector) Gain(p collect.Pack, all, left []collect.Chunk) (n int64, holes int) {
	const block = 4096
	gaps, n := pack.Gaps(p.Size, places(left))
	if p.HasRest {
		_, before := pack.Gaps(p.Size, places(all))
		return n - before, len(gaps)
	}
	return n - (pack.RestSize(len(left))+block-1)/block*block, len(gaps)
}

// Shrink implements collect.Space.
func (c collector) Shrink(ctx context.Context, p collect.Pack, left []collect.Chunk) (freed int64, holes int, err error) {
	k := keyOf(p)
	b, err := c.shrinker(k)
	if err != nil {
		return 0, 0, err
	}
	rest, err := c.encodeRest(ctx, k, left)
	if err != nil {
		return 0, 0, err
	}
	before, err := c.occupied(ctx, restName(k))
	if err != nil {
		return 0, 0, err
	}
	if err := b.Replace(ctx, restName(k), rest); err != nil {
		return 0, 0, err
	}
	c.s.dirs.Invalidate(k.number)
	gaps, _ := pack.Gaps(p.Size, places(left))
	if freed, err = b.Punch(ctx, packName(k.kind, k.number), gaps); err != nil {
		return 0, 0, err
	}
	after, err := c.occupied(ctx, restName(k))
	return freed + before - after, len(gaps), err
}

// encodeRest makes the rest of a pack from its directory. Both are in the order of places.
func (c collector) encodeRest(ctx context.Context, k packKey, left []collect.Chunk) (rest []byte, err error) {
	err = c.s.packs.use(ctx, k, func(r *pack.Reader) error {
		dir, err := r.Directory()
		if err != nil {
			return err
		}
		n := 0
		for _, e := range dir {
			if n < len(left) && e.Place == left[n].Place {
				dir[n] = e
				n++
			}
		}
		if n != len(left) {
			return errs.Text("write directory of", packName(k.kind, k.number), errs.Bug, "what is left is not in the directory")
		}
		rest, err = r.EncodeRest(dir[:n])
		return err
	})
	return rest, err
}

// occupied returns what an object takes, 0 if there is none.
func (c collector) occupied(ctx context.Context, name string) (int64, error) {
	infos, err := c.s.b.List(ctx, name)
	if err != nil || len(infos) == 0 {
		return 0, err
	}
	return infos[0].Occupied, nil
}

// Remove implements collect.Space. The rest goes last: alone, it is known for a leftover.
func (c collector) Remove(ctx context.Context, p collect.Pack) (freed int64, err error) {
	k := keyOf(p)
	if b, ok := c.s.b.(backend.Reclaimer); ok {
		freed, err = b.Discard(ctx, packName(k.kind, k.number))
	} else {
		freed, err = p.Occupied, c.s.b.Remove(ctx, packName(k.kind, k.number))
	}
	if err != nil {
		return 0, err
	}
	c.s.packs.forget(k)
	c.s.dirs.Invalidate(k.number)
	beside, err := c.occupied(ctx, restName(k))
	if err != nil {
		return freed, err
	}
	err = c.s.b.Remove(ctx, restName(k))
	if errs.Is(err, errs.NotFound) {
		return freed, nil
	}
	return freed + beside, err
}
