package chunkstore

import (
	"context"
	"fmt"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// plan turns extents into jobs, one for each leaf that may differ from the parent's.
func (in *ingest) plan(ctx context.Context, emit func(*job) error) error {
	p := planner{in: in, emit: emit}
	err := in.extents(ctx, func(e Extent) error {
		if e.Off != p.pos || e.Len < 0 || e.Off+e.Len > in.size {
			return errs.Text("read extents", fmt.Sprintf("%d+%d", e.Off, e.Len), errs.Bug, "the source leaves a gap or goes beyond the end")
		}
		if e.Kind > ExtentUnchanged {
			return errs.Text("read extents", fmt.Sprintf("%d+%d", e.Off, e.Len), errs.Bug, fmt.Sprintf("there is no kind %d", e.Kind))
		}
		if e.Kind == ExtentUnchanged && (in.old == nil || e.Off+e.Len > in.old.Root.Size) {
			return errs.Text("read extents", fmt.Sprintf("%d+%d", e.Off, e.Len), errs.Bug, "unchanged where the parent has nothing")
		}
		return p.add(ctx, e)
	})
	if err != nil {
		return err
	}
	if p.pos != in.size {
		return errs.Text("read extents", fmt.Sprint(p.pos), errs.Bug, "the source ends before the disk does")
	}
	return p.flush(ctx)
}

type planner struct {
	in    *ingest
	emit  func(*job) error
	pos   int64
	n     int64 // the open leaf
	kinds *blockKinds
	seen  [3]bool // kinds that the open leaf has
}

func (p *planner) add(ctx context.Context, e Extent) error {
	end := e.Off + e.Len
	for p.pos < end {
		if skipped, err := p.skip(ctx, e.Kind, end); err != nil {
			return err
		} else if skipped {
			continue
		}
		leafEnd := (p.n + 1) * manifest.LeafSize
		to := min(end, leafEnd)
		p.mark(p.pos, to, e.Kind)
		p.pos = to
		if to == leafEnd {
			if err := p.flush(ctx); err != nil {
				return err
			}
			p.n++
		}
	}
	return nil
}

// skip passes over whole leaves that need no look: the tree already says what the extent says. Of the parent's tree it
// looks only at inner pages, so that a large hole costs next to nothing.
func (p *planner) skip(ctx context.Context, kind ExtentKind, end int64) (bool, error) {
	whole := (end - p.pos) / manifest.LeafSize
	if whole == 0 || p.pos%manifest.LeafSize != 0 {
		return false, nil
	}
	switch {
	case kind == ExtentUnchanged && !p.in.rebuild:
	case kind == ExtentZero && (p.in.old == nil || p.in.rebuild):
	case kind == ExtentZero:
		next, err := p.in.old.NextData(ctx, p.n)
		if err != nil {
			return false, err
		}
		if next < p.in.old.Leaves() {
			whole = min(whole, next-p.n)
		}
	default:
		return false, nil
	}
	p.pos += whole * manifest.LeafSize
	p.n += whole
	return whole > 0, nil
}

// extentCut is the last block of a disk that was shortened to the middle of it: the parent's content, but zeros behind
// the end. It is no kind a source can give.
const extentCut = ExtentUnchanged + 1

// mark notes the kind of [from, to). A block with two kinds in it is data; the block at the very end of the disk takes
// its padding's zeros along.
func (p *planner) mark(from, to int64, kind ExtentKind) {
	if p.kinds == nil {
		p.kinds = new(blockKinds)
		for i := range p.kinds {
			p.kinds[i] = ExtentZero
		}
		p.seen = [3]bool{}
	}
	base := p.n * manifest.LeafSize
	first, last := (from-base)/chunk.Grid, (to-base+chunk.Grid-1)/chunk.Grid
	for b := first; b < last; b++ {
		k := kind
		if b == first && (from-base)%chunk.Grid != 0 && p.kinds[b] != kind {
			k = ExtentData
		}
		p.seen[k] = true
		if k == ExtentUnchanged && p.in.rebuild && (p.n*manifest.LeafSize)+(b+1)*chunk.Grid > p.in.size {
			k = extentCut
		}
		p.kinds[b] = k
	}
}

func (p *planner) flush(ctx context.Context) error {
	if p.kinds == nil {
		return nil
	}
	kinds := p.kinds
	p.kinds = nil
	if !p.seen[ExtentData] {
		if !p.seen[ExtentZero] && !p.in.rebuild {
			return nil // all unchanged: the tree has it already
		}
		if !p.seen[ExtentUnchanged] {
			if p.in.old == nil || p.in.rebuild {
				return nil
			}
			kinds = nil
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return p.emit(&job{n: p.n, kinds: kinds})
}
