package node

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/fs/synthetic"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
)

// countingDisk counts what is read of data packs.
type countingDisk struct {
	disk.OS
	bytes, calls atomic.Int64
}

// Open implements disk.Disk.
func (d *countingDisk) Open(name string) (disk.File, error) {
	f, err := d.OS.Open(name)
	if err != nil || !strings.Contains(name, "/data/") {
		return f, err
	}
	return countingFile{f, d}, nil
}

type countingFile struct {
	disk.File
	d *countingDisk
}

func (f countingFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.d.bytes.Add(int64(n))
	f.d.calls.Add(1)
	return n, err
}

func (f countingFile) Size() (int64, error) { return disk.Size(f.File) }

// TestSmallReadsOverNFS: a guest that reads 4 KiB costs one frame of 64 KiB at most, however long the chunk is that holds
// them and however many layers lie between: the raw or the qcow2 view, without and with an overlay.
func TestSmallReadsOverNFS(t *testing.T) {
	data := make([]byte, 24<<20)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(data) // never fails
	s := newStore(t)
	x := s.Begin(noon, map[string]string{appliance.LabelVM: "web"}, nil)
	defer x.Abort()
	if err := x.Ingest(t.Context(), 0, memory(data), nil, nil); err != nil {
		t.Fatal(err)
	}
	p, err := x.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []synthetic.Format{synthetic.FormatRaw, synthetic.FormatQcow2} {
		for name, writable := range map[string]bool{"": false, " over an overlay": true} {
			t.Run(string(format)+name, func(t *testing.T) {
				smallReads(t, s.Dir(), data, ServeOptions{Point: p, Format: format, Writable: writable, Addr: "127.0.0.1:0"})
			})
		}
	}
}

func smallReads(t *testing.T, dir string, data []byte, o ServeOptions) {
	counter := &countingDisk{}
	r, err := chunkstore.OpenReader(t.Context(), dir, chunkstore.Options{
		Unlock: chunkstore.WithPassphrase(func() ([]byte, error) { return []byte("x"), nil }), Disk: counter, CacheBytes: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, file := serveOne(t, r, o)
	at := int64(0) // of the disk's first byte in the file
	for !bytes.Equal(c.read(file, at), data[:chunk.Grid]) {
		at += 64 << 10
	}
	const limit = chunk.FrameSize + 4*chunk.Grid // with the header of a pack that is opened
	worst := int64(0)
	for off := 0; off < len(data); off += 13 * chunk.Grid {
		n, calls := counter.bytes.Load(), counter.calls.Load()
		if got := c.read(file, at+int64(off)); !bytes.Equal(got, data[off:off+chunk.Grid]) {
			t.Fatalf("at %d: other bytes", off)
		}
		n, calls = counter.bytes.Load()-n, counter.calls.Load()-calls
		if worst = max(worst, n); n > limit || calls > 2 {
			t.Fatalf("4 KiB at %d cost %d bytes in %d reads", off, n, calls)
		}
	}
	if worst < chunk.FrameSize {
		t.Errorf("no read cost more than %d bytes: the frames were not read here", worst)
	}
}

// reader is a client that reads a file.
type reader struct{ *nfstest.Conn }

// read reads 4 KiB; behind the end it reads less.
func (c reader) read(file []byte, off int64) []byte {
	r := c.MustNFS(6, nfstest.Words(nil).Opaque(file).U64(uint64(off)).U32(chunk.Grid))
	r.PostOp()
	r.U32() // count
	r.U32() // end of file
	return r.Opaque()
}

// serveOne serves a point with one disk until the test ends.
func serveOne(t *testing.T, r *chunkstore.Reader, o ServeOptions) (reader, []byte) {
	t.Helper()
	ready := make(chan ServeReady, 1)
	o.Ready = func(r ServeReady) { ready <- r }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, r, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	var at ServeReady
	select {
	case at = <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	case <-time.After(nfstest.Patience):
		t.Fatal("the server did not start")
	}
	u, err := url.Parse(at.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := nfstest.Dial(t, u.Hostname()+":"+u.Query().Get("nfsport"))
	status, root := c.MNT(filepath.Dir(u.Path))
	if status != 0 {
		t.Fatalf("mount: status %d", status)
	}
	return reader{c}, c.Lookup(root, filepath.Base(u.Path))
}
