package ovirt

import (
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// TestLabSnapshot takes two snapshots of one of two disks, reads the second one's volume, and removes both.
func TestLabSnapshot(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	taken, of := l.twoSnapshots()
	volumes, err := l.Volumes(ctx, labDisk2)
	if err != nil || len(volumes) != 3 || volumes[0] != (Volume{of[0], "", taken[0].ID, FormatRaw}) ||
		volumes[1] != (Volume{of[1], of[0], taken[1].ID, FormatCow}) || volumes[2].Parent != of[1] {
		t.Fatalf("%+v, %v", volumes, err)
	}
	tr, err := l.StartTransfer(ctx, TransferSpec{Disk: labDisk2, Volume: of[1], Shallow: true, Inactivity: time.Hour})
	if err != nil || tr.Disk != labDisk2 || !tr.Download {
		t.Fatalf("%+v, %v", tr, err)
	}
	if live, err := l.LiveTransfers(ctx); err != nil || len(live) != 1 || live[0].ID != tr.ID {
		t.Errorf("%+v, %v", live, err)
	}
	if err := l.RemoveSnapshot(ctx, labVM, taken[0].ID); !errs.Is(err, errs.Busy) {
		t.Errorf("remove a snapshot of a disk that is read: %v", err)
	}
	l.must(l.FinalizeTransfer(ctx, tr.ID))
	for _, s := range taken {
		l.patiently("remove snapshot", func() error { return l.RemoveSnapshot(ctx, labVM, s.ID) })
		l.within("snapshot is gone", func() (bool, error) {
			_, err := l.Snapshot(ctx, labVM, s.ID)
			return errs.Is(err, errs.NotFound), nil
		})
	}
	l.clean()
}

// twoSnapshots takes two snapshots of the second disk, and returns them and the volumes that they end with.
func (l *lab) twoSnapshots() (taken []Snapshot, of []ID) {
	l.t.Helper()
	ctx := l.t.Context()
	if _, err := l.AddSnapshot(ctx, labVM, SnapshotSpec{Description: "x"}); !errs.Is(err, errs.Invalid) {
		l.t.Errorf("a snapshot of no disk, which would be of all: %v", err)
	}
	if _, err := l.AddSnapshot(ctx, labVM, SnapshotSpec{Description: "x", Disks: []ID{labSessionOne}}); err == nil {
		l.t.Error("a snapshot of a disk that the VM has not")
	}
	for _, name := range []string{"one", "two"} {
		s, err := l.AddSnapshot(ctx, labVM, SnapshotSpec{Description: name, Disks: []ID{labDisk2}})
		l.must(err)
		if _, err := l.AddSnapshot(ctx, labVM, SnapshotSpec{Description: "meanwhile", Disks: []ID{labDisk2}}); !errs.Is(err, errs.Busy) {
			l.t.Errorf("another one meanwhile: %v", err)
		}
		l.within("snapshot is there", func() (bool, error) {
			s, err = l.Snapshot(ctx, labVM, s.ID)
			return s.Status == "ok", err
		})
		if s.Description != name || s.Type != "regular" {
			l.t.Errorf("%+v", s)
		}
		taken = append(taken, s)
	}
	for _, s := range taken {
		disks, err := l.SnapshotDisks(ctx, labVM, s.ID)
		if err != nil || len(disks) != 1 || disks[0].Disk != labDisk2 {
			l.t.Fatalf("%+v, %v", disks, err)
		}
		of = append(of, disks[0].Volume)
	}
	return taken, of
}
