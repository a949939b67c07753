package ovirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const tokenPath = "POST /sso/oauth/token"

func TestLogin(t *testing.T) {
	s := newScript(t)
	c := s.dial()
	first := s.seen[0]
	form, err := url.ParseQuery(first.body)
	want := url.Values{"grant_type": {"password"}, "scope": {"ovirt-app-api"}, "username": {testUser}, "password": {testPassword}}
	if err != nil || first.request != tokenPath || form.Encode() != want.Encode() || first.header.Get("Accept") != "application/json" {
		t.Errorf("the login was %+v", first)
	}
	s.on("GET /datacenters", xmlOK("<data_centers/>"))
	if _, err := c.DataCenters(WithCorrelation(t.Context(), "holdfast run ä/17")); err != nil {
		t.Fatal(err)
	}
	h := s.requests()[0].header
	for k, v := range map[string]string{
		"Authorization": "Bearer " + token(1), "Version": "4", "Accept": "application/xml", "Accept-Language": "en", "Correlation-Id": "holdfastrun17",
	} {
		if h.Get(k) != v {
			t.Errorf("%s is %q, want %q", k, h.Get(k), v)
		}
	}
}

func TestCorrelationIsCut(t *testing.T) {
	if got := correlation(strings.Repeat("0123456789", 5)); got != "012345678901234567890123456789012345" {
		t.Errorf("%q", got)
	}
}

func TestLoginIsRefused(t *testing.T) {
	for name, x := range map[string]struct {
		kind errs.Kind
		next string
	}{
		"wrong password": {errs.Denied, "password"}, "unknown domain": {errs.Denied, "admin@ovirt@internalsso"},
		"no domain": {errs.Denied, "user@domain"}, "no password": {errs.Invalid, ""}, "accept xml": {errs.Invalid, ""},
	} {
		s := newScript(t)
		s.instead(tokenPath, recorded(t, "login.txt", name, ""))
		_, err := Dial(t.Context(), s.options())
		if !errs.Is(err, x.kind) || !strings.Contains(errs.NextStep(err), x.next) {
			t.Errorf("%s: %v, next %q", name, err, errs.NextStep(err))
		}
		if n := s.count(tokenPath); n != 1 {
			t.Errorf("%s: tried %d times", name, n)
		}
		secretFree(t, err.Error())
	}
	s := newScript(t)
	o := s.options()
	o.User = "admin"
	if _, err := Dial(t.Context(), o); !errs.Is(err, errs.Invalid) || len(s.seen) > 0 {
		t.Errorf("%v, and %d requests", err, len(s.seen))
	}
}

func TestEngineIsNotThere(t *testing.T) {
	for name, a := range map[string]answer{
		"starting": page(503, "Service Unavailable"), "proxy": page(502, "Bad Gateway"), "not deployed": page(404, "404 - Not Found"),
		"another server": page(200, "welcome"), "dropped": {drop: true}, "its own trouble": {status: 500, kind: "application/json", body: `{"error":"database","error_code":"server_error"}`},
	} {
		s := newScript(t)
		s.instead(tokenPath, a)
		if _, err := Dial(t.Context(), s.options()); !errs.Is(err, errs.Transient) || errs.NextStep(err) == "" {
			t.Errorf("%s: %v, next %q", name, err, errs.NextStep(err))
		}
	}
	o := newScript(t).options()
	o.URL = closedAddress(t)
	if _, err := Dial(t.Context(), o); !errs.Is(err, errs.Transient) || errs.NextStep(err) == "" {
		t.Error(err)
	}
	o.URL = "https://no-such-engine.invalid"
	if _, err := Dial(t.Context(), o); !errs.Is(err, errs.Transient) || errs.NextStep(err) == "" {
		t.Errorf("unknown name: %v", err)
	}
}

