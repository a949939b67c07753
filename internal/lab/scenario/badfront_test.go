package scenario_test

import (
	"crypto/tls"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// front stands before the engine, so that a test can strike at a certain request.
type front struct {
	url   string
	inner http.Handler
	mu    sync.Mutex // guards hook
	hook  func(*http.Request) fate
}

// fate is what becomes of a request; nil: it is answered.
type fate func(w http.ResponseWriter, r *http.Request, engine http.Handler)

// lose has a request carried out, and loses the answer.
func lose(_ http.ResponseWriter, r *http.Request, engine http.Handler) {
	engine.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler) // drops the connection
}

// first does something before a request is carried out.
func first(do func()) fate {
	return func(w http.ResponseWriter, r *http.Request, engine http.Handler) {
		do()
		engine.ServeHTTP(w, r)
	}
}

// late does something after a request was carried out, and before it is answered.
func late(do func()) fate {
	return func(w http.ResponseWriter, r *http.Request, engine http.Handler) {
		answer := httptest.NewRecorder()
		engine.ServeHTTP(answer, r)
		do()
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	}
}

func newFront(t *testing.T, e *engine.Engine, address string) *front {
	t.Helper()
	cert, key, err := e.CA().Server(address, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	f := &front{inner: e.Handler()}
	s := httptest.NewUnstartedServer(f)
	_ = s.Listener.Close() // it has one already
	s.Listener = l
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	s.Config.ErrorLog = log.New(t.Output(), "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	f.url = "https://" + l.Addr().String() + "/ovirt-engine/api"
	return f
}

// on sets what is asked about the fate of each request; nil lets all pass.
func (f *front) on(hook func(*http.Request) fate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// ServeHTTP implements http.Handler.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	hook := f.hook
	f.mu.Unlock()
	if hook != nil {
		if what := hook(r); what != nil {
			what(w, r, f.inner)
			return
		}
	}
	f.inner.ServeHTTP(w, r)
}

// change tells whether a request changes something on the engine.
func change(r *http.Request) bool {
	return r.Method != http.MethodGet && strings.Contains(r.URL.Path, "/api/")
}

// once makes a hook of something that happens to the first request that fits.
func once(fits func(*http.Request) bool, what fate) func(*http.Request) fate {
	var done atomic.Bool
	return func(r *http.Request) fate {
		if fits(r) && done.CompareAndSwap(false, true) {
			return what
		}
		return nil
	}
}

// finalizing tells whether a request ends a transfer, after all was read.
func finalizing(r *http.Request) bool {
	return r.Method == http.MethodPost && strings.Contains(r.URL.Path,
		"/imagetransfers/") && strings.HasSuffix(r.URL.Path, "/finalize")
}

// opening tells whether a request asks for a transfer, which can be read as soon as that is answered.
func opening(r *http.Request) bool {
	return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/imagetransfers")
}

// meanwhile runs a command while a hook strikes, and takes the hook away.
func (y *yard) meanwhile(hook func(*http.Request) fate, do func()) {
	y.t.Helper()
	y.front.on(hook)
	defer y.front.on(nil)
	do()
}

// posting makes a condition of the end of a path that something is posted to.
func posting(end string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, end) }
}
