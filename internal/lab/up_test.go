package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/control"
	"github.com/holdfast-backup/holdfast/internal/lab/sdk"
)

// user is somebody at a shell on the machine that a lab runs on, outside the lab's network.
type user struct {
	t    *testing.T
	bin  string
	temp string   // the folder for temporary files
	env  []string // added
}

// said is the outcome of a program.
type said struct {
	code           int
	stdout, stderr string
}

// runs runs a program to its end.
func (u *user) runs(name string, args ...string) said {
	u.t.Helper()
	var out, errors_ bytes.Buffer
	cmd := exec.CommandContext(u.t.Context(), name, args...)
	cmd.Env = append(os.Environ(), u.env...)
	cmd.Stdout, cmd.Stderr = &out, &errors_
	begun := time.Now()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		u.t.Fatalf("%s: %v", name, err)
	}
	s := said{cmd.ProcessState.ExitCode(), out.String(), errors_.String()}
	u.t.Logf("$ %s %s\n%s%s[%d, %.1f s]",
		filepath.Base(name), strings.Join(args, " "), s.stdout, s.stderr, s.code, time.Since(begun).Seconds())
	return s
}

// lab and holdfast run the two command lines.
func (u *user) lab(args ...string) said {
	u.t.Helper()
	return u.runs(filepath.Join(u.bin, "holdfast-lab"), args...)
}

func (u *user) holdfast(args ...string) said {
	u.t.Helper()
	return u.runs(filepath.Join(u.bin, "holdfast"), args...)
}

// want fails unless a program ended with a code.
func (u *user) want(code int, s said) said {
	u.t.Helper()
	if s.code != code {
		u.t.Fatalf("exit code %d, want %d", s.code, code)
	}
	return s
}

