package rpc_test

import (
	"bytes"
	"testing"
	"testing/synctest"

	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

func TestSmallCallsPassBulkOnes(t *testing.T) {
	limits := rpc.Limits{BulkCalls: 2, BulkBytes: 64 << 10}
	bubble(t, rpc.Options{Limits: limits}, func(t *testing.T, r *rig) {
		c := r.dial("10.0.0.1")
		for range 100 { // two run, the others wait for their place
			c.Send(testProgram, testVersion, procBody, words(4096))
		}
		synctest.Wait()
		if n := len(r.entered); n != 2 {
			t.Fatalf("%d bulk calls run", n)
		}
		// Neither a call without a body nor a small one waits for any of them.
		xid := c.Send(testProgram, testVersion, procEcho, words(7))
		if reply := c.Receive(); reply.XID != xid || reply.U32() != 7 {
			t.Error("the first reply is not the small call's")
		}
		small := c.Send(testProgram, testVersion, procSmall, words(4096))
		synctest.Wait()
		if n := len(r.entered); n != 3 {
			t.Errorf("%d calls run, want the small one too", n)
		}
		close(r.gate)
		got := map[uint32]bool{}
		for range 101 {
			got[c.Receive().XID] = true
		}
		if !got[small] || len(got) != 101 {
			t.Errorf("%d replies", len(got))
		}
	})
}

func TestBudgetsBoundReplies(t *testing.T) {
	limits := rpc.Limits{BulkCalls: 100, BulkBytes: 4 << 20, SmallBytes: 1 << 20}
	for name, tc := range map[string]struct {
		proc, want uint32
	}{"bulk": {procBody, 4}, "small": {procSmall, 1}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, rpc.Options{Limits: limits}, func(t *testing.T, r *rig) {
				c := r.dial("10.0.0.1")
				for range 20 {
					c.Send(testProgram, testVersion, tc.proc, words(1<<20))
				}
				synctest.Wait()
				if n := r.held.Load() >> 20; n != int64(tc.want) {
					t.Errorf("%d MiB are held", n)
				}
				// An answered call frees its place only when the client has taken the reply.
				close(r.gate)
				synctest.Wait()
				if n := r.held.Load() >> 20; n != int64(tc.want) {
					t.Errorf("%d MiB were read ahead of the client", n)
				}
				for range 20 {
					if reply := c.Receive(); reply.Len() != 1<<20 {
						t.Fatalf("%d bytes", reply.Len())
					}
				}
			})
		})
	}
}

func TestBudgetsBoundRecords(t *testing.T) {
	big := make([]byte, 1<<20)
	for name, tc := range map[string]struct {
		limits rpc.Limits
		args   []byte
		want   int // calls taken before the reader stops
	}{
		"bytes": {rpc.Limits{RecordBytes: 5 << 20}, big, 4},
		"count": {rpc.Limits{Calls: 8}, nil, 8},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, rpc.Options{Limits: tc.limits}, func(t *testing.T, r *rig) {
				c := r.dial("10.0.0.1")
				sent := make(chan struct{})
				go func() {
					for range 20 { // blocks when the server reads no more
						c.Send(testProgram, testVersion, procBlock, tc.args)
					}
					close(sent)
				}()
				synctest.Wait()
				if n := r.Stats().InFlight; n != int64(tc.want) {
					t.Errorf("%d calls were taken, want %d", n, tc.want)
				}
				close(r.gate)
				for range 20 {
					if reply := c.Receive(); reply.U32() != 0 {
						t.Error("a call ended by its deadline")
					}
				}
				<-sent
			})
		})
	}
}

func TestLargeRepliesAreWhole(t *testing.T) {
	b := serve(t, rpc.Options{})
	close(b.gate)
	c := nfstest.Dial(t, b.addr)
	want := make([]byte, 1<<20)
	for i := range want {
		want[i] = byte(i)
	}
	sizes := map[uint32]int{}
	for i := range 64 {
		n := 1<<20 - i*4096 - i
		sizes[c.Send(testProgram, testVersion, procBody, words(uint32(n)))] = n
	}
	for range 64 {
		r := c.Receive()
		n := sizes[r.XID]
		delete(sizes, r.XID)
		if got := r.Raw(n); !bytes.Equal(got, want[:n]) {
			t.Fatalf("call %d: wrong bytes", r.XID)
		}
		for _, b := range r.Raw(-n & 3) {
			if b != 0 {
				t.Error("the padding is not zero")
			}
		}
		r.End()
	}
	if len(sizes) != 0 {
		t.Errorf("%d calls were not answered", len(sizes))
	}
}
