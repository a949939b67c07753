package domain

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
)

// trySanlock runs the real program on files, without its daemon. Where it is missing `make test` fails and everybody else
// skips.
func trySanlock(t *testing.T, args ...string) (string, error) {
	t.Helper()
	if err := parts.Need(parts.Sanlock); err != nil {
		if os.Getenv("HOLDFAST_REAL_PARTS") == "1" {
			t.Fatal(err, errs.NextStep(err))
		}
		t.Skip(err, "; `make test` installs it and runs this test")
	}
	out, err := exec.Command(parts.Sanlock[0].Path, append([]string{"direct"}, args...)...).CombinedOutput()
	return string(out), err
}

func sanlock(t *testing.T, args ...string) string {
	t.Helper()
	out, err := trySanlock(t, args...)
	if err != nil {
		t.Fatalf("sanlock direct %q: %v\n%s", args, err, out)
	}
	return out
}

// written returns a domain on the real disk and its folder. Names of files given to sanlock must have no colon.
func written(t *testing.T) (Spec, func(name string) string) {
	t.Helper()
	s := example()
	dir := filepath.Join(t.TempDir(), "root")
	must(t, Write(dir, s))
	return s, func(name string) string { return filepath.Join(dir, s.UUID, name) }
}

// TestSanlockFormatsTheSame has sanlock format leases of the same names, and compares every byte.
func TestSanlockFormatsTheSame(t *testing.T) {
	s, in := written(t)
	v := s.Volumes[1]
	volume := "images/" + v.Disk + "/" + v.Image + ".lease"
	other := filepath.Join(t.TempDir(), "file")
	for _, c := range []struct {
		name string
		size int64
		args []string
	}{
		{"dom_md/ids", mib, []string{"-s", s.UUID + ":0:" + other + ":0"}},
		{"dom_md/leases", 2 * mib, []string{"-r", s.UUID + ":SDM:" + other + ":1048576"}},
		{volume, mib, []string{"-r", s.UUID + ":" + v.Image + ":" + other + ":0"}},
	} {
		must(t, os.WriteFile(other, nil, 0o600))
		must(t, os.Truncate(other, c.size))
		sanlock(t, append([]string{"init", "-Z", "512", "-A", "1M"}, c.args...)...)
		want, err := os.ReadFile(other)
		must(t, err)
		if bytes.Equal(want, make([]byte, c.size)) {
			t.Fatalf("%s: sanlock wrote nothing", c.name)
		}
		got, err := os.ReadFile(in(c.name))
		must(t, err)
		if diff := differ(got, want); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

// TestSanlockReads has sanlock print what it finds.
func TestSanlockReads(t *testing.T) {
	s, in := written(t)
	for _, host := range []int{1, 2, 250, 2000} {
		out := sanlock(t, "read_leader", "-s", fmt.Sprintf("%s:%d:%s:0", s.UUID, host, in("dom_md/ids")))
		for _, want := range []string{
			"read_leader done 0", "magic 0x12212010", "space_name " + s.UUID, "timestamp 0", "owner_id 0", "io_timeout 10",
			"checksum 0xb8c286ba",
		} {
			if !strings.Contains(out, want+"\n") {
				t.Errorf("host %d: no %q in\n%s", host, want, out)
			}
		}
	}
	lines := []string{sanlock(t, "dump", in("dom_md/leases")+":1048576")}
	names := []string{"SDM"}
	for _, v := range s.Volumes {
		lines = append(lines, sanlock(t, "dump", in("images/"+v.Disk+"/"+v.Image+".lease")))
		names = append(names, v.Image)
	}
	for i, out := range lines {
		free := []string{s.UUID, names[i], "0000000000", "0000", "0000", "0"} // timestamp, owner, generation, version
		if !strings.HasSuffix(strings.Join(strings.Fields(out), " "), strings.Join(free, " ")) {
			t.Errorf("%s is not a free lease:\n%s", names[i], out)
		}
	}
}

// TestSanlockSeesDamage: the readers above would not say yes to anything.
func TestSanlockSeesDamage(t *testing.T) {
	s, in := written(t)
	f, err := os.OpenFile(in("dom_md/ids"), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte{0xff}, 512+60) // the name in the slot of host 2
	must(t, err)
	must(t, f.Close())
	out, err := trySanlock(t, "read_leader", "-s", s.UUID+":2:"+in("dom_md/ids")+":0")
	if err == nil && strings.Contains(out, "read_leader done 0\n") {
		t.Errorf("sanlock takes a damaged slot:\n%s", out)
	}
}
