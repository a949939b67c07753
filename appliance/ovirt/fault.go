package ovirt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	nextDown   = "Check that the engine runs and that this node reaches it: open its address in a browser, or curl -k ADDRESS/ovirt-engine/services/health."
	nextEngine = "Check the address: another web server may answer there. An engine that is just starting answers like this too: wait a little then."
	nextRight  = "Give the user the permission in the engine (Administration, Users), or add the manager with another user."
	nextWait   = "Something else works on it: try again when it is done. The VM's and the storage's events in the engine tell what it is."
)

// fault is how the engine refuses.
type fault struct {
	status int
	reason string
	detail string
}

// Error prints the engine's text.
func (f *fault) Error() string {
	text := strings.Trim(f.detail, "[] \n\t")
	if text == "" && f.detail != "" {
		text = f.reason + ", without saying why"
	}
	if text == "" {
		text = f.reason
	}
	if text == "" {
		text = http.StatusText(f.status)
	}
	return fmt.Sprintf("%s (HTTP %d)", strings.Join(strings.Fields(text), " "), f.status)
}

// faultText is a fault in JSON or XML, bare or within an action.
type faultText struct {
	Reason string `json:"reason" xml:"reason"`
	Detail string `json:"detail" xml:"detail"`
	Inner  *struct {
		Reason string `json:"reason" xml:"reason"`
		Detail string `json:"detail" xml:"detail"`
	} `json:"fault" xml:"fault"`
}

var tags = regexp.MustCompile(`(?is)<title>.*?</title>|<[^>]*>`)

// parseFault reads a refusal. html says that it is a page: of the engine's front, of something before it, or of an
// engine that is starting or has met a bug of its own.
func parseFault(resp *http.Response, body []byte) (f *fault, html bool) {
	f = &fault{status: resp.StatusCode}
	var t faultText
	if json.Unmarshal(body, &t) != nil && xml.Unmarshal(body, &t) != nil || t == (faultText{}) {
		text := strings.Join(strings.Fields(tags.ReplaceAllString(string(body), " ")), " ")
		f.detail = strings.ToValidUTF8(text[:min(len(text), 200)], "")
		return f, len(body) > 0
	}
	f.reason, f.detail = t.Reason, t.Detail
	if t.Inner != nil {
		f.reason, f.detail = t.Inner.Reason, t.Inner.Detail
	}
	return f, strings.Contains(strings.ToLower(string(body[:min(len(body), 100)])), "<html")
}

// notAllowed tells a 401 that a new login will not change: the user exists and may do nothing at all.
func notAllowed(body []byte) bool {
	return strings.Contains(string(body), "not authorized to perform login")
}

// refusal makes an error of an answer that is no success.
func refusal(resp *http.Response, body []byte) error {
	f, html := parseFault(resp, body)
	kind, next := classify(f, html)
	return errs.New("the engine says", "", kind, f).WithNext(next)
}

// rule says what a text of the engine's means. Texts count before status codes: the engine answers the same trouble with
// 400 in one place and 409 in another.
type rule struct {
	text *regexp.Regexp
	kind errs.Kind
	next string
}

func is(text string, kind errs.Kind, next string) rule {
	return rule{regexp.MustCompile("(?i)" + text), kind, next}
}

// rules are tried in order; the texts are those of engine 4.4 and 4.5 in English.
var rules = [...]rule{
	is(`checkpoint.*(doesn't exist|does not exist|not found|invalid|illegal)|bitmap`, errs.Stale,
		"The changes since the last backup are not known any more: the next backup has to be a full one."),
	is(`low disk space|not enough (free |available )?space|no space left|exceeds? quota|quota.*exceed`, errs.NoSpace,
		"Make room on the storage domain, or choose another."),
	is(`not authorized|insufficient permissions|no permission`, errs.Denied, nextRight),
	is(`delete protection`, errs.Denied, "Disable Delete Protection of the VM in the engine first."),
	is(`already in use|already used by|already exists?|duplicates in target mac pool|already marked as boot|already attached`, errs.Exists, ""),
	is(`following disks are locked|is locked|try again|in progress|performing an operation|during a backup|during a snapshot`, errs.Busy, nextWait),
	is(`being (moved|copied|transferred|created|removed|migrated|exported|previewed|merged)|active image transfer`, errs.Busy, nextWait),
	is(`^\[\]$`, errs.Busy, nextWait), // only of a fault: a snapshot or a backup is in the way, and the engine does not say so
	is(`RAW format disks|incompatible with the storage domain type`, errs.Unsupported,
		"A raw disk has to become qcow2 first: convert it, or move it to a qcow2 disk, in the engine."),
	is(`general command validation failure`, errs.Invalid, "Something that was named does not exist, or does not belong together."),
	is(`source and target storage domains are the same`, errs.Exists, ""),
	is(`disk.* (does not|doesn't) exist|entity not found`, errs.NotFound, ""),
	is(`trying to mount target`, errs.Transient,
		"The host could not mount the export: check that the hosts reach this node (address, firewall), and may mount (allow, below nfs in the node's configuration); then try again."),
	is(`storage domain is inaccessible|storage domain's status is|(up|down) status|not down|vm is running|is in .* status`, errs.Busy, nextWait),
}

