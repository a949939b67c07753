package chunkstore

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// TestIngestMemory stores a disk of 10 GiB that does not compress and of which little is new, and looks at the heap as
// it goes: memory must follow the number of processors, not the disk.
func TestIngestMemory(t *testing.T) {
	size := int64(10 << 30)
	if raceEnabled || testing.Short() {
		size = 1 << 30
	}
	const limit = 200 << 20
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2)) // the bound is for two
	defer debug.SetGCPercent(debug.SetGCPercent(50))
	s, _, _ := realStore(t, Options{})
	src := newCells(size, func(cell int64) uint64 { return uint64(cell) * 7919 % 1024 })
	src.whole = true
	peak := newHeapPeak()
	src.seen = func(off, _ int64) {
		if off%(64<<20) == 0 {
			peak.look()
		}
	}
	x := s.Begin(time.Now(), nil, nil)
	if err := x.Ingest(t.Context(), 0, src, nil, nil); err != nil {
		t.Fatal(err)
	}
	p, err := x.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st := x.Stats(); st.NewBytes != 1024*cellSize || st.NewBytes+st.KnownBytes != size {
		t.Errorf("a disk of %d bytes with 1024 different cells: %+v", size, st)
	}
	if p.Disks[0].Root.Data != size {
		t.Errorf("%d bytes of data", p.Disks[0].Root.Data)
	}
	t.Logf("peak of the heap: %d MiB", peak.max()>>20)
	if peak.max() > limit {
		t.Errorf("the heap grew to %d MiB, more than %d", peak.max()>>20, limit>>20)
	}
}
