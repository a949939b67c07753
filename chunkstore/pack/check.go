package pack

import (
	"fmt"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Headers compares the directory of a sealed pack with the header of each group and calls visit for every entry, with
// errs.Corrupt where the header is not what it should be. No frame is read: it finds a directory or headers that are
// damaged, and space that was lost, for 64 bytes of each chunk. An error of visit stops the pass and is returned as it is.
func (r *Reader) Headers(visit func(e DirEntry, err error) error) error {
	const op = "check headers of pack"
	_, _, entries, err := r.directory(op)
	if err != nil {
		return err
	}
	for _, e := range entries {
		plain, err := r.Group(e.Place, e.Digest.ID())
		if err == nil && plain != e.PlainLen {
			err = corrupt(op, r.subject(e.Place), fmt.Sprintf("the chunk has %d bytes, the directory says %d", plain, e.PlainLen))
		}
		if err != nil && !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.Stale) {
			return err
		}
		if err != nil {
			err = errs.New(op, r.subject(e.Place), errs.Corrupt, err) // the directory named it, so it is no old hint
		}
		if err := visit(e, err); err != nil {
			return err
		}
	}
	return nil
}

// Group looks at the header of the chunk at p, and not at its frames, and returns the bytes of the chunk before
// compression. Errors are those of ReadFrame.
func (r *Reader) Group(p chunk.Place, want chunk.ID) (uint32, error) {
	const op = "read header in pack"
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	p, err := r.locate(op, p, want)
	if err != nil {
		return 0, err
	}
	g, _, err := r.readGroup(op, s, p, want, groupSize)
	if err != nil {
		return 0, err
	}
	if g.stored() != p.Stored || p.ByteOffset()+int64(p.Stored) > r.obj.Size() {
		return 0, corrupt(op, r.subject(p), fmt.Sprintf("%d bytes are stored where there should be %d", g.stored(), p.Stored))
	}
	return g.plain, nil
}

// Padding looks at the bytes between groups, which nothing needs and no other check sees: they are zero, or something
// has written into the file. Of a pack with a rest only those right behind groups are looked at: of the others there may be
// anything, or nothing.
func (r *Reader) Padding() error {
	const op = "check padding of pack"
	t, _, entries, err := r.directory(op)
	if err != nil {
		return err
	}
	w := newWindow(r.obj, true)
	defer w.close()
	from := int64(headerSize)
	gap := func(to int64) error {
		if to-from >= chunk.PlaceUnit {
			return corrupt(op, r.name, fmt.Sprintf("the directory names nothing in the %d bytes from %d on", to-from, from))
		}
		b, err := w.at(from, int(to-from))
		if err != nil {
			return errs.Wrap(op, r.name, err)
		}
		if !allZero(b) {
			return corrupt(op, r.name, fmt.Sprintf("the %d bytes from %d on are not zero", to-from, from))
		}
		return nil
	}
	for _, e := range entries {
		if !t.rest {
			if err := gap(e.Lies().ByteOffset()); err != nil {
				return err
			}
		}
		from = e.Lies().ByteOffset() + int64(e.Lies().Stored)
		if t.rest {
			if err := gap(align(from)); err != nil {
				return err
			}
		}
	}
	if t.rest {
		return nil
	}
	return gap(int64(t.dirOffset) * chunk.PlaceUnit)
}
