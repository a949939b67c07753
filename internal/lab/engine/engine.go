package engine

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Options says what the simulated installation looks like. Host is all that must be given.
type Options struct {
	Host Host

	// Name is the host name in the engine's own URLs; default localhost.
	Name string
	// HostName and HostAddress are the one hypervisor's; default host1, localhost.
	HostName, HostAddress string
	// ClusterLevel decides how a backup is made: below 4.7 live, from there on with a snapshot of the engine's own,
	// unless the request says legacy=true. Default 4.8.
	ClusterLevel string
	// Users may log in; default admin@internal with password "holdfast".
	Users []User
	// CA signs the engine's certificate; default a new one of the engine's own.
	CA Authority
	// Domains are attached and active from the start; the first is the master. Default one named "local".
	Domains []DomainSeed
	// VMs exist from the start.
	VMs []VMSeed
	// Scale multiplies every recorded duration: 1 is as slow as a real engine, 0.01 suits tests. Default 1.
	Scale float64
	// Keep is how long ended backups and transfers stay readable, failed ones twice as long; default 15 minutes. It is
	// not scaled.
	Keep time.Duration
	// Logger is told what is done and what fails; nil is silent.
	Logger *slog.Logger
}

// User may log in. Name has its profile: admin@internal.
type User struct {
	Name, Password string
	Powerless      bool // has no role: gets a token and may do nothing with it
}

// DomainSeed is a storage domain that is there from the start.
type DomainSeed struct {
	ID, Name string
	Path     string // default /export/NAME at 127.0.0.1
}

// VMSeed is a VM that is there from the start.
type VMSeed struct {
	ID, Name string
	MiB      int64
	VCPUs    int
	Disks    []DiskSeed
	Tags     []string
	Networks []string // one NIC each; "" is one without a network. Only "ovirtmgmt" exists.
	Running  bool     // the Host runs it already
}

// DiskSeed is a disk of such a VM. Empty ids are made up.
type DiskSeed struct {
	ID, Image, Alias string
	Domain           string // default the first one
	Format           string // "cow" (default) or "raw"
	Size, Actual     int64
	Incremental      bool
	Interface        string // default virtio_scsi
}

// Engine is a running simulator. It may be used by many goroutines.
type Engine struct {
	opts  Options
	ca    Authority
	log   *slog.Logger
	began time.Time

	ctx    context.Context // ends with Close: the life of all background work
	cancel context.CancelFunc
	work   sync.WaitGroup

	// mu guards the state. It is never held while the Host works.
	mu     sync.Mutex
	state  state
	closed bool // no request is taken any more
	routes []route

	// faultMu guards the armed faults: strokes by name, -1 lasts until Heal. It is asked for with and without mu.
	faultMu sync.Mutex
	faults  map[string]int
}

