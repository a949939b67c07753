package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/lab/netns"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
)

const realParts = "HOLDFAST_REAL_PARTS"

// TestMain moves the whole test into a network of its own, as the command does.
func TestMain(m *testing.M) {
	if os.Getenv(realParts) == "1" {
		if err := netns.Enter(); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// tasks is what a report must have, and with which programs.
func tasks() map[string][]string {
	all := map[string][]string{"export: raw file": {ours, "restic restore", "restic dump"}}
	for _, task := range []string{"first, raw", "again, raw unchanged but touched", "again, raw 5 % rewritten",
		"again, qcow2 with dirty bitmap, 5 % rewritten"} {
		all["import: "+task] = []string{ours, restic}
	}
	for _, state := range []string{"cold", "warm"} {
		for _, task := range []string{"read 1 MiB in order, 1 in flight", "read 1 MiB in order, 8 in flight",
			"read 4 KiB at random, 1 in flight", "read 4 KiB at random, 16 in flight"} {
			all["nfs: "+task+", "+state] = []string{"holdfast raw", "holdfast qcow2", ganesha}
		}
		for _, task := range []string{"read 1 MiB in order", "read 4 KiB at random"} {
			for _, how := range []string{"O_DIRECT", "buffered"} {
				all["fuse: "+task+", "+how+", "+state] = []string{ours, plainFile}
			}
		}
	}
	return all
}

// TestQuick runs all of it on little data. It says nothing about speed: only that every row is there, with figures.
func TestQuick(t *testing.T) {
	if os.Getenv(realParts) != "1" {
		t.Skip("needs root, restic and nfs-ganesha; `make test` runs it")
	}
	if err := parts.Need(needed); err != nil {
		t.Skipf("%v; `make bench` installs it", err)
	}
	mounts := mountTable(t)
	report, err := Run(t.Context(), Options{BinDir: programs(t), WorkDir: t.TempDir(), Quick: true, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	if now := mountTable(t); now != mounts {
		t.Errorf("mounts were left behind; before:\n%s\nafter:\n%s", mounts, now)
	}
	found := map[string][]string{}
	for _, row := range report.Rows {
		task := row.Section + ": " + row.Task
		found[task] = append(found[task], row.Program)
		if missing := absent(row); missing != "" {
			t.Errorf("%s, %s: no %s: %+v", task, row.Program, missing, row)
		}
	}
	want := tasks()
	for task, programs := range want {
		if !slices.Equal(found[task], programs) {
			t.Errorf("%s: rows of %q, want %q", task, found[task], programs)
		}
	}
	if len(found) != len(want) || report.DataBytes == 0 || report.FloorMiB == 0 || len(report.Versions) != 2 {
		t.Errorf("%d tasks, want %d; report %+v", len(found), len(want), report)
	}
	if err := report.Table(t.Output()); err != nil {
		t.Error(err)
	}
}

// absent names a figure that a row should have and has not.
func absent(row Row) string {
	reading := row.Section == "nfs" || row.Section == "fuse"
	served := row.Program != plainFile
	used := served && !strings.HasSuffix(row.Task, "buffered, warm") // there the kernel answers by itself
	peer := row.Program == restic || row.Program == exportWays[0] || row.Program == ganesha || row.Program == plainFile
	for _, figure := range []struct {
		name  string
		value float64
		need  bool
	}{
		{"seconds", row.Seconds, true}, {"ratio", row.Ratio, !peer},
		{"CPU", row.CPU, used}, {"peak", row.PeakMiB, served},
		{"added", row.AddedMiB, !reading}, {"ops", row.OpsPerSec, reading}, {"MB/s", row.MBps, reading},
		{"p50", row.P50, reading}, {"p99", row.P99, reading}, {"CPU per op", row.CPUPerOp, reading && used},
	} {
		if figure.need && figure.value <= 0 {
			return figure.name
		}
	}
	return ""
}

// mountTable returns what is mounted where.
func mountTable(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// programs returns the folder of the holdfast program: the one that `make test` has just built, else a new one.
func programs(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("HOLDFAST_BIN"); dir != "" {
		return dir
	}
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "holdfast"),
		"github.com/holdfast-backup/holdfast/cmd/holdfast")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build holdfast: %v\n%s", err, out)
	}
	return dir
}
