package linux_test

import (
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/fsx"
	"github.com/holdfast-backup/holdfast/internal/lab/linux"
)

// operations is how many operations each run of fsx does.
const operations = 20000

// TestKernelClient has Linux's own NFS client work on what the built program serves. The guests are booted once.
func TestKernelClient(t *testing.T) {
	r := newRig(t, dd)
	for _, d := range r.disks {
		r.serve(d)
	}
	for name, options := range map[string]string{"dd soft": vdsmOptions, "dd hard": hardOptions} {
		t.Run(name, func(t *testing.T) { r.testDD(t, r.a, r.disks[0], options) })
	}
	t.Run("lock", r.testLock)
	t.Run("fsx", r.testFsx)
}

// testFsx runs fsx on two disks, in two guests at once.
func (r *rig) testFsx(t *testing.T) {
	for _, c := range []struct {
		m *linux.Machine
		d *disk
		o fsx.Options
	}{
		{r.a, r.disks[0], fsx.Options{Mode: fsx.Buffered, Seed: 1}},
		{r.b, r.disks[1], fsx.Options{Mode: fsx.Direct, Seed: 2}},
	} {
		t.Run(string(c.o.Mode), func(t *testing.T) {
			t.Parallel()
			begun := time.Now()
			c.o.Path = r.mount(t, c.m, c.d, "/mnt/"+string(c.o.Mode), vdsmOptions)
			c.o.Operations, c.o.MaxSize, c.o.MaxLength = operations, diskSize+diskSize/4, 32<<10
			report := call[fsx.Report](t, c.m, "Work.Fsx", c.o)
			t.Logf("%v: %d MiB read, %d MiB written in %.1f s", report.Operations, report.BytesRead>>20, report.BytesWritten>>20, time.Since(begun).Seconds())
		})
	}
}
