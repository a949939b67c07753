package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func (a *app) gcCommand() *cobra.Command {
	var dry, compact bool
	c := &cobra.Command{
		Use: "gc", Short: "Give back the space of what no restore point needs", Args: exactly(0, "no arguments"),
		Long: "Give back the space that removed restore points, and backups that were given up, have left. Backups, and\n" +
			"whatever reads points, go on meanwhile: what is being read stays, even if its point was removed. It can be cut\n" +
			"off at any time, and goes on with the next gc. If a node holds the store, the node does it, as a task.\n" +
			"With --compact what was stored in haste is then compressed again, with more care: about a tenth smaller, at some\n" +
			"20 MB/s for each processor.",
		RunE: func(c *cobra.Command, _ []string) error {
			if dry && compact {
				return usage(c.CommandPath(), "--dry-run with --compact: how much smaller packs become is not known before")
			}
			return a.gc(c.Context(), api.CollectSpec{DryRun: dry, Compact: compact})
		},
	}
	c.Flags().BoolVar(&compact, "compact", false, "then compress packs again that were never compressed with care")
	c.Flags().BoolVar(&dry, "dry-run", false, "only say how much that would be")
	return c
}

func (a *app) gc(ctx context.Context, spec api.CollectSpec) error {
	there := func(s api.Service) error { return a.gcThere(ctx, s, spec) }
	if a.flagged("node") {
		s, end, err := a.dial()
		if err != nil {
			return err
		}
		defer end()
		return fromNode(there(s))
	}
	return a.change(ctx, func(s *chunkstore.Store) error {
		bar := a.progress()
		r, err := node.Collect(ctx, s, node.CollectOptions{DryRun: spec.DryRun, Compact: spec.Compact, Progress: func(stage, detail string) {
			bar.show(func() string { return stage + ": " + detail })
		}})
		bar.done()
		if err != nil {
			return err
		}
		return a.printCollected(r)
	}, there)
}

// gcThere asks a node, and follows its task.
func (a *app) gcThere(ctx context.Context, s api.Service, spec api.CollectSpec) error {
	t, err := s.StartCollect(ctx, spec)
	if err != nil {
		return err
	}
	if t, err = a.follow(ctx, s, t, nil); err == nil {
		err = a.outcome(t)
	}
	if err != nil {
		return err
	}
	r, err := collected(t)
	if err != nil {
		return err
	}
	return a.printCollected(r)
}

// collected reads the result of a node's task.
func collected(t appliance.Task) (r node.CollectResult, err error) {
	b, err := json.Marshal(t.Result)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err == nil && t.Result["freed_bytes"] == nil {
		err = errors.New("it does not say how much was given back")
	}
	if err != nil {
		return r, errs.New("read result of task", t.ID, errs.Bug, err)
	}
	return r, nil
}

func (a *app) printCollected(r node.CollectResult) error {
	return a.print(r, func(w io.Writer) { collectedTable(w, r) })
}

func collectedTable(w io.Writer, r node.CollectResult) {
	name := "Given back"
	if r.DryRun {
		name = "Would be given back"
	}
	fmt.Fprintf(w, "%s\t%s\n", name, size(r.Freed))
	fmt.Fprintf(w, "  whole packs\t%s\n", size(r.WholePacks))
	fmt.Fprintf(w, "  parts of packs\t%s\n", size(r.Holes))
	fmt.Fprintf(w, "  manifests\t%s\n", size(r.Pages))
	fmt.Fprintf(w, "Packs\t%d removed, %d with holes made in them\n", r.Removed, r.Shrunk)
	fmt.Fprintf(w, "Chunks\t%d given back, %d kept\n", r.Chunks, r.KeptChunks)
	if r.SpareChunks > 0 {
		fmt.Fprintf(w, "Not worth it\t%s in %s, too scattered to be given back\n", size(r.SpareBytes), count(r.SpareChunks, "chunk"))
	}
	if r.Skipped > 0 {
		fmt.Fprintf(w, "Left alone\t%s: see the log (-v, or the node's), and `holdfast store verify`\n", count(int64(r.Skipped), "pack"))
	}
	if r.Compacted > 0 || r.CompactLeft > 0 {
		fmt.Fprintf(w, "Compressed again\t%s, which gave back %s; %d left for another time\n", count(int64(r.Compacted), "pack"), size(r.CompactGain), r.CompactLeft)
	}
	if r.CompactStop != "" {
		fmt.Fprintf(w, "Stopped\t%s\n", r.CompactStop)
	}
	if r.CompactBad > 0 {
		fmt.Fprintf(w, "Damaged\t%s left as found: run `holdfast store verify`\n", count(int64(r.CompactBad), "pack"))
	}
	if len(r.StillRead) > 0 {
		fmt.Fprintf(w, "Still read\t%s that were removed: %s; what they need comes free when nobody reads them any more\n",
			count(int64(len(r.StillRead)), "point"), strings.Join(r.StillRead, ", "))
	}
	fmt.Fprintf(w, "Took\t%.1f s\n", r.Seconds)
}
