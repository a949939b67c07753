package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	defaultMemTable = 8 << 20
	defaultReserve  = 256 << 20

	// reasonNone is why the index of a new store is fresh.
	reasonNone = "there was none"
	// reasonCut is why an index is fresh that a kill met while it was made.
	reasonCut = "its making was cut short"
)

// Open opens the index in the folder dir, which belongs to the store with that UUID, and makes it if there is none.
//
// A folder that is damaged, of another format version or of another store is moved to "<dir>.bad-<time>", where the
// newest one is kept for people to look at, and an empty index takes its place: ask Fresh. Open reads the whole folder
// once to be sure of it. The error is errs.Busy if another process has the index open, errs.NoSpace if the disk is so
// full that working with it is not safe, and of other kinds if the folder cannot be used at all.
func Open(dir string, storeUUID [16]byte, o Options) (*Index, error) {
	const op = "open index"
	if o.memTable == 0 {
		o.memTable = defaultMemTable
	}
	if o.reserve == 0 {
		o.reserve = defaultReserve
	}
	dir = filepath.Clean(dir)
	lock, err := lockFolder(dir)
	if err != nil {
		return nil, errs.Wrap(op, dir, err)
	}
	x := &Index{dir: dir, opt: o, lock: lock}
	if err = spaceLeft(dir, o.reserve); err == nil {
		err = x.openOrBegin(storeUUID)
	}
	if err != nil {
		_ = x.lock.Close()
		return nil, errs.Wrap(op, dir, err)
	}
	if err := dropOlderAsides(dir); err != nil && o.Log != nil {
		o.Log.Warn("index: cannot remove what was moved aside long ago", "op", op, "err", err)
	}
	return x, nil
}

// distrust is the error that makes Open begin anew. Other errors are reported: throwing an index away does not help
// against a full disk or a missing permission.
type distrust struct{ reason string }

func (d distrust) Error() string { return d.reason }

func (x *Index) openOrBegin(store [16]byte) error {
	err := x.openExisting(store)
	var d distrust
	if !errors.As(err, &d) {
		return err
	}
	x.fresh, x.reason = true, d.reason
	if x.opt.Log != nil && d.reason != reasonNone { // a new store has none, and that is no news
		x.opt.Log.Warn("index: begun anew, packs will be indexed again", "op", "open index", "reason", d.reason)
	}
	if err := x.moveAside(); err != nil {
		return err
	}
	return x.begin(store)
}

// openExisting opens what is in the folder, or returns a distrust.
func (x *Index) openExisting(store [16]byte) error {
	s, err := readState(x.dir)
	switch {
	case err != nil:
		return err
	case s.version != FormatVersion:
		return distrust{fmt.Sprintf("it has format version %d, this program uses %d", s.version, FormatVersion)}
	case s.store != store:
		return distrust{"it belongs to another store"}
	}
	if err := guard(func() error { return checkFolder(x.dir) }); err != nil {
		return distrustDamage(err)
	}
	if x.state, err = openState(x.dir, s); err != nil {
		return err
	}
	err = guard(func() error { return x.openBadger() })
	if err == nil {
		err = guard(func() error { return x.checkRing(s.acked) })
		if err != nil {
			_ = guard(x.db.Close)
		}
	}
	if err != nil {
		_ = x.state.close()
		return distrustDamage(err)
	}
	return nil
}

// distrustDamage keeps errors that say nothing about the content of the folder.
func distrustDamage(err error) error {
	if k := errs.KindOf(err); k == errs.Denied || k == errs.NoSpace || errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return err
	}
	return distrust{"it is damaged: " + err.Error()}
}

func readState(dir string) (s state, err error) {
	b, err := disk.ReadFile(disk.OS{}, filepath.Join(dir, stateName), stateSize)
	if errs.Is(err, errs.NotFound) {
		return s, withoutState(dir)
	}
	if err == nil {
		s, err = decodeState(b)
	}
	if err != nil {
		return s, distrustDamage(fmt.Errorf("state file: %w", err))
	}
	return s, nil
}

// withoutState says what a folder without a state file is, or why it cannot be told.
func withoutState(dir string) error {
	names, err := os.ReadDir(dir)
	switch {
	case err != nil:
		return err
	case len(names) == 0:
		return distrust{reasonNone}
	case unfinished(names):
		return distrust{reasonCut}
	}
	return distrust{"its state file is missing"}
}

