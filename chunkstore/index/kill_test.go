package index

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The tests in this file run the test program again as a child; these variables tell it what to do.
const (
	childDir  = "HOLDFAST_INDEX_CHILD_DIR"
	childSeed = "HOLDFAST_INDEX_CHILD_SEED"
)

// TestMain turns the program into the child when it is asked to.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := child(dir, os.Getenv(childSeed), os.Getenv(childPuts)); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

const childBatch = 200

// child puts batches for ever. It prints a line after each acknowledged one, and replaces and deletes along the way.
// With puts it is a visitor.
func child(dir, seed, puts string) error {
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	if puts != "" {
		batches, err := strconv.Atoi(puts)
		if err != nil {
			return err
		}
		return visit(dir, n, batches)
	}
	x, err := Open(dir, storeA, small)
	if err != nil {
		return err
	}
	if x.Fresh() {
		fmt.Println("fresh", x.Reason())
	}
	next := idsOf(n)
	var before []Entry
	for i := 0; ; i++ {
		var entries []Entry
		for range childBatch {
			entries = append(entries, Entry{next(), childPlace(i)})
		}
		if err := x.Put(entries); err != nil {
			return err
		}
		fmt.Println("put", i)
		if i%3 == 2 { // the batch before this one goes
			var ids []chunk.ID
			for _, e := range before {
				ids = append(ids, e.ID)
			}
			if err := x.Delete(ids); err != nil {
				return err
			}
			fmt.Println("deleted", i-1)
		}
		if err := x.MarkPack(uint32(i)+1, childBatch); err != nil {
			return err
		}
		fmt.Println("marked", i)
		before = entries
	}
}

func childPlace(batch int) chunk.Place { return chunk.Place{Pack: uint32(batch) + 1, Stored: 1} }

// startChild returns the running child and its lines.
func startChild(t *testing.T, dir string, seed int) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), childDir+"="+dir, fmt.Sprintf("%s=%d", childSeed, seed))
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	return c, bufio.NewScanner(out)
}

// TestKillNine kills a child at many moments: everything it was told is durable must be there.
func TestKillNine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	rounds := 8
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		c, lines := startChild(t, dir, round)
		put, deleted, marked := -1, map[int]bool{}, -1
		note := func(line string) {
			word, rest, _ := strings.Cut(line, " ")
			n, _ := strconv.Atoi(rest)
			switch word {
			case "put":
				put = n
			case "deleted":
				deleted[n] = true
			case "marked":
				marked = n
			case "fresh":
				if round > 0 {
					t.Errorf("round %d: %s", round, line)
				}
			default:
				t.Errorf("round %d: %s", round, line)
			}
		}
		for n := 0; n < 7+round*11 && lines.Scan(); n++ {
			note(lines.Text())
		}
		must(t, c.Process.Kill())
		for lines.Scan() { // acknowledged before it died, read after
			note(lines.Text())
		}
		_ = c.Wait() // killed, as we know
		checkAfterKill(t, dir, round, put, deleted, marked)
	}
}

func checkAfterKill(t *testing.T, dir string, round, put int, deleted map[int]bool, marked int) {
	t.Helper()
	x := open(t, dir, small)
	defer mustClose(t, x)
	if x.Fresh() {
		t.Fatalf("round %d: fresh: %s", round, x.Reason())
	}
	next := idsOf(uint64(round))
	for i := range put + 1 {
		for range childBatch {
			want := childPlace(i)
			if deleted[i] {
				want = chunk.Place{}
			}
			p, _, err := x.Get(next())
			// The last deletion may have been done without being told.
			if undone := p.IsZero() && i == put-1; err != nil || p != want && !undone {
				t.Fatalf("round %d: batch %d of %d is at %v, %v, want %v", round, i, put, p, err, want)
			}
		}
	}
	marks, err := x.Packs()
	if err != nil || len(marks) < marked+1 {
		t.Errorf("round %d: %d marks, %v, want %d", round, len(marks), err, marked+1)
	}
	for _, m := range marks {
		must(t, x.UnmarkPack(m.Pack))
	}
}

// TestSecondProcess: a folder that another process has open is busy and stays as it is, whatever the store.
func TestSecondProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	c, lines := startChild(t, dir, 1)
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "put") {
	}
	for _, store := range [][16]byte{storeA, storeB} {
		_, err := Open(dir, store, small)
		wantKind(t, err, errs.Busy)
	}
	if got := asides(t, dir); got != nil {
		t.Errorf("moved aside: %v", got)
	}
	for range 5 {
		if !lines.Scan() || strings.HasPrefix(lines.Text(), "error") {
			t.Fatalf("the other process was disturbed: %q", lines.Text())
		}
	}
}
