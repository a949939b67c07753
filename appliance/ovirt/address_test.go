package ovirt

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

func TestNormalizeURL(t *testing.T) {
	const want = "https://mgr.example.org/ovirt-engine/api"
	for _, s := range []string{
		"mgr.example.org", "MGR.example.org", " mgr.example.org ", "mgr.example.org/", "https://mgr.example.org", "https://mgr.example.org/",
		"https://mgr.example.org:443", "https://mgr.example.org/ovirt-engine", "https://mgr.example.org/ovirt-engine/",
		"https://mgr.example.org/ovirt-engine/api", "https://mgr.example.org/ovirt-engine/api/", "HTTPS://mgr.example.org/ovirt-engine/api",
		"mgr.example.org/ovirt-engine/api",
	} {
		if got, err := NormalizeURL(s); err != nil || got != want {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	for s, want := range map[string]string{
		"mgr:8443": "https://mgr:8443/ovirt-engine/api", "https://[::1]:8443/": "https://[::1]:8443/ovirt-engine/api", "10.0.0.1": "https://10.0.0.1/ovirt-engine/api",
	} {
		if got, err := NormalizeURL(s); err != nil || got != want {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "https://", "http://mgr.example.org", "https://mgr.example.org/ovirt-engine/webadmin/", "https://mgr.example.org/api", "mgr/ovirt-engine/api/vms",
		"https://user:hidden@mgr.example.org", "https://mgr.example.org/?x=1", "https://mgr.example.org/#x", "ftp://mgr", "a b", "https://mgr:port",
	} {
		_, err := NormalizeURL(s)
		if !errs.Is(err, errs.Invalid) || !strings.Contains(errs.NextStep(err), "https://MANAGER/ovirt-engine/api") {
			t.Errorf("%q: %v, next %q", s, err, errs.NextStep(err))
		}
		if err != nil && strings.Contains(err.Error(), "hidden") {
			t.Errorf("%q: the error has the password: %v", s, err)
		}
	}
}

func TestCheckUser(t *testing.T) {
	for _, s := range []string{"admin@internal", "admin@ovirt@internalsso", "jane.doe@example.org@AD"} {
		if err := CheckUser(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", "admin", "admin@", "@internal", "@@x", "admin @internal", "admin@internal\n"} {
		if err := CheckUser(s); !errs.Is(err, errs.Invalid) || !strings.Contains(errs.NextStep(err), "admin@internal") {
			t.Errorf("%q: %v, next %q", s, err, errs.NextStep(err))
		}
	}
}

const caPath = "GET /services/pki-resource?resource=ca-certificate&format=X509-PEM-CA"

func TestFetchCA(t *testing.T) {
	s := newScript(t)
	s.on(caPath, answer{status: 200, kind: "application/x-x509-ca-cert", body: string(s.ca())})
	cert, print, err := FetchCA(t.Context(), s.server.URL)
	if err != nil || string(cert) != string(s.ca()) {
		t.Fatalf("%q, %v", cert, err)
	}
	own, err := Fingerprint(cert)
	if err != nil || own != print || len(print) != 64 {
		t.Fatalf("fingerprint %q and %q, %v", print, own, err)
	}
	for _, a := range s.requests() {
		if a.header.Get("Authorization") != "" || a.body != "" {
			t.Error("something was given to an engine that nobody trusts yet")
		}
	}
}

func TestFetchCAOfAnotherAuthority(t *testing.T) {
	s := newScript(t)
	s.on(caPath, answer{status: 200, body: string(newAuthority(t))})
	_, _, err := FetchCA(t.Context(), s.server.URL)
	if !errs.Is(err, errs.Denied) || !strings.Contains(errs.NextStep(err), "--ca-file") {
		t.Errorf("%v, next %q", err, errs.NextStep(err))
	}
}

func TestFetchCAFails(t *testing.T) {
	for name, x := range map[string]struct {
		answer answer
		kind   errs.Kind
	}{
		"a page":       {page(200, "hello"), errs.Invalid},
		"not there":    {page(404, "not here"), errs.Transient},
		"unknown":      {recorded(t, "login.txt", "unknown resource", ""), errs.Bug},
		"starting":     {page(503, "wait"), errs.Transient},
		"broken PEM":   {answer{status: 200, body: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, errs.Invalid},
		"a key":        {answer{status: 200, body: "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}, errs.Invalid},
		"disconnected": {answer{drop: true}, errs.Transient},
	} {
		s := newScript(t).on(caPath, x.answer)
		if _, _, err := FetchCA(t.Context(), s.server.URL); err == nil || name != "unknown" && !errs.Is(err, x.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := FetchCA(ctx, "https://127.0.0.1:1"); !errs.Is(err, errs.Canceled) {
		t.Error(err)
	}
	if _, _, err := FetchCA(t.Context(), closedAddress(t)); !errs.Is(err, errs.Transient) || errs.NextStep(err) == "" {
		t.Error(err)
	}
	if _, _, err := FetchCA(t.Context(), "http://x"); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
}

// closedAddress is an address where nobody listens.
func closedAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "https://" + l.Addr().String()
}

func TestSameFingerprint(t *testing.T) {
	const hex = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	colons := strings.ToUpper(hex[:2])
	for i := 2; i < len(hex); i += 2 {
		colons += ":" + strings.ToUpper(hex[i:i+2])
	}
	if !SameFingerprint(colons, hex) || !SameFingerprint(hex, hex+" ") {
		t.Error("equal ones are not the same")
	}
	if SameFingerprint("", "") || SameFingerprint(hex[:10], hex[:10]) || SameFingerprint(hex, hex[:62]+"00") {
		t.Error("others are the same")
	}
}

func TestUntrustedCertificate(t *testing.T) {
	s := newScript(t)
	o := s.options()
	o.CA = newAuthority(t)
	_, err := Dial(t.Context(), o)
	next := errs.NextStep(err)
	if !errs.Is(err, errs.Denied) || !strings.Contains(next, "--ca-file") || !strings.Contains(next, "--accept-fingerprint") {
		t.Errorf("%v, next %q", err, next)
	}
	if len(s.seen) > 0 {
		t.Error("something was sent")
	}
	o = s.options()
	o.URL = strings.Replace(o.URL, "127.0.0.1", "localhost", 1) // not a name in the certificate
	if _, err := Dial(t.Context(), o); !errs.Is(err, errs.Denied) || !strings.Contains(errs.NextStep(err), "name") {
		t.Errorf("wrong name: %v, next %q", err, errs.NextStep(err))
	}
	for _, ca := range []string{"", "nonsense"} {
		o.CA = []byte(ca)
		if _, err := Dial(t.Context(), o); !errs.Is(err, errs.Invalid) || errs.NextStep(err) == "" {
			t.Errorf("CA %q: %v", ca, err)
		}
	}
}

func TestRedirectionIsNotFollowed(t *testing.T) {
	thief := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the token went elsewhere: %q", r.Header.Get("Authorization"))
	}))
	defer thief.Close()
	s := newScript(t)
	c := s.dial()
	s.server.Config.Handler = http.RedirectHandler(thief.URL, http.StatusTemporaryRedirect)
	if _, err := c.Hosts(t.Context()); err == nil {
		t.Error("it succeeded")
	}
}

// newAuthority makes a certificate that signed nothing.
func newAuthority(t *testing.T) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, about, about, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
