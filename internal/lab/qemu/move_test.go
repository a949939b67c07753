package qemu_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

// startDebian copies the cached disk into folder, starts a machine from the copy and logs in.
func startDebian(ctx context.Context, t *testing.T, format, path string) *qemu.VM {
	t.Helper()
	if os.Getenv("HOLDFAST_REAL_PARTS") != "1" {
		t.Skip("boots a real Debian; `make test` runs it")
	}
	cache, err := parts.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	disk, err := debian.Build(ctx, debian.Options{CacheDir: cache, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := proc.Run(ctx, "qemu-img", "convert", "-O", format, disk.QCOW2, path); err != nil {
		t.Fatal(err)
	}
	vm, err := qemu.Start(ctx, qemu.Config{Name: t.Name(), Disk: qemu.FormatNode("disk", format, qemu.FileNode(path))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Kill)
	if err := vm.Console().Login(ctx, debian.Prompt); err != nil {
		t.Fatal(err)
	}
	return vm
}

// counter appends 1, 2, 3 … to a file for as long as the machine runs, each number on the disk before the next.
const counter = "( (i=0; while :; do i=$((i+1)); echo $i >>/srv/counter; sync -d /srv/counter; sleep 0.02; done) &)"

// TestMoveDiskWhileTheGuestWrites moves a disk from one file to two others and proves that nothing written before,
// during or after is lost, and that nothing of the source is open.
func TestMoveDiskWhileTheGuestWrites(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	dir, dest := t.TempDir(), t.TempDir()
	source := filepath.Join(dir, "disk.qcow2")
	vm := startDebian(ctx, t, "qcow2", source)
	run := func(command string) string {
		out, err := vm.Console().Run(ctx, command)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	before := run("head -c 20M /dev/urandom >/srv/before; sync; sha256sum </srv/before")
	run(counter)
	var steps []qemu.MoveStep
	var during string
	moved, err := qemu.MoveDisk(ctx, vm, qemu.MoveOptions{
		SnapshotPath: filepath.Join(dir, "snapshot.qcow2"), DestDir: dest,
		Progress: func(step qemu.MoveStep, _ float64) {
			if len(steps) == 0 || steps[len(steps)-1] != step {
				steps = append(steps, step)
			}
			if step == qemu.MoveCopy && during == "" {
				during = run("head -c 5M /dev/urandom >/srv/during; sync; sha256sum </srv/during")
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("steps %v, took %v", steps, moved.Took)
	assertClosed(ctx, t, vm, dir)
	if err := os.Remove(source); err != nil {
		t.Error(err)
	}
	run("echo after >/srv/after; sync; echo 3 >/proc/sys/vm/drop_caches")
	got := run("sha256sum </srv/before; sha256sum </srv/during; cat /srv/after")
	if want := before + "\n" + during + "\nafter"; got != want {
		t.Errorf("after the move the guest reads\n%s\nwant\n%s", got, want)
	}
	// The counter has gone on, and no number is missing.
	last, _ := strconv.Atoi(run("sleep 1; sync; tail -n 1 /srv/counter"))
	if missing := run("seq 1 " + strconv.Itoa(last) + " | cmp - <(head -n " + strconv.Itoa(last) + " /srv/counter)"); missing != "" || last < 10 {
		t.Errorf("the counter reached %d: %s", last, missing)
	}
	if err := vm.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	for _, image := range []string{moved.Base, moved.Top} {
		if out, err := proc.Run(ctx, "qemu-img", "check", image); err != nil {
			t.Errorf("%s: %v %s", image, err, out)
		}
	}
}

// assertClosed asks qemu and the kernel whether anything below dir is open.
func assertClosed(ctx context.Context, t *testing.T, vm *qemu.VM, dir string) {
	t.Helper()
	nodes, err := vm.BlockNodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if strings.Contains(n.File, dir) {
			t.Errorf("qemu still has the node %v", n)
		}
	}
	files, err := vm.OpenFiles()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasPrefix(f, dir) {
			t.Errorf("qemu's process still has %s open", f)
		}
	}
}

func TestAMachineEndsWithItsContextAndLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	life, end := context.WithCancel(ctx)
	vm := startDebian(life, t, "raw", filepath.Join(t.TempDir(), "disk.raw"))
	if _, err := vm.Console().Run(ctx, "exit_code() { return 3; }; exit_code"); err == nil {
		t.Error("a failed command passed")
	} else if code, ok := qemu.ExitCode(err); !ok || code != 3 {
		t.Errorf("error %v", err)
	}
	end()
	select {
	case <-vm.Done():
	case <-ctx.Done():
		t.Fatal("the machine outlives its context")
	}
	if err := syscall.Kill(vm.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the process is still there: %v", err)
	}
	if _, err := vm.Console().Run(ctx, "true"); !errs.Is(err, errs.Stale) {
		t.Errorf("error %v from a machine that is gone", err)
	}
	if err := vm.QMP().Execute(ctx, "query-status", nil, nil); !errs.Is(err, errs.Stale) {
		t.Errorf("error %v from a machine that is gone", err)
	}
}

func TestAMachineThatCannotStartSaysWhy(t *testing.T) {
	if os.Getenv("HOLDFAST_REAL_PARTS") != "1" {
		t.Skip("starts a real qemu; `make test` runs it")
	}
	missing := filepath.Join(t.TempDir(), "missing.raw")
	_, err := qemu.Start(t.Context(), qemu.Config{Name: "broken", Disk: qemu.FormatNode("disk", "raw", qemu.FileNode(missing))})
	if err == nil || !strings.Contains(err.Error(), "missing.raw") {
		t.Errorf("error %v does not name the missing file", err)
	}
}
