package nfsdomain

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	leasesFile = "dom_md/leases"
	sdmName    = "SDM" // the lease of whoever changes the domain
)

// lease is a place where hosts agree on an owner.
type lease struct {
	domain, file, name string
	at                 int64
}

func sdmLease(domain string) lease {
	return lease{domain: domain, file: leasesFile, name: sdmName, at: areaSize}
}

// own runs work while the host owns a lease.
func (m *membership) own(ctx context.Context, l lease, work func() error) error {
	ballot, err := m.acquire(ctx, l)
	if err != nil {
		return err
	}
	return errors.Join(work(), m.release(ctx, l, ballot))
}

// acquire takes a lease as disk Paxos has it: the host writes a ballot greater than all, sees that no greater one came,
// writes its own name into it, looks again, and writes the owner into the head.
func (m *membership) acquire(ctx context.Context, l lease) (dblock, error) {
	head, ballots, err := m.readLease(ctx, l)
	if err != nil {
		return dblock{}, err
	}
	host := uint64(m.h.o.HostID)
	if head.Timestamp != 0 && head.Owner != host {
		return dblock{}, refusal(errs.Busy, "AcquireLockFailure", l.file, "%s is owned by host id %d", l.name,
			head.Owner)
	}
	mine := dblock{MBal: host, Lver: head.Lver + 1}
	for _, b := range ballots {
		for mine.MBal <= b.MBal {
			mine.MBal += maxHosts
		}
	}
	if err := m.vote(ctx, l, mine); err != nil {
		return dblock{}, err
	}
	now := uint64(time.Now().Unix())
	mine.Bal, mine.Inp, mine.InpGen, mine.InpTime = mine.MBal, host, m.generation, now
	if err := m.vote(ctx, l, mine); err != nil {
		return dblock{}, err
	}
	head.Owner, head.Generation, head.Lver, head.Timestamp = host, m.generation, mine.Lver, now
	head.WriteID, head.WriteGen, head.WriteTime = host, m.generation, now
	return mine, m.d.nfs.write(ctx, m.d.path(l.file), l.at, head.sector())
}

// vote writes the ballot and sees that it is the greatest.
func (m *membership) vote(ctx context.Context, l lease, mine dblock) error {
	if err := m.writeBallot(ctx, l, mine); err != nil {
		return err
	}
	_, ballots, err := m.readLease(ctx, l)
	if err != nil {
		return err
	}
	for i, b := range ballots {
		if i+1 == m.h.o.HostID {
			if b.MBal != mine.MBal || b.Bal != mine.Bal || b.Lver != mine.Lver {
				return refusal(errs.Corrupt, "AcquireLockFailure", l.file, "the ballot that was written is not the one that is read")
			}
		} else if b.MBal > mine.MBal || b.Lver > mine.Lver {
			return refusal(errs.Busy, "AcquireLockFailure", l.file, "host id %d is taking it", i+1)
		}
	}
	return nil
}

func (m *membership) writeBallot(ctx context.Context, l lease, b dblock) error {
	return m.d.nfs.write(ctx, m.d.path(l.file), l.at+dblockAt(m.h.o.HostID), b.sector())
}

// release gives a lease back.
func (m *membership) release(ctx context.Context, l lease, b dblock) error {
	b.Flags |= released
	if err := m.writeBallot(ctx, l, b); err != nil {
		return err
	}
	p, err := m.d.nfs.read(ctx, m.d.path(l.file), l.at, sectorSize)
	if err != nil {
		return err
	}
	if len(p) != sectorSize {
		return short(l.file, int64(len(p)), sectorSize)
	}
	head, err := checkLeader(l.file, p, resourceOf(l.domain, l.name))
	if err != nil {
		return err
	}
	if head.Owner != uint64(m.h.o.HostID) || head.Lver != b.Lver {
		return refusal(errs.Corrupt, "ReleaseLockFailure", l.file, "%s is owned by host id %d", l.name, head.Owner)
	}
	head.Timestamp = 0
	return m.d.nfs.write(ctx, m.d.path(l.file), l.at, head.sector())
}

// readLease reads a resource's area.
func (m *membership) readLease(ctx context.Context, l lease) (leader, []dblock, error) {
	area, err := m.d.nfs.read(ctx, m.d.path(l.file), l.at, areaSize)
	if err != nil {
		return leader{}, nil, absent(err, "SanlockException ENOENT", l.file)
	}
	if len(area) != areaSize {
		return leader{}, nil, short(l.file, int64(len(area)), areaSize)
	}
	return checkResource(l.file, l.domain, l.name, area)
}
