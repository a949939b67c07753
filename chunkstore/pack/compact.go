package pack

import (
	"fmt"
	"sync"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// A compact pack takes the place of a pack of the same number: it holds those of its chunks that are left, in the same
// order, without gaps, compressed with as much care as time allows. Manifests and the index go on naming the places that
// the chunks had; they are in the directory, beside where the chunks lie now. As every pack it has a UUID of its own, and
// so a key of its own: no nonce is used twice.

// Move appends a chunk to a compact pack; place is the one it had. Chunks come in the order of their places.
func (w *Writer) Move(d chunk.Digest, c Compressed, place chunk.Place) error {
	const op = "move to pack"
	if !w.compact || place.Pack != w.number {
		return errs.Text(op, w.name, errs.Bug, "the chunk is not of the pack that this one takes the place of")
	}
	if n := len(w.dir); n > 0 && place.Offset <= w.dir[n-1].Place.Offset {
		return errs.Text(op, w.name, errs.Bug, "the chunks do not come in order")
	}
	at, err := w.add(op, d, c)
	if err != nil {
		return err
	}
	w.dir = append(w.dir, DirEntry{Digest: d, Place: place, PlainLen: c.plain, at: at})
	return w.flushFull(op)
}

// moves says where the chunks of a compact pack lie. It is filled at the first read: 44 bytes for each chunk.
type moves struct {
	mu   sync.Mutex
	byID map[chunk.ID]chunk.Place
}

// locate returns where the chunk of a place lies in the file. It is asked by name, so that with a damaged directory the
// headers of the groups, which have the names too, say the same.
func (r *Reader) locate(op string, p chunk.Place, want chunk.ID) (chunk.Place, error) {
	if !r.header.Compact || p.Pack != r.header.Number {
		return p, nil
	}
	r.moved.mu.Lock()
	defer r.moved.mu.Unlock()
	if r.moved.byID == nil {
		if err := r.learn(op); err != nil {
			return chunk.Place{}, err
		}
	}
	at, ok := r.moved.byID[want]
	if !ok {
		return chunk.Place{}, errs.Text(op, r.subject(p), errs.Stale, "nothing lies at this place any more")
	}
	return at, nil
}

// learn fills r.moved, whose mu is held.
func (r *Reader) learn(op string) error {
	_, _, entries, err := r.directory(op)
	if err != nil && !errs.Is(err, errs.Corrupt) {
		return err
	}
	byID := make(map[chunk.ID]chunk.Place, len(entries))
	for _, e := range entries {
		byID[e.Digest.ID()] = e.Lies()
	}
	if err != nil {
		err = r.Walk(func(e DirEntry) error {
			if len(byID) >= MaxChunks {
				return corrupt(op, r.name, fmt.Sprintf("it has more than %d chunks", MaxChunks))
			}
			byID[e.Digest.ID()] = e.Place
			return nil
		}, nil)
		if err != nil {
			return errs.Wrap(op, r.name, err)
		}
	}
	r.moved.byID = byID
	return nil
}
