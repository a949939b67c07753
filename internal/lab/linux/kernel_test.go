package linux_test

import (
	"os"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/fsx"
	"github.com/holdfast-backup/holdfast/internal/lab/guest"
	"github.com/holdfast-backup/holdfast/internal/lab/linux"
)

// soakKey names the environment variable that makes the tests ten times as long: `make soak` sets it to 1.
const soakKey = "HOLDFAST_SOAK"

// times is how much longer a test is than in `make test`.
func times() int {
	if os.Getenv(soakKey) == "1" {
		return 10
	}
	return 1
}

// operations is how many operations each run of fsx does.
func operations() int { return 20000 * times() }

// TestKernelClient has Linux's own NFS client work on what the built programs serve: disks of restore points, and a
// storage domain. Two guests are booted once for all of it, and their sanlocks keep host ids of the domain all the while.
func TestKernelClient(t *testing.T) {
	r := newRig(t, dd, sanlock, sleep)
	s := r.newSession()
	h := s.join(t, r)
	for _, d := range r.disks {
		r.serve(d)
	}
	for name, options := range map[string]string{"dd soft": vdsmOptions, "dd hard": hardOptions} {
		t.Run(name, func(t *testing.T) { r.testDD(t, r.a, r.disks[0], options) })
	}
	t.Run("lock", func(t *testing.T) { s.testLock(t, r) })
	t.Run("storm", func(t *testing.T) {
		for name, m := range map[string]*linux.Machine{"a": r.a, "b": r.b} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s.testStorm(t, m)
			})
		}
	})
	t.Run("two clients", func(t *testing.T) { s.testTwoClients(t, r) })
	t.Run("lease", h.lease)
	t.Run("restarts", func(t *testing.T) { s.testRestarts(t, r) })
	t.Run("together", func(t *testing.T) {
		t.Run("outage", func(t *testing.T) { // of guest b, which waits most of the time
			t.Parallel()
			s.testOutage(t, r)
		})
		t.Run("fsx buffered", func(t *testing.T) {
			t.Parallel()
			r.testFsx(t, r.a, r.disks[0], fsx.Options{Mode: fsx.Buffered, Seed: 1})
		})
		if times() > 1 {
			t.Run("fsx both", func(t *testing.T) {
				t.Parallel()
				s.testFsxBoth(t, r)
			})
		}
		t.Run("fsx direct", func(t *testing.T) {
			t.Parallel()
			r.testFsx(t, r.a, r.disks[1], fsx.Options{Mode: fsx.Direct, Seed: 2})
		})
	})
	t.Run("sanlock", h.leave) // has seen all of it
	for _, d := range r.disks {
		r.stop(d)
	}
	if err := s.node.Stop(); err != nil {
		t.Error(err)
	}
}

// testFsx runs fsx on a disk, which it also makes longer and shorter.
func (r *rig) testFsx(t *testing.T, m *linux.Machine, d *disk, o fsx.Options) {
	begun := time.Now()
	o.Path = r.mount(t, m, d, "/mnt/fsx-"+string(o.Mode), vdsmOptions)
	o.Operations, o.MaxSize, o.MaxLength = operations(), diskSize+diskSize/4, 16<<10
	report := call[fsx.Report](t, m, "Work.Fsx", o)
	t.Logf("%v: %d MiB read, %d MiB written in %.1f s", report.Operations, report.BytesRead>>20, report.BytesWritten>>20, time.Since(begun).Seconds())
}

// testFsxBoth runs fsx with and without the page cache in turn, on a file of the domain.
func (s *session) testFsxBoth(t *testing.T, r *rig) {
	path := s.mount(t, r.a, "/mnt/fsx-both") + "/" + s.domain + "/fsx"
	call[guest.Nothing](t, r.a, "Work.Put", PutArgs{Path: path, Size: diskSize})
	report := call[fsx.Report](t, r.a, "Work.Fsx", fsx.Options{
		Path: path, Mode: fsx.Both, Seed: 3, Operations: operations(), MaxSize: 2 * diskSize, MaxLength: 16 << 10,
	})
	t.Logf("%v", report.Operations)
}
