package api_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/api/apitest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// dialAs connects to a socket as another user. The thread that does has changed sides for good: it is not given back,
// and ends with its goroutine.
func dialAs(t *testing.T, socket string, uid, gid uint32, more ...uint32) net.Conn {
	t.Helper()
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		groups := append(more, gid)
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0]))},
			{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)}, {unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, e := unix.RawSyscall(call[0], call[1], call[2], call[3]); e != 0 {
				done <- result{err: e}
				return
			}
		}
		c, err := net.Dial("unix", socket)
		done <- result{c, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.c.Close() })
	return r.c
}

// TestPeers: who may use the socket even if its mode lets everybody connect.
func TestPeers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	h, _ := newHandler(t, &apitest.Service{})
	dir, err := os.MkdirTemp("", "peers")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	const group = 4242
	// The folder hands its group down to the socket.
	if err := os.Chown(dir, 0, group); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	s, err := listen(t, api.Listeners{Socket: filepath.Join(dir, "s")}, h)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.at.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	many := make([]uint32, 100)
	for i := range many {
		many[i] = uint32(5000 + i)
	}
	for name, c := range map[string]struct {
		uid, gid uint32
		more     []uint32
		status   int
	}{
		"root": {0, 0, nil, 200}, "root in other groups": {0, 7, nil, 200}, "somebody": {1000, 1000, nil, 403}, "somebody in root's group": {1000, 0, nil, 403},
		"the group": {1000, group, nil, 200}, "a member": {1000, 1000, []uint32{5, group}, 200}, "a member of other groups": {1000, 1000, []uint32{5, 6}, 403},
		"a member of very many": {1000, 1000, append(many, group), 200}, "nobody": {65534, 65534, many, 403},
	} {
		conn := dialAs(t, s.at.Socket, c.uid, c.gid, c.more...)
		tr := &http.Transport{Dial: func(string, string) (net.Conn, error) { return conn, nil }}
		resp := get(t, &http.Client{Transport: tr}, "/api/v1/status")
		if resp.StatusCode != c.status {
			t.Errorf("%s got %s", name, resp.Status)
		}
		if c.status == 403 {
			if p := problem(t, resp); p.Code != "denied" || !strings.Contains(p.Remedy, "root") {
				t.Errorf("%s got %+v", name, p)
			}
		}
	}
}

// overTLS returns a client that trusts a server's certificate, and shows a token unless it is "".
func overTLS(t *testing.T, dir, token string, c *tls.Config) *http.Client {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(dir, "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	c.RootCAs = x509.NewCertPool()
	c.RootCAs.AppendCertsFromPEM(pem)
	tr := &http.Transport{TLSClientConfig: c}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: authorized{tr, token}, Timeout: 10 * time.Second}
}

// authorized adds a header to requests.
type authorized struct {
	http.RoundTripper
	header string
}

func (a authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if a.header != "" {
		r.Header.Set("Authorization", a.header)
	}
	return a.RoundTripper.RoundTrip(r)
}

func TestToken(t *testing.T) {
	service := &apitest.Service{}
	h, _ := newHandler(t, service)
	dir := t.TempDir()
	l := api.Listeners{TLSAddr: "127.0.0.1:0", TokenFile: filepath.Join(dir, "token"), CertDir: filepath.Join(dir, "tls")}
	s, err := listen(t, l, h)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(l.TokenFile)
	token := strings.TrimSpace(string(b))
	if raw, herr := hex.DecodeString(token); err != nil || herr != nil || len(raw) != 32 {
		t.Fatalf("the token is %q, %v, %v", token, err, herr)
	}
	for _, file := range []string{l.TokenFile, filepath.Join(l.CertDir, "key.pem")} {
		if st, err := os.Stat(file); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s is %v, %v", file, st.Mode(), err)
		}
	}
	for header, status := range map[string]int{
		"": 401, "Bearer": 401, "Bearer ": 401, "Bearer x": 401, "Bearer " + token[:63]: 401, "Bearer " + token + "0": 401, "Basic " + token: 401, token: 401,
		"Bearer " + strings.ToUpper(token) + "g": 401, "Bearer " + token: 200, "bearer " + token: 200,
	} {
		asked := len(service.Asked())
		resp, err := overTLS(t, l.CertDir, header, &tls.Config{}).Get("https://" + s.at.TLS + "/api/v1/managers")
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != status {
			t.Errorf("%q got %s", header, resp.Status)
		}
		if status == 401 {
			p := problem(t, resp)
			if p.Code != "denied" || p.Remedy == "" || resp.Header.Get("WWW-Authenticate") == "" || len(service.Asked()) != asked {
				t.Errorf("%q got %+v, %v", header, p, resp.Header)
			}
		}
		_ = resp.Body.Close()
	}
	if log := s.log.String(); strings.Contains(log, token) || !strings.Contains(log, "without the right token") {
		t.Errorf("the log is %s", log)
	}
}

