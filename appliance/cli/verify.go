package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func (a *app) verifyCommand() *cobra.Command {
	var quick bool
	c := &cobra.Command{
		Use: "verify [POINT]", Short: "Look for damage",
		Long: "Read the whole store, or all that POINT needs, and compare it with its digests. What is damaged is named, with\n" +
			"the points and the ranges of their disks that it hits. With --quick the content of chunks is not read, only\n" +
			"records, manifests, directories and headers: that finds what is missing, not what has rotted.",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactly(1, "one point, or none for all of them")(c, args)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return a.verify(c.Context(), args, quick) },
	}
	c.Flags().BoolVar(&quick, "quick", false, "do not read the content of chunks")
	return c
}

type verifyJSON struct {
	Points int64       `json:"points"`
	Disks  int64       `json:"disks"`
	Packs  int64       `json:"packs"`
	Pages  int64       `json:"pages"`
	Chunks int64       `json:"chunks"`
	Bytes  int64       `json:"bytes"`
	Faults []faultJSON `json:"faults"`
	Count  int64       `json:"fault_count"`
	Found  int64       `json:"quarantined"` // damaged chunks and pages that were not known
	Healed int64       `json:"healed"`      // that are damaged, and lie elsewhere too
	Lifted int64       `json:"lifted"`      // that were in quarantine, and are good again
}

type faultJSON struct {
	Object string `json:"object"`
	Chunk  string `json:"chunk,omitempty"`
	Page   string `json:"page,omitempty"`
	Point  string `json:"point,omitempty"`
	VM     string `json:"vm,omitempty"`
	Disk   int    `json:"disk"`
	Off    int64  `json:"offset"`
	Len    int64  `json:"length"`
	Text   string `json:"error"`
}

func (a *app) verify(ctx context.Context, args []string, quick bool) error {
	r, err := a.reader(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	points, bad := r.Points(ctx)
	if points == nil && len(bad) > 0 && !errs.Is(bad[0], errs.Corrupt) {
		return bad[0]
	}
	vms := map[chunkstore.PointID]string{}
	for _, p := range points {
		vms[p.ID] = node.VMOf(p)
	}
	bar := a.progress()
	show := func(v chunkstore.Verified) {
		bar.show(func() string {
			return fmt.Sprintf("verifying: %s, %s, %s in %d chunks read", count(v.Packs, "pack"), count(v.Points, "point"), size(v.Bytes), v.Chunks)
		})
	}
	began := a.Now()
	var v chunkstore.Verified
	if len(args) == 1 {
		var p *chunkstore.Point
		if p, err = node.ResolvePoint(ctx, r, args[0], a.Now()); err == nil && quick {
			v, err = r.VerifyQuick(ctx, []*chunkstore.Point{p}, show)
		} else if err == nil {
			v, err = r.Verify(ctx, []*chunkstore.Point{p}, show)
		}
	} else {
		v, err = r.VerifyStore(ctx, chunkstore.VerifyOptions{Quick: quick, Progress: show})
	}
	bar.done()
	if err != nil {
		return err
	}
	if len(args) == 0 && v.Unkept == nil {
		v.Unkept = r.KeepVerified(ctx, v, quick, began)
	}
	if v.Unkept != nil {
		a.note("What was found could not be written down in the store: " + v.Unkept.Error())
	}
	return a.printVerified(v, vms, quick)
}

// printVerified prints what was found, and makes an error of faults.
func (a *app) printVerified(v chunkstore.Verified, vms map[chunkstore.PointID]string, quick bool) error {
	out := verifyJSON{v.Points, v.Disks, v.Packs, v.Pages, v.Chunks, v.Bytes, []faultJSON{}, v.FaultCount, v.Quarantined, v.Healed, v.Lifted}
	for _, f := range v.Faults {
		j := faultJSON{
			Object: f.Object, Point: string(f.Point), VM: vms[f.Point], Disk: f.Disk, Off: f.Off, Len: f.Len, Text: f.Err.Error(),
		}
		switch {
		case f.Spot.ID.IsZero():
		case f.Spot.Kind == pack.Meta:
			j.Page = f.Spot.ID.String()
		default:
			j.Chunk = f.Spot.ID.String()
		}
		out.Faults = append(out.Faults, j)
	}
	if err := a.print(out, func(w io.Writer) {
		read := fmt.Sprintf("%s read and hashed again", size(out.Bytes))
		if quick {
			read = "their content was not read"
		}
		fmt.Fprintf(w, "Looked at %s with %s in %s: %s, %s; %s.\n", count(out.Points, "point"), count(out.Disks, "disk"),
			count(out.Packs, "pack"), count(out.Pages, "page"), count(out.Chunks, "chunk"), read)
		for _, f := range out.Faults {
			printFault(w, f)
		}
		if out.Count > int64(len(out.Faults)) {
			fmt.Fprintf(w, "%d more faults are not listed.\n", out.Count-int64(len(out.Faults)))
		}
		if out.Found > 0 {
			fmt.Fprintf(w, "In quarantine from now on: %s, until a backup brings the content again.\n", damagedCount(out.Found))
		}
		if out.Healed > 0 {
			fmt.Fprintf(w, "Healed: %s, damaged in one place and good in another; no point is hit by them.\n", damagedCount(out.Healed))
		}
		if out.Lifted > 0 {
			fmt.Fprintf(w, "Good again, and out of quarantine: %s.\n", damagedCount(out.Lifted))
		}
		if out.Count == 0 {
			fmt.Fprintln(w, "No damage was found.")
		}
	}); err != nil {
		return err
	}
	if out.Count > 0 {
		return &partial{exitCorrupt, count(out.Count, "fault") + " found; what is not named above can be restored",
			"Back up what is hit again: content that is still there heals old points too. Or put the damaged files back from a copy of the store. Look at the health of its disk."}
	}
	return nil
}

// printFault prints where a fault hits, and what it is.
func printFault(w io.Writer, f faultJSON) {
	where := f.Object + ", which no point needs to be read"
	if f.Chunk == "" && f.Page == "" {
		where = f.Object
	}
	if f.Off >= 0 {
		where = fmt.Sprintf("point %s of %s, disk %d, %s from byte %d on, in %s", f.Point, plain(f.VM), f.Disk, size(f.Len), f.Off, f.Object)
	}
	fmt.Fprintf(w, "DAMAGED: %s: %s\n", where, plain(f.Text))
}

// damagedCount counts what can be damaged in a pack.
func damagedCount(n int64) string {
	if n == 1 {
		return "1 chunk or page"
	}
	return fmt.Sprintf("%d chunks and pages", n)
}
