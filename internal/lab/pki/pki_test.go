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
			err := shake(&tls.Config{Certificates: []tls.Certificate{pair}}, &tls.Config{RootCAs: roots, ServerName: c.dials})
			if (err == nil) != c.ok {
				t.Errorf("error %v", err)
			}
		})
	}
	if _, _, err := ours.Server(); !errs.Is(err, errs.Invalid) {
		t.Errorf("a server without a name: error %v", err)
	}
}

// shake lets a client and a server meet over a real connection, whose buffers keep a side that speaks last from waiting
// for one that has stopped listening, and returns the client's opinion.
func shake(server, client *tls.Config) error {
	ln, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		return err
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		_ = c.(*tls.Conn).Handshake() // the client says whether it worked
		_ = c.Close()
	}()
	c, err := tls.Dial("tcp", ln.Addr().String(), client)
	if err != nil {
		return err
	}
	return c.Close()
}
