package netns

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// stage selects what the test binary does when it runs itself again.
const stage = "HOLDFAST_NETNS_TEST"

func TestMain(m *testing.M) {
	switch os.Getenv(stage) {
	case "":
	case "linked":
		os.Exit(linked())
	case "left":
		os.Exit(left())
	case "taps":
		if err := taps(); err != nil {
			_, _ = os.Stdout.WriteString(err.Error() + "\n")
			os.Exit(9)
		}
		os.Exit(0)
	default:
		if err := Enter(); err != nil {
			_, _ = os.Stdout.WriteString("error: " + err.Error() + "\n")
			os.Exit(9)
		}
		os.Exit(inside())
	}
	os.Exit(m.Run())
}

// inside runs in the new namespaces; its exit code is what the test looks for.
func inside() int {
	// Port 111 is the one the lab is about. On the outside it may be taken.
	l, err := net.Listen("tcp", "127.0.0.1:111")
	if err != nil {
		_, _ = os.Stdout.WriteString(err.Error() + "\n")
		return 8
	}
	_ = l.Close()
	interfaces, err := net.Interfaces()
	if err != nil || len(interfaces) == 0 || interfaces[0].Name != "lo" {
		return 7
	}
	for _, i := range interfaces[1:] {
		if i.Flags&net.FlagUp != 0 {
			return 6
		}
	}
	return 42
}

func TestEnterStartsAnewWithAFreePort111(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root; `make test` runs it")
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), stage+"=1")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 42 {
		t.Errorf("exit code %d (%v), output %q: want 42, passed on from the inside", cmd.ProcessState.ExitCode(), err, out)
	}
}

func TestAnInheritedMarkIsNotBelieved(t *testing.T) {
	t.Setenv(insideKey, "child of 1234567")
	if Inside() {
		t.Error("a mark left by somebody else's parent was taken for ours")
	}
}

func TestEnterTellsANormalUserWhatToDo(t *testing.T) {
	if os.Geteuid() != 0 {
		err := Enter()
		if err == nil || !strings.Contains(err.Error(), "root") {
			t.Errorf("error %v", err)
		}
	}
}
