package rpc_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/fuzztest"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// The test program: number 7, versions 2 and 4, procedures by number.
const (
	testProgram = 7
	testVersion = 4

	procNull  = 0
	procEcho  = 1 // returns its arguments
	procBlock = 2 // waits for the gate or the context; says which
	procPanic = 3
	procFail  = 4
	procBody  = 5  // a bulk body of as many bytes as asked for, after the gate
	procSmall = 6  // the same, not bulk
	procOnce  = 7  // counts its runs, after the gate
	procNone  = 8  // is not there
	procWord  = 9  // wants one word
	procHang  = 10 // waits for the gate whatever its context says, marked as small if it has arguments; late: 9, small
	procStuck = 11 // the same, once
)

// bench is a server with the test program.
type bench struct {
	*rpc.Server
	gate    chan struct{}
	entered chan struct{}
	runs    atomic.Int32
	held    atomic.Int64 // bytes of bodies reserved now, at most
	addr    string
}

func (b *bench) pass(ctx context.Context) error {
	select {
	case b.entered <- struct{}{}:
	default:
	}
	select {
	case <-b.gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *bench) program() rpc.Program {
	body := func(bulk bool) func(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
		return func(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
			cur := rpc.NewCursor(c.Args)
			n := int(cur.Uint32())
			if err := c.Reserve(ctx, bulk, n); err != nil {
				r.Status = 1
				r.Out = binary.BigEndian.AppendUint32(r.Out, 1)
				return nil
			}
			b.held.Add(int64(n))
			_ = b.pass(ctx)
			p := r.Body(n)
			for i := range p {
				p[i] = byte(i)
			}
			return nil
		}
	}
	procs := []rpc.Procedure{
		procNull: {Name: "null", Serve: func(context.Context, *rpc.Call, *rpc.Reply) error { return nil }},
		procEcho: {Name: "echo", Serve: func(_ context.Context, c *rpc.Call, r *rpc.Reply) error {
			r.Out = append(r.Out, c.Args...)
			return nil
		}},
		procBlock: {Name: "block", Serve: func(ctx context.Context, _ *rpc.Call, r *rpc.Reply) error {
			word := uint32(0)
			if b.pass(ctx) != nil {
				word = 1
			}
			r.Out = binary.BigEndian.AppendUint32(r.Out, word)
			return nil
		}},
		procPanic: {Name: "panic", Serve: func(_ context.Context, _ *rpc.Call, r *rpc.Reply) error {
			r.Out = append(r.Out, "half a reply"...)
			panic("on purpose")
		}},
		procFail:  {Name: "fail", Serve: func(context.Context, *rpc.Call, *rpc.Reply) error { return errors.New("no") }},
		procBody:  {Name: "body", Serve: body(true)},
		procSmall: {Name: "small", Serve: body(false)},
		procOnce: {Name: "once", Once: true, Serve: func(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
			n := b.runs.Add(1)
			err := b.pass(ctx)
			r.Out = binary.BigEndian.AppendUint32(r.Out, uint32(n))
			return err
		}},
		procWord: {Name: "word", Serve: func(_ context.Context, c *rpc.Call, r *rpc.Reply) error {
			cur := rpc.NewCursor(c.Args)
			_ = cur.Uint32()
			return cur.Err()
		}},
	}
	procs = append(procs, b.hanging()...)
	return rpc.Program{Number: testProgram, Name: "test", Versions: map[uint32][]rpc.Procedure{2: procs[:1], testVersion: procs}}
}

// hanging returns procHang and procStuck.
func (b *bench) hanging() []rpc.Procedure {
	hang := rpc.Procedure{Name: "hang", Serve: func(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
		if len(c.Args) > 0 {
			c.MarkSmall()
		}
		if err := c.Reserve(ctx, true, 0); err != nil {
			return err
		}
		b.runs.Add(1)
		_ = b.pass(context.Background())
		r.Out = append(r.Out, "nobody must see this"...)
		return nil
	}, Late: func(c *rpc.Call, r *rpc.Reply) {
		word := uint32(0)
		if c.Small() {
			word = 1
		}
		r.Out = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(r.Out, 9), word)
	}}
	stuck := hang
	stuck.Once = true
	return []rpc.Procedure{hang, stuck}
}

