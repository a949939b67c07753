package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/imagefile"
	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/fs/synthetic"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func (a *app) diskCommand() *cobra.Command {
	var o node.ImportOptions
	var format string
	c := &cobra.Command{
		Use: "import FILE --vm NAME", Short: "Keep the disk in an image file as a new restore point",
		Long: "Keep the disk in FILE (raw or qcow2) as a new restore point of the machine NAME. It is compared with the\n" +
			"machine's last point that holds the disk: only what differs is stored. Holes are not read. If FILE is a\n" +
			"qcow2 image with a dirty bitmap named holdfast-POINT, after that last point, only what the bitmap records\n" +
			"is read: `qemu-img bitmap --add FILE holdfast-POINT` makes one.",
		Args: exactly(1, "the image file"),
		RunE: func(c *cobra.Command, args []string) error {
			o.File, o.Format = args[0], imagefile.Format(format)
			return a.importDisk(c.Context(), o)
		},
	}
	c.Flags().StringVar(&o.VM, "vm", "", "name of the machine the disk belongs to")
	c.Flags().IntVar(&o.Disk, "disk", 0, "number of the disk, from 0")
	c.Flags().StringVar(&format, "format", "", "raw or qcow2 (default: by the file's first bytes)")
	return group("disk", "Work with disks", c)
}

func (a *app) importDisk(ctx context.Context, o node.ImportOptions) error {
	s, err := a.writer(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	bar := a.progress()
	o.Now, o.Note = a.Now(), a.note
	o.Progress = func(p node.ImportProgress) {
		bar.show(func() string {
			return fmt.Sprintf("importing: %s; read %s, new %s, stored %s", bar.part(p.DoneBytes, p.SizeBytes),
				size(p.ReadBytes), size(p.Stats.NewBytes), size(p.Stats.StoredBytes))
		})
	}
	res, err := node.Import(ctx, s, o)
	bar.done()
	if err != nil {
		return err
	}
	return a.print(res, func(w io.Writer) {
		fmt.Fprintf(w, "Point\t%s\n", res.Point)
		fmt.Fprintf(w, "Machine\t%s, disk %d\n", res.VM, res.Disk)
		fmt.Fprintf(w, "Disk\t%s, of it data %s\n", size(res.SizeBytes), size(res.DataBytes))
		fmt.Fprintf(w, "Read\t%s in %.1f s\n", size(res.ReadBytes), res.Seconds)
		fmt.Fprintf(w, "New\t%s\n", size(res.NewBytes))
		fmt.Fprintf(w, "Stored\t%s\n", size(res.StoredBytes))
		fmt.Fprintf(w, "Data to stored\t%.1f : 1\n", res.DedupRatio)
	})
}

func (a *app) pointCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List restore points, oldest first", Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error { return a.listPoints(c.Context()) },
	}
	var sum bool
	show := &cobra.Command{
		Use: "show POINT", Short: "Show a restore point", Args: exactly(1, "a point"),
		RunE: func(c *cobra.Command, args []string) error { return a.showPoint(c.Context(), args[0], sum) },
	}
	show.Flags().BoolVar(&sum, "sha256", false, "read each disk and print the SHA-256 of its bytes")
	rm := &cobra.Command{
		Use: "rm POINT", Short: "Remove a restore point", Args: exactly(1, "a point"),
		Long: "Remove a restore point. Points share what they have in common, so other points are not touched.\n" +
			"A point whose record is damaged must be named by its whole id.\n" +
			"The space that only this point used comes back with the next `holdfast store gc`.",
		RunE: func(c *cobra.Command, args []string) error { return a.removePoint(c.Context(), args[0]) },
	}
	return group("point", "Work with restore points", list, show, a.diffCommand(), a.ofNode(rm), a.ofNode(a.lockCommand()), a.exportCommand(), a.serveCommand(), a.keepCommand())
}

type pointJSON struct {
	Point  string            `json:"point"`
	VM     string            `json:"vm"`
	Time   string            `json:"time"`
	Labels map[string]string `json:"labels,omitempty"`
	Disks  []diskJSON        `json:"disks"`
	Locked string            `json:"locked_until,omitempty"`
	Hurt   int64             `json:"damaged_bytes,omitempty"`
	Since  string            `json:"damaged_since,omitempty"`
}

