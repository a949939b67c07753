package cli

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// killed is a store in which an import is killed.
type killed struct {
	*box
	base  string // a point that was there before
	file  string
	total int64 // bytes of chunks that the file holds and the base does not
}

func newKilled(t *testing.T, file string, size int) *killed {
	b := newBox(t)
	return &killed{b, b.imports(b.disk("base.raw", 1, mib), "base").Point, file, int64(size)}
}

// has returns the largest of the files that match a pattern below the store, or -1.
func (k *killed) has(pattern string) int64 {
	found, err := filepath.Glob(filepath.Join(k.store, pattern))
	if err != nil {
		k.t.Fatal(err)
	}
	largest := int64(-1)
	for _, f := range found {
		if st, err := os.Stat(f); err == nil {
			largest = max(largest, st.Size())
		}
	}
	return largest
}

func (k *killed) count(pattern string) int {
	found, err := filepath.Glob(filepath.Join(k.store, pattern))
	if err != nil {
		k.t.Fatal(err)
	}
	return len(found)
}

// killWhen starts an import and kills it as soon as a condition holds. It tells whether the kill came in time.
func (k *killed) killWhen(is func() bool) bool {
	k.t.Helper()
	p := k.start("disk", "import", k.file, "--vm", "web")
	for late := time.After(patience); !is(); {
		select {
		case <-p.ended:
			return false
		case <-late:
			k.t.Fatal("the import neither ends nor comes to the place of the kill")
		default:
		}
	}
	return p.end(syscall.SIGKILL) == -1
}

// check looks at the store after a kill, and imports again.
func (k *killed) check() {
	k.t.Helper()
	points := k.points()
	if len(points) == 0 || points[0] != k.base && points[len(points)-1] != k.base || len(points) > 2 {
		k.t.Fatalf("points after the kill: %q", points)
	}
	k.whole(points...)
	kept := k.has("data/*/*.open")
	more := int64(k.count("data/*/*.pack") - 1) // sealed ones, without the base's
	res := k.imports(k.file, "web")
	if res.New > k.total || (kept > mib || more > 0) && res.New > k.total-mib/2 {
		k.t.Errorf("the next import stored %d of %d bytes anew, with %d bytes and %d packs of the killed one", res.New, k.total, kept, more)
	}
	got := k.points()
	if want := len(points) + 1; len(got) != want || !slices.Contains(got, res.Point) || !slices.Contains(got, k.base) {
		k.t.Errorf("points %q after %q and an import of %s", got, points, res.Point)
	}
	k.clean(got...)
}

// TestKilledImportAtPlaces kills an import of three packs when what it has done can be seen in the folder.
func TestKilledImportAtPlaces(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	const size = 136 * mib
	file := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(file, noise(5, size), 0o600); err != nil {
		t.Fatal(err)
	}
	want := sum(t, file)
	for _, place := range []struct {
		name  string
		short bool // may be over before anybody sees it
		is    func(k *killed) bool
	}{
		{"the lock is held", false, func(k *killed) bool { return k.has("lock") > 0 }},
		{"the first pack has its header", false, func(k *killed) bool { return k.has("data/*/*.open") >= 0 }},
		{"a first frame", false, func(k *killed) bool { return k.has("data/*/*.open") > 64<<10 }},
		{"half a pack", false, func(k *killed) bool { return k.has("data/*/*.open") > 32*mib }},
		{"the first pack is sealed", false, func(k *killed) bool { return k.count("data/*/*.pack") == 2 }},
		{"the second pack is begun", false, func(k *killed) bool { return k.count("data/*/*.pack") == 2 && k.has("data/*/*.open") >= 0 }},
		{"half of the second pack", false, func(k *killed) bool { return k.count("data/*/*.pack") == 2 && k.has("data/*/*.open") > 32*mib }},
		{"the second pack is sealed", false, func(k *killed) bool { return k.count("data/*/*.pack") == 3 }},
		{"the third pack is begun", true, func(k *killed) bool { return k.count("data/*/*.pack") == 3 && k.has("data/*/*.open") >= 0 }},
		{"pages are written", true, func(k *killed) bool { return k.has("meta/*/*.open") >= 0 }},
		{"all data is sealed", true, func(k *killed) bool { return k.count("data/*/*.pack") == 4 }},
		{"the pages are sealed", true, func(k *killed) bool { return k.count("meta/*/*.pack") == 2 }},
		{"the record is written but has no name", true, func(k *killed) bool { return k.count("points/*.tmp") > 0 }},
		{"the record has its name", true, func(k *killed) bool { return k.count("points/????????????????") == 2 }},
	} {
		t.Run(place.name, func(t *testing.T) {
			k := newKilled(t, file, size)
			if !k.killWhen(func() bool { return place.is(k) }) {
				if !place.short {
					t.Error("the import ended before the kill")
				}
				t.Log("the import ended before the kill")
			}
			k.check()
			if got := k.sha256("web@latest"); got != want {
				t.Errorf("the disk is %s, want %s", got, want)
			}
		})
	}
}

