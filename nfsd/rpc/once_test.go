package rpc_test

import (
	"testing"
	"testing/synctest"

	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

func once(xid uint32, args ...uint32) nfstest.Words {
	return nfstest.Record(nfstest.Message(xid, testProgram, testVersion, procOnce, words(args...)))
}

func TestRepeatedCallsRunOnce(t *testing.T) {
	bubble(t, rpc.Options{}, func(t *testing.T, r *rig) {
		c := r.dial("10.0.0.1")
		c.SendRaw(once(1))
		<-r.entered
		// While the call runs, its repetition is dropped: on the same connection and on another one.
		again := r.dial("10.0.0.1")
		c.SendRaw(once(1))
		again.SendRaw(once(1))
		synctest.Wait()
		if st := r.Stats(); st.Dropped != 2 || r.runs.Load() != 1 {
			t.Fatalf("%d dropped, %d runs", st.Dropped, r.runs.Load())
		}
		// The client goes away and comes back: the call ran to its end, and its reply was kept.
		_ = c.Close()
		synctest.Wait()
		close(r.gate)
		synctest.Wait()
		for range 3 {
			again.SendRaw(once(1))
			if reply := again.Receive(); reply.XID != 1 || reply.Stat != 0 || reply.U32() != 1 {
				t.Error("the reply was not repeated")
			}
		}
		if r.runs.Load() != 1 || r.Stats().Replayed != 3 {
			t.Errorf("%d runs, %d repeated", r.runs.Load(), r.Stats().Replayed)
		}
	})
}

func TestWhatIsNoRepetitionRuns(t *testing.T) {
	bubble(t, rpc.Options{}, func(t *testing.T, r *rig) {
		close(r.gate)
		c, other := r.dial("10.0.0.1"), r.dial("10.0.0.2")
		want := uint32(0)
		for _, call := range []struct {
			conn *nfstest.Conn
			msg  nfstest.Words
		}{
			{c, once(1)}, {c, once(2)}, {c, once(1, 5)}, {other, once(1)},
			{c, once(1, make([]uint32, 63)...)}, // within the first 256 bytes
		} {
			call.conn.SendRaw(call.msg)
			want++
			reply := call.conn.Receive()
			if n := reply.U32(); n != want {
				t.Errorf("call %d was answered as %d", want, n)
			}
		}
	})
}

func TestMemoryForRepeatedCallsIsBounded(t *testing.T) {
	bubble(t, rpc.Options{}, func(t *testing.T, r *rig) {
		close(r.gate)
		c := r.dial("10.0.0.1")
		run := func(xid uint32) uint32 {
			c.SendRaw(once(xid))
			reply := c.Receive()
			return reply.U32()
		}
		for xid := range uint32(1025) {
			run(xid)
		}
		if n := run(1); n != 2 {
			t.Errorf("the second of 1025 calls was forgotten: answered %d", n)
		}
		if n := run(0); n != 1026 {
			t.Errorf("the first of 1025 calls was remembered: answered %d", n)
		}
	})
}

func TestFailuresAreRemembered(t *testing.T) {
	bubble(t, rpc.Options{}, func(t *testing.T, r *rig) {
		c := r.dial("10.0.0.1")
		for range 2 { // ends by its deadline with SYSTEM_ERR; the repetition gets the same
			c.SendRaw(once(1))
			if reply := c.Receive(); reply.Stat != 5 {
				t.Errorf("status %d", reply.Stat)
			}
		}
		if r.runs.Load() != 1 {
			t.Errorf("%d runs", r.runs.Load())
		}
	})
}
