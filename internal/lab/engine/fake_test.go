package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeHost does nothing, at once, and remembers what it was asked for.
type fakeHost struct {
	mu       sync.Mutex
	calls    []string
	running  map[string]bool
	tickets  map[string]bool
	idle     int
	bytes    int64
	fail     map[string]error // by method
	domains  map[string]*DomainInfo
	found    []FoundDisk
	lastSpec VMSpec
	lastTo   string
}

func newFakeHost() *fakeHost {
	return &fakeHost{running: map[string]bool{}, tickets: map[string]bool{}, fail: map[string]error{}, domains: map[string]*DomainInfo{}}
}

// did notes a call and returns the failure that is set for it.
func (h *fakeHost) did(method string, args ...any) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, strings.TrimSpace(method+" "+fmt.Sprintln(args...)))
	return h.fail[method]
}

func (h *fakeHost) asked(method string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, c := range h.calls {
		if strings.HasPrefix(c, method) {
			n++
		}
	}
	return n
}

func (h *fakeHost) StartVM(_ context.Context, s VMSpec) error {
	if err := h.did("StartVM", s.ID); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running[s.ID], h.lastSpec = true, s
	return nil
}

func (h *fakeHost) end(method, vm string) error {
	err := h.did(method, vm)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		delete(h.running, vm)
	}
	return err
}

func (h *fakeHost) ShutdownVM(_ context.Context, vm string) error { return h.end("ShutdownVM", vm) }
func (h *fakeHost) StopVM(_ context.Context, vm string) error     { return h.end("StopVM", vm) }

func (h *fakeHost) RunningVMs() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return sortedKeys(h.running)
}

func (h *fakeHost) StartBackup(_ context.Context, vm, backup, from, to string, disks []DiskPlace, hybrid bool) (map[string]bool, error) {
	err := h.did("StartBackup", vm, backup, from, to, len(disks), hybrid)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastTo = to
	incremental := map[string]bool{}
	for _, d := range disks {
		incremental[d.Disk] = from != "" && d.Format == "cow"
	}
	return incremental, err
}

func (h *fakeHost) StopBackup(_ context.Context, vm, backup string) error {
	return h.did("StopBackup", vm, backup)
}

func (h *fakeHost) RemoveCheckpoint(_ context.Context, vm, cp string, _ []DiskPlace) error {
	return h.did("RemoveCheckpoint", vm, cp)
}

func (h *fakeHost) AddTicket(_ context.Context, backup, disk, ticket string, _ int) (string, error) {
	if err := h.did("AddTicket", backup, disk, ticket); err != nil {
		return "", err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tickets[ticket] = true
	return "https://localhost:54322/images/" + ticket, nil
}

func (h *fakeHost) RemoveTicket(_ context.Context, ticket string) error {
	err := h.did("RemoveTicket", ticket)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		delete(h.tickets, ticket)
	}
	return err
}

func (h *fakeHost) TicketIdle(_ context.Context, ticket string) (int, int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.tickets[ticket] {
		return 0, 0, errors.New("no such ticket")
	}
	return h.idle, h.bytes, nil
}

func (h *fakeHost) TakeSnapshot(_ context.Context, vm string, disks []DiskPlace, tops map[string]string) error {
	return h.did("TakeSnapshot", vm, len(disks), len(tops))
}

func (h *fakeHost) MergeVolume(_ context.Context, vm string, v DiskPlace, child, above string) error {
	return h.did("MergeVolume", vm, v.Image, child, above)
}

func (h *fakeHost) AddVolumeTicket(ctx context.Context, v DiskPlace, shallow bool, ticket string, _ int) (string, error) {
	if err := h.did("AddVolumeTicket", v.Image, shallow); err != nil {
		return "", err
	}
	return h.AddTicket(ctx, "", v.Disk, ticket, 0)
}

func (h *fakeHost) ProbeDomain(_ context.Context, export, options string) (*DomainInfo, error) {
	if err := h.did("ProbeDomain", export, options); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.domains[export], nil
}

func (h *fakeHost) AttachDomain(_ context.Context, d, pool string) error {
	return h.did("AttachDomain", d, pool)
}

func (h *fakeHost) ScanDisks(_ context.Context, d string) ([]FoundDisk, error) {
	return h.found, h.did("ScanDisks", d)
}
func (h *fakeHost) DeactivateDomain(_ context.Context, d string) error { return h.did("Deactivate", d) }
func (h *fakeHost) DetachDomain(_ context.Context, d string) error     { return h.did("DetachDomain", d) }
func (h *fakeHost) FormatDomain(_ context.Context, d string) error     { return h.did("FormatDomain", d) }
func (h *fakeHost) ForgetDomain(_ context.Context, d string) error     { return h.did("ForgetDomain", d) }

func (h *fakeHost) DomainSpace(_ context.Context, _ string) (int64, int64, error) {
	return 500 * gib, 500 * gib, nil
}

func (h *fakeHost) CreateDisk(_ context.Context, d DiskPlace) error {
	return h.did("CreateDisk", d.Disk)
}

func (h *fakeHost) RemoveDisk(_ context.Context, d DiskPlace) error {
	return h.did("RemoveDisk", d.Disk)
}

