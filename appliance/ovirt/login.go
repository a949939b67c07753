package ovirt

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// session is the token of a login. Whoever holds the turn may read and change the other fields; it is held while logging
// in, so that one login serves all who wait.
type session struct {
	turn    chan struct{} // of size 1
	token   string
	closed  bool
	refused error     // how the last login failed
	until   time.Time // how long that is believed without asking
}

// patience is how long a refused login is not tried again: engines lock a user out after a few wrong passwords.
const patience = time.Minute

// tokenAnswer is what the engine's single sign-on says. Failures are of two forms.
type tokenAnswer struct {
	Token       string `json:"access_token"`
	Error       string `json:"error"`
	Code        string `json:"error_code"`
	Description string `json:"error_description"`
}

// bearer returns a token; one that is not stale, the token that an engine has just refused.
func (c *Client) bearer(ctx context.Context, stale string) (string, error) {
	s := &c.session
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return "", netError(ctx, ctx.Err())
	}
	defer func() { <-s.turn }()
	switch {
	case s.closed:
		return "", errs.Text("use login", c.base, errs.Bug, "it was closed")
	case s.token != "" && s.token != stale:
		return s.token, nil
	case s.refused != nil && time.Now().Before(s.until):
		return "", s.refused
	}
	s.token = ""
	token, err := c.login(ctx)
	s.refused = nil
	if errs.Is(err, errs.Denied) {
		s.refused, s.until = err, time.Now().Add(patience)
	}
	if err == nil {
		s.token = token
		c.log.Debug("logged in to engine", "op", "login", "engine", c.base, "user", c.user)
	}
	return token, err
}

func (c *Client) login(ctx context.Context) (string, error) {
	a, resp, err := c.sso(ctx, "/sso/oauth/token", url.Values{
		"grant_type": {"password"}, "scope": {"ovirt-app-api"}, "username": {c.user}, "password": {c.password},
	})
	if err != nil {
		return "", err
	}
	why := strings.TrimRight(a.Error, ".")
	switch {
	case a.Token != "" && resp.StatusCode == http.StatusOK:
		return a.Token, nil
	case strings.Contains(why, "No valid profile"):
		return "", errs.Text("log in as", c.user, errs.Denied, "the engine does not know the domain of this user ("+why+")").
			WithNext(nextUser)
	case a.Code == "access_denied":
		return "", errs.Text("log in as", c.user, errs.Denied, why).
			WithNext("Check user and password on the engine's login page; the user may also be locked or its password expired.")
	case resp.StatusCode >= 500:
		return "", errs.Text("log in as", c.user, errs.Transient, why).WithNext(nextDown)
	}
	return "", errs.Text("log in as", c.user, errs.Invalid, "the engine refused: "+strings.Join(nonEmpty(a.Code, why, a.Description), ": "))
}

func (c *Client) logout(ctx context.Context) error {
	s := &c.session
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return netError(ctx, ctx.Err())
	}
	defer func() { <-s.turn }()
	token := s.token
	s.closed, s.token = true, ""
	if token == "" {
		return nil
	}
	_, resp, err := c.sso(ctx, "/services/sso-logout", url.Values{"scope": {"ovirt-app-api"}, "token": {token}})
	if err == nil && resp.StatusCode != http.StatusOK {
		return errs.Text("revoke login", c.base, errs.Transient, "the engine answered "+resp.Status)
	}
	return err
}

// sso posts a form to the engine's single sign-on. It answers with JSON, and only if asked for it; anything else comes
// from something in front of the engine, or from an engine that is starting.
func (c *Client) sso(ctx context.Context, path string, form url.Values) (a tokenAnswer, resp *http.Response, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, strings.NewReader(form.Encode()))
	if err != nil {
		return a, nil, errs.New("log in to", c.base, errs.Bug, err)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, body, err := c.exchange(req)
	if err != nil {
		return a, nil, netError(ctx, err)
	}
	if json.Unmarshal(body, &a) != nil {
		err := refusal(resp, body)
		if resp.StatusCode < 500 && resp.StatusCode != http.StatusUnauthorized { // also 200 and 404: not the engine
			err = foreign(resp, errs.Transient)
		}
		return a, resp, err
	}
	return a, resp, nil
}

// foreign is the error of an answer that is no engine's.
func foreign(resp *http.Response, kind errs.Kind) error {
	return errs.Text("read the answer", "", kind, "what answers there ("+resp.Status+") is not an engine").WithNext(nextEngine)
}

func nonEmpty(all ...string) (some []string) {
	for _, s := range all {
		if s != "" {
			some = append(some, s)
		}
	}
	return some
}
