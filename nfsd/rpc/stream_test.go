package rpc_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/fuzztest"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// FuzzStream: whatever a client sends on its connection, in whatever fragments, it is answered in whole records or loses
// the connection, the memory is bounded, and another client does not notice.
func FuzzStream(f *testing.F) {
	call := func(p uint32, args ...uint32) nfstest.Words {
		return nfstest.Message(7, testProgram, testVersion, p, words(args...))
	}
	f.Add([]byte(nfstest.Record(call(procEcho, 1, 2, 3))))
	f.Add([]byte(nfstest.Record(call(procOnce)).Raw(nfstest.Record(call(procOnce)))))
	f.Add([]byte(nfstest.Record(call(procPanic)).Raw(nfstest.Record(call(procNull)))))
	f.Add([]byte(words(8).Raw(call(procNull)[:8]).Raw(words(1<<31 | 40)).Raw(call(procNull)[8:48])))
	f.Add([]byte(words(1<<31 | 1<<20)))
	f.Add([]byte(words(1<<32 - 1)))
	f.Fuzz(func(t *testing.T, in []byte) {
		b := newBench(rpc.Options{Limits: rpc.Limits{Record: 4096, RecordBytes: 8192, Calls: 4, RecordTime: 5 * time.Millisecond}})
		close(b.gate)
		ctx, cancel := context.WithCancel(t.Context())
		ln := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		done := make(chan error, 1)
		go func() { done <- b.Serve(ctx, ln) }()
		dial := func() net.Conn {
			near, far := net.Pipe()
			ln.conns <- pipeConn{far, "10.0.0.1:700"}
			return near
		}
		other := dial()
		fuzztest.Bounded(t, len(in), 1<<20, 256, func() { answers(t, dial(), withoutBodies(in)) })
		nfstest.NewConn(t, other).Call(testProgram, testVersion, procNull, nil).End()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// withoutBodies turns the numbers of the procedures that make as long a reply as they are asked for into another one.
func withoutBodies(in []byte) []byte {
	in = bytes.Clone(in)
	for i := 0; i+4 <= len(in); i++ {
		if v := binary.BigEndian.Uint32(in[i:]); v == procBody || v == procSmall {
			in[i+3] = procEcho
		}
	}
	return in
}

// answers sends bytes and reads what comes back until the server closes, or everything was answered.
func answers(t *testing.T, c net.Conn, in []byte) {
	defer c.Close()
	go func() {
		_, _ = c.Write(in)
		// Markers beyond every limit close the connection, if nothing did before. Some of them may belong to a record of
		// the input that was cut short.
		for err := error(nil); err == nil; {
			_, err = c.Write(bytes.Repeat([]byte{0xff}, 64))
		}
	}()
	for {
		msg, err := nfstest.ReadRecord(c)
		if err == io.EOF || err == io.ErrUnexpectedEOF || err == io.ErrClosedPipe {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(msg) < 12 {
			t.Fatalf("a reply of %d bytes", len(msg))
		}
	}
}
