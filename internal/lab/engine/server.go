package engine

import (
	"errors"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// call is one request to the API, while it is answered under the engine's mutex.
type call struct {
	e           *Engine
	r           *http.Request
	user        *User
	correlation string
	vars        map[string]string // from the path: "vm", "disk"
	matrix      map[string]string // ;name=value on the last segment
	body        *element          // nil without one
	json        bool              // how to answer
	route       *route
}

// reply is an answer: a status and, unless nil, an entity.
type reply struct {
	status int
	body   *object
}

func ok(body *object) (*reply, error) { return &reply{http.StatusOK, body}, nil }

func created(body *object) (*reply, error) { return &reply{http.StatusCreated, body}, nil }

// complete is what actions and deletions answer; parts come first: the job, the entity, what the request said.
func complete(parts ...member) (*reply, error) {
	o := newObject("action")
	for _, p := range parts {
		if p.value != nil {
			o.members = append(o.members, p)
		}
	}
	return ok(o.set("status", "complete"))
}

// param returns a query or matrix parameter.
func (c *call) param(name string) string {
	if v, ok := c.matrix[name]; ok {
		return v
	}
	return c.r.URL.Query().Get(name)
}

// flag tells whether a parameter is set, with or without a value.
func (c *call) flag(name string) bool {
	if v, ok := c.matrix[name]; ok {
		return v != "false"
	}
	q := c.r.URL.Query()
	return q.Has(name) && q.Get(name) != "false"
}

// Handler returns the whole engine as it is seen on port 443.
func (e *Engine) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/ovirt-engine/services/health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html;charset=ISO-8859-1")
		_, _ = io.WriteString(w, "DB Up!Welcome to Health Status!")
	})
	mux.HandleFunc("/ovirt-engine/services/pki-resource", e.servePKI)
	mux.HandleFunc("/ovirt-engine/services/sso-logout", e.serveLogout)
	mux.HandleFunc("/ovirt-engine/sso/oauth/token", e.serveToken)
	mux.HandleFunc("/ovirt-engine/sso/oauth/revoke", func(w http.ResponseWriter, _ *http.Request) {
		ssoError(w, "invalid_request", "Missing parameter: 'client_id'")
	})
	mux.HandleFunc("/ovirt-engine/api", e.serveAPI)
	mux.HandleFunc("/ovirt-engine/api/", e.serveAPI)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if e.active(FaultUnreachable) || !e.enter() {
			panic(http.ErrAbortHandler) // drops the connection
		}
		defer e.work.Done()
		if e.active(FaultSlow) && !e.sleep(r, slowness) {
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// sleep tells whether the client was still there at the end.
func (e *Engine) sleep(r *http.Request, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
		return false
	case <-e.ctx.Done():
		return false
	}
}

var notInCorrelation = regexp.MustCompile(`[^0-9a-zA-Z_-]`)

// correlationLength is where the engine cuts a client's correlation id.
const correlationLength = 36

func (e *Engine) serveAPI(w http.ResponseWriter, r *http.Request) {
	user, refusal := e.login(r)
	if refusal != nil {
		w.Header().Set("WWW-Authenticate", `Basic realm="RESTAPI"`)
		writePage(w, refusal)
		return
	}
	switch r.Header.Get("Version") {
	case "", "4":
	case "3":
		writePage(w, page(http.StatusMethodNotAllowed, "HTTP method "+r.Method+" is not supported by this URL"))
		return
	default:
		writePage(w, page(http.StatusBadRequest, "Bad Request"))
		return
	}
	c := &call{e: e, r: r, user: user, correlation: r.Header.Get("Correlation-Id")}
	if c.correlation == "" {
		c.correlation = r.URL.Query().Get("correlation_id")
	}
	c.correlation = notInCorrelation.ReplaceAllString(c.correlation, "")
	if len(c.correlation) > correlationLength {
		c.correlation = c.correlation[:correlationLength]
	}
	if c.correlation == "" {
		c.correlation = newID()
	}
	w.Header().Set("Correlation-Id", c.correlation)
	if e.trip(FaultServerError) {
		writePage(w, crash("java.lang.IllegalStateException"))
		return
	}
	c.answer(w)
}

// answer finds the method, reads the body, runs the method and writes what it said.
func (c *call) answer(w http.ResponseWriter) {
	path, matrix := splitMatrix(strings.TrimPrefix(c.r.URL.Path, strings.TrimSuffix(apiPath, "/")))
	c.matrix = matrix
	if path == "v4" || strings.HasPrefix(path, "v4/") {
		path = strings.TrimPrefix(strings.TrimPrefix(path, "v4"), "/")
	}
	methods := c.match(path)
	method := c.r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if len(methods) == 0 {
		w.Header().Set("Content-Type", "text/html;charset=UTF-8")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, "RESTEASY003210: Could not find resource for full path: https://"+c.r.Host+apiPath+"v4/"+path)
		return
	}
	c.route = methods[method]
	if c.route == nil {
		allow := allowed(methods)
		w.Header().Set("Allow", allow)
		if c.r.Method == http.MethodOptions {
			w.Header().Set("Content-Type", "text/plain;charset=UTF-8")
			_, _ = io.WriteString(w, allow)
			return
		}
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	if !c.negotiate() {
		w.WriteHeader(http.StatusNotAcceptable)
		return
	}
	if status, err := c.read(); status != 0 {
		w.WriteHeader(status)
		return
	} else if err != nil {
		c.fault(w, err)
		return
	}
	c.run(w)
}

