package node

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/api/client"
	"github.com/holdfast-backup/holdfast/appliance/config"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// newConfig makes an empty store and a node's configuration for it, with NFS on a port that is free.
func newConfig(t *testing.T) *config.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "node") // a socket's path has to be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if _, err := chunkstore.Create(t.Context(), filepath.Join(dir, "store"), []byte("p"), 10, chunkstore.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "passphrase"), []byte("p\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &config.Config{
		Store: filepath.Join(dir, "store"), PassphraseFile: filepath.Join(dir, "passphrase"), State: filepath.Join(dir, "state"),
		API: &config.API{Socket: filepath.Join(dir, "sock"), Listen: "127.0.0.1:0", TokenFile: filepath.Join(dir, "token")},
		NFS: &config.NFS{Listen: "127.0.0.1:0", Allow: []string{"127.0.0.1"}, Address: "127.0.0.1"},
	}
}

// startDaemon runs a daemon until end is called, which returns its error.
func startDaemon(t *testing.T, c *config.Config) (end func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- Run(ctx, c, "test", slog.New(slog.DiscardHandler), func() { close(ready) }) }()
	stop := func() error {
		cancel()
		return <-ended
	}
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		ended <- err
	}
	return stop
}

func TestDaemonAsNode(t *testing.T) {
	c := newConfig(t)
	for round := range 2 { // the second finds what the first has left
		end := startDaemon(t, c)
		s, err := client.Dial(client.Options{Node: "unix://" + c.API.Socket})
		if err != nil {
			t.Fatal(err)
		}
		if ms, err := s.ListManagers(t.Context()); err != nil || len(ms) != 0 {
			t.Errorf("round %d: managers %v, %v", round, ms, err)
		}
		if _, err := s.GetSession(t.Context(), "5e5510000000"); !errs.Is(err, errs.NotFound) {
			t.Errorf("round %d: a session that never was: %v", round, err)
		}
		if err := Run(t.Context(), c, "test", slog.New(slog.DiscardHandler), func() {}); !errs.Is(err, errs.Busy) {
			t.Errorf("round %d: a second daemon on the same store: %v", round, err)
		}
		if err := end(); err != nil {
			t.Errorf("round %d: the end: %v", round, err)
		}
		if _, err := s.ListManagers(t.Context()); !errs.Is(err, errs.Transient) || errs.NextStep(err) == "" {
			t.Errorf("round %d: asked after its end: %v", round, err)
		}
	}
}

// TestDaemonThatCannotStartHoldsNothing takes away one thing at a time, and starts with everything there afterwards.
func TestDaemonThatCannotStartHoldsNothing(t *testing.T) {
	c := newConfig(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for what, spoil := range map[string]func(*config.Config){
		"NFS address in use": func(c *config.Config) { c.NFS.Listen = taken.Addr().String() },
		"API address in use": func(c *config.Config) { c.API.Listen = taken.Addr().String() },
		"no store":           func(c *config.Config) { c.Store += "-none" },
		"no passphrase":      func(c *config.Config) { c.PassphraseFile += "-none" },
		"state is a file":    func(c *config.Config) { c.State = c.PassphraseFile },
		"socket's folder":    func(c *config.Config) { c.API.Socket = filepath.Join(c.PassphraseFile, "sock") },
	} {
		bad, api, nfs := *c, *c.API, *c.NFS
		bad.API, bad.NFS = &api, &nfs
		spoil(&bad)
		ctx, cancel := context.WithCancel(t.Context())
		err := Run(ctx, &bad, "test", slog.New(slog.DiscardHandler), func() {
			t.Error(what, ": it says it is ready")
			cancel()
		})
		cancel()
		if err == nil {
			t.Error(what, ": no error")
		}
		t.Logf("%s: %v", what, err)
	}
	if err := startDaemon(t, c)(); err != nil {
		t.Error("with everything there:", err)
	}
}
