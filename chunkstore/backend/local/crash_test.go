package local

import (
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/storetest"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// belief is what the acknowledgements so far allow to be found under a name.
type belief struct {
	whole  []string // contents it may have once it is whole
	absent bool     // it may be absent
	open   bool     // it may be unsealed
	synced string   // an unsealed one begins with this
}

// story drives a backend through the life of a store and keeps the beliefs. Errors end only the part they happen in.
type story struct {
	t       *testing.T
	l       *Local
	beliefs map[string]*belief
	failed  int
}

func (s *story) run() {
	s.beliefs = map[string]*belief{}
	for _, n := range []string{"keys/master", "points/1", "packs/00/p", "packs/00/q"} {
		s.beliefs[n] = &belief{absent: true}
	}
	for _, part := range []func() error{s.replace, s.put, s.seal, s.resume, s.remove, s.putAgain} {
		if part() != nil {
			s.failed++
		}
	}
}

func (s *story) replace() error {
	b := s.beliefs["keys/master"]
	for _, c := range []string{"first", "second"} {
		b.whole = append(b.whole, c)
		if err := s.l.Replace(s.t.Context(), "keys/master", []byte(c)); err != nil {
			return err
		}
		*b = belief{whole: []string{c}}
	}
	return nil
}

func (s *story) put() error {
	b := s.beliefs["points/1"]
	b.whole = []string{"point"}
	if err := s.l.Put(s.t.Context(), "points/1", []byte("point")); err != nil {
		return err
	}
	b.absent = false
	return nil
}

func (s *story) seal() error {
	b := s.beliefs["packs/00/p"]
	b.open = true
	a, err := s.l.Append(s.t.Context(), "packs/00/p")
	if err != nil {
		return err
	}
	b.absent = false
	return s.write(a, b, "one, ", "one, two, ", "one, two, three")
}

// write appends so that the object grows to each of contents, syncs between them and seals at the end.
func (s *story) write(a backend.Appender, b *belief, contents ...string) error {
	b.whole = contents[len(contents)-1:]
	at := len(b.synced)
	for i, c := range contents {
		if _, err := io.WriteString(a, c[at:]); err != nil {
			return s.poisoned(a, err)
		}
		if at = len(c); i < len(contents)-1 {
			if err := a.Sync(); err != nil {
				return s.poisoned(a, err)
			}
			b.synced = c
		}
	}
	if err := a.Seal(); err != nil {
		return s.poisoned(a, err)
	}
	b.open = false
	return nil
}

// poisoned checks that nothing works after an error, above all no second sync, and returns the error.
func (s *story) poisoned(a backend.Appender, err error) error {
	if a.Sync() == nil || a.Seal() == nil {
		s.t.Errorf("Sync or Seal succeeds after %v", err)
	}
	if _, werr := a.Write([]byte("x")); werr == nil {
		s.t.Errorf("Write succeeds after %v", err)
	}
	_ = a.Close() // may fail or not
	return err
}

func (s *story) resume() error {
	b := s.beliefs["packs/00/q"]
	b.open = true
	a, err := s.l.Append(s.t.Context(), "packs/00/q")
	if err != nil {
		return err
	}
	b.absent = false
	if _, err := io.WriteString(a, "to keep, to drop"); err != nil {
		return s.poisoned(a, err)
	}
	if err := a.Sync(); err != nil {
		return s.poisoned(a, err)
	}
	b.synced = "to keep,"
	if err := a.Close(); err != nil {
		return err
	}
	if a, err = s.l.Resume(s.t.Context(), "packs/00/q", int64(len(b.synced))); err != nil {
		return err
	}
	return s.write(a, b, "to keep, and more", "to keep, and more of it")
}

func (s *story) remove() error {
	b := s.beliefs["points/1"]
	was := b.absent
	b.absent = true
	err := s.l.Remove(s.t.Context(), "points/1")
	if err == nil || was && errs.Is(err, errs.NotFound) {
		b.whole = nil
	}
	return err
}

func (s *story) putAgain() error {
	b := s.beliefs["points/1"]
	b.whole = append(b.whole, "again")
	err := s.l.Put(s.t.Context(), "points/1", []byte("again"))
	if err == nil {
		*b = belief{whole: []string{"again"}}
	}
	return err
}

// check compares what is on a disk with the beliefs.
func (s *story) check(d disk.Disk, when string) {
	s.t.Helper()
	l := New(d, "/store")
	list, err := l.List(s.t.Context(), "")
	if err != nil {
		s.t.Errorf("%s: List: %v", when, err)
		return
	}
	seen := map[string]bool{}
	for _, i := range list {
		seen[i.Name] = true
		b := s.beliefs[i.Name]
		o, err := l.Open(s.t.Context(), i.Name)
		if err != nil {
			s.t.Errorf("%s: Open %s: %v", when, i.Name, err)
			continue
		}
		got, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
		switch {
		case err != nil:
			s.t.Errorf("%s: %s: %v", when, i.Name, err)
		case i.Sealed && !slices.Contains(b.whole, string(got)):
			s.t.Errorf("%s: %s holds %q, want one of %q", when, i.Name, got, b.whole)
		case !i.Sealed && (!b.open || !strings.HasPrefix(string(got), b.synced)):
			s.t.Errorf("%s: %s is unsealed and holds %q, want %+v", when, i.Name, got, b)
		}
		_ = o.Close() // opened for reading only
	}
	for name, b := range s.beliefs {
		if !seen[name] && !b.absent {
			s.t.Errorf("%s: %s is lost, want %+v", when, name, b)
		}
	}
}

const seeds = 12

// TestCrash cuts the power before and after every sync of the story. What was acknowledged is there.
func TestCrash(t *testing.T) {
	d := disk.NewCrash()
	s := &story{t: t, l: New(d, "/store")}
	syncs := 0
	d.OnSync(func() {
		syncs++
		for seed := range uint64(seeds) {
			s.check(d.Clone(seed), "crash")
		}
	})
	s.run()
	if s.failed != 0 || syncs < 20 {
		t.Errorf("%d parts failed, %d syncs", s.failed, syncs)
	}
	s.check(d.Clone(0), "at the end")
}

// TestFaults fails every operation of the story in turn, once and for ever, and cuts the power afterwards.
func TestFaults(t *testing.T) {
	for _, forever := range []bool{false, true} {
		for n := 0; ; n++ {
			under := disk.NewCrash()
			d := disk.NewFaulty(under, n, syscall.EIO)
			if forever {
				d.Forever()
			}
			s := &story{t: t, l: New(d, "/store")}
			s.run()
			if d.Ops() <= n {
				if s.failed != 0 {
					t.Errorf("%d parts failed without a fault", s.failed)
				}
				break
			}
			s.check(under, "after a fault")
			for seed := range uint64(seeds) {
				s.check(under.Clone(seed), "crash after a fault")
			}
			if t.Failed() {
				t.Fatalf("operation %d, for ever %v", n, forever)
			}
		}
	}
}

// TestBackendOnCrash: the crash disk is a disk like any other.
func TestBackendOnCrash(t *testing.T) {
	storetest.TestBackend(t, func(*testing.T) backend.Backend { return New(disk.NewCrash(), "/store") })
}
