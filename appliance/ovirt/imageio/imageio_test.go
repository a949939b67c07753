package imageio

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const ticket = "5ecre7-t1cket"

// daemon answers as ovirt-imageio does for one ticket.
type daemon struct {
	data     []byte
	dirty    []Extent
	zero     []Extent
	readers  int
	fail     atomic.Int64                                      // so many reads fail first
	before   func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	mu       sync.Mutex
	inFlight int
	most     int
}

func (d *daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.inFlight++
	d.most = max(d.most, d.inFlight)
	d.mu.Unlock()
	defer func() { d.mu.Lock(); d.inFlight--; d.mu.Unlock() }()
	if d.before != nil && d.before(w, r) {
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/images/"+ticket)
	switch {
	case !ok:
		http.Error(w, "You are not allowed to access this resource: No such ticket", http.StatusForbidden)
	case r.Method == http.MethodOptions:
		_ = json.NewEncoder(w).Encode(map[string]any{"unix_socket": "\x00/org", "features": []string{"checksum", "extents"}, "max_readers": d.readers, "max_writers": 8})
	case rest == "/extents":
		list := d.zero
		if r.URL.Query().Get("context") == "dirty" {
			if list = d.dirty; list == nil {
				http.Error(w, "Ticket does not support dirty extents", http.StatusNotFound)
				return
			}
		}
		_ = json.NewEncoder(w).Encode(list)
	case d.fail.Add(-1) >= 0:
		hj, _, _ := w.(http.Hijacker).Hijack()
		_ = hj.Close()
	default:
		d.get(w, r)
	}
}

func (d *daemon) get(w http.ResponseWriter, r *http.Request) {
	var a, b int64
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &a, &b); err != nil || b >= int64(len(d.data)) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", len(d.data)))
		http.Error(w, "Requested range out of allowed range", http.StatusRequestedRangeNotSatisfiable)
		return
	}
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", a, b, len(d.data)))
	w.Header().Set("Content-Length", fmt.Sprint(b-a+1))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(d.data[a : b+1])
}

func start(t *testing.T, d *daemon) Options {
	t.Helper()
	s := httptest.NewTLSServer(d)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	t.Cleanup(s.Close)
	return Options{TransferURL: s.URL + "/images/" + ticket, CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})}
}

