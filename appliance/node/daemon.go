package node

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-backup/holdfast/appliance/config"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/portmap"
)

// daemonCacheBytes is how much of what was decoded the daemon keeps in memory.
const daemonCacheBytes = 256 << 20

// Run is the daemon: it shows a store's restore points as files, over NFS, or both, until ctx ends, which is a clean
// end. ready is called when everything that the configuration names is there.
func Run(ctx context.Context, c *config.Config, log *slog.Logger, ready func()) error {
	r, err := chunkstore.OpenReader(ctx, c.Store, chunkstore.Options{
		Logger: log, CacheBytes: daemonCacheBytes, Unlock: chunkstore.WithPassphrase(func() ([]byte, error) { return ReadPassphrase(c.PassphraseFile) }),
	})
	if err != nil {
		return err
	}
	defer r.Close()
	g, ctx := errgroup.WithContext(ctx)
	waiting := make(chan struct{}, 2)
	parts := 0
	if c.Mount != nil {
		parts++
		g.Go(func() error {
			return Mount(ctx, r, MountOptions{
				Dir: c.Mount.Dir, AllowOther: c.Mount.AllowOther, Logger: log,
				Note: func(s string) { log.Info(s) }, Ready: func() { waiting <- struct{}{} },
			})
		})
	}
	if c.NFS != nil {
		parts++
		g.Go(func() error { return servePoints(ctx, r, c.NFS, log, func() { waiting <- struct{}{} }) })
	}
	for range parts {
		select {
		case <-waiting:
		case <-ctx.Done():
			return g.Wait()
		}
	}
	log.Info("ready", "store", c.Store)
	ready()
	return g.Wait()
}

// servingKey is the purpose of the key that signs file handles.
const servingKey = "nfs file handles"

// pointsExport is the path under which all points are served.
const pointsExport = "/points"

// servePoints offers all points over NFS, read-only.
func servePoints(ctx context.Context, r *chunkstore.Reader, c *config.NFS, log *slog.Logger, ready func()) error {
	allow, err := c.Prefixes()
	if err != nil {
		return errs.New("serve points", c.Listen, errs.Invalid, err)
	}
	ln, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return errs.Wrap("serve points", c.Listen, err)
	}
	defer ln.Close()
	key := r.DerivedKey(servingKey)
	srv, err := nfsd.New(nfsd.Options{Key: key[:], Logger: log})
	if err != nil {
		return err
	}
	tree := below{NewPointsTree(r)}
	if err := srv.Add(nfsd.Export{Path: pointsExport, ID: 1, Tree: tree, Allow: allow, ReadOnly: true}); err != nil {
		return err
	}
	if c.Portmap {
		at := netip.MustParseAddrPort(c.Listen)
		pm, err := portmap.ListenLog(ctx, netip.AddrPortFrom(at.Addr(), 111).String(), nfsd.PortmapEntries(at.Port()), log)
		if err != nil {
			return errs.Wrap("serve points", c.Listen, err)
		}
		defer pm.Close()
	}
	return serveUntil(ctx, srv, ln, log, ready, nil)
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
