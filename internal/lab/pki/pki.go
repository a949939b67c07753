// Package pki is a tiny certificate authority for the lab's servers: one self-signed authority that lives as long as
// the process, and server certificates for the names and addresses they are reached by.
//
// Nothing is stored. Everything may be called concurrently. The test lets a TLS client decide.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// lifetime is how long certificates are good for: longer than any lab runs.
const lifetime = 30 * 24 * time.Hour

// Authority signs certificates.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes an authority of the given name.
func New(name string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, errs.Wrap("make the key of", name, err)
	}
	template, err := newTemplate(name)
	if err != nil {
		return nil, errs.Wrap("make the certificate of", name, err)
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	a := &Authority{cert: template, key: key}
	der, err := a.sign(template, key.Public())
	if err != nil {
		return nil, errs.Wrap("make the certificate of", name, err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, errs.Wrap("read the certificate of", name, err)
	}
	return a, nil
}

// PEM returns the authority's certificate.
func (a *Authority) PEM() []byte { return pemBlock("CERTIFICATE", a.cert.Raw) }

// Server returns a certificate and its key, as PEM, for a server reached by names, which may be IP addresses.
func (a *Authority) Server(names ...string) (cert, key []byte, err error) {
	if len(names) == 0 {
		return nil, nil, errs.Text("make a certificate", "", errs.Invalid, "the server has no name")
	}
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, errs.Wrap("make the key of", names[0], err)
	}
	template, err := newTemplate(names[0])
	if err != nil {
		return nil, nil, errs.Wrap("make the certificate of", names[0], err)
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := a.sign(template, secret.Public())
	if err != nil {
		return nil, nil, errs.Wrap("sign the certificate of", names[0], err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		return nil, nil, errs.Wrap("write the key of", names[0], err)
	}
	return pemBlock("CERTIFICATE", der), pemBlock("PRIVATE KEY", pkcs8), nil
}

func (a *Authority) sign(template *x509.Certificate, key crypto.PublicKey) ([]byte, error) {
	return x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
}

func newTemplate(name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"Holdfast lab"}, CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lifetime),
	}, nil
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
