package api

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// tls opens the TLS listener and returns its address.
func (d *doors) tls(l Listeners, h http.Handler) (string, error) {
	token, err := loadToken(l.TokenFile)
	if err != nil {
		return "", err
	}
	cert, err := loadCertificate(l.CertDir, l.TLSAddr, l.Logger)
	if err != nil {
		return "", err
	}
	ln, err := net.Listen("tcp", l.TLSAddr)
	if err != nil {
		return "", errs.New("listen for TLS", l.TLSAddr, errs.KindOf(err), err).
			WithNext("Choose another address or port for api.listen, or end what uses it.")
	}
	// HTTP/1.1 only: both doors behave alike, and streams need nothing more.
	c := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get, NextProtos: []string{"http/1.1"}}
	d.all = append(d.all, door{tls.NewListener(ln, c), d.onlyToken(token, h)})
	return ln.Addr().String(), nil
}

const (
	tokenBytes    = 32 // drawn for a new token
	minTokenChars = 16 // of a token that somebody chose
	maxTokenChars = 4096
)

// loadToken reads the token, or makes one. Only its hash is kept: what is compared is then of one length.
func loadToken(file string) (hash [sha256.Size]byte, err error) {
	const op = "read API token"
	b, err := disk.ReadFile(disk.OS{}, file, maxTokenChars)
	if errs.Is(err, errs.NotFound) {
		return makeToken(file)
	}
	if err != nil {
		return hash, errs.Wrap(op, file, err)
	}
	st, err := os.Stat(file)
	if err != nil {
		return hash, errs.Wrap(op, file, err)
	}
	if st.Mode().Perm()&0o027 != 0 {
		return hash, errs.Text(op, file, errs.Denied, "others may read or change it").WithNext("Run: chmod 600 " + file)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < minTokenChars {
		return hash, errs.Text(op, file, errs.Invalid, "it is too short to keep anybody out").
			WithNext("Remove the file: a good one is made when the daemon starts.")
	}
	return sha256.Sum256([]byte(token)), nil
}

func makeToken(file string) (hash [sha256.Size]byte, err error) {
	b := make([]byte, tokenBytes)
	_, _ = rand.Read(b) // never fails
	token := hex.EncodeToString(b)
	d := disk.OS{}
	if err := d.MkdirAll(filepath.Dir(file)); err != nil {
		return hash, errs.Wrap("make API token", file, err)
	}
	if err := disk.Publish(d, file, []byte(token+"\n")); err != nil { // only the owner may read it
		return hash, errs.Wrap("make API token", file, err)
	}
	return sha256.Sum256([]byte(token)), nil
}

// onlyToken lets in whoever shows the token.
func (d *doors) onlyToken(hash [sha256.Size]byte, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, shown, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		got := sha256.Sum256([]byte(strings.TrimSpace(shown)))
		if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(got[:], hash[:]) != 1 {
			d.log.Warn("a request without the right token", "from", r.RemoteAddr, "method", r.Method, "path", r.URL.Path)
			const op = "use the node"
			err := errors.New("the token is missing or wrong")
			p := ProblemOf(op, errs.New(op, "", errs.Denied, err).
				WithNext("Give the token from the node's token file (api.token_file), as `Authorization: Bearer …` "+
					"or with HOLDFAST_TOKEN_FILE."))
			p.Status = http.StatusUnauthorized
			w.Header().Set("WWW-Authenticate", `Bearer realm="holdfast"`)
			writeProblem(w, p)
			return
		}
		next.ServeHTTP(w, r)
	})
}
