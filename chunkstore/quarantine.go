package chunkstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/chunkstore/quarantine"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// quarantinePrefix is the folder of what is known of damage: a record for each pack that has any. It never changes.
const quarantinePrefix = "quarantine/"

func quarantineName(k packKey) string {
	return fmt.Sprintf("%s%v-%08x", quarantinePrefix, k.kind, k.number)
}

// quarantineKey parses the name of a record.
func quarantineKey(name string) (packKey, bool) {
	kind, digits, _ := strings.Cut(strings.TrimPrefix(name, quarantinePrefix), "-")
	n, err := strconv.ParseUint(digits, 16, 32)
	for _, k := range []pack.Kind{pack.Data, pack.Meta} {
		key := packKey{k, uint32(n)}
		if err == nil && k.String() == kind && quarantineName(key) == name {
			return key, true
		}
	}
	return packKey{}, false
}

// The layout of a record; docs/format/quarantine.md draws it. These never change.
const (
	quarantineMagic   = "HFQR"
	quarantineVersion = 1
	quarantineHeader  = 20 // magic 4, version 2, reserved 2, nonce 12
)

// damageLog is what a Reader knows of the damage that was found in the store, by it and by others: a record for each
// pack. Records change under a lock of the kernel's on their folder, for every process that finds damage writes it down,
// also one that only reads.
type damageLog struct {
	r        *Reader
	log      *slog.Logger
	changing sync.Mutex // held while a record is changed; I/O is done under it
	// found is told of spots that were written down as damaged, by this process; may be nil.
	found func(ctx context.Context, key packKey, spots []Spot)

	mu     sync.Mutex // guards the rest
	listed bool
	known  map[packKey]int64 // what records there are, and how long they are
	held   map[packKey]*quarantine.Record
	sums   map[packKey]uint32 // of what each record said when it was read or written last
	weight int                // entries in held
	turn   uint64             // counts changes
	points damageMemo
}

// heldEntries bounds how many entries are kept in memory, at 64 bytes each.
const heldEntries = 256 << 10

