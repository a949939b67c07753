package node

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/nfsd"
)

// newNode makes a node with an empty store, and can make it again from what it kept.
func newNode(t *testing.T) (n *Node, again func() *Node) {
	t.Helper()
	dir := t.TempDir()
	made, err := chunkstore.Create(t.Context(), filepath.Join(dir, "store"), []byte("p"), 10, chunkstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	k, _, err := keys.ParseKit(made.Kit)
	if err != nil {
		t.Fatal(err)
	}
	s, err := chunkstore.Open(t.Context(), filepath.Join(dir, "store"), chunkstore.Options{Unlock: chunkstore.WithMaster(k)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	srv, err := nfsd.New(nfsd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	start := func() *Node {
		n, err := NewNode(t.Context(), NodeOptions{Store: s, State: filepath.Join(dir, "state"), NFS: srv, Allow: []string{"127.0.0.1"}, Address: "127.0.0.1", Port: 2049})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close(context.Background()) })
		return n
	}
	return start(), start
}

// noHost is a host that nobody asks for anything but what runs on it.
type noHost struct{ engine.Host }

func (noHost) RunningVMs() []string { return nil }

func (noHost) DomainSpace(context.Context, string) (available, used int64, err error) {
	return 1 << 40, 0, nil
}

// newEngine is the lab's simulated engine over real TLS.
func newEngine(t *testing.T) (e *engine.Engine, url string) {
	t.Helper()
	e, err := engine.New(engine.Options{Host: noHost{}, Scale: 0.001, VMs: []engine.VMSeed{{Name: "web1", MiB: 512, Tags: []string{"gold"}}}})
	if err != nil {
		t.Fatal(err)
	}
	if url, err = e.Start(t.Context(), "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e, url
}

func TestManagers(t *testing.T) {
	_, url := newEngine(t)
	n, again := newNode(t)
	spec := api.ManagerSpec{Name: "m1", URL: url, User: "admin@internal", Password: "holdfast"}
	_, err := n.AddManager(t.Context(), spec)
	if !errs.Is(err, errs.Denied) || !strings.Contains(err.Error(), "fingerprint") || errs.NextStep(err) == "" {
		t.Fatal("an engine that nobody has confirmed:", err)
	}
	_, spec.Fingerprint, _ = strings.Cut(err.Error(), "(SHA-256) is ")
	wrong := spec
	wrong.Password = "wrong"
	if _, err := n.AddManager(t.Context(), wrong); !errs.Is(err, errs.Denied) || strings.Contains(err.Error(), "wrong\"") {
		t.Error("a wrong password:", err)
	}
	wrong = spec
	wrong.User = "admin"
	if _, err := n.AddManager(t.Context(), wrong); !errs.Is(err, errs.Invalid) {
		t.Error("a user without a domain:", err)
	}
	m, err := n.AddManager(t.Context(), spec)
	if err != nil || m.Version == "" || m.Fingerprint == "" {
		t.Fatalf("%+v, %v", m, err)
	}
	if _, err := n.AddManager(t.Context(), spec); !errs.Is(err, errs.Exists) {
		t.Error("the same name again:", err)
	}
	n = again() // the password is read back from what was kept
	vms, bad := n.ListVMs(t.Context())
	if len(bad) > 0 || len(vms) != 1 || vms[0].Name != "web1" || vms[0].Manager != "m1" || vms[0].Status != "down" {
		t.Fatalf("%+v, %v", vms, bad)
	}
	if v, err := n.GetVM(t.Context(), "web1"); err != nil || v.ID != vms[0].ID {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := n.GetVM(t.Context(), "nobody"); !errs.Is(err, errs.NotFound) {
		t.Error("an unknown VM:", err)
	}
	if err := n.RemoveManager(t.Context(), "m1"); err != nil {
		t.Error(err)
	}
	if list, err := n.ListManagers(t.Context()); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
}

func TestEngineThatDoesNotAnswer(t *testing.T) {
	n, _ := newNode(t)
	_, err := n.AddManager(t.Context(), api.ManagerSpec{Name: "m", URL: "https://127.0.0.1:1", User: "admin@internal", Password: "p"})
	if !errs.Is(err, errs.Transient) || errs.NextStep(err) == "" {
		t.Error(err)
	}
}
