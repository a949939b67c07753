package disk_test

import (
	"errors"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/disk/disktest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func TestDisks(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) (disk.Disk, string){
		"os":           func(t *testing.T) (disk.Disk, string) { return disk.OS{}, t.TempDir() },
		"crash":        func(*testing.T) (disk.Disk, string) { return disk.NewCrash(), "/" },
		"cloned":       func(*testing.T) (disk.Disk, string) { return disk.NewCrash().Clone(7), "/" },
		"faulty crash": func(*testing.T) (disk.Disk, string) { return disk.NewFaulty(disk.NewCrash(), -1, nil), "/" },
		"faulty os":    func(t *testing.T) (disk.Disk, string) { return disk.NewFaulty(disk.OS{}, -1, nil), t.TempDir() },
	} {
		t.Run(name, func(t *testing.T) { disktest.Run(t, open) })
	}
}

func read(t *testing.T, d disk.Disk, name string) string {
	t.Helper()
	b, err := disk.ReadFile(d, name, 1<<20)
	if errs.Is(err, errs.NotFound) {
		return "(absent)"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestPublishSurvivesCrashes cuts the power around every sync of two publications: the name holds the old or the new
// text, whole, and after Publish returned only the new one.
func TestPublishSurvivesCrashes(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(400) {
		c := disk.NewCrash()
		if err := c.MkdirAll("/d"); err != nil {
			t.Fatal(err)
		}
		allowed := []string{"(absent)", "one"}
		check := func(d *disk.Crash) {
			got := read(t, d, "/d/name")
			seen[got]++
			if got != allowed[0] && got != allowed[len(allowed)-1] {
				t.Fatalf("seed %d: the name holds %q, want one of %q", seed, got, allowed)
			}
		}
		c.OnSync(func() { check(c.Clone(seed)) })
		if err := disk.Publish(c, "/d/name", []byte("one")); err != nil {
			t.Fatal(err)
		}
		allowed = []string{"one"}
		check(c.Clone(seed))
		long := make([]byte, 5000)
		allowed = []string{"one", string(long)}
		if err := disk.Publish(c, "/d/name", long); err != nil {
			t.Fatal(err)
		}
		allowed = allowed[1:]
		check(c.Clone(seed))
		check(c.Clone(seed).Clone(seed + 1))
	}
	if len(seen) != 3 {
		t.Errorf("the crashes showed %d different contents, want all 3", len(seen))
	}
}

func TestPublishUnderEveryFault(t *testing.T) {
	fault := errors.New("fault")
	for _, forever := range []bool{false, true} {
		for n := 0; ; n++ {
			c := disk.NewCrash()
			if err := disk.Publish(c, "/name", []byte("old")); err != nil {
				t.Fatal(err)
			}
			f := disk.NewFaulty(c, n, fault)
			if forever {
				f.Forever()
			}
			err := disk.Publish(f, "/name", []byte("newer"))
			if f.Ops() <= n {
				if err != nil || n < 6 {
					t.Fatalf("run without a fault after %d operations: %v", n, err)
				}
				break
			}
			for seed := range uint64(20) {
				got := read(t, c.Clone(seed), "/name")
				if err == nil && got != "newer" || got != "newer" && got != "old" {
					t.Errorf("fault at %d: Publish said %v and the name holds %q", n, err, got)
				}
			}
			if err != nil && !errors.Is(err, fault) {
				t.Errorf("fault at %d came out as %v", n, err)
			}
			if err := disk.Publish(c, "/name", []byte("after")); err != nil || read(t, c, "/name") != "after" {
				t.Errorf("fault at %d: the next Publish fails: %v", n, err)
			}
		}
	}
}