func (h *fakeHost) MoveDisk(_ context.Context, vm string, d DiskPlace, domain string, progress func(int64, int64)) (DiskPlace, error) {
	err := h.did("MoveDisk", vm, d.Disk, domain)
	pass(10 * time.Second)
	progress(d.Size, d.Size)
	d.Domain = domain
	return d, err
}

var _ Host = (*fakeHost)(nil)

// Fixed identities of the test installation.
const (
	vmID    = "4447aac5-e8f2-4d7d-9410-7c5e29ed49f6"
	diskInc = "b5c95765-8fa8-47e7-8429-f2c9408e3011"
	diskRaw = "bce719ca-02d0-4e3e-af21-3091cae8b692"
	nobody  = "00000000-0000-0000-0000-0000000000aa"
)

// client talks to an engine in memory.
type client struct {
	t      *testing.T
	e      *Engine
	host   *fakeHost
	token  string
	header map[string]string
}

// answer is a response, read.
type answer struct {
	status int
	header http.Header
	raw    string
	body   map[string]any
}

// newClient makes an installation of one VM with a qcow2 and a raw disk.
func newClient(t *testing.T, change func(*Options)) *client {
	t.Helper()
	h := newFakeHost()
	o := Options{Host: h, VMs: []VMSeed{{ID: vmID, Name: "bk1", MiB: 1024, VCPUs: 1, Networks: []string{"ovirtmgmt"}, Disks: []DiskSeed{
		{ID: diskInc, Alias: "bk1_inc", Size: gib, Actual: 4096, Incremental: true},
		{ID: diskRaw, Alias: "bk1_raw", Size: gib, Actual: 4096, Format: "raw"},
	}}}}
	if change != nil {
		change(&o)
	}
	e, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	c := &client{t: t, e: e, host: h}
	c.login()
	return c
}

func (c *client) login() {
	e := c.e
	token := newToken()
	e.locked(func() { e.state.sessions[token] = &session{user: &e.opts.Users[0], used: now()} })
	c.token = token
}

// do sends a request: a body that begins with < is XML, one with { JSON.
func (c *client) do(method, path, body string) answer {
	c.t.Helper()
	if !strings.HasPrefix(path, "/") {
		path = apiPath + path
	}
	r := httptest.NewRequest(method, "https://localhost:8443"+strings.ReplaceAll(path, " ", "%20"), strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+c.token)
	r.Header.Set("Accept", "application/json")
	switch {
	case strings.HasPrefix(body, "<"):
		r.Header.Set("Content-Type", "application/xml")
	case body != "":
		r.Header.Set("Content-Type", "application/json")
	}
	for k, v := range c.header {
		if v == "" {
			r.Header.Del(k)
		} else {
			r.Header.Set(k, v)
		}
	}
	w := httptest.NewRecorder()
	c.e.Handler().ServeHTTP(w, r)
	a := answer{status: w.Code, header: w.Header(), raw: w.Body.String()}
	if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") {
		if err := json.NewDecoder(bytes.NewReader(w.Body.Bytes())).Decode(&a.body); err != nil {
			c.t.Fatalf("%s %s: %v\n%s", method, path, err, a.raw)
		}
	}
	return a
}

func (c *client) get(path string) answer { c.t.Helper(); return c.do(get, path, "") }

// must sends a request that has to be answered so.
func (c *client) must(status int, method, path, body string) answer {
	c.t.Helper()
	a := c.do(method, path, body)
	if a.status != status {
		c.t.Fatalf("%s %s %s: %d instead of %d\n%s", method, path, body, a.status, status, a.raw)
	}
	return a
}

// at returns the value at a dotted path of the answer; numbers index lists.
func (a answer) at(path string) string {
	var v any = a.body
	for p := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[p]
		case []any:
			var i int
			if _, err := fmt.Sscan(p, &i); err != nil || i >= len(x) {
				return ""
			}
			v = x[i]
		default:
			return ""
		}
	}
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

func (a answer) detail() string { return a.at("detail") + a.at("fault.detail") }

// wait lets time pass until something holds; only in a synctest bubble.
func (c *client) wait(what string, holds func() bool) {
	c.t.Helper()
	for range 400 {
		synctest.Wait()
		if holds() {
			return
		}
		pass(500 * time.Millisecond)
	}
	c.t.Fatalf("it never came to: %s", what)
}

// pass lets time go by: a bubble's clock, not a real one.
func pass(d time.Duration) { <-time.After(d) }

func (c *client) waitFor(path, field, value string) answer {
	c.t.Helper()
	var a answer
	c.wait(path+" "+field+"="+value, func() bool { a = c.get(path); return a.at(field) == value })
	return a
}

func (h *fakeHost) setFailure(method string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail[method] = err
}

// put says that a domain lies at an export.
func (h *fakeHost) put(export, id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.domains[export] = &DomainInfo{ID: id, Available: 500 * gib, Used: 500 * gib}
}

// silence says for how long nobody has used any ticket.
func (h *fakeHost) silence(seconds int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.idle = seconds
}

// open lists the tickets that exist.
func (h *fakeHost) open() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return sortedKeys(h.tickets)
}

// transferred says how much has been read through every ticket, and for how long nothing has been.
func (h *fakeHost) transferred(bytes int64, seconds int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bytes, h.idle = bytes, seconds
}
