package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/api"
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

	Damage api.Damage `json:"damage"`
	Scrub  api.Scrub  `json:"scrub"`
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
		st.LogicalBytes, st.DataBytes, st.PackBytes, st.Packs, st.CompactPacks, st.OpenPacks, used, free, 0, api.Damage{}, api.Scrub{},
	}
	if out.Damage, err = node.DamageOf(ctx, r); err != nil {
		a.note("It is not known what is damaged: " + err.Error())
	}
	if out.Scrub, err = node.ScrubOf(ctx, r); err != nil {
		return err
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
		a.damageTable(w, out.Damage, out.Scrub)
	}); err != nil {
		return err
	}
	if st.DamagedPoint > 0 {
		return &partial{exitPartial, count(int64(st.DamagedPoint), "point record") + " cannot be read",
			"See `holdfast store verify`; put back a record from a copy of the store, or remove it with `holdfast point rm`."}
	}
	return nil
}

// damageTable prints what is known of damage, and when it was looked for.
func (a *app) damageTable(w io.Writer, d api.Damage, s api.Scrub) {
	if d.Since != nil {
		fmt.Fprintf(w, "DAMAGED\t%s and %s", count(d.Chunks, "chunk"), count(d.Pages, "page"))
		if d.LostPacks > 0 {
			fmt.Fprintf(w, ", %s as a whole", count(d.LostPacks, "pack"))
		}
		fmt.Fprintf(w, ", known since %s; %s hit, %s of their disks\n", when(*d.Since), count(int64(d.Points), "point"), size(d.Bytes))
	}
	if d.Healed > 0 {
		fmt.Fprintf(w, "Healed\t%s, damaged in one place and good in another\n", damagedCount(d.Healed))
	}
	if r := s.Running; r != nil {
		fmt.Fprintf(w, "Scrub\tsince %s, %s read, %s left\n", when(r.Began), count(r.Packs, "pack"), size(s.LeftBytes))
	}
	for _, l := range []struct {
		name string
		pass *api.Pass
	}{{"Last scrub", s.Last}, {"Last verify", s.Verified}} {
		if p := l.pass; p != nil && p.Ended != nil {
			what := count(p.Packs, "pack") + " read"
			if p.Quick {
				what = count(p.Packs, "pack") + " looked at, not read"
			}
			fmt.Fprintf(w, "%s\tended %s: %s, %s\n", l.name, when(*p.Ended), what, count(p.Faults, "fault"))
		}
	}
}