// programs returns the folder of the built programs: those that `make test` has just built, else new ones.
func programs(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("HOLDFAST_BIN"); dir != "" {
		return dir
	}
	dir := t.TempDir()
	for _, name := range []string{"holdfast", "holdfastd", "holdfast-lab"} {
		b := exec.CommandContext(t.Context(), "go", "build", "-o", dir, "github.com/holdfast-backup/holdfast/cmd/"+name)
		b.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := b.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	return dir
}

// newUser returns a user with a folder for a lab, and makes sure that no lab outlives the test.
func newUser(t *testing.T) (u *user, dir string) {
	t.Helper()
	if os.Getenv("HOLDFAST_REAL_PARTS") != "1" {
		t.Skip("boots a real machine; `make test` runs it")
	}
	// The path of a test's own folder is too long for sockets.
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Cleanup(func() { _, _ = control.Open(dir).Down(context.Background(), false) }) // if the test has failed
	temp := t.TempDir()
	return &user{t: t, bin: programs(t), temp: temp, env: []string{dirKey + "=" + dir, "TMPDIR=" + temp}}, dir
}

// TestALabAsOthersUseIt is a day of somebody who only has the programs, and a tool of another project.
func TestALabAsOthersUseIt(t *testing.T) {
	u, dir := newUser(t)
	var info control.Info
	s := u.want(0, u.lab("up", "-o", "json", "--scale", "0.05"))
	if err := json.Unmarshal([]byte(s.stdout), &info); err != nil || info.Dir != dir {
		t.Fatalf("up printed %q: %v", s.stdout, err)
	}
	if s := u.want(1, u.lab("up")); !strings.Contains(s.stderr, "holdfast-lab down") {
		t.Error("a second up does not say what to do")
	}
	u.looksAtTheEngine(info)
	u.backsUp(info)
	u.execs()
	u.breaksThings(info)
	if up := traces(t, dir, info.PID); up.files == 0 || up.processes < 4 || !up.link {
		t.Errorf("of a lab that is up there are no more traces than %+v", up)
	}
	u.want(0, u.lab("down"))
	if left := traces(t, dir, info.PID); left != (trace{}) {
		t.Errorf("after down there are %+v", left)
	}
	if s := u.want(0, u.lab("down")); !strings.Contains(s.stderr, "No lab was up") {
		t.Errorf("a second down says %q", s.stderr)
	}
	u.want(codeNotRun, u.lab("exec", "web1", "--", "true"))
	if names, err := os.ReadDir(u.temp); err != nil || len(names) > 0 {
		t.Errorf("left in the folder for temporary files: %v, %v", names, err)
	}
}

// looksAtTheEngine uses the official SDK.
func (u *user) looksAtTheEngine(i control.Info) {
	u.t.Helper()
	python, err := sdk.Python(u.t.Context())
	if err != nil {
		u.t.Fatal(err, errs.NextStep(err))
	}
	s := u.want(0, u.runs(python, "-I", "testdata/look.py", i.EngineURL, i.User, i.PasswordFile, i.CAFile))
	if s.stdout != "web1 up 1\n" {
		u.t.Errorf("the SDK sees %q", s.stdout)
	}
}

// backsUp asks the node, by its socket and by TLS.
func (u *user) backsUp(i control.Info) {
	u.t.Helper()
	socket := []string{"--node", i.Node}
	tls := []string{"--node", i.NodeURL, "--token-file", i.TokenFile, "--node-ca-file", i.NodeCAFile}
	u.want(0, u.holdfast(append([]string{"manager", "add", "lab", "--url", i.EngineURL, "--user", i.User,
		"--password-file", i.PasswordFile, "--ca-file", i.CAFile}, socket...)...))
	u.want(0, u.holdfast(append([]string{"backup", "run", "web1", "--wait"}, tls...)...))
	for _, way := range [][]string{socket, tls} {
		s := u.want(0, u.holdfast(append([]string{"vm", "show", "web1", "-o", "json"}, way...)...))
		var vm struct {
			Status string `json:"status"`
			Points int    `json:"points"`
		}
		if err := json.Unmarshal([]byte(s.stdout), &vm); err != nil || vm.Status != "up" || vm.Points != 1 {
			u.t.Errorf("%v: %+v, %v", way, vm, err)
		}
	}
	u.want(0, u.holdfast("point", "list", "--store", i.Store, "--passphrase-file", i.PassphraseFile))
}

// execs runs commands in the guest.
func (u *user) execs() {
	u.t.Helper()
	for _, c := range []struct {
		args   []string
		code   int
		stdout string
	}{
		{[]string{"echo", "a  b", "it's", "$HOME"}, 0, "a  b it's $HOME\n"},
		{[]string{"cd /srv; pwd; echo said >&2"}, 0, "/srv\nsaid\n"},
		{[]string{"printf x"}, 0, "x"},
		{[]string{"exit 7"}, 7, ""}, // the shell at the console stays
		{[]string{"sh", "-c", "exit 8"}, 8, ""},
		{[]string{"uname"}, 0, "Linux\n"},
	} {
		s := u.lab(append([]string{"exec", "web1", "--"}, c.args...)...)
		if s.code != c.code || s.stdout != c.stdout {
			u.t.Errorf("exec %q: exit code %d, output %q; want %d and %q", c.args, s.code, s.stdout, c.code, c.stdout)
		}
	}
	if s := u.lab("exec", "db1", "true"); s.code != codeNotRun || !strings.Contains(s.stderr, "began with web1") {
		u.t.Errorf("a VM that is not there: exit code %d, %q", s.code, s.stderr)
	}
	lab := filepath.Join(u.bin, "holdfast-lab")
	if s := u.runs("timeout", "-s", "INT", "1", lab, "exec", "web1", "--", "sleep 1000"); s.code != 124 {
		u.t.Errorf("a command was interrupted: exit code %d", s.code)
	}
	u.want(0, u.lab("exec", "web1", "--", "true")) // does not wait for the one before
}

// breaksThings injects faults and takes them back, and kills the node below a VM that runs from it.
func (u *user) breaksThings(i control.Info) {
	u.t.Helper()
	node := []string{"--node", i.Node}
	u.want(0, u.lab("fault", "unreachable"))
	u.want(9, u.holdfast(append([]string{"manager", "show", "lab"}, node...)...))
	u.want(0, u.lab("fault", "unreachable", "--heal"))
	u.want(0, u.holdfast(append([]string{"manager", "show", "lab"}, node...)...))
	u.want(1, u.lab("fault", "gremlins"))
	restore := []string{"restore", "instant", "web1", "--name", "restored", "--power-on", "--wait"}
	u.want(0, u.holdfast(append(restore, node...)...))
	u.want(0, u.lab("fault", "node-killed"))
	// A guest that still boots reads through the node, and goes on with the next one.
	u.want(0, u.lab("exec", "restored", "--",
		"echo 3 >/proc/sys/vm/drop_caches; echo after >/srv/after && sync && sha256sum /usr/bin/perl"))
}

// trace is what there is of a lab.
type trace struct {
	files, processes int
	link, mount      bool
}

// traces looks for a lab by its folder and by the process id it had.
func traces(t *testing.T, dir string, pid int) (found trace) {
	t.Helper()
	if names, err := os.ReadDir(dir); err == nil {
		found.files = len(names)
	}
	// A process that has ended has no command line any more, also if nobody has asked for its exit code yet.
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		if line, _ := os.ReadFile(path); bytes.Contains(line, []byte(dir)) {
			found.processes++
		}
	}
	_, err := net.InterfaceByName("lab" + strconv.Itoa(pid))
	found.link = err == nil
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	found.mount = bytes.Contains(mounts, []byte(dir))
	return found
}
