package bench

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/url"
	"path"
	"strconv"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Programs, versions and procedures of NFS v3 (RFC 1813).
const (
	nfsProgram, mountProgram = 100003, 100005
	version                  = 3
	procMount                = 1
	procLookup, procRead     = 3, 6
)

// replyWithin is how long a server may be silent.
const replyWithin = 30 * time.Second

// place is where a file is served.
type place struct {
	nfsAddr, mountAddr string
	dir, name          string
}

// parseURL reads a URL as libnfs's tools take it.
func parseURL(text string) (place, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "nfs" || u.Query().Get("nfsport") == "" || u.Query().Get("mountport") == "" {
		return place{}, errs.Text("read the address", text, errs.Invalid, "nfs://HOST/PATH?nfsport=P&mountport=P is needed")
	}
	at := func(port string) string { return net.JoinHostPort(u.Hostname(), u.Query().Get(port)) }
	return place{at("nfsport"), at("mountport"), path.Dir(u.Path), path.Base(u.Path)}, nil
}

// client reads one file over one connection. It is as lean as it can be, and the same for every server: one goroutine
// that keeps a number of calls in flight, sending the next when an answer has come. Not for concurrent use.
type client struct {
	conn   net.Conn
	in     *bufio.Reader
	buf    []byte // holds one record
	xid    uint32
	handle []byte // of the file
	shift  int64  // where the disk's first byte lies in the file
}

// dial mounts the folder and looks the file up.
func dial(ctx context.Context, at place) (*client, error) {
	mount, err := connect(ctx, at.mountAddr)
	if err != nil {
		return nil, err
	}
	defer mount.Close()
	r, err := mount.call(mountProgram, procMount, new(words).opaque([]byte(at.dir)))
	if err != nil {
		return nil, err
	}
	if status := r.u32(); status != 0 || r.bad {
		return nil, errs.Text("mount", at.dir, errs.Denied, "the server answers "+strconv.Itoa(int(status)))
	}
	root := append([]byte(nil), r.opaque()...)
	c, err := connect(ctx, at.nfsAddr)
	if err != nil {
		return nil, err
	}
	r, err = c.call(nfsProgram, procLookup, new(words).opaque(root).opaque([]byte(at.name)))
	if err == nil {
		if status := r.u32(); status != 0 {
			err = errs.Text("look up", at.name, errs.NotFound, "the server answers "+strconv.Itoa(int(status)))
		}
	}
	if err == nil {
		if c.handle = append(c.handle, r.opaque()...); r.bad {
			err = errs.Text("look up", at.name, errs.Corrupt, "the reply is too short")
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// connect opens a connection that ends with ctx.
func connect(ctx context.Context, addr string) (*client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, errs.Wrap("connect to", addr, err)
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	return &client{conn: conn, in: bufio.NewReaderSize(conn, 64<<10), buf: make([]byte, window+4096)}, nil
}

// Close ends the connection.
func (c *client) Close() { _ = c.conn.Close() }

// send sends a call and returns its number.
func (c *client) send(program, procedure uint32, args []byte) (uint32, error) {
	c.xid++
	w := &words{b: make([]byte, 4, 256)}
	w.u32(c.xid, 0, 2, program, version, procedure)
	w.u32(1, 28).u32(0).opaque([]byte("lab")).u32(0, 0, 1, 0) // AUTH_SYS: stamp, machine, uid, gid, one group
	w.u32(0, 0)                                               // no verifier
	w.b = append(w.b, args...)
	binary.BigEndian.PutUint32(w.b, uint32(len(w.b)-4)|1<<31)
	_, err := c.conn.Write(w.b)
	return c.xid, err
}

// receive waits for the next reply and returns its number and its results, which are valid until the next receive.
func (c *client) receive() (uint32, *cursor, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(replyWithin)); err != nil {
		return 0, nil, err
	}
	record, err := readRecord(c.in, c.buf)
	if err != nil {
		return 0, nil, errs.Wrap("wait for a reply", "", err)
	}
	r := &cursor{b: record}
	xid, reply, accepted := r.u32(), r.u32(), r.u32()
	r.u32() // the verifier's flavour
	r.opaque()
	if status := r.u32(); reply != 1 || accepted != 0 || status != 0 || r.bad {
		return 0, nil, errs.Text("call", "", errs.Denied, fmt.Sprintf("type %d, reply %d, status %d", reply, accepted, status))
	}
	return xid, r, nil
}

// call makes one call and waits for its results.
func (c *client) call(program, procedure uint32, args *words) (*cursor, error) {
	sent, err := c.send(program, procedure, args.b)
	if err != nil {
		return nil, err
	}
	got, r, err := c.receive()
	if err == nil && got != sent {
		err = errs.Text("call", "", errs.Corrupt, "the reply is to another call")
	}
	return r, err
}

// at reads n bytes of the file.
func (c *client) at(off int64, n int) ([]byte, error) {
	r, err := c.call(nfsProgram, procRead, c.readArgs(byteRange{off, int64(n)}, 0))
	if err != nil {
		return nil, err
	}
	return readData(r, n)
}

func (c *client) readArgs(what byteRange, shift int64) *words {
	return new(words).opaque(c.handle).u64(uint64(what.off + shift)).u32(uint32(what.n))
}

// readData returns what a READ read, which must be all that was asked for.
func readData(r *cursor, n int) ([]byte, error) {
	status := r.u32()
	r.postOpAttr()
	if status != 0 {
		return nil, errs.Text("read", "", errs.Transient, "the server answers "+strconv.Itoa(int(status)))
	}
	count, _ := r.u32(), r.u32()
	data := r.opaque()
	if r.bad || int(count) != n || len(data) != n {
		return nil, errs.Text("read", "", errs.Corrupt, fmt.Sprintf("%d bytes came where %d were asked for", len(data), n))
	}
	return data, nil
}

// qcow2Shift finds where a qcow2 view begins to show the disk: by the header to the first L1 entry, by that to the
// first L2 entry, by that to the first cluster. All others follow it (docs/format).
func (c *client) qcow2Shift() error {
	off := int64(40) // of the field that says where the L1 table lies
	for range 3 {
		p, err := c.at(off, 8)
		if err != nil {
			return err
		}
		off = int64(binary.BigEndian.Uint64(p) & 0x00fffffffffffe00) // without the flags
	}
	c.shift = off
	return nil
}

// read reads pieces of the disk, with depth calls in flight, and takes the sums of some.
func (c *client) read(work []byteRange, depth int) (reading, error) {
	type call struct {
		index int
		sent  time.Time
	}
	flight := make(map[uint32]call, depth)
	out := newReading(len(work))
	next, began := 0, time.Now()
	for next < len(work) || len(flight) > 0 {
		if next < len(work) && len(flight) < depth {
			now := time.Now()
			xid, err := c.send(nfsProgram, procRead, c.readArgs(work[next], c.shift).b)
			if err != nil {
				return out, errs.Wrap("send a call", "", err)
			}
			flight[xid] = call{next, now}
			next++
			continue
		}
		xid, r, err := c.receive()
		if err != nil {
			return out, err
		}
		sent, known := flight[xid]
		if !known {
			return out, errs.Text("read", "", errs.Corrupt, "a reply came to a call that was not made")
		}
		delete(flight, xid)
		data, err := readData(r, int(work[sent.index].n))
		if err != nil {
			return out, err
		}
		out.note(sent.index, sent.sent, data)
	}
	out.took = time.Since(began)
	return out, nil
}

// castagnoli is what processors compute by themselves.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)
