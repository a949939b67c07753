// Package client is a node's api.Service at the other end of a wire: what the command line asks, this sends to the
// daemon, over its unix socket or over TLS with a token.
//
// A refusal comes back as the *errs.Error that the node had: of the same kind, text and next step. A node that cannot be
// reached is errs.Transient, and the error says how to find out why. Every call ends by itself, within two minutes; a
// watch goes on until its task ends, and outlives a node that is restarted meanwhile.
//
// The environment is not read here, and no proxy is used. A Client may be used concurrently.
//
// Tested against the real server over both doors, and against servers that break off.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// DefaultNode is where a node is by default, as docs/holdfastd.md has it.
const DefaultNode = "unix:///run/holdfast/holdfastd.sock"

// Bounds of what a call may take.
const (
	dialTime  = 10 * time.Second
	callTime  = 2 * time.Minute // the node gives up a little earlier, and then says why
	maxAnswer = 64 << 20        // bytes
)

// Options say which node is meant.
type Options struct {
	Node      string // unix:///path, /path or https://host:port; "" is DefaultNode
	TokenFile string // holds the token; needed with https
	CAFile    string // PEM of the certificate to trust (the node's cert.pem); "" trusts what this machine trusts
}

// Client speaks to one node. It implements api.Service.
type Client struct {
	node   string // as it is named to people
	base   string // URL without the path
	token  string
	http   *http.Client
	pauses []time.Duration // before each further try to go on with a watch
	quiet  time.Duration   // after which a stream without a sign of life is given up
}

var _ api.Service = (*Client)(nil)

// Dial returns a client. It connects to nothing yet: the first call does.
func Dial(o Options) (*Client, error) {
	if o.Node == "" {
		o.Node = DefaultNode
	}
	c := &Client{node: o.Node, pauses: []time.Duration{2 * time.Second, 6 * time.Second}, quiet: time.Minute}
	t := &http.Transport{
		TLSHandshakeTimeout: dialTime, ResponseHeaderTimeout: callTime, IdleConnTimeout: time.Minute, MaxIdleConns: 4,
		DialContext: (&net.Dialer{Timeout: dialTime}).DialContext,
	}
	// A redirect is nothing that a node answers; following one could carry the token elsewhere.
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.http = &http.Client{Transport: t, CheckRedirect: stay}
	if path, ok := socketPath(o.Node); ok {
		c.base = "http://holdfast"
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTime}).DialContext(ctx, "unix", path)
		}
		return c, nil
	}
	u, err := url.Parse(o.Node)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/")+u.RawQuery != "" {
		return nil, errs.Text(connectOp, o.Node, errs.Invalid, "this names no node").
			WithNext("Write unix:///run/holdfast/holdfastd.sock for the node on this machine, or https://HOST:PORT for another.")
	}
	c.base = "https://" + u.Host
	if c.token, err = readToken(o.TokenFile); err != nil {
		return nil, err
	}
	t.TLSClientConfig, err = trust(o.CAFile)
	return c, err
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func socketPath(node string) (string, bool) {
	if path, ok := strings.CutPrefix(node, "unix://"); ok {
		return path, strings.HasPrefix(path, "/")
	}
	return node, strings.HasPrefix(node, "/")
}

// call sends a request and reads the answer into out, which may be nil.
func (c *Client) call(ctx context.Context, method string, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return c.unreachable(ctx, err)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return errs.New("read the answer of node", c.node, errs.Bug, err).
			WithNext("Do the program and the node have the same version? GET /api/v1/status tells the node's.")
	}
	return nil
}

// send sends a request and returns the answer if it is a success; the caller closes its body.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, errs.New("write request", "", errs.Bug, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+api.Prefix+path, body)
	if err != nil {
		return nil, errs.New("write request", path, errs.Invalid, err)
	}
	req.Header.Set("Content-Type", "application/json")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode < 300 && ours(resp) {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, c.refused(resp)
}

// ours tells whether a success looks like one of a node's. A web page is none, even if it comes with the right status.
func ours(resp *http.Response) bool {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return kind == "application/json" || kind == "text/event-stream" || kind == "" && resp.ContentLength == 0
}

// refused makes an error of an answer that is no success.
func (c *Client) refused(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil && kind == "application/problem+json" {
		var p api.ProblemDetails
		if err = json.Unmarshal(b, &p); err == nil && p.Code != "" {
			return p.Err()
		}
	}
	return errs.Text(connectOp, c.node, errs.Bug, "the answer is not one of a Holdfast node: "+resp.Status).
		WithNext("Check the address: does something else listen there?")
}

// unreachable says why nothing came back, and what to look at.
func (c *Client) unreachable(ctx context.Context, err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // it repeats the method and an address that nobody wrote
	}
	if ctx.Err() != nil {
		given := errs.New("ask node", c.node, errs.Canceled, ctx.Err())
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			given.Next = "The node did not answer in time: look at its log (`journalctl -u holdfastd`), then ask again."
		}
		return given
	}
	kind, next := advice(c, err)
	return errs.New(connectOp, c.node, kind, err).WithNext(next)
}
