package scenario_test

import (
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/lab/datacenter"
	"github.com/holdfast-backup/holdfast/internal/lab/pki"
)

// TestBadManagers adds an engine in all the ways that cannot work. After each, no manager is known, and at the end the
// right command works.
func TestBadManagers(t *testing.T) {
	y := newYard(t, yardOptions{address: "127.0.0.11"})
	for _, cases := range [][]badManager{y.unreachable(), y.badLogins(), y.badTrust(), y.badFiles()} {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				y := y.in(t)
				y.fails(c.code, c.says, append([]string{"manager", "add", "lab"}, c.args...)...)
				var known []struct{}
				if y.works(&known, "manager", "list"); len(known) > 0 {
					t.Error("the manager was added")
				}
				y.clean()
			})
		}
	}
	t.Run("unconfirmed", func(t *testing.T) { y.in(t).confirm() })
	y.works(nil, "manager", "rm", "lab")
	y.add()
	y.fails(codeConflict, []string{"lab", "exists"}, y.adding("lab")...)
	y.works(nil, "manager", "show", "lab")
	y.fails(codeNotFound, []string{"manager prod", "manager list"}, "manager", "show", "prod")
	y.fails(codeNotFound, []string{"manager prod", "manager list"}, "manager", "rm", "prod")
	y.fails(codeUsage, []string{"my engine", "a-z"}, y.adding("my engine")...)
}

// badManager is a way to add a manager that cannot work: what is said, and the flags.
type badManager struct {
	name string
	code int
	says []string
	args []string
}

// login is a command's flags with everything right; more flags win over them.
func (y *yard) login(more ...string) []string {
	return append([]string{"--url", y.front.url, "--user", datacenter.User, "--password-file", y.center.PasswordFile},
		more...)
}

func (y *yard) unreachable() []badManager {
	closed, silent := closedPort(y.t, "127.0.0.11"), silentPort(y.t)
	web := httptest.NewTLSServer(http.NotFoundHandler())
	y.t.Cleanup(web.Close)
	welcome := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("<html>Welcome</html>"))
	}))
	y.t.Cleanup(welcome.Close)
	own := y.file("web.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})))
	const check, address = "Check that the engine runs", "Check the address"
	return []badManager{
		{"closed port", codeUnreachable, []string{"refused", closed, check},
			y.login("--url", closed, "--ca-file", y.center.CAFile)},
		{"closed port, no authority", codeUnreachable, []string{"refused", closed, check}, y.login("--url", closed)},
		{"silent port", codeUnreachable, []string{"timeout", silent, check}, y.login("--url", silent)},
		{"no such name", codeUnreachable, []string{"engine.invalid", "name server"},
			y.login("--url", "engine.invalid", "--ca-file", y.center.CAFile)},
		{"a web server", codeUnreachable, []string{"404 Not Found", "not an engine", address},
			y.login("--url", web.URL)},
		{"a web server, its authority", codeUnreachable, []string{"404 Not Found", "not an engine", address},
			y.login("--url", web.URL, "--ca-file", own)},
		{"a web server's welcome", codeUsage, []string{"200 OK", "not an engine", address},
			y.login("--url", welcome.URL)},
		{"a web server's welcome, its authority", codeUnreachable, []string{"200 OK", "not an engine", address},
			y.login("--url", welcome.URL, "--ca-file", own)},
		{"not an address", codeUsage, []string{"https only", "ovirt-engine/api"},
			y.login("--url", "http://engine.example.com", "--ca-file", y.center.CAFile)},
	}
}

func (y *yard) badLogins() []badManager {
	with := func(more ...string) []string { return y.login(append(more, "--ca-file", y.center.CAFile)...) }
	return []badManager{
		{"wrong password", codeDenied, []string{datacenter.User, "password", "locked"},
			with("--password-file", y.file("wrong", "no\n"))},
		{"no domain", codeUsage, []string{"user name admin:", "domain is missing", "admin@internal"},
			with("--user", "admin")},
		{"unknown domain", codeDenied, []string{"admin@nowhere", "domain", "admin@internal"},
			with("--user", "admin@nowhere")},
		{"no role", codeDenied, []string{"nobody@internal", "not authorized", "Give the user the permission"},
			with("--user", "nobody@internal")},
	}
}

