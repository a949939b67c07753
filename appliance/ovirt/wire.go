package ovirt

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// request is one call of the engine's API.
type request struct {
	op, subject string // for errors
	method      string
	path        string // below /ovirt-engine/api
	query       url.Values
	body        any  // written as XML by encoding/xml, which escapes; nil for none
	json        bool // the answer is wanted in JSON
	all         bool // with what the engine leaves out by default
	long        bool // may wait for storage
}

func get(op, subject, path string, query ...string) request {
	return request{op: op, subject: subject, method: http.MethodGet, path: path, query: values(query)}
}

func post(op, subject, path string, body any, query ...string) request {
	return request{op: op, subject: subject, method: http.MethodPost, path: path, body: body, query: values(query)}
}

func remove(op, subject, path string, query ...string) request {
	return request{op: op, subject: subject, method: http.MethodDelete, path: path, query: values(query)}
}

// values makes a query of names and values in turn; an empty value leaves its name out.
func values(pairs []string) url.Values {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	return v
}

// maxAnswer bounds an answer: ten thousand VMs with their links are half of it.
const maxAnswer = 256 << 20

// do sends a request and returns the answer's body. Reads that meet a passing fault, or a fault of the engine's own, are
// sent again.
func (c *Client) do(ctx context.Context, r request) ([]byte, error) {
	answer, err := c.try(ctx, r)
	return answer, errs.Wrap(r.op, r.subject, err)
}

func (c *Client) try(parent context.Context, r request) ([]byte, error) {
	var body []byte
	if r.body != nil {
		var err error
		if body, err = xml.Marshal(r.body); err != nil {
			return nil, errs.New("write request", r.path, errs.Bug, err)
		}
	}
	timeout, tries, pause := c.timeout, 1, c.pause
	if r.long {
		timeout = max(timeout, c.long)
	}
	if r.method == http.MethodGet {
		tries = readTries
	}
	ctx, cancel := context.WithTimeout(parent, timeout)
	defer cancel()
	for n := 1; ; n++ {
		answer, err := c.authorized(ctx, r, body)
		err = late(parent, ctx, err, timeout)
		again := errs.Is(err, errs.Transient) || statusOf(err) == http.StatusInternalServerError // often a lock inside
		if err == nil || n >= tries || !again || sleep(ctx, pause) != nil {
			return answer, err
		}
		pause *= 4
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// authorized sends a request with a token. An engine that refuses the token has done nothing yet: the login is renewed
// and the request sent once more.
func (c *Client) authorized(ctx context.Context, r request, body []byte) ([]byte, error) {
	token, err := c.bearer(ctx, "")
	if err != nil {
		return nil, err
	}
	resp, answer, err := c.send(ctx, r, body, token)
	if err == nil && resp.StatusCode == http.StatusUnauthorized && !notAllowed(answer) {
		if token, err = c.bearer(ctx, token); err != nil {
			return nil, err
		}
		resp, answer, err = c.send(ctx, r, body, token)
	}
	if err != nil {
		return nil, netError(ctx, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, refusal(resp, answer)
	}
	return answer, nil
}

func (c *Client) send(ctx context.Context, r request, body []byte, token string) (*http.Response, []byte, error) {
	u := c.base + "/api" + r.path
	if len(r.query) > 0 {
		u += "?" + r.query.Encode()
	}
	var content io.Reader
	if body != nil {
		content = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u, content)
	if err != nil {
		return nil, nil, err
	}
	h := req.Header
	h.Set("Authorization", "Bearer "+token)
	h.Set("Version", "4")
	h.Set("Accept", "application/xml")
	h.Set("Accept-Language", "en") // kinds of failure are read off the text
	if r.json {
		h.Set("Accept", "application/json")
	}
	if body != nil {
		h.Set("Content-Type", "application/xml")
	}
	if r.all {
		h.Set("All-Content", "true")
	}
	tag, _ := ctx.Value(correlationKey{}).(string)
	if tag != "" {
		h.Set("Correlation-Id", tag)
	}
	began := time.Now()
	resp, answer, err := c.exchange(req)
	status := 0
	if err == nil {
		status = resp.StatusCode
	}
	c.log.Debug("engine call", "op", r.op, "method", r.method, "path", r.path, "status", status, "bytes", len(answer),
		"dur", time.Since(began), "correlation", tag)
	return resp, answer, err
}

// exchange sends a request and reads the whole answer, so that the connection can be used again.
func (c *Client) exchange(req *http.Request) (*http.Response, []byte, error) {
	req.Header.Set("User-Agent", "Holdfast")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(body) > maxAnswer {
		err = fmt.Errorf("the answer is longer than %d MiB", maxAnswer>>20)
	}
	return resp, body, err
}

// fetchJSON sends a request and decodes the answer, for what go-ovirt's model does not have.
func fetchJSON[T any](ctx context.Context, c *Client, r request) (T, error) {
	var v T
	r.json = true
	answer, err := c.do(ctx, r)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(answer, &v); err != nil {
		return v, notUnderstood(r, err)
	}
	return v, nil
}
