package ovirt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	ovirtsdk "github.com/ovirt/go-ovirt"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Options say which engine, and as whom.
type Options struct {
	URL      string // any form that NormalizeURL takes
	User     string // user@domain
	Password string
	CA       []byte        // PEM; nothing else is trusted
	Logger   *slog.Logger  // nil is silent
	Timeout  time.Duration // of one call, with its repetitions; 0 for the default, 180 s
}

const (
	defaultTimeout = 180 * time.Second // some calls wait inside the engine for a lock
	longTimeout    = 10 * time.Minute  // moves, imports and attaches wait for storage
	readTries      = 3
	firstPause     = 500 * time.Millisecond // between tries; each is four times the one before
	maxConns       = 16                     // to one engine
)

// Client is a login to one engine. Its methods may be called by many goroutines; Close ends it.
type Client struct {
	base     string // https://host/ovirt-engine
	user     string
	password string
	log      *slog.Logger
	timeout  time.Duration
	long     time.Duration
	pause    time.Duration
	http     *http.Client
	session  session

	mu      sync.Mutex // guards backups
	backups map[ID]ID  // VM of each backup that was seen, since a transfer does not tell
}

// Dial logs in.
func Dial(ctx context.Context, o Options) (*Client, error) {
	const op = "log in to engine"
	address, err := NormalizeURL(o.URL)
	if err != nil {
		return nil, err
	}
	if err := CheckUser(o.User); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(o.CA) {
		return nil, errs.Text(op, address, errs.Invalid, "no certificate of an authority was given, or it is not PEM").
			WithNext(nextCA)
	}
	c := &Client{
		base: address[:len(address)-len("/api")], user: o.User, password: o.Password, log: o.Logger,
		timeout: o.Timeout, long: longTimeout, pause: firstPause, backups: map[ID]ID{},
		http: newHTTP(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.timeout <= 0 {
		c.timeout = defaultTimeout
	}
	c.session.turn = make(chan struct{}, 1)
	within, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if _, err := c.bearer(within, ""); err != nil {
		c.http.CloseIdleConnections()
		return nil, errs.Wrap(op, address, late(ctx, within, err, c.timeout))
	}
	return c, nil
}

// newHTTP returns a client that keeps connections, and follows no redirection: a token goes where it was meant to go.
func newHTTP(t *tls.Config) *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig:     t,
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout: 10 * time.Second,
			MaxConnsPerHost:     maxConns,
			MaxIdleConnsPerHost: maxConns,
			IdleConnTimeout:     time.Minute,
		},
	}
}

// Close revokes the login. The client cannot be used afterwards.
func (c *Client) Close(ctx context.Context) error {
	defer c.http.CloseIdleConnections()
	within, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	return errs.Wrap("log out of engine", c.base, late(ctx, within, c.logout(within), c.timeout))
}

// Info asks the engine what it is.
func (c *Client) Info(ctx context.Context) (Info, error) {
	api, err := readOne(ctx, c, get("ask engine", c.base, ""), "api", ovirtsdk.XMLApiReadOne)
	if err != nil {
		return Info{}, err
	}
	i := Info{User: c.user}
	if p, ok := api.ProductInfo(); ok {
		i.Vendor, i.Product = or(p.Vendor()), or(p.Name())
		if v, ok := p.Version(); ok {
			i.Version, i.Major, i.Minor = or(v.FullVersion()), int(or(v.Major())), int(or(v.Minor()))
		}
	}
	return i, nil
}

type correlationKey struct{}

// maxCorrelation is where the engine cuts a correlation ID.
const maxCorrelation = 36

// WithCorrelation returns a context whose requests the engine's jobs and events are found by. The engine takes letters,
// digits, - and _, 36 of them; what is more is left out.
func WithCorrelation(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, correlationKey{}, correlation(id))
}

func correlation(id string) string {
	kept := make([]byte, 0, maxCorrelation)
	for i := 0; i < len(id) && len(kept) < maxCorrelation; i++ {
		if c := id[i]; c == '-' || c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
			kept = append(kept, c)
		}
	}
	return string(kept)
}
