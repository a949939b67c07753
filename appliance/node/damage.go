package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/scrub"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// DamageOf says what is known of damage in a store, and whom it hits.
func DamageOf(ctx context.Context, r *chunkstore.Reader) (api.Damage, error) {
	var out api.Damage
	q, err := r.Quarantined(ctx)
	if err != nil {
		return out, err
	}
	out = api.Damage{Chunks: q.Chunks, Pages: q.Pages, LostPacks: q.LostPacks, Healed: q.Healed}
	if q.Since.IsZero() {
		return out, nil
	}
	out.Since = &q.Since
	points, _ := r.Points(ctx)
	hurts, err := r.Hurts(ctx, points)
	for _, h := range hurts {
		out.Points++
		out.Bytes += h.Bytes
	}
	return out, err
}

// ScrubOf says how a store is scrubbed.
func ScrubOf(ctx context.Context, r *chunkstore.Reader) (api.Scrub, error) {
	st, err := r.ScrubStatus(ctx)
	return api.Scrub{Running: passOf(st.Pass), LeftBytes: st.Left, Last: passOf(st.Last), Verified: passOf(st.Verified)}, err
}

func passOf(p *chunkstore.Pass) *api.Pass {
	if p == nil {
		return nil
	}
	out := &api.Pass{Began: p.Began, Quick: p.Quick, Packs: p.Packs, Bytes: p.Bytes, Found: p.Found, Faults: p.Faults, Objects: p.Objects}
	if !p.Ended.IsZero() {
		out.Ended = &p.Ended
	}
	return out
}

// scrubRetry is how long a scrub that failed is not tried again.
const scrubRetry = 10 * time.Minute

// scrubByItself reads the store again and again, beside what the node does.
func (n *Node) scrubByItself(ctx context.Context) {
	for ctx.Err() == nil {
		err := n.store.Scrub(ctx, chunkstore.ScrubOptions{
			Plan: scrub.Plan{Period: n.o.ScrubEvery, Limit: n.o.ScrubLimit}, Busy: n.working,
		})
		if err == nil {
			return
		}
		n.log.Error("the scrub has failed, and is tried again later", "err", err)
		select {
		case <-time.After(scrubRetry):
		case <-ctx.Done():
		}
	}
}

// damageLook is how often the node looks whether anybody has found damage: the scrub, a read, a verification.
const damageLook = time.Minute

// watchDamage tells of damage, once, as a task that has failed.
func (n *Node) watchDamage(ctx context.Context) {
	for {
		if err := n.tellOfDamage(ctx); err != nil && ctx.Err() == nil {
			n.log.Error("what is known of damage cannot be told", "err", err)
		}
		select {
		case <-time.After(damageLook):
		case <-ctx.Done():
			return
		}
	}
}

// tellOfDamage makes a task of damage that nobody was told of. A crash between the two writes tells twice.
func (n *Node) tellOfDamage(ctx context.Context) error {
	newest, err := n.store.NewDamage(ctx)
	if err != nil || newest.IsZero() {
		return err
	}
	d, err := DamageOf(ctx, n.store.Reader)
	if err != nil {
		return err
	}
	cause, err := n.damageText(ctx, d)
	if err != nil {
		return err
	}
	t := appliance.Task{Kind: appliance.TaskScrub}
	_, err = n.tasks.Start(t, func(context.Context, *task.Handle) (map[string]any, error) {
		return nil, errs.Text("keep", n.store.Dir(), errs.Corrupt, cause).
			WithNext("Back up the VMs that are hit: what they still have heals the old points too. Look at the health of the store's disk, and run `holdfast store verify`.")
	})
	if err != nil {
		return err
	}
	n.log.Error("the store is damaged", "chunks", d.Chunks, "pages", d.Pages, "lost_packs", d.LostPacks, "points", d.Points, "bytes", d.Bytes)
	return n.store.ToldOfDamage(ctx, newest)
}

// damageText says for people what is hit.
func (n *Node) damageText(ctx context.Context, d api.Damage) (string, error) {
	points, _ := n.store.Points(ctx)
	hurts, err := n.store.Hurts(ctx, points)
	if err != nil {
		return "", err
	}
	var vms []string
	for _, p := range points {
		if _, hit := hurts[p.ID]; hit && !slices.Contains(vms, VMOf(p)) {
			vms = append(vms, VMOf(p))
		}
	}
	text := fmt.Sprintf("damage was found: %d chunks and pages cannot be read", d.Chunks+d.Pages)
	if d.LostPacks > 0 {
		text += fmt.Sprintf(", nor anything in %d packs", d.LostPacks)
	}
	if len(vms) == 0 {
		return text + "; no restore point is hit", nil
	}
	slices.Sort(vms)
	if len(vms) > 8 {
		vms = append(vms[:8], "…")
	}
	return text + fmt.Sprintf("; %d restore points are hit, of %s", d.Points, strings.Join(vms, ", ")), nil
}
