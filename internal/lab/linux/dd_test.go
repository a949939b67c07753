package linux_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/lab/guest"
	"github.com/holdfast-backup/holdfast/internal/lab/linux"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// dd is the program that vdsm itself reads and writes a domain's files with.
const dd = "/bin/dd"

// blockSizes are vdsm's and qemu's, the largest that NFS carries in one call and more, and odd ones: Linux takes direct
// I/O of any length and offset on NFS, so that each arrives as it is.
var blockSizes = []int{512, 4096, 1 << 20, 340, 513, 4097, 1<<20 + 1, 3 << 20}

// testDD writes and reads with O_DIRECT, and compares with what another client reads, which knows no page cache.
func (r *rig) testDD(t *testing.T, m *linux.Machine, d *disk, options string) {
	path := r.mount(t, m, d, "/mnt/dd", options)
	for i, size := range blockSizes {
		const blocks = 3
		seek := 1 + i*4099%max(1, diskSize/size-blocks-1)
		if size >= 1<<20 {
			seek = 0
		}
		length := min(blocks*size, diskSize-seek*size)
		seed := uint64(1000 + i)
		call[guest.Nothing](t, m, "Work.Put", PutArgs{Path: "/tmp/in", Seed: seed, Size: length})
		dd := func(args ...string) {
			t.Helper()
			if out, err := m.Run(t.Context(), append([]string{dd, fmt.Sprint("bs=", size)}, args...)...); err != nil {
				t.Fatalf("%d bytes: %v\n%s", size, err, out)
			}
		}
		dd("if=/tmp/in", "of="+path, fmt.Sprint("seek=", seek), "oflag=direct", "conv=notrunc")
		copy(d.content[seek*size:], random(seed, length))
		dd("if="+path, "of=/tmp/out", fmt.Sprint("skip=", seek), fmt.Sprint("count=", blocks), "iflag=direct")
		if got := call[string](t, m, "Work.Sum", SumArgs{Path: "/tmp/out", Block: 1 << 20}); got != sum(random(seed, length)) {
			t.Errorf("with blocks of %d bytes something else is read than was written", size)
		}
	}
	want := sum(d.content)
	for _, a := range []SumArgs{{path, true, 1 << 20}, {path, true, 340*100 + 1}, {path, false, 128 << 10}} {
		if got := call[string](t, m, "Work.Sum", a); got != want {
			t.Errorf("read with %+v the disk is another", a)
		}
	}
	if got := r.sumByLibnfs(t, d); got != want {
		t.Error("libnfs reads another disk")
	}
}

func sum(p []byte) string {
	s := sha256.Sum256(p)
	return hex.EncodeToString(s[:])
}

// sumByLibnfs reads the disk with another client than Linux's.
func (r *rig) sumByLibnfs(t *testing.T, d *disk) string {
	t.Helper()
	out, err := proc.Run(t.Context(), "nfs-cat", d.url)
	if err != nil {
		t.Fatal(err)
	}
	return sum(out)
}
