package chunkstore

import (
	"context"
	"maps"
	"os"
	"slices"

	"github.com/holdfast-backup/holdfast/chunkstore/index"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// recover makes the store ready for writing, whatever state a killed writer left it in: unsealed packs are finished or
// removed, and the index is brought to hold every sealed data pack and nothing else. It can be cut short at any point
// and run again.
func (s *Store) recover(ctx context.Context) error {
	if err := s.sweep(ctx); err != nil {
		return err
	}
	exist, err := s.finishPacks(ctx)
	if err != nil {
		return err
	}
	if err := s.loadCollection(ctx); err != nil {
		return err
	}
	s.opened = s.last
	marks, err := s.index.Packs()
	if err != nil {
		return err
	}
	if lost := missing(marks, exist); len(lost) > 0 {
		// The index would answer with places that cannot be read, and a backup would build on them.
		s.log.Warn("the index knows packs that do not exist, it is made anew", "packs", len(lost))
		if marks, err = nil, s.resetIndex(); err != nil {
			return err
		}
	}
	indexed := map[uint32]bool{}
	for _, m := range marks {
		indexed[m.Pack] = true
	}
	for _, number := range slices.Sorted(maps.Keys(exist)) {
		if !indexed[number] {
			if err := s.indexExisting(ctx, number); err != nil {
				return err
			}
		}
	}
	return nil
}

// finishPacks looks at every pack, finishes the unsealed ones, learns the highest number, and returns the data packs.
func (s *Store) finishPacks(ctx context.Context) (map[uint32]bool, error) {
	data := map[uint32]bool{}
	for _, kind := range []pack.Kind{pack.Data, pack.Meta} {
		infos, err := s.b.List(ctx, kind.String()+"/")
		if err != nil {
			return nil, err
		}
		for _, h := range packsIn(kind, infos) {
			for _, name := range h.foreign {
				s.log.Warn("a file that is not ours lies in the store", "name", name)
			}
			for _, name := range h.leftover {
				s.log.Info("removing what a collection that was cut short left of a pack", "name", name)
				if err := s.b.Remove(ctx, name); err != nil {
					return nil, err
				}
			}
			if h.number == 0 {
				continue
			}
			s.last = max(s.last, h.number)
			keep := h.sealed
			if !keep {
				if keep, err = s.finishPack(ctx, kind, h.name()); err != nil {
					return nil, err
				}
			}
			if keep && kind == pack.Data {
				data[h.number] = true
			}
		}
	}
	return data, nil
}

// finishPack deals with one unsealed pack and tells whether it is a sealed one now. A meta pack without a seal belongs
// to a point that was never committed: nobody refers to it. A data pack's chunks are worth keeping, since the backup
// that was cut short will be run again.
func (s *Store) finishPack(ctx context.Context, kind pack.Kind, name string) (bool, error) {
	if kind == pack.Meta {
		s.log.Info("removing the unfinished pages of a killed backup", "pack", name)
		return false, s.b.Remove(ctx, name)
	}
	r, err := pack.Recover(ctx, s.b, name, pack.ReaderOptions{
		Master: &s.key, StoreUUID: [16]byte(s.super.UUID), Name: name,
	})
	switch {
	case err == nil:
		if r.Lost > 0 {
			s.log.Error("the pack of a killed backup was damaged; the chunks behind the damage will be stored again", "pack", name, "lost", r.Lost)
		}
		s.log.Info("finished the pack of a killed backup", "pack", name, "chunks", r.Chunks, "bytes", r.Kept, "removed", r.Removed)
		return !r.Removed, nil
	case errs.Is(err, errs.NoSpace):
		s.log.Warn("no space to finish the pack of a killed backup, removing it", "pack", name)
		return false, s.b.Remove(ctx, name)
	case unusable(err):
		// No point can refer to it. It stays for people to look at, and must not keep the store shut. Its number counts
		// as given out for as long as it lies there.
		s.log.Error("an unfinished pack cannot be finished, leaving it aside", "pack", name, "err", err)
		return false, nil
	}
	return false, err
}

// unusable tells whether an error says that the file is not a pack of this store, whoever tries: damaged, of another
// store or key, or written by a newer version. One such file must not keep the store from being opened.
func unusable(err error) bool {
	return errs.Is(err, errs.Corrupt) || errs.Is(err, errs.Invalid) || errs.Is(err, errs.Denied) || errs.Is(err, errs.Unsupported)
}

func missing(marks []index.PackMark, exist map[uint32]bool) (lost []uint32) {
	for _, m := range marks {
		if !exist[m.Pack] {
			lost = append(lost, m.Pack)
		}
	}
	return lost
}

// resetIndex begins an empty index.
func (s *Store) resetIndex() error {
	if err := s.index.Close(); err != nil {
		s.log.Warn("closing the old index", "err", err)
	}
	s.index = nil
	if err := os.RemoveAll(s.indexDir); err != nil {
		return errs.Wrap("remove index", s.indexDir, err)
	}
	return s.openIndex()
}

func (s *Store) openIndex() (err error) {
	s.index, err = index.Open(s.indexDir, [16]byte(s.super.UUID), index.Options{Log: s.log})
	return err
}

// indexBatch is how many entries are put at a time when a pack is indexed from its directory.
const indexBatch = 4096

// indexExisting puts a sealed data pack's directory into the index. A pack whose directory is damaged is left out: its
// chunks are stored anew when they are met again, and reads do not need the index.
func (s *Store) indexExisting(ctx context.Context, number uint32) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var dir []pack.DirEntry
	err := s.packs.use(ctx, packKey{pack.Data, number}, func(p *pack.Reader) (err error) {
		dir, err = p.Directory()
		return err
	})
	if err != nil && unusable(err) {
		s.log.Error("a pack's directory cannot be used, its chunks are not indexed", "pack", number, "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	rec, err := s.damage.record(ctx, packKey{pack.Data, number})
	if err != nil && !errs.Is(err, errs.Corrupt) {
		return err
	}
	batch := make([]index.Entry, 0, indexBatch)
	for i, e := range dir {
		if !rec.Lists(e.Digest.ID(), e.Place) { // what is damaged must not be found again
			batch = append(batch, index.Entry{ID: e.Digest.ID(), Place: e.Place})
		}
		if len(batch) == indexBatch || i == len(dir)-1 {
			if err := s.index.Put(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	return s.index.MarkPack(number, len(dir))
}