// begin makes an empty index in the empty, locked folder. The state file comes last: with it the folder is complete,
// and without it a kill came in between.
func (x *Index) begin(store [16]byte) (err error) {
	if err := guard(x.openBadger); err != nil {
		return err
	}
	if x.state, err = createState(x.dir, state{version: FormatVersion, store: store}); err != nil {
		_ = guard(x.db.Close)
	}
	return err
}

// tableSize is the size of a table on every level. Badger would double it from level to level, and a compaction holds
// some ten tables of twice that size in memory: with tables of one size, memory does not grow with the index. The price
// is files: some 500 for every GiB of index, each of them open and mapped.
const tableSize = 2 << 20

// badgerOptions are how the database is opened. Memory: one memtable that is written and two that wait to be flushed, the
// tables that two compactions build, no cache of blocks (they are mapped and not compressed) and none of table indexes
// (mapped too).
func (x *Index) badgerOptions() badger.Options {
	o := badger.DefaultOptions(x.dir).
		WithLogger(logger{x.opt.Log}).
		WithSyncWrites(true).
		WithNumVersionsToKeep(1).
		WithCompression(options.None).
		WithDetectConflicts(false).
		WithMetricsEnabled(false).
		WithChecksumVerificationMode(options.OnBlockRead).
		WithMemTableSize(x.opt.memTable).
		WithNumMemtables(2).
		WithBaseTableSize(tableSize).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithNumCompactors(2).
		WithNumGoroutines(1).
		WithNumLevelZeroTables(4).
		WithNumLevelZeroTablesStall(8).
		WithValueThreshold(1 << 10).   // far above any value: nothing goes to the value log
		WithValueLogFileSize(1 << 20). // the least that badger takes; the file stays empty
		WithBypassLockGuard(true)      // lockFolder holds the same lock, also while the folder is moved aside
	o.TableSizeMultiplier = 1
	return o
}

func (x *Index) openBadger() error {
	db, err := badger.OpenManaged(x.badgerOptions())
	if err != nil {
		return err
	}
	x.db = db
	return nil
}

// ring is what the ring of a folder holds, by slot.
type ring map[uint16]uint64

// add takes in one entry of it; other keys are passed over. Later ones replace earlier ones only if they are higher: a
// slot may be in a log and in several tables.
func (r ring) add(key, value []byte) error {
	if len(key) == 0 || key[0] != prefixRing {
		return nil
	}
	if len(key) != 3 || len(value) != 8 {
		return errors.New("a ring entry of another form")
	}
	slot, seq := binary.BigEndian.Uint16(key[1:]), binary.LittleEndian.Uint64(value)
	if seq%ringSize != uint64(slot) {
		return fmt.Errorf("ring entry %d holds sequence %d", slot, seq)
	}
	r[slot] = max(r[slot], seq)
	return nil
}

// check finds out whether a transaction that was acknowledged is missing, and returns the last sequence.
func (r ring) check(acked uint64) (last uint64, err error) {
	for seq := acked; seq > 0 && acked-seq < ringSize; seq-- {
		if r[uint16(seq%ringSize)] < seq {
			return 0, fmt.Errorf("transaction %d of %d is missing", seq, acked)
		}
	}
	last = acked
	for _, seq := range r {
		last = max(last, seq)
	}
	return last, nil
}

// checkRing finds out whether a transaction that was acknowledged is missing, and where the sequence goes on.
func (x *Index) checkRing(acked uint64) error {
	r := ring{}
	if err := scan(x.db, []byte{prefixRing}, r.add); err != nil {
		return err
	}
	last, err := r.check(acked)
	if err != nil {
		return err
	}
	x.seq = last
	x.db.SetDiscardTs(x.seq)
	return nil
}

// lockFolder makes the folder if needed and locks it as badger itself would, so that badger's own tools keep away too.
func lockFolder(dir string) (*os.File, error) {
	if err := (disk.OS{}).MkdirAll(dir); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, errs.Text("lock", dir, errs.Busy, "another process has the index open").
				WithNext("Stop the other process that uses this store, or wait for it to end.")
		}
		return nil, os.NewSyscallError("flock", err)
	}
	return f, nil
}

// spaceLeft fails when less than reserve bytes are free: badger writes through memory maps, where a full disk kills
// the process instead of giving an error.
func spaceLeft(dir string, reserve int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return os.NewSyscallError("statfs", err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < reserve {
		return errs.Text("use disk", dir, errs.NoSpace, fmt.Sprintf("%d MiB are free, %d MiB are needed", free>>20, reserve>>20)).
			WithNext("Free space on the disk that holds the index, or move the index to a larger one.")
	}
	return nil
}
