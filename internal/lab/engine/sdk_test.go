package engine

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/sdk"
)

// It is not only our client that understands the simulator: oVirt's own goes through a backup and an instant restore.
func TestOfficialSDK(t *testing.T) {
	if os.Getenv("HOLDFAST_REAL_PARTS") != "1" {
		t.Skip("needs the official Python SDK: HOLDFAST_REAL_PARTS=1 installs it into the lab's cache")
	}
	python, err := sdk.Python(t.Context())
	if err != nil {
		t.Fatal(err, errs.NextStep(err))
	}
	host := newFakeHost()
	const domain, image = "0f0f0f0f-1111-4222-8333-4444444444d1", "0f0f0f0f-2222-4222-8333-444444444401"
	host.put("10.0.0.5:/ir/1", domain)
	host.found = []FoundDisk{{Disk: image, Image: newID(), Format: "cow", Size: gib, Volumes: 1}}
	e, err := New(Options{Host: host, Scale: 0.005, VMs: []VMSeed{{ID: vmID, Name: "bk1", MiB: 1024, Tags: []string{"gold"}, Networks: []string{"ovirtmgmt"},
		Disks: []DiskSeed{{ID: diskInc, Alias: "bk1_inc", Size: gib, Incremental: true}}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	url, err := e.Start(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, e.CA().PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	before := e.Snapshot()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, python, "-I", "testdata/sdk.py", url, ca, "admin@internal", "holdfast").CombinedOutput()
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "closed") {
		t.Fatalf("%v\n%s", err, out)
	}
	deadline := time.Now().Add(10 * time.Second)
	for len(e.Leftovers(before)) > 0 && time.Now().Before(deadline) {
		<-time.After(20 * time.Millisecond)
	}
	if left := e.Leftovers(before); len(left) > 0 {
		t.Fatal(left)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.state.sessions) != 0 {
		t.Fatal("the SDK logged out and its token lives")
	}
}
