package scenario_test

import (
	"os"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/scenario"
)

// TestBoot plays a machine that lives on its backup, at once in both forms in which a disk is served.
func TestBoot(t *testing.T) {
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
	for format, address := range map[string]string{"raw": "127.0.1.1", "qcow2": "127.0.1.2"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			if err := scenario.Boot(t.Context(), scenario.BootOptions{
				Options: scenario.Options{BinDir: bin, WorkDir: t.TempDir(), Disk: disk.QCOW2, Out: t.Output()},
				Format:  format, Address: address,
			}); err != nil {
				t.Fatal(err)
			}
		})
	}
}
