package storebench

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/lab/parts"
)

// TestQuick runs all of it on little data. It says nothing about speed: only that every row is there, with figures.
func TestQuick(t *testing.T) {
	if os.Getenv("HOLDFAST_REAL_PARTS") != "1" {
		t.Skip("needs root, restic, borg and casync; `make test` runs it")
	}
	if err := parts.Need(needed); err != nil {
		t.Skipf("%v; `make bench-store` installs it", err)
	}
	image := Image{"small", smallDisk(t)}
	report, err := Run(t.Context(), Options{BinDir: programs(t), WorkDir: t.TempDir(), Images: []Image{image}, Rounds: 1, Few: true, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, r := range report.Rows {
		found[r.Task]++
		if r.Seconds <= 0 || r.CPU <= 0 || r.PeakMiB <= 0 || (r.StoredMiB <= 0) != (r.Task == taskRestore) {
			t.Errorf("a figure is missing: %+v", r)
		}
	}
	for _, task := range []string{taskFirst, taskAgain, taskChanged, taskRestore} {
		if found[task] != 7 {
			t.Errorf("%s: %d programs, want 7", task, found[task])
		}
	}
	if found[taskLeisure] != 2 {
		t.Errorf("%s: %d programs, want 2", taskLeisure, found[taskLeisure])
	}
	for _, v := range report.Targets {
		if v.Value <= 0 {
			t.Errorf("%+v", v)
		}
	}
	if len(report.Targets) != len(targets)-3 || // a store of 10 million chunks is too much for here
		report.Disks[0].DataBytes != 48*mib || len(report.Versions) != 3 {
		t.Errorf("%d targets, want %d; %+v", len(report.Targets), len(targets), report)
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "holdfast-bench-*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// programs returns a folder with what is measured.
func programs(t *testing.T) string {
	t.Helper()
	built := os.Getenv("HOLDFAST_BIN")
	if built == "" {
		t.Fatal("HOLDFAST_BIN must name the folder of the built programs; `make test` sets it")
	}
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(built, ours), filepath.Join(dir, ours)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", filepath.Join(dir, "chunkstore.test"), "../../../chunkstore").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}
