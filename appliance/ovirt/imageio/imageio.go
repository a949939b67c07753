// Package imageio reads and writes disks through ovirt-imageio, the daemon on oVirt's hosts that gives out and takes the
// bytes of an image transfer.
//
// Terms. A ticket is what allows a transfer's image to be read or written; it is in the URL, which is therefore a secret. Extents
// say what of an image is zeros, or what changed, without reading it. The proxy is the same daemon on the engine's
// machine, which passes everything on: slower, and tried when the host cannot be reached.
//
// Invariants:
//
//  1. At most Options.MaxConns connections are open to the daemon, whatever callers do: it hangs silently on the ninth.
//  2. Host or proxy is chosen once, by Dial, and kept.
//  3. A read gives exactly the bytes asked for or an error. A connection that broke is tried again, since reading changes
//     nothing; a ticket that is gone is errs.Stale and is not.
//  4. Asking for extents has no deadline of its own: on large, fragmented disks the answer takes minutes. Extents are
//     checked: in order, without gaps, from 0 to the end.
//  5. URLs never appear in errors or logs.
//  6. What was written is durable after Flush and not before. A write whose answer was lost is sent again; one that the
//     daemon failed at is not, since what came before it is then in doubt too: the caller begins with a new disk.
//
// An Image may be used by many goroutines. Sources: the daemon's HTTP handlers (ovirt-imageio 2.5), and runs of the real
// daemon, against which it is tested.
package imageio

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Options say which image to read, and how.
type Options struct {
	TransferURL string // on the host
	ProxyURL    string // "" if there is none
	CA          []byte // PEM; nothing else is believed
	MaxConns    int    // default 4
	Write       bool   // it will be written: as many connections as the daemon allows for that
	Logger      *slog.Logger
}

const (
	defaultConns = 4
	probeWithin  = 10 * time.Second
	readWithin   = 5 * time.Minute // for one read of a few MiB: bounds a hang
	readTries    = 4
	firstPause   = 250 * time.Millisecond
)

// Extent is a stretch of an image.
type Extent struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
	Zero   bool  `json:"zero"`
	Hole   bool  `json:"hole"`
	Dirty  bool  `json:"dirty"`
}

// Image is an open image transfer.
type Image struct {
	url    string
	proxy  bool
	client *http.Client
	size   int64
	write  bool // as asked for
	dirty  bool // the daemon knows of extents at all
	read   atomic.Int64
}

// Dial looks where the image can be read, and how long it is.
func Dial(ctx context.Context, o Options) (*Image, error) {
	m, err := dial(ctx, o)
	return m, errs.Wrap("open image transfer", "", err)
}

func dial(ctx context.Context, o Options) (*Image, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(o.CA) {
		return nil, errs.Text("read certificate authority", "", errs.Invalid, "it is not a certificate")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Image{url: o.TransferURL, write: o.Write, client: newClient(roots, o.MaxConns)}
	conns, err := m.probe(ctx)
	if errs.Is(err, errs.Transient) && o.ProxyURL != "" {
		o.Logger.Warn("the host cannot be reached for image transfers, going through the engine's machine: slow path", "err", err)
		m.url, m.proxy = o.ProxyURL, true
		conns, err = m.probe(ctx)
	}
	if err != nil {
		return nil, err
	}
	if want := o.MaxConns; conns > 0 && conns < max(want, defaultConns) {
		m.client.CloseIdleConnections()
		m.client = newClient(roots, conns)
	}
	m.size, err = m.findSize(ctx)
	return m, err
}

func newClient(roots *x509.CertPool, conns int) *http.Client {
	if conns <= 0 {
		conns = defaultConns
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		DialContext:     (&net.Dialer{Timeout: probeWithin, KeepAlive: 30 * time.Second}).DialContext,
		MaxConnsPerHost: conns, MaxIdleConnsPerHost: conns, TLSHandshakeTimeout: probeWithin,
		TLSNextProto:       map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1: one connection, one read
		DisableCompression: true, ReadBufferSize: 128 << 10,
	}}
}

