package debian_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

// realDisk returns the shared cached disk, or skips.
func realDisk(t *testing.T) debian.Disk {
	t.Helper()
	if os.Getenv("HOLDFAST_REAL_PARTS") != "1" {
		t.Skip("builds and boots a real Debian; `make test` runs it")
	}
	cache, err := parts.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	disk, err := debian.Build(t.Context(), debian.Options{CacheDir: cache, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

func TestTheDiskBootsFromItsFirstSector(t *testing.T) {
	disk := realDisk(t)
	work := filepath.Join(t.TempDir(), "work.qcow2")
	if _, err := proc.Run(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", "-b", disk.QCOW2, "-F", "qcow2", work); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	for _, scsi := range []bool{false, true} {
		begun := time.Now()
		vm, err := qemu.Start(ctx, qemu.Config{Name: "boot", SCSI: scsi, Q35: scsi,
			Disk: qemu.FormatNode("disk", "qcow2", qemu.FileNode(work))})
		if err != nil {
			t.Fatal(err)
		}
		defer vm.Kill()
		if err := vm.Console().Login(ctx, debian.Prompt); err != nil {
			t.Fatal(err)
		}
		t.Logf("scsi %v: prompt after %.1f s", scsi, time.Since(begun).Seconds())
		out, err := vm.Console().Run(ctx, "systemctl --failed --no-legend; cat /etc/debian_version; findmnt -no SOURCE,FSTYPE /; systemd-analyze")
		if err != nil || !strings.HasPrefix(out, "12.") || !strings.Contains(out, "ext4") {
			t.Errorf("the guest says %q, error %v: want no failed unit, Debian 12 and ext4", out, err)
		}
		t.Log(out)
		if err := vm.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	}
}

func TestTheCacheAnswersAtOnceAndToAll(t *testing.T) {
	want := realDisk(t)
	cache, err := parts.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if disk, err := debian.Build(t.Context(), debian.Options{CacheDir: cache}); err != nil || disk != want {
				t.Errorf("got %v, %v", disk, err)
			}
		})
	}
	all.Wait()
	if left, _ := filepath.Glob(filepath.Join(cache, "unfinished")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestATooSmallDiskIsRefused(t *testing.T) {
	_, err := debian.Build(t.Context(), debian.Options{CacheDir: t.TempDir(), SizeMiB: 100})
	if !errs.Is(err, errs.Invalid) {
		t.Errorf("error %v", err)
	}
}
