package scenario_test

import (
	"os"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/scenario"
)

// TestOVirt plays the demo, once in each of the two ways in which an engine makes a backup.
func TestOVirt(t *testing.T) {
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
	for name, level := range map[string]string{"hybrid": "4.8", "live": "4.6"} {
		t.Run(name, func(t *testing.T) {
			if err := scenario.OVirt(t.Context(), scenario.OVirtOptions{
				Options:      scenario.Options{BinDir: bin, WorkDir: t.TempDir(), Disk: disk.QCOW2, Out: t.Output()},
				ClusterLevel: level, Scale: 0.05,
			}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestTransfer plays backups through snapshots.
func TestTransfer(t *testing.T) {
	if os.Getenv(realParts) != "1" {
		t.Skip("boots a real machine; `make test` runs it")
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
	if err := scenario.Transfer(t.Context(), scenario.OVirtOptions{
		Options: scenario.Options{BinDir: bin, WorkDir: t.TempDir(), Disk: disk.QCOW2, Out: t.Output()}, Scale: 0.05,
	}); err != nil {
		t.Fatal(err)
	}
}
