package scenario_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// TestFullStore backs up into a store that has not enough room, and again when it has.
func TestFullStore(t *testing.T) {
	var store string
	y := newYard(t, yardOptions{address: "127.0.0.15", store: func(dir string) { store = mountStore(t, dir) }})
	y.add()
	y.works(nil, "backup", "run", "web1", "--wait")
	y.noise("big", 56)
	y.noise("little", 1)
	resize(t, store, 24<<20)
	for range 2 {
		y.fails(codeFailed, []string{"big_Disk1", "no space left", "Make room", "Cleaned up: nothing"}, "backup",
			"run", "big", "--wait")
		y.kept(1)
		var status struct {
			Free int64 `json:"free_bytes"`
		}
		if y.works(&status, "store", "status"); status.Free < 23<<20 {
			t.Errorf("%d bytes are free: what could not be kept takes up room", status.Free)
		}
	}
	// What would fit is refused as well, since the index keeps off the disk's last bytes; but nothing new needs no room.
	y.fails(codeFailed, []string{"MiB are free", "MiB are needed", "Free space", "Cleaned up: nothing"}, "backup",
		"run", "little", "--wait")
	y.kept(1)
	y.works(nil, "backup", "run", "web1", "--full", "--wait")
	resize(t, store, 400<<20)
	y.works(nil, "backup", "run", "big", "--wait")
	y.works(nil, "backup", "run", "little", "--wait")
	y.clean("checkpoint")
	if n := y.points(); n != 4 {
		t.Errorf("%d points, want 4", n)
	}
}

// mountStore makes a small file system for the store in a node's folder. The mounts are this test's own: see
// netns.Enter.
func mountStore(t *testing.T, dir string) string {
	t.Helper()
	store := filepath.Join(dir, "store")
	if err := os.MkdirAll(store, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", store, "tmpfs", 0, "size=400m,mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(store, unix.MNT_DETACH) })
	return store
}

// resize leaves a file system so many free bytes.
func resize(t *testing.T, dir string, free int64) {
	t.Helper()
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	if err == nil {
		size := (int64(st.Blocks)-int64(st.Bfree))*st.Bsize + free
		err = unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d,mode=0755", size))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// noise adds a VM that is down, with a disk of so many MiB that cannot be compressed.
func (y *yard) noise(name string, mib int) {
	y.t.Helper()
	raw := filepath.Join(y.dir, name+".raw")
	y.tool("dd", "if=/dev/urandom", "of="+raw, "bs=1M", fmt.Sprint("count=", mib), "status=none")
	y.tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, filepath.Join(y.dir, "disk.qcow2"))
	y.vm(engine.VMSeed{Name: name, Disks: []engine.DiskSeed{{Alias: name + "_Disk1", Incremental: true}}})
}