// TestTokenFiles: one that is there is used; one that keeps nobody out is refused.
func TestTokenFiles(t *testing.T) {
	h, _ := newHandler(t, &apitest.Service{})
	dir := t.TempDir()
	l := api.Listeners{TLSAddr: "127.0.0.1:0", TokenFile: filepath.Join(dir, "token"), CertDir: filepath.Join(dir, "tls")}
	for _, c := range []struct {
		text string
		mode os.FileMode
		kind errs.Kind
	}{{"", 0o600, errs.Invalid}, {"short\n", 0o600, errs.Invalid}, {"a-token-of-my-own-choice\n", 0o644, errs.Denied}, {"a-token-of-my-own-choice\n", 0o660, errs.Denied}} {
		if err := os.WriteFile(l.TokenFile, []byte(c.text), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(l.TokenFile, c.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := listen(t, l, h); !errs.Is(err, c.kind) || errs.NextStep(err) == "" || strings.Contains(err.Error(), "choice") {
			t.Errorf("%q with mode %o: %v", c.text, c.mode, err)
		}
	}
	if err := os.Chmod(l.TokenFile, 0o640); err != nil { // a group that may read it is somebody's wish
		t.Fatal(err)
	}
	s, err := listen(t, l, h)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := overTLS(t, l.CertDir, "Bearer a-token-of-my-own-choice", &tls.Config{}).Get("https://" + s.at.TLS + "/api/v1/status")
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("%v %v", resp, err)
	}
}

// TestCertificate: made once, kept, replaced while the server runs, and never half.
func TestCertificate(t *testing.T) {
	h, _ := newHandler(t, &apitest.Service{})
	dir, other := t.TempDir(), t.TempDir()
	at := func(dir string) api.Listeners {
		return api.Listeners{TLSAddr: "127.0.0.1:0", TokenFile: filepath.Join(dir, "token"), CertDir: filepath.Join(dir, "tls")}
	}
	shown := func(s *served) string {
		c, err := tls.Dial("tcp", s.at.TLS, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	start := func(dir string) *served {
		s, err := listen(t, at(dir), h)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := start(dir)
	first := shown(s)
	s.end()
	s = start(dir)
	if got := shown(s); got != first {
		t.Errorf("the second start shows %s, not %s", got, first)
	}
	second := shown(start(other))
	move := func(name string) {
		b, err := os.ReadFile(filepath.Join(other, "tls", name))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "tls", name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, time.Time{}, time.Now().Add(time.Hour)); err != nil { // clocks of files are coarse
			t.Fatal(err)
		}
	}
	move("cert.pem")
	if got := shown(s); got != first {
		t.Errorf("a certificate without its key is shown: %s", got)
	}
	if _, err := listen(t, at(dir), h); !errs.Is(err, errs.Invalid) || errs.NextStep(err) == "" {
		t.Errorf("a start with a certificate without its key: %v", err)
	}
	move("key.pem")
	if got := shown(s); got != second {
		t.Errorf("after the change %s is shown, not %s", got, second)
	}
}

// TestTLSAlone: TLS 1.2 is the least, plain HTTP is not answered, and an address that is taken is named.
func TestTLSAlone(t *testing.T) {
	h, _ := newHandler(t, &apitest.Service{})
	dir := t.TempDir()
	l := api.Listeners{TLSAddr: "127.0.0.1:0", TokenFile: filepath.Join(dir, "token"), CertDir: filepath.Join(dir, "tls")}
	s, err := listen(t, l, h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := overTLS(t, l.CertDir, "", &tls.Config{MaxVersion: tls.VersionTLS11}).Get("https://" + s.at.TLS); err == nil {
		t.Error("TLS 1.1 was taken")
	}
	if resp, err := http.Get("http://" + s.at.TLS + "/api/v1/status"); err == nil && resp.StatusCode != 400 {
		t.Errorf("plain HTTP got %s", resp.Status)
	}
	l.TLSAddr = s.at.TLS
	if _, err := listen(t, l, h); !errs.Is(err, errs.Busy) || !strings.Contains(err.Error(), s.at.TLS) {
		t.Errorf("an address that is taken: %v", err)
	}
	_, port, _ := net.SplitHostPort(s.at.TLS)
	resp, err := overTLS(t, l.CertDir, "", &tls.Config{ServerName: "localhost"}).Get("https://127.0.0.1:" + port)
	if err != nil || resp.StatusCode != 401 {
		t.Errorf("by the name localhost: %v %v", resp, err)
	}
}
