package api_test

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/api/apitest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// newHandler returns the API over a service, and its log.
func newHandler(t *testing.T, s api.Service) (http.Handler, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	h, err := api.New(api.Options{Service: s, Version: "1.2.3", Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	return h, &log
}

// ask sends a request to a handler.
func ask(h http.Handler, method, path, body string, headers ...string) *http.Response {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

// problem reads a refusal, and fails the test if it is not one in our form.
func problem(t *testing.T, resp *http.Response) api.ProblemDetails {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var p api.ProblemDetails
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		t.Fatalf("%v in %q", err, b)
	}
	if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("a problem of the type %q", ct)
	}
	if p.Status != resp.StatusCode || p.Type != "urn:holdfast:problem:"+p.Code || p.Title == "" || p.Detail == "" || p.Operation == "" || p.Cause == "" {
		t.Errorf("status %d with %+v", resp.StatusCode, p)
	}
	return p
}

// TestRefusedRequests: whatever is wrong with a request, the answer is a problem, and the service is not asked.
func TestRefusedRequests(t *testing.T) {
	const manager = `{"name":"x","url":"u","user":"a@b","password":"hunter2"`
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		code, says         string
	}{
		"no route":              {"GET", "/api/v1/nothing", "", 404, "not-found", "/api/v1/nothing"},
		"the root":              {"GET", "/", "", 404, "not-found", "nothing at this path"},
		"a slash at the end":    {"GET", "/api/v1/vms/", "", 404, "not-found", ""},
		"a path to be cleaned":  {"GET", "/api/v1/vms/../managers", "", 404, "not-found", ""},
		"a doubled slash":       {"GET", "//api/v1/vms", "", 404, "not-found", ""},
		"another version":       {"GET", "/api/v2/vms", "", 404, "not-found", ""},
		"no such method":        {"PUT", "/api/v1/managers", "{}", 405, "unsupported", "PUT is not for this path"},
		"no body":               {"POST", "/api/v1/managers", "", 400, "invalid", "body is required"},
		"no JSON":               {"POST", "/api/v1/managers", manager, 400, "invalid", "body: "},
		"not an object":         {"POST", "/api/v1/managers", `["hunter2"]`, 422, "invalid", "expected object"},
		"a wrong type":          {"POST", "/api/v1/managers", manager + `,"ca":{"hunter2":1}}`, 422, "invalid", "body.ca: expected string"},
		"an unknown member":     {"POST", "/api/v1/managers", manager + `,"passwort":"hunter2"}`, 422, "invalid", "body.passwort: unexpected property"},
		"a missing member":      {"POST", "/api/v1/managers", `{"name":"x","user":"a@b","password":"hunter2"}`, 422, "invalid", "required property url"},
		"an empty name":         {"POST", "/api/v1/managers", `{"name":"","url":"u","user":"a@b","password":"hunter2"}`, 422, "invalid", "body.name: "},
		"a long name":           {"POST", "/api/v1/managers", `{"name":"` + strings.Repeat("x", 65) + `","url":"u","user":"a@b","password":"hunter2"}`, 422, "invalid", "body.name: "},
		"no such strategy":      {"POST", "/api/v1/vms/web/backups", `{"strategy":"magic"}`, 422, "invalid", "body.strategy: "},
		"a vm in the body":      {"POST", "/api/v1/vms/web/backups", `{"vm":"other"}`, 422, "invalid", "body.vm: "},
		"no storage domain":     {"POST", "/api/v1/sessions/x/migrate", `{"to":7}`, 422, "invalid", "body.to: "},
		"an unknown query":      {"GET", "/api/v1/vms?name=x", "", 422, "invalid", "query.name: "},
		"a huge body":           {"POST", "/api/v1/managers", manager + `,"ca":"` + strings.Repeat("x", 1<<20) + `"}`, 413, "invalid", "too large"},
		"a huge body of nobody": {"POST", "/api/v1/nothing", strings.Repeat("x", 2<<20), 404, "not-found", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := &apitest.Service{}
			h, log := newHandler(t, s)
			resp := ask(h, c.method, c.path, c.body, "Content-Type", "application/json")
			p := problem(t, resp)
			if p.Status != c.status || p.Code != c.code || !strings.Contains(p.Detail, c.says) || p.Remedy == "" {
				t.Errorf("got %d %q: %q, remedy %q", p.Status, p.Code, p.Detail, p.Remedy)
			}
			if asked := s.Asked(); len(asked) > 0 {
				t.Errorf("the service was asked %q", asked)
			}
			if b, _ := json.Marshal(p); strings.Contains(string(b)+log.String(), "hunter2") {
				t.Errorf("the password came back in %s, or is in the log: %s", b, log)
			}
			if c.status == 405 && resp.Header.Get("Allow") != "GET, HEAD, POST" {
				t.Errorf("allowed is %q", resp.Header.Get("Allow"))
			}
		})
	}
}

