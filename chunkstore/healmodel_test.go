package chunkstore

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// ruin is a store that is damaged over and over, and what it should hold.
type ruin struct {
	t      *testing.T
	rng    *rand.Rand
	s      *Store
	dir    string
	o      Options
	points []*Point
	want   map[PointID][]byte
	disk   []byte // of the machine, as it is now
	log    []string
}

const ruinBlocks = 90

func (m *ruin) note(what string, args ...any) { m.log = append(m.log, fmt.Sprintf(what, args...)) }

func (m *ruin) fatal(what string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("%s\nafter %v", fmt.Sprintf(what, args...), m.log)
}

// write changes the machine's disk, mostly to what it was before somewhere.
func (m *ruin) write() (changed map[int64]bool) {
	changed = map[int64]bool{}
	for range 1 + m.rng.IntN(3) {
		first, n := m.rng.IntN(ruinBlocks), 1+m.rng.IntN(20)
		fill := noise(m.rng.Uint64N(4), ruinBlocks*chunk.Grid)
		for b := first; b < min(first+n, ruinBlocks); b++ {
			copy(m.disk[b*chunk.Grid:(b+1)*chunk.Grid], fill[b*chunk.Grid:])
			changed[int64(b)] = true
		}
	}
	return changed
}

func (m *ruin) backup() {
	changed := m.write()
	var parent *Parent
	source := bytesSource{data: slices.Clone(m.disk)}
	how := "full"
	if n := len(m.points); n > 0 && m.rng.IntN(4) > 0 {
		last := m.points[n-1]
		if bytes.Equal(m.want[last.ID], m.want["last"]) {
			parent = &Parent{last, last.Disks[0]}
			source.changed, how = func(b int64) bool { return changed[b] }, "incremental"
		}
	}
	var src Source = &wholeSource{source}
	if m.rng.IntN(3) == 0 {
		src, how = &source, how+", blind"
	}
	p, err := tryBackup(m.t.Context(), m.s, "x", src, parent)
	m.note("%s: %v", how, err)
	if err != nil {
		if !errs.Is(err, errs.Corrupt) || parent == nil {
			m.fatal("a %s backup: %v", how, err)
		}
		if _, whole := src.(Whole); whole {
			m.fatal("a backup that could have read all of the source: %v", err)
		}
		p, err = tryBackup(m.t.Context(), m.s, "x", &bytesSource{data: slices.Clone(m.disk)}, nil)
		if err != nil {
			m.fatal("a full backup: %v", err)
		}
	}
	m.points, m.want[p.ID], m.want["last"] = append(m.points, p), slices.Clone(m.disk), slices.Clone(m.disk)
}

