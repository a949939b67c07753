package host

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/imageio"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/pki"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20

	vmID    = "4447aac5-e8f2-4d7d-9410-7c5e29ed49f6"
	domainA = "00000000-0000-4000-8000-00000000000a"
	domainB = "00000000-0000-4000-8000-00000000000b"
)

// The VM's disks: Debian on virtio-blk, one of 64 MiB on virtio-scsi, and a raw one of 16 MiB.
var (
	rootDisk = engine.DiskPlace{Domain: domainA, Disk: "11111111-0000-4000-8000-000000000001", Image: "image-1", Format: "cow"}
	dataDisk = engine.DiskPlace{Domain: domainA, Disk: "22222222-0000-4000-8000-000000000002", Image: "image-2", Format: "cow", Size: 64 * mib}
	rawDisk  = engine.DiskPlace{Domain: domainA, Disk: "33333333-0000-4000-8000-000000000003", Image: "image-3", Format: "raw", Size: 16 * mib}
)

// lab is a host with the real ovirt-imageio, and a client of that.
type lab struct {
	*testing.T
	ctx    context.Context
	host   *Host
	client *http.Client
	dir    string
	step   int // numbers backups, checkpoints and tickets
}

// newLab starts what the tests of backups need, without any VM.
func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getenv("HOLDFAST_REAL_PARTS") != "1" {
		t.Skip("runs the real qemu and ovirt-imageio; `make test` runs it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	t.Cleanup(cancel)
	ca, err := pki.New("host test")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := imageio.Start(ctx, imageio.Options{Cert: cert, Key: key, CA: ca.PEM()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(daemon.Close)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	l := &lab{T: t, ctx: ctx, client: client, dir: t.TempDir()}
	l.host, err = New(Options{Dir: l.dir, Domains: []string{domainA, domainB}, Imageio: daemon,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.host.Close)
	return l
}

func (l *lab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// start makes the three disks, starts the VM and waits for its guest.
func (l *lab) start() {
	l.Helper()
	cache, err := parts.CacheDir()
	l.must(err)
	disk, err := debian.Build(l.ctx, debian.Options{CacheDir: cache, Log: l.Output()})
	l.must(err)
	place, err := l.host.AddDisk(l.ctx, rootDisk, disk.QCOW2)
	l.must(err)
	if place.Size != debian.DefaultSizeMiB*mib {
		l.Fatalf("the disk has %d bytes", place.Size)
	}
	l.must(l.host.CreateDisk(l.ctx, dataDisk))
	l.must(l.host.CreateDisk(l.ctx, rawDisk))
	l.must(l.host.StartVM(l.ctx, l.spec(dataDisk)))
	l.guest("true")
}

func (l *lab) spec(data engine.DiskPlace) engine.VMSpec {
	return engine.VMSpec{ID: vmID, Name: "web1", MiB: 512, VCPUs: 2, Disks: []engine.DiskPlace{rootDisk, data, rawDisk},
		Ifaces: []string{"virtio", "virtio_scsi", "virtio"}}
}

// guest runs a command that has to succeed.
func (l *lab) guest(command string) string {
	l.Helper()
	out, code, err := l.host.Exec(l.ctx, "web1", command)
	if err != nil || code != 0 {
		l.Fatalf("%s: exit code %d, error %v, output %s", command, code, err, out)
	}
	return strings.TrimSpace(out)
}

// write lets the guest write bytes of one value to the data disk, past its cache.
func (l *lab) write(value byte, at, length int64) {
	l.Helper()
	l.guest(fmt.Sprintf(`head -c %d /dev/zero | tr '\0' '\%03o' | dd of=/dev/sda bs=64K seek=%d oflag=seek_bytes,direct iflag=fullblock conv=notrunc status=none`,
		length, value, at))
}

// sum is the data disk's SHA-256 as the guest reads it.
func (l *lab) sum() string {
	l.Helper()
	return l.guest("sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/sda | cut -d' ' -f1")
}

// opened is a backup that has begun.
type opened struct {
	id, to      string
	incremental map[string]bool
}

// begin begins a backup.
func (l *lab) begin(from string, disks ...engine.DiskPlace) (opened, error) {
	l.step++
	o := opened{id: fmt.Sprint("backup-", l.step), to: fmt.Sprint("checkpoint-", l.step)}
	var err error
	o.incremental, err = l.host.StartBackup(l.ctx, vmID, o.id, from, o.to, disks, false)
	return o, err
}

func (l *lab) mustBegin(from string, disks ...engine.DiskPlace) opened {
	l.Helper()
	o, err := l.begin(from, disks...)
	l.must(err)
	return o
}

func (l *lab) end(o opened) {
	l.Helper()
	l.client.CloseIdleConnections()
	l.must(l.host.StopBackup(l.ctx, vmID, o.id))
}

// image is a disk as the daemon shows it.
type image struct {
	lab         *lab
	url, ticket string
}

// open makes a ticket for a disk; backup may be "".
func (l *lab) open(backup string, d engine.DiskPlace) image {
	l.Helper()
	l.step++
	i := image{lab: l, ticket: fmt.Sprint("ticket-", l.step)}
	var err error
	i.url, err = l.host.AddTicket(l.ctx, backup, d.Disk, i.ticket, 60)
	l.must(err)
	return i
}

func (i image) close() {
	i.lab.Helper()
	i.lab.client.CloseIdleConnections() // else removing waits for them
	i.lab.must(i.lab.host.RemoveTicket(i.lab.ctx, i.ticket))
}

func (i image) request(method, path, byteRange string, body io.Reader) []byte {
	i.lab.Helper()
	req, err := http.NewRequestWithContext(i.lab.ctx, method, i.url+path, body)
	i.lab.must(err)
	if byteRange != "" {
		req.Header.Set("Range", "bytes="+byteRange)
	}
	resp, err := i.lab.client.Do(req)
	i.lab.must(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	i.lab.must(err)
	if resp.StatusCode/100 != 2 {
		i.lab.Fatalf("%s: %s %s", path, resp.Status, b)
	}
	return b
}

type extent struct {
	Start, Length     int64
	Zero, Hole, Dirty bool
}

func (i image) extents(context string) (all []extent) {
	i.lab.Helper()
	i.lab.must(json.Unmarshal(i.request(http.MethodGet, "/extents?context="+context, "", nil), &all))
	return all
}

// dirty lists what has changed, as "START+LENGTH" in KiB, neighbours joined.
func (i image) dirty() string {
	i.lab.Helper()
	var ranges []extent
	for _, e := range i.extents("dirty") {
		if !e.Dirty {
			continue
		}
		if n := len(ranges); n > 0 && ranges[n-1].Start+ranges[n-1].Length == e.Start {
			ranges[n-1].Length += e.Length
			continue
		}
		ranges = append(ranges, e)
	}
	var texts []string
	for _, e := range ranges {
		texts = append(texts, fmt.Sprintf("%d+%d", e.Start/kib, e.Length/kib))
	}
	return strings.Join(texts, " ")
}

// readInto reads the extents that take accepts into a file; zeros are not read but made.
func (i image) readInto(f *os.File, context string, take func(extent) bool) {
	i.lab.Helper()
	for _, e := range i.extents(context) {
		if !take(e) {
			continue
		}
		for at := e.Start; at < e.Start+e.Length; at += 8 * mib {
			n := min(8*mib, e.Start+e.Length-at)
			b := make([]byte, n)
			if !e.Zero {
				b = i.request(http.MethodGet, "", fmt.Sprintf("%d-%d", at, at+n-1), nil)
			}
			_, err := f.WriteAt(b, at)
			i.lab.must(err)
		}
	}
}

// readAll reads the whole image into a file.
func (i image) readAll(name string, size int64) *os.File {
	i.lab.Helper()
	f, err := os.Create(filepath.Join(i.lab.dir, name))
	i.lab.must(err)
	i.lab.Cleanup(func() { _ = f.Close() })
	i.lab.must(f.Truncate(size))
	i.readInto(f, "zero", func(e extent) bool { return !e.Zero })
	return f
}

func (l *lab) sumOf(f *os.File) string {
	l.Helper()
	h := sha256.New()
	_, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<62))
	l.must(err)
	return hex.EncodeToString(h.Sum(nil))
}

// sumOfDisk is the SHA-256 of what a disk's file holds, read by qemu-img.
func (l *lab) sumOfDisk(d engine.DiskPlace) string {
	l.Helper()
	flat := filepath.Join(l.dir, "flat")
	_, err := proc.Run(l.ctx, "qemu-img", "convert", "-U", "-O", "raw", l.host.Path(d), flat)
	l.must(err)
	f, err := os.Open(flat)
	l.must(err)
	defer os.Remove(flat)
	defer f.Close()
	return l.sumOf(f)
}
