package chunkstore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/chunkstore/scrub"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// rapid is a plan that does not wait.
var rapid = scrub.Plan{Period: 30 * 24 * time.Hour, Limit: 1 << 40}

// onePass scrubs until a pass has come to its end, and returns it.
func onePass(t *testing.T, s *Store) (out Pass) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := s.Scrub(ctx, ScrubOptions{Plan: rapid, pause: time.Millisecond, Ended: func(p Pass) {
		out = p
		cancel()
	}})
	if err != nil || out.Ended.IsZero() {
		t.Fatalf("the pass has not come to its end: %+v, %v", out, err)
	}
	return out
}

// again makes the plan want a pass now.
func again(t *testing.T, s *Store) {
	t.Helper()
	err := s.noteScrub(t.Context(), func(r *scrubRecord) {
		if r.Last != nil {
			r.Last.Began = r.Last.Began.Add(-rapid.Period)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestScrub: a pass reads everything once, finds what has rotted and what is gone, names it, and says so once.
func TestScrub(t *testing.T) {
	s, dir, o := realStore(t, Options{Cutter: "fixed-64k", PackSize: 150 << 10})
	a := mustBackup(t, s, "a", &bytesSource{data: noise(1, 500<<10)}, nil)
	b := mustBackup(t, s, "b", &bytesSource{data: noise(2, 200<<10)}, nil)
	all, err := s.sealedPacks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := onePass(t, s)
	if p.Packs != int64(len(all)) || p.Bytes < 700<<10 || p.Found != 0 || p.Faults != 0 || len(p.Objects) != 0 {
		t.Errorf("a pass over a good store: %+v", p)
	}
	st, err := fresh(t, dir, o).ScrubStatus(t.Context())
	if err != nil || st.Pass != nil || st.Last == nil || *st.Last.copy() != *p.copy() {
		t.Errorf("%+v, %v", st, err)
	}
	again(t, s)
	rotten, gone := chunksOf(t, s.Reader, a.Disks[0])[1], chunksOf(t, s.Reader, a.Disks[0])[5]
	flip(t, dir, rotten)
	if err := os.Remove(filepath.Join(dir, gone.Object())); err != nil {
		t.Fatal(err)
	}
	s.packs.close()
	p = onePass(t, s)
	if p.Found < 3 || p.Faults < 3 || !slices.Contains(p.Objects, rotten.Object()) || !slices.Contains(p.Objects, gone.Object()) {
		t.Errorf("a pass over a damaged store: %+v", p)
	}
	hurts(t, s.Reader, []*Point{a, b}, a)
	again(t, s)
	if p = onePass(t, s); p.Found != 0 || p.Faults < 3 {
		t.Errorf("a pass that finds what is known: %+v", p)
	}
	mustBackup(t, s, "again", &bytesSource{data: noise(1, 500<<10)}, nil)
	again(t, s)
	if p = onePass(t, s); p.Found != 0 || p.Faults != 0 {
		t.Errorf("a pass over what is healed: %+v", p)
	}
	hurts(t, s.Reader, []*Point{a, b})
}

// copy drops what cannot be compared.
func (p *Pass) copy() *struct {
	began, ended         time.Time
	packs, found, faults int64
} {
	return &struct {
		began, ended         time.Time
		packs, found, faults int64
	}{p.Began, p.Ended, p.Packs, p.Found, p.Faults}
}

// TestScrubHealsFromCopies: what is damaged in one pack and lies in another is healed without a backup.
func TestScrubHealsFromCopies(t *testing.T) {
	s, dir, o := realStore(t, Options{Cutter: "fixed-64k"})
	data := noise(1, 200<<10)
	a := mustBackup(t, s, "a", &bytesSource{data: data}, nil)
	if err := s.resetIndex(); err != nil { // so that the same content is stored twice
		t.Fatal(err)
	}
	b := mustBackup(t, s, "b", &bytesSource{data: data}, nil)
	bad := chunksOf(t, s.Reader, a.Disks[0])[1]
	if err := s.index.Delete(idsOf(chunksOf(t, s.Reader, a.Disks[0]))); err != nil { // nor does the index know the copy
		t.Fatal(err)
	}
	flip(t, dir, bad)
	page := pagePath(t, s.Reader, a.Disks[0])[0]
	flip(t, dir, page)
	fails(t, dir, o, a)
	checkVerify(t, fresh(t, dir, o), []*Point{a}, -1)
	s.Begin(time.Now(), nil, nil).Abort() // learns what others have found
	hurts(t, s.Reader, []*Point{a, b}, a)
	if p := onePass(t, s); p.Packs != 4 {
		t.Errorf("%+v", p)
	}
	hurts(t, s.Reader, []*Point{a, b})
	reads(t, dir, o, a, data)
}

// TestScrubResumes: cut short at any pack, the next scrub goes on there, and a pass looks at each pack once in all.
func TestScrubResumes(t *testing.T) {
	s, dir, o := realStore(t, Options{Cutter: "fixed-64k", PackSize: 100 << 10})
	mustBackup(t, s, "a", &bytesSource{data: noise(1, 900<<10)}, nil)
	all, err := s.sealedPacks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lives := 0
	for ended := false; !ended; lives++ {
		if lives > 100 {
			t.Fatal("it does not come to an end")
		}
		ctx, cancel := context.WithCancel(t.Context())
		x := make(chan error)
		before, err := s.ScrubStatus(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var calls atomic.Int64
		go func() {
			x <- s.Scrub(ctx, ScrubOptions{Plan: rapid, pause: time.Millisecond, Ended: func(p Pass) {
				if ended = true; p.Packs != int64(len(all)) {
					t.Errorf("%d packs were looked at, there are %d", p.Packs, len(all))
				}
				cancel()
			}, Busy: func() bool {
				if calls.Add(1) > 1 { // the process dies in its first pack or two, or so
					cancel()
				}
				return calls.Load() > 1
			}})
		}()
		if err := <-x; err != nil {
			t.Fatal(err)
		}
		cancel()
		after, err := fresh(t, dir, o).ScrubStatus(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if before.Pass != nil && !ended && (after.Pass == nil || after.Pass.Packs < before.Pass.Packs || !after.Pass.Began.Equal(before.Pass.Began)) {
			t.Fatalf("it was at %+v, and is at %+v", before.Pass, after.Pass)
		}
		_ = s.Close()
		s = reopen(t, dir, o)
	}
	if lives < 3 {
		t.Errorf("it was cut short only %d times", lives)
	}
}

// TestScrubYields: while a backup runs nothing is read, and the end of the scrub is not held up by that.
func TestScrubYields(t *testing.T) {
	s, _, _ := realStore(t, Options{Cutter: "fixed-64k", PackSize: 300 << 10})
	mustBackup(t, s, "a", &bytesSource{data: noise(1, 2<<20)}, nil)
	running := s.Begin(time.Now(), nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	waits := make(chan bool, 1)
	go func() {
		ended <- s.Scrub(ctx, ScrubOptions{Plan: rapid, pause: time.Millisecond, Ended: func(Pass) { cancel() }})
	}()
	for range 20 { // it comes to the place where it has to wait
		st, err := s.ScrubStatus(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.Pass != nil && st.Pass.Packs > 4 {
			t.Fatalf("it has read %d packs beside a backup", st.Pass.Packs)
		}
		select {
		case <-waits:
		case <-time.After(5 * time.Millisecond):
		}
	}
	if err := s.Scrub(t.Context(), ScrubOptions{Plan: rapid}); !errs.Is(err, errs.Busy) {
		t.Error("a second scrub:", err)
	}
	running.Abort()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if st, err := s.ScrubStatus(t.Context()); err != nil || st.Last == nil {
		t.Errorf("it has not gone on: %+v, %v", st, err)
	}
	running = s.Begin(time.Now(), nil, nil)
	defer running.Abort()
	again(t, s)
	ctx, cancel = context.WithCancel(t.Context())
	go func() { ended <- s.Scrub(ctx, ScrubOptions{Plan: rapid}) }()
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestVerifiedCounts: a verification of the whole store is a pass, a quick one is not.
func TestVerifiedCounts(t *testing.T) {
	s, dir, o := realStore(t, Options{})
	mustBackup(t, s, "a", &bytesSource{data: noise(1, 200<<10)}, nil)
	for _, quick := range []bool{true, false} {
		r := fresh(t, dir, o)
		began := time.Now()
		v, err := r.VerifyStore(t.Context(), VerifyOptions{Quick: quick})
		if err == nil {
			err = r.KeepVerified(t.Context(), v, quick, began)
		}
		if err != nil {
			t.Fatal(err)
		}
		st, err := s.ScrubStatus(t.Context())
		if err != nil || st.Verified == nil || st.Verified.Quick != quick || st.Verified.Packs != 2 {
			t.Errorf("%+v, %v", st.Verified, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		err = s.awaitPass(ctx, ScrubOptions{Plan: rapid})
		if cancel(); quick != (err == nil) {
			t.Errorf("after a verification, quick %v: %v", quick, err)
		}
	}
	if _, err := s.b.Open(t.Context(), quarantineName(packKey{pack.Data, 1})); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

// TestScrubLosesItsCursor: it costs a pass.
func TestScrubLosesItsCursor(t *testing.T) {
	s, dir, _ := realStore(t, Options{})
	mustBackup(t, s, "a", &bytesSource{data: noise(1, 200<<10)}, nil)
	onePass(t, s)
	if err := os.WriteFile(filepath.Join(dir, scrubName), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p := onePass(t, s); p.Packs != 2 || p.Faults != 0 {
		t.Errorf("%+v", p)
	}
}

func idsOf(spots []Spot) (out []chunk.ID) {
	for _, s := range spots {
		out = append(out, s.ID)
	}
	return out
}
