package overlay

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	childDir  = "HOLDFAST_OVERLAY_CHILD_DIR"
	childTask = "HOLDFAST_OVERLAY_CHILD_TASK"

	killWriters = 4
	killArea    = 16 * blockSize // each writer's part of the image
)

var killOptions = Options{Identity: "kill", SegmentBytes: 8 * blockSize, compactAfter: 40}

func killBase() Base { return memBase{make([]byte, killWriters*killArea)} }

// stamp fills a write so that it shows which one it was.
func stamp(p []byte, n uint64) []byte {
	for i := 0; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], n)
	}
	return p
}

// killSpot says where write n of a writer goes: sizes and places change, and every place is written again and again.
func killSpot(writer int, n uint64) (off int64, size int) {
	size = []int{512, blockSize, 3*blockSize + 512}[n%3]
	return int64(writer*killArea) + int64(n%5)*2*blockSize, size
}

// child is what a test process does when it is started as the victim.
func child(dir, task string) int {
	o, err := Open(ctx, disk.OS{}, dir, killBase(), killOptions)
	if err != nil {
		fmt.Println("kind", errs.KindOf(err))
		return 0
	}
	if task == "open" {
		fmt.Println("opened")
		return 0
	}
	var start uint64
	_, _ = fmt.Sscan(task, &start)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range killWriters {
		wg.Go(func() {
			for n := start; ; n++ {
				off, size := killSpot(w, n)
				if err := o.WriteAt(ctx, stamp(make([]byte, size), n), off, true); err != nil {
					fmt.Println("error", err)
					return
				}
				mu.Lock()
				fmt.Println("ack", w, n)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return 1
}

func startChild(t *testing.T, dir, task string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe)
	c.Env = append(os.Environ(), childDir+"="+dir, childTask+"="+task)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewScanner(out)
}

// TestKill9 kills a process in the middle of stable writes, again and again over the same folder, and demands every
// write that it saw acknowledged.
func TestKill9(t *testing.T) {
	dir := t.TempDir() + "/o"
	o, err := Create(ctx, disk.OS{}, dir, killBase(), killOptions)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	image := make([]byte, killWriters*killArea)
	next := uint64(1)
	for range 4 {
		last := killOne(t, dir, next)
		if o, err = Open(ctx, disk.OS{}, dir, killBase(), killOptions); err != nil {
			t.Fatal(err)
		}
		got, err := readAll(o)
		if err != nil {
			t.Fatal(err)
		}
		for w := range killWriters {
			for n := next; n <= last[w]; n++ {
				off, size := killSpot(w, n)
				stamp(image[off:off+int64(size)], n)
			}
		}
		for w := range killWriters {
			checkKilled(t, got, image, w, last[w]+1)
		}
		image = got // and so it stays: opening has made it durable
		next = slices.Max(last[:]) + 2
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("some %d writes by each of %d writers", next, killWriters)
}

// killOne runs a child until each of its writers has had some writes acknowledged, kills it, and returns the last
// acknowledged write of each.
func killOne(t *testing.T, dir string, next uint64) (last [killWriters]uint64) {
	t.Helper()
	c, lines := startChild(t, dir, fmt.Sprint(next))
	for lines.Scan() {
		var w int
		var n uint64
		if _, err := fmt.Sscanf(lines.Text(), "ack %d %d", &w, &n); err != nil {
			t.Fatalf("the child said %q", lines.Text())
		}
		last[w] = n
		if slices.Min(last[:]) >= next+30 {
			_ = c.Process.Kill() // the lines that it wrote until then are still read
		}
	}
	_ = c.Wait()
	return last
}

// checkKilled compares a writer's area with what was acknowledged; the write that was on its way may show too.
func checkKilled(t *testing.T, got, want []byte, w int, flying uint64) {
	t.Helper()
	off, size := killSpot(w, flying)
	for i := int64(w * killArea); i < int64((w+1)*killArea); i += 8 {
		g, v := binary.LittleEndian.Uint64(got[i:]), binary.LittleEndian.Uint64(want[i:])
		if g != v && (g != flying || i < off || i >= off+int64(size)) {
			t.Fatalf("writer %d, byte %d: write %d shows, want %d; in flight was %d", w, i, g, v, flying)
		}
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir() + "/o"
	o, err := Create(ctx, disk.OS{}, dir, killBase(), killOptions)
	if err != nil {
		t.Fatal(err)
	}
	ask := func() string {
		c, lines := startChild(t, dir, "open")
		var said []string
		for lines.Scan() {
			said = append(said, lines.Text())
		}
		_ = c.Wait()
		return strings.Join(said, "\n")
	}
	if got := ask(); got != "kind busy" {
		t.Errorf("while open here: %q", got)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if got := ask(); got != "opened" {
		t.Errorf("after closing: %q", got)
	}
}
