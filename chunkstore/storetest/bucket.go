package storetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Bucket is a backend over what an S3-compatible service offers and nothing else: an object appears whole, is read by
// ranges, listed and deleted; several can be joined into one by the service (a multipart upload of copied parts). There is
// no append, no rename, no hole and no lock. It shows that the chunk store asks for no more, and how the rest is made of
// it: what is appended lies in pieces until it is sealed.
type Bucket struct{ s service }

// service holds the objects, as the service would. Values are never changed.
type service struct {
	mu      sync.Mutex
	objects map[string][]byte
	puts    int
}

var (
	_ backend.Backend  = (*Bucket)(nil)
	_ backend.Resumer  = (*Bucket)(nil)
	_ backend.Replacer = (*Bucket)(nil)
)

// NewBucket returns an empty one.
func NewBucket() *Bucket { return &Bucket{service{objects: map[string][]byte{}}} }

// Puts counts the requests that wrote.
func (b *Bucket) Puts() int {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	return b.s.puts
}

func (s *service) put(name string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[name] = bytes.Clone(data)
	s.puts++
}

func (s *service) get(name string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.objects[name]
	return data, ok
}

func (s *service) delete(names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		delete(s.objects, name)
	}
}

func (s *service) list(prefix string) (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.objects {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// join makes one object of several.
func (s *service) join(name string, parts []string) {
	var all []byte
	for _, p := range parts {
		data, _ := s.get(p)
		all = append(all, data...)
	}
	s.put(name, all)
}

// pieceMark stands between the name of an object that is being appended to and the number of a piece. No name has it.
const pieceMark = "~"

var nameForm = regexp.MustCompile(`^[a-z0-9_-][a-z0-9._-]*(/[a-z0-9_-][a-z0-9._-]*)*$`)

func (b *Bucket) check(ctx context.Context, op, name string) error {
	if len(name) > 200 || !nameForm.MatchString(name) {
		return errs.Text(op, name, errs.Invalid, "this is no name of an object")
	}
	return errs.Wrap(op, name, ctx.Err())
}

func (b *Bucket) pieces(name string) []string { return b.s.list(name + pieceMark) }

func (b *Bucket) taken(op, name string) error {
	if _, ok := b.s.get(name); ok || len(b.pieces(name)) > 0 {
		return errs.Text(op, name, errs.Exists, "the name is taken")
	}
	return nil
}

// Put implements backend.Backend.
func (b *Bucket) Put(ctx context.Context, name string, data []byte) error {
	if err := b.check(ctx, "put", name); err != nil {
		return err
	}
	if err := b.taken("put", name); err != nil {
		return err
	}
	b.s.put(name, data)
	return nil
}

// Replace implements backend.Replacer.
func (b *Bucket) Replace(ctx context.Context, name string, data []byte) error {
	if err := b.check(ctx, "replace", name); err != nil {
		return err
	}
	b.s.put(name, data)
	return nil
}

// Append implements backend.Backend.
func (b *Bucket) Append(ctx context.Context, name string) (backend.Appender, error) {
	if err := b.check(ctx, "append", name); err != nil {
		return nil, err
	}
	if err := b.taken("append", name); err != nil {
		return nil, err
	}
	a := &bucketAppender{b: b, name: name}
	return a, a.Sync()
}

// Resume implements backend.Resumer.
func (b *Bucket) Resume(ctx context.Context, name string, keep int64) (backend.Appender, error) {
	const op = "resume"
	if err := b.check(ctx, op, name); err != nil {
		return nil, err
	}
	if _, ok := b.s.get(name); ok {
		return nil, errs.Text(op, name, errs.Exists, "it is sealed")
	}
	old := b.pieces(name)
	if len(old) == 0 {
		return nil, errs.Text(op, name, errs.NotFound, "there is none")
	}
	o, err := b.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	if keep < 0 || keep > o.Size() {
		return nil, errs.Text(op, name, errs.Invalid, fmt.Sprintf("it has %d bytes", o.Size()))
	}
	head := make([]byte, keep)
	if _, err := io.ReadFull(io.NewSectionReader(o, 0, keep), head); err != nil {
		return nil, errs.Wrap(op, name, err)
	}
	b.s.put(old[0], head)
	b.s.delete(old[1:]...)
	return &bucketAppender{b: b, name: name, pieces: 1}, nil
}

// Open implements backend.Backend.
func (b *Bucket) Open(ctx context.Context, name string) (backend.Object, error) {
	if err := b.check(ctx, "open", name); err != nil {
		return nil, err
	}
	if data, ok := b.s.get(name); ok {
		return bucketObject{bytes.NewReader(data)}, nil
	}
	pieces := b.pieces(name)
	if len(pieces) == 0 {
		return nil, errs.Text("open", name, errs.NotFound, "there is none")
	}
	var all []byte
	for _, p := range pieces {
		data, _ := b.s.get(p)
		all = append(all, data...)
	}
	return bucketObject{bytes.NewReader(all)}, nil
}

// bucketObject is what was there when it was opened.
type bucketObject struct{ *bytes.Reader }

func (bucketObject) Close() error { return nil }

// List implements backend.Backend.
func (b *Bucket) List(ctx context.Context, prefix string) ([]backend.Info, error) {
	const op = "list"
	if err := ctx.Err(); err != nil {
		return nil, errs.Wrap(op, prefix, err)
	}
	if trimmed := strings.TrimSuffix(prefix, "/"); prefix != "" && !nameForm.MatchString(trimmed) {
		return nil, errs.Text(op, prefix, errs.Invalid, "no name begins so")
	}
	var out []backend.Info
	for _, name := range b.s.list(prefix) {
		data, there := b.s.get(name)
		if !there {
			continue
		}
		whole, _, open := strings.Cut(name, pieceMark)
		n := int64(len(data))
		if i := len(out) - 1; i >= 0 && out[i].Name == whole { // pieces of what is listed already; sealed, they do not count
			if !out[i].Sealed {
				out[i].Size, out[i].Occupied = out[i].Size+n, out[i].Occupied+n
			}
			continue
		}
		out = append(out, backend.Info{Name: whole, Size: n, Occupied: n, Sealed: !open})
	}
	// Pieces are listed behind other names that begin as theirs does.
	slices.SortStableFunc(out, func(x, y backend.Info) int { return strings.Compare(x.Name, y.Name) })
	return out, nil
}

// Remove implements backend.Backend.
func (b *Bucket) Remove(ctx context.Context, name string) error {
	if err := b.check(ctx, "remove", name); err != nil {
		return err
	}
	_, there := b.s.get(name)
	pieces := b.pieces(name)
	if !there && len(pieces) == 0 {
		return errs.Text("remove", name, errs.NotFound, "there is none")
	}
	b.s.delete(append(pieces, name)...)
	return nil
}

// bucketAppender gathers what is written, and puts a piece at each Sync.
type bucketAppender struct {
	b      *Bucket
	name   string
	pieces int
	buf    []byte
	done   bool
}

func (a *bucketAppender) usable(op string) error {
	if a.done {
		return errs.Text(op, a.name, errs.Invalid, "it is sealed or closed")
	}
	return nil
}

// Write implements backend.Appender.
func (a *bucketAppender) Write(p []byte) (int, error) {
	if err := a.usable("append"); err != nil {
		return 0, err
	}
	a.buf = append(a.buf, p...)
	return len(p), nil
}

// Sync implements backend.Appender.
func (a *bucketAppender) Sync() error {
	if err := a.usable("sync"); err != nil {
		return err
	}
	if len(a.buf) > 0 || a.pieces == 0 {
		a.b.s.put(fmt.Sprintf("%s%s%08d", a.name, pieceMark, a.pieces), a.buf)
		a.pieces, a.buf = a.pieces+1, nil
	}
	return nil
}

// Seal implements backend.Appender.
func (a *bucketAppender) Seal() error {
	if err := a.Sync(); err != nil {
		return err
	}
	a.done = true
	pieces := a.b.pieces(a.name)
	a.b.s.join(a.name, pieces)
	a.b.s.delete(pieces...)
	return nil
}

// Close implements backend.Appender.
func (a *bucketAppender) Close() error {
	if a.done {
		return nil
	}
	err := a.Sync()
	a.done = true
	return err
}