// TestKilledImportAtRandom kills twice in a row: the second time may meet the recovery from the first.
func TestKilledImportAtRandom(t *testing.T) {
	const size, seed = 24 * mib, 20260914
	rounds := 20
	if testing.Short() {
		rounds = 4
	}
	file := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(file, noise(6, size), 0o600); err != nil {
		t.Fatal(err)
	}
	k := newKilled(t, file, size)
	began := time.Now()
	k.start("disk", "import", file, "--vm", "web").wait()
	whole := time.Since(began)
	t.Logf("an import takes %v; seed %d", whole, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	inTime := 0
	for i := range rounds {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			k := newKilled(t, file, size)
			for range 2 {
				if len(k.points()) > 1 {
					break // committed: nothing is left to kill
				}
				began, late := time.Now(), time.After(time.Duration(random.Int64N(int64(whole))))
				if k.killWhen(func() bool {
					select {
					case <-late:
						return true
					case <-time.After(time.Millisecond):
						return false
					}
				}) {
					inTime++
				} else {
					whole = time.Since(began) // a busy machine may have made the first one slow
				}
			}
			k.check()
		})
	}
	if inTime < rounds/2 {
		t.Errorf("only %d of %d imports were still running when they were killed", inTime, 2*rounds)
	}
	t.Logf("%d kills", inTime)
}

// TestInterruptedImport sends the signal of Ctrl-C.
func TestInterruptedImport(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		b := newBox(t)
		file := b.file("disk.raw", noise(7, 100*mib))
		k := &killed{b, b.imports(b.disk("base.raw", 1, mib), "base").Point, file, 100 * mib}
		args := []string{"disk", "import", file, "--vm", "web"}
		p := b.start(args...)
		until(t, "the import to be half-way", func() bool { return k.has("data/*/*.open") > 8*mib })
		p.end(sig)
		b.failed(p.result(), exitInterrupted, args, "canceled", "run the same command again")
		b.clean(k.base)
		k.check()
	}
}

// TestInterruptedExportProcess ends an export with a signal, and with a kill.
func TestInterruptedExportProcess(t *testing.T) {
	b := newBox(t)
	b.imports(b.file("disk.raw", noise(8, 100*mib)), "web")
	args := []string{"point", "export", "web@latest", "--to", b.path("out")}
	begun := func() bool { return written(t, b.path(".out.part-*"), 1) }
	p := b.start(args...)
	until(t, "the export to begin", begun)
	p.end(syscall.SIGINT)
	b.failed(p.result(), exitInterrupted, args)
	if left, _ := filepath.Glob(b.dir + "/*out*"); len(left) > 0 {
		t.Errorf("an interrupted export left %q", left)
	}
	p = b.start(args...)
	until(t, "the export to begin", begun)
	p.end(syscall.SIGKILL)
	if _, err := os.Lstat(b.path("out")); err == nil {
		t.Error("a killed export gave its file a name")
	}
	b.ok(args...)
	if sum(t, b.path("out")) != sum(t, b.path("disk.raw")) {
		t.Error("the export after a killed one has other bytes")
	}
	if left, _ := filepath.Glob(b.path(".out.part-*")); len(left) > 0 {
		t.Errorf("after the next export there is still %q", left)
	}
}