// newBench returns a bench whose gate is closed.
func newBench(o rpc.Options) *bench {
	b := &bench{gate: make(chan struct{}), entered: make(chan struct{}, 1024)}
	o.Programs = []rpc.Program{b.program()}
	b.Server = rpc.New(o)
	return b
}

// serve runs the bench on a loopback port until the test's end.
func serve(t *testing.T, o rpc.Options) *bench {
	t.Helper()
	b := newBench(o)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return b
}

func words(vs ...uint32) nfstest.Words { return nfstest.Words(nil).U32(vs...) }

// header is a call up to its credential.
func header(xid, version, program, programVersion, procedure uint32) nfstest.Words {
	return words(xid, 0, version, program, programVersion, procedure)
}

func TestRepliesOfTheRPCLayer(t *testing.T) {
	b := serve(t, rpc.Options{})
	sys := nfstest.Sys()
	none := words(0, 0)
	call := header(5, 2, testProgram, testVersion, procNull)
	type outcome struct {
		denied bool
		words  []uint32 // status and what follows
	}
	for name, tc := range map[string]struct {
		in   nfstest.Words
		want outcome
	}{
		"AUTH_NONE":             {call.Raw(none).Raw(none), outcome{false, []uint32{0}}},
		"AUTH_SYS":              {call.Raw(sys).Raw(none), outcome{false, []uint32{0}}},
		"lowest version":        {header(5, 2, testProgram, 2, 0).Raw(sys).Raw(none), outcome{false, []uint32{0}}},
		"unknown program":       {header(5, 2, 8, 1, 0).Raw(sys).Raw(none), outcome{false, []uint32{1}}},
		"unknown version":       {header(5, 2, testProgram, 3, 0).Raw(sys).Raw(none), outcome{false, []uint32{2, 2, 4}}},
		"unknown procedure":     {header(5, 2, testProgram, testVersion, 12).Raw(sys).Raw(none), outcome{false, []uint32{3}}},
		"huge procedure":        {header(5, 2, testProgram, testVersion, 1<<32-1).Raw(sys).Raw(none), outcome{false, []uint32{3}}},
		"hole in the procedure": {header(5, 2, testProgram, testVersion, procNone).Raw(sys).Raw(none), outcome{false, []uint32{3}}},
		"no arguments":          {header(5, 2, testProgram, testVersion, procWord).Raw(sys).Raw(none), outcome{false, []uint32{4}}},
		"failure":               {header(5, 2, testProgram, testVersion, procFail).Raw(sys).Raw(none), outcome{false, []uint32{5}}},
		"panic":                 {header(5, 2, testProgram, testVersion, procPanic).Raw(sys).Raw(none), outcome{false, []uint32{5}}},
		"RPC version 3":         {header(5, 3, testProgram, testVersion, 0).Raw(sys).Raw(none), outcome{true, []uint32{0, 2, 2}}},
		"RPC version 1":         {header(5, 1, testProgram, testVersion, 0), outcome{true, []uint32{0, 2, 2}}},
		"RPCSEC_GSS":            {call.U32(6).Opaque(make([]byte, 20)).Raw(none), outcome{true, []uint32{1, 1}}},
		"AUTH_SHORT":            {call.U32(2).Opaque(make([]byte, 8)).Raw(none), outcome{true, []uint32{1, 1}}},
		"AUTH_NONE with a body": {call.U32(0).Opaque(make([]byte, 4)).Raw(none), outcome{true, []uint32{1, 1}}},
		"401 bytes":             {call.U32(1).Opaque(make([]byte, 401)).Raw(none), outcome{true, []uint32{1, 1}}},
		"4 GiB of credential":   {call.U32(1, 1<<32-1, 0, 0, 0), outcome{true, []uint32{1, 1}}},
		"name of 256":           {call.U32(1).Opaque(words(0).Text(strings.Repeat("n", 256)).U32(0, 0, 0)).Raw(none), outcome{true, []uint32{1, 1}}},
		"17 groups":             {call.U32(1).Opaque(words(0).Text("h").U32(0, 0, 17).Raw(make([]byte, 68))).Raw(none), outcome{true, []uint32{1, 1}}},
		"16 groups":             {call.U32(1).Opaque(words(0).Text("h").U32(0, 0, 16).Raw(make([]byte, 64))).Raw(none), outcome{false, []uint32{0}}},
		"missing groups":        {call.U32(1).Opaque(words(0).Text("h").U32(0, 0, 3, 1)).Raw(none), outcome{true, []uint32{1, 1}}},
		"verifier":              {call.Raw(sys).U32(1).Opaque(make([]byte, 4)), outcome{true, []uint32{1, 3}}},
		"no verifier":           {call.Raw(sys), outcome{true, []uint32{1, 3}}},
		"no credential":         {call, outcome{true, []uint32{1, 1}}},
	} {
		c := nfstest.Dial(t, b.addr)
		c.SendRaw(nfstest.Record(tc.in))
		r := c.Receive()
		got := []uint32{r.Stat}
		for r.Len() > 0 {
			got = append(got, r.U32())
		}
		if r.XID != 5 || r.Denied != tc.want.denied || len(got) != len(tc.want.words) {
			t.Errorf("%s: XID %d, denied %v, %d; want %v", name, r.XID, r.Denied, got, tc.want)
			continue
		}
		for i, w := range tc.want.words {
			if got[i] != w {
				t.Errorf("%s: %d, want %d", name, got, tc.want.words)
			}
		}
		c.Call(testProgram, testVersion, procNull, nil).End() // the connection lives on
	}
}

