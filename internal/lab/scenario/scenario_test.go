package scenario_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"sync"
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
	flag.Parse()
	// Tests that run side by side wait most of the time: as many at once as there are processors would be too few.
	if f := flag.Lookup("test.parallel"); f != nil && f.Value.String() == f.DefValue {
		_ = f.Value.Set("5") // it is a number
	}
	code := m.Run()
	_ = os.RemoveAll(built.dir) // it is in the folder for temporary files
	os.Exit(code)
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

// built is the folder of the programs that this test has built.
var built struct {
	once sync.Once
	dir  string
	err  error
}

// programs returns the folder of the product's programs: those that `make test` has just built, else new ones, since
// a binary left from another day would prove nothing.
func programs(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("HOLDFAST_BIN"); dir != "" {
		return dir
	}
	built.once.Do(func() { built.dir, built.err = build() })
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

func build() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "holdfast-test-"); err != nil {
		return "", err
	}
	const commands = "github.com/holdfast-backup/holdfast/cmd/"
	b := exec.Command("go", "build", "-o", dir, commands+"holdfast", commands+"holdfastd")
	b.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := b.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return dir, nil
}
