package node

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// TestKeepSessions keeps a session's disk while its VM runs and when it is down, kills the node at every write of its
// journal meanwhile, and runs a VM from what was kept. Engine, host and NFS client are the lab's.
func TestKeepSessions(t *testing.T) {
	y := newYard(t)
	y.done(y.api.StartBackup(t.Context(), api.BackupSpec{VM: "web1"}))
	session, task, err := y.api.StartInstant(t.Context(), api.InstantSpec{Point: "web1@latest", Name: "restored", PowerOn: true})
	y.done(task, err)
	if session, err = y.api.GetSession(t.Context(), session.ID); err != nil || session.State != appliance.SessionRunning {
		t.Fatalf("%+v, %v", session, err)
	}
	if _, err := y.api.StartKeep(t.Context(), session.ID, false); !errs.Is(err, errs.Busy) || !strings.Contains(errs.NextStep(err), "--running") {
		t.Fatalf("the VM runs: %v", err)
	}
	running := y.done(y.api.StartKeep(t.Context(), session.ID, true))
	old := y.disk(session.Point)
	if got := y.disk(running.Result["point"].(string)); !bytes.Equal(got, old) {
		t.Error("a machine that wrote nothing has another disk")
	}

	y.stopVM(ovirt.ID(session.VMID))
	volume := y.volume(session)
	if out, err := exec.Command("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 20M 192k", "-c", "discard 1M 1M", "-c", "write -P 3 1500k 4k", volume).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := bytes.Clone(old)
	copy(want[20<<20:], bytes.Repeat([]byte{0x5a}, 192<<10))
	clear(want[1<<20 : 2<<20])
	copy(want[1500<<10:], bytes.Repeat([]byte{3}, 4<<10))
	points := 2
	for n, reached := 1, true; reached; n++ {
		for _, late := range []bool{false, true} {
			reached = y.keepKilled(session.ID, n, late, &points, want)
		}
		if !reached && n < 3 {
			t.Errorf("keeping took only %d writes of the journal", n-1)
		}
	}

	kept := y.done(y.api.StartKeep(t.Context(), session.ID, false))
	if read := kept.Result["new_bytes"].(float64) + kept.Result["known_bytes"].(float64); read > 4<<20 {
		t.Errorf("%v bytes were looked at for what was written", read)
	}
	y.done(y.api.StartRelease(t.Context(), session.ID, true))
	again, task, err := y.api.StartInstant(t.Context(), api.InstantSpec{Point: "restored@latest", Name: "again", PowerOn: true})
	y.done(task, err)
	if again.Point != kept.Result["point"].(string) {
		t.Errorf("the newest point of the VM is %s, want %s", again.Point, kept.Result["point"])
	}
	y.done(y.api.StartRelease(t.Context(), again.ID, true))
}

// keepKilled kills the node at a write of its journal while it keeps a session: afterwards there is a whole point more,
// or none, and the session is as it was.
func (y *yard) keepKilled(session string, n int, late bool, points *int, want []byte) (reached bool) {
	t := y.t
	t.Helper()
	y.kill()
	y.start(n, late)
	_, err := y.api.StartKeep(t.Context(), session, false)
	if err != nil && !errs.Is(err, errs.Transient) {
		t.Fatal(err)
	}
	reached = y.untilDead(err)
	y.start(0, false)
	tasks := y.settle()
	now := y.checkPoints(*points)
	if now > *points+1 {
		t.Errorf("write %d, late %v: %d points more", n, late, now-*points)
	}
	known := !(n == 1 && !late)
	if state := tasks[0].State; known && state == appliance.TaskSucceeded && now == *points {
		t.Errorf("write %d, late %v: the task says it succeeded, and there is no point", n, late)
	}
	if now > *points {
		all, _ := y.api.ListPoints(t.Context())
		if got := y.disk(all[len(all)-1].Point); !bytes.Equal(got, want) {
			t.Errorf("write %d, late %v: the point's disk is not what the session's was", n, late)
		}
	}
	*points = now
	if s, err := y.api.GetSession(t.Context(), session); err != nil || s.State != appliance.SessionRunning {
		t.Fatalf("write %d, late %v: the session is %+v, %v", n, late, s, err)
	}
	return reached
}

// done waits for a task, which must succeed.
func (y *yard) done(task appliance.Task, err error) appliance.Task {
	y.t.Helper()
	if err != nil {
		y.t.Fatal(err)
	}
	for _, t := range y.settle() {
		if t.ID == task.ID {
			if t.State != appliance.TaskSucceeded {
				y.t.Fatalf("%s: %+v", t.Kind, t.Problem)
			}
			return t
		}
	}
	y.t.Fatalf("task %s is not there", task.ID)
	return task
}

// disk reads the only disk of a point, beside the node.
func (y *yard) disk(point string) []byte {
	y.t.Helper()
	r, err := chunkstore.OpenReader(y.t.Context(), y.config.Store, chunkstore.Options{
		Unlock: chunkstore.WithPassphrase(func() ([]byte, error) {
			b, err := os.ReadFile(y.config.PassphraseFile)
			return bytes.TrimSpace(b), err
		}),
	})
	if err != nil {
		y.t.Fatal(err)
	}
	defer r.Close()
	p, err := r.Point(y.t.Context(), chunkstore.PointID(point))
	if err != nil {
		y.t.Fatal(err)
	}
	img, err := r.Image(p, p.Disks[0].Number)
	if err != nil {
		y.t.Fatal(err)
	}
	b := make([]byte, img.Size())
	if n, err := img.ReadAt(y.t.Context(), b, 0); n != len(b) {
		y.t.Fatal(n, err)
	}
	return b
}

// stopVM stops a VM and waits until it is down.
func (y *yard) stopVM(id ovirt.ID) {
	y.t.Helper()
	if err := y.engine.StopVM(y.t.Context(), id); err != nil {
		y.t.Fatal(err)
	}
	for range 600 {
		vm, err := y.engine.VM(y.t.Context(), id)
		if err != nil {
			y.t.Fatal(err)
		}
		if vm.Status == ovirt.VMDown {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-y.t.Context().Done():
		}
	}
	y.t.Fatal("the VM does not go down")
}

// volume is where a host finds the session's disk.
func (y *yard) volume(s appliance.Session) string {
	y.t.Helper()
	root := filepath.Join(y.config.State, "sessions", s.ID, "domain")
	metas, err := filepath.Glob(filepath.Join(root, "*", "images", "*", "*.meta"))
	if err != nil || len(metas) != 1 {
		y.t.Fatalf("volumes %v, %v", metas, err)
	}
	rel, err := filepath.Rel(root, strings.TrimSuffix(metas[0], ".meta"))
	if err != nil {
		y.t.Fatal(err)
	}
	return fmt.Sprintf("nfs://127.0.0.1/sessions/%s/%s", s.ID, rel)
}
