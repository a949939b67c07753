package host

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/imageio"
)

// fakeDaemon remembers its tickets.
type fakeDaemon struct {
	tickets  map[string]imageio.Ticket
	extended []string
	busy     bool
}

func (f *fakeDaemon) URL() string { return "https://host1:54322" }

func (f *fakeDaemon) AddTicket(_ context.Context, t imageio.Ticket) error {
	if f.busy {
		return errors.New("no")
	}
	f.tickets[t.UUID] = t
	return nil
}

func (f *fakeDaemon) RemoveTicket(_ context.Context, uuid string) error {
	if f.busy {
		return errs.Text("remove the ticket", uuid, errs.Busy, "somebody is reading")
	}
	delete(f.tickets, uuid)
	return nil
}

func (f *fakeDaemon) Ticket(_ context.Context, uuid string) (imageio.State, error) {
	return imageio.State{IdleSeconds: 7, Transferred: 4096}, nil
}

func (f *fakeDaemon) Extend(_ context.Context, uuid string, seconds int) error {
	f.extended = append(f.extended, fmt.Sprint(uuid, " ", seconds))
	return nil
}

// fakeExports notes what it is asked for.
type fakeExports struct {
	calls []string
	url   string
}

func (f *fakeExports) did(args ...any) error {
	f.calls = append(f.calls, strings.TrimSpace(fmt.Sprintln(args...)))
	return nil
}

func (f *fakeExports) ProbeDomain(_ context.Context, export, options string) (*engine.DomainInfo, error) {
	return &engine.DomainInfo{ID: "nfs"}, f.did("probe", export, options)
}
func (f *fakeExports) AttachDomain(_ context.Context, d, pool string) error {
	return f.did("attach", d, pool)
}
func (f *fakeExports) DeactivateDomain(_ context.Context, d string) error {
	return f.did("deactivate", d)
}
func (f *fakeExports) DetachDomain(_ context.Context, d string) error { return f.did("detach", d) }
func (f *fakeExports) FormatDomain(_ context.Context, d string) error { return f.did("format", d) }
func (f *fakeExports) ForgetDomain(_ context.Context, d string) error { return f.did("forget", d) }
func (f *fakeExports) DomainSpace(_ context.Context, d string) (int64, int64, error) {
	return 5, 3, f.did("space", d)
}
func (f *fakeExports) ScanDisks(_ context.Context, d string) ([]engine.FoundDisk, error) {
	return []engine.FoundDisk{{Disk: "disk", Image: "image", Format: "cow", Size: 9}}, f.did("scan", d)
}
func (f *fakeExports) VolumeURL(_ context.Context, d, disk, image string) (string, error) {
	return f.url, f.did("url", d, disk, image)
}
func (f *fakeExports) RemoveVolume(_ context.Context, d, disk string) error {
	return f.did("remove", d, disk)
}

