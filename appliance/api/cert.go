package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The files of a certificate's folder.
const (
	certName = "cert.pem"
	keyName  = "key.pem"
)

// certTime is how long a certificate of ours holds. Clients trust this very certificate: a new one has to be carried to
// all of them, so it outlives the machine.
const certTime = 10 * 365 * 24 * time.Hour

// certificate is the server's, read again when its file changes, so that one can be put in its place.
type certificate struct {
	dir string
	log *slog.Logger
	mu  sync.Mutex // guards the rest
	now *tls.Certificate
	mod time.Time // of cert.pem when it was read
}

// loadCertificate reads the certificate of a folder, or makes one for this machine and an address.
func loadCertificate(dir, addr string, log *slog.Logger) (*certificate, error) {
	const op = "read certificate"
	c := &certificate{dir: dir, log: log}
	if _, err := os.Stat(filepath.Join(dir, certName)); errs.Is(err, errs.NotFound) {
		if err := makeCertificate(dir, addr); err != nil {
			return nil, errs.Wrap("make certificate", dir, err)
		}
	}
	if err := c.read(); err != nil {
		return nil, errs.New(op, dir, errs.KindOf(err), err).
			WithNext("Put a matching " + certName + " and " + keyName + " there, or remove both: then new ones are made.")
	}
	return c, nil
}

// read loads the files if they are not those in use. c.mu is held, or nobody else knows c.
func (c *certificate) read() error {
	file := filepath.Join(c.dir, certName)
	st, err := os.Stat(file)
	if err != nil {
		return err
	}
	if c.now != nil && st.ModTime().Equal(c.mod) {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(file, filepath.Join(c.dir, keyName))
	var pathError *os.PathError
	if err != nil && !errors.As(err, &pathError) {
		return errs.New("use certificate", file, errs.Invalid, err)
	}
	if err != nil {
		return err
	}
	c.now, c.mod = &pair, st.ModTime()
	return nil
}

// get implements tls.Config.GetCertificate. While new files are half in place, the old certificate serves.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.read(); err != nil {
		c.log.Warn("the certificate cannot be read again", "err", err)
	}
	return c.now, nil
}

// makeCertificate makes a key and a certificate that it signs itself. The key is written first: a certificate without
// its key would be taken for a pair.
func makeCertificate(dir, addr string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	names, ips := machineNames(addr)
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: names[0], Organization: []string{"Holdfast node"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certTime), DNSNames: names, IPAddresses: ips,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	d := disk.OS{}
	if err := d.MkdirAll(dir); err != nil {
		return err
	}
	// Publish makes files that only their owner may read.
	publish := func(name, kind string, b []byte) error {
		return disk.Publish(d, filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	if err := publish(keyName, "PRIVATE KEY", secret); err != nil {
		return err
	}
	return publish(certName, "CERTIFICATE", der)
}

// machineNames returns the names and addresses under which clients may call this machine.
func machineNames(addr string) (names []string, ips []net.IP) {
	if h, err := os.Hostname(); err == nil && h != "" && h != "localhost" {
		names = append(names, h)
	}
	names = append(names, "localhost")
	ips = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return names, ips
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return names, append(ips, ip)
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return names, ips
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() {
			ips = append(ips, n.IP)
		}
	}
	return names, ips
}