// TestForms: of bodies and answers that clients like to send and to get.
func TestForms(t *testing.T) {
	h, _ := newHandler(t, &apitest.Service{})
	p := problem(t, ask(h, "POST", "/api/v1/vms/web/backups", `{}`, "Content-Type", "application/x-www-form-urlencoded"))
	if p.Status != 415 || !strings.Contains(p.Remedy, "application/json") {
		t.Errorf("a form got %d, %q", p.Status, p.Remedy)
	}
	for name, c := range map[string]struct {
		path, body string
		headers    []string
		status     int
	}{
		"no body where none is needed": {"/api/v1/vms/web/backups", "", nil, 202},
		"no type":                      {"/api/v1/vms/web/backups", `{"full":true}`, nil, 202},
		"a charset":                    {"/api/v1/vms/web/backups", `{}`, []string{"Content-Type", "application/json; charset=utf-8"}, 202},
		"a browser's wishes":           {"/api/v1/vms/web/backups", "", []string{"Accept", "text/html,*/*;q=0.8"}, 202},
		"a wish that cannot be met":    {"/api/v1/vms/web/backups", "", []string{"Accept", "application/xml"}, 202},
		"release without a word":       {"/api/v1/sessions/s/release", "", nil, 202},
		"cancel without a word":        {"/api/v1/tasks/t/cancel", "", nil, 202},
	} {
		resp := ask(h, "POST", c.path, c.body, c.headers...)
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != c.status || len(b) > 0 && resp.Header.Get("Content-Type") != "application/json" || bytes.Contains(b, []byte("$schema")) {
			t.Errorf("%s: %s %v %s", name, resp.Status, resp.Header, b)
		}
	}
}

// TestLocations: what was made or begun is where the answer says.
func TestLocations(t *testing.T) {
	s := &apitest.Service{Managers: []appliance.Manager{{Name: "a b/ü"}}}
	h, _ := newHandler(t, s)
	const manager = `{"name":"a b/ü","url":"u","user":"a@b","password":"p"}`
	for path, c := range map[string]struct {
		body   string
		status int
	}{
		"/api/v1/managers": {manager, 201}, "/api/v1/vms/web/backups": {"", 202}, "/api/v1/restores/instant": {`{"point":"x"}`, 202}, "/api/v1/restores/vm": {`{"point":"x"}`, 202},
		"/api/v1/sessions/s/migrate": {`{"to":"san"}`, 202}, "/api/v1/sessions/s/release": {"", 202}, "/api/v1/tasks/task-1/cancel": {"", 202},
	} {
		if path == "/api/v1/tasks/task-1/cancel" {
			s.Change(appliance.Task{ID: "task-1"})
		}
		resp := ask(h, "POST", path, c.body)
		at := resp.Header.Get("Location")
		if resp.StatusCode != c.status || !strings.HasPrefix(at, "/api/v1/") {
			t.Errorf("%s: %s, Location %q", path, resp.Status, at)
			continue
		}
		if resp := ask(h, "GET", at, ""); resp.StatusCode != 200 {
			t.Errorf("%s led to %s: %s", path, at, resp.Status)
		}
	}
	if resp := ask(h, "DELETE", "/api/v1/managers/x", ""); resp.StatusCode != 204 {
		t.Errorf("delete: %s", resp.Status)
	}
}

