package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const connectOp = "connect to node"

// readToken reads a token file.
func readToken(file string) (string, error) {
	const op = "read API token"
	if file == "" {
		return "", errs.Text(op, "", errs.Invalid, "a node that is reached over TLS wants a token").
			WithNext("Copy the node's token file (api.token_file) and name it with --token-file or HOLDFAST_TOKEN_FILE.")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", errs.Wrap(op, file, err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" || strings.ContainsAny(token, "\r\n\t ") {
		return "", errs.Text(op, file, errs.Invalid, "the file does not hold one token").
			WithNext("Copy the node's token file again.")
	}
	return token, nil
}

// trust says whose certificate is believed.
func trust(caFile string) (*tls.Config, error) {
	const op = "read certificate"
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return c, nil
	}
	b, err := os.ReadFile(caFile)
	if err != nil {
		return nil, errs.Wrap(op, caFile, err)
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(b) {
		return nil, errs.Text(op, caFile, errs.Invalid, "there is no certificate in the file").
			WithNext("Copy the node's cert.pem again.")
	}
	return c, nil
}

// advice says what sort of failure it is that a node was not reached, and what to look at.
func advice(c *Client, err error) (errs.Kind, string) {
	var unknown x509.UnknownAuthorityError
	var otherName x509.HostnameError
	var invalid x509.CertificateInvalidError
	path, local := socketPath(c.node)
	switch {
	case errors.As(err, &unknown):
		return errs.Denied, "Copy the node's cert.pem and name it with --node-ca-file or HOLDFAST_NODE_CA."
	case errors.As(err, &otherName):
		return errs.Denied, "Use a name or address that the node's certificate is for, or give the node a certificate for this one."
	case errors.As(err, &invalid):
		return errs.Denied, "Check the clocks of both machines, and until when the node's certificate holds."
	case local && errors.Is(err, fs.ErrPermission):
		return errs.Denied, "Run the command as root, or as a member of the group that `ls -l " + path + "` shows."
	case local:
		return errs.Transient, "Is holdfastd running, with an api section? See `systemctl status holdfastd`; " +
			"its api.socket must be " + path + "."
	default:
		return errs.Transient, "Is holdfastd running there, with api.listen set to that address, and no firewall between? " +
			"On the node, see `systemctl status holdfastd`."
	}
}
