package parts

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// TestTheMakefileInstallsEveryPart holds the two lists together.
func TestTheMakefileInstallsEveryPart(t *testing.T) {
	text, err := os.ReadFile("../../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(strings.ReplaceAll(string(text), "\\\n", " "), "\nPACKAGES := ")
	list, _, _ = strings.Cut(list, "\n")
	installed := strings.Fields(list)
	for _, p := range slices.Concat(Build, Machine, Kernel, Imageio, NFSClient, Mount, Sanlock) {
		if !slices.Contains(installed, p.Package) {
			t.Errorf("%s comes from %s, which `make deps` does not install", p.Path, p.Package)
		}
	}
}

func TestNeedNamesEveryMissingPackageOnce(t *testing.T) {
	if err := Need([]Part{{"sh", "dash"}, {"/bin/sh", "dash"}}); err != nil {
		t.Error(err)
	}
	err := Need([]Part{{"no-such-tool", "one"}, {"/no/such/file", "two"}},
		[]Part{{"no-such-other", "one"}, {"sh", "dash"}})
	if !errs.Is(err, errs.NotFound) || !strings.HasSuffix(errs.NextStep(err), "apt-get install one two") {
		t.Errorf("error %v, next step %q", err, errs.NextStep(err))
	}
}