func random(n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func TestReads(t *testing.T) {
	d := &daemon{data: random(1<<20 + 77), readers: 8}
	m, err := Dial(t.Context(), start(t, d))
	if err != nil {
		t.Fatal(err)
	}
	if m.Size() != int64(len(d.data)) || m.SlowPath() {
		t.Fatal(m.Size(), m.SlowPath())
	}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			off := int64(i) * 30_001
			p := make([]byte, 50_000)
			n, err := m.ReadAt(t.Context(), p, off)
			want := d.data[min(off, m.Size()):min(off+50_000, m.Size())]
			if !bytes.Equal(p[:n], want) || (n < len(p)) != (err == io.EOF) {
				t.Errorf("read at %d: %d bytes, %v", off, n, err)
			}
		})
	}
	wg.Wait()
	if d.most > defaultConns {
		t.Errorf("%d connections at once", d.most)
	}
	if n, err := m.ReadAt(t.Context(), make([]byte, 9), m.Size()); n != 0 || err != io.EOF {
		t.Error("at the end:", n, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func TestFewerReadersThanWeWouldUse(t *testing.T) {
	d := &daemon{data: random(300_000), readers: 2}
	m, err := Dial(t.Context(), start(t, d))
	if err != nil {
		t.Fatal(err)
	}
	d.most = 0
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			if _, err := m.ReadAt(t.Context(), make([]byte, 100_000), 0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if d.most > 2 {
		t.Errorf("%d connections where the daemon allows 2", d.most)
	}
}

func TestExtents(t *testing.T) {
	d := &daemon{data: make([]byte, 300), readers: 8,
		zero:  []Extent{{0, 100, false, false, false}, {100, 200, true, true, false}},
		dirty: []Extent{{0, 50, false, false, true}, {50, 250, true, false, false}}}
	m, err := Dial(t.Context(), start(t, d))
	if err != nil {
		t.Fatal(err)
	}
	for _, dirty := range []bool{false, true} {
		var got []Extent
		if err := m.Extents(t.Context(), dirty, func(e Extent) error { got = append(got, e); return nil }); err != nil {
			t.Fatal(err)
		}
		want := d.zero
		if dirty {
			want = d.dirty
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("dirty %v: %v", dirty, got)
		}
	}
	d.dirty = nil
	if err := m.Extents(t.Context(), true, func(Extent) error { return nil }); !errs.Is(err, errs.NotFound) {
		t.Error("no changes known:", err)
	}
	for name, bad := range map[string][]Extent{
		"gap": {{0, 100, false, false, false}, {101, 199, false, false, false}}, "short": {{0, 100, false, false, false}},
		"long": {{0, 301, false, false, false}}, "empty extent": {{0, 0, false, false, false}}, "none": {},
		"negative": {{0, 400, false, false, false}, {400, -100, false, false, false}},
	} {
		d.zero = bad
		if err := m.Extents(t.Context(), false, func(Extent) error { return nil }); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	d.before = func(w http.ResponseWriter, _ *http.Request) bool {
		_, _ = io.WriteString(w, `[{"start":0,"length":1`)
		return true
	}
	if err := m.Extents(t.Context(), false, func(Extent) error { return nil }); !errs.Is(err, errs.Transient) {
		t.Error("cut answer:", err)
	}
}

func TestBrokenConnectionsAreTriedAgain(t *testing.T) {
	d := &daemon{data: random(5000), readers: 8}
	m, err := Dial(t.Context(), start(t, d))
	if err != nil {
		t.Fatal(err)
	}
	d.fail.Store(1)
	p := make([]byte, 5000)
	if n, err := m.ReadAt(t.Context(), p, 0); n != 5000 || err != nil || !bytes.Equal(p, d.data) {
		t.Fatal(n, err)
	}
}

func TestRefusals(t *testing.T) {
	d := &daemon{data: random(5000), readers: 8}
	o := start(t, d)
	m, err := Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for status, kind := range map[int]errs.Kind{403: errs.Stale, 404: errs.NotFound, 416: errs.Invalid, 400: errs.Invalid, 418: errs.Bug} {
		d.before = func(w http.ResponseWriter, _ *http.Request) bool { http.Error(w, "no", status); return true }
		_, err := m.ReadAt(t.Context(), make([]byte, 10), 0)
		if !errs.Is(err, kind) || strings.Contains(err.Error(), ticket) {
			t.Errorf("status %d: %v", status, err)
		}
	}
	d.before = func(w http.ResponseWriter, _ *http.Request) bool { _, _ = io.WriteString(w, "<html>"); return true }
	if _, err := Dial(t.Context(), o); !errs.Is(err, errs.Transient) || errs.NextStep(err) == "" {
		t.Error("something else answers:", err)
	}
	other := o
	other.CA = []byte("no certificate")
	if _, err := Dial(t.Context(), other); !errs.Is(err, errs.Invalid) {
		t.Error("no CA:", err)
	}
	stranger := httptest.NewTLSServer(d)
	defer stranger.Close()
	other.CA, other.TransferURL = o.CA, strings.Replace(stranger.URL, "127.0.0.1", "localhost", 1)+"/images/"+ticket
	if _, err := Dial(t.Context(), other); !errs.Is(err, errs.Denied) || strings.Contains(err.Error(), ticket) {
		t.Error("a certificate for another name:", err)
	}
}

func TestProxyIsTheWayOut(t *testing.T) {
	d := &daemon{data: random(5000), readers: 8}
	o := start(t, d)
	o.ProxyURL = o.TransferURL
	o.TransferURL = "https://127.0.0.1:1/images/" + ticket
	m, err := Dial(t.Context(), o)
	if err != nil || !m.SlowPath() {
		t.Fatal(err)
	}
	p := make([]byte, 5000)
	if _, err := m.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, d.data) {
		t.Fatal(err)
	}
	o.ProxyURL = "https://127.0.0.1:1/images/" + ticket
	if _, err := Dial(t.Context(), o); !errs.Is(err, errs.Transient) || strings.Contains(err.Error(), ticket) || errs.NextStep(err) == "" {
		t.Error("neither answers:", err)
	}
}

func TestCancelledReadsEnd(t *testing.T) {
	d := &daemon{data: random(5000), readers: 8}
	m, err := Dial(t.Context(), start(t, d))
	if err != nil {
		t.Fatal(err)
	}
	reached := make(chan struct{})
	d.before = func(_ http.ResponseWriter, r *http.Request) bool {
		close(reached)
		<-r.Context().Done()
		return true
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	go func() { <-reached; cancel() }()
	if _, err := m.ReadAt(ctx, make([]byte, 10), 0); !errs.Is(err, errs.Canceled) {
		t.Error(err)
	}
}
