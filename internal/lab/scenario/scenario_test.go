package scenario_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/netns"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/scenario"
)

const realParts = "HOLDFAST_REAL_PARTS"

// TestMain moves the whole test into a network of its own, where port 111 is free.
func TestMain(m *testing.M) {
	if os.Getenv(realParts) == "1" {
		if err := netns.Enter(); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func TestCore(t *testing.T) {
	if os.Getenv(realParts) != "1" {
		t.Skip("boots real machines for minutes; `make test` runs it")
	}
	bin := programs(t)
	cache, err := parts.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	disk, err := debian.Build(t.Context(), debian.Options{CacheDir: cache, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	if err := scenario.Core(t.Context(), scenario.Options{
		BinDir: bin, WorkDir: t.TempDir(), Disk: disk.QCOW2, Out: t.Output(),
	}); err != nil {
		t.Fatal(err)
	}
}

// programs returns the folder of the holdfast program: the one that `make test` has just built, else a new one, since
// a binary left from another day would prove nothing.
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
