package cli

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/chunkstore"
)

func (a *app) diffCommand() *cobra.Command {
	var number int
	var exact bool
	c := &cobra.Command{
		Use: "diff POINT POINT", Short: "List the ranges in which the second point differs from the first", Args: exactly(2, "two points"),
		Long: "List the ranges of each disk in which the second point differs from the first, and whether the second holds\n" +
			"data or zeros there. Only what differs is looked at, so this is quick, however large the disks are. A range\n" +
			"is as long as the chunks that differ: bytes in it may be equal. With --exact the data in the ranges is read and\n" +
			"compared in blocks of 4 KiB.",
		RunE: func(c *cobra.Command, args []string) error {
			var disk *int
			if c.Flags().Changed("disk") {
				disk = &number
			}
			return a.diff(c.Context(), args[0], args[1], disk, exact)
		},
	}
	c.Flags().IntVar(&number, "disk", 0, "only that disk (default: all)")
	c.Flags().BoolVar(&exact, "exact", false, "read what may differ, and list only the blocks that do")
	return c
}

// diffJSON is what differs in one disk.
type diffJSON struct {
	Disk    int         `json:"disk"`
	From    string      `json:"from"`
	To      string      `json:"to"`
	SizeA   *int64      `json:"from_size_bytes,omitempty"` // absent if the point does not have the disk
	SizeB   *int64      `json:"to_size_bytes,omitempty"`
	Ranges  []rangeJSON `json:"ranges"`
	Changed int64       `json:"changed_bytes"`
	Data    int64       `json:"data_bytes"` // of them
}

type rangeJSON struct {
	Off  int64  `json:"offset"`
	Len  int64  `json:"length"`
	Kind string `json:"kind"` // "data" or "zero"
}

func (a *app) diff(ctx context.Context, first, second string, number *int, exact bool) error {
	r, err := a.reader(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	var points [2]*chunkstore.Point
	for i, name := range []string{first, second} {
		if points[i], err = node.ResolvePoint(ctx, r, name, a.Now()); err != nil {
			return err
		}
		release, err := r.Lease(ctx, points[i].ID) // a collection must not take away what is looked at
		if err != nil {
			return err
		}
		defer release()
	}
	numbers, err := disksToCompare(points, number)
	if err != nil {
		return err
	}
	out := []diffJSON{}
	for _, n := range numbers {
		d, err := diffDisk(ctx, r, points, n, exact)
		if err != nil {
			return err
		}
		out = append(out, d)
	}
	return a.print(out, func(w io.Writer) { printDiff(w, out) })
}

// disksToCompare returns the numbers of all disks that one of the points has, or the one that was asked for, which both
// must have.
func disksToCompare(points [2]*chunkstore.Point, number *int) ([]int, error) {
	var all []int
	for _, p := range points {
		if number != nil {
			if _, err := p.Disk(*number); err != nil {
				return nil, err
			}
			all = append(all, *number)
			continue
		}
		for _, d := range p.Disks {
			all = append(all, d.Number)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func diffDisk(ctx context.Context, r *chunkstore.Reader, points [2]*chunkstore.Point, number int, exact bool) (diffJSON, error) {
	out := diffJSON{Disk: number, From: string(points[0].ID), To: string(points[1].ID), Ranges: []rangeJSON{}}
	// A point that does not have the disk has one of no bytes.
	from, err := points[0].Disk(number)
	if err == nil {
		out.SizeA = &from.Root.Size
	}
	to, err := points[1].Disk(number)
	if err == nil {
		out.SizeB = &to.Root.Size
	}
	err = r.Diff(ctx, from, to, exact, func(d chunkstore.Difference) error {
		kind := "zero"
		if out.Changed += d.Len; d.Data {
			kind, out.Data = "data", out.Data+d.Len
		}
		out.Ranges = append(out.Ranges, rangeJSON{d.Off, d.Len, kind})
		return nil
	})
	return out, err
}

func printDiff(w io.Writer, disks []diffJSON) {
	if slices.ContainsFunc(disks, func(d diffJSON) bool { return len(d.Ranges) > 0 }) {
		fmt.Fprintln(w, "DISK\tOFFSET\tLENGTH\tNOW")
	}
	for _, d := range disks {
		for _, r := range d.Ranges {
			fmt.Fprintf(w, "%d\t%d\t%d\t%s\n", d.Disk, r.Off, r.Len, r.Kind)
		}
	}
	for _, d := range disks {
		fmt.Fprintf(w, "Disk %d: %s\n", d.Disk, d.sentence())
	}
}

// sentence says in words what differs.
func (d diffJSON) sentence() string {
	changed := fmt.Sprintf("%s in %s, of it data %s", size(d.Changed), count(int64(len(d.Ranges)), "range"), size(d.Data))
	switch {
	case d.SizeB == nil:
		return fmt.Sprintf("%s does not have it", d.To)
	case d.SizeA == nil:
		return fmt.Sprintf("%s does not have it; new are %s", d.From, changed)
	case *d.SizeA != *d.SizeB:
		return fmt.Sprintf("%s; it had %d bytes and has %d", changed, *d.SizeA, *d.SizeB)
	case d.Changed == 0:
		return "no difference"
	}
	return changed
}
