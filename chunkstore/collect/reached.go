package collect

import (
	"context"
	"math/bits"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// reached is a set of places of pages and chunks.
type reached struct{ pages, chunks places }

// The grains, as shifts of a place's offset. A group takes at least 81 bytes and begins at a multiple of 16, so no two
// begin in the same 64 bytes: the set of pages is exact, as it must be, since below a page that is taken for known
// nothing is looked at.
const (
	pageShift  = 2 // 64 bytes
	chunkShift = 8 // 4 KiB
)

// maxPack is the most bytes a pack has. A place beyond it would cost memory for nothing.
const maxPack = 1 << 30

func newReached() reached {
	return reached{places{pageShift, map[uint32][]uint64{}}, places{chunkShift, map[uint32][]uint64{}}}
}

// of returns the places in packs of a kind.
func (r *reached) of(k Kind) *places {
	if k == Pages {
		return &r.pages
	}
	return &r.chunks
}

// walk adds what a tree reaches, but for what is below pages that are in except.
func (r *reached) walk(ctx context.Context, t *manifest.Tree, except *reached) error {
	var bad error
	check := func(p chunk.Place) {
		if p.ByteOffset() >= maxPack && bad == nil {
			bad = errs.Text("walk manifest", "", errs.Corrupt, "it names a place that no pack has: "+p.String())
		}
	}
	page := func(ref manifest.Ref, _ int) bool {
		check(ref.Place)
		return bad == nil && (except == nil || !except.pages.has(ref.Place)) && r.pages.add(ref.Place)
	}
	leaf := func(_ int64, l manifest.Leaf) error {
		for _, e := range l {
			if e.IsZero() {
				continue
			}
			if check(e.Place); bad != nil {
				return bad
			}
			r.chunks.add(e.Place)
		}
		return nil
	}
	if err := t.WalkPages(ctx, page, leaf); err != nil {
		return err
	}
	return bad
}

// places is a set of places, at a grain.
type places struct {
	shift int
	packs map[uint32][]uint64
}

func (s *places) at(p chunk.Place) (word int, bit uint64) {
	n := p.Offset >> s.shift
	return int(n / 64), 1 << (n % 64)
}

// add tells whether the place is new.
func (s *places) add(p chunk.Place) bool {
	word, bit := s.at(p)
	set := s.packs[p.Pack]
	if word >= len(set) {
		set = append(set, make([]uint64, word+1-len(set))...)
		s.packs[p.Pack] = set
	}
	if set[word]&bit != 0 {
		return false
	}
	set[word] |= bit
	return true
}

func (s *places) has(p chunk.Place) bool {
	word, bit := s.at(p)
	set := s.packs[p.Pack]
	return word < len(set) && set[word]&bit != 0
}

// inAny counts the places of a pack that are in at least one of some sets.
func inAny(number uint32, sets ...*places) (n int) {
	var all []uint64
	for _, s := range sets {
		set := s.packs[number]
		if more := len(set) - len(all); more > 0 {
			all = append(all, make([]uint64, more)...)
		}
		for i, w := range set {
			all[i] |= w
		}
	}
	for _, w := range all {
		n += bits.OnesCount64(w)
	}
	return n
}