// classify gives a refusal its kind, and what a person can do next.
func classify(f *fault, html bool) (errs.Kind, string) {
	switch {
	case f.status == http.StatusUnauthorized || f.status == http.StatusForbidden:
		return errs.Denied, nextRight
	case html && strings.Contains(f.detail, "RESTEASY"):
		return errs.Unsupported, "This engine does not know the request: it may be older than 4.4.7."
	case html && f.status == http.StatusNotFound: // an engine that is starting, or another server altogether
		return errs.Transient, nextEngine
	case f.status == http.StatusBadGateway || f.status == http.StatusServiceUnavailable ||
		f.status == http.StatusGatewayTimeout || f.status == http.StatusTooManyRequests:
		return errs.Transient, nextDown
	}
	if f.reason != "" {
		for _, r := range rules {
			if r.text.MatchString(strings.TrimSpace(f.detail)) {
				return r.kind, r.next
			}
		}
	}
	switch f.status {
	case http.StatusNotFound:
		return errs.NotFound, ""
	case http.StatusConflict:
		return errs.Busy, nextWait
	case http.StatusBadRequest:
		return errs.Invalid, "The engine's log (/var/log/ovirt-engine/engine.log) says more."
	}
	return errs.Bug, "The engine's log (/var/log/ovirt-engine/engine.log) says more."
}

// refusedWith tells whether the engine refused in words that match.
func refusedWith(err error, text *regexp.Regexp) bool {
	var f *fault
	return errors.As(err, &f) && text.MatchString(f.detail)
}

// statusOf returns the HTTP status of a refusal, or 0.
func statusOf(err error) int {
	var f *fault
	if errors.As(err, &f) {
		return f.status
	}
	return 0
}

// netError gives a failure to reach the engine its kind. It drops the URL, which says nothing that the caller does not
// know.
func netError(ctx context.Context, err error) error {
	const op = "reach engine"
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if cause := ctx.Err(); cause != nil {
		return errs.New(op, "", errs.Canceled, cause)
	}
	if certError(err) != nil {
		return errs.New(op, "", errs.Denied, certError(err))
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("the connection was closed before the answer was there (%w)", err)
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return errs.New(op, "", errs.Transient, err).WithNext("Check the manager's name, and this node's name server.")
	}
	return errs.New(op, "", errs.Transient, err).WithNext(nextDown)
}

// late gives a failure that a deadline of ours caused its kind: the caller did not give up, the engine did not answer.
func late(parent, ctx context.Context, err error, after time.Duration) error {
	if err == nil || parent.Err() != nil || ctx.Err() == nil {
		return err
	}
	return errs.Text("wait for the engine", "", errs.Transient, fmt.Sprintf("no answer within %v", after)).WithNext(nextDown)
}

// certError explains a certificate that does not hold, or returns nil if err is about something else.
func certError(err error) error {
	const op = "check the engine's certificate"
	var (
		verify  *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &name):
		return errs.New(op, "", errs.Denied, err).WithNext("Use the name that the certificate was issued for.")
	case errors.As(err, &unknown):
		return errs.New(op, "", errs.Denied, err).WithNext(nextCA)
	case errors.As(err, &invalid) || errors.As(err, &verify):
		return errs.New(op, "", errs.Denied, err).WithNext("Renew the engine's certificate (engine-setup), and check both clocks. " + nextCA)
	}
	return nil
}
