package domain_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/instant/domain"
	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/fstest"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/nfsdomain"
	"github.com/holdfast-backup/holdfast/nfsd"
)

// These tests let a host that reads as vdsm and sanlock do, through a foreign NFS client, look at what Write has
// written, served by nfsd.

const (
	exportPath = "/ir/test"
	poolID     = "5849b030-626e-47cb-ad90-3ce782d831b3"
	diskSize   = 1 << 20
)

// cow and raw are the disks of the example.
var (
	cow = domain.Volume{Disk: "aaaaaaaa-1111-4111-8111-000000000001", Image: "bbbbbbbb-1111-4111-8111-000000000001",
		Size: diskSize, Format: "cow", Alias: "Größe 1", Created: time.Unix(1795383895, 0)}
	raw = domain.Volume{Disk: "aaaaaaaa-1111-4111-8111-000000000002", Image: "bbbbbbbb-1111-4111-8111-000000000002",
		Size: diskSize, Format: "raw", Alias: "data", Created: time.Unix(1795383896, 0)}
)

func hostSpec() domain.Spec {
	return domain.Spec{UUID: "7f1c3d2e-9b4a-4c57-8a31-5b0c9d1e2f30", Description: "instant-restore-1",
		RemotePath: "127.0.0.1:" + exportPath, Volumes: []domain.Volume{cow, raw}}
}

// needParts skips a test that lacks a foreign program, or fails it where all must be there.
func needParts(t *testing.T) {
	t.Helper()
	h, err := nfsdomain.New(nfsdomain.Options{})
	if err == nil {
		err = h.Close()
	}
	if err == nil {
		return
	}
	if os.Getenv("HOLDFAST_REAL_PARTS") == "1" {
		t.Fatal(err)
	}
	t.Skipf("%v; `make test` installs what is missing and runs this", err)
}

// write lays the example out, with content in its volumes.
func write(t *testing.T) (dir string, spec domain.Spec) {
	t.Helper()
	dir, spec = filepath.Join(t.TempDir(), "root"), hostSpec()
	if err := domain.Write(dir, spec); err != nil {
		t.Fatal(err)
	}
	for _, v := range spec.Volumes {
		format := map[string]string{"cow": "qcow2", "raw": "raw"}[v.Format]
		out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", format,
			filepath.Join(dir, spec.VolumePath(v)), fmt.Sprint(v.Size)).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return dir, spec
}

// load puts a folder into a tree in memory. The mailboxes stay away: hosts do without until one is master.
func load(t *testing.T, dir string) *fstest.Memory {
	t.Helper()
	m := fstest.NewMemory(fstest.MemoryOptions{})
	err := filepath.WalkDir(dir, func(name string, e iofs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, name)
		if err != nil || rel == "." || strings.HasSuffix(rel, "box") {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if e.IsDir() {
			_, err := lookup(t, m, path.Dir(rel)).(fs.Maker).Mkdir(t.Context(), e.Name(), fs.SetAttr{})
			return errors.Join(err, setPerm(t, m, rel, info.Mode()))
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		_, err = m.Put(rel, content)
		return errors.Join(err, setPerm(t, m, rel, info.Mode()))
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// lookup finds a node by its path.
func lookup(t *testing.T, tree fs.Tree, name string) fs.Node {
	t.Helper()
	var n fs.Node = tree.Root()
	for _, part := range strings.FieldsFunc(name, func(r rune) bool { return r == '/' || r == '.' && name == "." }) {
		var err error
		if n, err = n.(fs.Dir).Lookup(t.Context(), part); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return n
}

func setPerm(t *testing.T, tree fs.Tree, name string, mode iofs.FileMode) error {
	perm := uint32(mode.Perm())
	_, err := lookup(t, tree, name).(fs.AttrSetter).SetAttr(t.Context(), fs.SetAttr{Perm: &perm}, nil)
	return err
}

// read returns a file's content.
func read(t *testing.T, tree fs.Tree, name string) []byte {
	t.Helper()
	n := lookup(t, tree, name)
	a, err := n.Attr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, a.Size)
	if _, err := n.(fs.File).ReadAt(t.Context(), p, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return p
}

// serve serves a tree on a port of its own and returns the options by which a host finds it.
func serve(t *testing.T, tree fs.Tree, addr string) (options string, stop func()) {
	t.Helper()
	return serveAs(t, addr, nfsd.Export{Tree: tree})
}

// serveAs serves an export at the example's path; for clients on this machine, unless it says otherwise.
func serveAs(t *testing.T, addr string, e nfsd.Export) (options string, stop func()) {
	t.Helper()
	s, err := nfsd.New(nfsd.Options{Key: []byte("a key of the tests, always the same")})
	if err != nil {
		t.Fatal(err)
	}
	e.Path, e.ID = exportPath, 1
	if e.Allow == nil {
		e.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}
	if err := s.Add(e); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	port := ln.Addr().(*net.TCPAddr).Port
	return fmt.Sprintf("port=%d,mountport=%d,proto=tcp,mountproto=tcp", port, port), stop
}

// newHost returns a host that does not wait as long as a real one.
func newHost(t *testing.T, o nfsdomain.Options) *nfsdomain.Host {
	t.Helper()
	if o.Settle == 0 {
		o.Settle = time.Millisecond
	}
	h, err := nfsdomain.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// use does what an engine has a host do with a domain, in its order, and returns the step that failed.
func use(t *testing.T, h *nfsdomain.Host, options string, spec domain.Spec) (
	step string, found []engine.FoundDisk, err error,
) {
	t.Helper()
	info, err := h.ProbeDomain(t.Context(), spec.RemotePath, options)
	if err != nil {
		return "probe", nil, err
	}
	if info == nil {
		return "probe", nil, nil
	}
	if err := h.AttachDomain(t.Context(), spec.UUID, poolID); err != nil {
		return "attach", nil, err
	}
	if found, err = h.ScanDisks(t.Context(), spec.UUID); err != nil {
		return "scan", nil, err
	}
	for _, v := range spec.Volumes {
		if _, err := h.VolumeURL(t.Context(), spec.UUID, v.Disk, v.Image); err != nil {
			return "run", found, err
		}
	}
	return "", found, nil
}
