package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func (a *app) storeCommand() *cobra.Command {
	status := &cobra.Command{
		Use: "status", Short: "Show what the store holds", Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error { return a.status(c.Context()) },
	}
	verify := &cobra.Command{
		Use: "verify [POINT]", Short: "Read everything the points need and compare it with its digests",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactly(1, "one point, or none for all of them")(c, args)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return a.verify(c.Context(), args) },
	}
	return group("store", "Look after the store", status, verify, a.keyCommand(), a.passphraseCommand(), a.ofNode(a.clockCommand()),
		a.auditCommand())
}

type statusJSON struct {
	Store        string  `json:"store"`
	UUID         string  `json:"uuid"`
	Created      string  `json:"created"`
	Cutter       string  `json:"cutter"`
	Digest       string  `json:"digest"`
	Compression  string  `json:"compression"`
	Points       int     `json:"points"`
	Damaged      int     `json:"damaged_points"`
	LogicalBytes int64   `json:"logical_bytes"`
	DataBytes    int64   `json:"data_bytes"`
	PackBytes    int64   `json:"pack_bytes"`
	Packs        int64   `json:"packs"`
	OpenPacks    int64   `json:"unfinished_packs"`
	DiskBytes    int64   `json:"disk_bytes"` // of all files, as the file system counts
	FreeBytes    int64   `json:"free_bytes"`
	DedupRatio   float64 `json:"dedup_ratio"`
}

func (a *app) status(ctx context.Context) error {
	r, err := a.reader(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	st, err := r.Status(ctx)
	if err != nil {
		return err
	}
	used, free, err := node.StoreSpace(r.Dir())
	if err != nil {
		return err
	}
	sb := r.Superblock()
	out := statusJSON{
		r.Dir(), sb.UUID.String(), sb.Created.Format(time.RFC3339), sb.Cutter, sb.Digest, sb.Compression, st.Points, st.DamagedPoint,
		st.LogicalBytes, st.DataBytes, st.PackBytes, st.Packs, st.OpenPacks, used, free, 0,
	}
	if used > 0 {
		out.DedupRatio = float64(st.DataBytes) / float64(used)
	}
	if err := a.print(out, func(w io.Writer) {
		fmt.Fprintf(w, "Store\t%s\n", out.Store)
		fmt.Fprintf(w, "Points\t%d\n", out.Points)
		fmt.Fprintf(w, "Disks in them\t%s, of it data %s\n", size(out.LogicalBytes), size(out.DataBytes))
		fmt.Fprintf(w, "Stored\t%s in %d packs; %s with index and records\n", size(out.PackBytes), out.Packs, size(out.DiskBytes))
		fmt.Fprintf(w, "Data to stored\t%.1f : 1\n", out.DedupRatio)
		fmt.Fprintf(w, "Free\t%s\n", size(out.FreeBytes))
		fmt.Fprintf(w, "Format\tcut %s, named %s, compressed %s, encrypted aes-256-gcm\n", out.Cutter, out.Digest, out.Compression)
		if out.OpenPacks > 0 {
			fmt.Fprintf(w, "Unfinished packs\t%d: a backup is running, or was killed and the next one will finish them\n", out.OpenPacks)
		}
	}); err != nil {
		return err
	}
	if st.DamagedPoint > 0 {
		return &partial{exitPartial, count(int64(st.DamagedPoint), "point record") + " cannot be read",
			"See `holdfast store verify`; put back a record from a copy of the store, or remove it with `holdfast point rm`."}
	}
	return nil
}

type verifyJSON struct {
	Points int64       `json:"points"`
	Disks  int64       `json:"disks"`
	Pages  int64       `json:"pages"`
	Chunks int64       `json:"chunks"`
	Bytes  int64       `json:"bytes"`
	Faults []faultJSON `json:"faults"`
	Count  int64       `json:"fault_count"`
}

type faultJSON struct {
	Point string `json:"point,omitempty"`
	Disk  int    `json:"disk"`
	Off   int64  `json:"offset"`
	Text  string `json:"error"`
}

func (a *app) verify(ctx context.Context, args []string) error {
	r, err := a.reader(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	points, bad := r.Points(ctx)
	if points == nil && len(bad) > 0 && !errs.Is(bad[0], errs.Corrupt) {
		return bad[0]
	}
	if len(args) == 1 {
		p, err := node.ResolvePoint(ctx, r, args[0], a.Now())
		if err != nil {
			return err
		}
		points, bad = []*chunkstore.Point{p}, nil
	}
	bar := a.progress()
	v, err := r.Verify(ctx, points, func(v chunkstore.Verified) {
		bar.show(func() string {
			return fmt.Sprintf("verifying: point %d of %d, %s in %d chunks read", v.Points, len(points), size(v.Bytes), v.Chunks)
		})
	})
	bar.done()
	if err != nil {
		return err
	}
	return a.printVerified(v, bad)
}

// printVerified prints what was found, and makes an error of faults.
func (a *app) printVerified(v chunkstore.Verified, bad []error) error {
	out := verifyJSON{v.Points, v.Disks, v.Pages, v.Chunks, v.Bytes, []faultJSON{}, v.FaultCount + int64(len(bad))}
	for _, err := range bad {
		out.Faults = append(out.Faults, faultJSON{Off: -1, Text: err.Error()})
	}
	for _, f := range v.Faults {
		out.Faults = append(out.Faults, faultJSON{string(f.Point), f.Disk, f.Off, f.Err.Error()})
	}
	if err := a.print(out, func(w io.Writer) {
		fmt.Fprintf(w, "Read and hashed again: %d points, %d disks, %d pages, %d chunks, %s.\n", out.Points, out.Disks, out.Pages, out.Chunks, size(out.Bytes))
		for _, f := range out.Faults {
			if f.Off < 0 {
				fmt.Fprintf(w, "DAMAGED: %s\n", f.Text)
			} else {
				fmt.Fprintf(w, "DAMAGED: point %s, disk %d, at byte %d: %s\n", f.Point, f.Disk, f.Off, f.Text)
			}
		}
		if out.Count == 0 {
			fmt.Fprintln(w, "No damage was found.")
		}
	}); err != nil {
		return err
	}
	if out.Count > 0 {
		return &partial{exitCorrupt, count(out.Count, "fault") + " found; what is not named above can be restored",
			"Put the damaged files back from a copy of the store, and look at the health of its disk."}
	}
	return nil
}
