package fuse

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
)

const benchSize = 256 << 20

// benchClient reads n times and prints how long that took: args are the size, the number, the depth, and flags.
func benchClient(c *client) {
	size, _ := strconv.Atoi(c.args[0])
	n, _ := strconv.Atoi(c.args[1])
	depth, _ := strconv.Atoi(c.args[2])
	flags := unix.O_RDONLY
	if strings.Contains(c.args[3], "direct") {
		flags |= unix.O_DIRECT
	}
	open := func() int {
		fd, err := unix.Open(c.path("pattern"), flags, 0)
		c.must("open", err)
		return fd
	}
	fd := open()
	var next atomic.Int64
	var wg sync.WaitGroup
	begun := time.Now()
	for thread := range depth {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(thread), 3))
			p := make([]byte, size+4096)[:size]
			for {
				i := next.Add(1) - 1
				if i >= int64(n) {
					return
				}
				at := i * int64(size) % benchSize
				if strings.Contains(c.args[3], "random") {
					at = r.Int64N(benchSize/int64(size)) * int64(size)
				}
				if at == 0 && depth == 1 { // a new opening finds an empty cache
					c.must("close", unix.Close(fd))
					fd = open()
				}
				if got, err := unix.Pread(fd, p, at); got != size {
					c.failf("pread: %d, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	fmt.Print(time.Since(begun).Nanoseconds())
}

func bench(b *testing.B, size, depth int, flags string, o Options) {
	o.Tree = static(map[string]fs.Node{"pattern": newPattern(5, benchSize)})
	mount := show(b, o)
	b.ResetTimer()
	out := use(b, mount.Dir(), "bench", strconv.Itoa(size), strconv.Itoa(b.N), strconv.Itoa(depth), flags)
	b.StopTimer()
	ns, err := strconv.ParseFloat(out, 64)
	if err != nil {
		b.Fatal(err)
	}
	// The client's own clock: starting a process does not count.
	b.ReportMetric(float64(b.N)*float64(size)/ns*1000, "MB/s")
	b.ReportMetric(float64(b.N)/ns*1e6, "kIOPS")
	b.ReportMetric(0, "ns/op")
}

func BenchmarkRead(b *testing.B) {
	b.Run("1MiB/buffered", func(b *testing.B) { bench(b, 1<<20, 1, "", Options{}) })
	b.Run("1MiB/direct", func(b *testing.B) { bench(b, 1<<20, 1, "direct", Options{}) })
	b.Run("1MiB/direct/qd4", func(b *testing.B) { bench(b, 1<<20, 4, "direct", Options{}) })
	b.Run("4MiB/direct", func(b *testing.B) { bench(b, 4<<20, 1, "direct", Options{}) })
	b.Run("4KiB/random/direct", func(b *testing.B) { bench(b, 4096, 1, "random direct", Options{}) })
	b.Run("4KiB/random/direct/qd16", func(b *testing.B) { bench(b, 4096, 16, "random direct", Options{}) })
}