// New makes an engine. Close it.
func New(o Options) (*Engine, error) {
	if o.Host == nil {
		return nil, errs.Text("make", "the simulated engine", errs.Invalid, "it needs a host")
	}
	defaults(&o)
	e := &Engine{opts: o, ca: o.CA, log: o.Logger, began: now(), faults: map[string]int{}, routes: routes()}
	if e.ca == nil {
		ca, err := newAuthority()
		if err != nil {
			return nil, errs.Wrap("make", "the simulated engine's certificate authority", err)
		}
		e.ca = ca
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.state.center, e.state.cluster, e.state.host = newID(), newID(), newID()
	e.state.sessions = map[string]*session{}
	e.state.tags.put(nilID, &tag{id: nilID, name: "root", description: "root"})
	for i, d := range o.Domains {
		e.seedDomain(d, i == 0)
	}
	for _, v := range o.VMs {
		if err := e.AddVM(v); err != nil {
			e.cancel()
			return nil, err
		}
	}
	e.event(10780, "normal", nil, "Affinity Rules Enforcement Manager started.")
	e.background(e.watchVMs)
	return e, nil
}

func defaults(o *Options) {
	if o.Name == "" {
		o.Name = "localhost"
	}
	if o.HostName == "" {
		o.HostName = "host1"
	}
	if o.HostAddress == "" {
		o.HostAddress = "localhost"
	}
	if o.ClusterLevel == "" {
		o.ClusterLevel = "4.8"
	}
	if len(o.Users) == 0 {
		o.Users = []User{{Name: "admin@internal", Password: "holdfast"}}
	}
	if len(o.Domains) == 0 {
		o.Domains = []DomainSeed{{Name: "local"}}
	}
	if o.Scale == 0 {
		o.Scale = 1
	}
	if o.Keep == 0 {
		o.Keep = 15 * time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Close ends all background work and waits for it. Servers that Start began are stopped by their contexts.
func (e *Engine) Close() {
	e.locked(func() { e.closed = true })
	e.cancel()
	e.work.Wait()
}

// CA returns the authority that signed the engine's certificate. A real engine's signs its hosts' certificates too.
func (e *Engine) CA() Authority { return e.ca }

// Start serves HTTPS on addr ("127.0.0.1:0" takes any port) until the context ends, and returns the engine's URL.
func (e *Engine) Start(ctx context.Context, addr string) (url string, err error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return "", errs.Wrap("serve the simulated engine at", addr, err)
	}
	cert, key, err := e.ca.Server(e.opts.Name, "localhost", "127.0.0.1", host)
	if err != nil {
		return "", errs.Wrap("make", "the simulated engine's certificate", err)
	}
	inner, err := net.Listen("tcp", addr)
	if err != nil {
		return "", errs.Wrap("serve the simulated engine at", addr, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		inner.Close()
		return "", errs.Wrap("use", "the simulated engine's certificate", err)
	}
	server := &http.Server{Handler: e.Handler(), ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelDebug)}
	// No HTTP/2: a real engine's front speaks HTTP/1.1 with these clients, and dropped connections must be seen.
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(true)
	listener := tls.NewListener(&door{Listener: inner, engine: e}, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	e.work.Go(func() { _ = server.Serve(listener) }) // always ends with an error: that it was closed
	e.work.Go(func() {
		select {
		case <-ctx.Done():
		case <-e.ctx.Done():
		}
		_ = server.Close()
	})
	_, port, _ := net.SplitHostPort(inner.Addr().String()) // what Listen gave is well-formed
	return "https://" + net.JoinHostPort(e.opts.Name, port) + "/ovirt-engine/api", nil
}

// door drops connections while the engine is unreachable.
type door struct {
	net.Listener
	engine *Engine
}

func (d *door) Accept() (net.Conn, error) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil || !d.engine.active(FaultUnreachable) {
			return conn, err
		}
		_ = conn.Close()
	}
}

// background runs work that outlasts a request. Its context ends with the engine.
func (e *Engine) background(f func(context.Context)) { e.work.Go(func() { f(e.ctx) }) }

// wait lets a recorded duration pass, scaled. It tells whether the engine still lives.
func (e *Engine) wait(ctx context.Context, recorded time.Duration) bool {
	t := time.NewTimer(time.Duration(float64(recorded) * e.opts.Scale))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	case <-e.ctx.Done():
		return false
	}
}

// enter counts a request in, so that Close waits for it; false means that it came too late.
func (e *Engine) enter() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.work.Add(1)
	}
	return !e.closed
}

// outside runs what must not hold up others: the mutex, which the caller holds, is let go of meanwhile.
func (e *Engine) outside(f func()) {
	e.mu.Unlock()
	defer e.mu.Lock()
	f()
}

// locked runs f under the mutex: for background work.
func (e *Engine) locked(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

// after waits and then runs f under the mutex, unless the engine is closed first.
func (e *Engine) after(recorded time.Duration, f func()) {
	e.background(func(ctx context.Context) {
		if e.wait(ctx, recorded) {
			e.locked(f)
		}
	})
}

// now is a time as the engine keeps it: milliseconds, UTC.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// level compares the cluster's compatibility level.
func (e *Engine) level() (major, minor string) {
	major, minor, _ = strings.Cut(e.opts.ClusterLevel, ".")
	return major, minor
}

// hybridByDefault tells whether backups take the engine's own snapshot.
func (e *Engine) hybridByDefault() bool {
	return !slices.Contains([]string{"4.2", "4.3", "4.4", "4.5", "4.6"}, e.opts.ClusterLevel)
}
