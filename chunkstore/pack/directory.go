package pack

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Directory returns the chunks of a sealed pack in the order they lie in it: those that are left, once space of it was
// given back. With a key the directory is authenticated;
// that of a pack which was recovered without a key is compared with the frames, which reads the whole pack, and only
// what is there is returned. Without a key only checksums are looked at.
func (r *Reader) Directory() ([]DirEntry, error) {
	const op = "read directory of pack"
	t, _, entries, err := r.directory(op)
	if err != nil || t.rest || r.aead == nil || t.flags&flagUnsigned == 0 {
		return entries, err
	}
	return r.confirm(op, entries)
}

// directory reads and checks the rest, or trailer and directory.
func (r *Reader) directory(op string) (trailer, [trailerSize]byte, []DirEntry, error) {
	if left, found, err := r.rest(op); found || err != nil {
		return trailer{rest: err == nil}, [trailerSize]byte{}, left, err
	}
	t, b, err := r.trailer(op)
	if err != nil {
		return trailer{}, b, nil, err
	}
	dir := make([]byte, t.dirBytes) // bounded by MaxChunks and by the size of the file
	start := int64(t.dirOffset) * chunk.PlaceUnit
	if n, err := r.obj.ReadAt(dir, start); n < len(dir) {
		return trailer{}, b, nil, errs.Wrap(op, r.name, noEOF(err))
	}
	if r.aead != nil && t.flags&flagUnsigned == 0 {
		if mac := trailerMAC(&r.signKey, &b, dir); !hmac.Equal(mac[:], t.mac[:]) {
			return trailer{}, b, nil, corrupt(op, r.name, "trailer and directory do not match their signature")
		}
	}
	entries, err := decodeDirectory(dir, r.header, start)
	if err != nil {
		return trailer{}, b, nil, errs.New(op, r.name, errs.Corrupt, fmt.Errorf("directory: %w", err))
	}
	var plain, stored uint64
	for _, e := range entries {
		plain += uint64(e.PlainLen)
		stored += uint64(e.Lies().Stored)
	}
	if len(entries) != int(t.chunks) || plain != t.plain || stored != t.stored {
		return trailer{}, b, nil, corrupt(op, r.name, "trailer and directory do not agree")
	}
	return t, b, entries, nil
}

// trailer reads the trailer.
func (r *Reader) trailer(op string) (trailer, [trailerSize]byte, error) {
	var b [trailerSize]byte
	size := r.obj.Size()
	if size < headerSize+dirHeaderSize+trailerSize {
		return trailer{}, b, corrupt(op, r.name, "the file is too short to be a sealed pack")
	}
	if n, err := r.obj.ReadAt(b[:], size-trailerSize); n < trailerSize {
		return trailer{}, b, errs.Wrap(op, r.name, noEOF(err))
	}
	t, err := decodeTrailer(&b, size, r.header.Compact)
	if errors.Is(err, errVersion) {
		return trailer{}, b, errs.New(op, r.name, errs.Unsupported, err).WithNext("Use the newest Holdfast with this store.")
	}
	if err != nil {
		return trailer{}, b, errs.New(op, r.name, errs.Corrupt, fmt.Errorf("trailer: %w", err))
	}
	return t, b, nil
}

// noEOF turns the end of a file that was longer a moment ago into damage.
func noEOF(err error) error {
	if err == io.EOF || err == nil {
		return errs.New("read", "", errs.Corrupt, io.ErrUnexpectedEOF)
	}
	return err
}

// confirm returns the entries whose chunks are there and authentic.
func (r *Reader) confirm(op string, entries []DirEntry) ([]DirEntry, error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	good := entries[:0]
	for _, e := range entries {
		g, err := r.readWhole(op, s, e.Lies(), e.Digest.ID())
		if errs.Is(err, errs.Corrupt) || errs.Is(err, errs.Stale) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if g.digest == e.Digest && g.plain == e.PlainLen && g.stored() == e.Lies().Stored && r.authentic(s, &g, e.Lies()) {
			good = append(good, e)
		}
	}
	return good, nil
}

// authentic tells whether all frames of the group in s.group match their tags. The frames' bytes in s.group are lost.
func (r *Reader) authentic(s *scratch, g *group, p chunk.Place) bool {
	for i := range g.frames {
		off, length, _ := g.frame(i)
		sealed := s.group[off : off+length]
		putNonce(&s.nonce, p.Offset, i)
		if _, err := r.aead.Open(sealed[:0], s.nonce[:], sealed, s.group[:groupSize]); err != nil {
			return false
		}
	}
	return true
}

// VerifyFile hashes the whole file and compares it with the trailer: a quick scrub, at the speed of SHA-256. It says
// that the pack is as it was sealed, not which chunk is damaged. Where space was given back there is no such sum, and
// the tags of what is left are looked at, which needs a key.
func (r *Reader) VerifyFile() error {
	const op = "verify pack"
	t, _, left, err := r.directory(op)
	if err != nil {
		return err
	}
	if t.rest {
		return r.verifyRest(op, left)
	}
	piece := pieces.Get().(*[]byte)
	defer pieces.Put(piece)
	h := sha256.New()
	body := io.NewSectionReader(r.obj, 0, r.obj.Size()-trailerSize)
	n, err := io.CopyBuffer(onlyWriter{h}, body, (*piece)[:pieceSize])
	if err != nil {
		return errs.Wrap(op, r.name, err)
	}
	if n != body.Size() || [32]byte(h.Sum(nil)) != t.sum {
		return corrupt(op, r.name, "the file does not match the checksum in its trailer")
	}
	return nil
}

// onlyWriter hides other methods, so that io.CopyBuffer uses the buffer it is given.
type onlyWriter struct{ io.Writer }
