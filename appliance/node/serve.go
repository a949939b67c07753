package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/synthetic"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/portmap"
)

// ServeOptions say what Serve offers to whom.
type ServeOptions struct {
	Point    *chunkstore.Point
	Disks    []int // nil: all
	Format   synthetic.Format
	Addr     string // "address:port"; port 0 takes a free one
	Portmap  bool   // answer on port 111 of the address as well
	Writable bool
	Overlay  string         // folder of an overlay to keep; "" drops what was written at the end
	MaxBytes int64          // bound of what may be written; 0 is no bound
	Allow    []netip.Prefix // nil: the networks that the address lies in
	Logger   *slog.Logger
	Note     func(string)
	Ready    func(ServeReady)
	Stats    <-chan struct{} // each receive calls OnStats
	OnStats  func(ServeStats)
}

// ServeReady tells where the disks are. URLs are as libnfs's tools take them.
type ServeReady struct {
	URL    string   `json:"url"`
	URLs   []string `json:"urls"`
	Point  string   `json:"point"`
	Format string   `json:"format"`
	Writes string   `json:"writes"` // "refused", "dropped" or "kept"
	Allow  []string `json:"allow"`
}

// ServeStats counts what clients did.
type ServeStats struct {
	Calls        int64 `json:"calls"`
	Reads        int64 `json:"reads"`
	Writes       int64 `json:"writes"`
	BytesRead    int64 `json:"bytes_read"`
	BytesWritten int64 `json:"bytes_written"`
	Connections  int   `json:"connections"`
	InFlight     int64 `json:"in_flight"`
}

// drainTime is how long calls that run may take when the server ends.
const drainTime = 10 * time.Second

// Serve offers the disks of a point over NFS v3 until ctx ends, which is a clean end.
func Serve(ctx context.Context, r *chunkstore.Reader, o ServeOptions) (err error) {
	const op = "serve point"
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	addr, err := netip.ParseAddrPort(o.Addr)
	if err != nil {
		return errs.Text(op, o.Addr, errs.Invalid, "an address with a port is needed").WithNext("Write --nfs 127.0.0.1:2049, for instance.")
	}
	if o.Allow == nil {
		if o.Allow, err = attachedNetworks(addr.Addr()); err != nil {
			return err
		}
	}
	ln, err := net.Listen("tcp", o.Addr)
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return errs.Text(op, o.Addr, errs.Invalid, "this machine does not have that address").WithNext("See `ip address` for those it has.")
	}
	if err != nil {
		return errs.New(op, o.Addr, errs.KindOf(err), err).WithNext("Choose another address or port, or end what uses it.")
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	disks, err := openDisks(ctx, r, &o)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := disks.close(); err == nil {
			err = cerr
		}
	}()
	key := r.DerivedKey(servingKey)
	srv, err := nfsd.New(nfsd.Options{Key: key[:], Logger: o.Logger})
	if err != nil {
		return err
	}
	export := nfsd.Export{Path: "/" + string(o.Point.ID), ID: 1, Tree: disks.tree, Allow: o.Allow, ReadOnly: !o.Writable}
	if err := srv.Add(export); err != nil {
		return err
	}
	if o.Portmap {
		at := net.JoinHostPort(addr.Addr().String(), "111")
		pm, err := portmap.ListenLog(ctx, at, nfsd.PortmapEntries(port), o.Logger)
		if err != nil {
			return errs.Wrap(op, at, err)
		}
		defer pm.Close()
	}
	return run(ctx, srv, ln, o, ready(addr.Addr(), port, export, disks, o))
}

func run(ctx context.Context, srv *nfsd.Server, ln net.Listener, o ServeOptions, r ServeReady) error {
	stats := func() {
		select {
		case <-o.Stats:
			if o.OnStats != nil {
				o.OnStats(readStats(srv))
			}
		case <-ctx.Done():
		}
	}
	tell := func() {
		if o.Ready != nil {
			o.Ready(r)
		}
	}
	return serveUntil(ctx, srv, ln, o.Logger, tell, stats)
}

// serveUntil runs a server until ctx ends, and lets the calls that run then finish. ready is called once; each, if not
// nil, again and again: it waits for something to do, or for the end of ctx.
func serveUntil(ctx context.Context, srv *nfsd.Server, ln net.Listener, log *slog.Logger, ready, each func()) error {
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.WithoutCancel(ctx), ln) }()
	ready()
	if each != nil {
		go func() {
			for ctx.Err() == nil {
				each()
			}
		}()
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		log.Warn("clients were cut off", "err", err)
	}
	return <-served
}

