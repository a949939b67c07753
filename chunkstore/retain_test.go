package chunkstore

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/retention"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// clocks is a machine's clocks, which a test moves.
type clocks struct{ retention.Reading }

func newClocks() *clocks {
	return &clocks{retention.Reading{Wall: time.Date(2026, 9, 14, 12, 0, 0, 0, time.UTC), BootID: "a", Boot: time.Hour}}
}

func (c *clocks) read() (retention.Reading, error) { return c.Reading, nil }

// pass lets time go by on both clocks.
func (c *clocks) pass(d time.Duration) {
	c.Wall, c.Boot = c.Wall.Add(d), c.Boot+d
}

const day = 24 * time.Hour

func TestLockedPointStays(t *testing.T) {
	c := newClocks()
	s, dir, o := newStore(t, Options{ReadClocks: c.read})
	p, _ := backup(t, s, &bytesSource{data: noise(1, 100<<10)}, nil)
	until := c.Wall.Add(30 * day)
	if _, err := s.LockPoint(t.Context(), p.ID, until, "audit"); err != nil {
		t.Fatal(err)
	}
	refused := func(s *Store, when string) {
		t.Helper()
		err := s.RemovePoint(t.Context(), p.ID)
		if !errs.Is(err, errs.Denied) || !strings.Contains(err.Error(), "audit") || errs.NextStep(err) == "" {
			t.Fatalf("%s: removal of a locked point: %v", when, err)
		}
		if _, err := s.Point(t.Context(), p.ID); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	refused(s, "at once")
	if _, err := s.LockPoint(t.Context(), p.ID, until.Add(-day), ""); !errs.Is(err, errs.Denied) {
		t.Error("a lock was shortened:", err)
	}
	if _, err := s.LockPoint(t.Context(), p.ID, c.Wall.Add(-1), ""); !errs.Is(err, errs.Invalid) {
		t.Error("a lock in the past:", err)
	}
	if _, err := s.LockPoint(t.Context(), "0123456789abcdef", until, ""); !errs.Is(err, errs.NotFound) {
		t.Error("a lock on no point:", err)
	}
	c.Wall = c.Wall.Add(60 * day) // somebody turns the clock forward
	refused(s, "with the clock set forward")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c.BootID, c.Boot = "b", 0
	s = openStore(t, dir, o)
	refused(s, "after a restart of the machine")
	if clock, err := s.Clock(t.Context()); err != nil || !clock.Doubtful() {
		t.Errorf("the clock is not doubted: %+v, %v", clock, err)
	}
	if _, err := s.ConfirmClock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.RemovePoint(t.Context(), p.ID); err != nil {
		t.Error("after a person confirmed the clock:", err)
	}
	entries, bad := s.Audit(t.Context())
	var what []string
	for _, e := range entries {
		what = append(what, e.What)
		if e.Who == "" || e.Time.IsZero() {
			t.Errorf("an entry without who or when: %+v", e)
		}
	}
	if got := strings.Join(what, ", "); len(bad) > 0 || !strings.HasPrefix(got, "lock point, ") || !strings.HasSuffix(got, ", confirm clock") ||
		!strings.Contains(got, "refused to remove locked point") || !strings.Contains(got, "clock jumped") {
		t.Errorf("audit: %s; %v", got, bad)
	}
}

func TestLockEndsByItself(t *testing.T) {
	c := newClocks()
	s, _, _ := newStore(t, Options{ReadClocks: c.read})
	p, _ := backup(t, s, &bytesSource{data: noise(1, 100<<10)}, nil)
	if _, err := s.LockPoint(t.Context(), p.ID, c.Wall.Add(2*day), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := s.LockPoint(t.Context(), p.ID, c.Wall.Add(3*day), ""); err != nil {
		t.Error("a lock cannot be extended:", err)
	}
	c.pass(3*day - time.Second)
	if err := s.RemovePoint(t.Context(), p.ID); !errs.Is(err, errs.Denied) {
		t.Error("a second too early:", err)
	}
	c.pass(time.Second)
	if err := s.RemovePoint(t.Context(), p.ID); err != nil {
		t.Error("when it is over:", err)
	}
	if _, err := s.PointLock(t.Context(), p.ID); !errs.Is(err, errs.NotFound) {
		t.Error("the lock of a removed point:", err)
	}
}

// TestDamagedLockHolds damages the lock and the clock, each in turn: neither opens anything, and both say so.
func TestDamagedLockHolds(t *testing.T) {
	for _, name := range []string{"locks/", "clock"} {
		c := newClocks()
		s, dir, _ := newStore(t, Options{ReadClocks: c.read})
		p, _ := backup(t, s, &bytesSource{data: noise(1, 100<<10)}, nil)
		if _, err := s.LockPoint(t.Context(), p.ID, c.Wall.Add(day), ""); err != nil {
			t.Fatal(err)
		}
		c.pass(2 * day)
		file := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			file = filepath.Join(file, string(p.ID))
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)-1] ^= 1
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.RemovePoint(t.Context(), p.ID); !errs.Is(err, errs.Corrupt) || errs.NextStep(err) == "" {
			t.Errorf("%s damaged: %v", name, err)
		}
		if _, err := s.Point(t.Context(), p.ID); err != nil {
			t.Errorf("%s damaged: %v", name, err)
		}
		if _, err := s.ConfirmClock(t.Context()); err != nil {
			t.Errorf("%s damaged: confirming the clock: %v", name, err)
		}
	}
}

// TestLockSurvivesACrash cuts the power at every sync: a lock that LockPoint has returned is there, and holds.
func TestLockSurvivesACrash(t *testing.T) {
	c := newClocks()
	base := disk.NewCrash()
	makeStore(t, base, "/store", fixedSuperblock())
	options := func(d disk.Disk) Options {
		return Options{Disk: d, IndexDir: filepath.Join(memoryDir(t), "index"), Unlock: WithMaster(testKey), ReadClocks: c.read}
	}
	s, err := Open(t.Context(), "/store", options(base))
	if err != nil {
		t.Fatal(err)
	}
	p, _ := backup(t, s, &bytesSource{data: noise(1, 100<<10)}, nil)
	if _, err := s.LockPoint(t.Context(), p.ID, c.Wall.Add(day), ""); err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(20) {
		after, err := Open(t.Context(), "/store", options(base.Clone(seed)))
		if err != nil {
			t.Fatal(err)
		}
		if err := after.RemovePoint(t.Context(), p.ID); !errs.Is(err, errs.Denied) {
			t.Errorf("seed %d: %v", seed, err)
		}
		if err := after.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