// probe asks what the daemon can do; it returns how many readers, or writers, it allows.
func (m *Image) probe(ctx context.Context) (conns int, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	body, _, err := m.do(ctx, http.MethodOptions, "", "")
	if err != nil {
		return 0, err
	}
	defer body.Close()
	var got struct {
		Features   []string `json:"features"`
		MaxReaders int      `json:"max_readers"`
		MaxWriters int      `json:"max_writers"`
	}
	if err := json.NewDecoder(io.LimitReader(body, 64<<10)).Decode(&got); err != nil {
		return 0, errs.Text("ask ovirt-imageio", "", errs.Transient, "what answers is not ovirt-imageio").
			WithNext("Check that ovirt-imageio runs on the host, and that nothing else has its port 54322.")
	}
	m.dirty = slices.Contains(got.Features, "extents")
	if m.write && got.MaxWriters > 0 {
		return min(got.MaxReaders, got.MaxWriters), nil
	}
	return got.MaxReaders, nil
}

// findSize reads one byte: the answer names the whole length.
func (m *Image) findSize(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	body, h, err := m.do(ctx, http.MethodGet, "", "bytes=0-0")
	if err != nil {
		return 0, err
	}
	defer body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(body, 1))
	_, all, ok := strings.Cut(h.Get("Content-Range"), "/")
	size, err := strconv.ParseInt(all, 10, 64)
	if !ok || err != nil || size <= 0 {
		return 0, errs.Text("ask for the size", "", errs.Unsupported, fmt.Sprintf("the daemon answers a range with %q", h.Get("Content-Range")))
	}
	return size, nil
}

// do sends a request and returns the body of a good answer. Other answers become errors by their status.
func (m *Image) do(ctx context.Context, method, path, rng string) (io.ReadCloser, http.Header, error) {
	u, err := url.Parse(m.url)
	if err != nil {
		return nil, nil, errs.Text("read transfer URL", "", errs.Invalid, "the engine's transfer URL cannot be understood")
	}
	if path != "" {
		name, query, _ := strings.Cut(path, "?")
		u = u.JoinPath(name)
		u.RawQuery = query
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, nil, errs.Text("read transfer URL", "", errs.Invalid, "the engine's transfer URL cannot be understood")
	}
	if rng != "" {
		req.Header.Set("Range", rng)
	}
	resp, err := m.client.Do(req)
	if err != nil {
		return nil, nil, m.broken(ctx, err)
	}
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
		return resp.Body, resp.Header, nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
	_ = resp.Body.Close()
	return nil, nil, refused(resp.StatusCode, strings.TrimSpace(string(text)))
}

// broken is the error of a request that got no answer, without the URL that Go puts into it.
func (m *Image) broken(ctx context.Context, err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var cert *tls.CertificateVerificationError
	if errors.As(err, &unknown) || errors.As(err, &host) || errors.As(err, &cert) {
		return errs.New("ask ovirt-imageio", "", errs.Denied, err).
			WithNext("The host's certificate is not from the engine's authority: enrol the host's certificate in the engine.")
	}
	where := "the host (port 54322)"
	if m.proxy {
		where = "the engine's machine (port 54323)"
	}
	return errs.New("reach ovirt-imageio on "+where, "", errs.Transient, err).
		WithNext("Open TCP port 54322 of the hosts (or 54323 of the engine's machine) to this node, and see that ovirt-imageio runs.")
}

