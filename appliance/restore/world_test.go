package restore

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/appliance/ovirt/imageio"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// host is the machine below the simulated engine: its disks are bytes in memory, which it lets be read and written as
// ovirt-imageio does.
type host struct {
	engine.Host
	url string

	mu      sync.Mutex // guards the rest
	disks   map[string][]byte
	dirty   map[string]bool   // written since the last flush
	tickets map[string]string // disk by ticket
	running map[string]bool
	free    int64
	full    int                                                                      // so many disks cannot be made
	gone    bool                                                                     // nothing is listening for image transfers
	puts    int                                                                      // requests that brought bytes
	before  func(h *host, n int, w http.ResponseWriter, r *http.Request) (done bool) // of the n-th write
	spoil   func(p []byte, off int64) []byte                                         // what becomes of bytes on the way to the disk
}

func (h *host) locked(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func (h *host) StartVM(_ context.Context, v engine.VMSpec) error {
	h.locked(func() { h.running[v.ID] = true })
	return nil
}

func (h *host) StopVM(_ context.Context, id string) error {
	h.locked(func() { delete(h.running, id) })
	return nil
}

func (h *host) RunningVMs() (ids []string) {
	h.locked(func() { ids = slices.Collect(maps.Keys(h.running)) })
	return ids
}

func (h *host) DomainSpace(context.Context, string) (available, used int64, err error) {
	h.locked(func() { available = h.free })
	return available, 0, nil
}

func (h *host) CreateDisk(_ context.Context, d engine.DiskPlace) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.full > 0 {
		h.full--
		return errors.New("no space left on device")
	}
	h.disks[d.Disk] = make([]byte, d.Size)
	if d.Format == "raw" { // what was there before shines through
		for i := range h.disks[d.Disk] {
			h.disks[d.Disk][i] = 0xee
		}
	}
	return nil
}

func (h *host) RemoveDisk(_ context.Context, d engine.DiskPlace) error {
	h.locked(func() { delete(h.disks, d.Disk) })
	return nil
}

func (h *host) AddTicket(_ context.Context, _, disk, ticket string, _ int) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tickets[ticket] = disk
	if h.gone {
		return "https://127.0.0.1:1/images/" + ticket, nil
	}
	return h.url + "/images/" + ticket, nil
}

func (h *host) RemoveTicket(_ context.Context, ticket string) error {
	h.locked(func() { delete(h.tickets, ticket) })
	return nil
}

func (h *host) TicketIdle(context.Context, string) (int, int64, error) { return 0, 0, nil }

// ServeHTTP answers for the tickets as the daemon does.
func (h *host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ticket, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/images/"), "/")
	body, _ := io.ReadAll(r.Body)
	h.mu.Lock()
	disk, known := h.tickets[ticket]
	before, n := h.before, h.puts
	if r.Method == http.MethodPut {
		h.puts++
		n++
	}
	h.mu.Unlock()
	if before != nil && r.Method == http.MethodPut && before(h, n, w, r) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.disks[disk]
	switch {
	case !known:
		http.Error(w, "You are not allowed to access this resource: No such ticket", http.StatusForbidden)
	case r.Method == http.MethodOptions:
		_ = json.NewEncoder(w).Encode(map[string]any{"features": []string{"checksum", "extents"}, "max_readers": 8, "max_writers": 8})
	case rest == "extents":
		_ = json.NewEncoder(w).Encode(extentsOf(p))
	case r.Method == http.MethodGet:
		var a, b int
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &a, &b)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", a, b, len(p)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(p[a : b+1])
	case r.Method == http.MethodPut:
		var off int64
		if _, err := fmt.Sscanf(r.Header.Get("Content-Range"), "bytes %d-*/*", &off); err != nil || r.ContentLength < 0 {
			http.Error(w, "a length is needed", http.StatusBadRequest)
			return
		}
		if h.spoil != nil {
			body = h.spoil(body, off)
		}
		copy(p[off:], body)
		h.dirty[disk] = true
	case r.Method == http.MethodPatch:
		var op struct {
			Op           string
			Offset, Size int64
		}
		if json.Unmarshal(body, &op) != nil || op.Op != "zero" && op.Op != "flush" {
			http.Error(w, "no such operation", http.StatusBadRequest)
			return
		}
		if op.Op == "zero" {
			clear(p[op.Offset : op.Offset+op.Size])
		}
		h.dirty[disk] = op.Op == "zero"
	}
}

