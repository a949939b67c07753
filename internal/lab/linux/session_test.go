package linux_test

import (
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/lab/datacenter"
	"github.com/holdfast-backup/holdfast/internal/lab/guest"
	"github.com/holdfast-backup/holdfast/internal/lab/linux"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
	"github.com/holdfast-backup/holdfast/internal/lab/product"
)

// session is an instant restore that a node serves: a whole storage domain, with folders and files that the clients make
// and remove, and a disk in it.
type session struct {
	node   *product.Node
	export string // its path
	domain string // the domain's folder in it
	volume string // the disk's path in it
}

// volumeSize is the size of the session's disk.
const volumeSize = 32 << 20

// newSession backs a VM up and restores it, all as an administrator would. The VM's disk is empty: its guest never
// starts, and the machine has its processors for the clients.
func (r *rig) newSession() *session {
	r.t.Helper()
	image := filepath.Join(r.dir, "empty.qcow2")
	if _, err := proc.Run(r.t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", image, "32M"); err != nil {
		r.t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(r.dir, "oVirt.log"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = log.Close() })
	center, err := datacenter.Start(r.t.Context(), datacenter.Options{
		Dir: filepath.Join(r.dir, "oVirt"), Disk: image, Address: linux.HostAddress, Scale: 0.05, Log: log,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(center.Close)
	s := &session{}
	s.node, err = product.Install(r.t.Context(), product.Options{
		BinDir: os.Getenv("HOLDFAST_BIN"), Dir: filepath.Join(r.dir, "s"), Address: linux.HostAddress,
		Allow: linux.HostAddress + "/24", Log: log,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := s.node.Start(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(s.node.Kill)
	run := func(result any, args ...string) {
		r.t.Helper()
		if err := s.node.Run(r.t.Context(), result, r.t.Output(), args...); err != nil {
			r.t.Fatal(err)
		}
	}
	run(nil, "manager", "add", "lab", "--url", center.URL, "--user", datacenter.User,
		"--password-file", center.PasswordFile, "--ca-file", center.CAFile)
	run(nil, "backup", "run", "web1", "--wait")
	if err := center.StopVMs(r.t.Context()); err != nil { // its screen full of nothing costs a processor
		r.t.Fatal(err)
	}
	var shown struct {
		Export string `json:"export"`
	}
	run(&shown, "restore", "instant", "web1@latest", "--format", "raw", "--wait")
	_, s.export, err = net.SplitHostPort(shown.Export)
	if u, perr := url.Parse(shown.Export); err != nil && perr == nil {
		s.export = u.Path
	}
	if s.export == "" {
		r.t.Fatalf("where is the session? %+v", shown)
	}
	s.find(r)
	return s
}

// find looks in the export, by a client's eyes, where domain and disk lie.
func (s *session) find(r *rig) {
	r.t.Helper()
	at := s.mount(r.t, r.a, "/mnt/find")
	domains := call[[]string](r.t, r.a, "Agent.Glob", at+"/*/dom_md")
	volumes := call[[]string](r.t, r.a, "Agent.Glob", at+"/*/images/*/*.meta")
	if len(domains) != 1 || len(volumes) != 1 {
		r.t.Fatalf("domains %q, volumes %q", domains, volumes)
	}
	s.domain = path.Base(path.Dir(domains[0]))
	volume := volumes[0][len(at)+1:]
	s.volume = volume[:len(volume)-len(".meta")]
}

// mount mounts the domain as vdsm does, until t ends, and returns where.
func (s *session) mount(t *testing.T, m *linux.Machine, target string) string {
	t.Helper()
	return s.mountWith(t, m, target, vdsmOptions)
}

func (s *session) mountWith(t *testing.T, m *linux.Machine, target, options string) string {
	t.Helper()
	mountUntilEnd(t, m, s.mountArgs(target, options))
	return target
}

func (s *session) mountArgs(target, options string) guest.MountArgs {
	return guest.MountArgs{
		Type: "nfs", Source: linux.HostAddress + ":" + s.export, Target: target, Options: options + ",port=2049,mountport=2049",
	}
}
