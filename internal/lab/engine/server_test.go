package engine

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"testing"
)

// The engine over a real connection: certificate, dropped connections, and the end.
func TestServer(t *testing.T) {
	host := newFakeHost()
	e, err := New(Options{Host: host, Scale: 0.001})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	url, err := e.Start(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(e.CA().PEM())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	base := strings.TrimSuffix(url, "/api")
	read := func(path string) string {
		t.Helper()
		r, err := client.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	if got := read("/services/pki-resource?resource=ca-certificate&format=X509-PEM-CA"); got != string(e.CA().PEM()) {
		t.Fatal(got)
	}
	if got := read("/services/health"); got != "DB Up!Welcome to Health Status!" {
		t.Fatal(got)
	}
	if err := e.Fault(FaultUnreachable); err != nil {
		t.Fatal(err)
	}
	if r, err := client.Get(url); err == nil {
		r.Body.Close()
		t.Fatal("an answer")
	}
	e.Heal(FaultUnreachable)
	if got := read("/api"); !strings.Contains(got, "Unauthorized") {
		t.Fatal(got)
	}
	if r, err := http.Get(url); err == nil {
		r.Body.Close()
		t.Fatal("a client that does not know the authority was satisfied")
	}
	if _, err := e.Start(t.Context(), "nonsense"); err == nil {
		t.Fatal("it serves at nonsense")
	}
	if _, err := New(Options{}); err == nil {
		t.Fatal("an engine without a host")
	}
}