func TestBrokenStreamsCloseTheirConnectionOnly(t *testing.T) {
	var mu sync.Mutex
	var broken []error
	b := serve(t, rpc.Options{Events: rpc.Events{Broken: func(_ netip.Addr, err error) {
		mu.Lock()
		broken = append(broken, err)
		mu.Unlock()
	}}})
	other := nfstest.Dial(t, b.addr)
	for name, in := range map[string][]byte{
		"oversize":            words(1<<31 | (1<<20 + 4097)),
		"oversize fragments":  append(words(1<<20+4096), append(make([]byte, 1<<20+4096), words(1<<31|1)...)...),
		"2 GiB":               words(1<<32 - 1),
		"empty fragments":     make([]byte, 4*5000),
		"empty record":        words(1 << 31),
		"no call":             nfstest.Record(words(1, 1, 0, 0, 0, 0)),
		"strange type":        nfstest.Record(words(1, 77, 2, 0, 0, 0)),
		"cut header":          nfstest.Record(words(1, 0, 2, testProgram)),
		"HTTP":                []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"three bytes of call": nfstest.Record([]byte{1, 2, 3}),
	} {
		c := nfstest.Dial(t, b.addr)
		// The server may close before it has taken everything.
		_, _ = c.Write(in)
		t.Run(name, func(t *testing.T) { c.Closed() })
		other.Call(testProgram, testVersion, procNull, nil).End()
	}
	for b.Stats().Conns > 1 {
		time.Sleep(time.Millisecond)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(broken) != 10 || b.Stats().Broken != 10 {
		t.Errorf("%d events, %d counted: %v", len(broken), b.Stats().Broken, broken)
	}
}

func TestFragmentedCallIsAnswered(t *testing.T) {
	b := serve(t, rpc.Options{})
	c := nfstest.Dial(t, b.addr)
	args := bytes.Repeat([]byte("words..."), 30000)
	msg := nfstest.Message(9, testProgram, testVersion, procEcho, args)
	var in []byte
	for len(msg) > 0 {
		n := min(len(msg), 1000)
		marker := uint32(n)
		if n == len(msg) {
			marker |= 1 << 31
		}
		in = append(in, words(marker).Raw(msg[:n])...)
		msg = msg[n:]
	}
	c.SendRaw(in)
	if r := c.Receive(); r.XID != 9 || !bytes.Equal(r.Raw(r.Len()), args) {
		t.Error("wrong echo")
	}
}

func TestPanicIsReportedAndCostsOneCall(t *testing.T) {
	infos := make(chan rpc.PanicInfo, 1)
	b := serve(t, rpc.Options{Events: rpc.Events{Panic: func(i rpc.PanicInfo) { infos <- i }}})
	c := nfstest.Dial(t, b.addr)
	c.Send(testProgram, testVersion, procPanic, nil)
	if r := c.Receive(); r.Stat != 5 || r.Len() != 0 {
		t.Errorf("status %d, %d more bytes", r.Stat, r.Len())
	}
	i := <-infos
	if i.Value != "on purpose" || i.Procedure != "panic" || !bytes.Contains(i.Stack, []byte("server_test.go")) {
		t.Errorf("event %+v", i)
	}
	c.Call(testProgram, testVersion, procNull, nil).End()
	if n := b.Stats().Panics; n != 1 {
		t.Errorf("%d panics counted", n)
	}
}

func TestCallEventsAndStats(t *testing.T) {
	infos := make(chan rpc.CallInfo, 8)
	b := serve(t, rpc.Options{Events: rpc.Events{Call: func(i rpc.CallInfo) { infos <- i }}})
	c := nfstest.Dial(t, b.addr)
	c.Call(testProgram, testVersion, procEcho, words(1))
	i := <-infos
	if i.Program != "test" || i.Procedure != "echo" || i.Peer != netip.MustParseAddr("127.0.0.1") || i.Status != 0 {
		t.Errorf("event %+v", i)
	}
	c.Send(testProgram, testVersion, procFail, nil)
	c.Receive()
	if i := <-infos; i.Status == 0 || i.Err == nil {
		t.Errorf("event of a failure %+v", i)
	}
	st := b.Stats()
	if len(st.Procedures) != 2 || st.Procedures[0].Procedure != "echo" || st.Procedures[0].Calls != 1 ||
		st.Procedures[1].Failed != 1 || st.Conns != 1 || st.InFlight != 0 || st.Accepted != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestServeAfterShutdown(t *testing.T) {
	b := newBench(rpc.Options{})
	if err := b.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Serve(t.Context(), ln); !errs.Is(err, errs.Invalid) {
		t.Errorf("Serve: %v", err)
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("the listener stayed open")
	}
}

// FuzzDatagram: any message gets a well-formed reply or none, and nothing panics.
func FuzzDatagram(f *testing.F) {
	b := newBench(rpc.Options{})
	close(b.gate)
	for p := range uint32(procWord + 2) {
		f.Add([]byte(nfstest.Message(1, testProgram, testVersion, p, words(8))))
	}
	f.Add([]byte(nfstest.Message(1, testProgram, 3, 0, nil)))
	f.Add([]byte(header(1, 3, 0, 0, 0)))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) >= 24 && binary.BigEndian.Uint32(in[20:]) == procBody || len(in) >= 24 && binary.BigEndian.Uint32(in[20:]) == procSmall {
			t.Skip("allocates what the caller asks for, without a connection to bound it")
		}
		var out []byte
		fuzztest.Bounded(t, len(in), 64<<10, 16, func() { out = b.Datagram(context.Background(), netip.Addr{}, in) })
		if out == nil {
			return
		}
		if len(out)%4 != 0 && !bytes.HasSuffix(out, in[len(in)-len(out)%4:]) { // only echo gives odd lengths back
			t.Fatalf("reply of %d bytes", len(out))
		}
		r := nfstest.ParseReply(t, out)
		if r.XID != binary.BigEndian.Uint32(in) {
			t.Fatalf("XID %d", r.XID)
		}
	})
}
