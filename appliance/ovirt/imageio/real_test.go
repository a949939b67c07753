package imageio

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	lab "github.com/holdfast-backup/holdfast/internal/lab/imageio"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/pki"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// qemu runs one of qemu's programs to its end.
func qemu(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// realImage serves a qcow2 disk with a dirty bitmap through qemu-nbd and the real daemon, and returns where it can be
// read. 1 MiB of 'a' at 0 and 'b' at 8 MiB were there when the bitmap began; since then 64 KiB of 'c' at 20 MiB were
// written and 64 KiB at 512 KiB were zeroed.
func realImage(t *testing.T) (Options, *lab.Daemon, string) {
	t.Helper()
	dir := t.TempDir()
	disk, sock := filepath.Join(dir, "d.qcow2"), filepath.Join(dir, "nbd")
	qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", disk, "64M")
	qemu(t, "qemu-io", "-c", "write -q -P 0x61 0 1M", "-c", "write -q -P 0x62 8M 1M", disk)
	qemu(t, "qemu-img", "bitmap", "--add", disk, "cp1")
	qemu(t, "qemu-io", "-c", "write -q -P 0x63 20M 64k", "-c", "write -q -z 512k 64k", disk)
	o, d := serveReal(t, sock, lab.Ticket{Ops: []string{"read"}, Dirty: true}, "--read-only", "--bitmap=cp1", "--allocation-depth", disk)
	return o, d, disk
}

// serveReal serves a disk of 64 MiB through qemu-nbd and the real daemon.
func serveReal(t *testing.T, sock string, want lab.Ticket, nbdArgs ...string) (Options, *lab.Daemon) {
	t.Helper()
	nbd, err := proc.Start(t.Context(), proc.Spec{Args: append([]string{"qemu-nbd", "--persistent", "--shared=8", "--format=qcow2",
		"--socket=" + sock, "--export-name="}, nbdArgs...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nbd.Kill)
	for { // the socket is the sign that it listens
		if _, err := os.Stat(sock); err == nil {
			break
		}
		select {
		case <-nbd.Done():
			t.Fatal("qemu-nbd ended: ", nbd.Tail())
		case <-time.After(10 * time.Millisecond):
		}
	}
	ca, err := pki.New("test")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Server("127.0.0.1", "localhost")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := parts.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	d, err := lab.Start(t.Context(), lab.Options{CacheDir: cache, Cert: cert, Key: key, CA: ca.PEM()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	want.UUID, want.Size, want.URL, want.Timeout, want.Inactivity = ticket, 64<<20, "nbd:unix:"+sock, 300, 60
	if err := d.AddTicket(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	return Options{TransferURL: d.URL() + "/images/" + ticket, CA: ca.PEM()}, d
}

// leave closes an image, after which its ticket can be removed.
func leave(t *testing.T, m *Image, d *lab.Daemon) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := d.RemoveTicket(ctx, ticket); err != nil {
		t.Error("after Close the ticket can be removed:", err)
	}
}

// TestRealDaemon reads a real image through the real ovirt-imageio: what it is, what is zeros, what changed.
func TestRealDaemon(t *testing.T) {
	if os.Getenv("HOLDFAST_REAL_PARTS") != "1" {
		t.Skip("needs the real ovirt-imageio and qemu-nbd: `make test` runs it")
	}
	if err := parts.Need(parts.Imageio); err != nil {
		t.Fatal(err, errs.NextStep(err))
	}
	o, d, disk := realImage(t)
	m, err := Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if m.Size() != 64<<20 {
		t.Fatal("size", m.Size())
	}
	raw := filepath.Join(t.TempDir(), "raw")
	qemu(t, "qemu-img", "convert", "-U", "-O", "raw", disk, raw)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	read := int64(0)
	if err := m.Extents(t.Context(), false, func(e Extent) error {
		if e.Zero {
			return nil
		}
		read += e.Length
		_, err := m.ReadAt(t.Context(), got[e.Start:e.Start+e.Length], e.Start)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) || read > 3<<20 || m.ReadBytes() != read {
		t.Errorf("%d bytes were read of 2 MiB of data; equal: %v", read, bytes.Equal(got, want))
	}
	dirty := map[int64]Extent{}
	if err := m.Extents(t.Context(), true, func(e Extent) error {
		if e.Dirty {
			dirty[e.Start] = e
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if c, z := dirty[20<<20], dirty[512<<10]; len(dirty) != 2 || c.Length != 65536 || c.Zero || z.Length != 65536 || !z.Zero {
		t.Errorf("changed: %+v", dirty)
	}
	leave(t, m, d)
	if _, err := m.ReadAt(t.Context(), make([]byte, 10), 0); !errs.Is(err, errs.Stale) {
		t.Error("without a ticket:", err)
	}
}

// TestRealUpload writes a disk through the real daemon, as a restore does: several at once, on no grid, with zeros over
// what was written before.
func TestRealUpload(t *testing.T) {
	if os.Getenv("HOLDFAST_REAL_PARTS") != "1" {
		t.Skip("needs the real ovirt-imageio and qemu-nbd: `make test` runs it")
	}
	if err := parts.Need(parts.Imageio); err != nil {
		t.Fatal(err, errs.NextStep(err))
	}
	dir := t.TempDir()
	disk := filepath.Join(dir, "d.qcow2")
	qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", disk, "64M")
	o, d := serveReal(t, filepath.Join(dir, "nbd"), lab.Ticket{Ops: []string{"read", "write"}, Sparse: true}, "--discard=unmap", "--detect-zeroes=unmap", disk)
	o.Write = true
	m, err := Dial(t.Context(), o)
	if err != nil || m.Size() != 64<<20 {
		t.Fatal(m.Size(), err)
	}
	want := make([]byte, 64<<20)
	copy(want[1000:], random(7<<20+333))
	var wg sync.WaitGroup
	const step = 300_001
	for off := 1000; off < 8<<20; off += step {
		wg.Go(func() {
			if err := m.WriteAt(t.Context(), want[off:off+step], int64(off)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	clear(want[2<<20 : 3<<20])
	if err := m.Zero(t.Context(), 2<<20, 1<<20); err != nil {
		t.Error(err)
	}
	if err := m.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	zeros := int64(0)
	if err := m.Extents(t.Context(), false, func(e Extent) error {
		if e.Zero {
			zeros += e.Length
		}
		return nil
	}); err != nil || zeros < 50<<20 {
		t.Errorf("%d bytes are zeros, %v", zeros, err)
	}
	if err := m.WriteAt(t.Context(), []byte("x"), 64<<20); !errs.Is(err, errs.Invalid) {
		t.Error("beyond the end:", err)
	}
	leave(t, m, d)
	if err := m.WriteAt(t.Context(), []byte("x"), 0); !errs.Is(err, errs.Stale) {
		t.Error("without a ticket:", err)
	}
	raw := filepath.Join(dir, "raw")
	qemu(t, "qemu-img", "convert", "-U", "-O", "raw", disk, raw)
	if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, want) {
		t.Error("the disk is not what was written", err)
	}
}
