package linux_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/guest"
	"github.com/holdfast-backup/holdfast/internal/lab/linux"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
	"github.com/holdfast-backup/holdfast/internal/lab/product"
)

// vdsmOptions are what vdsm mounts an NFS v3 domain with, its defaults and the ones that Holdfast's connection names,
// and what mount.nfs makes of them: the address.
const vdsmOptions = "soft,nosharecache,timeo=100,retrans=3,nfsvers=3,nolock,proto=tcp,mountproto=tcp,addr=" + linux.HostAddress

// hardOptions are for who would rather wait than fail.
var hardOptions = strings.Replace(vdsmOptions, "soft,", "hard,", 1)

// rig is two guests and a store with two disks.
type rig struct {
	t     *testing.T
	a, b  *linux.Machine
	node  *product.Node
	dir   string
	disks [2]*disk
}

// disk is a machine's disk in the store, and the server that shows it, if one runs.
type disk struct {
	vm      string // the machine's name in the store
	port    string // where it is served
	content []byte
	server  *proc.Process
	export  string // its path
	url     string // of the disk, as libnfs's tools take it
}

// file is the disk's name in its export.
const file = "disk0.raw"

// diskSize is the size of each disk: a multiple of 4 KiB, so that the raw view is no longer.
const diskSize = 4 << 20

// newRig boots the guests, and makes the store meanwhile.
func newRig(t *testing.T, programs ...string) *rig {
	t.Helper()
	if os.Getenv(realParts) != "1" {
		t.Skip("boots machines and runs the built programs, as root; `make test` runs it")
	}
	bin := os.Getenv("HOLDFAST_BIN")
	if bin == "" {
		t.Fatal("HOLDFAST_BIN does not say where the built programs are: run `make test`")
	}
	cache, err := parts.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	disk, err := debian.Build(t.Context(), debian.Options{CacheDir: cache, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	image, err := linux.Build(t.Context(), linux.Options{Dir: t.TempDir(), Disk: disk, Programs: programs, Files: sanlockFiles})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: t.TempDir()}
	var booting sync.WaitGroup
	for n, m := range []**linux.Machine{&r.a, &r.b} {
		name := string(rune('a' + n))
		booting.Go(func() {
			begun := time.Now()
			var err error
			if *m, err = image.Start(context.WithoutCancel(t.Context()), linux.Config{Name: name, Number: n + 1}); err != nil {
				t.Error(err)
				return
			}
			t.Logf("guest %s answers after %.1f s", name, time.Since(begun).Seconds())
			t.Cleanup((*m).Kill)
		})
	}
	r.store(bin)
	booting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("guest a's console ends with:\n%s", r.log(r.a))
			t.Logf("guest b's console ends with:\n%s", r.log(r.b))
		}
	})
	return r
}

// log is the end of what a guest's kernel has said.
func (r *rig) log(m *linux.Machine) string {
	var text string
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.t.Context()), 10*time.Second)
	defer cancel()
	if err := m.Call(ctx, "Agent.Log", guest.Nothing{}, &text); err != nil {
		return err.Error()
	}
	return text[max(0, len(text)-2000):]
}

// store makes a store with two disks, of data and holes.
func (r *rig) store(bin string) {
	r.t.Helper()
	var err error
	r.node, err = product.Install(r.t.Context(), product.Options{
		BinDir: bin, Dir: filepath.Join(r.dir, "n"), Address: "127.0.0.1", Log: r.t.Output(),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	for n := range r.disks {
		d := &disk{vm: fmt.Sprint("vm", n), port: fmt.Sprint(20490 + n), content: make([]byte, diskSize)}
		for at := 0; at < diskSize; at += 1 << 20 {
			if (at>>20+n)%3 != 0 { // every third MiB is a hole
				copy(d.content[at:], random(uint64(100*n+at>>20), 1<<20))
			}
		}
		r.disks[n] = d
		image := filepath.Join(r.dir, d.vm)
		if err := os.WriteFile(image, d.content, 0o644); err != nil {
			r.t.Fatal(err)
		}
		if err := r.node.Run(r.t.Context(), nil, r.t.Output(), "disk", "import", image, "--vm", d.vm); err != nil {
			r.t.Fatal(err)
		}
	}
}

// ready is the line that a server prints when it serves.
type ready struct {
	Point string `json:"point"`
	URL   string `json:"url"`
}

// lineWriter hands on the first line that is written to it.
type lineWriter struct {
	rest []byte
	line chan []byte
}

// Write implements io.Writer and never fails.
func (l *lineWriter) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	if i := strings.IndexByte(string(l.rest), '\n'); i >= 0 {
		select {
		case l.line <- l.rest[:i]:
		default:
		}
	}
	return len(b), nil
}

// serve starts a disk's server, with an overlay that is kept, and returns when it is ready.
func (r *rig) serve(d *disk) {
	r.t.Helper()
	out := &lineWriter{line: make(chan []byte, 1)}
	p, err := proc.Start(context.WithoutCancel(r.t.Context()), proc.Spec{
		Args: []string{filepath.Join(os.Getenv("HOLDFAST_BIN"), "holdfast"), "point", "serve", d.vm + "@latest", "--nfs", linux.HostAddress + ":" + d.port,
			"--format", "raw", "--allow", linux.HostAddress + "/24",
			"--writable", "--overlay", filepath.Join(r.dir, d.vm+"-overlay")},
		Env: r.node.Environment(), Stdout: out, Stderr: r.t.Output(),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	d.server = p
	r.t.Cleanup(p.Kill)
	var said ready
	select {
	case line := <-out.line:
		if err := json.Unmarshal(line, &said); err != nil {
			r.t.Fatal(err)
		}
	case <-p.Done():
		r.t.Fatalf("the server has ended: %v", p.Wait(r.t.Context()))
	}
	d.export, d.url = "/"+said.Point, said.URL
}

// stop ends a disk's server as Ctrl-C does.
func (r *rig) stop(d *disk) {
	r.t.Helper()
	if err := d.server.Stop(syscall.SIGINT, 30*time.Second); err != nil {
		r.t.Error(err)
	}
}

// mount mounts a disk's export until t ends, and returns the disk's path in the guest.
func (r *rig) mount(t *testing.T, m *linux.Machine, d *disk, target, options string) string {
	t.Helper()
	mountUntilEnd(t, m, r.mountArgs(d, target, options))
	return target + "/" + file
}

// mountUntilEnd mounts until t ends.
func mountUntilEnd(t *testing.T, m *linux.Machine, a guest.MountArgs) {
	t.Helper()
	if err := m.Mount(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := m.Unmount(ctx, a.Target); err != nil {
			t.Error(err)
		}
	})
}

func (r *rig) mountArgs(d *disk, target, options string) guest.MountArgs {
	return guest.MountArgs{
		Type: "nfs", Source: linux.HostAddress + ":" + d.export, Target: target,
		Options: options + ",port=" + d.port + ",mountport=" + d.port,
	}
}

// call calls a method of the guest's, which must succeed.
func call[R any](t *testing.T, m *linux.Machine, method string, args any) (reply R) {
	t.Helper()
	if err := m.Call(t.Context(), method, args, &reply); err != nil {
		t.Fatal(err)
	}
	return reply
}