type diskJSON struct {
	Disk   int    `json:"disk"`
	Size   int64  `json:"size_bytes"`
	Data   int64  `json:"data_bytes"`
	Root   string `json:"root"`
	SHA256 string `json:"sha256,omitempty"`
}

func toJSON(p *chunkstore.Point) pointJSON {
	out := pointJSON{Point: string(p.ID), VM: node.VMOf(p), Time: p.Time.UTC().Format(time.RFC3339Nano), Disks: []diskJSON{}}
	for _, d := range p.Disks {
		out.Disks = append(out.Disks, diskJSON{Disk: d.Number, Size: d.Root.Size, Data: d.Root.Data, Root: d.Root.Digest.String()})
	}
	return out
}

// hurts tells which points are hit by damage. That it cannot be told hides no point.
func (a *app) hurts(ctx context.Context, r *chunkstore.Reader, points []*chunkstore.Point) map[chunkstore.PointID]chunkstore.Hurt {
	hurts, err := r.Hurts(ctx, points)
	if err != nil {
		a.note("It is not known which points are damaged: " + err.Error())
	}
	return hurts
}

// withHurt adds what of a point is known to be damaged.
func withHurt(p pointJSON, hurts map[chunkstore.PointID]chunkstore.Hurt) pointJSON {
	if h, hit := hurts[chunkstore.PointID(p.Point)]; hit {
		p.Hurt, p.Since = h.Bytes, h.Since.UTC().Format(time.RFC3339)
	}
	return p
}

