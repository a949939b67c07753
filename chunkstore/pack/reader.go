package pack

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// ReaderOptions say what a pack is expected to be.
type ReaderOptions struct {
	Master    *keys.Master // nil: headers and the directory can be read, no chunk
	StoreUUID [16]byte     // zero: of any store
	Name      string       // of the object, for errors
	// Rest returns the pack's rest, errs.NotFound if it has none; it is asked anew for each look at the directory. nil:
	// the pack has none.
	Rest func() ([]byte, error)
}

// Reader reads a pack. It may be used by many goroutines at once.
type Reader struct {
	obj      backend.Object
	name     string
	header   Header
	aead     cipher.AEAD // nil without a key
	signKey  [32]byte
	loadRest func() ([]byte, error)
	moved    moves // of a compact pack
}

// Open checks the header of a pack and returns a Reader that owns obj; after an error obj stays the caller's.
// errs.Unsupported: written by a newer Holdfast. errs.Denied: sealed under another master key. errs.Invalid: of another
// store. errs.Corrupt: the header is damaged.
func Open(obj backend.Object, o ReaderOptions) (*Reader, error) {
	const op = "open pack"
	var b [headerSize]byte
	if n, err := obj.ReadAt(b[:], 0); err != nil && (err != io.EOF || n < headerSize) {
		if err == io.EOF {
			return nil, corrupt(op, o.Name, "the file is shorter than a header")
		}
		return nil, errs.Wrap(op, o.Name, err)
	}
	h, err := decodeHeader(&b)
	if errors.Is(err, errVersion) {
		return nil, errs.New(op, o.Name, errs.Unsupported, err).WithNext("Use the newest Holdfast with this store.")
	}
	if err != nil {
		return nil, errs.New(op, o.Name, errs.Corrupt, fmt.Errorf("header: %w", err))
	}
	if o.StoreUUID != [16]byte{} && h.StoreUUID != o.StoreUUID {
		return nil, errs.Text(op, o.Name, errs.Invalid, "the pack belongs to another store").WithNext(
			"Move the file out of the store's folder.")
	}
	r := &Reader{obj: obj, name: o.Name, header: h, loadRest: o.Rest}
	if o.Master != nil {
		if h.KeyID != o.Master.ID() {
			return nil, errs.Text(op, o.Name, errs.Denied, "the pack is sealed under another master key").WithNext(
				"Give the passphrase or the recovery kit that belongs to this store.")
		}
		r.aead, r.signKey = newAEAD(o.Master, h.PackUUID), o.Master.SignKey()
	}
	return r, nil
}

// Header returns the pack's header.
func (r *Reader) Header() Header { return r.header }

// Close closes the object.
func (r *Reader) Close() error { return errs.Wrap("close pack", r.name, r.obj.Close()) }