// look lists the records, and returns them. Those that are longer or shorter than when it looked last will be read anew.
// What only changed within was changed by the one process that writes, which knows, or is found by elsewhere.
func (q *damageLog) look(ctx context.Context) (map[packKey]int64, error) {
	infos, err := q.r.b.List(ctx, quarantinePrefix)
	if err != nil {
		return nil, errs.Wrap("list quarantine", q.r.dir, err)
	}
	now := map[packKey]int64{}
	for _, i := range infos {
		if key, ok := quarantineKey(i.Name); ok {
			now[key] = i.Size
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !maps.Equal(now, q.known) {
		q.turn++
	}
	for key, size := range q.known {
		if now[key] != size {
			q.drop(key)
		}
	}
	q.known, q.listed = now, true
	return maps.Clone(now), nil
}

// drop lets go of a record. q.mu is held.
func (q *damageLog) drop(key packKey) {
	if rec := q.held[key]; rec != nil {
		q.weight -= len(rec.Entries)
		delete(q.held, key)
	}
}

// keep holds a record in memory, for others to read. q.mu is held.
func (q *damageLog) keep(key packKey, rec *quarantine.Record) {
	q.drop(key)
	if q.weight > heldEntries {
		clear(q.held)
		q.weight = 0
	}
	q.held[key] = rec
	q.weight += len(rec.Entries)
}

// rereadUpTo bounds, in bytes, up to when all records are read anew to see what others have changed in them.
const rereadUpTo = 16 << 20

// reread looks for what other processes have changed. What has changed within a record does not show from outside: so all
// are let go of, unless the store is in ruins.
func (q *damageLog) reread(ctx context.Context) (map[packKey]int64, error) {
	known, err := q.look(ctx)
	sum := int64(0)
	for _, n := range known {
		sum += n
	}
	if err == nil && sum > 0 && sum <= rereadUpTo {
		q.mu.Lock()
		defer q.mu.Unlock()
		clear(q.held)
		q.weight = 0
	}
	return known, err
}

// record returns what is known of a pack, nil if nothing is. It is not to be changed. errs.Corrupt: the record itself
// cannot be read.
func (q *damageLog) record(ctx context.Context, key packKey) (*quarantine.Record, error) {
	q.mu.Lock()
	listed := q.listed
	_, there := q.known[key]
	rec := q.held[key]
	q.mu.Unlock()
	if !listed {
		if _, err := q.look(ctx); err != nil {
			return nil, err
		}
		return q.record(ctx, key)
	}
	if !there || rec != nil {
		return rec, nil
	}
	rec, err := q.r.loadQuarantine(ctx, key)
	if errs.Is(err, errs.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if sum := crc32.ChecksumIEEE(rec.Encode()); q.sums[key] != sum {
		q.sums[key] = sum
		q.turn++
	}
	q.keep(key, rec)
	return rec, nil
}

// change changes the record of a pack, durably. f tells whether it did. The folder is not written to when the store seems to
// have gone away as a whole: an unmounted disk is no damage.
func (q *damageLog) change(ctx context.Context, key packKey, f func(*quarantine.Record) (bool, error)) error {
	return q.locked(ctx, quarantineName(key), func() error {
		rec, err := q.r.loadQuarantine(ctx, key)
		if errs.Is(err, errs.NotFound) {
			rec, err = &quarantine.Record{Kind: uint8(key.kind), Number: key.number}, nil
		}
		changed := false
		if err == nil {
			changed, err = f(rec)
		}
		if err == nil && changed {
			err = q.write(ctx, key, rec)
		}
		return err
	})
}

// renew removes a record that cannot be read. What is damaged has to be found again then, and what healed it is found by
// the index. Only who is about to look at all of the pack may do that.
func (q *damageLog) renew(ctx context.Context, key packKey) error {
	return q.locked(ctx, quarantineName(key), func() error {
		_, err := q.r.loadQuarantine(ctx, key)
		if !errs.Is(err, errs.Corrupt) {
			return nil
		}
		q.log.Error("a record of damage cannot be read, and is begun anew", "name", quarantineName(key), "err", err)
		return q.write(ctx, key, &quarantine.Record{})
	})
}

// sum returns the checksum of what a record said when it was read last.
func (q *damageLog) sum(key packKey) uint32 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.sums[key]
}

// locked runs f while nobody else changes records.
func (q *damageLog) locked(ctx context.Context, name string, f func() error) error {
	const op = "write"
	q.changing.Lock()
	defer q.changing.Unlock()
	o, err := q.r.b.Open(ctx, superblockName)
	if err == nil {
		err = o.Close()
	}
	if err != nil {
		return errs.Wrap(op, name, err)
	}
	unlock, err := q.lock(ctx)
	if err != nil {
		return errs.Wrap(op, name, err)
	}
	defer unlock()
	return errs.Wrap(op, name, f())
}

// write puts a record in the place of the one before.
func (q *damageLog) write(ctx context.Context, key packKey, rec *quarantine.Record) error {
	name := quarantineName(key)
	size := int64(0)
	if rec.Empty() {
		if err := q.r.b.Remove(ctx, name); err != nil && !errs.Is(err, errs.NotFound) {
			return err
		}
	} else {
		b := q.r.sealQuarantine(name, rec)
		size = int64(len(b))
		re, ok := q.r.b.(backend.Replacer)
		if !ok {
			return errs.Text("write", name, errs.Unsupported, "this kind of store cannot change objects")
		}
		if err := re.Replace(ctx, name, b); err != nil {
			return err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.turn++
	q.drop(key)
	delete(q.sums, key)
	if delete(q.known, key); size > 0 {
		q.known[key] = size
		q.sums[key] = crc32.ChecksumIEEE(rec.Encode())
		q.keep(key, rec)
	}
	return nil
}

// lockWait is how long another process is waited for that changes a record: it takes milliseconds.
const lockWait = 10 * time.Second

// lock locks the folder of records, as lockKeys does that of the keys, but waits.
func (q *damageLog) lock(ctx context.Context) (unlock func(), err error) {
	dir := filepath.Join(q.r.dir, filepath.Clean(quarantinePrefix))
	if _, real := q.r.d.(disk.OS); !real {
		return func() {}, nil // one process, as in lockStore
	}
	if err := q.r.d.MkdirAll(dir); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for began := time.Now(); ; {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Since(began) > lockWait {
			break
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			_ = f.Close()
			return nil, ctx.Err()
		}
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errs.Text("lock", dir, errs.Busy, "another process holds it")
	}
	return nil, os.NewSyscallError("lock", err)
}

// sealQuarantine encrypts a record, with its name.
func (r *Reader) sealQuarantine(name string, rec *quarantine.Record) []byte {
	var nonce [12]byte
	_, _ = rand.Read(nonce[:]) // never fails (crypto/rand)
	return sealQuarantine(r.key.PointKey(), nonce, name, rec)
}

func sealQuarantine(key [32]byte, nonce [12]byte, name string, rec *quarantine.Record) []byte {
	plain := rec.Encode()
	head := make([]byte, quarantineHeader, quarantineHeader+len(plain)+16)
	copy(head, quarantineMagic)
	binary.LittleEndian.PutUint16(head[4:], quarantineVersion)
	copy(head[8:], nonce[:])
	return pointCipher(key).Seal(head, nonce[:], plain, append([]byte(name), head[:8]...))
}

// loadQuarantine reads the record of a pack. errs.NotFound: it has none.
func (r *Reader) loadQuarantine(ctx context.Context, key packKey) (*quarantine.Record, error) {
	const op = "read quarantine"
	name := quarantineName(key)
	b, err := readObject(ctx, r.b, name, quarantineHeader+quarantine.MaxSize+16)
	if err != nil {
		return nil, err
	}
	if len(b) < quarantineHeader || string(b[:4]) != quarantineMagic {
		return nil, errs.Text(op, name, errs.Corrupt, "this is no record of damage")
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != quarantineVersion {
		return nil, errs.Text(op, name, errs.Unsupported, fmt.Sprintf("version %d", v)).WithNext("It was written by a newer Holdfast: use that one.")
	}
	plain, err := pointCipher(r.key.PointKey()).Open(nil, b[8:quarantineHeader], b[quarantineHeader:], append([]byte(name), b[:8]...))
	if err != nil {
		return nil, errs.Text(op, name, errs.Corrupt, "the record is damaged").WithNext("`holdfast store verify` makes it anew.")
	}
	rec, err := quarantine.Decode(plain, uint8(key.kind), key.number)
	return rec, errs.Wrap(op, name, err)
}
