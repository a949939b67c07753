// Package nfstest holds what tests of nfsd share: a client that sends exactly the bytes a test wants, words to build
// arguments and to take results apart, and go-nfs's server over any fs.Tree as a second opinion (see Oracle).
//
// It does not import nfsd or its parts, so that their own tests can use it: what it knows of the protocol it knows on
// its own, which makes it an independent check.
package nfstest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	nfs "github.com/willscott/go-nfs"
)

// The programs that tests speak to.
const (
	NFS   = 100003
	Mount = 100005
	Port  = 100000
)

// Words is a growing XDR encoding.
type Words []byte

// U32 appends unsigned integers.
func (w Words) U32(vs ...uint32) Words {
	for _, v := range vs {
		w = binary.BigEndian.AppendUint32(w, v)
	}
	return w
}

// U64 appends unsigned hypers.
func (w Words) U64(vs ...uint64) Words {
	for _, v := range vs {
		w = binary.BigEndian.AppendUint64(w, v)
	}
	return w
}

// Opaque appends bytes with length and padding.
func (w Words) Opaque(p []byte) Words {
	w = append(w.U32(uint32(len(p))), p...)
	for len(w)%4 != 0 {
		w = append(w, 0)
	}
	return w
}

// Text appends a string.
func (w Words) Text(s string) Words { return w.Opaque([]byte(s)) }

// Raw appends bytes as they are.
func (w Words) Raw(p []byte) Words { return append(w, p...) }

// Sys is an AUTH_SYS credential of 36:36, as vdsm sends it.
func Sys() Words {
	body := Words(nil).U32(1).Text("host").U32(36, 36, 2, 36, 107)
	return Words(nil).U32(1).Opaque(body)
}

// Message is a call without record marker, with an AUTH_SYS credential.
func Message(xid, program, version, procedure uint32, args []byte) Words {
	return Words(nil).U32(xid, 0, 2, program, version, procedure).Raw(Sys()).U32(0, 0).Raw(args)
}

// Record puts the marker of a single last fragment in front.
func Record(msg []byte) Words { return Words(nil).U32(1<<31 | uint32(len(msg))).Raw(msg) }

// Results takes a reply apart. A read beyond its end fails the test.
type Results struct {
	t testing.TB
	b []byte
}

// ResultsOf takes bytes apart.
func ResultsOf(t testing.TB, b []byte) *Results { return &Results{t, b} }

// U32 reads an unsigned integer.
func (r *Results) U32() uint32 {
	r.t.Helper()
	return binary.BigEndian.Uint32(r.Raw(4))
}

// U64 reads an unsigned hyper.
func (r *Results) U64() uint64 {
	r.t.Helper()
	return binary.BigEndian.Uint64(r.Raw(8))
}

// Opaque reads bytes with length and padding.
func (r *Results) Opaque() []byte {
	r.t.Helper()
	n := int(r.U32())
	p := r.Raw(n)
	r.Raw(-n & 3)
	return p
}

// Text reads a string.
func (r *Results) Text() string {
	r.t.Helper()
	return string(r.Opaque())
}

