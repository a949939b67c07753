// Package imageio runs the real ovirt-imageio daemon, which serves images to backup software on an oVirt host, and
// steers it as vdsm does: by tickets over its control socket.
//
// Terms. A ticket says that an image, reached at an NBD or file URL, may be read or written for some time by whoever
// knows the ticket's id. The control socket is for the host only; clients come by HTTPS.
//
// Rules:
//
//  1. The daemon ends with the context it was started with, and with this process however that ends; Close waits for
//     it and leaves nothing.
//  2. The daemon is installed once into the lab's cache (Build) from its source package, atomically.
//  3. The daemon is a peer of the product and never a part of it: only tests and the lab start it.
//
// Everything may be called concurrently. The tests run the real daemon over qemu-nbd, with HOLDFAST_REAL_PARTS=1.
package imageio

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

const (
	// startWithin is how long the daemon may take until it listens. It takes under a second on an idle machine.
	startWithin = 30 * time.Second
	// stopWithin is how long it may take to end when asked; its services look twice in a second whether they should.
	stopWithin   = 2 * time.Second
	stopAttempts = 3
	// controlWithin is longer than the daemon itself waits for readers when a ticket is removed, which is 60 s.
	controlWithin = 90 * time.Second
)

// Options says how the daemon runs.
type Options struct {
	// Dir holds configuration and sockets, and is made if missing. Empty means a folder that goes with the daemon. A
	// socket's path must not be longer than 107 bytes.
	Dir string
	// CacheDir is where Build put the daemon, or puts it now. Empty means the cache of the lab's disks.
	CacheDir string
	// Cert, Key and CA are PEM: the server's certificate and its key, and the authority that signed it.
	Cert, Key, CA []byte
	// Host is the address to listen on. Empty means 127.0.0.1.
	Host string
	// Port to listen on. 0 means a free one; a real host has 54322.
	Port int
	// Name is how clients reach the daemon, a name in Cert. Empty means Host.
	Name string
	// Log sees what the daemon logs; may be nil.
	Log io.Writer
}

// Daemon is a running daemon.
type Daemon struct {
	dir     string
	ownDir  bool
	url     string
	process *proc.Process
	control *http.Client
	closed  sync.Once
}

// Ticket lets clients at an image.
type Ticket struct {
	UUID       string   `json:"uuid"`
	Size       int64    `json:"size"` // bytes
	URL        string   `json:"url"`  // nbd:unix:SOCKET:exportname=NAME, or file:///PATH
	Timeout    int      `json:"timeout"`
	Inactivity int      `json:"inactivity_timeout,omitempty"` // seconds until an idle connection is closed; 0: the daemon's 60
	Ops        []string `json:"ops"`                          // "read", "write"
	Dirty      bool     `json:"dirty,omitempty"`              // the image can tell what changed
	Sparse     bool     `json:"sparse,omitempty"`
	TransferID string   `json:"transfer_id,omitempty"` // for the daemon's log and messages
}

// State is what the daemon tells about a ticket.
type State struct {
	Active      bool  `json:"active"`
	Canceled    bool  `json:"canceled"`
	Connections int   `json:"connections"`
	IdleSeconds int   `json:"idle_time"`
	Transferred int64 `json:"transferred"` // bytes, each counted once
}

// Start starts the daemon and returns when it takes requests. The caller closes it; it is killed when ctx ends.
func Start(ctx context.Context, opts Options) (*Daemon, error) {
	if opts.CacheDir == "" {
		var err error
		if opts.CacheDir, err = parts.CacheDir(); err != nil {
			return nil, err
		}
	}
	if opts.Host == "" {
		opts.Host = "127.0.0.1"
	}
	if opts.Name == "" {
		opts.Name = opts.Host
	}
	interpreter, err := Build(ctx, opts.CacheDir, opts.Log)
	if err != nil {
		return nil, err
	}
	d := &Daemon{dir: opts.Dir, ownDir: opts.Dir == ""}
	if d.ownDir {
		if d.dir, err = os.MkdirTemp("", "holdfast-imageio-"); err != nil {
			return nil, errs.Wrap("start", "ovirt-imageio", err)
		}
	}
	if err := d.start(ctx, interpreter, opts); err != nil {
		d.removeFiles()
		return nil, errs.Wrap("start", "ovirt-imageio", err)
	}
	return d, nil
}

func (d *Daemon) start(ctx context.Context, interpreter string, opts Options) error {
	if err := d.configure(opts); err != nil {
		return err
	}
	w := &watcher{log: opts.Log, ready: make(chan struct{})}
	var err error
	d.process, err = proc.Start(ctx, proc.Spec{
		Args: []string{interpreter, "-I", "-c", "from ovirt_imageio._internal import server; server.main()", "-c", d.dir},
		Dir:  d.dir, Stderr: w,
	})
	if err != nil {
		return err
	}
	timer := time.NewTimer(startWithin)
	defer timer.Stop()
	select {
	case <-w.ready:
	case <-d.process.Done():
		return d.process.Wait(ctx)
	case <-timer.C:
		d.process.Kill()
		return errs.Text("wait for", "the daemon", errs.Transient, "it did not say that it is ready; it said: "+d.process.Tail())
	}
	port := w.port()
	if port == "" {
		d.process.Kill()
		return errs.Text("read", "the daemon's log", errs.Unsupported, "it does not say where it listens")
	}
	d.url = "https://" + net.JoinHostPort(opts.Name, port)
	d.control = &http.Client{Timeout: controlWithin, Transport: &http.Transport{
		// A connection per request: the daemon closes idle ones when it likes, which would be an error to whoever uses it.
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", d.path("control"))
		},
	}}
	return nil
}

