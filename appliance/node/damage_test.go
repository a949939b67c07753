package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/chunkstore"
)

// TestTellOfDamage: damage that anybody finds is told once, over restarts, and shown until it is healed.
//
// Long: one story, told in order.
func TestTellOfDamage(t *testing.T) {
	n, again := newNode(t)
	p := keep(t, n.store, "web", noon, 0)
	keep(t, n.store, "db", noon, 1)
	packs, err := filepath.Glob(filepath.Join(n.store.Dir(), "data/*/*.pack"))
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	b, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	b[130] ^= 1
	if err := os.WriteFile(packs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	told := func(n *Node) (out []appliance.Task) {
		t.Helper()
		for range 2 {
			if err := n.tellOfDamage(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		list, err := n.ListTasks(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range list {
			if one.Kind == appliance.TaskScrub {
				ended, err := n.tasks.Wait(t.Context(), one.ID)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, ended)
			}
		}
		return out
	}
	if got := told(n); len(got) > 0 {
		t.Errorf("told before anybody knew: %+v", got)
	}
	if v, err := n.store.Verify(t.Context(), []*chunkstore.Point{p}, nil); err != nil || v.Quarantined != 1 {
		t.Fatalf("%+v, %v", v, err)
	}
	for range 2 {
		got := told(n)
		if len(got) != 1 || got[0].State != appliance.TaskFailed || got[0].Problem == nil || got[0].Problem.Code != "corrupt" ||
			!strings.Contains(got[0].Problem.Cause, "of web") || strings.Contains(got[0].Problem.Cause, "db") || got[0].Problem.Remedy == "" {
			t.Errorf("%+v", got)
		}
		if err := n.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		n = again()
	}
	list, bad := n.ListPoints(t.Context())
	if len(bad) > 0 {
		t.Fatal(bad)
	}
	for _, a := range list {
		if hit := a.DamagedBytes > 0; hit != (a.VM == "web") || hit != (a.DamagedSince != nil) {
			t.Errorf("%+v", a)
		}
	}
	i, err := n.GetStore(t.Context())
	if err != nil || i.Damage.Chunks != 1 || i.Damage.Points != 1 || i.Damage.Since == nil {
		t.Errorf("%+v, %v", i.Damage, err)
	}
	keep(t, n.store, "web", noon, 0)
	if i, err = n.GetStore(t.Context()); err != nil || i.Damage.Chunks != 0 || i.Damage.Points != 0 || i.Damage.Healed != 1 {
		t.Errorf("healed: %+v, %v", i.Damage, err)
	}
}

// TestScrubByItself: a node scrubs without being asked, and ends at once.
func TestScrubByItself(t *testing.T) {
	n, _ := newNode(t)
	keep(t, n.store, "web", noon, 0)
	n.o.ScrubEvery, n.o.ScrubLimit = 24*time.Hour, 64<<20
	n.wg.Go(func() { n.scrubByItself(n.background) })
	for late := time.After(20 * time.Second); ; {
		i, err := n.GetStore(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if last := i.Scrub.Last; last != nil {
			if last.Packs != 2 || last.Faults != 0 || last.Ended == nil {
				t.Errorf("%+v", last)
			}
			break
		}
		select {
		case <-late:
			t.Fatal("nothing was scrubbed")
		case <-time.After(5 * time.Millisecond):
		}
	}
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