func newHost(t *testing.T, change func(*Options)) *Host {
	t.Helper()
	o := Options{Dir: t.TempDir(), Domains: []string{domainA, strings.ToUpper(domainB)}}
	if change != nil {
		change(&o)
	}
	h, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func TestDomainsOnNFSGoToExportsAndLocalOnesDoNot(t *testing.T) {
	exports := &fakeExports{url: "nfs://127.0.0.1/sd/volume"}
	h := newHost(t, func(o *Options) { o.Exports = exports })
	ctx := t.Context()
	for _, domain := range []string{"nfs", domainA, domainB} {
		for _, err := range []error{
			h.AttachDomain(ctx, domain, "pool"), h.DeactivateDomain(ctx, domain), h.DetachDomain(ctx, domain), h.ForgetDomain(ctx, domain),
		} {
			if err != nil {
				t.Error(err)
			}
		}
		available, used, err := h.DomainSpace(ctx, domain)
		if err != nil || available <= 0 || used <= 0 || domain == "nfs" && (available != 5 || used != 3) {
			t.Errorf("space of %s: %d %d %v", domain, available, used, err)
		}
	}
	if err := h.FormatDomain(ctx, domainA); !errs.Is(err, errs.Denied) {
		t.Errorf("formatting a local domain: %v", err)
	}
	if info, err := h.ProbeDomain(ctx, "127.0.0.1:/sd", "soft"); err != nil || info.ID != "nfs" {
		t.Errorf("probe: %v %v", info, err)
	}
	if found, err := h.ScanDisks(ctx, "nfs"); err != nil || len(found) != 1 {
		t.Errorf("scan: %v %v", found, err)
	}
	place, err := h.Where("disk")
	if want := (engine.DiskPlace{Domain: "nfs", Disk: "disk", Image: "image", Format: "cow", Size: 9}); err != nil || place != want {
		t.Errorf("a disk that was found is at %+v, error %v", place, err)
	}
	node, err := h.node(ctx, place, "disk0")
	if got := node.Image(); err != nil || !strings.Contains(got, `"driver":"nfs"`) || !strings.Contains(got, `"user":107`) || !strings.Contains(got, "/sd/volume") || node.Format() != "qcow2" {
		t.Errorf("the disk's node is %s, error %v", got, err)
	}
	if err := h.RemoveDisk(ctx, place); err != nil {
		t.Error(err)
	}
	if _, err := h.Where("disk"); !errs.Is(err, errs.NotFound) {
		t.Errorf("a removed disk: %v", err)
	}
	want := "attach nfs pool;deactivate nfs;detach nfs;forget nfs;space nfs;probe 127.0.0.1:/sd soft;scan nfs;url nfs disk image;remove nfs disk"
	if got := strings.Join(exports.calls, ";"); got != want {
		t.Errorf("asked for\n%s, want\n%s", got, want)
	}
}

func TestAHostWithoutPartsSaysSo(t *testing.T) {
	h := newHost(t, nil)
	ctx := t.Context()
	elsewhere := engine.DiskPlace{Domain: "nfs", Disk: "disk", Image: "image"}
	_, probe := h.ProbeDomain(ctx, "a:/b", "")
	_, ticket := h.AddTicket(ctx, "", "disk", "ticket", 60)
	_, move := h.MoveDisk(ctx, "", elsewhere, "nfs", nil)
	_, exec := func() (string, error) { out, _, err := h.Exec(ctx, "web1", "true"); return out, err }()
	for what, c := range map[string]struct {
		err  error
		kind errs.Kind
	}{
		"probe": {probe, errs.Unsupported}, "attach": {h.AttachDomain(ctx, "nfs", "p"), errs.Unsupported},
		"ticket": {ticket, errs.Unsupported}, "move to NFS": {move, errs.Unsupported},
		"disk on NFS":    {h.CreateDisk(ctx, elsewhere), errs.Unsupported},
		"VM on NFS":      {h.StartVM(ctx, engine.VMSpec{ID: vmID, Disks: []engine.DiskPlace{elsewhere}}), errs.Unsupported},
		"VM without":     {h.StartVM(ctx, engine.VMSpec{ID: vmID}), errs.Invalid},
		"command":        {exec, errs.NotFound},
		"kill":           {h.KillVM("web1"), errs.NotFound},
		"unknown backup": {h.StopBackup(ctx, vmID, "b"), errs.NotFound},
	} {
		if !errs.Is(c.err, c.kind) {
			t.Errorf("%s: %v, want %v", what, c.err, c.kind)
		}
	}
	if err := h.StopVM(ctx, vmID); err != nil {
		t.Errorf("stopping a VM that does not run: %v", err)
	}
	if got := h.RunningVMs(); len(got) != 0 {
		t.Errorf("running after failures: %v", got)
	}
}

func TestWhichDisksTellTheirChanges(t *testing.T) {
	cow, second, raw := dataDisk, rootDisk, rawDisk
	for _, c := range []struct {
		name    string
		from    string
		members []string // of checkpoint "cp"; nil: this host does not know it
		bitmaps []string // disks that have the bitmap
		want    string   // one letter a disk: i or f; "" for a lost bitmap
	}{
		{"full", "", []string{cow.Disk}, []string{cow.Disk}, "fff"},
		{"all", "cp", []string{cow.Disk, second.Disk}, []string{cow.Disk, second.Disk}, "iif"},
		{"a new disk", "cp", []string{cow.Disk}, []string{cow.Disk}, "iff"},
		{"one lost", "cp", []string{cow.Disk, second.Disk}, []string{cow.Disk}, ""},
		{"all lost", "cp", []string{cow.Disk}, nil, ""},
		{"another host's", "cp", nil, []string{second.Disk}, "fif"},
		{"nobody's", "cp", nil, nil, ""},
	} {
		state := &vmState{checkpoints: map[string][]string{}}
		if c.members != nil {
			state.checkpoints["cp"] = c.members
		}
		b := &backup{from: c.from, disks: []*exported{{place: cow}, {place: second}, {place: raw}}}
		err := b.choose(state, func(x *exported) bool {
			return strings.Contains(strings.Join(c.bitmaps, " "), x.place.Disk)
		})
		got := ""
		for _, x := range b.disks {
			got += map[bool]string{true: "i", false: "f"}[x.incremental]
		}
		if c.want == "" {
			if err == nil || !strings.Contains(err.Error(), "Bitmap does not exist: cp") {
				t.Errorf("%s: error %v", c.name, err)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%s: %s, want %s, error %v", c.name, got, c.want, err)
		}
	}
}

func TestTicketsOfABackup(t *testing.T) {
	daemon := &fakeDaemon{tickets: map[string]imageio.Ticket{}}
	h := newHost(t, func(o *Options) { o.Imageio = daemon })
	ctx := t.Context()
	b := &backup{id: "b", vm: vmID, disks: []*exported{{place: dataDisk, socket: "/run/nbd", incremental: true}}}
	h.backups["b"] = b
	if _, err := h.AddTicket(ctx, "b", dataDisk.Disk, "t", 60); !errs.Is(err, errs.NotFound) {
		t.Errorf("a backup that is not ready: %v", err)
	}
	b.ready = true
	if _, err := h.AddTicket(ctx, "b", rootDisk.Disk, "t", 60); !errs.Is(err, errs.NotFound) {
		t.Errorf("a disk that is not part of it: %v", err)
	}
	address, err := h.AddTicket(ctx, "b", dataDisk.Disk, "t", 45)
	if err != nil || address != "https://host1:54322/images/t" {
		t.Fatalf("%s, error %v", address, err)
	}
	want := imageio.Ticket{UUID: "t", Size: dataDisk.Size, URL: "nbd:unix:/run/nbd:exportname=" + dataDisk.Disk, Timeout: 300, Inactivity: 45,
		Ops: []string{"read"}, Dirty: true, Sparse: true, TransferID: "t"}
	if got := daemon.tickets["t"]; !reflect.DeepEqual(got, want) {
		t.Errorf("the daemon got %+v, want %+v", got, want)
	}
	if idle, bytes, err := h.TicketIdle(ctx, "t"); idle != 7 || bytes != 4096 || err != nil || len(daemon.extended) != 0 {
		t.Errorf("%d %d %v, extended %v", idle, bytes, err, daemon.extended)
	}
	h.tickets["t"].extended = time.Now().Add(-2 * extendAfter)
	for range 2 {
		_, _, err = h.TicketIdle(ctx, "t")
	}
	if err != nil || !reflect.DeepEqual(daemon.extended, []string{"t 300"}) {
		t.Errorf("extended %v, error %v", daemon.extended, err)
	}
	daemon.busy = true
	if err := h.RemoveTicket(ctx, "t"); !errs.Is(err, errs.Busy) || h.tickets["t"] == nil {
		t.Errorf("a ticket in use: %v", err)
	}
	daemon.busy = false
	if err := h.StopBackup(ctx, vmID, "b"); err != nil || len(daemon.tickets) != 0 || len(h.tickets) != 0 {
		t.Errorf("ending the backup: %v, left %v", err, daemon.tickets)
	}
	if _, _, err := h.TicketIdle(ctx, "t"); !errs.Is(err, errs.NotFound) {
		t.Errorf("a ticket that is gone: %v", err)
	}
}
