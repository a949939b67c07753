package pack

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"hash"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// WriterOptions say what a new pack is. All fields are needed but Name.
type WriterOptions struct {
	Master    keys.Master
	StoreUUID [16]byte
	PackUUID  [16]byte // unique for ever: the pack's key follows from it
	Number    uint32   // at least 1
	Kind      Kind
	Created   time.Time
	Compact   bool   // the pack takes the place of another: chunks come by Move
	Name      string // of the object, for errors
}

// pieceSize is how much is gathered before it goes to the backend: large enough to make calls cheap, small enough to
// keep little in memory for each open pack.
const pieceSize = 1 << 20

// pieces pools the buffers of writers; the capacity has room for the group that crosses pieceSize.
var pieces = sync.Pool{New: func() any { b := make([]byte, 0, pieceSize+maxGroup+chunk.PlaceUnit); return &b }}

// Writer appends chunks to a new pack. It belongs to one goroutine. After an error it is poisoned, as its Appender is.
type Writer struct {
	a       backend.Appender
	name    string
	number  uint32
	compact bool
	aead    cipher.AEAD
	signKey [32]byte
	buf     *[]byte // gathered, not yet given to a; nil once the writer is done
	flushed int64   // bytes given to a
	sum     hash.Hash
	dir     []DirEntry
	plain   uint64
	stored  uint64
	err     error

	// Scratch of Append, here because what is given to a cipher would be allocated anew each time.
	head  [groupSize]byte
	nonce [12]byte
}

// NewWriter begins a pack on an empty Appender and owns it from then on; after an error a stays the caller's. The
// header is made durable at once: without that a crash before the first Sync could leave groups and lose the header,
// and recovery could not tell such a pack, which holds nothing that was promised, from one the disk has damaged.
func NewWriter(a backend.Appender, o WriterOptions) (*Writer, error) {
	const op = "begin pack"
	if o.Master.IsZero() || o.Number == 0 || (o.Kind != Data && o.Kind != Meta) || o.PackUUID == [16]byte{} || o.Created.Unix() < 0 {
		return nil, errs.Text(op, o.Name, errs.Bug, "the options are not complete")
	}
	w := &Writer{
		a: a, name: o.Name, number: o.Number, compact: o.Compact,
		aead: newAEAD(&o.Master, o.PackUUID), signKey: o.Master.SignKey(),
		buf: pieces.Get().(*[]byte), sum: sha256.New(),
	}
	h := Header{Kind: o.Kind, Number: o.Number, Created: o.Created, StoreUUID: o.StoreUUID, PackUUID: o.PackUUID, KeyID: o.Master.ID(), Compact: o.Compact}
	var b [headerSize]byte
	h.encode(&b)
	*w.buf = append((*w.buf)[:0], b[:]...)
	if err := w.Sync(); err != nil {
		w.release()
		return nil, errs.Wrap(op, o.Name, err)
	}
	return w, nil
}

// Size returns the bytes of the pack so far, given to the backend or not.
func (w *Writer) Size() int64 {
	if w.buf == nil {
		return w.flushed
	}
	return w.flushed + int64(len(*w.buf))
}

// Chunks returns how many chunks the pack holds so far.
func (w *Writer) Chunks() int { return len(w.dir) }

// Append encrypts a chunk named d and appends it. The place is durable after the next Sync or Seal. c stays the
// caller's to release.
func (w *Writer) Append(d chunk.Digest, c Compressed) (chunk.Place, error) {
	const op = "append to pack"
	if w.compact {
		return chunk.Place{}, errs.Text(op, w.name, errs.Bug, "the pack is a compact one")
	}
	p, err := w.add(op, d, c)
	if err != nil {
		return chunk.Place{}, err
	}
	w.dir = append(w.dir, DirEntry{Digest: d, Place: p, PlainLen: c.plain})
	return p, w.flushFull(op)
}

// add encrypts a chunk into what is gathered.
func (w *Writer) add(op string, d chunk.Digest, c Compressed) (chunk.Place, error) {
	if err := w.begin(op); err != nil {
		return chunk.Place{}, err
	}
	offset := w.Size()
	if offset+maxGroup > MaxSize || len(w.dir) >= MaxChunks {
		return chunk.Place{}, errs.Text(op, w.name, errs.Invalid, fmt.Sprintf("the pack is full with %d chunks in %d bytes", len(w.dir), offset))
	}
	g := group{codec: c.codec, frames: framesOf(int(c.plain)), raw: c.raw, plain: c.plain, digest: d}
	for i, n := range c.length[:g.frames] {
		g.cipher[i] = n + tagSize
	}
	g.encode(&w.head)
	p := chunk.Place{Pack: w.number, Offset: uint32(offset / chunk.PlaceUnit), Stored: g.stored()}
	buf := append(*w.buf, w.head[:]...)
	at := 0
	for i, n := range c.length[:g.frames] {
		putNonce(&w.nonce, p.Offset, i)
		buf = w.aead.Seal(buf, w.nonce[:], c.buf.frames[at:at+int(n)], w.head[:])
		at += int(n)
	}
	*w.buf = pad(buf, w.flushed)
	w.plain += uint64(c.plain)
	w.stored += uint64(p.Stored)
	return p, nil
}

