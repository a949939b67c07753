package host

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/imageio"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

const (
	// ticketSeconds is how long a ticket lasts unless it is extended, as an engine has it by default.
	ticketSeconds = 300
	// extendAfter is the age at which a ticket that is asked for is extended.
	extendAfter = 60 * time.Second
)

// ticket is one that the daemon has.
type ticket struct {
	id, backup string
	nbd        *proc.Process // serves the disk for this ticket alone; nil for a backup's
	folder     string        // of its socket
	extended   time.Time
}

// AddTicket implements engine.BackupHost. Without a backup it opens the disk itself, for reading and writing; no VM may
// use it then.
func (h *Host) AddTicket(ctx context.Context, backup, disk, id string, inactivitySeconds int) (string, error) {
	return h.addTicket(ctx, backup, disk, id, inactivitySeconds, func(t *ticket, want *ticketWanted) error {
		if backup != "" {
			return h.backupTicket(want, backup, disk)
		}
		return h.diskTicket(ctx, t, want, disk)
	})
}

// ticketWanted is a ticket as the daemon is asked for it.
type ticketWanted = imageio.Ticket

// addTicket adds a ticket whose image fill makes readable.
func (h *Host) addTicket(ctx context.Context, backup, disk, id string, inactivitySeconds int, fill func(*ticket, *ticketWanted) error) (string, error) {
	if h.opts.Imageio == nil {
		return "", errs.Text("add the ticket", id, errs.Unsupported, "this host was made without ovirt-imageio")
	}
	t := &ticket{id: id, backup: backup, extended: time.Now()}
	want := imageio.Ticket{UUID: id, TransferID: id, Timeout: ticketSeconds, Inactivity: inactivitySeconds, Sparse: true}
	err := fill(t, &want)
	if err == nil {
		err = h.opts.Imageio.AddTicket(ctx, want)
	}
	if err != nil {
		h.drop(t)
		return "", errs.Wrap("make readable the disk", disk, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tickets[id] = t
	return h.opts.Imageio.URL() + "/images/" + id, nil
}

// backupTicket fills in what a ticket for a disk of a backup says.
func (h *Host) backupTicket(want *imageio.Ticket, backup, disk string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.backups[backup]
	if b == nil || !b.ready {
		return errs.Text("find the backup", backup, errs.NotFound, "there is none of that name, or it is not ready")
	}
	x := b.disk(disk)
	if x == nil {
		return errs.Text("find the disk", disk, errs.NotFound, "it is not a disk of the backup "+backup)
	}
	want.Size, want.Ops, want.Dirty = x.place.Size, []string{"read"}, x.incremental
	want.URL = "nbd:unix:" + x.socket + ":exportname=" + disk
	return nil
}

// diskTicket serves a disk that no VM uses, and fills in the ticket.
func (h *Host) diskTicket(ctx context.Context, t *ticket, want *imageio.Ticket, disk string) error {
	place, err := h.Where(disk)
	if err != nil {
		return err
	}
	node, err := h.node(ctx, place, "")
	if err != nil {
		return err
	}
	i, err := info(ctx, alone(node))
	if err != nil {
		return err
	}
	t.folder = filepath.Join(h.run, t.id)
	if err := os.Mkdir(t.folder, 0o700); err != nil {
		return err
	}
	socket := filepath.Join(t.folder, "nbd")
	if t.nbd, err = h.serve(ctx, socket, disk, node, "--detect-zeroes=unmap"); err != nil {
		return err
	}
	want.Size, want.Ops, want.URL = i.Size, []string{"read", "write"}, "nbd:unix:"+socket+":exportname="+disk
	return nil
}

// Where returns where a disk was last seen, with the volume on top.
func (h *Host) Where(disk string) (engine.DiskPlace, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, known := h.places[disk]
	if !known {
		return d, errs.Text("find the disk", disk, errs.NotFound, "this host has not seen it")
	}
	return d, nil
}

// RemoveTicket implements engine.BackupHost. A ticket that is not there is no error; one that is in use fails with Busy
// after a while, and stays.
func (h *Host) RemoveTicket(ctx context.Context, id string) error {
	if h.opts.Imageio == nil {
		return nil
	}
	if err := h.opts.Imageio.RemoveTicket(ctx, id); err != nil {
		return err
	}
	h.mu.Lock()
	t := h.tickets[id]
	delete(h.tickets, id)
	h.mu.Unlock()
	if t != nil {
		h.drop(t)
	}
	return nil
}

// drop ends what serves a ticket.
func (h *Host) drop(t *ticket) {
	if t.nbd != nil {
		h.stopServing(t.nbd)
	}
	if t.folder != "" {
		_ = os.RemoveAll(t.folder) // a socket
	}
}

// TicketIdle implements engine.BackupHost. As long as somebody asks for it, a ticket does not run out.
func (h *Host) TicketIdle(ctx context.Context, id string) (seconds int, transferred int64, err error) {
	h.mu.Lock()
	t := h.tickets[id]
	old := t != nil && time.Since(t.extended) > extendAfter
	if old {
		t.extended = time.Now()
	}
	h.mu.Unlock()
	if t == nil {
		return 0, 0, errs.Text("ask for the ticket", id, errs.NotFound, "there is none of that name")
	}
	if old {
		if err := h.opts.Imageio.Extend(ctx, id, ticketSeconds); err != nil {
			return 0, 0, err
		}
	}
	s, err := h.opts.Imageio.Ticket(ctx, id)
	return s.IdleSeconds, s.Transferred, err
}

// ticketsOf lists the tickets of a backup.
func (h *Host) ticketsOf(backup string) (ids []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, t := range h.tickets {
		if t.backup == backup {
			ids = append(ids, id)
		}
	}
	return ids
}
