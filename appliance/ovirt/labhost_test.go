package ovirt

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// labHost is the machine below the simulated engine: it does everything at once, and has one export with a domain.
type labHost struct {
	mu      sync.Mutex
	running []string
	tickets map[string]bool
	export  string // where the domain lies
	domain  engine.DomainInfo
	found   []engine.FoundDisk
}

var _ engine.Host = (*labHost)(nil)

func (h *labHost) StartVM(_ context.Context, v engine.VMSpec) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running = append(h.running, v.ID)
	return nil
}

func (h *labHost) ShutdownVM(ctx context.Context, vm string) error { return h.StopVM(ctx, vm) }

func (h *labHost) StopVM(_ context.Context, vm string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running = slices.DeleteFunc(h.running, func(s string) bool { return s == vm })
	return nil
}

func (h *labHost) RunningVMs() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.running)
}

func (h *labHost) StartBackup(_ context.Context, _, _, from, _ string, disks []engine.DiskPlace, _ bool) (map[string]bool, error) {
	can := map[string]bool{}
	for _, d := range disks {
		can[d.Disk] = from != "" && d.Format == "cow"
	}
	return can, nil
}

func (h *labHost) StopBackup(context.Context, string, string) error { return nil }

func (h *labHost) RemoveCheckpoint(context.Context, string, string, []engine.DiskPlace) error {
	return nil
}

func (h *labHost) AddTicket(_ context.Context, _, _, ticket string, _ int) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tickets[ticket] = true
	return "https://localhost:54322/images/" + ticket, nil
}

func (h *labHost) RemoveTicket(_ context.Context, ticket string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.tickets, ticket)
	return nil
}

func (h *labHost) TicketIdle(_ context.Context, ticket string) (int, int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.tickets[ticket] {
		return 0, 0, errors.New("no such ticket")
	}
	return 0, 0, nil
}

func (h *labHost) TakeSnapshot(context.Context, string, []engine.DiskPlace, map[string]string) error {
	return nil
}

func (h *labHost) MergeVolume(context.Context, string, engine.DiskPlace, string, string) error {
	return nil
}

func (h *labHost) AddVolumeTicket(ctx context.Context, v engine.DiskPlace, _ bool, ticket string, _ int) (string, error) {
	return h.AddTicket(ctx, "", v.Disk, ticket, 0)
}

func (h *labHost) ProbeDomain(_ context.Context, export, _ string) (*engine.DomainInfo, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if export != h.export {
		return nil, nil
	}
	d := h.domain
	return &d, nil
}

func (h *labHost) ScanDisks(context.Context, string) ([]engine.FoundDisk, error) { return h.found, nil }

func (h *labHost) AttachDomain(context.Context, string, string) error { return nil }
func (h *labHost) DeactivateDomain(context.Context, string) error     { return nil }
func (h *labHost) DetachDomain(context.Context, string) error         { return nil }
func (h *labHost) FormatDomain(context.Context, string) error         { return nil }
func (h *labHost) ForgetDomain(context.Context, string) error         { return nil }

func (h *labHost) DomainSpace(context.Context, string) (int64, int64, error) {
	return 500 << 30, 10 << 30, nil
}

func (h *labHost) CreateDisk(context.Context, engine.DiskPlace) error { return nil }
func (h *labHost) RemoveDisk(context.Context, engine.DiskPlace) error { return nil }

func (h *labHost) MoveDisk(_ context.Context, _ string, d engine.DiskPlace, domain string, progress func(done, total int64)) (engine.DiskPlace, error) {
	progress(d.Size, d.Size)
	d.Domain = domain
	return d, nil
}
