package imageio_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/imageio"
	"github.com/holdfast-backup/holdfast/internal/lab/pki"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// start starts the real daemon, and makes a client that trusts it.
func start(ctx context.Context, t *testing.T) (*imageio.Daemon, *http.Client) {
	t.Helper()
	if os.Getenv("HOLDFAST_REAL_PARTS") != "1" {
		t.Skip("runs the real ovirt-imageio; `make test` runs it")
	}
	ca, err := pki.New("imageio test")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	d, err := imageio.Start(ctx, imageio.Options{Cert: cert, Key: key, CA: ca.PEM(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	t.Logf("ready after %.2f s at %s", time.Since(begun).Seconds(), d.URL())
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	t.Cleanup(client.CloseIdleConnections)
	return d, client
}

// get returns status and body of a request.
func get(t *testing.T, client *http.Client, url, byteRange string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if byteRange != "" {
		req.Header.Set("Range", "bytes="+byteRange)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func run(ctx context.Context, t *testing.T, args ...string) {
	t.Helper()
	if out, err := proc.Run(ctx, args...); err != nil {
		t.Fatalf("%v: %v %s", args, err, out)
	}
}

type extent struct {
	Start, Length     int64
	Zero, Hole, Dirty bool
}

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
)

// serveChangedDisk makes the disk of the transcript: 64 MiB, data at the start and at 8 MiB, then a bitmap, then
// changes; and serves it as vdsm does for a VM that is down.
func serveChangedDisk(ctx context.Context, t *testing.T) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "imageio") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	disk, socket := filepath.Join(dir, "d.qcow2"), filepath.Join(dir, "nbd.sock")
	run(ctx, t, "qemu-img", "create", "-q", "-f", "qcow2", disk, "64M")
	run(ctx, t, "qemu-io", "-c", "write -P 1 0 1M", "-c", "write -P 2 8M 1M", disk)
	run(ctx, t, "qemu-img", "bitmap", "--add", disk, "cp1")
	run(ctx, t, "qemu-io", "-c", "write -P 3 8M 64k", "-c", "write -P 4 20M 128k", "-c", "write -z 512k 64k", disk)
	nbd, err := proc.Start(ctx, proc.Spec{Args: []string{"qemu-nbd", "--read-only", "--persistent", "--shared=8",
		"--format=qcow2", "--socket=" + socket, "--export-name=", "--bitmap=cp1", "--allocation-depth", disk}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nbd.Kill)
	for {
		if _, err := os.Stat(socket); err == nil {
			return socket
		}
		select {
		case <-nbd.Done():
			t.Fatalf("qemu-nbd ended: %v", nbd.Wait(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestTheDaemonTellsDataZerosAndChanges(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	d, client := start(ctx, t)
	socket := serveChangedDisk(ctx, t)
	ticket := imageio.Ticket{UUID: "d3b0a1c2-0000-4000-8000-000000000001", Size: 64 * mib, URL: "nbd:unix:" + socket,
		Timeout: 300, Inactivity: 60, Ops: []string{"read"}, Dirty: true, Sparse: true}
	if err := d.AddTicket(ctx, ticket); err != nil {
		t.Fatal(err)
	}
	image := d.URL() + "/images/" + ticket.UUID
	for context, want := range map[string][]extent{
		"zero": {{0, 512 * kib, false, false, false}, {512 * kib, 64 * kib, true, false, false}, {576 * kib, 448 * kib, false, false, false},
			{mib, 7 * mib, true, true, false}, {8 * mib, mib, false, false, false}, {9 * mib, 11 * mib, true, true, false},
			{20 * mib, 128 * kib, false, false, false}, {20*mib + 128*kib, 44*mib - 128*kib, true, true, false}},
		"dirty": {{0, 512 * kib, false, false, false}, {512 * kib, 64 * kib, true, false, true}, {576 * kib, 448 * kib, false, false, false},
			{mib, 7 * mib, true, false, false}, {8 * mib, 64 * kib, false, false, true}, {8*mib + 64*kib, 960 * kib, false, false, false},
			{9 * mib, 11 * mib, true, false, false}, {20 * mib, 128 * kib, false, false, true},
			{20*mib + 128*kib, 44*mib - 128*kib, true, false, false}},
	} {
		status, body := get(t, client, image+"/extents?context="+context, "")
		var got []extent
		if err := json.Unmarshal([]byte(body), &got); err != nil || status != http.StatusOK || !reflect.DeepEqual(got, want) {
			t.Errorf("%s extents: status %d, error %v, got\n%v, want\n%v", context, status, err, got, want)
		}
	}
	status, body := get(t, client, image, fmt.Sprintf("%d-%d", 8*mib, 8*mib+128*kib-1))
	if want := strings.Repeat("\x03", int(64*kib)) + strings.Repeat("\x02", int(64*kib)); status != http.StatusPartialContent || body != want {
		t.Errorf("status %d, %d bytes", status, len(body))
	}
	if s, err := d.Ticket(ctx, ticket.UUID); err != nil || s.Transferred != 128*kib || s.IdleSeconds > 60 || s.Connections == 0 {
		t.Errorf("the ticket says %+v, error %v", s, err)
	}
	client.CloseIdleConnections() // else removing waits for them
	if err := d.RemoveTicket(ctx, ticket.UUID); err != nil {
		t.Error(err)
	}
	if status, body := get(t, client, image, "0-511"); status != http.StatusForbidden {
		t.Errorf("after the ticket was removed: status %d %q", status, body)
	}
}

func TestTicketsAreRefusedWithReasons(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d, client := start(ctx, t)
	err := d.AddTicket(ctx, imageio.Ticket{UUID: "one", URL: "gopher://x", Ops: []string{"read"}})
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "gopher") {
		t.Errorf("a ticket for nothing: %v", err)
	}
	if _, err := d.Ticket(ctx, "two"); !errs.Is(err, errs.NotFound) {
		t.Errorf("a ticket that is not there: %v", err)
	}
	if err := d.Extend(ctx, "two", 10); !errs.Is(err, errs.NotFound) {
		t.Errorf("a ticket that is not there: %v", err)
	}
	if err := d.RemoveTicket(ctx, "two"); err != nil {
		t.Errorf("removing twice: %v", err)
	}
	if status, _ := get(t, client, d.URL()+"/images/two", ""); status != http.StatusForbidden {
		t.Errorf("status %d", status)
	}
}

func TestNothingIsLeftAfterClose(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	t.Setenv("TMPDIR", t.TempDir())
	d, _ := start(ctx, t)
	d.Close()
	d.Close()
	<-d.Done()
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := d.AddTicket(ctx, imageio.Ticket{UUID: "one"}); err == nil {
		t.Error("a closed daemon took a ticket")
	}
}

func TestACertificateThatIsNoneIsExplained(t *testing.T) {
	if os.Getenv("HOLDFAST_REAL_PARTS") != "1" {
		t.Skip("runs the real ovirt-imageio; `make test` runs it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := imageio.Start(ctx, imageio.Options{Cert: []byte("x"), Key: []byte("y"), CA: []byte("z")})
	if err == nil || !strings.Contains(err.Error(), "SSL") {
		t.Errorf("error %v", err)
	}
}
