package rpc_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// pipeListener hands out the far ends of pipes: a network without a kernel, for tests about time.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

type pipeAddr string

func (a pipeAddr) Network() string { return "pipe" }
func (a pipeAddr) String() string  { return string(a) }

type pipeConn struct {
	net.Conn
	peer pipeAddr
}

func (c pipeConn) RemoteAddr() net.Addr { return c.peer }

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr("pipe") }

func (l *pipeListener) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

// rig is a bench on pipes, inside a synctest bubble.
type rig struct {
	*bench
	t      *testing.T
	ln     *pipeListener
	done   chan error
	cancel context.CancelFunc
}

func bubble(t *testing.T, o rpc.Options, f func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{bench: newBench(o), t: t, done: make(chan error, 1),
			ln: &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}}
		var ctx context.Context
		ctx, r.cancel = context.WithCancel(t.Context())
		go func() { r.done <- r.Serve(ctx, r.ln) }()
		f(t, r)
		r.cancel()
		if err := <-r.done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if n := r.Stats().Conns; n != 0 {
			t.Errorf("%d connections left", n)
		}
	})
}

// dial connects from an address; it returns nil if the server refuses.
func (r *rig) dial(peer string) *nfstest.Conn {
	near, far := net.Pipe()
	r.ln.conns <- pipeConn{far, pipeAddr(peer + ":700")}
	return nfstest.NewConn(r.t, near)
}

// closed tells whether the server closed the connection.
func closed(c *nfstest.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Nanosecond))
	_, err := c.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func TestDeadlineEndsACall(t *testing.T) {
	bubble(t, rpc.Options{}, func(t *testing.T, r *rig) {
		c := r.dial("10.0.0.1")
		began := time.Now()
		if word := c.Call(testProgram, testVersion, procBlock, nil).U32(); word != 1 {
			t.Error("the call was let through")
		}
		if took := time.Since(began); took != 7500*time.Millisecond { // the rest of 8 s is for the answer
			t.Errorf("the context ended after %v", took)
		}
	})
}

func TestDeadlineCountsTheWaitForAPlace(t *testing.T) {
	limits := rpc.Limits{BulkCalls: 1, BulkBytes: 1000, Deadline: 3200 * time.Millisecond}
	bubble(t, rpc.Options{Limits: limits}, func(t *testing.T, r *rig) {
		c := r.dial("10.0.0.1")
		began := time.Now()
		first := c.Send(testProgram, testVersion, procBody, words(4))
		<-r.entered
		second := c.Send(testProgram, testVersion, procBody, words(4))
		got := map[uint32]int{}
		for range 2 {
			reply := c.Receive()
			got[reply.XID] = reply.Len()
		}
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("both ended after %v", took)
		}
		if len(got) != 2 || got[first] != 4 || got[second] != 4 {
			t.Errorf("replies %v", got)
		}
	})
}

func TestStuckClientLosesItsConnection(t *testing.T) {
	bubble(t, rpc.Options{}, func(t *testing.T, r *rig) {
		close(r.gate)
		c := r.dial("10.0.0.1")
		for range 3 { // replies that nobody takes
			c.Send(testProgram, testVersion, procBody, words(1<<20))
		}
		synctest.Wait()
		if n := r.Stats().Conns; n != 1 {
			t.Fatalf("%d connections", n)
		}
		time.Sleep(29 * time.Second)
		if r.Stats().Broken != 0 {
			t.Error("given up too early")
		}
		time.Sleep(2 * time.Second)
		if st := r.Stats(); st.Broken != 1 || st.Conns != 0 || st.InFlight != 0 {
			t.Errorf("afterwards: %+v", st)
		}
	})
}

func TestHalfARecordIsNotWaitedForForEver(t *testing.T) {
	bubble(t, rpc.Options{}, func(t *testing.T, r *rig) {
		c := r.dial("10.0.0.1")
		c.SendRaw(nfstest.Record(nfstest.Message(1, testProgram, testVersion, 0, nil))[:20])
		time.Sleep(59 * time.Second)
		if closed(c) {
			t.Error("closed too early")
		}
		time.Sleep(2 * time.Second)
		if !closed(c) {
			t.Error("still open")
		}
	})
}

