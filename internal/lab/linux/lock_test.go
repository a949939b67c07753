package linux_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/lab/guest"
)

// Numbers of the RPC programs that a host with locks runs itself: the port mapper and the status monitor (statd).
const (
	portMapper    = 100000
	statusMonitor = 100024
	mapperPort    = 111
)

// RunLockServices starts what a host has for locks over NFS, as far as its kernel looks at it: a port mapper and a status
// monitor that say yes to everything. They run until the guest ends.
func (*Work) RunLockServices(_ struct{}, _ *struct{}) error {
	at := fmt.Sprint("127.0.0.1:", mapperPort)
	packets, err := net.ListenPacket("udp", at)
	if err != nil {
		return err
	}
	streams, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo(sayYes(buf[:n]), from) // who gets no answer asks again
		}
	}()
	go func() {
		for {
			c, err := streams.Accept()
			if err != nil {
				return
			}
			go answerStream(c)
		}
	}()
	return nil
}

// answerStream answers calls that come one after the other, each in one fragment (RFC 5531, section 11).
func answerStream(c net.Conn) {
	defer c.Close()
	for {
		var mark [4]byte
		if _, err := io.ReadFull(c, mark[:]); err != nil {
			return
		}
		call := make([]byte, binary.BigEndian.Uint32(mark[:])&0xffff)
		if _, err := io.ReadFull(c, call); err != nil {
			return
		}
		reply := sayYes(call)
		if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, 1<<31|uint32(len(reply))), reply...)); err != nil {
			return
		}
	}
}

// sayYes makes the reply to a call: accepted, and whatever means yes.
func sayYes(call []byte) []byte {
	if len(call) < 24 {
		return nil
	}
	word := func(i int) uint32 { return binary.BigEndian.Uint32(call[4*i:]) }
	var reply []byte
	for _, w := range []uint32{word(0), 1, 0, 0, 0, 0} { // the call's number, a reply, accepted, no verifier, success
		reply = binary.BigEndian.AppendUint32(reply, w)
	}
	program, version, procedure := word(3), word(4), word(5)
	const set, unset, getPort, monitor = 1, 2, 3, 2
	switch {
	case procedure == 0:
	case program == portMapper && procedure == getPort && version == 2:
		reply = binary.BigEndian.AppendUint32(reply, mapperPort)
	case program == portMapper && procedure == getPort: // as an address: its last two numbers are the port
		address := fmt.Sprintf("127.0.0.1.0.%d", mapperPort)
		reply = append(binary.BigEndian.AppendUint32(reply, uint32(len(address))), address...)
		reply = append(reply, make([]byte, -len(address)&3)...)
	case program == portMapper && (procedure == set || procedure == unset):
		reply = binary.BigEndian.AppendUint32(reply, 1)
	case program == statusMonitor && procedure == monitor: // it did, and its state
		reply = append(reply, 0, 0, 0, 0, 0, 0, 0, 1)
	default:
		reply = binary.BigEndian.AppendUint32(reply, 1)
	}
	return reply
}

// LockReply says how a lock went.
type LockReply struct {
	Errno int
	Text  string
	Took  time.Duration
}

// Lock takes an open file description lock on a file, as qemu does, and gives it back.
func (*Work) Lock(path string, r *LockReply) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	begun := time.Now()
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 100, Len: 1})
	r.Took = time.Since(begun)
	var errno unix.Errno
	if errors.As(err, &errno) {
		r.Errno, r.Text = int(errno), errno.Error()
	}
	return nil
}

// testLock mounts as vdsm does not unless somebody says so: with locks for the server to keep, which it does not. On a
// host without a port mapper the mount fails. With one, Linux asks the server for a lock only when it wants the first
// one: that must fail, at once and as "no locks available", and must not hang. With vdsm's own options there are locks, and
// the server never hears of them.
func (s *session) testLock(t *testing.T, r *rig) {
	at := s.mount(t, r.a, "/mnt/nolock")
	if lock := call[LockReply](t, r.a, "Work.Lock", at+"/"+s.volume); lock.Errno != 0 {
		t.Errorf("a lock of the host's own: %+v", lock)
	}
	args := s.mountArgs("/mnt/lock", strings.Replace(vdsmOptions, "nolock,", "lock,", 1))
	var reply guest.MountReply
	if err := r.a.Call(t.Context(), "Agent.Mount", args, &reply); err != nil {
		t.Fatal(err)
	}
	if reply.Errno != int(unix.ECONNREFUSED) {
		t.Errorf("a mount with locks on a host without a port mapper: %+v", reply)
	}
	call[guest.Nothing](t, r.a, "Work.RunLockServices", struct{}{})
	mountUntilEnd(t, r.a, args)
	lock := call[LockReply](t, r.a, "Work.Lock", args.Target+"/"+s.volume)
	if lock.Errno != int(unix.ENOLCK) {
		t.Errorf("a lock that the server would have to keep: %+v\n%s", lock, r.log(r.a))
	}
	t.Logf("mount: %s; lock: %s after %.1f s", reply.Text, lock.Text, lock.Took.Seconds())
}
