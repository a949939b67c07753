package ovirt

import (
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	backupsPath = "POST /vms/v/backups"
	ourBackup   = "GET /vms/v/backups/b"
)

var plainSpec = BackupSpec{ID: "b", Disks: []ID{"k1", "k2"}, Description: "run 1", From: "p"}

func TestStartBackupRequest(t *testing.T) {
	s := newScript(t).on(backupsPath, recorded(t, "backups.txt", "started", ""))
	b, err := s.dial().StartBackup(t.Context(), "v", plainSpec)
	if err != nil || b.ID != backup1 || b.Phase != BackupStarting || b.ToCheckpoint != "" || b.Snapshot == "" {
		t.Errorf("%+v, %v", b, err)
	}
	const want = `<backup id="b"><description>run 1</description><from_checkpoint_id>p</from_checkpoint_id><disks><disk id="k1"></disk><disk id="k2"></disk></disks></backup>`
	if a := s.requests()[0]; a.body != want || a.header.Get("Accept") != "application/json" {
		t.Errorf("sent %s\nwant %s", a.body, want)
	}
	s.on(backupsPath+"?legacy=true&require_consistency=true", recorded(t, "backups.txt", "incremental", ""))
	spec := plainSpec
	spec.Legacy, spec.RequireConsistency = true, true
	if b, err := s.dial().StartBackup(t.Context(), "v", spec); err != nil || b.FromCheckpoint == "" {
		t.Errorf("%+v, %v", b, err)
	}
	spec.Disks = nil
	if _, err := s.dial().StartBackup(t.Context(), "v", spec); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
	spec = plainSpec
	spec.ID = ""
	if _, err := s.dial().StartBackup(t.Context(), "v", spec); !errs.Is(err, errs.Invalid) {
		t.Errorf("without an ID of ours: %v", err)
	}
}

// However the engine says that the backup is there: it is ours, and taken.
func TestStartBackupAdopts(t *testing.T) {
	ready := recorded(t, "backups.txt", "ready", "")
	for name, first := range map[string]answer{
		"duplicate":     refused(400, "[Cannot backup VM. Backup with the requested ID already exists.]"),
		"lost answer":   {drop: true},
		"lost at proxy": page(502, "Bad Gateway"),
		"locked by it":  refused(409, "[Cannot backup VM: Disk is locked. Please try again later.]"),
		"no reason":     refused(400, "[]"),
	} {
		s := newScript(t).on(backupsPath, first).on(ourBackup, ready)
		b, err := s.dial().StartBackup(t.Context(), "v", plainSpec)
		if err != nil || b.Phase != BackupReady || s.count(backupsPath) != 1 {
			t.Errorf("%s: %+v, %v, asked %d times", name, b, err, s.count(backupsPath))
		}
	}
}

func TestStartBackupAsksAgainAfterALostRequest(t *testing.T) {
	gone := answer{status: 404}
	s := newScript(t).on(backupsPath, answer{drop: true}, page(503, "x"), recorded(t, "backups.txt", "started", "")).on(ourBackup, gone)
	if b, err := s.dial().StartBackup(t.Context(), "v", plainSpec); err != nil || b.ID != backup1 || s.count(backupsPath) != 3 {
		t.Errorf("%+v, %v", b, err)
	}
	s = newScript(t).on(backupsPath, answer{drop: true}).on(ourBackup, gone)
	if _, err := s.dial().StartBackup(t.Context(), "v", plainSpec); !errs.Is(err, errs.Transient) || s.count(backupsPath) != startTries {
		t.Errorf("%v after %d", err, s.count(backupsPath))
	}
	// Where it cannot be seen whether the first request was carried out, there is no second.
	s = newScript(t).on(backupsPath, answer{drop: true}).on(ourBackup, page(503, "x"))
	if _, err := s.dial().StartBackup(t.Context(), "v", plainSpec); !errs.Is(err, errs.Transient) || s.count(backupsPath) != 1 {
		t.Errorf("%v after %d", err, s.count(backupsPath))
	}
}

func TestStartBackupIsRefused(t *testing.T) {
	want := map[string]errs.Kind{
		"06.2": errs.Invalid, "06.4": errs.NotFound, "06.6": errs.Stale, "06.12": errs.Busy, "06.25": errs.Busy, "06b.12": errs.Busy, "16.25": errs.Denied,
	}
	for name, r := range recordings(t, "faults.txt") {
		kind, ok := want[name[strings.LastIndexByte(name, ' ')+1:]]
		if !ok {
			continue
		}
		s := newScript(t).on(backupsPath, r.answer).on(ourBackup, answer{status: 404})
		if _, err := s.dial().StartBackup(t.Context(), "v", plainSpec); !errs.Is(err, kind) || s.count(backupsPath) != 1 {
			t.Errorf("%s: %v is %v, want %v; asked %d times", name, err, errs.KindOf(err), kind, s.count(backupsPath))
		}
	}
}

// Some builds cannot make a backup with a snapshot of their own; the live way works.
func TestStartBackupAroundADuplicateKey(t *testing.T) {
	bad := refused(500, `ERROR: duplicate key value violates unique constraint "vm_backups_pkey"`)
	s := newScript(t).on(backupsPath, bad).on(ourBackup, answer{status: 404}).on(backupsPath+"?legacy=true", recorded(t, "backups.txt", "started", ""))
	if _, err := s.dial().StartBackup(t.Context(), "v", plainSpec); err != nil {
		t.Error(err)
	}
	s = newScript(t).on(ourBackup, answer{status: 404}).on(backupsPath+"?legacy=true", bad)
	spec := plainSpec
	spec.Legacy = true
	if _, err := s.dial().StartBackup(t.Context(), "v", spec); err == nil || s.count(backupsPath+"?legacy=true") != 1 {
		t.Error(err)
	}
}

func TestMemoryOfBackupsIsBounded(t *testing.T) {
	c := newScript(t).dial()
	for i := range 3 * maxRemembered {
		c.remember(ID(token(i)), "v")
	}
	if len(c.backups) > maxRemembered {
		t.Error(len(c.backups))
	}
}
