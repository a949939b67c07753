package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Time bounds of the servers. A body is a few KiB; an answer may wait for an engine; streams set their own.
const (
	headerTime = 10 * time.Second
	readTime   = 30 * time.Second
	answerTime = callTime + 20*time.Second
	idleTime   = 2 * time.Minute
	drainTime  = 5 * time.Second // for requests that run when the server ends
)

const serveOp = "serve the API"

const maxHeaderBytes = 64 << 10

// Listeners say where the API is offered, and to whom.
type Listeners struct {
	Socket    string       // path of a unix socket, for root, our own user and the members of our group; "" is none
	TLSAddr   string       // "address:port" for whoever shows the token; "" is none
	TokenFile string       // holds the token; made if it is not there. Needed with TLSAddr
	CertDir   string       // folder of cert.pem and key.pem; made if they are not there. Needed with TLSAddr
	Logger    *slog.Logger // nil: silent
	// Ready is called once, when both listen. TLSAddr is then the address with the port it got.
	Ready func(Addresses)
}

// Addresses are where the API is offered.
type Addresses struct{ Socket, TLS string }

// Serve offers a handler until ctx ends, which is a clean end: streams are closed, and requests that run have five
// seconds to finish. A socket that somebody answers on is errs.Busy; one that a killed server left is replaced.
func Serve(ctx context.Context, l Listeners, h http.Handler) error {
	if l.Logger == nil {
		l.Logger = slog.New(slog.DiscardHandler)
	}
	var at Addresses
	d := &doors{log: l.Logger}
	defer d.close()
	if l.Socket != "" {
		if err := d.socket(ctx, l.Socket, h); err != nil {
			return err
		}
		at.Socket = l.Socket
	}
	if l.TLSAddr != "" {
		addr, err := d.tls(l, h)
		if err != nil {
			return err
		}
		at.TLS = addr
	}
	if len(d.all) == 0 {
		return errs.Text(serveOp, "", errs.Invalid, "neither a socket nor an address for TLS was named")
	}
	if l.Ready != nil {
		l.Ready(at)
	}
	return d.serve(ctx)
}

// door is a listener with its doorkeeper.
type door struct {
	ln net.Listener
	h  http.Handler
}

// doors are the listeners of one Serve.
type doors struct {
	log  *slog.Logger
	all  []door
	runs gate // requests
}

func (d *doors) close() {
	for _, o := range d.all {
		_ = o.ln.Close()
	}
}

// serve answers at all doors until ctx ends, or one fails.
func (d *doors) serve(ctx context.Context) error {
	// Requests do not end with ctx: they have time to finish. base ends them when that is over.
	base, cut := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), closingKey{}, ctx.Done()))
	defer cut()
	g, ctx := errgroup.WithContext(ctx)
	for _, o := range d.all {
		srv := &http.Server{
			Handler: d.counted(o.h), BaseContext: func(net.Listener) context.Context { return base },
			ConnContext: withPeer, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
			ReadHeaderTimeout: headerTime, ReadTimeout: readTime, WriteTimeout: answerTime, IdleTimeout: idleTime,
			MaxHeaderBytes: maxHeaderBytes,
		}
		g.Go(func() error {
			err := srv.Serve(o.ln)
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			return errs.Wrap(serveOp, o.ln.Addr().String(), err)
		})
		g.Go(func() error {
			<-ctx.Done()
			drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
			defer cancel()
			if err := srv.Shutdown(drain); err != nil {
				d.log.Warn("requests were cut off", "at", o.ln.Addr().String(), "err", err)
				cut()
				_ = srv.Close()
			}
			return nil
		})
	}
	err := g.Wait()
	cut()
	select {
	case <-d.runs.close(): // the service must not be closed under a request
	case <-time.After(drainTime):
		d.log.Error("requests do not end although they were told to")
	}
	return err
}

// counted lets serve wait for what runs.
func (d *doors) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !d.runs.enter() {
			panic(http.ErrAbortHandler) // it came between the end of its connection and ours
		}
		defer d.runs.leave()
		next.ServeHTTP(w, r)
	})
}

// gate counts who is inside, until it is closed.
type gate struct {
	mu     sync.Mutex // guards the rest
	inside int
	empty  chan struct{} // not nil once the gate is closed; closed when the last one has left
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.empty != nil {
		return false
	}
	g.inside++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.empty != nil {
		close(g.empty)
	}
}

// close lets nobody in any more. The channel is closed when everybody has left. It is called once.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.empty = make(chan struct{})
	if g.inside == 0 {
		close(g.empty)
	}
	return g.empty
}
