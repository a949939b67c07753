package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/config"
	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/fs/synthetic"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func (a *app) serveCommand() *cobra.Command {
	var o node.ServeOptions
	var number int
	var cache int64
	var format string
	var allow []string
	c := &cobra.Command{
		Use: "serve POINT --nfs ADDR:PORT", Short: "Offer the disks of a point over NFS, until interrupted", Args: exactly(1, "a point"),
		Long: "Offer the disks of a restore point over NFS v3 in the foreground, until SIGINT or SIGTERM. When the server is\n" +
			"ready it prints one line of JSON with the URLs of the disks. SIGUSR1 makes it print its counters as one more.\n" +
			"The point itself is never changed: what is written lies in an overlay, which is dropped at the end.",
		RunE: func(c *cobra.Command, args []string) (err error) {
			if o.Addr == "" {
				return usage(c.CommandPath(), "no address was named: use --nfs ADDR:PORT")
			}
			if o.Format, err = synthetic.ParseFormat(format); err != nil {
				return err
			}
			if c.Flags().Changed("disk") {
				o.Disks = []int{number}
			}
			if o.Overlay != "" && !o.Writable {
				return usage(c.CommandPath(), "--overlay is for what is written: say --writable too")
			}
			if o.Allow, err = parseAllow(allow); err != nil {
				return err
			}
			return a.serve(c.Context(), args[0], cache, o)
		},
	}
	cacheFlag(c, &cache)
	f := c.Flags()
	f.StringVar(&o.Addr, "nfs", "", "address and port to listen on; port 0 takes a free one")
	f.BoolVar(&o.Portmap, "portmap", false, "answer on port 111 of the address too (qemu's nfs driver asks there)")
	f.BoolVar(&o.Writable, "writable", false, "take writes, into an overlay")
	f.StringVar(&o.Overlay, "overlay", "", "folder of an overlay to keep, and to go on with if it exists")
	f.StringVar(&format, "format", "qcow2", "qcow2 (computed on the fly) or raw")
	f.IntVar(&number, "disk", 0, "number of the disk (default: all)")
	f.StringSliceVar(&allow, "allow", nil, "networks or addresses that may connect (default: this machine and the networks that ADDR lies in)")
	return c
}

func parseAllow(texts []string) ([]netip.Prefix, error) {
	nets, err := config.ParseNetworks(texts)
	if err != nil {
		return nil, usage("holdfast point serve", "--allow: "+err.Error())
	}
	return nets, nil
}

func (a *app) serve(ctx context.Context, name string, cache int64, o node.ServeOptions) error {
	r, err := a.cachingReader(ctx, cache)
	if err != nil {
		return err
	}
	defer r.Close()
	if o.Point, err = node.ResolvePoint(ctx, r, name, a.Now()); err != nil {
		return err
	}
	o.Logger, o.Note, o.Stats = a.logger(), a.note, a.Stats
	var failed error
	o.Ready = func(s node.ServeReady) {
		failed = a.line(s)
		a.note(fmt.Sprintf("Serving point %s of %s as %s; writes are %s; end it with Ctrl-C.", s.Point, node.VMOf(o.Point), s.Format, s.Writes))
		for _, u := range s.URLs {
			a.note("  " + u)
		}
	}
	o.OnStats = func(s node.ServeStats) {
		if err := a.line(map[string]node.ServeStats{"stats": s}); err != nil {
			failed = err
		}
	}
	if err := node.Serve(ctx, r, o); err != nil {
		return err
	}
	return errs.Wrap("print", "", failed)
}

// line prints one JSON document on a line of its own, whatever the output format: commands that go on are read by
// programs.
func (a *app) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = a.Stdout.Write(append(b, '\n'))
	return err
}

func (a *app) mountCommand() *cobra.Command {
	var o node.MountOptions
	var cache int64
	c := &cobra.Command{
		Use: "mount DIR", Short: "Show all restore points as files below a folder, until interrupted", Args: exactly(1, "a folder"),
		Long: "Show all restore points as read-only files below DIR in the foreground, until SIGINT, SIGTERM or umount:\n" +
			"points/<machine>/<time>/disk<N>.raw and .qcow2. It prints one line when the files are there.",
		RunE: func(c *cobra.Command, args []string) error {
			o.Dir = args[0]
			return a.mount(c.Context(), cache, o)
		},
	}
	cacheFlag(c, &cache)
	c.Flags().BoolVar(&o.AllowOther, "allow-other", false, "let other users of this machine read as well")
	return c
}

func (a *app) mount(ctx context.Context, cache int64, o node.MountOptions) error {
	r, err := a.cachingReader(ctx, cache)
	if err != nil {
		return err
	}
	defer r.Close()
	var failed error
	o.Logger, o.Note = a.logger(), a.note
	o.Ready = func() {
		failed = a.line(map[string]string{"mounted": o.Dir})
		a.note("The points are below " + o.Dir + "/points; end it with Ctrl-C.")
	}
	if err := node.Mount(ctx, r, o); err != nil {
		return err
	}
	return errs.Wrap("print", "", failed)
}
