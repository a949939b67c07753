package ovirt

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	nextURL  = "Write it as https://MANAGER/ovirt-engine/api, with the manager's full name; the name alone is enough."
	nextUser = "Write the user with its domain: user@domain, as in admin@internal, or admin@ovirt@internalsso where the engine logs in through Keycloak. The domains are the profiles on the engine's login page."
	nextCA   = "Give the certificate of the engine's authority (on the engine: /etc/pki/ovirt-engine/ca.pem, or that of its web server's certificate) with --ca-file, or trust what the engine shows with --accept-fingerprint."
)

// NormalizeURL returns the one form of an engine's address: https://host[:port]/ovirt-engine/api. It takes the host
// alone, and the address with or without the path's parts.
func NormalizeURL(address string) (string, error) {
	const op = "read manager address"
	bad := func(why string) (string, error) {
		return "", errs.Text(op, redacted(address), errs.Invalid, why).WithNext(nextURL)
	}
	s := strings.TrimSpace(address)
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Hostname() == "" || strings.ContainsAny(u.Host, " %"):
		return bad("it is not an address")
	case u.Scheme != "https":
		return bad("the engine answers over https only")
	case u.User != nil:
		return bad("user and password do not belong in it")
	case u.RawQuery != "" || u.Fragment != "":
		return bad("nothing may follow the path")
	}
	switch strings.TrimRight(u.Path, "/") {
	case "", "/ovirt-engine", "/ovirt-engine/api":
	default:
		return bad("the path " + u.Path + " is not the engine's")
	}
	host := strings.TrimSuffix(strings.ToLower(u.Host), ":443")
	return "https://" + strings.TrimSuffix(host, ":") + "/ovirt-engine/api", nil
}

// redacted is an address without a password that somebody wrote into it.
func redacted(address string) string {
	if at := strings.LastIndexByte(address, '@'); at >= 0 {
		return "…" + address[at:]
	}
	return address
}

// CheckUser tells whether a user's name has the form the engine needs. It asks nobody.
func CheckUser(user string) error {
	const op = "read user name"
	at := strings.LastIndexByte(user, '@')
	switch {
	case at < 0:
		return errs.Text(op, user, errs.Invalid, "the domain is missing").WithNext(nextUser)
	case strings.Trim(user[:at], "@") == "" || at == len(user)-1 || strings.ContainsAny(user, " \t\r\n\x00"):
		return errs.Text(op, user, errs.Invalid, "it is not of the form user@domain").WithNext(nextUser)
	}
	return nil
}

// maxCert bounds what an engine may send as its authority's certificate.
const maxCert = 256 << 10

// FetchCA asks an engine for the certificate of its authority, without trusting the answer, and checks that the engine's
// own certificate was issued by it. The fingerprint is the certificate's SHA-256 in hex: a person has to compare it.
// Nothing secret is sent.
func FetchCA(ctx context.Context, address string) (cert []byte, fingerprint string, err error) {
	const op = "fetch the certificate authority of"
	address, err = NormalizeURL(address)
	if err != nil {
		return nil, "", err
	}
	within, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// The one connection whose certificate is looked at afterwards: what it carries is public, and believed by nobody
	// before its fingerprint was.
	client := newHTTP(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	defer client.CloseIdleConnections()
	u := strings.TrimSuffix(address, "/api") + "/services/pki-resource?resource=ca-certificate&format=X509-PEM-CA"
	req, err := http.NewRequestWithContext(within, http.MethodGet, u, nil)
	if err != nil {
		return nil, "", errs.New(op, address, errs.Bug, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", errs.Wrap(op, address, netError(ctx, err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxCert))
	if err != nil {
		return nil, "", errs.Wrap(op, address, netError(ctx, err))
	}
	switch {
	case resp.StatusCode >= http.StatusInternalServerError:
		return nil, "", errs.Wrap(op, address, refusal(resp, body))
	case resp.StatusCode != http.StatusOK:
		return nil, "", errs.Wrap(op, address, foreign(resp, errs.Transient))
	}
	if fingerprint, err = Fingerprint(body); err != nil {
		return nil, "", errs.Wrap(op, address, foreign(resp, errs.Invalid))
	}
	if err := checkChain(resp.TLS, body, req.URL.Hostname()); err != nil {
		return nil, "", errs.Wrap(op, address, err)
	}
	return body, fingerprint, nil
}

// checkChain tells whether a server's certificate holds against an authority.
func checkChain(state *tls.ConnectionState, authority []byte, host string) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	for _, c := range state.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: host})
	if err == nil {
		return nil
	}
	return certError(err)
}

// Fingerprint returns the SHA-256 of the first certificate in a PEM text, in hex.
func Fingerprint(text []byte) (string, error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return "", errs.Text("read certificate", "", errs.Invalid, "there is no certificate in PEM form").WithNext(nextCA)
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", errs.New("read certificate", "", errs.Invalid, err).WithNext(nextCA)
		}
		sum := sha256.Sum256(block.Bytes)
		return hex.EncodeToString(sum[:]), nil
	}
}

// SameFingerprint tells whether two fingerprints are equal, with or without colons and in either case.
func SameFingerprint(a, b string) bool {
	plain := strings.NewReplacer(":", "", " ", "")
	a, b = strings.ToLower(plain.Replace(a)), strings.ToLower(plain.Replace(b))
	return len(a) == 2*sha256.Size && a == b
}