// scratch is what one read needs. It is pooled, for a read that allocates nothing spares the collector at 10 000 reads
// a second.
type scratch struct {
	group [maxGroup]byte
	nonce [12]byte
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// oneRead is the largest group that ReadFrame fetches whole: one call for 64 KiB costs less than two calls, and on
// objects that are far away a call is all that counts.
const oneRead = groupSize + chunk.FrameSize + tagSize

// ReadFrame appends the plain bytes of one frame of the chunk at p to dst. Frame i holds the bytes from
// i*chunk.FrameSize on. errs.Stale: p holds another chunk, or nothing any more; whoever got p from the index and not
// from a hint has to take that for damage. errs.Corrupt: damage. errs.Invalid: no such frame.
func (r *Reader) ReadFrame(p chunk.Place, want chunk.ID, frame int, dst []byte) ([]byte, error) {
	const op = "read frame in pack"
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	p, err := r.locate(op, p, want)
	if err != nil {
		return nil, err
	}
	n := groupSize
	if p.Stored > groupSize && p.Stored <= oneRead {
		n = int(p.Stored)
	}
	g, have, err := r.readGroup(op, s, p, want, n)
	if err != nil {
		return nil, err
	}
	if frame < 0 || frame >= g.frames {
		return nil, errs.Text(op, r.subject(p), errs.Invalid, fmt.Sprintf("there is no frame %d", frame))
	}
	off, length, _ := g.frame(frame)
	if int(off+length) > have {
		if err := r.readFull(op, s.group[off:off+length], p, int64(off)); err != nil {
			return nil, err
		}
	}
	dst, err = r.decode(s, &g, p, frame, dst)
	if err != nil {
		return nil, errs.New(op, r.subject(p), errs.Corrupt, err)
	}
	return dst, nil
}

// ReadChunk appends the whole chunk at p to dst, with one read if p.Stored is right. The digest is the one the chunk
// was stored under, authenticated; the content is not hashed again. Errors are those of ReadFrame.
func (r *Reader) ReadChunk(p chunk.Place, want chunk.ID, dst []byte) ([]byte, chunk.Digest, error) {
	const op = "read chunk in pack"
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	p, err := r.locate(op, p, want)
	if err != nil {
		return nil, chunk.Digest{}, err
	}
	g, err := r.readWhole(op, s, p, want)
	if err != nil {
		return nil, chunk.Digest{}, err
	}
	dst = slices.Grow(dst, int(g.plain))
	for i := range g.frames {
		if dst, err = r.decode(s, &g, p, i, dst); err != nil {
			return nil, chunk.Digest{}, errs.New(op, r.subject(p), errs.Corrupt, err)
		}
	}
	return dst, g.digest, nil
}

// readWhole fills s.group with the group at p.
func (r *Reader) readWhole(op string, s *scratch, p chunk.Place, want chunk.ID) (group, error) {
	n := groupSize
	if p.Stored > groupSize && p.Stored <= maxGroup {
		n = int(p.Stored)
	}
	g, have, err := r.readGroup(op, s, p, want, n)
	if err == nil && int(g.stored()) > have {
		err = r.readFull(op, s.group[have:g.stored()], p, int64(have))
	}
	return g, err
}

// readGroup reads n bytes from p on into s.group and checks the group's header and digest. It returns how many bytes
// it got: fewer than n if the file ends.
func (r *Reader) readGroup(op string, s *scratch, p chunk.Place, want chunk.ID, n int) (group, int, error) {
	if p.Pack != r.header.Number {
		return group{}, 0, errs.Text(op, r.subject(p), errs.Invalid, fmt.Sprintf("this is pack %08x", r.header.Number))
	}
	if r.aead == nil {
		return group{}, 0, errs.Text(op, r.subject(p), errs.Denied, "no key was given")
	}
	have, err := r.obj.ReadAt(s.group[:n], p.ByteOffset())
	if err != nil && err != io.EOF {
		return group{}, 0, errs.Wrap(op, r.subject(p), err)
	}
	if have < groupSize {
		return group{}, 0, corrupt(op, r.subject(p), "the file ends before this place")
	}
	g, err := decodeGroup(s.group[:groupSize])
	if err != nil {
		if allZero(s.group[:groupSize]) {
			return group{}, 0, errs.Text(op, r.subject(p), errs.Stale, "nothing lies at this place any more")
		}
		return group{}, 0, errs.New(op, r.subject(p), errs.Corrupt, fmt.Errorf("group header: %w", err))
	}
	if g.digest.ID() != want {
		return group{}, 0, errs.Text(op, r.subject(p), errs.Stale, "another chunk lies at this place")
	}
	return g, have, nil
}

// readFull fills b from off bytes behind p on.
func (r *Reader) readFull(op string, b []byte, p chunk.Place, off int64) error {
	n, err := r.obj.ReadAt(b, p.ByteOffset()+off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF || err == nil {
		return corrupt(op, r.subject(p), "the file ends within this chunk")
	}
	return errs.Wrap(op, r.subject(p), err)
}

// decode decrypts and decodes frame i of the group in s.group, appends it to dst, and allocates only if dst is short of
// room. The frame's bytes in s.group are lost.
func (r *Reader) decode(s *scratch, g *group, p chunk.Place, i int, dst []byte) ([]byte, error) {
	off, length, plain := g.frame(i)
	putNonce(&s.nonce, p.Offset, i)
	sealed := s.group[off : off+length]
	// Opened in place, then appended: memory that append has to get is not cleared before it is filled.
	packed, err := r.aead.Open(sealed[:0], s.nonce[:], sealed, s.group[:groupSize])
	if err != nil {
		return nil, errTag
	}
	if g.raw>>i&1 == 1 {
		return append(dst, packed...), nil
	}
	return decodeFrame(g.codec, dst, packed, int(plain))
}

var errTag = errors.New("a frame does not match its authentication tag")

func (r *Reader) subject(p chunk.Place) string { return fmt.Sprintf("%s at %v", r.name, p) }

// allZero tells whether b holds only zeros.
func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
