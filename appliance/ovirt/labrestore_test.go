package ovirt

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

const labNew ID = "77777777-7777-4777-8777-777777777701"

// TestLabUpload makes a disk under an ID of ours and uploads into it; one that is given up goes with its upload.
func TestLabUpload(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	spec := NewDisk{ID: labNew, Alias: "new", Domain: labLocal, Format: FormatCow, Sparse: true, Size: 1 << 30, Incremental: true}
	for _, fault := range []string{"", engine.FaultLostAnswer} {
		if fault != "" {
			l.fault(fault)
		}
		l.must(l.CreateDisk(ctx, spec))
		if d := l.diskOK(labNew); d.Provisioned != 1<<30 || !d.Incremental || d.Domain != labLocal || d.Alias != "new" {
			t.Errorf("%+v", d)
		}
		if err := l.CreateDisk(ctx, spec); !errs.Is(err, errs.Exists) {
			t.Error("the same ID again:", err)
		}
		up, err := l.StartTransfer(ctx, TransferSpec{Disk: labNew, Upload: true, Inactivity: time.Hour})
		l.must(err)
		if _, err := l.StartTransfer(ctx, TransferSpec{Disk: labNew, Upload: true, Inactivity: time.Hour}); !errs.Is(err, errs.Busy) {
			t.Error("two at once:", err)
		}
		live, err := l.DiskTransfers(ctx, labNew)
		if err != nil || len(live) != 1 || live[0].ID != up.ID {
			t.Errorf("%+v, %v", live, err)
		}
		if other, err := l.DiskTransfers(ctx, labDisk); err != nil || len(other) != 0 {
			t.Errorf("of another disk: %+v, %v", other, err)
		}
		if fault == "" {
			l.must(l.FinalizeTransfer(ctx, up.ID))
			l.within("finalize", func() (bool, error) {
				x, err := l.Transfer(ctx, up.ID)
				return x.Phase == TransferFinishedSuccess, err
			})
			l.diskOK(labNew)
			l.must(l.RemoveDisk(ctx, labNew))
		} else {
			l.must(l.CancelTransfer(ctx, up.ID))
		}
		l.clean()
	}
}

// TestLabNICs reads and changes a VM's network interfaces.
func TestLabNICs(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	profiles, err := l.VNICProfiles(ctx)
	l.must(err)
	i := slices.IndexFunc(profiles, func(p VNICProfile) bool { return p.NetworkName == "ovirtmgmt" })
	if i < 0 || profiles[i].Name != "ovirtmgmt" || profiles[i].DataCenter != ID(l.ids.DataCenter) {
		t.Fatalf("%+v", profiles)
	}
	nics, err := l.NICs(ctx, labVM)
	l.must(err)
	all, err := l.AllNICs(ctx)
	l.must(err)
	if len(nics) != 1 || nics[0].Profile != profiles[i].ID || nics[0].MAC == "" || nics[0].VM != labVM || !slices.Equal(nics, all) {
		t.Fatalf("%+v, %+v", nics, all)
	}
	n := nics[0]
	n.MAC, n.Profile = "56:6f:00:00:00:77", ""
	l.must(l.UpdateNIC(ctx, n))
	if nics, err := l.NICs(ctx, labVM); err != nil || nics[0] != n {
		t.Errorf("%+v, %v", nics, err)
	}
	if _, err := l.NICs(ctx, labNew); !errs.Is(err, errs.NotFound) {
		t.Error("of no VM:", err)
	}
	if err := l.TagVM(ctx, labVM, "silver"); !errs.Is(err, errs.NotFound) {
		t.Error("an unknown tag:", err)
	}
	l.must(l.TagVM(ctx, labVM, "gold"))
	l.must(l.DescribeVM(ctx, labVM, "a <text>"))
	if v, err := l.VM(ctx, labVM); err != nil || v.Description != "a <text>" {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestReadOVF reads what the engine wrote of a VM.
func TestReadOVF(t *testing.T) {
	l := newLab(t)
	l.must(l.DescribeVM(t.Context(), labVM, "the & web"))
	ovf, err := l.VMConfig(t.Context(), labVM)
	l.must(err)
	m, err := ReadOVF(ovf)
	l.must(err)
	nics, err := l.NICs(t.Context(), labVM)
	l.must(err)
	want := []MachineNIC{{Name: "nic1", MAC: nics[0].MAC, Network: "ovirtmgmt", Profile: "ovirtmgmt"}}
	if m.Description != "the & web" || !slices.Equal(m.NICs, want) || len(m.Domains) != 2 || m.Domains[labDisk] != labLocal || m.TPM || m.SecureBoot {
		t.Errorf("%+v", m)
	}
	if _, err := ReadOVF("<ovf"); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
}
