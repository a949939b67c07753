package collect

import (
	"cmp"
	"context"
	"slices"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// content is a pack's directory, taken apart.
type content struct {
	all    []Chunk
	left   []Chunk // reached
	spare  []Chunk // not reached
	reused []Chunk // of left, those that may have been spare at first
}

// look reads a pack's directory. It is false for a pack that has to be left alone.
func (c *collection) look(ctx context.Context, p Pack) (x content, ok bool, err error) {
	x.all, err = c.Packs.Directory(ctx, p)
	if err != nil && (errs.Is(err, errs.Corrupt) || errs.Is(err, errs.Unsupported) || errs.Is(err, errs.Invalid) || errs.Is(err, errs.Denied)) {
		c.o.Logger.Warn("a pack's directory cannot be used, its space is not given back", "kind", p.Kind.String(), "pack", p.Number, "err", err)
		return x, false, nil
	}
	if err != nil {
		return x, false, err
	}
	before, after, also := c.before.of(p.Kind), c.after.of(p.Kind), c.also.of(p.Kind)
	known, last := 0, -1
	for _, e := range x.all {
		was, is := before.has(e.Place), after.has(e.Place) || also.has(e.Place)
		if !was && !is {
			x.spare = append(x.spare, e)
			continue
		}
		if x.left = append(x.left, e); !was {
			x.reused = append(x.reused, e)
		}
		if slot := int(e.Place.Offset >> before.shift); slot != last {
			known, last = known+1, slot
		}
	}
	if reached := inAny(p.Number, before, after, also); reached != known {
		c.o.Logger.Error("points need what the directory of a pack does not know, the pack is left alone: verify the store",
			"kind", p.Kind.String(), "pack", p.Number, "needed", reached, "known", known)
		return x, false, nil
	}
	return x, true, nil
}

// choose finds the packs to give back, in whole or in part, and makes the index forget what is spare in them.
func (c *collection) choose(ctx context.Context) error {
	for i, p := range c.packs {
		c.tell(Choosing, i, len(c.packs))
		if err := ctx.Err(); err != nil {
			return err
		}
		x, ok, err := c.look(ctx, p)
		if err != nil {
			return err
		}
		if !ok {
			c.res.PacksSkipped++
			continue
		}
		wanted, err := c.wants(ctx, p, &x)
		if err != nil {
			return err
		}
		if !wanted {
			c.keep(p, &x)
			continue
		}
		if c.o.DryRun {
			c.count(p, &x)
			continue
		}
		if p.Kind == Data {
			if err := c.Index.Forget(p.Number, ids(x.spare)); err != nil {
				return err
			}
		}
		c.targets = append(c.targets, p)
	}
	c.tell(Choosing, len(c.packs), len(c.packs))
	return nil
}

// wants tells whether a pack is worth the work.
func (c *collection) wants(ctx context.Context, p Pack, x *content) (bool, error) {
	if len(x.left) == 0 {
		return true, nil
	}
	if !c.unended[Pack{Kind: p.Kind, Number: p.Number}] {
		if gain, _ := c.Space.Gain(p, x.all, x.left); len(x.spare) == 0 || gain < c.o.Least {
			return false, nil
		}
	}
	err := c.Space.CanShrink(ctx, p)
	if errs.Is(err, errs.Unsupported) {
		c.o.Logger.Warn("no part of a pack can be given back", "kind", p.Kind.String(), "pack", p.Number, "err", err)
		c.res.PacksSkipped++
		return false, nil
	}
	return err == nil, err
}

// keep counts a pack that stays as it is.
func (c *collection) keep(p Pack, x *content) {
	c.countKept(p, x)
	for _, e := range x.spare {
		c.res.SpareChunks++
		c.res.SpareBytes += int64(e.Place.Stored)
	}
}

func (c *collection) countKept(p Pack, x *content) {
	if p.Kind == Pages {
		c.res.KeptPages += int64(len(x.left))
		return
	}
	c.res.KeptChunks += int64(len(x.left))
}

// count counts a pack that a dry run would give back.
func (c *collection) count(p Pack, x *content) {
	freed := p.Occupied
	if len(x.left) > 0 {
		gain, holes := c.Space.Gain(p, x.all, x.left)
		freed = max(0, gain)
		c.res.Holes += holes
	}
	c.gave(p, x, freed)
}

// gave counts what a pack has given back.
func (c *collection) gave(p Pack, x *content, freed int64) {
	r := c.res
	r.FreedBytes += freed
	whole := len(x.left) == 0
	if whole {
		r.PacksRemoved++
	} else {
		r.PacksShrunk++
	}
	c.countKept(p, x)
	switch {
	case p.Kind == Pages:
		r.Pages += int64(len(x.spare))
		r.PageBytes += freed
		return
	case whole:
		r.WholeBytes += freed
	default:
		r.HoleBytes += freed
	}
	r.Chunks += int64(len(x.spare))
}

// giveBack gives back the targets, first those that the collection before had intended: what is intended next replaces
// what was. Directories are read again: to have kept them would have cost a gigabyte for each twenty million chunks.
func (c *collection) giveBack(ctx context.Context) error {
	slices.SortStableFunc(c.targets, func(a, b Pack) int { return cmp.Compare(c.rank(a), c.rank(b)) })
	done := 0
	for some := range slices.Chunk(c.targets, intention) {
		if err := c.Journal.Intend(ctx, some); err != nil {
			return err
		}
		for _, p := range some {
			c.tell(GivingBack, done, len(c.targets))
			if err := c.givePack(ctx, p); err != nil {
				return err
			}
			done++
		}
	}
	c.tell(GivingBack, done, done)
	return nil
}

// rank puts what was begun before what was not.
func (c *collection) rank(p Pack) int {
	if c.unended[Pack{Kind: p.Kind, Number: p.Number}] {
		return 0
	}
	return 1
}

func (c *collection) givePack(ctx context.Context, p Pack) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	x, ok, err := c.look(ctx, p)
	if err != nil {
		return err
	}
	if !ok {
		c.res.PacksSkipped++
		return nil
	}
	return c.give(ctx, p, &x)
}

func (c *collection) give(ctx context.Context, p Pack, x *content) error {
	c.res.Reused += int64(len(x.reused))
	if len(x.left) == 0 {
		freed, err := c.Space.Remove(ctx, p)
		if err == nil {
			c.gave(p, x, freed)
		}
		return err
	}
	if wanted, err := c.wants(ctx, p, x); err != nil {
		return err
	} else if !wanted { // so much of it came into use again that what is spare may stay as well
		c.keep(p, x)
		return c.learn(p, x.all, len(x.all))
	}
	freed, holes, err := c.Space.Shrink(ctx, p, x.left)
	if err != nil {
		return err
	}
	c.res.Holes += holes
	c.gave(p, x, freed)
	return c.learn(p, x.reused, len(x.left))
}

// learn tells the index of a data pack.
func (c *collection) learn(p Pack, chunks []Chunk, left int) error {
	if p.Kind != Data {
		return nil
	}
	return c.Index.Learn(p.Number, chunks, left)
}

func ids(entries []Chunk) []chunk.ID {
	out := make([]chunk.ID, len(entries))
	for i, e := range entries {
		out[i] = e.ID
	}
	return out
}
