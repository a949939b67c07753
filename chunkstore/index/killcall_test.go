package index

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
)

// childPuts says how many batches the child puts before it closes the index and ends; without it, it puts for ever.
const childPuts = "HOLDFAST_INDEX_CHILD_PUTS"

// visit is the child that opens the index, puts some batches, and closes it. It prints a line after each.
func visit(dir string, seed uint64, puts int) error {
	x, err := Open(dir, storeA, small)
	if err != nil {
		return err
	}
	next := idsOf(seed)
	for i := range puts {
		var entries []Entry
		for range childBatch {
			entries = append(entries, Entry{next(), childPlace(i)})
		}
		if err := x.Put(entries); err != nil {
			return err
		}
		fmt.Println("put", i)
	}
	return x.Close()
}

// visitUntil runs such a child with n as its seed, and kills it before its n-th call that changes files. It returns the
// number of batches that were acknowledged.
func visitUntil(t *testing.T, dir string, n, puts int) (acked int, ended bool) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	must(t, err)
	defer out.Close()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), childDir+"="+dir, fmt.Sprint(childSeed, "=", n), fmt.Sprint(childPuts, "=", puts))
	c.Stdout, c.Stderr = out, os.Stderr
	ended = killBefore(t, c, n)
	said, err := os.ReadFile(out.Name())
	must(t, err)
	return strings.Count(string(said), "put "), ended
}

// step is the distance between the places at which something is killed or cut.
func step() int {
	if testing.Short() {
		return 5
	}
	return 1
}

// TestKilledAtEveryCall kills one process after another, each a little later. A copy of what each leaves must be
// opened, not begun anew, with all that was acknowledged by any of them. Four in a row get what the one before them
// left, so that a kill also meets the recovery from a kill; then the next gets the copy, which was closed.
func TestKilledAtEveryCall(t *testing.T) {
	const puts = 2
	dir := filepath.Join(t.TempDir(), "index")
	acked := map[int]int{} // by seed
	for n, ended := 1, false; !ended; n += step() {
		acked[n], ended = visitUntil(t, dir, n, puts)
		dead := filepath.Join(t.TempDir(), "index")
		must(t, os.MkdirAll(dir, 0o700)) // the first ones do not come so far
		copyFolder(t, dir, dead)
		_, err := os.Stat(filepath.Join(dir, stateName))
		made := err == nil
		x := open(t, dead, small)
		if made && x.Fresh() || x.Fresh() && x.Reason() != reasonNone && x.Reason() != reasonCut {
			t.Errorf("killed before call %d: begun anew: %s", n, x.Reason())
		}
		checkVisits(t, x, n, acked)
		mustClose(t, x)
		if got := slices.Concat(asides(t, dir), asides(t, dead)); len(got) > 0 {
			t.Fatalf("killed before call %d: moved aside: %v", n, got)
		}
		if len(acked)%4 == 0 {
			dir = dead
		}
	}
	if len(acked)*step() < 30 {
		t.Errorf("only %d kills: the calls were not seen", len(acked))
	}
}

func checkVisits(t *testing.T, x *Index, n int, acked map[int]int) {
	t.Helper()
	for seed, batches := range acked {
		next := idsOf(uint64(seed))
		for i := range batches * childBatch {
			if p, _, err := x.Get(next()); err != nil || p != childPlace(i/childBatch) {
				t.Fatalf("killed before call %d: entry %d of process %d is at %v, %v", n, i, seed, p, err)
			}
		}
	}
}

// TestKilledWhileMovingAside kills a process that does not trust the folder, at every call until it has begun anew. The
// folder is kept, the one kept before is removed, and nothing else is left.
func TestKilledWhileMovingAside(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "index")
	x, err := Open(bad, storeB, small)
	must(t, err)
	must(t, x.Put([]Entry{{chunk.ID{1}, placeOf(1)}}))
	must(t, x.Close())
	kills := 0
	for n, ended := 1, false; !ended; n += step() {
		dir := filepath.Join(t.TempDir(), "index")
		copyFolder(t, bad, dir)
		copyFolder(t, bad, dir+asideMark+"1")
		_, ended = visitUntil(t, dir, n, 0)
		mustClose(t, open(t, dir, small))
		got := asides(t, dir)
		if len(got) != 1 || got[0] == dir+asideMark+"1" {
			t.Errorf("killed before call %d: moved aside: %v, want the newest", n, got)
			continue
		}
		if s, err := readState(got[0]); err != nil || s.store != storeB {
			t.Errorf("killed before call %d: what was moved aside is %v, %v", n, s, err)
		}
		kills++
	}
	if kills*step() < 15 {
		t.Errorf("only %d kills: the calls were not seen", kills)
	}
}
