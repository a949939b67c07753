package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Examine looks for damage in the index of a store while nobody has it open, and changes nothing. It finds what Open
// would find; but where Open begins an empty index, it says why. errs.Corrupt: the index is damaged, of another store or
// of another version; the next Open begins a new one. errs.Busy: a process has it open, which looked at it then.
// errs.NotFound: there is none yet.
func Examine(dir string, store [16]byte) error {
	const op = "examine index"
	dir, err := filepath.Abs(dir) // links to it lie in another folder
	if err == nil {
		_, err = os.Stat(dir)
	}
	if err != nil {
		return errs.Wrap(op, dir, err)
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return errs.Wrap(op, dir, err)
	}
	defer lock.Close()
	err = examine(dir, store)
	var d distrust
	if !errors.As(err, &d) {
		return errs.Wrap(op, dir, err)
	}
	if d.reason == reasonNone || d.reason == reasonCut {
		return errs.Text(op, dir, errs.NotFound, d.reason)
	}
	return errs.New(op, dir, errs.Corrupt, d).
		WithNext("It holds nothing that is not in the packs: the next backup makes a new one, and no restore needs it.")
}

// examine is openExisting for somebody who only looks.
func examine(dir string, store [16]byte) error {
	s, err := readState(dir)
	switch {
	case err != nil:
		return err
	case s.version != FormatVersion:
		return distrust{fmt.Sprintf("it has format version %d, this program uses %d", s.version, FormatVersion)}
	case s.store != store:
		return distrust{"it belongs to another store"}
	}
	if err := guard(func() error { return checkTables(dir) }); err != nil {
		return distrustDamage(err)
	}
	ring, err := ringOf(dir)
	if err == nil {
		_, err = ring.check(s.acked)
	}
	if err != nil {
		return distrustDamage(err)
	}
	return nil
}

// ringOf gathers the ring from the tables, which badger reads, and from the logs that a killed process left, which
// badger would only read by writing. The tables are shown to it in a folder of their own.
func ringOf(dir string) (ring, error) {
	r := ring{}
	view, err := os.MkdirTemp("", "holdfast-index-*")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(view)
	names, err := os.ReadDir(dir)
	if err != nil {
		return r, err
	}
	for _, n := range names {
		from := filepath.Join(dir, n.Name())
		switch {
		case filepath.Ext(n.Name()) == ".mem":
			b, rerr := os.ReadFile(from) // badger makes them of 16 MiB, mostly a hole
			if err = rerr; err == nil {
				err = replay(b, r.add)
			}
		case filepath.Ext(n.Name()) == ".vlog":
			err = checkValueLog(from)
		case filepath.Ext(n.Name()) == ".sst":
			err = os.Symlink(from, filepath.Join(view, n.Name()))
		case n.Name() == badger.ManifestFilename, n.Name() == badger.KeyRegistryFileName:
			b, rerr := os.ReadFile(from)
			if err = rerr; err == nil {
				err = os.WriteFile(filepath.Join(view, n.Name()), b, 0o600)
			}
		}
		if err != nil {
			return r, fmt.Errorf("%s: %w", n.Name(), err)
		}
	}
	return r, guard(func() error {
		x := &Index{dir: view, opt: Options{memTable: defaultMemTable}}
		db, err := badger.OpenManaged(x.badgerOptions().WithReadOnly(true))
		if err != nil {
			return err
		}
		defer func() { _ = guard(db.Close) }()
		return scan(db, []byte{prefixRing}, r.add)
	})
}

// The layout of badger's logs: a header, then entries of meta and user meta (a byte each), lengths of key and value and
// time of expiry (varints), key with the version behind it, value, CRC-32C of all that, big-endian. The entries of one
// transaction are marked, and count only with the entry that ends it.
const (
	logHeader  = 20
	logInTxn   = 1 << 6
	logEndTxn  = 1 << 7
	logVersion = 8 // bytes behind the key
	maxLogKey  = 1 << 16
)

// checkValueLog looks at what is always empty but for its header.
func checkValueLog(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, logHeader))
	if err != nil || len(b) < logHeader { // badger makes good for one that was cut
		return err
	}
	return checkLogHeader(b)
}

// checkLogHeader looks at the number of the key that a log is encrypted with: badger refuses a folder with one it does
// not know. Ours has none.
func checkLogHeader(b []byte) error {
	if len(b) < logHeader {
		return io.ErrUnexpectedEOF
	}
	if binary.BigEndian.Uint64(b) != 0 {
		return errors.New("the log names a key")
	}
	return nil
}

// replay calls f with the keys and values of a log's complete transactions, in order, up to the first entry that is
// damaged or was never written, as badger does.
func replay(b []byte, f func(key, value []byte) error) error {
	if len(b) == 0 {
		return nil // see dropEmptyLogs
	}
	if err := checkLogHeader(b); err != nil {
		return err
	}
	r := bytes.NewReader(b[logHeader:])
	var open [][2][]byte
	for {
		meta, key, value, err := logEntry(b, r)
		switch {
		case err != nil:
			return nil // what counts behind it is missing in the ring
		case meta&logEndTxn != 0:
			for _, e := range open {
				if err := f(e[0], e[1]); err != nil {
					return err
				}
			}
			open = open[:0]
		case meta&logInTxn != 0:
			open = append(open, [2][]byte{key, value})
		default:
			if err := f(key, value); err != nil {
				return err
			}
		}
	}
}

// logEntry reads one entry of log b, of which r has not read the rest.
func logEntry(b []byte, r *bytes.Reader) (meta byte, key, value []byte, err error) {
	start := len(b) - r.Len()
	if meta, err = r.ReadByte(); err != nil {
		return 0, nil, nil, err
	}
	if _, err = r.ReadByte(); err != nil {
		return 0, nil, nil, err
	}
	var lens [3]uint64
	for i := range lens {
		if lens[i], err = binary.ReadUvarint(r); err != nil {
			return 0, nil, nil, err
		}
	}
	body := len(b) - r.Len()
	if lens[0] <= logVersion || lens[0] > maxLogKey || lens[1] > uint64(len(b)) || lens[0]+lens[1]+4 > uint64(r.Len()) {
		return 0, nil, nil, errors.New("no entry")
	}
	end := body + int(lens[0]+lens[1])
	if crc32.Checksum(b[start:end], castagnoli) != binary.BigEndian.Uint32(b[end:]) {
		return 0, nil, nil, errors.New("wrong checksum")
	}
	_, err = r.Seek(int64(end+4-logHeader), io.SeekStart)
	mid := body + int(lens[0])
	return meta, b[body : mid-logVersion], b[mid:end], err
}
