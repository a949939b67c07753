package ovirt

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// answer is a response, recorded or made up.
type answer struct {
	status int
	kind   string // content type
	body   string
	before func() // called before it is given
	drop   bool   // the connection is closed instead
}

// recording is an entry of a file in testdata: an exchange with a real engine, without what we do not read. The line
// that begins with # says where the whole of it is.
type recording struct {
	answer
	source  string
	request string
}

// recordings reads a file: "== name", "# source", "METHOD PATH", "STATUS CONTENT-TYPE", body.
func recordings(t *testing.T, file string) map[string]recording {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]recording{}
	for _, part := range strings.Split("\n"+string(text), "\n== ")[1:] {
		lines := strings.SplitN(part, "\n", 5)
		status, kind, _ := strings.Cut(lines[3], " ")
		n, err := strconv.Atoi(status)
		if err != nil || all[lines[0]].source != "" {
			t.Fatalf("%s: entry %q is damaged or there twice", file, lines[0])
		}
		all[lines[0]] = recording{answer{status: n, kind: kind, body: strings.TrimSpace(lines[4])}, strings.TrimPrefix(lines[1], "# "), lines[2]}
	}
	if len(all) == 0 {
		t.Fatalf("%s is empty", file)
	}
	return all
}

// recorded returns an answer as a real engine gave it; with a root, one given in JSON as the same tree in XML.
func recorded(t *testing.T, file, name, root string) answer {
	t.Helper()
	r, ok := recordings(t, file)[name]
	if !ok {
		t.Fatalf("%s has no %q", file, name)
	}
	if root == "" {
		return r.answer
	}
	var tree any
	if err := json.Unmarshal([]byte(r.body), &tree); err != nil {
		t.Fatalf("%s, %q: %v", file, name, err)
	}
	var b strings.Builder
	asXML(&b, root, tree)
	return answer{status: r.status, kind: "application/xml", body: b.String()}
}

// asXML writes an engine's JSON in the engine's XML: href and id are attributes, lists repeat their element, dates are
// text.
func asXML(b *strings.Builder, name string, v any) {
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			asXML(b, name, one)
		}
		return
	case map[string]any:
		b.WriteString("<" + name)
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		for _, k := range keys {
			if k == "id" || k == "href" {
				fmt.Fprintf(b, " %s=%q", k, v[k])
			}
		}
		b.WriteString(">")
		for _, k := range keys {
			if k != "id" && k != "href" {
				asXML(b, k, v[k])
			}
		}
	default:
		text := fmt.Sprint(v)
		if ms, ok := v.(float64); ok {
			text = strconv.FormatFloat(ms, 'f', -1, 64)
			if ms > 1e11 { // numbers are strings there, but for dates and a few small ones
				text = time.UnixMilli(int64(ms)).UTC().Format(time.RFC3339Nano)
			}
		}
		b.WriteString("<" + name + ">")
		_ = xml.EscapeText(b, []byte(text))
	}
	b.WriteString("</" + name + ">")
}

// asked is a request that came.
type asked struct {
	request string // METHOD URI, below /ovirt-engine/api where it is
	header  http.Header
	body    string
}

// script is an engine that gives prepared answers.
type script struct {
	t      *testing.T
	server *httptest.Server
	mu     sync.Mutex
	given  map[string][]answer // by request; the last one is given again and again
	seen   []asked
}

const (
	testUser     = "admin@internal"
	testPassword = "s3cr3t-passw0rd"
)

// newScript starts an engine that knows how to log in and out: each login gives another token.
func newScript(t *testing.T) *script {
	t.Helper()
	s := &script{t: t, given: map[string][]answer{}}
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	for i := range 9 {
		a := recorded(t, "login.txt", "token", "")
		a.body = strings.ReplaceAll(a.body, "<TOKEN>", token(i+1))
		s.on("POST /sso/oauth/token", a)
	}
	s.on("POST /services/sso-logout", recorded(t, "login.txt", "logout", ""))
	return s
}

func token(n int) string { return "t0ken-" + strconv.Itoa(n) }

// on adds answers to a request.
func (s *script) on(request string, a ...answer) *script {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.given[request] = append(s.given[request], a...)
	return s
}

// instead replaces the answers to a request.
func (s *script) instead(request string, a ...answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.given[request] = a
}

func (s *script) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	name := r.Method + " " + strings.TrimPrefix(strings.TrimPrefix(r.RequestURI, "/ovirt-engine"), "/api")
	s.mu.Lock()
	s.seen = append(s.seen, asked{name, r.Header.Clone(), string(body)})
	list := s.given[name]
	if len(list) == 0 {
		s.mu.Unlock()
		s.t.Errorf("nobody expected %s", name)
		http.Error(w, "nobody expected this", http.StatusTeapot)
		return
	}
	if len(list) > 1 {
		s.given[name] = list[1:]
	}
	s.mu.Unlock()
	a := list[0]
	if a.before != nil {
		a.before()
	}
	if a.drop {
		panic(http.ErrAbortHandler)
	}
	if a.kind != "" && a.kind != "-" {
		w.Header().Set("Content-Type", a.kind)
	}
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, a.body)
}

// requests returns what was asked, without logins.
func (s *script) requests() (all []asked) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.seen {
		if !strings.Contains(a.request, "/sso") {
			all = append(all, a)
		}
	}
	return all
}

func (s *script) count(request string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.seen {
		if a.request == request {
			n++
		}
	}
	return n
}

func (s *script) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.server.Certificate().Raw})
}

func (s *script) options() Options {
	return Options{URL: s.server.URL, User: testUser, Password: testPassword, CA: s.ca()}
}

// dial logs in to a script, with pauses that a test can wait for.
func (s *script) dial() *Client {
	s.t.Helper()
	c, err := Dial(s.t.Context(), s.options())
	if err != nil {
		s.t.Fatal(err)
	}
	c.pause = time.Millisecond
	s.t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// xmlOK is a success.
func xmlOK(body string) answer {
	return answer{status: http.StatusOK, kind: "application/xml;charset=UTF-8", body: body}
}

// done is what actions answer in XML.
func done() answer { return xmlOK("<action><status>complete</status></action>") }

// refused is a fault as actions and others give it.
func refused(status int, detail string) answer {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(detail))
	return answer{status: status, kind: "application/xml", body: "<fault><detail>" + b.String() + "</detail><reason>Operation Failed</reason></fault>"}
}

func page(status int, text string) answer {
	return answer{status: status, kind: "text/html", body: "<html><head><title>Error</title></head><body>" + text + "</body></html>"}
}