// refused tells an answer that is not the bytes.
func refused(status int, text string) error {
	const op = "use ovirt-imageio"
	cause := fmt.Sprintf("%d: %s", status, text)
	switch status {
	case http.StatusForbidden:
		return errs.Text(op, "", errs.Stale, "the ticket is not valid any more").
			WithNext("The engine ended the transfer: see its events, then try again.")
	case http.StatusNotFound:
		return errs.Text(op, "", errs.NotFound, cause)
	case http.StatusRequestedRangeNotSatisfiable, http.StatusBadRequest:
		return errs.Text(op, "", errs.Invalid, cause)
	}
	if status >= 500 {
		return errs.Text(op, "", errs.Transient, cause).WithNext("See the host's ovirt-imageio log.")
	}
	return errs.Text(op, "", errs.Bug, cause)
}

// Size returns the disk's virtual size in bytes.
func (m *Image) Size() int64 { return m.size }

// ReadBytes returns how many bytes of the disk came over the wire so far.
func (m *Image) ReadBytes() int64 { return m.read.Load() }

// SlowPath tells whether everything goes through the engine's machine.
func (m *Image) SlowPath() bool { return m.proxy }

// Extents calls visit with the extents of the whole image, in order; with dirty they tell what changed as well. A daemon
// without extents gives one, of data. errs.NotFound: the ticket does not know changes.
func (m *Image) Extents(ctx context.Context, dirty bool, visit func(Extent) error) error {
	if !m.dirty {
		if dirty {
			return errs.Text("ask for extents", "", errs.NotFound, "the daemon does not know changes")
		}
		return visit(Extent{Length: m.size})
	}
	what := "zero"
	if dirty {
		what = "dirty"
	}
	body, _, err := m.do(ctx, http.MethodGet, "extents?context="+what, "")
	if err != nil {
		return errs.Wrap("ask for extents", "", err)
	}
	defer body.Close()
	return errs.Wrap("read extents", "", m.decode(ctx, body, visit))
}

func (m *Image) decode(ctx context.Context, body io.Reader, visit func(Extent) error) error {
	d := json.NewDecoder(body)
	bad := func(err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return errs.New("parse the answer", "", errs.Transient, err)
	}
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return bad(fmt.Errorf("it is not a list (%v, %v)", t, err))
	}
	pos := int64(0)
	for d.More() {
		var e Extent
		if err := d.Decode(&e); err != nil {
			return bad(err)
		}
		if e.Start != pos || e.Length <= 0 || e.Length > m.size-pos {
			return errs.Text("parse the answer", "", errs.Corrupt, fmt.Sprintf("an extent of %d bytes at %d follows byte %d of %d", e.Length, e.Start, pos, m.size))
		}
		pos += e.Length
		if err := visit(e); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return bad(err)
	}
	if pos != m.size {
		return errs.Text("parse the answer", "", errs.Corrupt, fmt.Sprintf("the extents end at byte %d of %d", pos, m.size))
	}
	return nil
}

// ReadAt reads as io.ReaderAt does.
func (m *Image) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off >= m.size {
		return 0, io.EOF
	}
	var end error
	if rest := m.size - off; rest < int64(len(p)) {
		p, end = p[:rest], io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	pause := firstPause
	for try := 1; ; try++ {
		err := m.readOnce(ctx, p, off)
		if err == nil {
			m.read.Add(int64(len(p)))
			return len(p), end
		}
		if try == readTries || !errs.KindOf(err).Retryable() {
			return 0, errs.Wrap("read disk", fmt.Sprintf("at byte %d", off), err)
		}
		select {
		case <-time.After(pause):
			pause *= 4
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (m *Image) readOnce(ctx context.Context, p []byte, off int64) error {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	body, _, err := m.do(ctx, http.MethodGet, "", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1))
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.ReadFull(body, p); err != nil {
		return m.broken(ctx, err)
	}
	// One byte more, to see the end: the connection can then be used again.
	if n, err := body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return errs.Text("read range", "", errs.Transient, "the answer is longer than what was asked for")
	}
	return nil
}

// Close closes the connections; the transfer can then be finalised.
func (m *Image) Close() error {
	m.client.CloseIdleConnections()
	return nil
}