// damage flips a byte of a pack, cuts it, or takes it away.
func (m *ruin) damage() {
	var packs []string
	for _, f := range files(m.t, m.dir) {
		if slices.Contains(packSuffix[:], filepath.Ext(f)) {
			packs = append(packs, f)
		}
	}
	if len(packs) == 0 {
		return
	}
	name := packs[m.rng.IntN(len(packs))]
	file := filepath.Join(m.dir, name)
	b, err := os.ReadFile(file)
	if err != nil {
		m.t.Fatal(err)
	}
	how, at := m.rng.IntN(12), 0
	switch {
	case how == 0:
		err = os.Remove(file)
	case how == 1:
		err = os.WriteFile(file, b[:m.rng.IntN(len(b))], 0o600)
	default:
		at = m.rng.IntN(len(b))
		b[at] ^= byte(1 << m.rng.IntN(8))
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.note("damage %d in %s at %d", how, name, at)
	// What is kept open and in caches would hide it for a while.
	m.s.packs.close()
	m.s.frames.InvalidateAll()
	m.s.pages.InvalidateAll()
	m.s.dirs.InvalidateAll()
}

// look reads every point, in another process as it were. Nothing may read as something else; what is known to be hit must be
// what cannot be read, once verified has looked at everything.
func (m *ruin) look(verified bool) (hurt int) {
	r := fresh(m.t, m.dir, m.o)
	defer r.Close()
	if verified {
		v, err := r.VerifyStore(m.t.Context(), VerifyOptions{})
		if err != nil || v.Unkept != nil {
			m.fatal("verify: %v, %v", err, v.Unkept)
		}
	}
	known, err := r.Hurts(m.t.Context(), m.points)
	if err != nil {
		m.fatal("finding what is hit: %v", err)
	}
	for i, p := range m.points {
		got, err := readImage(m.t.Context(), r, p, 0)
		if err == nil && !bytes.Equal(got, m.want[p.ID]) || err != nil && !errs.Is(err, errs.Corrupt) {
			m.fatal("point %d: %v", i, err)
		}
		if err != nil {
			hurt++
		}
		if verified && (known[p.ID].Bytes > 0) != (err != nil) {
			m.fatal("point %d is known to be hit in %d bytes, and reads with %v", i, known[p.ID].Bytes, err)
		}
	}
	return hurt
}

func (m *ruin) step() {
	switch m.rng.IntN(11) {
	case 0, 1, 2:
		m.backup()
	case 3, 4:
		m.damage()
	case 5:
		m.note("look: %d hurt", m.look(false))
	case 6:
		m.note("verify: %d hurt", m.look(true))
	case 7:
		_ = m.s.Close()
		anew := m.rng.IntN(2) == 0
		if anew {
			_ = os.RemoveAll(m.o.IndexDir)
		}
		m.s = reopen(m.t, m.dir, m.o)
		m.note("restart, index lost: %v", anew)
	case 8:
		if len(m.points) > 2 {
			i := m.rng.IntN(len(m.points))
			if err := m.s.RemovePoint(m.t.Context(), m.points[i].ID); err != nil {
				m.fatal("removing: %v", err)
			}
			m.note("removed %d", i)
			m.points = slices.Delete(m.points, i, i+1)
		}
	case 9:
		res, err := m.s.Compact(m.t.Context(), CompactOptions{worth: 1000})
		if m.note("%d packs are compact, %d left alone: %v", res.Packs, res.Damaged, err); err != nil {
			m.fatal("compact: %v", err)
		}
	default:
		_, err := m.s.Collect(m.t.Context(), CollectOptions{least: 4096})
		if m.note("collect: %v", err); err != nil && !errs.Is(err, errs.Corrupt) {
			m.fatal("collect: %v", err)
		}
	}
}

// healAll brings every content again: then every point reads as what was stored, whatever was damaged before.
func (m *ruin) healAll() {
	m.look(true)
	for id, content := range m.want {
		if id == "last" {
			continue
		}
		if _, err := tryBackup(m.t.Context(), m.s, "again", &bytesSource{data: content}, nil); err != nil {
			m.fatal("storing again: %v", err)
		}
	}
	if hurt := m.look(true); hurt > 0 {
		m.fatal("%d points are still hurt", hurt)
	}
	if _, err := m.s.Collect(m.t.Context(), CollectOptions{least: 4096}); err != nil {
		m.fatal("collect: %v", err)
	}
	if hurt := m.look(true); hurt > 0 {
		m.fatal("%d points are hurt after a collection", hurt)
	}
}

// TestHealModel damages a store between backups, collections and restarts, over many seeds. To see one again:
// go test ./chunkstore -run TestHealModel/SEED
func TestHealModel(t *testing.T) {
	seeds := 24
	if testing.Short() || raceEnabled {
		seeds = 6
	}
	healed := 0
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			cutter := Cutters()[rng.IntN(len(Cutters()))]
			s, dir, o := realStoreIn(t, memoryDir(t), Options{PackSize: 120 << 10, Cutter: cutter})
			m := &ruin{t: t, rng: rng, s: s, dir: dir, o: o, disk: noise(0, ruinBlocks*chunk.Grid), want: map[PointID][]byte{}}
			for range 30 {
				m.step()
			}
			hurt := m.look(true)
			m.healAll()
			healed += hurt
		})
	}
	if healed < seeds/4 {
		t.Errorf("only %d points were hurt in all: nothing was tried", healed)
	}
}
