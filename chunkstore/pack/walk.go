package pack

import (
	"fmt"
	"io"
	"slices"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Damage is a range of a pack in which no group could be found.
type Damage struct {
	Off, Len int64 // bytes
	Zero     bool  // all of it reads as zeros: given back, or never written
}

// Walk passes over a pack from front to back by the groups' headers. It needs no key, looks at no frame, and works on
// packs that are not sealed or have lost their directory. Behind damage it finds the next group by its magic number. An
// error of either function stops the walk and is returned as it is. damaged may be nil. Of a compact pack the places are
// those in the file.
func (r *Reader) Walk(found func(DirEntry) error, damaged func(Damage) error) error {
	w := newWindow(r.obj, true)
	defer w.close()
	_, err := walk(w, r.header.Number, headerSize, func(e DirEntry, _ *group) error { return found(e) }, damaged)
	return err
}

// Scrub decodes every chunk of a sealed pack and hands it to visit, whose plain is valid until visit returns; the
// caller re-hashes it. For a chunk that is damaged err is errs.Corrupt and plain is nil. A damaged range in which the
// directory knows of chunks is visited once for each of them; one where nothing is known, with a zero digest. An error
// of visit stops the pass and is returned as it is; a damaged directory is returned at the end. Of a pack with a rest
// only what is left is visited: of other groups there may be anything, or nothing.
func (r *Reader) Scrub(visit func(e DirEntry, plain []byte, err error) error) error {
	const op = "scrub pack"
	if r.aead == nil {
		return errs.Text(op, r.name, errs.Denied, "no key was given")
	}
	t, _, entries, dirErr := r.directory(op)
	if dirErr != nil && !errs.Is(dirErr, errs.Corrupt) {
		return dirErr
	}
	w := newWindow(r.obj, true)
	defer w.close()
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	plain := make([]byte, 0, chunk.MaxSize)
	found := func(e DirEntry, g *group) error {
		at := e.Place
		if i, listed := search(entries, at.ByteOffset()); listed {
			e.Place = entries[i].Place
		} else if t.rest {
			return nil
		}
		b, err := w.at(at.ByteOffset(), int(at.Stored))
		if err != nil {
			return errs.Wrap(op, r.name, err)
		}
		copy(s.group[:], b)
		out := plain
		for i := range g.frames {
			if out, err = r.decode(s, g, at, i, out); err != nil {
				return visit(e, nil, errs.New(op, r.subject(at), errs.Corrupt, err))
			}
		}
		return visit(e, out, nil)
	}
	damaged := func(d Damage) error {
		err := corrupt(op, r.name, fmt.Sprintf("no chunk can be found in the %d bytes from %d on", d.Len, d.Off))
		lost := within(entries, d)
		if len(lost) == 0 && t.rest {
			return nil
		}
		if len(lost) == 0 {
			lost = []DirEntry{{Place: chunk.Place{Pack: r.header.Number, Offset: uint32(d.Off / chunk.PlaceUnit)}}}
		}
		for _, e := range lost {
			if err := visit(e, nil, err); err != nil {
				return err
			}
		}
		return nil
	}
	if _, err := walk(w, r.header.Number, headerSize, found, damaged); err != nil {
		return err
	}
	return dirErr
}

// within returns the entries that begin in a damaged range.
func within(entries []DirEntry, d Damage) []DirEntry {
	from, _ := search(entries, d.Off)
	to, _ := search(entries, d.Off+d.Len)
	return slices.Clone(entries[from:to])
}

// search finds the first entry that lies at off, in bytes, or behind it, and tells whether it lies there.
func search(entries []DirEntry, off int64) (int, bool) {
	return slices.BinarySearchFunc(entries, off, func(e DirEntry, off int64) int { return int(e.Lies().ByteOffset() - off) })
}

// walk calls found for each group from start on and damaged for each range between them that is no group. It stops at
// a directory or at the end of the file and returns where that is.
func walk(w *window, number uint32, start int64, found func(DirEntry, *group) error, damaged func(Damage) error) (int64, error) {
	pos, bad, zero := start, int64(-1), true
	flush := func() error {
		if bad < 0 || damaged == nil {
			return nil
		}
		d := Damage{Off: bad, Len: min(pos, w.size) - bad, Zero: zero && !w.unreadable}
		bad, zero = -1, true
		return damaged(d)
	}
	for pos < w.size {
		b, err := w.at(pos, groupSize)
		if err != nil {
			return pos, err
		}
		if len(b) == groupSize {
			if g, err := decodeGroup(b); err == nil && pos+int64(g.stored()) <= w.size && pos < MaxSize {
				if err := flush(); err != nil {
					return pos, err
				}
				bad = -1
				p := chunk.Place{Pack: number, Offset: uint32(pos / chunk.PlaceUnit), Stored: g.stored()}
				if err := found(DirEntry{Digest: g.digest, Place: p, PlainLen: g.plain}, &g); err != nil {
					return pos, err
				}
				pos = align(pos + int64(g.stored()))
				continue
			}
		}
		if len(b) >= dirHeaderSize {
			if _, _, err := decodeDirHeader(b); err == nil {
				return pos, flush()
			}
		}
		if bad < 0 {
			bad = pos
		}
		zero = zero && allZero(b[:min(len(b), chunk.PlaceUnit)])
		pos += chunk.PlaceUnit
	}
	return pos, flush()
}

// window reads an object front to back in large pieces and gives out parts of them.
type window struct {
	obj        backend.Object
	size       int64
	piece      *[]byte
	off        int64 // where the piece begins
	tolerant   bool  // a part that the device cannot read counts as zeros
	unreadable bool  // there was such a part
}

func newWindow(obj backend.Object, tolerant bool) *window {
	p := pieces.Get().(*[]byte)
	*p = (*p)[:0]
	return &window{obj: obj, size: obj.Size(), piece: p, tolerant: tolerant}
}

func (w *window) close() { pieces.Put(w.piece) }

// at returns the n bytes from off on, fewer at the end of the object. They are valid until the next call. n is at most
// maxGroup.
func (w *window) at(off int64, n int) ([]byte, error) {
	n = int(min(int64(n), w.size-off))
	if from := off - w.off; from >= 0 && from+int64(n) <= int64(len(*w.piece)) {
		return (*w.piece)[from : from+int64(n)], nil
	}
	want := int(min(w.size-off, int64(cap(*w.piece))))
	b := (*w.piece)[:want]
	err := w.read(b, off)
	if err != nil {
		return nil, err
	}
	*w.piece, w.off = b, off
	return b[:n], nil
}

// sector is what a tolerant window gives up when it cannot be read.
const sector = 4096

func (w *window) read(b []byte, off int64) error {
	n, err := w.obj.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err = noEOF(err); !w.tolerant || !errs.Is(err, errs.Corrupt) {
		return err
	}
	for len(b) > 0 {
		part := b[:min(int64(len(b)), sector-off%sector)]
		if n, err := w.obj.ReadAt(part, off); n < len(part) {
			if err != io.EOF && !errs.Is(noEOF(err), errs.Corrupt) {
				return err
			}
			clear(part)
			w.unreadable = true
		}
		b, off = b[len(part):], off+int64(len(part))
	}
	return nil
}