func TestExpiredLoginIsRenewedOnce(t *testing.T) {
	for _, name := range []string{"garbage token", "after restart"} {
		s := newScript(t)
		c := s.dial()
		s.on("POST /vms/v/start", recorded(t, "login.txt", name, ""), done())
		if err := c.StartVM(t.Context(), "v"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		all := s.requests()
		if len(all) != 2 || all[1].header.Get("Authorization") != "Bearer "+token(2) || all[1].body != all[0].body {
			t.Errorf("%s: %+v", name, all)
		}
	}
	s := newScript(t)
	c := s.dial()
	s.on("GET /hosts", recorded(t, "login.txt", "garbage token", ""))
	if _, err := c.Hosts(t.Context()); !errs.Is(err, errs.Denied) || s.count("GET /hosts") != 2 || s.count(tokenPath) != 2 {
		t.Errorf("%v, %d requests, %d logins", err, s.count("GET /hosts"), s.count(tokenPath))
	}
}

func TestUserWithoutRoles(t *testing.T) {
	s := newScript(t).on("GET ", recorded(t, "login.txt", "no roles", ""))
	_, err := s.dial().Info(t.Context())
	if !errs.Is(err, errs.Denied) || !strings.Contains(errs.NextStep(err), "permission") || s.count(tokenPath) != 1 {
		t.Errorf("%v, next %q, %d logins", err, errs.NextStep(err), s.count(tokenPath))
	}
}

// Engines lock users out: a password that was changed must not be tried by every call of a node.
func TestRefusedLoginIsNotRepeated(t *testing.T) {
	s := newScript(t)
	c := s.dial()
	s.on("GET /hosts", recorded(t, "login.txt", "garbage token", ""))
	s.instead(tokenPath, recorded(t, "login.txt", "wrong password", ""))
	for range 5 {
		if _, err := c.Hosts(t.Context()); !errs.Is(err, errs.Denied) {
			t.Fatal(err)
		}
	}
	if n := s.count(tokenPath); n != 2 {
		t.Errorf("%d logins", n)
	}
	c.session.until = time.Now().Add(-time.Second)
	if _, err := c.Hosts(t.Context()); !errs.Is(err, errs.Denied) || s.count(tokenPath) != 3 {
		t.Errorf("%v, %d logins", err, s.count(tokenPath))
	}
}

func TestOneLoginForAll(t *testing.T) {
	s := newScript(t)
	c := s.dial()
	var mu sync.Mutex
	s.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "sso") {
			s.serve(w, r)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if r.Header.Get("Authorization") == "Bearer "+token(1) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, "<hosts/>")
	})
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := c.Hosts(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := s.count(tokenPath); n != 2 {
		t.Errorf("%d logins, want the first and one more", n)
	}
}

func TestCloseRevokesTheToken(t *testing.T) {
	s := newScript(t)
	c := s.dial()
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	last := s.seen[len(s.seen)-1]
	if form, _ := url.ParseQuery(last.body); last.request != "POST /services/sso-logout" || form.Get("token") != token(1) {
		t.Errorf("%+v", last)
	}
	if err := c.Close(t.Context()); err != nil || s.count("POST /services/sso-logout") != 1 {
		t.Errorf("closing again: %v", err)
	}
	if _, err := c.Hosts(t.Context()); err == nil || s.count(tokenPath) != 1 {
		t.Errorf("a closed client works, or logs in again: %v", err)
	}
	s = newScript(t)
	s.instead("POST /services/sso-logout", page(503, "wait"))
	if err := s.dial().Close(t.Context()); !errs.Is(err, errs.Transient) {
		t.Error(err)
	}
}

func TestCancellationReturnsAtOnce(t *testing.T) {
	s := newScript(t)
	c := s.dial()
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	defer close(release)
	s.on("GET /hosts", answer{before: func() { cancel(); <-release }, drop: true})
	began := time.Now()
	_, err := c.Hosts(ctx)
	if !errs.Is(err, errs.Canceled) || !errors.Is(err, context.Canceled) || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	if _, err := c.Hosts(ctx); !errs.Is(err, errs.Canceled) || s.count("GET /hosts") != 1 {
		t.Errorf("a cancelled context starts something: %v", err)
	}
}

