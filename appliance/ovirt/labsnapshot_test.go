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
	if _, err := l.AddSnapshot(ctx, labVM, SnapshotSpec{Description: "x"}); !errs.Is(err, errs.Invalid) {
		t.Errorf("a snapshot of no disk, which would be of all: %v", err)
	}
	if _, err := l.AddSnapshot(ctx, labVM, SnapshotSpec{Description: "x", Disks: []ID{labSessionOne}}); err == nil {
		t.Error("a snapshot of a disk that the VM has not")
	}
	var taken []Snapshot
	for _, name := range []string{"one", "two"} {
		s, err := l.AddSnapshot(ctx, labVM, SnapshotSpec{Description: name, Disks: []ID{labDisk2}})
		l.must(err)
		if _, err := l.AddSnapshot(ctx, labVM, SnapshotSpec{Description: "meanwhile", Disks: []ID{labDisk2}}); !errs.Is(err, errs.Busy) {
			t.Errorf("another one meanwhile: %v", err)
		}
		l.within("snapshot is there", func() (bool, error) {
			s, err = l.Snapshot(ctx, labVM, s.ID)
			return s.Status == "ok", err
		})
		if s.Description != name || s.Type != "regular" {
			t.Errorf("%+v", s)
		}
		taken = append(taken, s)
	}
	var of []ID
	for _, s := range taken {
		disks, err := l.SnapshotDisks(ctx, labVM, s.ID)
		if err != nil || len(disks) != 1 || disks[0].Disk != labDisk2 {
			t.Fatalf("%+v, %v", disks, err)
		}
		of = append(of, disks[0].Volume)
	}
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
	if live, err := l.LiveTransfers(ctx); err != nil || len(live) != 0 {
		t.Errorf("%+v, %v", live, err)
	}
	l.clean()
}
