package overlay

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// TestBlockMap compares the map with a slice of states.
func TestBlockMap(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 6))
		const n = 3*leafBlocks + 100
		var m blockMap
		var want [n]state
		for step := range 200 {
			first := r.Int64N(n)
			if r.IntN(3) == 0 {
				first = first / leafBlocks * leafBlocks
			}
			count := 1 + r.Int64N([]int64{1, 40, 3000, n}[r.IntN(4)])
			count = min(count, n-first)
			s := state(r.IntN(numStates))
			wasData := int64(0)
			for i := first; i < first+count; i++ {
				if want[i] == stateData {
					wasData++
				}
				want[i] = s
			}
			if got := m.set(first, count, s); got != wasData {
				t.Fatalf("seed %d, step %d: %d blocks were data, want %d", seed, step, got, wasData)
			}
		}
		var data, notData int64
		for at := int64(0); at < n; {
			end := at
			for end < n && want[end] == want[at] {
				end++
			}
			s, got := m.run(at, n-at)
			if s != want[at] || got != end-at {
				t.Fatalf("seed %d: at %d a run of %d in state %d, want %d of %d", seed, at, got, s, end-at, want[at])
			}
			if s == stateData {
				data += got
			} else {
				notData += got
			}
			at = end
		}
		if m.data != data || m.notData(0, n) != notData {
			t.Fatalf("seed %d: %d data and %d not, want %d and %d", seed, m.data, m.notData(0, n), data, notData)
		}
	}
}

// TestLeafMemory: a leaf in one state holds no bits, however it got there.
func TestLeafMemory(t *testing.T) {
	var m blockMap
	for _, s := range []state{stateData, stateZero, stateBase} {
		for i := range int64(leafBlocks) {
			m.set(i, 1, s)
		}
		if m.leaves[0].words != nil {
			t.Errorf("a leaf all in state %d keeps its bits", s)
		}
	}
	m.set(maxBlocks-1, 1, stateData)
	if s, n := m.run(1, maxBlocks); s != stateBase || n != maxBlocks-2 {
		t.Errorf("a run of %d in state %d", n, s)
	}
}

func TestRanges(t *testing.T) {
	r := newRanges()
	var wg sync.WaitGroup
	var cells [64]int // the race detector watches them
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 7))
			for range 500 {
				s := span{rnd.Int64N(60), 0}
				s.end = s.first + 1 + rnd.Int64N(4)
				r.lock(s)
				for i := s.first; i < s.end; i++ {
					cells[i]++
				}
				r.unlock(s)
			}
		})
	}
	wg.Wait()
	if len(r.held) != 0 {
		t.Errorf("%d ranges are still held", len(r.held))
	}
	r.lock(span{5, 10})
	if r.tryLock(span{9, 12}) || !r.tryLock(span{10, 12}) {
		t.Error("tryLock takes what is held, or not what is free")
	}
}