func TestCancellationBetweenTries(t *testing.T) {
	s := newScript(t)
	c := s.dial()
	c.pause = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	s.on("GET /hosts", answer{before: cancel, status: 503})
	if _, err := c.Hosts(ctx); err == nil || s.count("GET /hosts") > 1 {
		t.Error(err)
	}
}

func TestDeadlineOfOurOwn(t *testing.T) {
	s := newScript(t)
	release := make(chan struct{})
	defer close(release)
	c := s.dial()
	c.timeout = 20 * time.Millisecond
	s.on("POST /vms/v/start", answer{before: func() { <-release }, drop: true})
	s.on("GET /hosts", answer{before: func() { <-release }, drop: true})
	if err := c.StartVM(t.Context(), "v"); !errs.Is(err, errs.Transient) || !strings.Contains(err.Error(), "no answer within") {
		t.Error(err)
	}
	if _, err := c.Hosts(t.Context()); !errs.Is(err, errs.Transient) {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	<-ctx.Done()
	if _, err := c.Hosts(ctx); !errs.Is(err, errs.Canceled) {
		t.Errorf("the caller's deadline: %v", err)
	}
}

func TestReadsAreRepeated(t *testing.T) {
	for name, bad := range map[string]answer{"503": page(503, "wait"), "502": page(502, "bad"), "404 page": page(404, "404 - Not Found"), "dropped": {drop: true}} {
		s := newScript(t)
		c := s.dial()
		s.on("GET /hosts", bad, bad, xmlOK("<hosts/>"))
		if _, err := c.Hosts(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s.instead("GET /hosts", bad)
		before := s.count("GET /hosts")
		_, err := c.Hosts(t.Context())
		if n := s.count("GET /hosts") - before; !errs.Is(err, errs.Transient) || name != "dropped" && n != readTries {
			t.Errorf("%s: %v after %d tries", name, err, n)
		}
		s.on("POST /vms/v/stop", bad)
		if err := c.StopVM(t.Context(), "v"); !errs.Is(err, errs.Transient) || s.count("POST /vms/v/stop") != 1 {
			t.Errorf("%s: a request that changes something: %v, sent %d times", name, err, s.count("POST /vms/v/stop"))
		}
	}
}

// secretFree fails if a text has a secret.
func secretFree(t *testing.T, text string) {
	t.Helper()
	for _, secret := range []string{testPassword, url.QueryEscape(testPassword), "t0ken", "Bearer", "/images/"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is in %s", secret, text)
		}
	}
}

func TestNoSecretInLogsOrErrors(t *testing.T) {
	var log bytes.Buffer
	s := newScript(t)
	o := s.options()
	o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c, err := Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	c.pause = time.Millisecond
	transfer := recorded(t, "backups.txt", "transfer", "image_transfer")
	damaged := transfer
	damaged.body = strings.Replace(damaged.body, "<transferred>0", "<transferred>https://localhost:54322/images/secret", 1)
	s.on("POST /imagetransfers", transfer, damaged)
	s.on("GET /imagetransfers/x", answer{drop: true}, answer{drop: true}, answer{drop: true}, answer{drop: true}, answer{drop: true}, answer{drop: true}, page(503, "x"))
	spec := TransferSpec{Disk: "d", Backup: "b", Inactivity: time.Hour}
	if _, err := c.StartTransfer(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	_, err = c.StartTransfer(t.Context(), spec)
	if err == nil {
		t.Fatal("a damaged answer was taken")
	}
	secretFree(t, err.Error())
	if _, err = c.Transfer(t.Context(), "x"); err == nil {
		t.Fatal("no error")
	}
	secretFree(t, err.Error())
	_ = c.Close(t.Context())
	secretFree(t, log.String())
	if !strings.Contains(log.String(), "path=/imagetransfers") {
		t.Error("nothing was logged")
	}
}
