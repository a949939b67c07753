package fs

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"
)

// bytesStream is a stream that can be written, without holes or a count of its own.
type bytesStream struct {
	data      []byte
	committed int
	fail      error
}

func (b *bytesStream) Size() int64 { return int64(len(b.data)) }

func (b *bytesStream) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(b.data).ReadAt(p, off)
}

func (b *bytesStream) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	if b.fail != nil {
		return b.fail
	}
	for int64(len(b.data)) < off+int64(len(p)) {
		b.data = append(b.data, 0)
	}
	copy(b.data[off:], p)
	return nil
}

func (b *bytesStream) Commit(context.Context) error { b.committed++; return b.fail }

func (b *bytesStream) Truncate(_ context.Context, n int64) error {
	if b.fail != nil {
		return b.fail
	}
	b.data = append(b.data[:min(n, b.Size())], make([]byte, max(0, n-b.Size()))...)
	return nil
}

// holey knows its holes and its use.
type holey struct{ bytesStream }

func (holey) NextData(context.Context, int64) (int64, error) { return 7, nil }
func (holey) NextHole(context.Context, int64) (int64, error) { return 9, nil }
func (holey) Used() int64                                    { return 1000 }

var when = time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)

func TestStreamFileShowsItsStream(t *testing.T) {
	s := &bytesStream{data: []byte("hello")}
	f := NewStreamFile(StreamFileOptions{ID: 5, When: when, Used: 3, Stream: s})
	a, err := f.Attr(t.Context())
	if err != nil || a != (Attr{ID: 5, Kind: KindFile, Perm: 0o660, Nlink: 1, UID: OwnerID, GID: OwnerID, Size: 5, Used: 3, Atime: when, Mtime: when, Ctime: when}) {
		t.Fatalf("%+v, %v", a, err)
	}
	p := make([]byte, 9)
	if n, err := f.ReadAt(t.Context(), p, 1); n != 4 || err != io.EOF || string(p[:n]) != "ello" {
		t.Fatal(n, err)
	}
	if d, _ := f.NextData(t.Context(), 3); d != 3 {
		t.Error("a stream without holes is all data:", d)
	}
	if h, _ := f.NextHole(t.Context(), 3); h != 5 {
		t.Error("its only hole is its end:", h)
	}
	if !f.Bulk() || f.ID() != 5 {
		t.Error("an image is bulk")
	}
	if _, ok := any(f).(Writer); ok {
		t.Error("a read-only file offers to be written")
	}
}

func TestStreamFileAsksTheStream(t *testing.T) {
	f := NewStreamFile(StreamFileOptions{ID: 5, When: when, Used: 3, Stream: &holey{}})
	d, _ := f.NextData(t.Context(), 0)
	h, _ := f.NextHole(t.Context(), 0)
	a, _ := f.Attr(t.Context())
	if d != 7 || h != 9 || a.Used != 1003 {
		t.Errorf("data %d, hole %d, used %d", d, h, a.Used)
	}
}

func TestWritableStreamFile(t *testing.T) {
	s := &bytesStream{data: []byte("hello")}
	f := NewWritableStreamFile(StreamFileOptions{ID: 5, When: when}, s)
	ctx := t.Context()
	if err := f.WriteAt(ctx, []byte("J"), 0, true); err != nil || string(s.data) != "Jello" {
		t.Fatal(err)
	}
	a, _ := f.Attr(ctx)
	if !a.Mtime.After(when) || a.Atime != when {
		t.Error("a write moves the time of the last write:", a.Mtime)
	}
	if err := f.Commit(ctx); err != nil || s.committed != 1 {
		t.Error("commit:", err)
	}
	size, same, other, uid := int64(3), a.Perm, uint32(0o777), uint32(0)
	if got, err := f.SetAttr(ctx, SetAttr{Size: &size, Perm: &same, Mtime: &when}, nil); err != nil || got.Size != 3 || string(s.data) != "Jel" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := f.SetAttr(ctx, SetAttr{Perm: &other}, nil); err != StatusPermission {
		t.Error("another mode:", err)
	}
	if _, err := f.SetAttr(ctx, SetAttr{UID: &uid}, nil); err != StatusPermission {
		t.Error("another owner:", err)
	}
	size = -1
	if _, err := f.SetAttr(ctx, SetAttr{Size: &size}, nil); err != StatusInvalid {
		t.Error("a negative size:", err)
	}
	if _, err := f.SetAttr(ctx, SetAttr{}, &when); err != StatusNotSync {
		t.Error("an old guard:", err)
	}
	now, _ := f.Attr(ctx)
	if _, err := f.SetAttr(ctx, SetAttr{}, &now.Ctime); err != nil {
		t.Error("the right guard:", err)
	}
	s.fail = StatusNoSpace
	size = 10
	if _, err := f.SetAttr(ctx, SetAttr{Size: &size}, nil); err != StatusNoSpace {
		t.Error("a failure of the stream:", err)
	}
	if err := f.WriteAt(ctx, []byte("x"), 0, false); err != StatusNoSpace {
		t.Error("a failed write:", err)
	}
}

func TestStaticCookiesDependOnNames(t *testing.T) {
	entry := func(name string) Entry {
		return Entry{Name: name, Node: NewStreamFile(StreamFileOptions{ID: PathID(name), Stream: &bytesStream{}})}
	}
	cookie := func(name string) uint64 { return uint64(PathID(name)) >> 2 }
	d := NewStaticDir(1, when, entry("b"), entry("a"), entry("c"))
	d.SetCookies(cookie)
	var seen []string
	var last uint64
	if err := d.List(t.Context(), 0, func(e Entry) bool {
		if e.Cookie <= last || e.Cookie != cookie(e.Name) {
			t.Errorf("cookie %d of %s after %d", e.Cookie, e.Name, last)
		}
		last = e.Cookie
		seen = append(seen, e.Name)
		return len(seen) < 2
	}); err != nil || len(seen) != 2 {
		t.Fatal(seen, err)
	}
	// The folder is made anew with one more name: the listing goes on behind the last one seen.
	again := NewStaticDir(1, when, entry("a"), entry("b"), entry("c"), entry("d"))
	again.SetCookies(cookie)
	for _, name := range seen {
		if err := again.List(t.Context(), last, func(e Entry) bool {
			if e.Name == name {
				t.Errorf("%s is listed twice", name)
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
}
