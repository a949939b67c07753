package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/dgraph-io/badger/v4"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Keys and values as they lie in badger. They never change within a FormatVersion.
const (
	prefixChunk = 'c' // 'c', ID (16) → pack, offset, stored: three uint32, little-endian
	prefixMark  = 'p' // 'p', pack number as uint32 big-endian → number of entries as uint64 little-endian
	prefixRing  = 'q' // 'q', sequence modulo ringSize as uint16 big-endian → sequence as uint64 little-endian

	chunkKeySize = 1 + len(chunk.ID{})
	placeSize    = 12
	ringSize     = 1 << 16
)

// batchSize is the largest number of entries in one transaction: few enough that badger takes them in one piece, many
// enough that a bulk load is not bound by syncs. A small memtable takes fewer, see Options.batch.
const batchSize = 4096

// newest is the read timestamp that sees the last version of every key.
const newest = math.MaxUint64

// Options for Open. The zero value is right for a store.
type Options struct {
	// Log receives what badger reports and what Open decided. Nil means silent.
	Log *slog.Logger

	memTable int64 // bytes of one memtable; tests make it small to reach several tables quickly
	reserve  int64 // bytes of free space below which nothing is written; tests raise it
}

// batch returns the number of entries in one transaction. Badger takes 15 % of a memtable, counting some 100 bytes for
// an entry; this stays below that.
func (o Options) batch() int { return int(min(batchSize, o.memTable/1024)) }

// Entry is an ID with its place.
type Entry struct {
	ID    chunk.ID
	Place chunk.Place
}

// PackMark says that every entry of a pack is in the index.
type PackMark struct {
	Pack    uint32
	Entries int // how many chunks the pack held when it was marked
}

// Index is an open index. Close it.
type Index struct {
	dir    string
	db     *badger.DB
	fresh  bool
	reason string
	opt    Options

	life   sync.RWMutex // held shared by every method, exclusively by Close; guards closed
	closed bool

	writing sync.Mutex // guards the fields below and all writes to badger
	state   *stateFile
	seq     uint64 // of the last transaction
	failed  error  // the first failed write
	lock    *os.File
}

// Fresh tells whether Open began an empty index, so that the store has to index its packs.
func (x *Index) Fresh() bool { return x.fresh }

// Reason says why Open began an empty index, as a sentence for people; it is "" if it did not.
func (x *Index) Reason() string { return x.reason }

// Get returns the place of a chunk. The error is errs.Corrupt if the index cannot be read: the caller may go on as if
// the chunk were unknown, which costs space, but must not conclude that it does not exist.
func (x *Index) Get(id chunk.ID) (p chunk.Place, found bool, err error) {
	x.life.RLock()
	defer x.life.RUnlock()
	if x.closed {
		return p, false, errClosed("get from index", x.dir)
	}
	defer func() {
		if r := recover(); r != nil {
			p, found, err = chunk.Place{}, false, errCorrupt("get from index", x.dir, fmt.Errorf("badger: %v", r))
		}
	}()
	p, found, err = lookup(x.db, id)
	if err != nil {
		return chunk.Place{}, false, errCorrupt("get from index", x.dir, err)
	}
	return p, found, nil
}

func lookup(db *badger.DB, id chunk.ID) (p chunk.Place, found bool, err error) {
	key := chunkKey(id)
	txn := db.NewTransactionAt(newest, false)
	defer txn.Discard()
	item, err := txn.Get(key[:])
	if errors.Is(err, badger.ErrKeyNotFound) {
		return p, false, nil
	}
	if err != nil {
		return p, false, err
	}
	err = item.Value(func(v []byte) (err error) {
		p, err = decodePlace(v)
		return err
	})
	return p, err == nil, err
}