func (c *call) run(w http.ResponseWriter) {
	lost := c.r.Method != http.MethodGet && c.r.Method != http.MethodHead && c.e.trip(FaultLostAnswer)
	var rep *reply
	var err error
	c.e.locked(func() {
		rep, err = c.route.handle(c)
		if err == nil && rep.body != nil && c.route.method == http.MethodGet {
			err = c.follow(rep.body)
		}
	})
	if lost {
		panic(http.ErrAbortHandler) // it has been done; the client will never know
	}
	if err != nil {
		c.fault(w, asFault(err))
		return
	}
	if c.r.Method == http.MethodDelete && c.flag("async") {
		w.WriteHeader(http.StatusAccepted)
		return
	}
	if rep.status == http.StatusCreated && rep.body != nil && rep.body.href != "" {
		// The engine doubles the path; clients must take the address from the body.
		w.Header().Set("Location", "https://"+c.r.Host+apiPath+"v4"+rep.body.href)
	}
	c.write(w, rep.status, rep.body)
}

func (c *call) write(w http.ResponseWriter, status int, body *object) {
	if body == nil {
		w.WriteHeader(status)
		return
	}
	if c.json {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write(marshalJSON(body))
		return
	}
	w.Header().Set("Content-Type", "application/xml;charset=UTF-8")
	w.WriteHeader(status)
	_, _ = w.Write(marshalXML(body))
}

// fault writes a refusal: plain, as a page, or as the fault an action carries with what the request said.
func (c *call) fault(w http.ResponseWriter, f *apiFault) {
	switch {
	case f.html != "":
		writePage(w, f)
		return
	case f.plain:
		w.WriteHeader(f.status)
		return
	}
	body := newObject("fault").setIf("detail", f.detail).set("reason", f.reason)
	if c.route.wrapped {
		action := newObject("action")
		action.members = append(action.members, c.echo()...)
		body = action.set("fault", body).set("status", "failed")
	}
	c.write(w, f.status, body)
}

// echo returns what the request's action said, as the engine repeats it.
func (c *call) echo() []member {
	if c.body == nil {
		return nil
	}
	var out []member
	for _, x := range c.body.children {
		out = append(out, member{x.name, repeat(x)})
	}
	return out
}

func repeat(x *element) any {
	if len(x.children) == 0 && x.id == "" {
		return x.text
	}
	o := &object{id: x.id}
	for _, child := range x.children {
		o.members = append(o.members, member{child.name, repeat(child)})
	}
	return o
}

func writePage(w http.ResponseWriter, f *apiFault) {
	w.Header().Set("Content-Type", "text/html;charset=UTF-8")
	w.WriteHeader(f.status)
	_, _ = io.WriteString(w, f.html)
}

// negotiate chooses between XML, which is the default, and JSON.
func (c *call) negotiate() bool {
	accept := c.r.Header.Get("Accept")
	if accept == "" {
		return true
	}
	for part := range strings.SplitSeq(accept, ",") {
		kind, _, _ := strings.Cut(strings.TrimSpace(part), ";")
		switch kind {
		case "application/json":
			c.json = true
			return true
		case "application/xml", "*/*", "application/*":
			return true
		}
	}
	return false
}

// maxBody is more than any OVF.
const maxBody = 16 << 20

// read takes the body in; a status other than zero is the whole answer.
func (c *call) read() (status int, fault *apiFault) {
	if c.r.Method != http.MethodPost && c.r.Method != http.MethodPut {
		return 0, nil
	}
	kind, _, _ := strings.Cut(c.r.Header.Get("Content-Type"), ";")
	var decode func([]byte, string) (*element, error)
	switch strings.TrimSpace(kind) {
	case "application/xml":
		decode = decodeXML
	case "application/json":
		decode = decodeJSON
	default:
		return http.StatusUnsupportedMediaType, nil
	}
	raw, err := io.ReadAll(io.LimitReader(c.r.Body, maxBody))
	if err != nil {
		return http.StatusBadRequest, nil
	}
	c.body, err = decode(raw, c.route.root)
	var unknown *unknownField
	var value *badEnum
	switch {
	case err == nil:
	case errors.Is(err, errWrongRoot):
		return 0, &apiFault{status: http.StatusInternalServerError, html: err.Error()}
	case errors.As(err, &unknown):
		return 0, &apiFault{status: http.StatusBadRequest, html: unknown.Error()}
	case errors.As(err, &value):
		return 0, &apiFault{status: http.StatusBadRequest, reason: "Invalid value", detail: value.Error()}
	default:
		return 0, syntaxError(c.r.Host, c.route.service(), c.route.verb())
	}
	return 0, nil
}

func splitMatrix(path string) (string, map[string]string) {
	path = strings.Trim(path, "/")
	matrix := map[string]string{}
	segments := strings.Split(path, "/")
	for i, s := range segments {
		parts := strings.Split(s, ";")
		segments[i] = parts[0]
		for _, p := range parts[1:] {
			name, value, _ := strings.Cut(p, "=")
			matrix[name] = value
		}
	}
	return strings.Join(segments, "/"), matrix
}

func allowed(methods map[string]*route) string {
	order := []string{http.MethodHead, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodGet, http.MethodOptions}
	have := func(m string) bool {
		return methods[m] != nil || m == http.MethodOptions || m == http.MethodHead && methods[http.MethodGet] != nil
	}
	return strings.Join(slices.DeleteFunc(order, func(m string) bool { return !have(m) }), ", ")
}
