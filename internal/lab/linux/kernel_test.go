package linux_test

import (
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/fsx"
	"github.com/holdfast-backup/holdfast/internal/lab/linux"
)

// operations is how many operations each run of fsx does.
const operations = 20000

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
	t.Run("lock", r.testLock)
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
	o.Operations, o.MaxSize, o.MaxLength = operations, diskSize+diskSize/4, 16<<10
	report := call[fsx.Report](t, m, "Work.Fsx", o)
	t.Logf("%v: %d MiB read, %d MiB written in %.1f s", report.Operations, report.BytesRead>>20, report.BytesWritten>>20, time.Since(begun).Seconds())
}