func readStats(srv *nfsd.Server) ServeStats {
	st := srv.Stats()
	out := ServeStats{
		BytesRead: int64(st.BytesRead), BytesWritten: int64(st.BytesWritten),
		Connections: st.Conns, InFlight: st.InFlight,
	}
	for _, p := range st.Procedures {
		out.Calls += int64(p.Calls)
		switch strings.ToLower(p.Procedure) {
		case "read":
			out.Reads = int64(p.Calls)
		case "write":
			out.Writes = int64(p.Calls)
		}
	}
	return out
}

func ready(addr netip.Addr, port uint16, e nfsd.Export, d *servedDisks, o ServeOptions) ServeReady {
	host := addr.Unmap()
	if host.IsUnspecified() {
		host = netip.MustParseAddr("127.0.0.1")
		if addr.Is6() {
			host = netip.IPv6Loopback()
		}
	}
	name := host.String()
	if host.Is6() {
		name = "[" + name + "]"
	}
	out := ServeReady{Point: string(o.Point.ID), Format: string(o.Format), Writes: d.writes}
	p := strconv.Itoa(int(port))
	for _, f := range d.names {
		out.URLs = append(out.URLs, fmt.Sprintf("nfs://%s%s?nfsport=%s&mountport=%s&version=3", name, path.Join(e.Path, f), p, p))
	}
	out.URL = out.URLs[0]
	for _, a := range e.Allow {
		out.Allow = append(out.Allow, a.String())
	}
	return out
}

// attachedNetworks returns the networks of this machine that an address belongs to, and loopback: whoever can be a
// neighbour of the address may come, unless the caller says otherwise. An unspecified address belongs to all.
func attachedNetworks(addr netip.Addr) ([]netip.Prefix, error) {
	allow := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	if addr.IsLoopback() {
		return allow, nil
	}
	have, err := net.InterfaceAddrs()
	if err != nil {
		return nil, errs.Wrap("list networks", "", err)
	}
	for _, a := range have {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLoopback() {
			continue
		}
		if addr.IsUnspecified() || p.Addr().Unmap() == addr.Unmap() {
			allow = append(allow, p.Masked())
		}
	}
	return allow, nil
}

// servedDisks are the files of one export, with what has to be closed behind them.
type servedDisks struct {
	tree   *fs.Static
	names  []string
	writes string
	close  func() error
}

func openDisks(ctx context.Context, r *chunkstore.Reader, o *ServeOptions) (*servedDisks, error) {
	numbers := o.Disks
	if numbers == nil {
		for _, d := range o.Point.Disks {
			numbers = append(numbers, d.Number)
		}
	}
	d := &servedDisks{writes: "refused", close: func() error { return nil }}
	var over *overlays
	if o.Writable {
		var err error
		if over, err = openOverlays(r, o); err != nil {
			return nil, err
		}
		d.close = over.close
		d.writes = over.fate()
	}
	var entries []fs.Entry
	for _, n := range numbers {
		f, err := diskFile(ctx, r, o, over, n)
		if err != nil {
			_ = d.close()
			return nil, err
		}
		name := appliance.DiskFileName(n, string(o.Format))
		d.names = append(d.names, name)
		entries = append(entries, fs.Entry{Name: name, Node: f})
	}
	root := fs.NewStaticDir(fs.PathID("serve/"+string(o.Point.ID)), o.Point.Time, entries...)
	space := func(context.Context) (fs.Space, error) { return diskSpace(r.Dir()) }
	if over != nil {
		space = func(context.Context) (fs.Space, error) { return diskSpace(over.dir) }
	}
	d.tree = fs.NewStatic(root, space)
	return d, nil
}

func diskFile(ctx context.Context, r *chunkstore.Reader, o *ServeOptions, over *overlays, n int) (fs.Node, error) {
	img, err := r.Image(o.Point, n)
	if err != nil {
		return nil, err
	}
	img.ReadAhead()
	if err := img.Lease(ctx); err != nil { // now, not at the first read: the disk is on offer from now on
		return nil, err
	}
	stream, err := synthetic.New(img, o.Format)
	if err != nil {
		return nil, errs.Wrap("publish disk", fmt.Sprint(n), err)
	}
	so := fs.StreamFileOptions{ID: diskFileID(o.Point, n, o.Format), When: o.Point.Time, Used: img.DataBytes(), Stream: stream}
	if over == nil {
		so.Perm = 0o440
		return fs.NewStreamFile(so), nil
	}
	w, err := over.open(ctx, o, n, stream)
	if err != nil {
		return nil, err
	}
	return fs.NewWritableStreamFile(so, w), nil
}
