package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// dropEmptyLogs removes the logs of memtables and of values that are empty files. Badger makes a log first and gives it
// a size afterwards, takes the size away first and the name afterwards when it removes one, and refuses the whole
// folder when a kill came in between. Nothing that was acknowledged can be in an empty file, and the ring tells if it
// should have been.
func dropEmptyLogs(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if ext := filepath.Ext(n.Name()); ext != ".mem" && ext != ".vlog" || !n.Type().IsRegular() {
			continue
		}
		st, err := n.Info()
		if err != nil {
			return err
		}
		if st.Size() > 0 {
			continue
		}
		if err := os.Remove(filepath.Join(dir, n.Name())); err != nil {
			return err
		}
	}
	return nil
}

// checkFolder takes away what a kill left and badger would not take, then checks the tables.
func checkFolder(dir string) error {
	if err := dropEmptyLogs(dir); err != nil {
		return err
	}
	return checkTables(dir)
}

// Tables are read whole and several at a time: a large index is read when it is opened, and what that takes is waiting for
// the disk. maxWhole is far above any table of ours; a file that is longer is damaged, and read piece by piece.
const (
	checkers = 4
	maxWhole = 16 << 20
)

// checkTables reads every table that the manifest lists and checks all of it. It may panic on what it reads.
func checkTables(dir string) error {
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if err != nil {
		return err
	}
	defer f.Close()
	m, _, err := badger.ReplayManifestFile(f, 0, badger.DefaultOptions(dir).WithLogger(nil))
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	g, ctx := errgroup.WithContext(context.Background())
	ids := slices.Collect(maps.Keys(m.Tables))
	var next atomic.Int64
	for range min(checkers, len(ids)) {
		// What the caller guards is not what another goroutine does.
		g.Go(func() error {
			return guard(func() (err error) {
				var buf []byte
				for i := next.Add(1) - 1; err == nil && ctx.Err() == nil && i < int64(len(ids)); i = next.Add(1) - 1 {
					buf, err = checkTable(table.NewFilename(ids[i], dir), buf)
				}
				return err
			})
		})
	}
	return g.Wait()
}

// checkTable checks the index and every block of one of badger's tables. It reads into buf, and returns it for the next
// one, grown if need be. Layout, from the end: length of the checksum (uint32), checksum, length of the index (uint32),
// index, blocks. A block ends in the same way: number of offsets, checksum, length of the checksum. All integers of this
// frame are big-endian.
func checkTable(name string, buf []byte) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return buf, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return buf, err
	}
	var r io.ReaderAt = f
	if n := st.Size(); n <= maxWhole {
		buf = slices.Grow(buf[:0], int(n))[:n]
		if _, err := io.ReadFull(f, buf); err != nil {
			return buf, fmt.Errorf("table %s: %w", filepath.Base(name), err)
		}
		r = bytes.NewReader(buf)
	}
	if err := checkBlocks(r, st.Size()); err != nil {
		return buf, fmt.Errorf("table %s: %w", filepath.Base(name), err)
	}
	return buf, nil
}

func checkBlocks(r io.ReaderAt, size int64) error {
	index, err := readIndex(r, size)
	if err != nil {
		return err
	}
	ti := fb.GetRootAsTableIndex(index, 0)
	blocksEnd := size - int64(len(index))
	var buf []byte
	var bo fb.BlockOffset
	if ti.OffsetsLength() == 0 {
		return errors.New("no blocks")
	}
	for i := range ti.OffsetsLength() {
		if !ti.Offsets(&bo, i) {
			return errors.New("block list too short")
		}
		off, n := int64(bo.Offset()), int64(bo.Len())
		if off+n > blocksEnd || n < 8 {
			return fmt.Errorf("block %d reaches past the end", i)
		}
		if int64(cap(buf)) < n {
			buf = make([]byte, n)
		}
		buf = buf[:n]
		if _, err := r.ReadAt(buf, off); err != nil {
			return err
		}
		if err := checkBlock(buf); err != nil {
			return fmt.Errorf("block %d: %w", i, err)
		}
	}
	return nil
}

func readIndex(r io.ReaderAt, size int64) ([]byte, error) {
	end := size
	sum, err := readTail(r, &end)
	if err != nil {
		return nil, err
	}
	index, err := readTail(r, &end)
	if err != nil {
		return nil, err
	}
	return index, verify(index, sum)
}

// readTail reads the bytes before *end whose length is in the last four, and moves *end before them.
func readTail(r io.ReaderAt, end *int64) ([]byte, error) {
	var l [4]byte
	if *end < 4 {
		return nil, io.ErrUnexpectedEOF
	}
	if _, err := r.ReadAt(l[:], *end-4); err != nil {
		return nil, err
	}
	n := int64(binary.BigEndian.Uint32(l[:]))
	if n > *end-4 {
		return nil, io.ErrUnexpectedEOF
	}
	*end -= 4 + n
	b := make([]byte, n)
	_, err := r.ReadAt(b, *end)
	return b, err
}

func checkBlock(b []byte) error {
	n := len(b) - 4
	sum := int(binary.BigEndian.Uint32(b[n:]))
	if sum > n-4 {
		return io.ErrUnexpectedEOF
	}
	return verify(b[:n-sum], b[n-sum:n])
}

func verify(data, checksum []byte) error {
	var want pb.Checksum
	if err := proto.Unmarshal(checksum, &want); err != nil {
		return err
	}
	return y.VerifyChecksum(data, &want)
}

// Verify reads the whole index from disk and checks it, while it is in use. The error is errs.Corrupt if it is damaged:
// closing and opening it then begins a new one. Without Verify, damage that happens after Open shows as chunks that are
// not found, or found at an older place, since badger does not report it.
func (x *Index) Verify(ctx context.Context) error {
	const op = "verify index"
	x.life.RLock()
	defer x.life.RUnlock()
	if x.closed {
		return errClosed(op, x.dir)
	}
	if err := ctx.Err(); err != nil {
		return errs.Wrap(op, x.dir, err)
	}
	var buf []byte
	for id := range x.tables() {
		if err := ctx.Err(); err != nil {
			return errs.Wrap(op, x.dir, err)
		}
		err := guard(func() (err error) {
			buf, err = checkTable(table.NewFilename(id, x.dir), buf)
			return err
		})
		if err == nil {
			continue
		}
		// A compaction removes tables, and cuts them to nothing first; then they are no longer listed.
		if _, listed := x.tables()[id]; listed {
			return errCorrupt(op, x.dir, err)
		}
	}
	return nil
}

func (x *Index) tables() map[uint64]struct{} {
	ids := map[uint64]struct{}{}
	for _, t := range x.db.Tables() {
		ids[t.ID] = struct{}{}
	}
	return ids
}
