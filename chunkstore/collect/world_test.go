package collect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// world is a store that keeps nothing but what matters to a collection, with everybody who uses it. It implements all
// that a collection asks for, and between any two of its steps sessions, readers and removals act. Everything happens in
// one goroutine, in an order that follows from a seed.
type world struct {
	rng      *rand.Rand
	packs    map[packID]*packState
	last     uint32
	index    map[chunk.ID]chunk.Place
	pages    map[chunk.Place][]byte
	gone     map[chunk.Place]bool // was given back
	points   map[string]*point    // those that have a record
	removed  map[string]*point    // those whose record lies among the removed ones
	leases   map[string]int       // of readers in other processes, and of this one
	sessions map[*session]uint32
	intended []Pack
	stored   map[chunk.ID]int // how often
	ids      map[chunk.Place]chunk.ID
	moved    map[chunk.Place]chunk.Place // where content of damaged chunks lies again
	named    int
	quiet    bool // nobody acts
	killAt   int  // the step at which the process dies; negative: never
	steps    int
	readers  []*point
	fault    error // the first thing that went wrong
	waited   int
	healed   int
}

type packID struct {
	kind   Kind
	number uint32
}

type packState struct {
	chunks []Chunk // the directory
	end    uint32
	sealed bool
	marked bool
	shrunk bool
	rigid  bool // makes no holes
}

type point struct {
	name  string
	root  manifest.Root
	needs []chunk.Place
}

var errKilled = errors.New("killed")

func newWorld(seed uint64) *world {
	return &world{
		rng: rand.New(rand.NewPCG(seed, 77)), packs: map[packID]*packState{}, index: map[chunk.ID]chunk.Place{},
		pages: map[chunk.Place][]byte{}, gone: map[chunk.Place]bool{}, points: map[string]*point{}, removed: map[string]*point{},
		leases: map[string]int{}, sessions: map[*session]uint32{}, stored: map[chunk.ID]int{},
		ids: map[chunk.Place]chunk.ID{}, moved: map[chunk.Place]chunk.Place{}, killAt: -1,
	}
}

func (w *world) failf(format string, args ...any) {
	if w.fault == nil {
		w.fault = fmt.Errorf(format, args...)
	}
}

// step is called at the beginning and at the end of everything a collection asks for.
func (w *world) step() error {
	w.steps++
	if !w.quiet {
		for range w.rng.IntN(3) {
			w.act()
		}
	}
	w.check()
	if w.killAt >= 0 && w.steps >= w.killAt {
		return errKilled
	}
	return w.fault
}

// check looks for anything that somebody needs and that is gone.
func (w *world) check() {
	for _, p := range w.points {
		w.whole(p, "point")
	}
	for _, p := range w.readers {
		w.whole(p, "point that is being read")
	}
	for id, at := range w.index {
		if w.gone[at] {
			w.failf("the index knows %v at %v, which was given back", id, at)
		}
	}
	for id, p := range w.packs {
		for _, c := range p.chunks {
			if w.gone[c.Place] {
				w.failf("the directory of %v knows %v, which was given back", id, c.Place)
			}
		}
	}
}

func (w *world) whole(p *point, what string) {
	for _, at := range p.needs {
		if w.gone[at] || w.gone[w.moved[at]] {
			w.failf("%s %s needs %v, which was given back", what, p.name, at)
			return
		}
	}
}

// pick returns any of a map's values, in an order that the seed decides.
func pick[V any](w *world, m map[string]V) (v V, ok bool) {
	if len(m) == 0 {
		return v, false
	}
	names := slices.Sorted(maps.Keys(m))
	return m[names[w.rng.IntN(len(names))]], true
}

