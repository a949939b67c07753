// Package quarantine keeps what is known of damage in one pack: which chunks or pages in it cannot be used, since when,
// and where the same content lies again.
//
// Terms. A Record is of one pack. An Entry is a chunk, or a page, at its offset in the pack. It is damaged until it is
// healed: then it says where else the content lies. A pack is lost if nothing in it can be read.
//
// Invariants:
//
//  1. Entries are sorted by offset, then ID, and each is there once.
//  2. A record knows at most MaxEntries entries, as many as a pack can have chunks: it is one object for each pack,
//     however much of the pack is damaged.
//  3. Nothing is believed that was not checked: Decode takes what Encode gives, and nothing else.
//
// The bytes are drawn in docs/format/quarantine.md. The package does no I/O and no encryption. A Record is used by one
// goroutine, or read by many. Tested by a vector, by a model, and by a fuzz target.
package quarantine

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The layout, little endian. These never change.
const (
	headerSize = 24 // kind 1, reserved 3, pack 4, lost since 8, entries 4, reserved 4
	entrySize  = 48 // id 16, offset 4, stored 4, since 8, healed: pack 4, offset 4, stored 4, reserved 4
)

// MaxEntries bounds a record, and so its memory: 64 MiB at most. It never changes.
const MaxEntries = 1 << 20

// MaxSize is the most bytes that Encode gives.
const MaxSize = headerSize + MaxEntries*entrySize

// Entry is a chunk or a page that was found damaged.
type Entry struct {
	ID     chunk.ID
	Offset uint32 // in the pack, in chunk.PlaceUnits
	Stored uint32 // bytes
	Since  time.Time
	Healed chunk.Place // where the content lies again; zero: it is damaged still
}

// Place returns where the damaged bytes lie.
func (e Entry) Place(number uint32) chunk.Place {
	return chunk.Place{Pack: number, Offset: e.Offset, Stored: e.Stored}
}

// Record is what is known of one pack.
type Record struct {
	Kind    uint8 // of the pack, as its header has it
	Number  uint32
	Lost    time.Time // since when nothing in the pack can be read; zero: some can
	Entries []Entry
}

// Empty tells whether the record says nothing.
func (r *Record) Empty() bool { return len(r.Entries) == 0 && r.Lost.IsZero() }

func order(e Entry, k Entry) int {
	if c := cmp.Compare(e.Offset, k.Offset); c != 0 {
		return c
	}
	return slices.Compare(e.ID[:], k.ID[:])
}

func (r *Record) search(id chunk.ID, offset uint32) (int, bool) {
	return slices.BinarySearchFunc(r.Entries, Entry{ID: id, Offset: offset}, order)
}

// Find returns the entry of a chunk. Where there is none and the pack is lost, it is as if there were one.
func (r *Record) Find(id chunk.ID, at chunk.Place) (Entry, bool) {
	if r == nil {
		return Entry{}, false
	}
	if i, ok := r.search(id, at.Offset); ok {
		return r.Entries[i], true
	}
	return Entry{ID: id, Offset: at.Offset, Stored: at.Stored, Since: r.Lost}, !r.Lost.IsZero()
}

// Lists tells whether the record has an entry of a chunk.
func (r *Record) Lists(id chunk.ID, at chunk.Place) bool {
	if r == nil {
		return false
	}
	_, ok := r.search(id, at.Offset)
	return ok
}

// Add notes that a chunk is damaged, and tells whether that is news. One that was healed stays so. errs.NoSpace: the
// record has as many entries as a pack can have chunks.
func (r *Record) Add(id chunk.ID, at chunk.Place, since time.Time) (bool, error) {
	i, ok := r.search(id, at.Offset)
	if ok {
		return false, nil
	}
	if len(r.Entries) >= MaxEntries {
		return false, errs.Text("note damage", at.String(), errs.NoSpace, "the record of the pack is full")
	}
	since = moment(since)
	if !r.Lost.IsZero() && r.Lost.Before(since) {
		since = r.Lost
	}
	r.Entries = slices.Insert(r.Entries, i, Entry{ID: id, Offset: at.Offset, Stored: at.Stored, Since: since})
	return true, nil
}

