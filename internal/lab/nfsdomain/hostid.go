package nfsdomain

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	idsFile = "dom_md/ids"
	// lostAfter is after how long without a sign of life other hosts, and sanlock itself, take a host for dead.
	lostAfter = 80 * time.Second
)

// membership is a host's life in a domain's lockspace: from taking its slot until it gives it back. A goroutine renews
// the sign of life; it ends with stop.
type membership struct {
	h          *Host
	d          *domain
	generation uint64 // how often the slot was taken
	quit       context.CancelFunc
	done       chan struct{}

	mu     sync.Mutex // guards what follows; never held during a request
	slot   leader     // as last written
	alive  time.Time  // when it was
	broken error      // somebody else wrote into the slot
}

// enter takes the host id as sanlock's add_lockspace does: look, write, wait, look again.
func (h *Host) enter(ctx context.Context, d *domain) (*membership, error) {
	m := &membership{h: h, d: d, done: make(chan struct{})}
	old, err := m.look(ctx)
	if err != nil {
		return nil, err
	}
	// A slot with our own name was left by us when we died: nobody has to be waited for.
	if old.Timestamp != 0 && text48(old.Name) != h.o.HostName {
		return nil, refusal(errs.Busy, "CannotAcquireHostId", idsFile,
			"the slot of host id %d was taken by %q", h.o.HostID, text48(old.Name))
	}
	m.generation = old.Generation + 1
	m.slot = slotOf(d.id)
	m.slot.Owner, m.slot.Generation, m.slot.Name = uint64(h.o.HostID), m.generation, name48(h.o.HostName)
	if err := m.sign(ctx, uint64(time.Now().Unix())); err != nil {
		return nil, err
	}
	select {
	case <-time.After(h.o.Settle):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := m.unchanged(ctx); err != nil {
		return nil, err
	}
	life, quit := context.WithCancel(context.WithoutCancel(ctx))
	m.quit = quit
	go m.live(life)
	return m, nil
}

func (m *membership) at() int64 { return int64(m.h.o.HostID-1) * sectorSize }

// look reads the slot.
func (m *membership) look(ctx context.Context) (leader, error) {
	p, err := m.d.nfs.read(ctx, m.d.path(idsFile), m.at(), sectorSize)
	if err != nil {
		return leader{}, absent(err, "SanlockException ENOENT", idsFile)
	}
	if len(p) != sectorSize {
		return leader{}, refusal(errs.Corrupt, "SanlockException EMSGSIZE", idsFile,
			"a read of %d bytes at %d gave %d", sectorSize, m.at(), len(p))
	}
	return checkLeader(idsFile, p, slotOf(m.d.id))
}

// sign writes the slot with a new time; 0 gives it back.
func (m *membership) sign(ctx context.Context, now uint64) error {
	m.mu.Lock()
	slot := m.slot
	m.mu.Unlock()
	slot.Timestamp = now
	if err := m.d.nfs.write(ctx, m.d.path(idsFile), m.at(), slot.sector()); err != nil {
		return err
	}
	m.mu.Lock()
	m.slot, m.alive = slot, time.Now()
	m.mu.Unlock()
	return nil
}

// unchanged makes sure that nobody else wrote into the slot, and that what was written is what is read.
func (m *membership) unchanged(ctx context.Context) error {
	found, err := m.look(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if found.Owner != m.slot.Owner || found.Generation != m.slot.Generation || found.Timestamp != m.slot.Timestamp ||
		found.Name != m.slot.Name {
		m.broken = refusal(errs.Corrupt, "SanlockException SANLK_DELTA_LARGE", idsFile,
			"the slot of host id %d is not as this host wrote it: generation %d of %q at %d", m.h.o.HostID, found.Generation,
			text48(found.Name), found.Timestamp)
	}
	return m.broken
}

// live renews the sign of life until the end.
func (m *membership) live(ctx context.Context) {
	defer close(m.done)
	tick := time.NewTicker(m.h.o.Renew)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := m.renew(ctx); err != nil && ctx.Err() == nil {
			m.h.log.Warn("the host's sign of life failed", "domain", m.d.id, "err", err)
		}
	}
}

// renew reads the whole lockspace, as sanlock does to see other hosts, and writes the slot.
func (m *membership) renew(ctx context.Context) error {
	area, err := m.d.nfs.read(ctx, m.d.path(idsFile), 0, areaSize)
	if err != nil {
		return err
	}
	if len(area) != areaSize {
		return short(idsFile, int64(len(area)), areaSize)
	}
	if err := m.unchanged(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	now := max(m.slot.Timestamp+1, uint64(time.Now().Unix()))
	m.mu.Unlock()
	return m.sign(ctx, now)
}

// lost returns an error when other hosts may take this one for dead.
func (m *membership) lost() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if silent := time.Since(m.alive); m.broken == nil && silent > lostAfter {
		return refusal(errs.Transient, "SanlockException", idsFile, "no sign of life was written for %s",
			silent.Round(time.Second))
	}
	return m.broken
}

// stop ends the goroutine and leaves the slot as it is.
func (m *membership) stop() {
	m.quit()
	<-m.done
}

// leave gives the host id back.
func (m *membership) leave(ctx context.Context) error {
	m.stop()
	return errors.Join(m.unchanged(ctx), m.sign(ctx, 0))
}
