package rpc_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// TestHangingCallsAreAnswered: a procedure that heeds no context does not keep its client waiting, and keeps its place.
func TestHangingCallsAreAnswered(t *testing.T) {
	bubble(t, rpc.Options{Limits: rpc.Limits{BulkCalls: 2}}, func(t *testing.T, r *rig) {
		c := r.dial("10.0.0.1")
		began := time.Now()
		sent := map[uint32]uint32{c.Send(testProgram, testVersion, procHang, nil): 0,
			c.Send(testProgram, testVersion, procHang, words(1)): 1}
		synctest.Wait()
		third := c.Send(testProgram, testVersion, procHang, nil) // gets no place, and ends with its context
		for range 3 {
			reply := c.Receive()
			if reply.XID == third {
				if took := time.Since(began); reply.Stat != 5 || took != 7500*time.Millisecond {
					t.Errorf("the one without a place: status %d after %v", reply.Stat, took)
				}
				continue
			}
			if took := time.Since(began); took != 8*time.Second {
				t.Errorf("answered after %v", took)
			}
			if reply.Stat != 0 || reply.U32() != 9 || reply.U32() != sent[reply.XID] {
				t.Errorf("call %d has a wrong answer", reply.XID)
			}
			reply.End()
		}
		if st := r.Stats(); st.Late != 2 || st.InFlight != 2 {
			t.Errorf("afterwards: %+v", st)
		}
		// The connection serves others, and when the procedures return at last, nobody hears of it.
		c.Call(testProgram, testVersion, procEcho, nil).End()
		close(r.gate)
		synctest.Wait()
		if n := r.Stats().InFlight; n != 0 {
			t.Errorf("%d calls are left", n)
		}
		xid := c.Send(testProgram, testVersion, procEcho, words(5))
		if reply := c.Receive(); reply.XID != xid || reply.U32() != 5 {
			t.Error("a hanging call was answered twice")
		}
	})
}

// TestHangingCallsAreRepeatedAsAnswered: the repetition of what must not happen twice gets the answer that was sent, even
// if the procedure ended otherwise since.
func TestHangingCallsAreRepeatedAsAnswered(t *testing.T) {
	bubble(t, rpc.Options{}, func(t *testing.T, r *rig) {
		c := r.dial("10.0.0.1")
		msg := nfstest.Record(nfstest.Message(3, testProgram, testVersion, procStuck, nil))
		for i := range 3 {
			c.SendRaw(msg)
			if reply := c.Receive(); reply.XID != 3 || reply.Len() != 8 || reply.U32() != 9 {
				t.Errorf("answer %d is another one", i)
			}
			if i == 1 {
				close(r.gate)
				synctest.Wait()
			}
		}
		if n := r.runs.Load(); n != 1 {
			t.Errorf("%d runs", n)
		}
	})
}

// TestReusedCallsAreNotAnsweredLate: the timers of calls that ended do not touch the calls that come after them.
func TestReusedCallsAreNotAnsweredLate(t *testing.T) {
	bubble(t, rpc.Options{}, func(t *testing.T, r *rig) {
		c := r.dial("10.0.0.1")
		for i := range uint32(200) {
			if c.Call(testProgram, testVersion, procEcho, words(i)).U32() != i {
				t.Fatal("wrong echo")
			}
			time.Sleep(time.Second)
		}
		if n := r.Stats().Late; n != 0 {
			t.Errorf("%d calls were answered late", n)
		}
	})
}

// TestSmallRepliesPassBulkOnes: the client takes replies slowly; what is small is behind one bulk reply at most.
func TestSmallRepliesPassBulkOnes(t *testing.T) {
	bubble(t, rpc.Options{}, func(t *testing.T, r *rig) {
		close(r.gate)
		c := r.dial("10.0.0.1")
		for range 30 {
			c.Send(testProgram, testVersion, procBody, words(1<<20))
		}
		synctest.Wait() // one is on its way, 29 wait
		small := map[uint32]bool{}
		for range 40 {
			small[c.Send(testProgram, testVersion, procEcho, words(1))] = true
		}
		synctest.Wait()
		var order []byte
		for range 70 {
			if small[c.Receive().XID] {
				order = append(order, 's')
			} else {
				order = append(order, 'B')
			}
		}
		const want = "Bssssssssssssssss" + "Bssssssssssssssss" + "BssssssssBB" // small first, and the bulk ones do not starve
		if got := string(order[:len(want)]); got != want {
			t.Errorf("the replies came as %s", order)
		}
	})
}

// TestRecordsWithoutRoomArePutOff: calls with long records hang; a small call that comes behind more of them is answered
// soon all the same.
func TestRecordsWithoutRoomArePutOff(t *testing.T) {
	limits := rpc.Limits{RecordBytes: 4 << 20, Stall: time.Second, Deadline: time.Hour}
	bubble(t, rpc.Options{Limits: limits}, func(t *testing.T, r *rig) {
		c := r.dial("10.0.0.1")
		big := make([]byte, 1<<20)
		fits := 0
		late := map[uint32]bool{}
		for range 3 { // each has a header too: a fourth one does not fit
			late[c.Send(testProgram, testVersion, procHang, big)] = false
			fits++
		}
		synctest.Wait()
		began := time.Now()
		go func() {
			for range 5 {
				c.Send(testProgram, testVersion, procHang, big)
			}
			c.Send(testProgram, testVersion, procEcho, words(7))
		}()
		got := map[uint32]int{}
		for range 6 { // in any order
			reply := c.Receive()
			got[reply.U32()]++
		}
		if got[9] != 5 || got[7] != 1 {
			t.Errorf("first words of the replies: %v, want 5 of calls put off and an echo", got)
		}
		if took := time.Since(began); took != limits.Stall {
			t.Errorf("the small call waited %v", took)
		}
		if st := r.Stats(); st.PutOff != 5 || st.InFlight != int64(fits) {
			t.Errorf("afterwards: %+v", st)
		}
		close(r.gate) // there is room again
		for range fits {
			c.Receive()
		}
		synctest.Wait()
		xid := c.Send(testProgram, testVersion, procHang, big)
		if reply := c.Receive(); reply.XID != xid || reply.Len() == 8 {
			t.Error("with room, a call was put off")
		}
	})
}
