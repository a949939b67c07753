package measure_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/measure"
)

func TestRunCountsWhatAProgramUses(t *testing.T) {
	var out bytes.Buffer
	used, err := measure.Run(t.Context(), measure.Spec{Stdout: &out, Env: []string{"WORD=said"}, Dir: t.TempDir(),
		Args: []string{"sh", "-c", `i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo $WORD`}})
	if err != nil || out.String() != "said\n" {
		t.Fatalf("%q, %v", out.String(), err)
	}
	if used.CPU <= 0 || used.Seconds < used.CPU/2 || used.Peak < 1<<19 {
		t.Errorf("%+v", used)
	}
	idle, err := measure.Run(t.Context(), measure.Spec{Args: []string{"true"}})
	if err != nil || idle.CPU >= used.CPU {
		t.Errorf("doing nothing took %+v, counting took %+v; %v", idle, used, err)
	}
}

func TestRunTellsWhatAFailedProgramSaid(t *testing.T) {
	_, err := measure.Run(t.Context(), measure.Spec{Args: []string{"sh", "-c", "echo no such disk >&2; exit 3"}})
	if err == nil || !strings.Contains(err.Error(), "no such disk") {
		t.Errorf("error %v", err)
	}
}

// TestFiles: what is copied is equal and has holes, and one changed byte is found.
func TestFiles(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	content := append(make([]byte, 8<<20), bytes.Repeat([]byte("data"), 1<<18)...)
	if err := os.WriteFile(from, content, 0o400); err != nil {
		t.Fatal(err)
	}
	if err := measure.CopySparse(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	if err := measure.SameBytes(from, to); err != nil {
		t.Error(err)
	}
	if n, err := measure.OnDisk(to); err != nil || n < 1<<20 || n > 3<<20 {
		t.Errorf("the copy takes %d bytes, %v", n, err)
	}
	f, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{1}, 5<<20); err != nil {
		t.Fatal(err)
	}
	if err := measure.SameBytes(from, to); !errs.Is(err, errs.Corrupt) {
		t.Errorf("one byte differs: %v", err)
	}
	if err := f.Truncate(5 << 20); err != nil {
		t.Fatal(err)
	}
	if err := measure.SameBytes(from, to); !errs.Is(err, errs.Corrupt) {
		t.Errorf("one is shorter: %v", err)
	}
}

func TestVersion(t *testing.T) {
	for text, want := range map[string]string{
		"restic 0.14.0 compiled with go1.19": "0.14.0", "NFS-Ganesha Release = V4.3\n": "4.3", "casync 2\n+LIBFUSE": "2",
		"nothing": "unknown",
	} {
		if got := measure.Version(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