func TestIdleConnections(t *testing.T) {
	friend := netip.MustParseAddr("10.0.0.1")
	known := func(a netip.Addr) bool { return a == friend }
	bubble(t, rpc.Options{Known: known}, func(t *testing.T, r *rig) {
		c, stranger := r.dial("10.0.0.1"), r.dial("10.0.0.2")
		c.Call(testProgram, testVersion, procNull, nil).End()
		stranger.Call(testProgram, testVersion, procNull, nil).End()
		time.Sleep(31 * time.Second)
		if !closed(stranger) {
			t.Error("an idle stranger was kept")
		}
		time.Sleep(24 * time.Hour)
		c.Call(testProgram, testVersion, procNull, nil).End()
		// A record cut in two and an idle day after it: the deadline of the record must be gone.
		msg := nfstest.Record(nfstest.Message(77, testProgram, testVersion, 0, nil))
		c.SendRaw(msg[:30])
		time.Sleep(time.Second)
		c.SendRaw(msg[30:])
		c.Receive()
		time.Sleep(24 * time.Hour)
		c.Call(testProgram, testVersion, procNull, nil).End()
	})
}

func TestStrangersAreBounded(t *testing.T) {
	friend := netip.MustParseAddr("10.0.0.1")
	o := rpc.Options{Known: func(a netip.Addr) bool { return a == friend }, Limits: rpc.Limits{Conns: 16}}
	bubble(t, o, func(t *testing.T, r *rig) {
		kept := []*nfstest.Conn{r.dial("10.0.0.2"), r.dial("10.0.0.3")}
		if c := r.dial("10.0.0.4"); !closed(c) {
			t.Error("a third stranger was let in")
		}
		for range 14 {
			c := r.dial("10.0.0.1")
			c.Call(testProgram, testVersion, procNull, nil).End()
		}
		if c := r.dial("10.0.0.1"); !closed(c) {
			t.Error("more connections than the limit")
		}
		// A stranger may send small calls only.
		kept[0].Call(testProgram, testVersion, procEcho, make([]byte, 1000))
		_, _ = kept[0].Write(words(1<<31 | 5000))
		synctest.Wait()
		if !closed(kept[0]) {
			t.Error("a stranger sent a large record")
		}
		r.dial("10.0.0.5").Call(testProgram, testVersion, procNull, nil).End() // its place is free again
	})
}

func TestShutdownWaitsForCalls(t *testing.T) {
	bubble(t, rpc.Options{}, func(t *testing.T, r *rig) {
		busy, idle := r.dial("10.0.0.1"), r.dial("10.0.0.2")
		idle.Call(testProgram, testVersion, procNull, nil).End()
		busy.Send(testProgram, testVersion, procBlock, nil)
		<-r.entered
		down := make(chan error, 1)
		go func() { down <- r.Shutdown(t.Context()) }()
		synctest.Wait()
		if !closed(idle) {
			t.Error("an idle connection was kept")
		}
		select {
		case <-down:
			t.Fatal("Shutdown did not wait")
		default:
		}
		close(r.gate)
		if reply := busy.Receive(); reply.U32() != 0 {
			t.Error("the running call was cancelled")
		}
		if err := <-down; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if !closed(busy) {
			t.Error("the connection was kept")
		}
	})
}

func TestShutdownGivesUp(t *testing.T) {
	bubble(t, rpc.Options{}, func(t *testing.T, r *rig) {
		c := r.dial("10.0.0.1")
		c.Send(testProgram, testVersion, procBlock, nil)
		<-r.entered
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Shutdown(ctx); !errs.Is(err, errs.Canceled) {
			t.Errorf("Shutdown: %v", err)
		}
		synctest.Wait()
		if !closed(c) || r.Stats().InFlight != 0 {
			t.Errorf("afterwards: %+v", r.Stats())
		}
	})
}

func TestAcceptOutlastsErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(rpc.Options{})
		ln := &failingListener{pipeListener: pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}, left: 20}
		done := make(chan error, 1)
		go func() { done <- b.Serve(t.Context(), ln) }()
		near, far := net.Pipe()
		ln.conns <- far
		nfstest.NewConn(t, near).Call(testProgram, testVersion, procNull, nil).End()
		if err := b.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// failingListener has no file descriptors at first.
type failingListener struct {
	pipeListener
	left int
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.left > 0 {
		l.left--
		return nil, errors.New("too many open files")
	}
	return l.pipeListener.Accept()
}
