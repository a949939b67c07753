package domain_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/nfsdomain"
)

// TestAHostTakesTheDomain runs a domain's whole life.
func TestAHostTakesTheDomain(t *testing.T) {
	needParts(t)
	dir, spec := write(t)
	tree := load(t, dir)
	options, _ := serve(t, tree, "127.0.0.1:0")
	h := newHost(t, nfsdomain.Options{})
	info, err := h.ProbeDomain(t.Context(), spec.RemotePath, options)
	if err != nil {
		t.Fatal(err)
	}
	if info.ID != spec.UUID || info.Name != spec.Description || info.Pool != "" || info.Version != 5 || info.Available < 1<<30 {
		t.Errorf("the host finds %+v", *info)
	}
	step, found, err := use(t, h, options, spec)
	if err != nil {
		t.Fatalf("%s: %v", step, err)
	}
	want := []engine.FoundDisk{
		{Disk: cow.Disk, Image: cow.Image, Format: "cow", Size: diskSize, Alias: cow.Alias, Volumes: 1},
		{Disk: raw.Disk, Image: raw.Image, Format: "raw", Size: diskSize, Alias: raw.Alias, Volumes: 1},
	}
	for i := range found {
		found[i].Used = 0
	}
	if !slices.Equal(found, want) {
		t.Errorf("found %+v", found)
	}
	attached := read(t, tree, spec.UUID+"/dom_md/metadata")
	if !bytes.Contains(attached, []byte("\nPOOL_UUID="+poolID+"\n")) {
		t.Errorf("metadata of an attached domain:\n%s", attached)
	}
	// The same export once more changes nothing; another one with the same domain is refused.
	if info, err = h.ProbeDomain(t.Context(), spec.RemotePath, options); err != nil || info.Pool != poolID {
		t.Errorf("found again: %+v, %v", info, err)
	}
	if _, generation, at := slot(t, tree, 1); generation != 2 || at == 0 {
		t.Errorf("the host's slot has generation %d at %d", generation, at)
	}
	elsewhere, _ := serve(t, tree, "127.0.0.1:0")
	if _, err := h.ProbeDomain(t.Context(), spec.RemotePath, elsewhere); !errs.Is(err, errs.Exists) {
		t.Errorf("the same domain elsewhere: %v", err)
	}
	end(t, h, tree, spec.UUID)
}

// end takes the example's domain apart, step by step.
func end(t *testing.T, h *nfsdomain.Host, tree fs.Tree, id string) {
	t.Helper()
	if err := h.DetachDomain(t.Context(), id); !errs.Is(err, errs.Busy) {
		t.Errorf("detached while active: %v", err)
	}
	if err := h.RemoveVolume(t.Context(), id, raw.Disk); err != nil {
		t.Fatal(err)
	}
	if found, err := h.ScanDisks(t.Context(), id); err != nil || len(found) != 1 || found[0].Disk != cow.Disk {
		t.Errorf("after a disk was removed: %+v, %v", found, err)
	}
	if err := h.DeactivateDomain(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := h.FormatDomain(t.Context(), id); !errs.Is(err, errs.Busy) {
		t.Errorf("formatted while attached: %v", err)
	}
	if err := h.DetachDomain(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	detached := read(t, tree, id+"/dom_md/metadata")
	if !bytes.Contains(detached, []byte("\nPOOL_UUID=\n")) {
		t.Errorf("metadata of a detached domain:\n%s", detached)
	}
	if err := h.FormatDomain(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if names := list(t, tree.Root()); len(names) > 0 {
		t.Errorf("after a format there are %q", names)
	}
	if err := h.ForgetDomain(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.DomainSpace(t.Context(), id); !errs.Is(err, errs.NotFound) {
		t.Errorf("a domain that was forgotten: %v", err)
	}
}

func list(t *testing.T, dir fs.Dir) (names []string) {
	t.Helper()
	if err := dir.List(t.Context(), 0, func(e fs.Entry) bool {
		names = append(names, e.Name)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return names
}
