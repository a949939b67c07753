package qemu_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

// startBlank starts a machine with two empty disks, of which the second one matters. Nothing boots from them.
func startBlank(ctx context.Context, t *testing.T, format, path string) *qemu.VM {
	t.Helper()
	if os.Getenv("HOLDFAST_REAL_PARTS") != "1" {
		t.Skip("starts a real qemu; `make test` runs it")
	}
	other := filepath.Join(t.TempDir(), "other.raw")
	for _, image := range [][]string{{"raw", other}, {format, path}} {
		if _, err := proc.Run(ctx, "qemu-img", "create", "-q", "-f", image[0], image[1], "16M"); err != nil {
			t.Fatal(err)
		}
	}
	vm, err := qemu.Start(ctx, qemu.Config{Name: "blank", MemoryMiB: 64, Drives: []qemu.Drive{
		{Top: qemu.FormatNode("other", "raw", qemu.FileNode(other)), Serial: "other"},
		{Top: qemu.FormatNode("disk", format, qemu.FileNode(path)), SCSI: true, Serial: "the one that moves"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Kill)
	return vm
}

// write writes a MiB of one value as a guest would: to whatever the disk's top is now.
func write(ctx context.Context, t *testing.T, vm *qemu.VM, value byte, atMiB int) {
	t.Helper()
	line := fmt.Sprintf(`qemu-io -d disk1 "write -P %d %dM 1M"`, value, atMiB)
	var out string
	if err := vm.QMP().Execute(ctx, "human-monitor-command", qemu.Node{"command-line": line}, &out); err != nil || out != "" {
		t.Fatalf("%s: %v %s", line, err, out)
	}
}

// holds checks what lies in an image that no machine has open.
func holds(ctx context.Context, t *testing.T, format, path string, values map[int]byte) {
	t.Helper()
	if format != "raw" {
		if out, err := proc.Run(ctx, "qemu-img", "check", "-f", format, path); err != nil {
			t.Errorf("%v %s", err, out)
		}
	}
	for at, value := range values {
		read := fmt.Sprintf("read -P %d %dM 1M", value, at)
		out, err := proc.Run(ctx, "qemu-io", "-f", format, "-r", "-c", read, path)
		if err != nil || strings.Contains(string(out), "failed") {
			t.Errorf("%s: %v %s", read, err, out)
		}
	}
}

// TestAMoveLeavesOneImageHoweverItEnds stops a move at every point where that leaves other parts behind.
func TestAMoveLeavesOneImageHoweverItEnds(t *testing.T) {
	cancelled := func(cancel context.CancelFunc, _ *qemu.VM) { cancel() }
	quit := func(_ context.CancelFunc, vm *qemu.VM) { _ = vm.Quit(context.Background()) }
	for _, c := range []struct {
		name   string
		format string
		at     qemu.MoveStep // when it is reached and has done so much
		done   float64
		stroke func(context.CancelFunc, *qemu.VM)
		moves  bool
	}{
		{"whole qcow2", "qcow2", "", 0, nil, true},
		{"whole raw", "raw", "", 0, nil, true},
		{"cancelled before the snapshot", "qcow2", qemu.MoveSnapshot, 0, cancelled, false},
		{"cancelled at the copy", "qcow2", qemu.MoveSnapshot, 100, cancelled, false},
		{"cancelled at the mirror", "raw", qemu.MoveMirror, 0, cancelled, false},
		{"cancelled at the pivot", "qcow2", qemu.MovePivot, 0, cancelled, false},
		{"cancelled after the pivot", "qcow2", qemu.MovePivot, 100, cancelled, true},
		{"cancelled at the merge", "raw", qemu.MoveMerge, 0, cancelled, true},
		{"ended before the snapshot", "qcow2", qemu.MoveSnapshot, 0, quit, false},
		{"ended at the copy", "qcow2", qemu.MoveSnapshot, 100, quit, false},
		{"ended at the copy, raw", "raw", qemu.MoveSnapshot, 100, quit, false},
		{"ended at the mirror", "qcow2", qemu.MoveMirror, 0, quit, false},
		{"ended after the pivot", "qcow2", qemu.MovePivot, 100, quit, true},
		{"ended at the merge", "raw", qemu.MoveMerge, 0, quit, true},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			dir, dest := t.TempDir(), t.TempDir()
			source, base := filepath.Join(dir, "disk"), filepath.Join(dest, "moved")
			vm := startBlank(ctx, t, c.format, source)
			write(ctx, t, vm, 1, 1)
			moving, stop := context.WithCancel(ctx)
			defer stop()
			wrote := map[int]byte{1: 1}
			moved, err := qemu.MoveDisk(moving, vm, qemu.MoveOptions{Disk: 1, SnapshotPath: filepath.Join(dir, "snapshot"),
				DestDir: dest, BasePath: base, Single: true, Progress: func(s qemu.MoveStep, done float64) {
					if s == qemu.MoveSnapshot && done == 100 || s == qemu.MovePivot && done == 100 {
						at := len(wrote) + 1
						write(ctx, t, vm, byte(at), at)
						wrote[at] = byte(at)
					}
					if s == c.at && done == c.done && c.stroke != nil {
						c.stroke(stop, vm)
					}
				}})
			if (err == nil) != c.moves || c.moves && (moved.Base != base || moved.Top != "") {
				t.Fatalf("moved %+v, error %v", moved, err)
			}
			assertOneImage(ctx, t, vm, c.moves, dir, dest)
			place := source
			if c.moves {
				place = base
			}
			holds(ctx, t, c.format, place, wrote)
		})
	}
}

// assertOneImage ends the machine and looks what lies in both folders: nothing but the disk, at its place.
func assertOneImage(ctx context.Context, t *testing.T, vm *qemu.VM, moved bool, dir, dest string) {
	t.Helper()
	select {
	case <-vm.Done():
	default:
		nodes, err := vm.BlockNodes(ctx)
		if err != nil || len(nodes) != 4 { // two disks, each a format and a file
			t.Errorf("open: %v, %v", nodes, err)
		}
		if moved {
			assertClosed(ctx, t, vm, dir)
		} else {
			assertClosed(ctx, t, vm, dest)
		}
		if err := vm.Quit(ctx); err != nil && !errs.Is(err, errs.Stale) {
			t.Error(err)
		}
	}
	want := map[string][]string{dir: {"disk"}, dest: nil}
	if moved {
		want[dest] = []string{"moved"} // and the source, which is left to the caller
	}
	for folder, names := range want {
		entries, err := os.ReadDir(folder)
		var got []string
		for _, e := range entries {
			got = append(got, e.Name())
		}
		if err != nil || !slices.Equal(got, names) {
			t.Errorf("%s holds %v, want %v, error %v", folder, got, names, err)
		}
	}
}
