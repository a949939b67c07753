package chunkstore

import (
	"context"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/collect"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// shrinker is what a backend has to be for parts of a pack to be given back.
type shrinker interface {
	backend.Reclaimer
	backend.Replacer
}

func (c collector) shrinker(f packFile) (shrinker, error) {
	if b, ok := c.s.b.(shrinker); ok {
		return b, nil
	}
	return nil, errs.Text("give back part of", f.name(), errs.Unsupported, "the backend cannot")
}

// fileOf returns where a pack of a collection lies.
func fileOf(p collect.Pack) packFile { return packFile{keyOf(p), formOf(p.Compact)} }

// CanShrink implements collect.Space.
func (c collector) CanShrink(ctx context.Context, p collect.Pack) error {
	f := fileOf(p)
	b, err := c.shrinker(f)
	if err != nil {
		return err
	}
	return b.CanPunch(ctx, f.name())
}

// places returns where chunks lie.
func places(chunks []collect.Chunk) []chunk.Place {
	out := make([]chunk.Place, len(chunks))
	for i, e := range chunks {
		out[i] = e.Lies
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
	return n - (pack.RestSize(len(left), p.Compact)+block-1)/block*block, len(gaps)
}

// Shrink implements collect.Space.
func (c collector) Shrink(ctx context.Context, p collect.Pack, left []collect.Chunk) (freed int64, holes int, err error) {
	f := fileOf(p)
	b, err := c.shrinker(f)
	if err != nil {
		return 0, 0, err
	}
	rest, err := c.encodeRest(ctx, f, left)
	if err != nil {
		return 0, 0, err
	}
	before, err := c.s.occupied(ctx, f.rest())
	if err != nil {
		return 0, 0, err
	}
	if err := b.Replace(ctx, f.rest(), rest); err != nil {
		return 0, 0, err
	}
	c.s.dirs.Invalidate(f.number)
	gaps, _ := pack.Gaps(p.Size, places(left))
	if freed, err = b.Punch(ctx, f.name(), gaps); err != nil {
		return 0, 0, err
	}
	after, err := c.s.occupied(ctx, f.rest())
	return freed + before - after, len(gaps), err
}

// encodeRest makes the rest of a pack from its directory. Both are in the order of places.
func (c collector) encodeRest(ctx context.Context, f packFile, left []collect.Chunk) (rest []byte, err error) {
	err = c.s.packs.use(ctx, f.packKey, func(r *pack.Reader) error {
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
			return errs.Text("write directory of", f.name(), errs.Bug, "what is left is not in the directory")
		}
		rest, err = r.EncodeRest(dir[:n])
		return err
	})
	return rest, err
}

// Remove implements collect.Space. The rest goes last: alone, it is known for a leftover.
func (c collector) Remove(ctx context.Context, p collect.Pack) (freed int64, err error) {
	f := fileOf(p)
	if b, ok := c.s.b.(backend.Reclaimer); ok {
		freed, err = b.Discard(ctx, f.name())
	} else {
		freed, err = p.Occupied, c.s.b.Remove(ctx, f.name())
	}
	if err != nil {
		return 0, err
	}
	c.s.packs.forget(f.packKey)
	c.s.dirs.Invalidate(f.number)
	beside, err := c.s.occupied(ctx, f.rest())
	if err != nil {
		return freed, err
	}
	err = c.s.b.Remove(ctx, f.rest())
	if errs.Is(err, errs.NotFound) {
		return freed, nil
	}
	return freed + beside, err
}
