package handle

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/fstest"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/fuzztest"
)

var host = netip.MustParseAddr("192.0.2.7")

func newTable(t testing.TB, key string, exports ...Export) *Table {
	t.Helper()
	table, err := NewTable([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range exports {
		if e.Tree == nil {
			e.Tree = fstest.NewMemory(fstest.MemoryOptions{})
		}
		if e.Allow == nil {
			e.Allow = []netip.Prefix{netip.PrefixFrom(host, 32)}
		}
		if err := table.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	return table
}

// TestLayout holds handles that clients may have kept: they must be understood for ever.
func TestLayout(t *testing.T) {
	table := newTable(t, "0123456789abcdef", Export{Path: "/x", ID: 0x01020304})
	e := table.List()[0]
	for id, want := range map[fs.ID]string{
		1:                  "01000000010203040000000000000001b436bd7370768c3a",
		0xfedcba9876543210: "0100000001020304fedcba987654321097e9d3f3fc778f33",
	} {
		h := table.Append([]byte("before"), e, id)[len("before"):]
		if got := hex.EncodeToString(h); got != want {
			t.Errorf("handle of %x: %s, want %s", uint64(id), got, want)
		}
		if got, gotID, s := table.Parse(h, host); got != e || gotID != id || s != fs.StatusOK {
			t.Errorf("parsed as %v, %x, %v", got, gotID, s)
		}
	}
	if e.FSID() != 0x4846000001020304 {
		t.Errorf("file system id %x", e.FSID())
	}
}

func TestForgeries(t *testing.T) {
	table := newTable(t, "0123456789abcdef", Export{Path: "/x", ID: 1}, Export{Path: "/y", ID: 2})
	e := table.List()[0]
	h := table.Append(nil, e, 77)
	for bit := range 8 * Len {
		forged := bytes.Clone(h)
		forged[bit/8] ^= 1 << (bit % 8)
		if _, _, s := table.Parse(forged, host); s != fs.StatusBadHandle {
			t.Errorf("bit %d turned: %v", bit, s)
		}
	}
	for n := range Max + 1 {
		forged := append(bytes.Clone(h), make([]byte, Max)...)[:n]
		if _, _, s := table.Parse(forged, host); n != Len && s != fs.StatusBadHandle {
			t.Errorf("%d bytes: %v", n, s)
		}
	}
	other := newTable(t, "another key, also long", Export{Path: "/x", ID: 1})
	if _, _, s := other.Parse(h, host); s != fs.StatusBadHandle {
		t.Errorf("another key: %v", s)
	}
	if a, b := newTable(t, "", Export{Path: "/x", ID: 1}), newTable(t, "", Export{Path: "/x", ID: 1}); bytes.Equal(
		a.Append(nil, a.List()[0], 1), b.Append(nil, b.List()[0], 1)) {
		t.Error("two random keys are the same")
	}
}

func TestHandleOfARemovedExportIsStale(t *testing.T) {
	table := newTable(t, "0123456789abcdef", Export{Path: "/x", ID: 1})
	h := table.Append(nil, table.List()[0], 77)
	if err := table.Remove("/x"); err != nil {
		t.Fatal(err)
	}
	if _, _, s := table.Parse(h, host); s != fs.StatusStale {
		t.Errorf("%v", s)
	}
	if err := table.Remove("/x"); !errs.Is(err, errs.NotFound) {
		t.Errorf("removed twice: %v", err)
	}
}

func TestAllowLists(t *testing.T) {
	nets := func(ss ...string) (out []netip.Prefix) {
		for _, s := range ss {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	for name, tc := range map[string]struct {
		allow []netip.Prefix
		peer  string
		want  bool
	}{
		"host":                {nets("192.0.2.7/32"), "192.0.2.7", true},
		"other host":          {nets("192.0.2.7/32"), "192.0.2.8", false},
		"network":             {nets("10.0.0.0/8", "192.0.2.0/24"), "192.0.2.8", true},
		"IPv6":                {nets("2001:db8::/32"), "2001:db8::1", true},
		"IPv6 outside":        {nets("2001:db8::/32"), "2001:db9::1", false},
		"IPv6 with zone":      {nets("fe80::/10"), "fe80::1%eth0", true},
		"4-in-6 peer":         {nets("192.0.2.0/24"), "::ffff:192.0.2.7", true},
		"4-in-6 peer outside": {nets("192.0.2.0/24"), "::ffff:192.0.3.7", false},
		"4-in-6 network":      {nets("::ffff:192.0.2.0/120"), "192.0.2.7", true},
		"4-in-6, other":       {nets("::ffff:192.0.2.0/120"), "192.0.3.7", false},
		"all IPv6 is no IPv4": {nets("::/0"), "192.0.2.7", false},
		"all IPv4 is no IPv6": {nets("0.0.0.0/0"), "2001:db8::1", false},
		"nobody":              {nets(), "192.0.2.7", false},
	} {
		table := newTable(t, "0123456789abcdef")
		if err := table.Add(Export{Path: "/x", ID: 1, Tree: fstest.NewMemory(fstest.MemoryOptions{}), Allow: tc.allow}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		e := table.List()[0]
		peer := netip.MustParseAddr(tc.peer)
		if e.Allows(peer) != tc.want || table.Known(peer) != tc.want {
			t.Errorf("%s: allowed %v, known %v, want %v", name, e.Allows(peer), table.Known(peer), tc.want)
		}
		want := fs.StatusAccess
		if tc.want {
			want = fs.StatusOK
		}
		if _, _, s := table.Parse(table.Append(nil, e, 5), peer); s != want {
			t.Errorf("%s: handle is answered %v", name, s)
		}
	}
	if newTable(t, "0123456789abcdef", Export{Path: "/x", ID: 1}).Known(netip.Addr{}) {
		t.Error("a client without address is known")
	}
	mixed := Export{Path: "/x", ID: 1, Tree: fstest.NewMemory(fstest.MemoryOptions{}), Allow: nets("::ffff:0:0/90")}
	if err := newTable(t, "0123456789abcdef").Add(mixed); !errs.Is(err, errs.Invalid) {
		t.Errorf("a network of both families: %v", err)
	}
}

func TestMatch(t *testing.T) {
	table := newTable(t, "0123456789abcdef", Export{Path: "/x", ID: 1}, Export{Path: "/x/deep/er", ID: 2})
	for path, want := range map[string]string{
		"/x": "/x|", "/x/": "/x|", "//x": "/x|", "/x/a": "/x|a", "/x/a/b/": "/x|a/b", "/x/deep": "/x|deep",
		"/x/deep/er": "/x/deep/er|", "/x/deep/er/c": "/x/deep/er|c", "/x/deep/error": "/x|deep/error",
		"/x/../x/a": "/x|a", "/y": "", "/": "", "": "", "x": "", "/xy": "", "/../..": "",
	} {
		got := ""
		if e, rest, ok := table.Match(path); ok {
			got = e.Path + "|" + rest
		}
		if got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
	root := newTable(t, "0123456789abcdef", Export{Path: "/", ID: 1})
	if e, rest, ok := root.Match("/a/b"); !ok || e.Path != "/" || rest != "a/b" {
		t.Errorf("below the root: %v %q %v", e, rest, ok)
	}
}

func TestVerifier(t *testing.T) {
	a := newTable(t, "0123456789abcdef", Export{Path: "/x", ID: 1}, Export{Path: "/y", ID: 2})
	x, y := a.List()[0], a.List()[1]
	if x.Verifier() != y.Verifier() || x.Verifier() != x.Verifier() {
		t.Error("the verifier changed without a reason")
	}
	before := x.Verifier()
	x.Lost()
	if x.Verifier() == before || y.Verifier() != before {
		t.Error("a loss must change one export's verifier")
	}
	b := newTable(t, "0123456789abcdef", Export{Path: "/x", ID: 1})
	if b.List()[0].Verifier() == before {
		t.Error("two server lives have the same verifier")
	}
}

// FuzzParse: no bytes panic, and nothing is understood that this table did not make.
func FuzzParse(f *testing.F) {
	table := newTable(f, "0123456789abcdef", Export{Path: "/x", ID: 1})
	e := table.List()[0]
	f.Add(table.Append(nil, e, 1))
	f.Add(make([]byte, Len))
	f.Add([]byte{1})
	f.Add(append(table.Append(nil, e, 1), 0))
	f.Add(table.Append(nil, &Entry{Export: Export{ID: 2}}, 1)) // of an export that is gone
	for i := range Len {
		forged := table.Append(nil, e, 1<<63)
		forged[i] ^= 0x80
		f.Add(forged)
	}
	f.Fuzz(func(t *testing.T, h []byte) {
		var got *Entry
		var id fs.ID
		var s fs.Status
		fuzztest.Bounded(t, len(h), 0, 0, func() { got, id, s = table.Parse(h, host) })
		if s != fs.StatusOK {
			if got != nil || id != 0 {
				t.Fatal("a refused handle has a meaning")
			}
			return
		}
		if !bytes.Equal(table.Append(nil, got, id), h) {
			t.Fatal("a handle that was not made here was understood")
		}
	})
}

func BenchmarkHandle(b *testing.B) {
	table := newTable(b, "0123456789abcdef", Export{Path: "/x", ID: 1})
	e := table.List()[0]
	h := table.Append(nil, e, 1)
	out := make([]byte, 0, 64)
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			table.Append(out, e, 1)
		}
	})
	b.Run("parse", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			table.Parse(h, host)
		}
	})
}