// extentsOf tells the zeros of a disk, as coarsely as qcow2 does.
func extentsOf(p []byte) (all []imageio.Extent) {
	for off := 0; off < len(p); off += cluster {
		n := min(cluster, len(p)-off)
		zero := isZero(p[off : off+n])
		if k := len(all) - 1; k >= 0 && all[k].Zero == zero {
			all[k].Length += int64(n)
			continue
		}
		all = append(all, imageio.Extent{Start: int64(off), Length: int64(n), Zero: zero, Hole: zero})
	}
	return all
}

// image is a disk of the point: data where it is not zero, on a grain of 4 KiB.
type image []byte

func (m image) Size() int64 { return int64(len(m)) }

func (m image) Extents(ctx context.Context, off, n int64, visit func(off, n int64, data bool) bool) error {
	const grain = 4096
	for end := off + n; off < end; {
		at := off
		data := !isZero(m[at:min(at/grain*grain+grain, end)])
		for off < end && data == !isZero(m[off:min(off/grain*grain+grain, end)]) {
			off = min(off/grain*grain+grain, end)
		}
		if !visit(at, off-at, data) {
			return nil
		}
	}
	return ctx.Err()
}

func (m image) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n := copy(p, m[min(off, int64(len(m))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// world is a simulated engine with one VM, a point of it, and what a test looks at.
type world struct {
	t      *testing.T
	engine *engine.Engine
	host   *host
	client *ovirt.Client
	o      Options
	point  *chunkstore.Point
	images map[int]image
	before engine.Snapshot

	mu      sync.Mutex // guards the rest
	records []Record   // as they were written down
	notes   []string
	onKeep  func(Record)
}

// The original VM, which must never change.
const (
	webVM    = "11111111-1111-4111-8111-111111111101"
	webDisk  = "22222222-2222-4222-8222-222222222201"
	webDisk2 = "22222222-2222-4222-8222-222222222202"
)

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, images: map[int]image{}}
	w.host = &host{disks: map[string][]byte{}, dirty: map[string]bool{}, tickets: map[string]string{}, running: map[string]bool{}, free: 1 << 40}
	s := httptest.NewTLSServer(w.host)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	t.Cleanup(s.Close)
	w.host.url = s.URL
	// Data at both ends, an odd length, and a large hole.
	a := make(image, 11<<20+512)
	for _, at := range []struct{ off, n int }{{0, 5 << 20}, {9<<20 + 4096, 8192}, {11 << 20, 512}} {
		for i := range at.n {
			a[at.off+i] = byte(i*7 + i>>9 + 1)
		}
	}
	b := make(image, 1<<20)
	b[70000] = 1
	w.images[0], w.images[3] = a, b
	e, err := engine.New(engine.Options{
		Host: w.host, Scale: 0.001, Domains: []engine.DomainSeed{{ID: uuid.NewString(), Name: "local"}, {ID: uuid.NewString(), Name: "fast"}},
		VMs: []engine.VMSeed{{ID: webVM, Name: "web", MiB: 768, VCPUs: 2, Tags: []string{"gold"}, Networks: []string{"ovirtmgmt", ""}, Disks: []engine.DiskSeed{
			{ID: webDisk, Alias: "web_1", Format: "cow", Size: a.Size(), Incremental: true}, {ID: webDisk2, Alias: "web_2", Format: "raw", Size: b.Size(), Interface: "virtio"},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); e.Close() })
	url, err := e.Start(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.engine = e
	if w.client, err = ovirt.Dial(t.Context(), ovirt.Options{URL: url, User: "admin@internal", Password: "holdfast", CA: e.CA().PEM()}); err != nil {
		t.Fatal(err)
	}
	w.o = Options{
		Engine: w.client, Journal: w, Poll: 8 * time.Millisecond, Patience: time.Minute,
		Source: func(_ context.Context, _ chunkstore.PointID, disk int) (Source, error) { return w.images[disk], nil },
		Open: func(ctx context.Context, x ovirt.Transfer) (Target, error) {
			return imageio.Dial(ctx, imageio.Options{TransferURL: x.TransferURL, ProxyURL: x.ProxyURL, Write: true,
				CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})})
		},
	}
	w.makePoint()
	w.before = e.Snapshot()
	return w
}

// makePoint makes a point of what the engine says of the VM.
func (w *world) makePoint() {
	w.t.Helper()
	vm, err := w.client.VM(w.t.Context(), webVM)
	if err != nil {
		w.t.Fatal(err)
	}
	ovf, err := w.client.VMConfig(w.t.Context(), webVM)
	if err != nil {
		w.t.Fatal(err)
	}
	config, err := json.Marshal(appliance.PointConfig{Version: 1, VMID: webVM, VMName: "web", MemoryMiB: 768, Cluster: string(vm.Cluster), OVF: ovf, Tags: []string{"gold", "gone"},
		Disks: []appliance.PointDisk{
			{Number: 0, ID: webDisk, Alias: "web_1", Interface: "virtio_scsi", Bootable: true, Format: "cow"},
			{Number: 3, ID: webDisk2, Alias: "web_2", Interface: "virtio", Format: "raw"},
		}, Warnings: []string{"Disk web_lun is a LUN."}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.point = &chunkstore.Point{ID: "0123456789abcdef", Labels: map[string]string{appliance.LabelVM: "web"}, Config: config}
	for _, n := range slices.Sorted(maps.Keys(w.images)) {
		var data int64
		_ = w.images[n].Extents(w.t.Context(), 0, w.images[n].Size(), func(_, n int64, is bool) bool {
			if is {
				data += n
			}
			return true
		})
		w.point.Disks = append(w.point.Disks, chunkstore.Disk{Number: n, Root: manifest.Root{Size: w.images[n].Size(), Data: data}})
	}
}

// KeepRestore implements Journal.
func (w *world) KeepRestore(r Record) error {
	b, err := json.Marshal(r) // as the catalog does: what a later start finds
	if err != nil {
		return err
	}
	var kept Record
	if err := json.Unmarshal(b, &kept); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = append(w.records, kept)
	if w.onKeep != nil {
		w.onKeep(kept)
	}
	return nil
}

func (w *world) note(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes = append(w.notes, s)
}

// Reporter.
func (w *world) Step(s string) { w.note("step " + s) }
func (w *world) StepFailed()   { w.note("failed") }
func (w *world) Detail(string) {}
func (w *world) Note(s string) { w.note(s) }
func (w *world) Progress(p appliance.Progress) {
	if p.DoneBytes > p.TotalBytes || p.TotalBytes <= 0 {
		w.t.Errorf("progress of %+v", p)
	}
}

func (w *world) request() Request {
	return Request{Manager: "m", Point: w.point, Name: "copy", Domain: "fast", PowerOn: true}
}

func (w *world) prepare(q Request) *Record {
	w.t.Helper()
	r, err := Prepare(w.t.Context(), w.o, q, "abcdef012345")
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// checkWhole sees that a restore made what it should, and nothing else.
func (w *world) checkWhole(r *Record) ovirt.VM {
	w.t.Helper()
	if r.State != appliance.RestoreDone || r.VMID == "" {
		w.t.Fatalf("it is %+v", r.Restore)
	}
	for i, d := range r.Disks {
		w.host.locked(func() {
			got, want := w.host.disks[d.ID], w.images[d.Number]
			if int64(len(got)) != d.SizeBytes || string(got[:len(want)]) != string(want) || !isZero(got[len(want):]) {
				w.t.Errorf("disk %d of %d bytes differs", i, len(got))
			}
			if w.host.dirty[d.ID] {
				w.t.Errorf("disk %d was not flushed after the last write", i)
			}
		})
	}
	want := 1 + 2*len(r.Disks) // the VM, the disks and their attachments
	if left := w.engine.Leftovers(w.before); len(left) != want {
		w.t.Errorf("it made %s", strings.Join(left, "; "))
	}
	vm, err := w.client.VM(w.t.Context(), ovirt.ID(r.VMID))
	if err != nil {
		w.t.Fatal(err)
	}
	return vm
}

// checkNothing sees that nothing is left of a restore.
func (w *world) checkNothing(r *Record) {
	w.t.Helper()
	if left := w.engine.Leftovers(w.before); len(left) > 0 {
		w.t.Errorf("left on the engine: %s", strings.Join(left, "; "))
	}
	w.host.locked(func() {
		if len(w.host.disks) > 0 || len(w.host.tickets) > 0 {
			w.t.Errorf("left on the host: %d disks, tickets %v", len(w.host.disks), w.host.tickets)
		}
	})
	if r.State != appliance.RestoreFailed || r.Problem == nil || r.Problem.Cleaned != undone {
		w.t.Errorf("the record says %s, %+v", r.State, r.Problem)
	}
}

var errKilled = errs.Text("write", "", errs.Bug, "the node is dead")