// flushFull gives what was gathered to the backend once it is enough.
func (w *Writer) flushFull(op string) error {
	if len(*w.buf) < pieceSize {
		return nil
	}
	return w.flush(op)
}

// pad fills buf, which lies at offset before in the file, with zeros up to where the next group may begin.
func pad(buf []byte, before int64) []byte {
	var zeros [chunk.PlaceUnit]byte
	at := before + int64(len(buf))
	return append(buf, zeros[:align(at)-at]...)
}

func (w *Writer) begin(op string) error {
	if w.err != nil {
		return errs.Wrap(op, w.name, w.err)
	}
	if w.buf == nil {
		return errs.Text(op, w.name, errs.Bug, "the pack is sealed or given up")
	}
	return nil
}

// flush gives what was gathered to the backend.
func (w *Writer) flush(op string) error {
	if len(*w.buf) == 0 {
		return nil
	}
	w.sum.Write(*w.buf)
	n, err := w.a.Write(*w.buf)
	if err == nil && n != len(*w.buf) {
		err = errs.Text(op, w.name, errs.Bug, "the backend wrote less than it was given")
	}
	w.flushed += int64(n)
	*w.buf = (*w.buf)[:0]
	return w.fail(op, err)
}

// fail poisons the writer if err is not nil.
func (w *Writer) fail(op string, err error) error {
	if err != nil {
		w.err = errs.Wrap(op, w.name, err)
		return w.err
	}
	return nil
}

// Sync makes every chunk appended so far durable.
func (w *Writer) Sync() error {
	const op = "sync pack"
	if err := w.begin(op); err != nil {
		return err
	}
	if err := w.flush(op); err != nil {
		return err
	}
	return w.fail(op, w.a.Sync())
}

// Seal writes directory and trailer and seals the object. After an error the pack is left to recovery, which finds
// what the last Sync covered; Abort then gives the object back.
func (w *Writer) Seal() error {
	const op = "seal pack"
	if err := w.begin(op); err != nil {
		return err
	}
	t := trailer{chunks: uint32(len(w.dir)), plain: w.plain, stored: w.stored}
	if err := w.end(op, t, &w.signKey); err != nil {
		return err
	}
	w.release()
	return nil
}

// end writes what stands behind the groups and seals the object. signKey is nil if there is none.
func (w *Writer) end(op string, t trailer, signKey *[32]byte) error {
	*w.buf = pad(*w.buf, w.flushed)
	if err := w.flush(op); err != nil {
		return err
	}
	t.dirOffset = uint32(w.flushed / chunk.PlaceUnit)
	t.dirBytes = uint32(dirLen(t.chunks, w.compact))
	dir := encodeDirectory(nil, w.dir, w.compact)
	w.sum.Write(dir)
	w.sum.Sum(t.sum[:0])
	var b [trailerSize]byte
	if signKey == nil {
		t.flags |= flagUnsigned
	} else {
		t.encode(&b)
		t.mac = trailerMAC(signKey, &b, dir)
	}
	t.encode(&b)
	if _, err := w.a.Write(append(dir, b[:]...)); err != nil {
		return w.fail(op, err)
	}
	return w.fail(op, w.a.Seal())
}

// trailerMAC authenticates a trailer with its directory, and through the trailer's sum everything before it. The
// directory is covered itself, so that a reader can trust it without hashing the whole pack.
func trailerMAC(signKey *[32]byte, b *[trailerSize]byte, dir []byte) [32]byte {
	m := hmac.New(sha256.New, signKey[:])
	m.Write(b[:trailerSigned])
	m.Write(dir)
	return [32]byte(m.Sum(nil))
}

// Abort gives the pack up. The unsealed object stays: what Sync covered may be in use by others, and recovery or the
// caller decides what becomes of it. After Seal, or a second time, it does nothing.
func (w *Writer) Abort() error {
	if w.buf == nil {
		return nil
	}
	w.release()
	return errs.Wrap("give up pack", w.name, w.a.Close())
}

func (w *Writer) release() {
	pieces.Put(w.buf)
	w.buf = nil
}