// TestPanic: one request ends, with a problem and a line in the log; the next is answered.
func TestPanic(t *testing.T) {
	s := &apitest.Service{Panic: true}
	h, log := newHandler(t, s)
	for range 2 {
		for _, path := range []string{"/api/v1/managers", "/api/v1/vms", "/api/v1/tasks/t/events"} {
			if p := problem(t, ask(h, "GET", path, "")); p.Status != 500 || p.Code != "internal" || !strings.Contains(p.Remedy, "bug") || strings.Contains(p.Detail, ".go:") {
				t.Errorf("%s: %+v", path, p)
			}
		}
	}
	if !strings.Contains(log.String(), "as the test wants it") || !strings.Contains(log.String(), "stack=") {
		t.Errorf("the log has no panic: %s", log)
	}
	s.Panic = false
	if resp := ask(h, "GET", "/api/v1/managers", ""); resp.StatusCode != 200 {
		t.Errorf("after the panic: %s", resp.Status)
	}
}

// TestHalfAnAnswer: what cannot be written to its end breaks the connection, so that nobody takes the half for all of it.
func TestHalfAnAnswer(t *testing.T) {
	s := &apitest.Service{}
	s.Change(appliance.Task{ID: "t", Result: map[string]any{"ratio": math.NaN()}})
	h, _ := newHandler(t, s)
	defer func() {
		if p := recover(); p != http.ErrAbortHandler {
			t.Errorf("the end was %v", p)
		}
	}()
	t.Errorf("answered with %s", ask(h, "GET", "/api/v1/tasks/t", "").Status)
}

// TestLog: who asked for what is in the log, what may be secret is not; failures that need a person are.
func TestLog(t *testing.T) {
	s := &apitest.Service{}
	h, log := newHandler(t, s)
	ask(h, "POST", "/api/v1/managers", `{"name":"x","url":"u","user":"a@b","password":"hunter2"}`, "Authorization", "Bearer hunter3")
	ask(h, "GET", "/api/v1/vms?x=hunter4", "")
	s.Fail(errs.Text("read record", "s", errs.Corrupt, "no JSON"))
	ask(h, "GET", "/api/v1/sessions", "")
	text := log.String()
	if strings.Contains(text, "hunter") {
		t.Errorf("a secret is in the log: %s", text)
	}
	for _, want := range []string{`level=INFO msg=request method=POST path=/api/v1/managers status=201 from=192.0.2.1`, "level=DEBUG msg=request method=GET", `level=ERROR msg="a request failed" op="list sessions" kind=corrupt`} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the log: %s", want, text)
		}
	}
}

// TestCallsEnd: a service that hangs does not hang its clients.
func TestCallsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := newHandler(t, &apitest.Service{Hold: make(chan struct{})})
		began := time.Now()
		p := problem(t, ask(h, "GET", "/api/v1/managers", ""))
		if d := time.Since(began); p.Status != 504 || p.Code != "canceled" || d > 2*time.Minute {
			t.Errorf("after %v: %+v", d, p)
		}
	})
}

// TestStatus: a node that is not ready says so.
func TestStatus(t *testing.T) {
	ready := false
	h, err := api.New(api.Options{Service: &apitest.Service{}, Version: "v9", Ready: func() bool { return ready }})
	if err != nil {
		t.Fatal(err)
	}
	for _, ready = range []bool{false, true} {
		b, _ := io.ReadAll(ask(h, "GET", "/api/v1/status", "").Body)
		var got api.Status
		if err := json.Unmarshal(b, &got); err != nil || got != (api.Status{Version: "v9", Ready: ready}) {
			t.Errorf("%s %v", b, err)
		}
	}
}
