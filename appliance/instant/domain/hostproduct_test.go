package domain_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	iofs "io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/appliance/instant/domain"
	"github.com/holdfast-backup/holdfast/fs/folder"
	"github.com/holdfast-backup/holdfast/fs/overlay"
	"github.com/holdfast-backup/holdfast/fs/synthetic"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/lab/nfsdomain"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/portmap"
)

// insideEnv tells the test binary that it runs in a network of its own.
const insideEnv = "HOLDFAST_DOMAIN_TEST_INSIDE"

// TestTheProductsOwnTree puts together what a session serves: the domain in a folder, overlays above images that are
// computed, and nfsd at its customary ports, which qemu can reach. The node is restarted in the middle.
func TestTheProductsOwnTree(t *testing.T) {
	needParts(t)
	if os.Getenv(insideEnv) == "1" {
		upLoopback(t)
		mapper, err := portmap.Listen(t.Context(), "127.0.0.1:111", nfsd.PortmapEntries(2049))
		if err != nil {
			t.Fatal(err)
		}
		defer mapper.Close()
		t.Run("life", testProduct)
		t.Run("qemu-img refuses", testQemuRefuses)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestTheProductsOwnTree$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) && os.Getenv("HOLDFAST_REAL_PARTS") != "1" {
		t.Skip("cannot make a network namespace, which needs root or unprivileged user namespaces")
	}
	if err != nil {
		t.Errorf("inside: %v", err)
	}
	t.Logf("%s", out)
}

// upLoopback switches the new network's loopback on.
func upLoopback(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		t.Fatal(err)
	}
}

// stored is a disk in a store: one byte value in its second MiB, and zeros.
type stored struct{ size int64 }

const (
	dataAt  = 1 << 20
	dataLen = 1 << 20
)

func (s stored) Size() int64 { return s.size }

func (s stored) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), s.size-off))
	for i := range n {
		p[i] = 0
		if at := off + int64(i); at >= dataAt && at < dataAt+dataLen {
			p[i] = 0x5a
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s stored) Extents(_ context.Context, off, n int64, visit func(off, n int64, data bool) bool) error {
	for _, e := range []struct {
		at, end int64
		data    bool
	}{{0, dataAt, false}, {dataAt, dataAt + dataLen, true}, {dataAt + dataLen, s.size, false}} {
		if from, to := max(e.at, off), min(e.end, off+n); from < to && !visit(from, to-from, e.data) {
			return nil
		}
	}
	return nil
}

// session is what a node has open of a session.
type session struct {
	tree     *folder.Tree
	overlays []*overlay.Overlay
	stop     func()
}

// openSession opens it as a node does when it starts, each time anew.
func openSession(t *testing.T, dir string, spec domain.Spec) *session {
	t.Helper()
	root := filepath.Join(dir, "root")
	if err := domain.Write(root, spec); err != nil {
		t.Fatal(err)
	}
	s := &session{}
	var err error
	if s.tree, err = folder.Open(root, folder.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, v := range spec.Volumes {
		format := map[string]synthetic.Format{"cow": synthetic.FormatQcow2, "raw": synthetic.FormatRaw}[v.Format]
		base, err := synthetic.New(stored{v.Size}, format)
		if err != nil {
			t.Fatal(err)
		}
		begin, at := overlay.Create, filepath.Join(dir, v.Image)
		if _, err := os.Stat(at); err == nil {
			begin = overlay.Open
		}
		o, err := begin(t.Context(), disk.OS{}, at, base, overlay.Options{Identity: v.Image})
		if err != nil {
			t.Fatal(err)
		}
		s.overlays = append(s.overlays, o)
		if err := s.tree.Graft(v.Image, spec.VolumePath(v), o, func() int64 { return dataLen }); err != nil {
			t.Fatal(err)
		}
	}
	_, s.stop = serve(t, s.tree, "127.0.0.1:2049")
	return s
}

func (s *session) close(t *testing.T) {
	t.Helper()
	s.stop()
	all := []error{s.tree.Close()}
	for _, o := range s.overlays {
		all = append(all, o.Close())
	}
	if err := errors.Join(all...); err != nil {
		t.Fatal(err)
	}
}

func testProduct(t *testing.T) {
	dir, spec := t.TempDir(), hostSpec()
	for i := range spec.Volumes {
		spec.Volumes[i].Size = 64 << 20
	}
	s := openSession(t, dir, spec)
	h := newHost(t, nfsdomain.Options{Renew: 50 * time.Millisecond, Timeout: 3 * time.Second})
	// Without options: all the ports come from the port mapper. qemu-img looks into the image too, for the ports are right.
	step, found, err := use(t, h, "", spec)
	if err != nil {
		t.Fatalf("%s: %v", step, err)
	}
	if len(found) != 2 || found[0].Used < dataLen || found[1].Used < dataLen {
		t.Errorf("found %+v", found)
	}
	for _, v := range spec.Volumes {
		guest := guestOf(t, h, spec, v)
		guest("read -P 0x5a 1M 1M", "read -P 0 0 1M", "write -P 0x77 0 64k", "write -P 0x78 1100k 4k", "flush")
	}
	s.close(t)
	s = openSession(t, dir, spec)
	for _, v := range spec.Volumes {
		guest := guestOf(t, h, spec, v)
		guest("read -P 0x77 0 64k", "read -P 0x78 1100k 4k", "read -P 0x5a 1104k 900k", "read -P 0 2M 1M")
	}
	if step, _, err := use(t, h, "", spec); err != nil {
		t.Errorf("once more, after the restart: %s: %v", step, err)
	}
	_, _, before := slot(t, s.tree, 1)
	eventually(t, "a sign of life after the restart", func() bool {
		_, _, now := slot(t, s.tree, 1)
		return now > before
	})
	end(t, h, s.tree, spec.UUID)
	s.close(t)
	if _, err := os.Stat(filepath.Join(dir, "root", spec.UUID)); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("after a format the domain is on the disk: %v", err)
	}
}

// testQemuRefuses: qemu-img looks deeper into an image than its header's first fields.
func testQemuRefuses(t *testing.T) {
	dir, spec := write(t)
	m := load(t, dir)
	poke(cowFile, 47, 1)(t, m) // the place of the L1 table
	_, stop := serve(t, m, "127.0.0.1:2049")
	defer stop()
	step, _, err := use(t, newHost(t, nfsdomain.Options{}), "port=2049,mountport=2049", spec)
	if step != "scan" || err == nil || !strings.Contains(err.Error(), "QImgError images/"+cow.Disk) {
		t.Errorf("step %q, error %v", step, err)
	}
}

// guestOf returns what makes a guest's reads and writes, over qemu's own NFS client.
func guestOf(t *testing.T, h *nfsdomain.Host, spec domain.Spec, v domain.Volume) func(commands ...string) {
	t.Helper()
	address, err := h.VolumeURL(t.Context(), spec.UUID, v.Disk, v.Image)
	if err != nil {
		t.Fatal(err)
	}
	below, err := qemu.NFSNode(address)
	if err != nil {
		t.Fatal(err)
	}
	image := qemu.FormatNode("", map[string]string{"cow": "qcow2", "raw": "raw"}[v.Format], below).Image()
	return func(commands ...string) {
		t.Helper()
		args := []string{image}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, "qemu-io", args...).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("failed")) {
			t.Errorf("%s: %v\n%s", v.Format, err, out)
		}
	}
}
