package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"runtime/debug"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// guard stands around the routes: it answers what has no route, outlives what panics, and logs who asked for what.
func (s *server) guard(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		answer := &tracked{ResponseWriter: w}
		defer func() {
			if p := recover(); p != nil {
				err := s.panicked("answer request", p)
				if answer.status != 0 {
					panic(http.ErrAbortHandler) // half an answer is out: only a broken connection tells the client
				}
				writeProblem(answer, ProblemOf("answer request", err))
			}
			s.log(r, answer.status, time.Since(began))
		}()
		// The mux would redirect to the clean form of a path, which might be another resource's.
		if _, pattern := mux.Handler(r); pattern == "" || path.Clean(r.URL.Path) != r.URL.Path {
			noRoute(answer, r, mux)
			return
		}
		mux.ServeHTTP(answer, r)
	})
}

// panicked logs a panic and returns it as an error. Its stack goes to the log alone.
func (s *server) panicked(op string, p any) error {
	s.Logger.Error("a request panicked", "op", op, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return errs.Text(op, "", errs.Bug, "panic: "+fmt.Sprint(p)).
		WithNext("This is a bug of ours: please report it with the node's log.")
}

// log tells of a request. Queries, headers and bodies may hold secrets and are left out.
func (s *server) log(r *http.Request, status int, took time.Duration) {
	tell := s.Logger.Info
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		tell = s.Logger.Debug
	}
	tell("request", "method", r.Method, "path", r.URL.Path, "status", status, "from", caller(r), "dur", took)
}

// noRoute answers a request that no route is for: 404, or 405 with what is allowed.
func noRoute(w http.ResponseWriter, r *http.Request, mux *http.ServeMux) {
	said := &header{h: http.Header{}}
	mux.ServeHTTP(said, r)
	const op = "find route"
	p := ProblemOf(op, errs.Text(op, r.URL.Path, errs.NotFound, "there is nothing at this path"))
	if said.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", said.h.Get("Allow"))
		p = ProblemOf(op, errs.Text(op, r.URL.Path, errs.Unsupported, r.Method+" is not for this path"))
		p.Status = said.status
	}
	p.Remedy = "GET " + openAPIPath + " lists all paths."
	writeProblem(w, p)
}

// writeProblem answers with a problem.
func writeProblem(w http.ResponseWriter, p *ProblemDetails) {
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client may be gone, and nobody else wants to know
}

// tracked remembers whether an answer was begun.
type tracked struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (t *tracked) WriteHeader(status int) {
	if t.status == 0 {
		t.status = status
	}
	t.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (t *tracked) Write(b []byte) (int, error) {
	if t.status == 0 {
		t.status = http.StatusOK
	}
	return t.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (t *tracked) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// header keeps what would be answered, without the body.
type header struct {
	h      http.Header
	status int
}

func (h *header) Header() http.Header         { return h.h }
func (h *header) WriteHeader(status int)      { h.status = status }
func (h *header) Write(b []byte) (int, error) { return len(b), nil }

// caller names who asks: the user at the other end of a socket, or an address.
func caller(r *http.Request) string {
	if p := peerOf(r.Context()); p != nil {
		return fmt.Sprintf("uid %d", p.uid)
	}
	return r.RemoteAddr
}
