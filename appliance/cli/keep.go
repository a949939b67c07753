package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/fs/synthetic"
)

func (a *app) keepCommand() *cobra.Command {
	var o node.KeepOptions
	var format string
	c := &cobra.Command{
		Use: "keep POINT --overlay DIR", Short: "Make a new point of what was written to a served one", Args: exactly(1, "the point that was served"),
		Long: "Make a new restore point of POINT and what was written to it while it was served with --writable --overlay DIR.\n" +
			"Only what was written is read. The overlay stays as it is, and can be served on. While it is served it cannot\n" +
			"be kept. (For a VM that runs from its backup see `holdfast session keep`.)",
		RunE: func(c *cobra.Command, args []string) (err error) {
			if o.Overlay == "" {
				return usage(c.CommandPath(), "no overlay was named: use --overlay DIR")
			}
			if format != "" {
				if o.Format, err = synthetic.ParseFormat(format); err != nil {
					return err
				}
			}
			return a.keep(c.Context(), args[0], o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Overlay, "overlay", "", "folder that the point was served with")
	f.StringVar(&format, "format", "", "qcow2 or raw, as it was served (default: whichever the folder holds)")
	f.StringVar(&o.VM, "vm", "", "name of the machine that the new point is of (default: the old one's)")
	return c
}

func (a *app) keep(ctx context.Context, name string, o node.KeepOptions) error {
	s, err := a.writer(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	if o.Point, err = node.ResolvePoint(ctx, s, name, a.Now()); err != nil {
		return err
	}
	bar := a.progress()
	o.Now = a.Now()
	o.Progress = func(done, total int64) {
		bar.show(func() string { return "keeping: " + bar.part(done, total) })
	}
	res, err := node.KeepOverlay(ctx, s, o)
	bar.done()
	if err != nil {
		return err
	}
	return a.print(res, func(w io.Writer) {
		fmt.Fprintf(w, "Point\t%s\n", res.Point)
		fmt.Fprintf(w, "Machine\t%s\n", res.VM)
		fmt.Fprintf(w, "Made of\tpoint %s and the overlay in %s\n", res.Parent, o.Overlay)
		fmt.Fprintf(w, "Written\t%s, of it new %s\n", size(res.Written), size(res.New))
		fmt.Fprintf(w, "Stored\t%s in %.1f s\n", size(res.Stored), res.Seconds)
	})
}