// Put records entries, replacing what was known of the same IDs, durably. Give it at least 256 at a time when there
// are as many: every call costs a sync of the disk. After an error some of the entries may be recorded.
func (x *Index) Put(entries []Entry) error {
	const op = "put into index"
	for _, e := range entries {
		if e.ID.IsZero() || e.Place.Pack == 0 || e.Place.Stored == 0 {
			return errs.Text(op, e.ID.String(), errs.Invalid, "no chunk lies at "+e.Place.String())
		}
	}
	return x.inBatches(op, len(entries), func(txn *badger.Txn, from, to int) error {
		for _, e := range entries[from:to] {
			// Badger keeps both slices until the transaction is committed.
			key := chunkKey(e.ID)
			if err := txn.Set(key[:], encodePlace(e.Place)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Delete forgets chunks, durably. IDs that are not known are no error.
func (x *Index) Delete(ids []chunk.ID) error {
	return x.inBatches("delete from index", len(ids), func(txn *badger.Txn, from, to int) error {
		for _, id := range ids[from:to] {
			key := chunkKey(id)
			if err := txn.Delete(key[:]); err != nil {
				return err
			}
		}
		return nil
	})
}

// DeleteIf forgets those of the chunks that the index places in the given pack, durably, and returns how many there
// were. No Put comes between the look and the deletion.
func (x *Index) DeleteIf(ids []chunk.ID, pack uint32) (deleted int, err error) {
	err = x.inBatches("delete from index", len(ids), func(txn *badger.Txn, from, to int) error {
		for _, id := range ids[from:to] {
			p, found, err := lookup(x.db, id)
			if err != nil {
				return errCorrupt("look up", id.String(), err)
			}
			if !found || p.Pack != pack {
				continue
			}
			key := chunkKey(id)
			if err := txn.Delete(key[:]); err != nil {
				return err
			}
			deleted++
		}
		return nil
	})
	return deleted, err
}

// MarkPack records durably that all entries of a pack are in the index. Call it after the Put of the last of them has
// returned nil.
func (x *Index) MarkPack(pack uint32, entries int) error {
	const op = "mark pack in index"
	if pack == 0 || entries < 0 {
		return errs.Text(op, fmt.Sprintf("%08x", pack), errs.Invalid, "there is no such pack")
	}
	return x.inBatches(op, 1, func(txn *badger.Txn, _, _ int) error {
		return txn.Set(markKey(pack), binary.LittleEndian.AppendUint64(nil, uint64(entries)))
	})
}

// UnmarkPack takes the mark of a pack away, durably. It leaves the pack's entries alone.
func (x *Index) UnmarkPack(pack uint32) error {
	return x.inBatches("unmark pack in index", 1, func(txn *badger.Txn, _, _ int) error {
		return txn.Delete(markKey(pack))
	})
}

// Packs returns the marks, sorted by pack.
func (x *Index) Packs() (marks []PackMark, err error) {
	err = x.read("list packs of index", func() error {
		return scan(x.db, []byte{prefixMark}, func(key, value []byte) error {
			if len(key) != 5 || len(value) != 8 {
				return errors.New("a mark of another form")
			}
			marks = append(marks, PackMark{binary.BigEndian.Uint32(key[1:]), int(binary.LittleEndian.Uint64(value))})
			return nil
		})
	})
	return marks, err
}

// countExactly is the number of keys up to which Count looks at each.
const countExactly = 1 << 20

// Count returns the number of chunks: exactly for a small index, otherwise an estimate in which deleted and replaced
// entries count until compaction has dropped them.
func (x *Index) Count() (n int64, err error) {
	err = x.read("count index", func() error {
		for _, t := range x.db.Tables() {
			n += int64(t.KeyCount)
		}
		if n > countExactly {
			return nil
		}
		n = 0
		return scan(x.db, []byte{prefixChunk}, func(_, _ []byte) error {
			n++
			return nil
		})
	})
	return n, err
}

// Size returns the bytes that the folder really occupies. The files are longer than that: badger's are mostly holes.
func (x *Index) Size() (int64, error) {
	var n int64
	err := filepath.WalkDir(x.dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // badger removes files while we look
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			n += st.Blocks * 512
		}
		return nil
	})
	return n, errs.Wrap("size of index", x.dir, err)
}

// Compact rewrites the tables so that deleted and replaced entries no longer cost space or reads. It is worth its I/O
// after a collection that deleted many entries.
func (x *Index) Compact() error {
	return x.read("compact index", func() error { return x.db.Flatten(1) })
}

// Close ends the use of the index. What was acknowledged is durable without it; closing makes the next Open faster. It
// waits for calls that are under way. A second Close does nothing.
func (x *Index) Close() error {
	x.life.Lock()
	defer x.life.Unlock()
	if x.closed {
		return nil
	}
	x.closed = true
	err := guard(x.db.Close)
	if cerr := x.state.close(); err == nil {
		err = cerr
	}
	if cerr := x.lock.Close(); err == nil {
		err = cerr
	}
	return errs.Wrap("close index", x.dir, err)
}

// read runs f with the index kept open, and reports any failure as damage.
func (x *Index) read(op string, f func() error) error {
	x.life.RLock()
	defer x.life.RUnlock()
	if x.closed {
		return errClosed(op, x.dir)
	}
	if err := guard(f); err != nil {
		return errCorrupt(op, x.dir, err)
	}
	return nil
}

// inBatches commits n items in transactions, which fill makes of the items [from, to).
func (x *Index) inBatches(op string, n int, fill func(txn *badger.Txn, from, to int) error) error {
	x.life.RLock()
	defer x.life.RUnlock()
	if x.closed {
		return errClosed(op, x.dir)
	}
	x.writing.Lock()
	defer x.writing.Unlock()
	if x.failed != nil {
		return errs.Wrap(op, x.dir, x.failed)
	}
	for from := 0; from < n; from += x.opt.batch() {
		if err := spaceLeft(x.dir, x.opt.reserve); err != nil {
			return errs.Wrap(op, x.dir, err)
		}
		to := min(from+x.opt.batch(), n)
		if err := guard(func() error { return x.commit(func(t *badger.Txn) error { return fill(t, from, to) }) }); err != nil {
			x.failed = errs.New("write index", x.dir, errs.KindOf(err), err).
				WithNext("Restart the service: it checks the index and rebuilds it if it has to.")
			return errs.Wrap(op, x.dir, x.failed)
		}
	}
	return nil
}

// commit runs one transaction. The caller holds writing.
func (x *Index) commit(fill func(*badger.Txn) error) error {
	seq := x.seq + 1
	txn := x.db.NewTransactionAt(newest, true)
	defer txn.Discard()
	if err := fill(txn); err != nil {
		return err
	}
	if err := txn.Set(ringKey(seq), binary.LittleEndian.AppendUint64(nil, seq)); err != nil {
		return err
	}
	if err := txn.CommitAt(seq, nil); err != nil {
		return err
	}
	x.seq = seq
	x.db.SetDiscardTs(seq) // nobody reads an older version
	return x.state.acknowledge(seq)
}

// scan calls f with every key that has the prefix, in order. The slices are valid during the call.
func scan(db *badger.DB, prefix []byte, f func(key, value []byte) error) error {
	txn := db.NewTransactionAt(newest, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		item := it.Item()
		if err := item.Value(func(v []byte) error { return f(item.Key(), v) }); err != nil {
			return err
		}
	}
	return nil
}

func chunkKey(id chunk.ID) (key [chunkKeySize]byte) {
	key[0] = prefixChunk
	copy(key[1:], id[:])
	return key
}

func markKey(pack uint32) []byte { return binary.BigEndian.AppendUint32([]byte{prefixMark}, pack) }

func ringKey(seq uint64) []byte {
	return binary.BigEndian.AppendUint16([]byte{prefixRing}, uint16(seq%ringSize))
}

func encodePlace(p chunk.Place) []byte {
	b := make([]byte, 0, placeSize)
	b = binary.LittleEndian.AppendUint32(b, p.Pack)
	b = binary.LittleEndian.AppendUint32(b, p.Offset)
	return binary.LittleEndian.AppendUint32(b, p.Stored)
}

func decodePlace(v []byte) (chunk.Place, error) {
	if len(v) != placeSize {
		return chunk.Place{}, fmt.Errorf("a place of %d bytes instead of %d", len(v), placeSize)
	}
	p := chunk.Place{
		Pack:   binary.LittleEndian.Uint32(v),
		Offset: binary.LittleEndian.Uint32(v[4:]),
		Stored: binary.LittleEndian.Uint32(v[8:]),
	}
	if p.Pack == 0 || p.Stored == 0 {
		return chunk.Place{}, errors.New("a place where no chunk can lie")
	}
	return p, nil
}

// guard turns a panic inside badger into an error, as far as it happens on our goroutine.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("badger: %v", r)
		}
	}()
	return f()
}

func errCorrupt(op, subject string, cause error) error {
	return errs.New(op, subject, errs.Corrupt, cause).
		WithNext("Restart the service: it checks the index and rebuilds it if it has to.")
}

func errClosed(op, subject string) error {
	return errs.Text(op, subject, errs.Stale, "the index is closed")
}
