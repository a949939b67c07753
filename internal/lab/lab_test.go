package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/lab/control"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
)

func TestExitCodes(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	bin := t.TempDir()
	for _, name := range []string{"holdfast", "holdfastd"} {
		if err := os.WriteFile(filepath.Join(bin, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	somewhere := t.TempDir()
	none := filepath.Join(somewhere, "none")
	if err := os.WriteFile(filepath.Join(somewhere, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		ctx  context.Context
		args []string
		code int
		says string
	}{
		{"help", t.Context(), []string{"--help"}, 0, ""},
		{"no such command", t.Context(), []string{"fly"}, 2, "holdfast-lab --help"},
		{"no such flag", t.Context(), []string{"disk", "--wings"}, 2, "holdfast-lab disk --help"},
		{"a disk too small", t.Context(), []string{"disk", "--size", "1"}, 1, "at least"},
		{"interrupted", ended, []string{"disk", "--size", "1"}, 130, "Everything it had started has ended."},
		{"a form of output that is none", t.Context(), []string{"up", "-o", "yaml"}, 2, "only json"},
		{"a cluster level that is none", t.Context(), []string{"up", "--cluster-level", "5"}, 2, "4.2 to 4.8"},
		{"a speed that is none", t.Context(), []string{"up", "--scale", "0"}, 2, "above 0"},
		{"not a number", t.Context(), []string{"up", "--scale", "nan"}, 2, "above 0"},
		{"no VM", t.Context(), []string{"up", "--vm", ""}, 2, "at least one"},
		{"a VM of no name", t.Context(), []string{"up", "--vm", "a b"}, 2, "letters"},
		{"without programs", t.Context(), []string{"up", "--bin", somewhere}, 1, "make build"},
		{"somebody else's folder", t.Context(), []string{"up", "--bin", bin, "--dir", somewhere}, 1, "--dir"},
		{"down of none", t.Context(), []string{"down", "--dir", none}, 0, "No lab was up"},
		{"exec in none", t.Context(), []string{"exec", "--dir", none, "web1", "--", "true"}, 255, "holdfast-lab up"},
		{"exec of nothing", t.Context(), []string{"exec", "web1", "--"}, 2, "holdfast-lab exec --help"},
		{"exec, interrupted", ended, []string{"exec", "--dir", none, "web1", "--", "true"}, 130, "interrupted"},
		{"fault in none", t.Context(), []string{"fault", "--dir", none, "slow"}, 1, "holdfast-lab up"},
		{"fault without a name", t.Context(), []string{"fault"}, 2, "holdfast-lab fault --help"},
	} {
		var out, errors bytes.Buffer
		code := Run(c.ctx, c.args, &out, &errors)
		if needsRoot(c.args, errors.String()) {
			continue
		}
		if code != c.code || !strings.Contains(errors.String(), c.says) {
			t.Errorf("%s: exit code %d, want %d; said %q", c.name, code, c.code, errors.String())
		}
	}
	if names, err := os.ReadDir(somewhere); err != nil || len(names) != 1 {
		t.Errorf("somebody else's folder has %v now, %v", names, err)
	}
}

// needsRoot tells whether a lab was refused because only root may start one, which is looked at first.
func needsRoot(args []string, said string) bool {
	return os.Geteuid() != 0 && args[0] == "up" && strings.Contains(said, "only root")
}

func TestACommandIsALineOrExactWords(t *testing.T) {
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"cd /srv; ls $X"}, "cd /srv; ls $X"},
		{[]string{"ls"}, "ls"},
		{[]string{"echo", "a  b", "it's", ""}, `'echo' 'a  b' 'it'\''s' ''`},
	} {
		if got := commandLine(c.words); got != c.want {
			t.Errorf("%q: %s, want %s", c.words, got, c.want)
		}
	}
}

// TestWhatUpPrintsCanBeCopied has a shell read the commands, in a folder that has to be quoted.
func TestWhatUpPrintsCanBeCopied(t *testing.T) {
	const dir = "/srv/a lab"
	i := control.Info{EngineURL: "https://192.0.2.2/ovirt-engine/api", User: "admin@internal",
		PasswordFile: dir + "/password", CAFile: dir + "/ca.pem", VMs: []string{"db1", "web1"},
		Node: "unix://" + dir + "/node.sock", Dir: dir}
	var text bytes.Buffer
	if err := describe(&text, i, "/opt/hold fast"); err != nil {
		t.Fatal(err)
	}
	_, commands, found := strings.Cut(text.String(), "as root:\n")
	if !found {
		t.Fatalf("there are no commands in %q", text.String())
	}
	functions := `holdfast() { printf '<%s>' holdfast "$@"; echo; }
		holdfast-lab() { printf '<%s>' lab "$@"; echo; }` + "\n"
	shell := exec.Command("bash", "-c", functions+commands+`echo "$HOLDFAST_NODE|$HOLDFAST_LAB_DIR|${PATH%%:*}"`)
	out, err := shell.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{
		"<holdfast><manager><add><lab><--url><https://192.0.2.2/ovirt-engine/api><--user><admin@internal>" +
			"<--password-file></srv/a lab/password><--ca-file></srv/a lab/ca.pem>\n",
		"<holdfast><backup><run><db1><--wait>\n",
		"<lab><exec><db1><--><dd if=/dev/urandom of=/srv/new bs=1M count=8; sync>\n",
		"<lab><down>\n",
		"unix:///srv/a lab/node.sock|/srv/a lab|/opt/hold fast\n",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in what a shell reads:\n%s", want, out)
		}
	}
}

func TestTheManualAndTheHelpHaveEveryFault(t *testing.T) {
	manual, err := os.ReadFile("../../docs/lab.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(manual), fmt.Sprintf("at most %d characters", control.MaxDir)) {
		t.Errorf("the manual does not say that a path has at most %d characters", control.MaxDir)
	}
	for _, f := range control.Faults() {
		if !strings.Contains(string(manual), "`"+f.Name+"`") {
			t.Errorf("the manual does not have %s", f.Name)
		}
		if f.Text == "" || !strings.Contains(faultHelp(), f.Name) {
			t.Errorf("%s is not explained", f.Name)
		}
		if got := told(f); f.Lasting != strings.HasSuffix(got, "holdfast-lab fault "+f.Name+" --heal") {
			t.Errorf("%s: %s", f.Name, got)
		}
	}
}

func TestTheDiskCommandPrintsNothingButAPath(t *testing.T) {
	inTheWay := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(inTheWay, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(parts.CacheKey, inTheWay)
	var out, errors bytes.Buffer
	if code := Run(t.Context(), []string{"disk"}, &out, &errors); code != 1 || out.Len() != 0 || errors.Len() == 0 {
		t.Errorf("exit code %d, output %q, errors %q", code, out.String(), errors.String())
	}
}
