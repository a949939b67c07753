package client_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance/api/apitest"
	"github.com/holdfast-backup/holdfast/appliance/api/client"
	"github.com/holdfast-backup/holdfast/appliance/config"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// TestDefaultNode: the manual's example of a configuration and the client's default are one.
func TestDefaultNode(t *testing.T) {
	manual, err := os.ReadFile("../../../docs/holdfastd.md")
	if err != nil {
		t.Fatal(err)
	}
	path := strings.TrimPrefix(client.DefaultNode, "unix://")
	if !strings.Contains(string(manual), "socket: "+path+" ") {
		t.Errorf("docs/holdfastd.md has another socket than %s", path)
	}
	c, err := config.Parse([]byte("store: /s\npassphrase_file: /p\nstate: /t\nnfs: {listen: '192.0.2.1:2049', allow: [192.0.2.0/24], address: 192.0.2.1}\napi: {socket: " + path + "}\n"))
	if err != nil || c.API.Socket != path {
		t.Errorf("the default is no socket that the configuration takes: %v", err)
	}
	if _, err := client.Dial(client.Options{}); err != nil {
		t.Error(err)
	}
}

func TestOptionsThatNameNoNode(t *testing.T) {
	token := write(t, "token", "0123456789abcdef\n")
	for _, c := range []struct {
		o    client.Options
		kind errs.Kind
		says string
	}{
		{client.Options{Node: "http://host:1"}, errs.Invalid, "names no node"},
		{client.Options{Node: "host:9443"}, errs.Invalid, "names no node"},
		{client.Options{Node: "unix://relative"}, errs.Invalid, "names no node"},
		{client.Options{Node: "https://"}, errs.Invalid, "names no node"},
		{client.Options{Node: "https://a:b@host"}, errs.Invalid, "names no node"},
		{client.Options{Node: "https://host/api/v1"}, errs.Invalid, "names no node"},
		{client.Options{Node: "https://host:x"}, errs.Invalid, "names no node"},
		{client.Options{Node: "https://host"}, errs.Invalid, "wants a token"},
		{client.Options{Node: "https://host", TokenFile: "/does/not/exist"}, errs.NotFound, "/does/not/exist"},
		{client.Options{Node: "https://host", TokenFile: write(t, "empty", "\n")}, errs.Invalid, "one token"},
		{client.Options{Node: "https://host", TokenFile: write(t, "two", "abc\ndef\n")}, errs.Invalid, "one token"},
		{client.Options{Node: "https://host", TokenFile: token, CAFile: "/does/not/exist"}, errs.NotFound, "/does/not/exist"},
		{client.Options{Node: "https://host", TokenFile: token, CAFile: token}, errs.Invalid, "no certificate"},
	} {
		_, err := client.Dial(c.o)
		if !errs.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v, want %v that says %q", c.o, err, c.kind, c.says)
		}
		if errs.Is(err, errs.Invalid) && errs.NextStep(err) == "" {
			t.Errorf("%+v: no next step", c.o)
		}
	}
}

func TestNodesThatCannotBeReached(t *testing.T) {
	r := serve(t, t.TempDir(), &apitest.Service{})
	stale := filepath.Join(t.TempDir(), "stale")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	_ = ln.Close()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = nobody.Close()
	web := httptest.NewTLSServer(http.NotFoundHandler())
	defer web.Close()
	files := r.tls()
	for name, c := range map[string]struct {
		o    client.Options
		kind errs.Kind
		next string
	}{
		"no socket":     {client.Options{Node: "/does/not/exist"}, errs.Transient, "Is holdfastd running"},
		"stale socket":  {client.Options{Node: "unix://" + stale}, errs.Transient, "its api.socket must be " + stale},
		"no listener":   {client.Options{Node: "https://" + nobody.Addr().String(), TokenFile: files.TokenFile}, errs.Transient, "Is holdfastd running there"},
		"unknown CA":    {client.Options{Node: "https://" + r.at.TLS, TokenFile: files.TokenFile}, errs.Denied, "cert.pem"},
		"another CA":    {client.Options{Node: "https://" + web.Listener.Addr().String(), TokenFile: files.TokenFile, CAFile: files.CAFile}, errs.Denied, "cert.pem"},
		"another name":  {client.Options{Node: "https://" + serveAt(t, r.dir, "127.0.0.2:0"), TokenFile: files.TokenFile, CAFile: files.CAFile}, errs.Denied, "name or address"},
		"another token": {client.Options{Node: "https://" + r.at.TLS, TokenFile: write(t, "t", "not-the-token-of-it"), CAFile: files.CAFile}, errs.Denied, "api.token_file"},
	} {
		_, err := dial(t, c.o).ListManagers(t.Context())
		if !errs.Is(err, c.kind) || !strings.Contains(errs.NextStep(err), c.next) {
			t.Errorf("%s: %v, %v, next %q", name, errs.KindOf(err), err, errs.NextStep(err))
		}
		if name != "another token" && !strings.HasPrefix(err.Error(), "connect to node "+c.o.Node+": ") {
			t.Errorf("%s: the node is not named in %q", name, err)
		}
		if strings.Contains(err.Error(), "Get \"") || strings.Contains(err.Error(), "http://holdfast") {
			t.Errorf("%s: an address that nobody wrote is in %q", name, err)
		}
	}
}

// TestForeignServers: what answers like no node is not taken for one, and gets no second request.
func TestForeignServers(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"a web page": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"not found":  func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
		"a redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login", http.StatusFound) },
		"a problem of somebody else's": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusTeapot)
			_, _ = w.Write([]byte(`{"title":"x"}`))
		},
	} {
		asked := 0
		path := filepath.Join(t.TempDir(), "s")
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked++; h(w, r) })}
		go func() { _ = srv.Serve(ln) }()
		c := dial(t, client.Options{Node: path})
		_, err = c.ListManagers(t.Context())
		removed := c.RemoveManager(t.Context(), "x")
		_ = srv.Close()
		for _, err := range []error{err, removed} {
			if !errs.Is(err, errs.Bug) || errs.NextStep(err) == "" || asked != 2 {
				t.Errorf("%s: %v after %d requests", name, err, asked)
			}
		}
	}
}

// TestTheCallersDeadline: it ends a call, and is told from an interruption.
func TestTheCallersDeadline(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	serve(t, t.TempDir(), &apitest.Service{Hold: hold}).each(func(t *testing.T, c *client.Client) {
		ctx, cancel := context.WithTimeout(t.Context(), 1)
		defer cancel()
		_, err := c.ListManagers(ctx)
		if !errs.Is(err, errs.Canceled) || !errors.Is(err, context.DeadlineExceeded) || errs.NextStep(err) == "" {
			t.Errorf("after the deadline: %v, next %q", err, errs.NextStep(err))
		}
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		if _, err := c.ListManagers(ctx); !errs.Is(err, errs.Canceled) || !errors.Is(err, context.Canceled) {
			t.Errorf("after the interruption: %v", err)
		}
	})
}
