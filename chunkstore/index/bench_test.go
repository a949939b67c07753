package index

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
)

const loadKeys = 1_000_000

// load puts n entries in batches. Their IDs are those that idsOf gives for the same seed: keeping them would count as
// memory of the index.
func load(tb testing.TB, x *Index, n, batch int, seed uint64) {
	tb.Helper()
	next := idsOf(seed)
	entries := make([]Entry, 0, batch)
	for i := range n {
		entries = append(entries, Entry{next(), placeOf(i)})
		if len(entries) < batch && i < n-1 {
			continue
		}
		if err := x.Put(entries); err != nil {
			tb.Fatal(err)
		}
		entries = entries[:0]
	}
}

func idsOf(seed uint64) func() chunk.ID {
	r := rand.New(rand.NewPCG(seed, 1))
	return func() chunk.ID { return randomID(r) }
}

// anonMiB returns the memory of this process that no file stands behind: the heap, and what badger takes from the
// system directly.
func anonMiB(tb testing.TB, field string) float64 {
	tb.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		tb.Skip("no /proc here")
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == field+":" {
			n, _ := strconv.Atoi(f[1])
			return float64(n) / 1024
		}
	}
	tb.Fatal("no " + field)
	return 0
}

// watchPeak samples the anonymous memory until the returned function is called.
func watchPeak(tb testing.TB) func() float64 {
	stop, peak := make(chan struct{}), make(chan float64)
	go func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		top := 0.0
		for {
			select {
			case <-tick.C:
				top = max(top, anonMiB(tb, "RssAnon"))
			case <-stop:
				peak <- top
				return
			}
		}
	}()
	return func() float64 {
		close(stop)
		return <-peak
	}
}

// BenchmarkLoad puts a million entries, 256 and 4096 at a time, and reports the highest anonymous memory.
func BenchmarkLoad(b *testing.B) {
	for _, batch := range []int{256, batchSize} {
		b.Run(strconv.Itoa(batch), func(b *testing.B) {
			for range b.N {
				runtime.GC()
				before, peak := anonMiB(b, "RssAnon"), watchPeak(b)
				x := open(b, filepath.Join(b.TempDir(), "index"), Options{})
				opened := anonMiB(b, "RssAnon")
				start := time.Now()
				load(b, x, loadKeys, batch, uint64(batch))
				b.ReportMetric(loadKeys/time.Since(start).Seconds(), "puts/s")
				b.ReportMetric(before, "MiB-before")
				b.ReportMetric(opened, "MiB-open")
				b.ReportMetric(peak(), "MiB-peak")
				if err := x.Close(); err != nil {
					b.Fatal(err)
				}
				n, err := x.Size()
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(n)/loadKeys, "B/key")
				start = time.Now()
				x = open(b, x.dir, Options{})
				b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms-reopen")
				start = time.Now()
				if err := checkFolder(x.dir); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms-check")
				if err := x.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkGet looks up random known and unknown IDs among a million.
func BenchmarkGet(b *testing.B) {
	x := open(b, filepath.Join(b.TempDir(), "index"), Options{})
	defer x.Close()
	load(b, x, loadKeys, batchSize, 7)
	known, next := make([]chunk.ID, loadKeys), idsOf(7)
	for i := range known {
		known[i] = next()
	}
	run := func(b *testing.B, hit bool, ids func(i int) chunk.ID) {
		took := make([]time.Duration, 0, b.N)
		for i := range b.N {
			id := ids(i)
			start := time.Now()
			if _, found, err := x.Get(id); err != nil || found != hit {
				b.Fatal(found, err)
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "us-p50")
		b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "us-p99")
	}
	r := rand.New(rand.NewPCG(8, 8))
	hit := func(int) chunk.ID { return known[r.IntN(len(known))] }
	b.Run("hit", func(b *testing.B) { run(b, true, hit) })
	b.Run("miss", func(b *testing.B) { run(b, false, func(int) chunk.ID { return randomID(r) }) })
	b.Run("hit-while-writing", func(b *testing.B) {
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for seed := uint64(100); ; seed++ {
				select {
				case <-stop:
					return
				default:
					load(b, x, 256, 256, seed)
				}
			}
		}()
		run(b, true, hit)
		close(stop)
		<-done
	})
}
