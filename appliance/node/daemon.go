package node

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/config"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/portmap"
)

// daemonCacheBytes is how much of what was decoded the daemon keeps in memory.
const daemonCacheBytes = 256 << 20

// Run is the daemon, until ctx ends, which is a clean end. Without an API it shows a store's restore points as files,
// over NFS, or both; with one it is a node. ready is called when everything that the configuration names is there.
func Run(ctx context.Context, c *config.Config, version string, log *slog.Logger, ready func()) error {
	d := &daemon{c: c, log: log, version: version}
	if err := d.open(ctx); err != nil {
		return err
	}
	defer d.close()
	return d.run(ctx, ready)
}

// daemon is what a running daemon holds.
type daemon struct {
	c       *config.Config
	log     *slog.Logger
	version string
	catalog disk.Disk     // of the node's catalog; nil for the real one
	poll    time.Duration // between two looks at an engine; 0 for the default
	reader  *chunkstore.Reader
	store   *chunkstore.Store // nil if nothing is written
	nfs     *nfsd.Server      // nil if nothing is served
	listen  net.Listener      // of nfs
	node    *Node             // nil without an API
	closers []func()          // in the order of opening
	ready   atomic.Bool       // everything is there
}

func (d *daemon) close() {
	for i := len(d.closers) - 1; i >= 0; i-- {
		d.closers[i]()
	}
	d.closers = nil
}

// open opens everything in the order in which it depends on each other; close ends what was opened. The NFS server has
// all its exports before it takes its first call: a host that finds its domain gone would give it up.
func (d *daemon) open(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if err := d.openStore(ctx); err != nil {
		return err
	}
	if d.c.NFS == nil {
		return nil
	}
	if err := d.openNFS(ctx); err != nil {
		return err
	}
	if d.c.API == nil {
		return nil
	}
	port := d.listen.Addr().(*net.TCPAddr).AddrPort().Port()
	d.node, err = NewNode(ctx, NodeOptions{
		Store: d.store, State: d.c.State, NFS: d.nfs, Allow: d.c.NFS.Allow, Address: d.c.NFS.Address, Port: port, Logger: d.log,
		Disk: d.catalog, Poll: d.poll, CollectEvery: d.c.CollectEvery(),
		ScrubEvery: d.c.ScrubEvery(), ScrubLimit: d.c.ScrubLimit(),
	})
	return err
}

func (d *daemon) openStore(ctx context.Context) (err error) {
	o := chunkstore.Options{
		Logger: d.log, CacheBytes: daemonCacheBytes,
		Unlock: unlockAs(d.c),
	}
	if d.c.API == nil {
		d.reader, err = chunkstore.OpenReader(ctx, d.c.Store, o)
		if err == nil {
			d.closers = append(d.closers, func() { _ = d.reader.Close() }) // it was only read
		}
		return err
	}
	if d.store, err = chunkstore.Open(ctx, d.c.Store, o); err != nil {
		return err
	}
	d.reader = d.store.Reader
	d.closers = append(d.closers, func() {
		if err := d.store.Close(); err != nil {
			d.log.Error("the store was not closed cleanly; the next start mends its index", "err", err)
		}
	})
	return nil
}

// servingKey is the purpose of the key that signs file handles.
const servingKey = "nfs file handles"

// pointsExport is the path under which all points are served.
const pointsExport = "/points"

// openNFS makes the server and its port, with all points below /points, read-only.
func (d *daemon) openNFS(ctx context.Context) error {
	const op = "serve points"
	allow, err := d.c.NFS.Prefixes()
	if err != nil {
		return errs.New(op, d.c.NFS.Listen, errs.Invalid, err)
	}
	if d.listen, err = net.Listen("tcp", d.c.NFS.Listen); err != nil {
		return errs.Wrap(op, d.c.NFS.Listen, err)
	}
	d.closers = append(d.closers, func() { _ = d.listen.Close() })
	key := d.reader.DerivedKey(servingKey)
	if d.nfs, err = nfsd.New(nfsd.Options{Key: key[:], Logger: d.log}); err != nil {
		return err
	}
	tree := below{NewPointsTree(d.reader)}
	if err := d.nfs.Add(nfsd.Export{Path: pointsExport, ID: 1, Tree: tree, Allow: allow, ReadOnly: true}); err != nil {
		return err
	}
	if !d.c.NFS.Portmap {
		return nil
	}
	at := d.listen.Addr().(*net.TCPAddr).AddrPort()
	pm, err := portmap.ListenLog(ctx, netip.AddrPortFrom(at.Addr().Unmap(), 111).String(), nfsd.PortmapEntries(at.Port()), d.log)
	if err != nil {
		return errs.Wrap(op, d.c.NFS.Listen, err)
	}
	d.closers = append(d.closers, pm.Close)
	return nil
}

// run runs what was opened. At the end of ctx the API stops first, then the node's work, then NFS: work that ends may
// still need hosts to read from us.
func (d *daemon) run(ctx context.Context, ready func()) error {
	g, ctx := errgroup.WithContext(ctx)
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	waiting := make(chan struct{}, 3)
	up := func() { waiting <- struct{}{} }
	parts := 0
	begin := func(f func() error) {
		parts++
		g.Go(f)
	}
	if d.c.Mount != nil {
		begin(func() error {
			return Mount(ctx, d.reader, MountOptions{
				Dir: d.c.Mount.Dir, AllowOther: d.c.Mount.AllowOther, Logger: d.log,
				Note: func(s string) { d.log.Info(s) }, Ready: up,
			})
		})
	}
	if d.nfs != nil {
		begin(func() error { return serveUntil(serving, d.nfs, d.listen, d.log, up, nil) })
	}
	if d.node != nil {
		begin(func() error { return d.serveAPI(ctx, up) })
	}
	g.Go(func() error {
		<-ctx.Done()
		defer stopServing()
		if d.node == nil {
			return nil
		}
		return d.node.Close(context.WithoutCancel(ctx))
	})
	for range parts {
		select {
		case <-waiting:
		case <-ctx.Done():
			return g.Wait()
		}
	}
	d.ready.Store(true)
	d.log.Info("ready", "store", d.c.Store)
	ready()
	return g.Wait()
}

// serveAPI answers on the socket and, if configured, over TLS.
func (d *daemon) serveAPI(ctx context.Context, up func()) error {
	handler, err := api.New(api.Options{Service: d.node, Version: d.version, Ready: d.ready.Load, Logger: d.log})
	if err != nil {
		return err
	}
	return api.Serve(ctx, api.Listeners{
		Socket: d.c.API.Socket, TLSAddr: d.c.API.Listen, TokenFile: d.c.API.TokenFile, CertDir: filepath.Join(d.c.State, "tls"), Logger: d.log,
		Ready: func(a api.Addresses) {
			d.log.Info("the API answers", "socket", a.Socket, "tls", a.TLS)
			up()
		},
	}, handler)
}

// ReadPassphrase reads the first line of a passphrase file.
func ReadPassphrase(file string) ([]byte, error) {
	const op, limit = "read passphrase", 4096
	f, err := os.Open(file)
	if err != nil {
		return nil, errs.Wrap(op, file, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, errs.Wrap(op, file, err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 || len(line) > limit {
		return nil, errs.Text(op, file, errs.Invalid, "the file does not hold a passphrase in its first line")
	}
	return line, nil
}
