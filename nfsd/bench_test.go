package nfsd_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
)

// flat is an image whose bytes are all there: what is measured is the server.
type flat struct{ data []byte }

func (f *flat) ID() fs.ID { return 2 }
func (f *flat) Attr(context.Context) (fs.Attr, error) {
	return fs.Attr{ID: 2, Kind: fs.KindFile, Perm: 0o660, Nlink: 1, UID: fs.OwnerID, GID: fs.OwnerID,
		Size: int64(len(f.data)), Used: int64(len(f.data))}, nil
}
func (f *flat) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
func (f *flat) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	copy(f.data[off:], p)
	return nil
}
func (f *flat) Commit(context.Context) error { return nil }
func (f *flat) Bulk() bool                   { return true }

// request is a recorded call; for each sending its XID and, if offAt is not 0, the offset at offAt are replaced.
type request struct {
	record nfstest.Words
	offAt  int
	size   uint64 // bytes per call
	span   uint64 // bytes over which the calls are spread
}

func newRequest(p nfs.NFSProcedure, args nfstest.Words, offAt int, size, span uint64) request {
	record := nfstest.Record(nfstest.Message(0, nfstest.NFS, 3, uint32(p), args))
	if offAt != 0 {
		offAt += len(record) - len(args)
	}
	return request{record, offAt, size, span}
}

func (r request) number(i int) []byte {
	binary.BigEndian.PutUint32(r.record[4:], uint32(i))
	if r.offAt != 0 {
		binary.BigEndian.PutUint64(r.record[r.offAt:], uint64(i)*2654435761%(r.span/r.size)*r.size)
	}
	return r.record
}

// drive keeps depth calls in flight over one connection until n were answered.
func drive(b *testing.B, addr string, depth, n int, q request) {
	b.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	slots := make(chan struct{}, depth)
	go func() {
		for i := range n {
			slots <- struct{}{}
			if _, err := nc.Write(q.number(i)); err != nil {
				return // the reader reports it
			}
		}
	}()
	r := bufio.NewReaderSize(nc, 256<<10)
	var head [32]byte
	for range n {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			b.Fatal(err)
		}
		if status := binary.BigEndian.Uint64(head[24:]); status != 0 { // accept_stat and nfsstat3
			b.Fatalf("status %x", status)
		}
		rest := int(binary.BigEndian.Uint32(head[:])&^(1<<31)) - len(head) + 4
		if _, err := r.Discard(rest); err != nil {
			b.Fatal(err)
		}
		<-slots
	}
}

const benchSize = 64 << 20

func benchmarks(b *testing.B, addr string, fh []byte) {
	handle := nfstest.Words(nil).Opaque(fh)
	reads := func(n uint64) request {
		return newRequest(nfs.NFSProcedureRead, read(fh, 0, uint32(n)), len(handle), n, benchSize)
	}
	writes := func(n uint64) request {
		args := nfstest.Words(nil).Opaque(fh).U64(0).U32(uint32(n), 2).Opaque(make([]byte, n))
		return newRequest(nfs.NFSProcedureWrite, args, len(handle), n, benchSize)
	}
	getattr := newRequest(nfs.NFSProcedureGetAttr, handle, 0, 0, 0)
	for _, c := range []struct {
		name  string
		depth int
		q     request
	}{
		{"read-1MiB-qd1", 1, reads(1 << 20)},
		{"read-1MiB-qd8", 8, reads(1 << 20)},
		{"read-4KiB-qd1", 1, reads(4096)},
		{"read-4KiB-qd16", 16, reads(4096)},
		{"write-1MiB-qd4", 4, writes(1 << 20)},
		{"write-4KiB-qd16", 16, writes(4096)},
		{"getattr-qd1", 1, getattr},
		{"getattr-qd16", 16, getattr},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(c.q.size))
			b.ReportAllocs()
			drive(b, addr, c.depth, b.N, c.q)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
		})
	}
}

func benchTree() fs.Tree {
	return fs.NewStatic(fs.NewStaticDir(1, time.Unix(1, 0), fs.Entry{Name: "file", Node: &flat{pattern(benchSize, 1)}}), nil)
}

func BenchmarkServer(b *testing.B) {
	s := start(b, nfsd.Options{}, benchTree())
	_, _, file := mounted(b, s)
	benchmarks(b, s.addr, file)
}