// Lose notes that nothing in the pack can be read, and tells whether that is news.
func (r *Record) Lose(since time.Time) bool {
	if !r.Lost.IsZero() {
		return false
	}
	r.Lost = moment(since)
	return true
}

// moment is a time as the record keeps it.
func moment(t time.Time) time.Time { return time.Unix(0, t.UnixNano()).UTC() }

// Heal notes that the content of damaged entries lies again where to says for their IDs, and returns how many there were.
func (r *Record) Heal(to map[chunk.ID]chunk.Place) (n int) {
	for i := range r.Entries {
		e := &r.Entries[i]
		at, ok := to[e.ID]
		if ok && e.Healed.IsZero() && (at.Pack != r.Number || at.Offset != e.Offset) {
			e.Healed = at
			n++
		}
	}
	return n
}

// Lift forgets entries: those for which f returns true. It returns how many there were.
func (r *Record) Lift(f func(Entry) bool) int {
	before := len(r.Entries)
	r.Entries = slices.DeleteFunc(r.Entries, f)
	return before - len(r.Entries)
}

// Encode returns the record's bytes.
func (r *Record) Encode() []byte {
	b := make([]byte, headerSize, headerSize+len(r.Entries)*entrySize)
	le := binary.LittleEndian
	b[0] = r.Kind
	le.PutUint32(b[4:], r.Number)
	if !r.Lost.IsZero() {
		le.PutUint64(b[8:], uint64(r.Lost.UnixNano()))
	}
	le.PutUint32(b[16:], uint32(len(r.Entries)))
	for _, e := range r.Entries {
		b = append(b, e.ID[:]...)
		for _, n := range [...]uint32{e.Offset, e.Stored} {
			b = le.AppendUint32(b, n)
		}
		b = le.AppendUint64(b, uint64(e.Since.UnixNano()))
		for _, n := range [...]uint32{e.Healed.Pack, e.Healed.Offset, e.Healed.Stored, 0} {
			b = le.AppendUint32(b, n)
		}
	}
	return b
}

func corrupt(why string, args ...any) error {
	return errs.Text("read quarantine", "", errs.Corrupt, fmt.Sprintf(why, args...))
}

// Decode reads the record of a pack.
func Decode(b []byte, kind uint8, number uint32) (*Record, error) {
	le := binary.LittleEndian
	if len(b) < headerSize || len(b) > MaxSize || (len(b)-headerSize)%entrySize != 0 {
		return nil, corrupt("%d bytes are no record", len(b))
	}
	if b[0] != kind || le.Uint32(b[4:]) != number {
		return nil, corrupt("it is that of pack %d of kind %d", le.Uint32(b[4:]), b[0])
	}
	n := (len(b) - headerSize) / entrySize
	if int64(le.Uint32(b[16:])) != int64(n) || b[1]|b[2]|b[3] != 0 || le.Uint32(b[20:]) != 0 {
		return nil, corrupt("a field holds a value that is never written")
	}
	r := &Record{Kind: kind, Number: number, Entries: make([]Entry, n)}
	if since := le.Uint64(b[8:]); since != 0 {
		r.Lost = time.Unix(0, int64(since)).UTC()
	}
	for i := range r.Entries {
		p := b[headerSize+i*entrySize:][:entrySize]
		r.Entries[i] = Entry{
			ID: chunk.ID(p[:16]), Offset: le.Uint32(p[16:]), Stored: le.Uint32(p[20:]), Since: time.Unix(0, int64(le.Uint64(p[24:]))).UTC(),
			Healed: chunk.Place{Pack: le.Uint32(p[32:]), Offset: le.Uint32(p[36:]), Stored: le.Uint32(p[40:])},
		}
		e := r.Entries[i]
		if le.Uint32(p[44:]) != 0 || e.ID.IsZero() || e.Healed.Pack == 0 && !e.Healed.IsZero() {
			return nil, corrupt("entry %d holds a value that is never written", i)
		}
		if i > 0 && order(r.Entries[i-1], e) >= 0 {
			return nil, corrupt("entry %d is out of order", i)
		}
	}
	return r, nil
}