// act lets somebody do something.
func (w *world) act() {
	switch w.rng.IntN(10) {
	case 0:
		if len(w.sessions) < 3 {
			w.begin()
		}
	case 1, 2, 3, 4, 5:
		if x := w.anySession(); x != nil {
			x.goOn()
		}
	case 6:
		if p, ok := pick(w, w.points); ok && len(w.readers) < 4 {
			w.leases[p.name]++ // the record is there, so the lease counts
			w.readers = append(w.readers, p)
		}
	case 7:
		if n := len(w.readers); n > 0 {
			i := w.rng.IntN(n)
			w.leases[w.readers[i].name]--
			w.readers = slices.Delete(w.readers, i, i+1)
		}
	case 8:
		w.damage()
	default:
		if p, ok := pick(w, w.points); ok {
			w.remove(p)
		}
	}
}

// damage makes a chunk that a point needs unreadable, if the same content is found elsewhere: it is read there from then
// on.
func (w *world) damage() {
	p, ok := pick(w, w.points)
	if !ok {
		return
	}
	at := p.needs[w.rng.IntN(len(p.needs))]
	id, known := w.ids[at]
	found, ok := w.index[id]
	if known && ok && found != at && w.moved[at].IsZero() {
		w.moved[at] = found
		w.healed++
	}
}

func (w *world) remove(p *point) {
	w.removed[p.name] = p
	delete(w.points, p.name)
}

// reopen is the start of the store after its process died: sessions are gone, and what was not sealed; packs without a
// mark are indexed by their directories. Readers in other processes live on.
func (w *world) reopen() {
	for x := range w.sessions {
		x.release()
	}
	clear(w.sessions)
	w.killAt = -1
	for _, id := range w.sortedPacks() {
		p := w.packs[id]
		if !p.sealed {
			w.drop(id)
			continue
		}
		if id.kind == Data && !p.marked {
			for _, c := range p.chunks {
				w.index[c.ID] = c.Place
			}
			p.marked = true
		}
	}
	if w.rng.IntN(3) == 0 { // the index was lost
		clear(w.index)
		for _, id := range w.sortedPacks() {
			for _, c := range w.packs[id].chunks {
				if id.kind == Data {
					w.index[c.ID] = c.Place
				}
			}
		}
	}
}

func (w *world) sortedPacks() []packID {
	return slices.SortedFunc(maps.Keys(w.packs), func(a, b packID) int { return int(a.number) - int(b.number) })
}

func (w *world) drop(id packID) {
	for _, c := range w.packs[id].chunks {
		w.gone[c.Place] = true
	}
	delete(w.packs, id)
}

// Page implements manifest.Source.
func (w *world) Page(_ context.Context, ref manifest.Ref) ([]byte, error) {
	if w.gone[ref.Place] {
		return nil, errs.Text("read page", ref.ID.String(), errs.Corrupt, "it was given back")
	}
	return w.pages[ref.Place], nil
}

// Roots implements Points.
func (w *world) Roots(context.Context) (out Roots, err error) {
	if err := w.step(); err != nil {
		return out, err
	}
	for _, name := range slices.Sorted(maps.Keys(w.points)) {
		out.Disks = append(out.Disks, w.points[name].root)
	}
	for _, to := range w.moved {
		out.Also = append(out.Also, Needed{Data, to})
	}
	for _, name := range slices.Sorted(maps.Keys(w.removed)) {
		if w.points[name] == nil && w.leases[name] > 0 {
			out.Held = append(out.Held, name)
			out.Disks = append(out.Disks, w.removed[name].root)
			continue
		}
		out.Spent = append(out.Spent, name)
	}
	return out, w.step()
}

// Drop implements Points.
func (w *world) Drop(_ context.Context, spent []string) error {
	for _, name := range spent {
		delete(w.removed, name)
	}
	return w.step()
}

// Drain implements Sessions.
func (w *world) Drain(_ context.Context, waiting func(int)) error {
	running := maps.Clone(w.sessions)
	left := func() int {
		maps.DeleteFunc(running, func(x *session, _ uint32) bool { _, runs := w.sessions[x]; return !runs })
		return len(running)
	}
	for {
		n := left()
		waiting(n)
		if err := w.step(); err != nil || n == 0 {
			return err
		}
		w.waited++
		if left() > 0 && (w.quiet || w.rng.IntN(3) == 0) {
			w.oldest(running).goOn()
		}
	}
}
