package node

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// ListPoints implements api.Service.
func (n *Node) ListPoints(ctx context.Context) ([]api.Point, []error) {
	points, bad := n.store.Points(ctx)
	hurts, err := n.store.Hurts(ctx, points)
	if err != nil {
		bad = append(bad, err)
	}
	out := make([]api.Point, 0, len(points))
	for _, p := range points {
		a := n.showPoint(ctx, p)
		if h, hit := hurts[p.ID]; hit {
			a.DamagedBytes, a.DamagedSince = h.Bytes, &h.Since
		}
		out = append(out, a)
	}
	return out, bad
}

func (n *Node) showPoint(ctx context.Context, p *chunkstore.Point) api.Point {
	a := api.Point{Point: string(p.ID), VM: VMOf(p), Time: p.Time, Mode: p.Labels[appliance.LabelMode]}
	for _, d := range p.Disks {
		a.Size += d.Root.Size
		a.Data += d.Root.Data
	}
	l, err := n.store.PointLock(ctx, p.ID)
	switch {
	case err == nil:
		a.LockedUntil = &l.Until
	case !errs.Is(err, errs.NotFound):
		n.log.Error("a point's lock cannot be read: it counts as one that holds", "point", p.ID, "err", err)
	}
	return a
}

// RemovePoint implements api.Service. A point with a damaged record is named by its whole ID.
func (n *Node) RemovePoint(ctx context.Context, point string) (api.Point, error) {
	shown := api.Point{Point: point}
	p, err := ResolvePoint(ctx, n.store, point, time.Now())
	id := chunkstore.PointID(point)
	switch {
	case err == nil:
		id, shown = p.ID, n.showPoint(ctx, p)
	case !errs.Is(err, errs.Corrupt) || !id.Valid():
		return shown, err
	}
	if s := n.sessionOf(string(id)); s != "" {
		return shown, errs.Text("remove point", string(id), errs.Busy, "a VM runs from it, in session "+s).
			WithNext("End the session first: holdfast session release " + s)
	}
	if err := n.store.RemovePoint(ctx, id); err != nil {
		return shown, err
	}
	n.log.Info("point removed", "point", id, "vm", shown.VM)
	return shown, nil
}

// sessionOf returns the session that a point is used by, or "".
func (n *Node) sessionOf(point string) string {
	rs, bad := n.records()
	for _, err := range bad {
		n.log.Error("a session's record cannot be read", "err", err)
	}
	for _, r := range rs {
		if r.Point == point && !ended(r.State) {
			return r.ID
		}
	}
	return ""
}

// LockPoint implements api.Service.
func (n *Node) LockPoint(ctx context.Context, s api.LockSpec) (api.Point, error) {
	p, err := ResolvePoint(ctx, n.store, s.Point, time.Now())
	if err != nil {
		return api.Point{}, err
	}
	if _, err := n.store.LockPoint(ctx, p.ID, s.Until, s.Reason); err != nil {
		return api.Point{}, err
	}
	return n.showPoint(ctx, p), nil
}

// GetStore implements api.Service.
func (n *Node) GetStore(ctx context.Context) (api.StoreInfo, error) {
	c, err := n.store.Clock(ctx)
	i := api.StoreInfo{UUID: n.store.Superblock().UUID.String(), Dir: n.store.Dir(), Clock: time.Now().UTC(), Doubtful: c.Doubtful()}
	if !c.Seen.IsZero() {
		i.Believed = &c.Seen
	}
	if errs.Is(err, errs.Corrupt) { // what cannot be read is not believed
		i.Doubtful, err = true, nil
	}
	if err == nil {
		i.Damage, err = DamageOf(ctx, n.store.Reader)
	}
	if err == nil {
		i.Scrub, err = ScrubOf(ctx, n.store.Reader)
	}
	return i, err
}

// ConfirmClock implements api.Service.
func (n *Node) ConfirmClock(ctx context.Context) (api.StoreInfo, error) {
	if _, err := n.store.ConfirmClock(ctx); err != nil {
		return api.StoreInfo{}, err
	}
	return n.GetStore(ctx)
}

// clockPause is how often the store looks at the clock: what passes while nobody looks cannot be told from a jump when
// the machine is started again.
const clockPause = time.Hour

// watchClock lets the store see the time go by.
func (n *Node) watchClock(ctx context.Context) {
	for {
		select {
		case <-time.After(clockPause):
		case <-ctx.Done():
			return
		}
		if _, err := n.store.SeeClock(ctx); err != nil {
			n.log.Error("the store's clock cannot be kept: locks stay shut until it can", "err", err)
		}
	}
}
