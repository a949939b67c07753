package portmap_test

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/willscott/go-nfs-client/nfs/rpc"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
	"github.com/holdfast-backup/holdfast/nfsd/portmap"
)

var entries = []portmap.Entry{
	{Program: 100003, Version: 3, Protocol: portmap.TCP, Port: 2049},
	{Program: 100005, Version: 3, Protocol: portmap.TCP, Port: 20048},
}

func listen(t *testing.T) *portmap.Server {
	t.Helper()
	s, err := portmap.Listen(t.Context(), "127.0.0.1:0", entries)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// askUDP sends a datagram and returns the answer, or nil if none comes.
func askUDP(t *testing.T, s *portmap.Server, msg []byte, patience time.Duration) []byte {
	t.Helper()
	c, err := net.Dial("udp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

func TestAnswers(t *testing.T) {
	s := listen(t)
	tcp := nfstest.Dial(t, s.Addr().String())
	for name, tc := range map[string]struct {
		version, procedure uint32
		args, want         []uint32 // want: accept_stat and what follows
	}{
		"null":              {2, 0, nil, []uint32{0}},
		"nfs":               {2, 3, []uint32{100003, 3, 6, 0}, []uint32{0, 2049}},
		"mount":             {2, 3, []uint32{100005, 3, 6, 99}, []uint32{0, 20048}},
		"another version":   {2, 3, []uint32{100003, 4, 6, 0}, []uint32{0, 2049}},
		"another transport": {2, 3, []uint32{100003, 3, 17, 0}, []uint32{0, 0}},
		"another program":   {2, 3, []uint32{100021, 4, 6, 0}, []uint32{0, 0}},
		"cut short":         {2, 3, []uint32{100003, 3, 6}, []uint32{4}},
		"set":               {2, 1, []uint32{1, 2, 6, 4}, []uint32{3}},
		"unset":             {2, 2, []uint32{1, 2, 6, 4}, []uint32{3}},
		"callit":            {2, 5, []uint32{100003, 3, 0, 0}, []uint32{3}},
		"version 3":         {3, 3, nil, []uint32{2, 2, 2}},
		"version 4":         {4, 3, nil, []uint32{2, 2, 2}},
		"dump": {2, 4, nil, []uint32{0,
			1, 100003, 3, 6, 2049, 1, 100005, 3, 6, 20048, 0}},
	} {
		msg := nfstest.Message(5, portmap.Number, tc.version, tc.procedure, nfstest.Words(nil).U32(tc.args...))
		check := func(transport string, r nfstest.Reply) {
			got := []uint32{r.Stat}
			for r.Len() > 0 {
				got = append(got, r.U32())
			}
			same := r.XID == 5 && !r.Denied && len(got) == len(tc.want)
			for i := range tc.want {
				same = same && got[i] == tc.want[i]
			}
			if !same {
				t.Errorf("%s on %s: %d, want %d", name, transport, got, tc.want)
			}
		}
		tcp.SendRaw(nfstest.Record(msg))
		check("tcp", tcp.Receive())
		check("udp", nfstest.ParseReply(t, askUDP(t, s, msg, nfstest.Patience)))
	}
}

func TestMalformedDatagrams(t *testing.T) {
	s := listen(t)
	for _, msg := range [][]byte{{}, {1}, make([]byte, 7), nfstest.Words(nil).U32(1, 1, 0, 0, 0, 0)} {
		if out := askUDP(t, s, msg, 20*time.Millisecond); out != nil {
			t.Errorf("%d bytes were answered with %x", len(msg), out)
		}
	}
	if askUDP(t, s, nfstest.Message(1, portmap.Number, 2, 0, nil), nfstest.Patience) == nil {
		t.Error("no answer afterwards")
	}
	c := nfstest.Dial(t, s.Addr().String())
	c.SendRaw(nfstest.Words(nil).U32(1<<31 | 5000))
	c.Closed()
}

func TestSecondOpinion(t *testing.T) {
	s := listen(t)
	c, err := rpc.DialTCP("tcp", s.Addr().String(), false)
	for errors.Is(err, syscall.EADDRINUSE) { // this client throws dice for its own port
		c, err = rpc.DialTCP("tcp", s.Addr().String(), false)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	port, err := (&rpc.Portmapper{Client: c}).Getport(rpc.Mapping{Prog: 100003, Vers: 3, Prot: rpc.IPProtoTCP})
	if err != nil || port != 2049 {
		t.Errorf("port %d, %v", port, err)
	}
}

func TestListenFails(t *testing.T) {
	s := listen(t)
	if _, err := portmap.Listen(t.Context(), s.Addr().String(), nil); !errs.Is(err, errs.Busy) {
		t.Errorf("taken TCP port: %v", err)
	}
	// The UDP half is taken.
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := tcp.Addr().String()
	udp, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Skip("the port is in use by somebody else's UDP")
	}
	defer udp.Close()
	_ = tcp.Close()
	if _, err := portmap.Listen(t.Context(), addr, nil); !errs.Is(err, errs.Busy) {
		t.Errorf("taken UDP port: %v", err)
	}
	if again, err := net.Listen("tcp", addr); err != nil {
		t.Errorf("the TCP half was kept: %v", err)
	} else {
		_ = again.Close()
	}
}

func TestContextEndsTheServer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s, err := portmap.Listen(ctx, "127.0.0.1:0", entries)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	s.Close()
	if _, err := net.Dial("tcp", s.Addr().String()); err == nil {
		t.Error("still listening")
	}
}
