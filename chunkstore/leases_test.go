package chunkstore

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// readings are ways to read a point. Each holds a lease until end is called, or the image is no longer in use.
var readings = []struct {
	name  string
	other bool // the reader is not the store's own
	begin func(r *Reader, p *Point) (img *Image, end func(), err error)
}{
	{"image", true, imageRead}, {"own image", false, imageRead}, {"lease", true, leaseTaken}, {"own lease", false, leaseTaken},
	{"image that is to be read", true, func(r *Reader, p *Point) (*Image, func(), error) {
		img, err := r.Image(p, 0)
		if err != nil {
			return nil, nil, err
		}
		return img, nil, img.Lease(context.Background())
	}},
	{"extents", true, func(r *Reader, p *Point) (*Image, func(), error) {
		img, err := r.Image(p, 0)
		if err != nil {
			return nil, nil, err
		}
		return img, nil, img.Extents(context.Background(), 0, 1, func(_, _ int64, _ bool) bool { return true })
	}},
	{"reader that ends", true, func(r *Reader, p *Point) (*Image, func(), error) {
		img, _, err := imageRead(r, p)
		return img, func() { _ = r.Close() }, err
	}},
}

// TestCollectSparesWhatIsRead: what is read is kept when its point is removed, whoever reads it and in whatever way, and
// is given back by the first collection after the last reader has ended.
func TestCollectSparesWhatIsRead(t *testing.T) {
	for _, c := range readings {
		t.Run(c.name, func(t *testing.T) {
			s, dir, o := realStore(t, Options{CacheBytes: 1})
			r := s.Reader
			if c.other {
				var err error
				if r, err = OpenReader(t.Context(), dir, o); err != nil {
					t.Fatal(err)
				}
				defer r.Close()
			}
			data := noise(1, 900<<10)
			p, err := tryBackup(t.Context(), s, "x", &bytesSource{data: data}, nil)
			if err != nil {
				t.Fatal(err)
			}
			img, end, err := c.begin(r, p)
			if err == nil {
				err = s.RemovePoint(t.Context(), p.ID)
			}
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				res := mustCollect(t, s)
				if !slices.Equal(res.Held, []string{string(p.ID)}) || res.FreedBytes != 0 {
					t.Errorf("while the point is read: %+v", res)
				}
				if img == nil {
					continue
				}
				got := make([]byte, len(data))
				if _, err := img.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, data) {
					t.Error("after a collection:", err)
				}
			}
			runtime.KeepAlive(img)
			if img = nil; end != nil {
				end()
			}
			untilReleased(t, s, p.ID)
			if res := mustCollect(t, s); len(res.Held) > 0 || res.Chunks == 0 {
				t.Errorf("afterwards: %+v", res)
			}
			if _, packs := occupiedBy(t, s.Reader); packs != 0 {
				t.Errorf("%d packs are left", packs)
			}
		})
	}
}

func imageRead(r *Reader, p *Point) (*Image, func(), error) {
	img, err := r.Image(p, 0)
	if err != nil {
		return nil, nil, err
	}
	_, err = img.ReadAt(context.Background(), make([]byte, 1), 0)
	return img, nil, err
}

func leaseTaken(r *Reader, p *Point) (*Image, func(), error) {
	end, err := r.Lease(context.Background(), p.ID)
	return nil, end, err
}

// untilReleased waits until nobody holds a lease any more: that of an image ends when the runtime has found that nobody
// can use the image.
func untilReleased(t *testing.T, s *Store, id PointID) {
	t.Helper()
	for late := time.After(10 * time.Second); ; {
		leased, err := s.leases.leased(id)
		if err != nil {
			t.Fatal(err)
		}
		if !leased {
			return
		}
		runtime.GC()
		select {
		case <-late:
			t.Fatal("the lease of an image that nobody uses is not given back")
		case <-time.After(time.Millisecond):
		}
	}
}

