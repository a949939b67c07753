package chunkstore

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/index"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/disk"
)

// What is measured here is how a large store is opened. The index is as a store of that size has it, and so are the names
// of the packs; the packs themselves are empty files, for an Open that has nothing to finish does not look into them.
//
// A process shows the memory of all that it did before: so each benchmark is run in a process of its own, on a store that
// BenchmarkOpenMake has left in the folder HOLDFAST_BENCH_STORE.

// largePack is how many chunks a pack of 64 MiB holds when a chunk takes 24 KiB.
const largePack = 2730

// largeStore returns the folder of the store and its options, or skips.
func largeStore(b *testing.B) (string, Options) {
	b.Helper()
	dir := os.Getenv("HOLDFAST_BENCH_STORE")
	if dir == "" {
		b.Skip("HOLDFAST_BENCH_STORE names no folder; `make bench-store` gives it one")
	}
	o := Options{Unlock: WithMaster(testKey)}
	o.complete(dir)
	return dir, o
}

// largeID returns the ID of a chunk by its number.
func largeID(n int) (id chunk.ID) {
	r := rand.NewPCG(uint64(n), 77)
	binary.LittleEndian.PutUint64(id[:], r.Uint64())
	binary.LittleEndian.PutUint64(id[8:], r.Uint64())
	return id
}

// BenchmarkOpenMake makes a store of HOLDFAST_BENCH_CHUNKS chunks.
func BenchmarkOpenMake(b *testing.B) {
	dir, o := largeStore(b)
	chunks, err := strconv.Atoi(os.Getenv("HOLDFAST_BENCH_CHUNKS"))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		super := fixedSuperblock()
		makeStore(b, disk.OS{}, dir, super)
		x, err := index.Open(o.IndexDir, [16]byte(super.UUID), index.Options{})
		if err != nil {
			b.Fatal(err)
		}
		began, put, entries := time.Now(), time.Duration(0), make([]index.Entry, 0, largePack)
		for n, number := 0, uint32(1); n < chunks; number++ {
			entries = entries[:0]
			for ; len(entries) < largePack && n < chunks; n++ {
				place := chunk.Place{Pack: number, Offset: uint32(len(entries)) * 384, Stored: 24 << 10}
				entries = append(entries, index.Entry{ID: largeID(n), Place: place})
			}
			if err := errors.Join(x.Put(entries), x.MarkPack(number, len(entries))); err != nil {
				b.Fatal(err)
			}
			put = time.Since(began)
			name := filepath.Join(dir, packName(pack.Data, number))
			if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, nil, 0o400)); err != nil {
				b.Fatal(err)
			}
		}
		if err := x.Close(); err != nil {
			b.Fatal(err)
		}
		size, err := x.Size()
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(chunks)/put.Seconds(), "puts/s")
		b.ReportMetric(float64(size)/float64(chunks)*1e6/(1<<20), "MiB-disk/million")
	}
}

// BenchmarkOpenClean opens a store that was closed, and looks chunks up: those it has, and as many that it has not.
func BenchmarkOpenClean(b *testing.B) {
	dir, o := largeStore(b)
	benchOpen(b, dir, o, func() {})
}

// BenchmarkOpenKilled opens a store whose process was killed while it wrote.
func BenchmarkOpenKilled(b *testing.B) {
	dir, o := largeStore(b)
	benchOpen(b, dir, o, func() {
		err := exec.CommandContext(b.Context(), os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkOpenDie$", "-test.benchtime=1x").Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			b.Fatalf("it was to die of SIGKILL: %v", err)
		}
	})
}

// BenchmarkOpenDie writes into the index for a second, without a mark, and kills itself. BenchmarkOpenKilled starts it.
func BenchmarkOpenDie(b *testing.B) {
	dir, o := largeStore(b)
	s, err := Open(b.Context(), dir, o)
	if err != nil {
		b.Fatal(err)
	}
	time.AfterFunc(time.Second, func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) })
	entries := make([]index.Entry, largePack)
	for number := 1; ; number++ {
		for i := range entries {
			entries[i] = index.Entry{ID: largeID(-number*largePack - i), Place: chunk.Place{Pack: 1, Offset: uint32(i), Stored: 1}}
		}
		if err := s.index.Put(entries); err != nil {
			b.Fatal(err)
		}
	}
}

// benchOpen opens the store, with nothing of it in the page cache, after before.
func benchOpen(b *testing.B, dir string, o Options, before func()) {
	const lookUps = 50_000
	marks := 0
	var opened, cpu, found []float64
	atFirst, afterOpen, afterLookUps := anonMiB(b), 0.0, 0.0
	for b.Loop() {
		b.StopTimer()
		before()
		dropFolder(b, dir)
		b.StartTimer()
		began, used := time.Now(), cpuTime(b)
		s, err := Open(b.Context(), dir, o)
		if err != nil {
			b.Fatal(err)
		}
		opened, cpu = append(opened, time.Since(began).Seconds()), append(cpu, (cpuTime(b)-used).Seconds())
		b.StopTimer()
		afterOpen = max(afterOpen, anonMiB(b))
		all, err := s.index.Packs()
		if err != nil || s.index.Fresh() {
			b.Fatalf("the index was begun anew: %s; %v", s.index.Reason(), err)
		}
		marks = len(all)
		random := rand.New(rand.NewPCG(3, 4))
		for i := range lookUps {
			known, n := i%2 == 0, random.IntN(marks*largePack-largePack) // the last pack may be shorter
			if !known {
				n = -1 - n*1000 // nobody's
			}
			at := time.Now()
			if _, ok, err := s.index.Get(largeID(n)); err != nil || known && !ok {
				b.Fatalf("chunk %d: %v, %v", n, ok, err)
			}
			found = append(found, float64(time.Since(at).Nanoseconds())/1e3)
			if i%1000 == 0 {
				afterLookUps = max(afterLookUps, anonMiB(b))
			}
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	middle := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	b.ReportMetric(middle(opened), "open-s")
	b.ReportMetric(middle(cpu), "open-cpu-s")
	b.ReportMetric(float64(marks)*largePack/1e6, "million-chunks")
	b.ReportMetric(atFirst, "MiB-anon-before")
	b.ReportMetric(afterOpen, "MiB-anon-open")
	b.ReportMetric(afterLookUps, "MiB-anon-look-ups")
	b.ReportMetric(middle(found), "look-up-p50-us")
}

// anonMiB returns the memory of this process that no file stands behind.
func anonMiB(b *testing.B) float64 { return statusMiB(b, "RssAnon:") }

func statusMiB(b *testing.B, field string) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatal("the kernel does not tell " + field)
	return 0
}