func (a *app) listPoints(ctx context.Context) error {
	r, err := a.reader(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	points, bad := r.Points(ctx)
	if points == nil && len(bad) > 0 && !errs.Is(bad[0], errs.Corrupt) {
		return bad[0]
	}
	out := []pointJSON{}
	hurts := a.hurts(ctx, r, points)
	for _, p := range points {
		out = append(out, withHurt(a.withLock(ctx, r, toJSON(p)), hurts))
	}
	if err := a.print(out, func(w io.Writer) {
		if len(out) == 0 {
			fmt.Fprintln(w, "There are no restore points yet. Make one with `holdfast disk import FILE --vm NAME`.")
			return
		}
		fmt.Fprintln(w, "POINT\tVM\tTIME\tDISKS\tSIZE\tDATA\tLOCKED UNTIL\tDAMAGED")
		for i, p := range out {
			var sum, data int64
			var disks []string
			for _, d := range p.Disks {
				sum, data = sum+d.Size, data+d.Data
				disks = append(disks, fmt.Sprint(d.Disk))
			}
			damaged := ""
			if p.Hurt > 0 {
				damaged = size(p.Hurt)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Point, p.VM, when(points[i].Time), strings.Join(disks, ","), size(sum), size(data),
				p.Locked, damaged)
		}
	}); err != nil {
		return err
	}
	for _, err := range bad {
		a.note("holdfast: " + err.Error())
	}
	if len(bad) > 0 {
		return &partial{exitPartial, count(int64(len(bad)), "point") + " cannot be read, and not listed; all others are above",
			"See `holdfast store verify`; put back a record from a copy of the store, or remove it with `holdfast point rm`."}
	}
	return nil
}

func (a *app) showPoint(ctx context.Context, name string, sum bool) error {
	r, err := a.reader(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	p, err := node.ResolvePoint(ctx, r, name, a.Now())
	if err != nil {
		return err
	}
	hurts := a.hurts(ctx, r, []*chunkstore.Point{p})
	out := withHurt(a.withLock(ctx, r, toJSON(p)), hurts)
	out.Labels = p.Labels
	if sum {
		bar := a.progress()
		for i := range out.Disks {
			img, err := r.Image(p, out.Disks[i].Disk)
			if err != nil {
				return err
			}
			out.Disks[i].SHA256, err = node.SHA256(ctx, img, func(done, all int64) {
				bar.show(func() string { return fmt.Sprintf("hashing disk %d: %s", out.Disks[i].Disk, bar.part(done, all)) })
			})
			bar.done()
			if err != nil {
				return err
			}
		}
	}
	return a.print(out, func(w io.Writer) {
		fmt.Fprintf(w, "Point\t%s\n", out.Point)
		fmt.Fprintf(w, "Machine\t%s\n", out.VM)
		fmt.Fprintf(w, "Time\t%s\n", when(p.Time))
		fmt.Fprintf(w, "Read from\t%s\n", p.Labels[appliance.LabelSource])
		if out.Locked != "" {
			fmt.Fprintf(w, "Locked until\t%s\n", out.Locked)
		}
		if out.Hurt > 0 {
			fmt.Fprintf(w, "DAMAGED\t%s of its disks cannot be read, known since %s\n", size(out.Hurt), out.Since)
		}
		for _, d := range out.Disks {
			fmt.Fprintf(w, "Disk %d\t%s, of it data %s\n", d.Disk, size(d.Size), size(d.Data))
			fmt.Fprintf(w, "  root\t%s\n", d.Root)
			if d.SHA256 != "" {
				fmt.Fprintf(w, "  sha256\t%s\n", d.SHA256)
			}
		}
	})
}

func (a *app) removePoint(ctx context.Context, name string) error {
	removed := func(id, what string) error {
		return a.print(map[string]string{"point": id}, func(w io.Writer) {
			fmt.Fprintf(w, "Removed point %s, %s. Its space comes back with `holdfast store gc`.\n", id, what)
		})
	}
	return a.change(ctx, func(s *chunkstore.Store) error {
		id, what := chunkstore.PointID(name), "whose record was damaged"
		p, err := node.ResolvePoint(ctx, s, name, a.Now())
		switch {
		case err == nil:
			id, what = p.ID, "of "+node.VMOf(p)+", "+when(p.Time)
		case !errs.Is(err, errs.Corrupt) || !id.Valid():
			return err
		}
		if err := s.RemovePoint(ctx, id); err != nil {
			return err
		}
		return removed(string(id), what)
	}, func(s api.Service) error {
		p, err := s.RemovePoint(ctx, name)
		if err != nil {
			return err
		}
		return removed(p.Point, "of "+plain(p.VM)+", "+when(p.Time))
	})
}

func (a *app) exportCommand() *cobra.Command {
	var o node.ExportOptions
	var number int
	var format string
	c := &cobra.Command{
		Use: "export POINT --to FILE", Short: "Write a disk of a point to a file", Args: exactly(1, "a point"),
		Long: "Write a disk of a restore point to FILE, sparse, with the exact size and bytes it had when it was stored.",
		RunE: func(c *cobra.Command, args []string) (err error) {
			if o.To == "" {
				return usage(c.CommandPath(), "no file was named: use --to FILE")
			}
			if o.Format, err = synthetic.ParseFormat(format); err != nil {
				return err
			}
			return a.export(c.Context(), args[0], number, o)
		},
	}
	c.Flags().StringVar(&o.To, "to", "", "file to write")
	c.Flags().IntVar(&number, "disk", 0, "number of the disk")
	c.Flags().StringVar(&format, "format", "raw", "raw or qcow2")
	c.Flags().BoolVar(&o.Force, "force", false, "replace the file if it exists")
	return c
}

type exportJSON struct {
	Point   string  `json:"point"`
	Disk    int     `json:"disk"`
	File    string  `json:"file"`
	Format  string  `json:"format"`
	Size    int64   `json:"size_bytes"`
	Seconds float64 `json:"seconds"`
}

func (a *app) export(ctx context.Context, name string, number int, o node.ExportOptions) error {
	r, err := a.reader(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	p, err := node.ResolvePoint(ctx, r, name, a.Now())
	if err != nil {
		return err
	}
	img, err := r.Image(p, number)
	if err != nil {
		return err
	}
	began, bar := time.Now(), a.progress()
	o.Progress = func(done, all int64) {
		bar.show(func() string { return "exporting: " + bar.part(done, all) })
	}
	err = node.Export(ctx, img, o)
	bar.done()
	if err != nil {
		return err
	}
	out := exportJSON{string(p.ID), number, o.To, string(o.Format), img.Size(), time.Since(began).Seconds()}
	return a.print(out, func(w io.Writer) {
		fmt.Fprintf(w, "Wrote disk %d of point %s to %s as %s: %s in %.1f s.\n", number, p.ID, o.To, o.Format, size(out.Size), out.Seconds)
	})
}