// TestParentIsGone: a backup on top of a point that was removed, and whose space may be somebody else's by now, fails.
func TestParentIsGone(t *testing.T) {
	s, _, _ := realStore(t, Options{})
	p, err := tryBackup(t.Context(), s, "x", &bytesSource{data: noise(1, 300<<10)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	unchanged := &bytesSource{data: noise(2, 300<<10), changed: func(b int64) bool { return b == 0 }}
	x := s.Begin(time.Now(), map[string]string{"name": "y"}, nil)
	defer x.Abort()
	if err := x.Ingest(t.Context(), 0, unchanged, &Parent{p, p.Disks[0]}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.RemovePoint(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := tryBackup(t.Context(), s, "z", unchanged, &Parent{p, p.Disks[0]}); err != nil {
		t.Error("a parent that another session has:", err)
	}
	if dry, err := s.Collect(t.Context(), CollectOptions{DryRun: true}); err != nil || len(dry.Held) != 1 {
		t.Errorf("while a session has the parent: %+v, %v", dry, err)
	}
	y, err := x.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustCollect(t, s)
	if got, err := readImage(t.Context(), s.Reader, y, 0); err != nil || !bytes.Equal(got[4096:], noise(1, 300<<10)[4096:]) {
		t.Error("what was built on a parent that is gone:", err)
	}
	if _, err := tryBackup(t.Context(), s, "z", unchanged, &Parent{p, p.Disks[0]}); !errs.Is(err, errs.Stale) {
		t.Error("a parent that is gone:", err)
	}
}

// TestLeaseCounts takes and gives back leases from many sides: one is held as long as anybody holds it.
func TestLeaseCounts(t *testing.T) {
	s, dir, o := realStore(t, Options{})
	p, err := tryBackup(t.Context(), s, "x", &bytesSource{data: noise(1, 1000)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	first, err := r.Lease(t.Context(), p.ID)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 50 {
				end, err := r.Lease(t.Context(), p.ID)
				if err != nil {
					t.Error(err)
					return
				}
				if leased, err := s.leases.leased(p.ID); err != nil || !leased {
					t.Error("a lease is not seen:", err)
				}
				end()
				end()
			}
		})
	}
	wg.Wait()
	if leased, err := s.leases.leased(p.ID); err != nil || !leased {
		t.Error("the first lease ended with the others:", err)
	}
	first()
	if leased, err := s.leases.leased(p.ID); err != nil || leased {
		t.Error("a lease is left:", err)
	}
	for id, kind := range map[PointID]errs.Kind{"0123456789abcdef": errs.Stale, "x": errs.Invalid} {
		if _, err := r.Lease(t.Context(), id); !errs.Is(err, kind) {
			t.Errorf("a lease on point %q: %v", id, err)
		}
	}
}

// TestRemoveOnAFullDisk: a point can be removed when nothing can be written, unless somebody reads it.
func TestRemoveOnAFullDisk(t *testing.T) {
	base, _ := faultBase(t)
	s, err := Open(t.Context(), "/store", faultOptions(t, &fullForRemoved{base}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	points, _ := s.Points(t.Context())
	end, err := s.Lease(t.Context(), points[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RemovePoint(t.Context(), points[0].ID); !errs.Is(err, errs.NoSpace) || errs.NextStep(err) == "" {
		t.Error("while the point is read:", err)
	}
	if left, _ := s.Points(t.Context()); len(left) != 1 {
		t.Error("it is gone all the same")
	}
	end()
	if err := s.RemovePoint(t.Context(), points[0].ID); err != nil {
		t.Error(err)
	}
	if left, _ := s.Points(t.Context()); len(left) != 0 {
		t.Error("it is still there")
	}
}

// fullForRemoved is a disk without space for one more record of a removed point.
type fullForRemoved struct{ disk.Disk }

func (d *fullForRemoved) Create(name string) (disk.File, error) {
	if filepath.Base(filepath.Dir(name)) == "removed" {
		return nil, &os.PathError{Op: "create", Path: name, Err: syscall.ENOSPC}
	}
	return d.Disk.Create(name)
}
