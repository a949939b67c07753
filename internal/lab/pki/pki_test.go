package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/pki"
)

func TestClientsTrustTheServerByItsNamesOnly(t *testing.T) {
	ours, err := pki.New("ours")
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.New("other")
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM, err := ours.Server("host1.lab", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		trusts *pki.Authority
		dials  string
		ok     bool
	}{
		{"by name", ours, "host1.lab", true},
		{"by address", ours, "127.0.0.1", true},
		{"another name", ours, "host2.lab", false},
		{"another authority", other, "host1.lab", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(c.trusts.PEM())
			_, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: c.dials})
			if (err == nil) != c.ok {
				t.Errorf("error %v", err)
			}
		})
	}
	if _, _, err := ours.Server(); !errs.Is(err, errs.Invalid) {
		t.Errorf("a server without a name: error %v", err)
	}
}