// Raw reads n bytes.
func (r *Results) Raw(n int) []byte {
	r.t.Helper()
	if n < 0 || n > len(r.b) {
		r.t.Fatalf("the reply ends too early: %d bytes wanted, %d left", n, len(r.b))
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

// Len returns the bytes not read.
func (r *Results) Len() int { return len(r.b) }

// End fails the test if something was not read.
func (r *Results) End() {
	r.t.Helper()
	if len(r.b) != 0 {
		r.t.Fatalf("%d bytes of the reply were not expected: %x", len(r.b), r.b)
	}
}

// PostOp reads a post_op_attr; nil means that there were no attributes.
func (r *Results) PostOp() *nfs.FileAttribute {
	r.t.Helper()
	if r.U32() == 0 {
		return nil
	}
	a := r.Attr()
	return &a
}

// Wcc reads a wcc_data, which must not hold attributes from before the operation.
func (r *Results) Wcc() *nfs.FileAttribute {
	r.t.Helper()
	if r.U32() != 0 {
		r.t.Fatal("the reply holds attributes from before the operation")
	}
	return r.PostOp()
}

// Attr reads a fattr3.
func (r *Results) Attr() nfs.FileAttribute {
	r.t.Helper()
	var a nfs.FileAttribute
	a.Type = nfs.FileType(r.U32())
	a.FileMode, a.Nlink, a.UID, a.GID = r.U32(), r.U32(), r.U32(), r.U32()
	a.Filesize, a.Used = r.U64(), r.U64()
	a.SpecData = [2]uint32{r.U32(), r.U32()}
	a.FSID, a.Fileid = r.U64(), r.U64()
	for _, t := range []*nfs.FileTime{&a.Atime, &a.Mtime, &a.Ctime} {
		t.Seconds, t.Nseconds = r.U32(), r.U32()
	}
	return a
}

// Handle reads a file handle.
func (r *Results) Handle() []byte {
	r.t.Helper()
	h := r.Opaque()
	if len(h) == 0 || len(h) > nfs.FHSize {
		r.t.Fatalf("a handle of %d bytes", len(h))
	}
	return append([]byte{}, h...)
}

// Reply is an answer from the wire.
type Reply struct {
	Results
	XID    uint32
	Denied bool
	Stat   uint32 // accept_stat, or reject_stat
}

// ParseReply takes an RPC reply apart.
func ParseReply(t testing.TB, msg []byte) Reply {
	t.Helper()
	r := Reply{Results: Results{t, msg}}
	r.XID = r.U32()
	if kind := r.U32(); kind != 1 {
		t.Fatalf("message type %d, want a reply", kind)
	}
	if r.Denied = r.U32() == 1; !r.Denied {
		if flavor, body := r.U32(), r.Opaque(); flavor != 0 || len(body) != 0 {
			t.Fatalf("verifier %d %x", flavor, body)
		}
	}
	r.Stat = r.U32()
	return r
}

// Conn is a connection of a test.
type Conn struct {
	net.Conn
	t   testing.TB
	xid atomic.Uint32
}

// Patience is how long a test waits for something that must come.
const Patience = 20 * time.Second

// Dial connects to a server; the connection is closed at the test's end.
func Dial(t testing.TB, addr string) *Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return NewConn(t, nc)
}

// NewConn speaks over nc; it is closed at the test's end.
func NewConn(t testing.TB, nc net.Conn) *Conn {
	t.Cleanup(func() { _ = nc.Close() })
	return &Conn{Conn: nc, t: t}
}

// Send sends a call and returns its XID.
func (c *Conn) Send(program, version, procedure uint32, args []byte) uint32 {
	c.t.Helper()
	xid := c.xid.Add(1)
	c.SendRaw(Record(Message(xid, program, version, procedure, args)))
	return xid
}

// SendRaw sends bytes.
func (c *Conn) SendRaw(p []byte) {
	c.t.Helper()
	if _, err := c.Write(p); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// ReadRecord reads one record, which must be a single fragment.
func ReadRecord(r io.Reader) ([]byte, error) {
	var marker [4]byte
	if _, err := io.ReadFull(r, marker[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(marker[:])
	if n>>31 == 0 {
		return nil, fmt.Errorf("a fragment that is not the last: %x", n)
	}
	msg := make([]byte, n&^(1<<31))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

// Receive waits for the next reply.
func (c *Conn) Receive() Reply {
	c.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(Patience))
	msg, err := ReadRecord(c)
	if err != nil {
		c.t.Fatalf("receive: %v", err)
	}
	return ParseReply(c.t, msg)
}

// Closed waits until the server closes the connection without a further reply.
func (c *Conn) Closed() {
	c.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(Patience))
	msg, err := ReadRecord(c)
	if err == nil {
		c.t.Fatalf("a reply instead of a closed connection: %x", msg)
	}
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		c.t.Fatal("the connection stayed open")
	}
}

// Call sends a call and returns the results of its reply, which must be a success.
func (c *Conn) Call(program, version, procedure uint32, args []byte) *Results {
	c.t.Helper()
	xid := c.Send(program, version, procedure, args)
	r := c.Receive()
	if r.XID != xid || r.Denied || r.Stat != 0 {
		c.t.Fatalf("reply %d to call %d: denied %v, status %d", r.XID, xid, r.Denied, r.Stat)
	}
	return &r.Results
}

// NFS calls a procedure of NFS v3 and returns its status and the results after it.
func (c *Conn) NFS(p nfs.NFSProcedure, args []byte) (nfs.NFSStatus, *Results) {
	c.t.Helper()
	r := c.Call(NFS, 3, uint32(p), args)
	return nfs.NFSStatus(r.U32()), r
}

// MustNFS is NFS for a call that must succeed.
func (c *Conn) MustNFS(p nfs.NFSProcedure, args []byte) *Results {
	c.t.Helper()
	status, r := c.NFS(p, args)
	if status != nfs.NFSStatusOk {
		c.t.Fatalf("%v: %v", p, status)
	}
	return r
}

// MNT mounts a path and returns the status and the handle.
func (c *Conn) MNT(path string) (nfs.MountStatus, []byte) {
	c.t.Helper()
	r := c.Call(Mount, 3, uint32(nfs.MountProcMount), Words(nil).Text(path))
	status := nfs.MountStatus(r.U32())
	if status != nfs.MountStatusOk {
		r.End()
		return status, nil
	}
	h := r.Handle()
	if n, flavor := r.U32(), r.U32(); n != 1 || flavor != 1 {
		c.t.Fatalf("%d flavors, the first %d", n, flavor)
	}
	r.End()
	return status, h
}

// Lookup returns the handle of a name that must exist.
func (c *Conn) Lookup(dir []byte, name string) []byte {
	c.t.Helper()
	return c.MustNFS(nfs.NFSProcedureLookup, Words(nil).Opaque(dir).Text(name)).Handle()
}