// configure writes what a host's /etc/ovirt-imageio has, for a folder of our own.
func (d *Daemon) configure(opts Options) error {
	if err := os.MkdirAll(d.path("conf.d"), 0o700); err != nil {
		return err
	}
	// No profiling, no systemd, and no user of its own: everything else is as on a host.
	conf := fmt.Sprintf(`[daemon]
systemd_enable = false
drop_privileges = false
run_dir = %[1]s
[tls]
key_file = %[1]s/key.pem
cert_file = %[1]s/cert.pem
ca_file = %[1]s/ca.pem
[remote]
host = %[2]s
port = %[3]d
[local]
socket = %[1]s/images
[control]
transport = unix
socket = %[1]s/control
[profile]
filename = %[1]s/profile
[handlers]
keys = stderr
[logger_root]
level = INFO
handlers = stderr
`, d.dir, opts.Host, opts.Port)
	for name, content := range map[string][]byte{
		"conf.d/50-lab.conf": []byte(conf), "key.pem": opts.Key, "cert.pem": opts.Cert, "ca.pem": opts.CA,
	} {
		if err := os.WriteFile(d.path(name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (d *Daemon) path(name string) string { return filepath.Join(d.dir, name) }

// URL returns the address of the daemon, such as https://127.0.0.1:54322. An image is at /images/TICKET below it.
func (d *Daemon) URL() string { return d.url }

// Done is closed when the daemon has ended, by Close or by itself.
func (d *Daemon) Done() <-chan struct{} { return d.process.Done() }

// Close ends the daemon and everything it reads. It may be called more than once.
func (d *Daemon) Close() {
	d.closed.Do(func() {
		d.stop()
		d.removeFiles()
	})
}

// stop asks more than once: between looking whether it should end and waiting for a signal, the daemon misses one.
func (d *Daemon) stop() {
	for range stopAttempts {
		_ = d.process.Signal(syscall.SIGTERM) // the only failure is that it has ended
		timer := time.NewTimer(stopWithin)
		select {
		case <-d.process.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
	d.process.Kill()
}

func (d *Daemon) removeFiles() {
	if d.ownDir {
		_ = os.RemoveAll(d.dir) // sockets and certificates of no further use
		return
	}
	for _, name := range []string{"conf.d", "key.pem", "cert.pem", "ca.pem", "images", "control"} {
		_ = os.RemoveAll(d.path(name))
	}
}

// AddTicket adds a ticket, or replaces the one of that id.
func (d *Daemon) AddTicket(ctx context.Context, t Ticket) error {
	body, err := json.Marshal(t)
	if err != nil {
		return errs.New("add the ticket", t.UUID, errs.Bug, err)
	}
	return d.call(ctx, "add the ticket", http.MethodPut, t.UUID, body, nil)
}

// RemoveTicket withdraws a ticket. It waits for requests under way, and for clients to close their connections; a
// client that does neither for a minute makes it fail with Busy. No ticket of that id is no error.
func (d *Daemon) RemoveTicket(ctx context.Context, uuid string) error {
	return d.call(ctx, "remove the ticket", http.MethodDelete, uuid, nil, nil)
}

// Ticket returns the state of a ticket, or NotFound.
func (d *Daemon) Ticket(ctx context.Context, uuid string) (State, error) {
	var s State
	err := d.call(ctx, "ask for the ticket", http.MethodGet, uuid, nil, &s)
	return s, err
}

// Extend makes a ticket last for so many seconds from now.
func (d *Daemon) Extend(ctx context.Context, uuid string, seconds int) error {
	return d.call(ctx, "extend the ticket", http.MethodPatch, uuid, fmt.Appendf(nil, `{"timeout":%d}`, seconds), nil)
}

func (d *Daemon) call(ctx context.Context, what, method, uuid string, body []byte, result any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://control/tickets/"+uuid, bytes.NewReader(body))
	if err != nil {
		return errs.New(what, uuid, errs.Invalid, err)
	}
	resp, err := d.control.Do(req)
	if err != nil {
		return errs.Wrap(what, uuid, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return errs.Wrap(what, uuid, err)
	}
	if resp.StatusCode/100 != 2 {
		kind := errs.Bug
		switch resp.StatusCode {
		case http.StatusBadRequest:
			kind = errs.Invalid
		case http.StatusNotFound:
			kind = errs.NotFound
		case http.StatusConflict:
			kind = errs.Busy
		}
		return errs.Text(what, uuid, kind, fmt.Sprintf("ovirt-imageio answers %s: %s", resp.Status, strings.TrimSpace(string(text))))
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(text, result); err != nil {
		return errs.New(what, uuid, errs.Bug, err)
	}
	return nil
}

// listening finds the port in the daemon's log.
var listening = regexp.MustCompile(`remote\.service listening on \('[^']*', (\d+)`)

// watcher reads the daemon's log until it is ready.
type watcher struct {
	log   io.Writer
	ready chan struct{}

	mu   sync.Mutex // guards text, which is nil once ready
	text []byte
	told bool
	at   string
}

// Write implements io.Writer; an error of the log behind it is the log's own affair.
func (w *watcher) Write(b []byte) (int, error) {
	if w.log != nil {
		_, _ = w.log.Write(b)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told {
		return len(b), nil
	}
	w.text = append(w.text, b...)
	if m := listening.FindSubmatch(w.text); m != nil {
		w.at = string(m[1])
	}
	if bytes.Contains(w.text, []byte("Ready for requests")) {
		w.told, w.text = true, nil
		close(w.ready)
	}
	return len(b), nil
}

func (w *watcher) port() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at
}
