package catalog

import (
	"errors"
	"fmt"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

type doc struct {
	Name string
	N    int
}

func open(t *testing.T, d disk.Disk) *Catalog {
	t.Helper()
	c, err := Open(d, "/state")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRoundTrip(t *testing.T) {
	d := disk.NewCrash()
	c := open(t, d)
	for i := range 3 {
		if err := c.Put(Tasks, fmt.Sprint("t", i), doc{"task", i}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Put(Tasks, "t1", doc{"changed", 7}); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(Tasks, "t0"); err != nil {
		t.Fatal(err)
	}
	c = open(t, d)
	docs, bad := List[doc](c, Tasks)
	if fmt.Sprint(docs) != "[{changed 7} {task 2}]" || len(bad) > 0 {
		t.Fatal(docs, bad)
	}
	var v doc
	if err := c.Get(Tasks, "t0", &v); !errs.Is(err, errs.NotFound) {
		t.Error("a removed document:", err)
	}
	if err := c.Delete(Tasks, "t0"); !errs.Is(err, errs.NotFound) {
		t.Error("removing it again:", err)
	}
	if docs, _ := List[doc](c, Sessions); len(docs) != 0 {
		t.Error("another kind has", docs)
	}
}

func TestNames(t *testing.T) {
	c := open(t, disk.NewCrash())
	for _, id := range []string{"", ".", "..", "../x", "a/b", "x\x00", ".hidden", "ä", string(make([]byte, 129))} {
		if err := c.Put(Tasks, id, 1); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", id, err)
		}
		if err := c.Get(Tasks, id, new(int)); !errs.Is(err, errs.Invalid) {
			t.Errorf("get %q: %v", id, err)
		}
	}
	if err := c.Put(Tasks, "a-B_9.x", 1); err != nil {
		t.Error(err)
	}
}

func TestDamageHidesNothingElse(t *testing.T) {
	d := disk.NewCrash()
	c := open(t, d)
	for _, id := range []string{"a", "b"} {
		if err := c.Put(Runs, id, doc{id, 1}); err != nil {
			t.Fatal(err)
		}
	}
	f, err := d.OpenRW("/state/runs/a.json")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteAt([]byte("!"), 0)
	docs, bad := List[doc](c, Runs)
	if fmt.Sprint(docs) != "[{b 1}]" || len(bad) != 1 || !errs.Is(bad[0], errs.Corrupt) || errs.NextStep(bad[0]) == "" {
		t.Fatal(docs, bad)
	}
}

// TestCrash cuts the power at every sync of a history: what Put or Delete had acknowledged is there, a document on its
// way is the old or the new one.
func TestCrash(t *testing.T) {
	for seed := range uint64(40) {
		d := disk.NewCrash()
		c := open(t, d)
		acked := map[string]int{}
		pending := ""
		pendingTo := 0
		d.OnSync(func() {
			clone := open(t, d.Clone(seed))
			for id, n := range acked {
				var v doc
				err := clone.Get(Runs, id, &v)
				gone := errs.Is(err, errs.NotFound)
				if err != nil && !gone {
					t.Fatalf("seed %d: %v", seed, err)
				}
				same := !gone && v.N == n || gone && n == 0
				if !same && !(id == pending && (gone && pendingTo == 0 || v.N == pendingTo)) {
					t.Fatalf("seed %d: %s is %d (gone: %v), want %d (or %d)", seed, id, v.N, gone, n, pendingTo)
				}
			}
		})
		for n := 1; n < 8; n++ {
			id := fmt.Sprint("r", n%3)
			pending, pendingTo = id, n
			if n%4 == 0 {
				pendingTo = 0
				if err := c.Delete(Runs, id); err != nil && !errs.Is(err, errs.NotFound) {
					t.Fatal(err)
				}
			} else if err := c.Put(Runs, id, doc{id, n}); err != nil {
				t.Fatal(err)
			}
			acked[id], pending = pendingTo, ""
		}
	}
}

func TestEveryFaultComesOut(t *testing.T) {
	broken := errors.New("made to fail")
	for n := 0; ; n++ {
		mem := disk.NewCrash()
		if err := open(t, mem).Put(Runs, "a", doc{"a", 1}); err != nil {
			t.Fatal(err)
		}
		f := disk.NewFaulty(mem, n, broken)
		err := func() error {
			c, err := Open(f, "/state")
			if err != nil {
				return err
			}
			if err := c.Put(Runs, "a", doc{"a", 2}); err != nil {
				return err
			}
			var v doc
			return c.Get(Runs, "a", &v)
		}()
		if f.Ops() <= n {
			if err != nil {
				t.Fatal("nothing failed, and yet:", err)
			}
			return
		}
		if !errors.Is(err, broken) {
			t.Fatalf("operation %d failed and the caller was told %v", n, err)
		}
		var v doc
		if err := open(t, mem).Get(Runs, "a", &v); err != nil || v.N != 1 && v.N != 2 {
			t.Fatalf("after a fault at %d: %+v, %v", n, v, err)
		}
	}
}
