package chunkstore

import (
	"bytes"
	"errors"
	"log/slog"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// faults are the ways in which operations fail: one, or that one and all after it.
var faults = []struct {
	name    string
	err     error
	kind    errs.Kind
	forever bool
	stride  int // every how manieth operation is tried
}{
	{"one", syscall.EIO, errs.Corrupt, false, 1},
	{"all", syscall.EIO, errs.Corrupt, true, 3},
	{"full", syscall.ENOSPC, errs.NoSpace, true, 4},
	{"fullonce", syscall.ENOSPC, errs.NoSpace, false, 5},
}

// atEveryOperation runs f with the n-th operation failing, for every n that f reaches. f returns the error it got.
func atEveryOperation(t *testing.T, base *disk.Crash, f func(t *testing.T, under *disk.Crash, d disk.Disk, forever bool) error) {
	for _, c := range faults {
		t.Run(c.name, func(t *testing.T) {
			stride := c.stride
			if raceEnabled || testing.Short() {
				stride *= 5
			}
			for n := 0; ; n += stride {
				under := base.Clone(1)
				d := disk.NewFaulty(under, n, c.err)
				if c.forever {
					d.Forever()
				}
				err := f(t, under, d, c.forever)
				if t.Failed() {
					t.Fatalf("with operation %d failing", n)
				}
				if d.Ops() <= n {
					if err != nil || n < 5 {
						t.Fatalf("without a fault, after %d operations: %v", d.Ops(), err)
					}
					return
				}
				// What fails on a way back may be swallowed; what comes out says what it was.
				if err != nil && (errs.KindOf(err) != c.kind || !errors.Is(err, c.err)) {
					t.Fatalf("operation %d failed with %v, and out came %v: %v", n, c.err, errs.KindOf(err), err)
				}
			}
		})
	}
}

// TestFaultInCreate: after a Create that failed, another one works, or the store is there and opens by its passphrase.
func TestFaultInCreate(t *testing.T) {
	byPassphrase := WithPassphrase(func() ([]byte, error) { return passphrase, nil })
	atEveryOperation(t, disk.NewCrash(), func(t *testing.T, under *disk.Crash, d disk.Disk, _ bool) error {
		_, err := Create(t.Context(), "/a/store", passphrase, testWork, Options{Disk: d})
		for _, after := range []*disk.Crash{under, under.Clone(0), under.Clone(5)} {
			_, again := Create(t.Context(), "/a/store", passphrase, testWork, Options{Disk: after})
			if err == nil && !errs.Is(again, errs.Exists) || again != nil && !errs.Is(again, errs.Exists) {
				t.Errorf("Create said %v, and then %v", err, again)
			}
			if _, err := OpenReader(t.Context(), "/a/store", Options{Disk: after, Unlock: byPassphrase}); err != nil {
				t.Error("the store cannot be opened:", err)
			}
		}
		return err
	})
}

// faultBase is a store with one point, on a disk where everything is synced.
func faultBase(t *testing.T) (*disk.Crash, map[string][]byte) {
	d := disk.NewCrash()
	makeStore(t, d, "/store", fixedSuperblock())
	s, err := Open(t.Context(), "/store", faultOptions(t, d))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := map[string][]byte{"base": noise(1, 150<<10), "second": noise(2, 250<<10), "after": noise(3, 60<<10)}
	if _, err := tryBackup(t.Context(), s, "base", &bytesSource{data: want["base"]}, nil); err != nil {
		t.Fatal(err)
	}
	return d, want
}

func faultOptions(t *testing.T, d disk.Disk) Options {
	return Options{Disk: d, IndexDir: filepath.Join(memoryDir(t), "index"), PackSize: 100 << 10, Unlock: WithMaster(testKey)}
}

// TestFaultInBackup: whatever fails in opening, storing and committing comes out, nothing of the point is seen, what was
// committed before stays, and the store opens again and goes on.
func TestFaultInBackup(t *testing.T) {
	base, want := faultBase(t)
	atEveryOperation(t, base, func(t *testing.T, under *disk.Crash, d disk.Disk, forever bool) error {
		committed, err := faultyBackup(t, d, want)
		must := []string{"base"}
		if committed {
			must = append(must, "second")
		}
		for _, after := range []*disk.Crash{under, under.Clone(0)} {
			s, oerr := Open(t.Context(), "/store", faultOptions(t, after))
			if oerr != nil {
				t.Error("the store does not open again:", oerr)
				return err
			}
			checkPoints(t, s.Reader, want, must...)
			if _, err := tryBackup(t.Context(), s, "after", &bytesSource{data: want["after"]}, nil); err != nil {
				t.Error("the next backup:", err)
			}
			checkPoints(t, s.Reader, want, append(must, "after")...)
			wholeOrAbsent(t, s.Reader, want, !committed && !forever)
			_ = s.Close()
		}
		return err
	})
}

// wholeOrAbsent looks at the point that may have failed: absent if its removal could be tried, and otherwise, for then
// nobody could take its record back, with all of its disks.
func wholeOrAbsent(t *testing.T, r *Reader, want map[string][]byte, absent bool) {
	points, _ := r.Points(t.Context())
	for _, p := range points {
		if p.Labels["name"] != "second" {
			continue
		}
		if absent {
			t.Error("a point is seen whose Commit failed")
		}
		got, err := readImage(t.Context(), r, p, 1)
		if err != nil || !bytes.Equal(got, want["second"][1000:]) {
			t.Error("a point is seen that is not whole:", err)
		}
	}
}

// faultyBackup stores a point of two disks. It tells whether Commit returned nil.
func faultyBackup(t *testing.T, d disk.Disk, want map[string][]byte) (bool, error) {
	s, err := Open(t.Context(), "/store", faultOptions(t, d))
	if err != nil {
		return false, err
	}
	defer s.Close()
	x := s.Begin(time.Now(), map[string]string{"name": "second"}, nil)
	defer x.Abort()
	for n := range 2 {
		if err := x.Ingest(t.Context(), n, &bytesSource{data: want["second"][n*1000:]}, nil, nil); err != nil {
			if _, again := x.Commit(t.Context()); !errs.Is(again, errs.Invalid) || !errors.Is(again, err) {
				t.Error("Commit after a failed Ingest says", again)
			}
			return false, err
		}
	}
	_, err = x.Commit(t.Context())
	return err == nil, err
}

// pointsUnsynced is a disk on which the folder of records cannot be synced as long as bad is set.
type pointsUnsynced struct {
	disk.Disk
	bad int
}

func (d *pointsUnsynced) SyncDir(name string) error {
	if d.bad > 0 && filepath.Base(name) == "points" {
		d.bad--
		return syscall.EIO
	}
	return d.Disk.SyncDir(name)
}

// TestCommitFailsAtItsLastSync: the record had its name already, and is taken back; if that cannot be made durable
// either, the point is absent or whole.
func TestCommitFailsAtItsLastSync(t *testing.T) {
	for times := 1; times <= 2; times++ {
		base, want := faultBase(t)
		d := &pointsUnsynced{Disk: base}
		s, err := Open(t.Context(), "/store", faultOptions(t, d))
		if err != nil {
			t.Fatal(err)
		}
		d.bad = times
		if _, err := tryBackup(t.Context(), s, "second", &bytesSource{data: want["second"]}, nil); !errs.Is(err, errs.Corrupt) {
			t.Errorf("Commit says %v", err)
		}
		if points, _ := s.Points(t.Context()); len(points) != 1 {
			t.Errorf("%d points are seen after %d failed syncs, want that of before", len(points), times)
		}
		_ = s.Close()
		for seed := range uint64(8) {
			r, err := OpenReader(t.Context(), "/store", Options{Disk: base.Clone(seed), Unlock: WithMaster(testKey)})
			if err != nil {
				t.Fatal(err)
			}
			checkPoints(t, r, want, "base")
			if points, _ := r.Points(t.Context()); times == 1 && len(points) != 1 {
				t.Errorf("after a power cut %d points are seen, want one", len(points))
			}
		}
	}
}

// TestFaultInRemove: a removal that failed has happened or not, and hurts no other point.
func TestFaultInRemove(t *testing.T) {
	base, want := faultBase(t)
	atEveryOperation(t, base, func(t *testing.T, under *disk.Crash, d disk.Disk, _ bool) error {
		r, err := OpenReader(t.Context(), "/store", Options{Disk: d, Unlock: WithMaster(testKey)})
		if err != nil {
			return err
		}
		points, bad := r.Points(t.Context())
		if len(bad) > 0 {
			return bad[0]
		}
		s := &Store{Reader: r, log: slog.New(slog.DiscardHandler)}
		err = s.RemovePoint(t.Context(), points[0].ID)
		after, oerr := OpenReader(t.Context(), "/store", Options{Disk: under.Clone(0), Unlock: WithMaster(testKey)})
		if oerr != nil {
			t.Fatal(oerr)
		}
		checkPoints(t, after, want)
		left, _ := after.Points(t.Context())
		if err == nil && len(left) > 0 || err != nil && len(left) == 0 && len(points) > 1 {
			t.Errorf("RemovePoint said %v and left %d points", err, len(left))
		}
		return err
	})
}
