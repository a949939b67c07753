package node

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/api/client"
	"github.com/holdfast-backup/holdfast/appliance/catalog"
	"github.com/holdfast-backup/holdfast/appliance/config"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/datacenter"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/netns"
)

// These tests kill a node with kill -9 at every write of its journal, before and after the write, while it backs up a VM
// and runs it from the backup. The node is this test's program run again; engine and host are the lab's, with a real
// qemu, the real imageio daemon and a real NFS client.

const (
	realParts = "HOLDFAST_REAL_PARTS"
	childKey  = "HOLDFAST_NODE_TEST"      // the folder of a child's configuration
	killKey   = "HOLDFAST_NODE_TEST_KILL" // at which write it dies; 0 is never
	lateKey   = "HOLDFAST_NODE_TEST_LATE" // after the write, not before it
)

// TestMain moves the tests that need it into a network of their own, where port 111 is free.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childKey); dir != "" {
		child(dir)
		return
	}
	if os.Getenv(realParts) == "1" {
		if err := netns.Enter(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// child runs a daemon that says "ready", and dies where it was told to.
func child(dir string) {
	c, err := config.Load(filepath.Join(dir, "config.yaml"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	at, _ := strconv.Atoi(os.Getenv(killKey))
	d := &daemon{c: c, log: slog.New(slog.NewTextHandler(os.Stderr, nil)), version: "test", poll: 20 * time.Millisecond,
		catalog: &deadly{at: int32(at), late: os.Getenv(lateKey) != ""}}
	ctx := context.Background()
	if err := d.open(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	err = d.run(ctx, func() { fmt.Println("ready") })
	fmt.Fprintln(os.Stderr, "ended:", err)
	os.Exit(2)
}

// deadly is the real disk, on which a certain write to the journal is the last thing its process does.
type deadly struct {
	disk.OS
	at   int32
	late bool
	n    atomic.Int32
}

// journal tells whether a file is a record of what is made on an engine, or of a task's steps.
func journal(name string) bool {
	return strings.HasSuffix(name, ".json") && !strings.Contains(name, "/"+string(catalog.Managers)+"/")
}

func (d *deadly) strike(name string, do func() error) error {
	if !journal(name) || d.n.Add(1) != d.at {
		return do()
	}
	if d.late {
		_ = do() // nobody will hear of it
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// Rename implements disk.Disk; a record is published by it.
func (d *deadly) Rename(from, to string) error {
	return d.strike(to, func() error { return d.OS.Rename(from, to) })
}

// Remove implements disk.Disk.
func (d *deadly) Remove(name string) error {
	return d.strike(name, func() error { return d.OS.Remove(name) })
}

// yard is a data center with a VM, and a node's folder.
type yard struct {
	t      *testing.T
	center *datacenter.DataCenter
	config *config.Config
	dir    string
	before engine.Snapshot
	api    *client.Client
	engine *ovirt.Client // the administrator's own
	cmd    *exec.Cmd
	ended  chan struct{} // the node is dead
}

func newYard(t *testing.T) *yard {
	t.Helper()
	if os.Getenv(realParts) != "1" {
		t.Skip("kills nodes over real machines for a minute; `make test` runs it")
	}
	y := &yard{t: t, config: newConfig(t)}
	y.dir = filepath.Dir(y.config.Store)
	image := filepath.Join(y.dir, "disk.qcow2")
	// Nothing boots from it: what counts here is that qemu runs.
	for _, args := range [][]string{
		{"qemu-img", "create", "-q", "-f", "qcow2", image, "64M"}, {"qemu-io", "-c", "write -P 7 1M 8M", "-c", "write -P 9 40M 64k", image},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", args[0], err, out)
		}
	}
	var err error
	y.center, err = datacenter.Start(t.Context(), datacenter.Options{Dir: filepath.Join(y.dir, "oVirt"), Disk: image, Scale: 0.01, VMs: []string{"web1"}, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(y.center.Close)
	y.config.NFS.Listen = "127.0.0.1:2049"
	text := fmt.Sprintf("store: %s\npassphrase_file: %s\nstate: %s\napi: {socket: %s}\nnfs: {listen: '127.0.0.1:2049', allow: [127.0.0.1], address: 127.0.0.1, portmap: true}\n",
		y.config.Store, y.config.PassphraseFile, y.config.State, y.config.API.Socket)
	if err := os.WriteFile(filepath.Join(y.dir, "config.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	y.start(0, false)
	t.Cleanup(func() { y.t = t; y.kill() })
	ca, err := os.ReadFile(y.center.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := y.api.AddManager(t.Context(), api.ManagerSpec{Name: "lab", URL: y.center.URL, User: datacenter.User, Password: "holdfast", CA: string(ca)}); err != nil {
		t.Fatal(err)
	}
	if y.engine, err = ovirt.Dial(t.Context(), ovirt.Options{URL: y.center.URL, User: datacenter.User, Password: "holdfast", CA: ca}); err != nil {
		t.Fatal(err)
	}
	y.before = y.center.Engine.Snapshot()
	return y
}

// start starts the node; it will die at the n-th write of its journal.
func (y *yard) start(n int, late bool) {
	y.t.Helper()
	y.cmd = exec.Command(os.Args[0])
	y.cmd.Env = append(os.Environ(), childKey+"="+y.dir, killKey+"="+strconv.Itoa(n))
	if late {
		y.cmd.Env = append(y.cmd.Env, lateKey+"=1")
	}
	y.cmd.Stderr = y.t.Output()
	y.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := y.cmd.StdoutPipe()
	if err != nil {
		y.t.Fatal(err)
	}
	if err := y.cmd.Start(); err != nil {
		y.t.Fatal(err)
	}
	y.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		_ = cmd.Wait() // kill looks at how it ended
		close(ended)
	}(y.cmd, y.ended)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" && n == 0 {
		y.t.Fatalf("the node says %q, %v", line, err)
	}
	if y.api, err = client.Dial(client.Options{Node: "unix://" + y.config.API.Socket}); err != nil {
		y.t.Fatal(err)
	}
}

// kill ends the node, if it still lives.
func (y *yard) kill() {
	y.t.Helper()
	_ = y.cmd.Process.Kill() // it may be dead
	<-y.ended
	if y.cmd.ProcessState.Exited() {
		y.t.Fatal("the node ended by itself: ", y.cmd.ProcessState)
	}
}

// settle waits until no task runs on the node, and returns all.
func (y *yard) settle() []appliance.Task {
	y.t.Helper()
	ctx, cancel := context.WithTimeout(y.t.Context(), time.Minute)
	defer cancel()
	for {
		all, err := y.api.ListTasks(ctx)
		if err != nil {
			y.t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(t appliance.Task) bool { return !t.State.Ended() })
		if i < 0 {
			return all
		}
		if err := y.api.WatchTask(ctx, all[i].ID, func(appliance.Task) error { return nil }); err != nil {
			y.t.Fatalf("task %s (%s) does not end: %v", all[i].ID, all[i].Kind, err)
		}
	}
}

// left lists what is on the engine that was not there before, but for the kinds given.
func (y *yard) left(but ...string) []string {
	return slices.DeleteFunc(y.center.Engine.Leftovers(y.before), func(line string) bool {
		kind, _, _ := strings.Cut(line, " ")
		return slices.Contains(but, kind)
	})
}

// moments calls try with each write of the journal, before and after it, until one was so late that try's node did not
// reach it: try says so.
func moments(t *testing.T, atLeast int, try func(t *testing.T, n int, late bool) (reached bool)) {
	for n := 1; ; n++ {
		reached := false
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("write%d-late=%v", n, late), func(t *testing.T) { reached = try(t, n, late) })
			if t.Failed() {
				return
			}
		}
		if !reached {
			if n <= atLeast {
				t.Fatalf("it took only %d writes", n-1)
			}
			t.Logf("%d writes, killed before and after each", n-1)
			return
		}
	}
}

func TestKilledBackups(t *testing.T) {
	killedBackups(t, 4, "checkpoint", func(n int) api.BackupSpec { return api.BackupSpec{VM: "web1", Full: n%2 == 0} })
}

// Every second of these is read by layers, if the one before it was finished, and no second one keeps its snapshot.
func TestKilledTransfers(t *testing.T) {
	killedBackups(t, 6, "snapshot", func(n int) api.BackupSpec {
		return api.BackupSpec{VM: "web1", Strategy: appliance.StrategyTransfer, KeepSnapshot: n%4 < 2}
	})
}

// killedBackups kills backups. One object of a kind stays for each that is finished, for the next one: a checkpoint, or a
// snapshot if that was to be kept.
func killedBackups(t *testing.T, atLeast int, stays string, spec func(n int) api.BackupSpec) {
	y := newYard(t)
	var points, kept int
	moments(t, atLeast, func(t *testing.T, n int, late bool) bool {
		y.t = t
		y.kill()
		y.start(n, late)
		s := spec(n)
		_, err := y.api.StartBackup(t.Context(), s)
		if err != nil && !errs.Is(err, errs.Transient) {
			t.Fatal(err)
		}
		reached := y.untilDead(err)
		y.start(0, false)
		tasks := y.settle()
		y.cleared()
		if left := y.left(stays); len(left) > 0 {
			t.Errorf("left on the engine: %s", strings.Join(left, "; "))
		}
		now := y.checkPoints(points)
		if now > points { // what the newest point does not keep is gone, and nothing else was touched
			kept = 0
			if s.KeepSnapshot || stays != "snapshot" {
				kept = 1
			}
		}
		if left := y.left(); len(left) != kept {
			t.Errorf("%d points, %d should have been kept, and on the engine is: %s", now, kept, strings.Join(left, "; "))
		}
		switch known := !(n == 1 && !late); { // else it died before anybody was told of the task
		case !known:
			if now != points {
				t.Error("a point of a task that never was")
			}
		case tasks[0].State == appliance.TaskSucceeded && now == points:
			t.Error("the task says it succeeded, and there is no point")
		case tasks[0].State == appliance.TaskFailed && (tasks[0].Problem == nil || tasks[0].Problem.Remedy == ""):
			t.Errorf("the task does not say what happened: %+v", tasks[0].Problem)
		}
		points = now
		return reached
	})
	if points == 0 {
		t.Error("no backup was ever finished")
	}
}

// cleared waits until no run's record is left.
func (y *yard) cleared() {
	y.t.Helper()
	ctx, cancel := context.WithTimeout(y.t.Context(), time.Minute)
	defer cancel()
	records := filepath.Join(y.config.State, "catalog", string(catalog.Runs))
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		left, err := filepath.Glob(filepath.Join(records, "*.json"))
		if err != nil || len(left) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			y.t.Fatalf("the record of a run stays: %v", left)
		}
	}
}

// untilDead waits until the node has died, or its tasks have ended; failed is the answer to the request.
func (y *yard) untilDead(failed error) (died bool) {
	y.t.Helper()
	defer y.kill()
	ctx, cancel := context.WithCancel(y.t.Context())
	defer cancel()
	go func() { // a client would wait for the node to come back
		select {
		case <-y.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	if failed == nil {
		all, err := y.api.ListTasks(ctx)
		for i := 0; err == nil && i < len(all); i++ {
			err = y.api.WatchTask(ctx, all[i].ID, func(appliance.Task) error { return nil })
		}
		if err == nil { // all have ended, and a task's end is the last thing that is written
			return false
		}
	}
	select {
	case <-y.ended:
		return true
	case <-time.After(time.Minute):
		y.t.Fatal("the node does not answer, and lives")
		return false
	}
}

// checkPoints reads every point whole and returns how many there are: never fewer than before.
func (y *yard) checkPoints(before int) int {
	y.t.Helper()
	points, bad := y.api.ListPoints(y.t.Context())
	if len(bad) > 0 || len(points) < before {
		y.t.Fatalf("%d points, %d before; %v", len(points), before, bad)
	}
	return len(points)
}

func TestKilledSessions(t *testing.T) {
	y := newYard(t)
	if _, err := y.api.StartBackup(t.Context(), api.BackupSpec{VM: "web1"}); err != nil {
		t.Fatal(err)
	}
	y.settle()
	y.before = y.center.Engine.Snapshot()
	moments(t, 10, func(t *testing.T, n int, late bool) bool {
		y.t = t
		y.kill()
		y.start(n, late)
		name := fmt.Sprintf("restored-%d-%v", n, late)
		_, _, err := y.api.StartInstant(t.Context(), api.InstantSpec{Point: "web1@latest", Name: name, PowerOn: true, MigrateTo: datacenter.Spare})
		if err != nil && !errs.Is(err, errs.Transient) {
			t.Fatal(err)
		}
		reached := y.untilDead(err)
		y.start(0, false)
		tasks := y.settle()
		if left := y.left("vm", "attachment", "disk"); len(left) > 0 {
			t.Errorf("left on the engine: %s", strings.Join(left, "; "))
		}
		y.checkSessions(name, n == 1 && !late)
		if s := tasks[0].State; s != appliance.TaskSucceeded && !(n == 1 && !late) {
			t.Errorf("the last task is %s: %+v", s, tasks[0].Problem)
		}
		return reached
	})
}

// checkSessions sees that the VM of a session lies on production storage and runs, and takes it away. Nothing may be
// there of one that was never written down.
func (y *yard) checkSessions(name string, never bool) {
	y.t.Helper()
	all, err := y.api.ListSessions(y.t.Context())
	if err != nil {
		y.t.Fatal(err)
	}
	for _, s := range all {
		if s.State != appliance.SessionReleased {
			y.t.Errorf("session %s is %s: %+v", s.ID, s.State, s.Problem)
		}
	}
	running := y.center.Host.RunningVMs()
	if never {
		if left := y.left(); len(left) > 0 || len(running) != 1 {
			y.t.Errorf("left on the engine: %s; running: %v", strings.Join(left, "; "), running)
		}
		return
	}
	if len(running) != 2 {
		y.t.Errorf("running: %v", running)
	}
	vm, err := y.api.GetVM(y.t.Context(), name)
	if err != nil {
		y.t.Fatal(err)
	}
	if len(vm.Disks) != 1 || vm.Status != "up" {
		y.t.Errorf("the VM is %+v", vm)
	}
	y.removeVM(ovirt.ID(vm.ID))
}

// removeVM takes a VM away with its disks, as an administrator would who does not need it any more.
func (y *yard) removeVM(id ovirt.ID) {
	y.t.Helper()
	ctx, cancel := context.WithTimeout(y.t.Context(), time.Minute)
	defer cancel()
	if err := y.engine.StopVM(ctx, id); err != nil {
		y.t.Fatal(err)
	}
	for gone := false; !gone; {
		err := y.engine.RemoveVM(ctx, id, false)
		if err != nil && !errs.KindOf(err).Retryable() && !errs.Is(err, errs.NotFound) {
			y.t.Fatal(err)
		}
		_, err = y.engine.VM(ctx, id)
		gone = errs.Is(err, errs.NotFound)
	}
}
