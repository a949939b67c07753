package cli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/nfsd"
)

// serveAPI serves a service at a socket until the test ends, and returns the socket.
func serveAPI(t *testing.T, s api.Service) string {
	t.Helper()
	h, err := api.New(api.Options{Service: s, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "hf") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, served := make(chan struct{}), make(chan error, 1)
	go func() {
		served <- api.Serve(ctx, api.Listeners{Socket: filepath.Join(dir, "sock"), Ready: func(api.Addresses) { close(ready) }}, h)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	select {
	case <-ready:
	case err := <-served:
		served <- nil
		t.Fatal(err)
	}
	return filepath.Join(dir, "sock")
}

// quietHost is a host that nobody asks for anything but what runs on it.
type quietHost struct{ engine.Host }

func (quietHost) RunningVMs() []string { return nil }

func (quietHost) DomainSpace(context.Context, string) (available, used int64, err error) {
	return 1 << 40, 0, nil
}

// realNode is a node over the store of a box, at its socket; and the address of an engine.
func realNode(t *testing.T, b *box) (socket, engineURL string) {
	t.Helper()
	e, err := engine.New(engine.Options{Host: quietHost{}, Scale: 0.001, VMs: []engine.VMSeed{{Name: "web1", MiB: 512, Tags: []string{"gold"}}}})
	if err != nil {
		t.Fatal(err)
	}
	if engineURL, err = e.Start(t.Context(), "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	unlock := chunkstore.WithPassphrase(func() ([]byte, error) { return []byte(passphrase), nil })
	s, err := chunkstore.Open(t.Context(), b.store, chunkstore.Options{Unlock: unlock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	srv, err := nfsd.New(nfsd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := node.NewNode(t.Context(), node.NodeOptions{
		Store: s, State: b.path("state"), NFS: srv, Allow: []string{"127.0.0.1"}, Address: "127.0.0.1", Port: 2049,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close(context.Background()) })
	return serveAPI(t, n), engineURL
}

// asks runs a command that connects by itself.
func (b *box) asks(args ...string) result {
	var out, note bytes.Buffer
	code := Run(b.t.Context(), World{Args: args, Getenv: func(k string) string { return b.env[k] }, Stdout: &out, Stderr: &note, Now: time.Now})
	return result{code, out.String(), note.String()}
}

// TestFirstStepsWithARealNode takes the way of a new administrator: the engine is not confirmed, the command that is
// shown confirms it, its VMs are there. It holds the texts that pass between node and command line together.
func TestFirstStepsWithARealNode(t *testing.T) {
	b := newBox(t)
	socket, url := realNode(t, b)
	b.env["HOLDFAST_NODE"] = socket
	add := []string{"manager", "add", "prod", "--url", url, "--user", "admin@internal", "--password-file", b.file("pw", []byte("holdfast\n"))}
	r := b.asks(add...)
	b.failed(r, exitDenied, add, "openssl x509", "--accept-fingerprint")
	_, line, _ := strings.Cut(r.err, "\n  holdfast ")
	confirm := strings.Fields(strings.SplitN(line, "\n", 2)[0])
	if r := b.asks(confirm...); r.code != 0 || !strings.Contains(r.out, url) {
		t.Fatalf("%q: %d\n%s%s", confirm, r.code, r.out, r.err)
	}
	b.failed(b.asks(confirm...), exitConflict, confirm, "a manager of that name exists")
	b.failed(b.asks("manager", "add", "x", "--url", url, "--user", "admin", "--password-file", b.path("pw")), exitUsage, nil, "the domain is missing")
	wrong := append(append([]string{}, confirm...), "--password-file", b.file("wrong", []byte("hunter2\n")))
	wrong[2] = "other"
	r = b.asks(wrong...)
	if b.failed(r, exitDenied, wrong); strings.Contains(r.err, "hunter2") || strings.Contains(r.err, "--accept-fingerprint") {
		t.Errorf("a wrong password:\n%s", r.err)
	}
	var list []appliance.VM
	if r := b.asks("vm", "list", "-o", "json"); r.code != 0 {
		t.Fatal(r.err)
	} else if decode(t, r.out, &list); len(list) != 1 || list[0].Name != "web1" || list[0].Manager != "prod" {
		t.Errorf("%s", r.out)
	}
	for _, c := range []string{"manager list", "manager show prod", "vm show web1", "vm show " + list[0].ID, "task list", "session list"} {
		if r := b.asks(strings.Fields(c)...); r.code != 0 || r.out == "" || r.err != "" {
			t.Errorf("%s: %d\n%s%s", c, r.code, r.out, r.err)
		}
	}
	b.failed(b.asks("restore", "instant", "web1"), exitNotFound, nil, "web1@latest", "no machine of that name has a point")
	b.failed(b.asks("backup", "run", "nobody"), exitNotFound, nil, "nobody")
	if r := b.asks("manager", "rm", "prod"); r.code != 0 {
		t.Error(r.err)
	}
}
