package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/node"
)

func (a *app) storeCommand() *cobra.Command {
	status := &cobra.Command{
		Use: "status", Short: "Show what the store holds", Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error { return a.status(c.Context()) },
	}
	return group("store", "Look after the store", status, a.verifyCommand(), a.keyCommand(), a.passphraseCommand(), a.ofNode(a.gcCommand()), a.ofNode(a.clockCommand()),
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
	CompactPacks int64   `json:"compact_packs"`
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
		st.LogicalBytes, st.DataBytes, st.PackBytes, st.Packs, st.CompactPacks, st.OpenPacks, used, free, 0,
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
