package scenario_test

import (
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/lab/datacenter"
	"github.com/holdfast-backup/holdfast/internal/lab/pki"
)

// TestBadManagers adds an engine in all the ways that cannot work. After each, no manager is known, and at the end the
// right command works.
func TestBadManagers(t *testing.T) {
	y := newYard(t, yardOptions{address: "127.0.0.11"})
	closed := closedPort(t, "127.0.0.11")
	web := httptest.NewTLSServer(http.NotFoundHandler())
	defer web.Close()
	wrong, empty, lines := y.file("wrong", "no\n"), y.file("empty", "\n"), y.file("lines", "a\nb\n")
	other := y.otherAuthority()
	add := func(flags ...string) []string { return append([]string{"manager", "add", "lab"}, flags...) }
	url, user, password := "--url", "--user", "--password-file"
	right, ca := []string{password, y.center.PasswordFile}, []string{"--ca-file", y.center.CAFile}
	for name, c := range map[string]struct {
		code int
		says []string
		args []string
	}{
		"closed port": {codeUnreachable, []string{"refused", closed, "Check that the engine runs"},
			add(append(right, url, closed, user, datacenter.User, ca[0], ca[1])...)},
		"closed port, no authority": {codeUnreachable, []string{"refused", closed, "Check that the engine runs"},
			add(append(right, url, closed, user, datacenter.User)...)},
		"no such name": {codeUnreachable, []string{"engine.invalid", "name server"},
			add(append(right, url, "engine.invalid", user, datacenter.User, ca[0], ca[1])...)},
		"wrong password": {codeDenied, []string{datacenter.User, "password", "locked"},
			add(password, wrong, url, y.front.url, user, datacenter.User, ca[0], ca[1])},
		"no domain": {codeUsage, []string{"admin", "domain", "admin@internal"},
			add(append(right, url, y.front.url, user, "admin", ca[0], ca[1])...)},
		"unknown domain": {codeDenied, []string{"admin@nowhere", "domain", "admin@internal"},
			add(append(right, url, y.front.url, user, "admin@nowhere", ca[0], ca[1])...)},
		"no role": {codeDenied, []string{"not authorized", "permission"},
			add(append(right, url, y.front.url, user, "nobody@internal", ca[0], ca[1])...)},
		"wrong authority": {codeDenied, []string{"certificate", "--ca-file"},
			add(append(right, url, y.front.url, user, datacenter.User, ca[0], other)...)},
		"no certificate": {codeUsage, []string{"PEM", "--ca-file"},
			add(append(right, url, y.front.url, user, datacenter.User, ca[0], wrong)...)},
		"wrong fingerprint": {codeDenied, []string{"another fingerprint", "openssl x509"},
			add(append(right, url, y.front.url, user, datacenter.User, "--accept-fingerprint", strings.Repeat("ab", 32))...)},
		"no fingerprint": {codeDenied, []string{"fingerprint"},
			add(append(right, url, y.front.url, user, datacenter.User, "--accept-fingerprint", "yes")...)},
		"a web server": {codeUnreachable, []string{"not", "engine"},
			add(append(right, url, web.URL, user, datacenter.User)...)},
		"a web server, its authority": {codeUnreachable, []string{"not", "engine"},
			add(append(right, url, web.URL, user, datacenter.User, ca[0], y.certificateOf(web))...)},
		"not an address": {codeUsage, []string{"ovirt-engine/api"},
			add(append(right, url, "http://engine.example.com", user, datacenter.User, ca[0], ca[1])...)},
		"no password file": {codeNotFound, []string{"nowhere", "on this machine"},
			add(password, filepath.Join(y.dir, "nowhere"), url, y.front.url, user, datacenter.User, ca[0], ca[1])},
		"empty password file": {codeUsage, []string{empty, "empty"},
			add(password, empty, url, y.front.url, user, datacenter.User, ca[0], ca[1])},
		"password file of two lines": {codeUsage, []string{lines, "more than one line"},
			add(password, lines, url, y.front.url, user, datacenter.User, ca[0], ca[1])},
		"no authority file": {codeNotFound, []string{"nowhere", "on this machine"},
			add(append(right, url, y.front.url, user, datacenter.User, ca[0], filepath.Join(y.dir, "nowhere"))...)},
	} {
		t.Run(name, func(t *testing.T) {
			y := y.in(t)
			y.fails(c.code, c.says, c.args...)
			var known []struct{}
			if y.works(&known, "manager", "list"); len(known) > 0 {
				t.Error("the manager was added")
			}
			y.clean()
		})
	}
	t.Run("unconfirmed", func(t *testing.T) { y.in(t).confirm(add(append(right, url, y.front.url, user, datacenter.User)...)) })
	y.works(nil, "manager", "rm", "lab")
	y.add()
	y.fails(codeConflict, []string{"lab", "exists"}, y.adding("lab")...)
	y.works(nil, "manager", "show", "lab")
	y.fails(codeNotFound, []string{"prod", "manager list"}, "manager", "show", "prod")
	y.fails(codeNotFound, []string{"prod", "manager list"}, "manager", "rm", "prod")
}

// confirm adds an engine that nothing is known of, and then does what it is told: it copies the command that is shown.
func (y *yard) confirm(args []string) {
	y.t.Helper()
	out := y.fails(codeDenied, []string{"openssl x509", "confirmed"}, args...)
	var again string
	for line := range strings.Lines(out.Stderr) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "holdfast manager add") {
			again = line
		}
	}
	fingerprint, err := exec.CommandContext(y.t.Context(), "openssl", "x509", "-in", y.center.CAFile, "-noout", "-fingerprint", "-sha256").Output()
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

// otherAuthority returns the file of an authority that has nothing to do with the engine.
func (y *yard) otherAuthority() string {
	y.t.Helper()
	a, err := pki.New("somebody else")
	if err != nil {
		y.t.Fatal(err)
	}
	return y.file("other.pem", string(a.PEM()))
}

// certificateOf returns the file of a server's own certificate.
func (y *yard) certificateOf(s *httptest.Server) string {
	y.t.Helper()
	return y.file("web.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
}
