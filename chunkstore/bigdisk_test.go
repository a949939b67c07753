package chunkstore

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
)

// scattered is a disk of any size whose data lies in regions all over it, each at the start of an equal part of the disk.
// Its content is computed when it is read, and is the same at the same place of a region, whatever the disk's size.
type scattered struct {
	*cells
	regions      int64
	regionBytes  int64
	changed      bool  // tells only what was changed since the disk was first read
	changedBytes int64 // at the start of each region
}

// newScattered returns a disk with data bytes in 64 regions, of which change bytes are other ones once changed is set.
func newScattered(size, data, change int64) *scattered {
	const regions = 64
	s := &scattered{regions: regions, regionBytes: data / regions, changedBytes: change / regions}
	s.cells = newCells(size, func(cell int64) uint64 {
		at := cell * cellSize % s.part()
		name := uint64(cell*cellSize/s.part()*s.regionBytes+at) / cellSize
		if s.changed && at < s.changedBytes {
			name += 1 << 40
		}
		return name
	})
	return s
}

// part is the size of a part of the disk: so many leaves.
func (s *scattered) part() int64 { return s.size / s.regions / manifest.LeafSize * manifest.LeafSize }

// Extents implements Source: the data and the zeros between, or what was changed and what was not.
func (s *scattered) Extents(_ context.Context, visit func(Extent) error) error {
	n, rest := s.regionBytes, ExtentZero
	if s.changed {
		n, rest = s.changedBytes, ExtentUnchanged
	}
	for i := range s.regions {
		off, end := i*s.part(), (i+1)*s.part()
		if i == s.regions-1 {
			end = s.size
		}
		if err := visit(Extent{off, n, ExtentData}); err != nil {
			return err
		}
		if err := visit(Extent{off + n, end - off - n, rest}); err != nil {
			return err
		}
	}
	return nil
}

// cost is what the backup of a change took.
type cost struct {
	Stats
	manifestBytes int64 // of StoredBytes
}

// backUpChange stores a disk in a store of its own, changes it, and hands the backup of the change to measure.
func backUpChange(tb testing.TB, s *Store, disk *scattered, measure func(func())) (c cost) {
	tb.Helper()
	disk.changed = false
	first, err := tryBackup(tb.Context(), s, "whole", disk, nil)
	if err != nil {
		tb.Fatal(err)
	}
	disk.changed = true
	measure(func() {
		x := s.Begin(time.Now(), nil, nil)
		if err := x.Ingest(tb.Context(), 0, disk, &Parent{first, first.Disks[0]}, nil); err != nil {
			tb.Fatal(err)
		}
		if _, err := x.Commit(tb.Context()); err != nil {
			tb.Fatal(err)
		}
		c = cost{x.Stats(), x.meta.bytes}
	})
	return c
}

// theSizes are those between which the cost of a change must not differ.
var theSizes = []struct {
	name string
	size int64
}{{"100G", 100 << 30}, {"15T", 15 << 40}}

// TestAChangeCostsWhatItIs: what a backup reads, looks up and writes follows the change, whatever the size of the disk.
// It is the change and a part of a chunk at each of its 64 edges. What may differ are the pages above the leaves.
func TestAChangeCostsWhatItIs(t *testing.T) {
	const change = 16 << 20
	var costs []cost
	for _, d := range theSizes {
		disk := newScattered(d.size, 2*change, change)
		disk.whole = true
		s, _, _ := realStore(t, Options{})
		read := make(chan int64, 1)
		read <- 0
		c := backUpChange(t, s, disk, func(backup func()) {
			disk.seen = func(_, n int64) { read <- <-read + n }
			backup()
		})
		if n := <-read; n != change {
			t.Errorf("%s: %d bytes were read for a change of %d", d.name, n, change)
		}
		if c.NewBytes < change || c.NewBytes > change*13/10 || c.manifestBytes == 0 || c.StoredBytes < c.NewBytes {
			t.Errorf("%s: a change of %d bytes cost %+v", d.name, change, c)
		}
		costs = append(costs, c)
	}
	small, large := costs[0], costs[1]
	if small.NewBytes != large.NewBytes || small.LookUps != large.LookUps {
		t.Errorf("the small disk's change cost %+v, the large one's %+v", small, large)
	}
	if large.StoredBytes > small.StoredBytes*11/10 || large.StoredBytes < small.StoredBytes*9/10 {
		t.Errorf("the small disk's change was stored in %d bytes, the large one's in %d", small.StoredBytes, large.StoredBytes)
	}
}

// BenchmarkChange backs up 64 MiB of changes, which the source knows, of disks of very different sizes.
func BenchmarkChange(b *testing.B) {
	for _, d := range theSizes {
		b.Run(d.name, func(b *testing.B) {
			var cpu time.Duration
			var c cost
			for b.Loop() {
				b.StopTimer()
				s, _, _ := benchStore(b, Options{})
				c = backUpChange(b, s, newScattered(d.size, 512<<20, 64<<20), func(backup func()) {
					b.StartTimer()
					began := cpuTime(b)
					backup()
					cpu += cpuTime(b) - began
					b.StopTimer()
				})
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/backup")
			b.ReportMetric(cpu.Seconds()/float64(b.N), "cpu-s/backup")
			b.ReportMetric(float64(c.StoredBytes)/(1<<20), "MiB-stored")
			b.ReportMetric(float64(c.manifestBytes)/(1<<10), "KiB-manifest")
		})
	}
}