func (y *yard) badTrust() []badManager {
	other, err := pki.New("somebody else")
	if err != nil {
		y.t.Fatal(err)
	}
	text := y.file("text", "no certificate\n")
	return []badManager{
		{"wrong authority", codeDenied, []string{"certificate", "unknown authority", "--ca-file"},
			y.login("--ca-file", y.file("other.pem", string(other.PEM())))},
		{"no certificate", codeUsage, []string{text, "PEM", "/etc/pki/ovirt-engine/ca.pem"},
			y.login("--ca-file", text)},
		{"wrong fingerprint", codeDenied, []string{"another fingerprint", "openssl x509", "do not go on"},
			y.login("--accept-fingerprint", strings.Repeat("ab", 32))},
		{"no fingerprint", codeUsage, []string{"--accept-fingerprint yes", "64 hexadecimal digits"},
			y.login("--accept-fingerprint", "yes")},
	}
}

func (y *yard) badFiles() []badManager {
	empty, lines, nowhere := y.file("empty", "\n"), y.file("lines", "a\nb\n"), filepath.Join(y.dir, "nowhere")
	return []badManager{
		{"no password file", codeNotFound, []string{nowhere, "on this machine"}, y.login("--password-file", nowhere)},
		{"no password file named", codeUsage, []string{"no terminal", "--password-file"},
			[]string{"--url", y.front.url, "--user", datacenter.User}},
		{"empty password file", codeUsage, []string{empty, "empty"}, y.login("--password-file", empty)},
		{"password file of two lines", codeUsage, []string{lines, "more than one line"},
			y.login("--password-file", lines)},
		{"no authority file", codeNotFound, []string{nowhere, "on this machine"}, y.login("--ca-file", nowhere)},
	}
}

// confirm adds an engine that nothing is known of, and then does what it is told: it copies the command that is shown.
func (y *yard) confirm() {
	y.t.Helper()
	out := y.fails(codeDenied, []string{"openssl x509", "confirmed"},
		append([]string{"manager", "add", "lab"}, y.login()...)...)
	var again string
	for line := range strings.Lines(out.Stderr) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "holdfast manager add") {
			again = line
		}
	}
	fingerprint, err := exec.CommandContext(y.t.Context(), "openssl", "x509", "-in", y.center.CAFile, "-noout",
		"-fingerprint", "-sha256").Output()
	if err != nil {
		y.t.Fatal(err)
	}
	_, hex, _ := strings.Cut(strings.TrimSpace(string(fingerprint)), "=")
	hex = strings.ToLower(strings.ReplaceAll(hex, ":", ""))
	if !strings.Contains(again, "--accept-fingerprint "+hex) {
		y.t.Fatalf("the command is %q, and openssl shows %s", again, hex)
	}
	shell := exec.CommandContext(y.t.Context(), "sh", "-c", again)
	shell.Env = append(append(os.Environ(), "PATH="+programs(y.t)+":"+os.Getenv("PATH")), y.node.Environment()...)
	if said, err := shell.CombinedOutput(); err != nil {
		y.t.Fatalf("%s: %v: %s", again, err, said)
	}
}

// in is the yard for a subtest.
func (y *yard) in(t *testing.T) *yard {
	sub := *y
	sub.t = t
	return &sub
}

// closedPort returns an address where nobody listens.
func closedPort(t *testing.T, address string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// silentPort returns an address that swallows what is sent to it, as a firewall does: a socket that takes no more
// connections, since nobody accepts them.
func silentPort(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		t.Cleanup(func() { _ = unix.Close(fd) })
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 11}})
	}
	if err == nil {
		err = unix.Listen(fd, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort("127.0.0.11", strconv.Itoa(at.(*unix.SockaddrInet4).Port))
	for {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return address // the queue is full
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
}
