package chunkstore

import (
	"context"
	"slices"

	"github.com/maypok86/otter/v2"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// A directories cache answers whether a pack really has a chunk at a place, before a new point is built on it.
//
// The index can be ahead of the packs, or beside them: a store's folder put back from an older copy while the index lies
// elsewhere, a pack that somebody deleted, two machines that had the store in turn, each with its own index. Open sees
// packs that are gone, but not that a number now belongs to another pack. Without this look such an index would make
// backups that succeed and cannot be read; with it, what is not there is stored again, which also heals.
//
// A disk's chunks lie close together, so that one directory answers for hundreds of chunks.
type directories = otter.Cache[uint32, []dirPlace]

// dirPlace is what is kept of a directory entry. Directories are sorted by offset.
type dirPlace struct {
	offset uint32
	stored uint32
	id     chunk.ID
}

const (
	dirCacheBytes = 16 << 20
	dirPlaceSize  = 24
)

func newDirectories() (*directories, error) {
	c, err := otter.New(&otter.Options[uint32, []dirPlace]{
		MaximumWeight: dirCacheBytes,
		Weigher:       func(_ uint32, v []dirPlace) uint32 { return uint32(len(v))*dirPlaceSize + 64 },
	})
	return c, errs.Wrap("make cache", "", err)
}

// holds tells whether the chunk lies at the place, by its pack's directory, and is not in quarantine. If in doubt it says no: the chunk is then
// stored once more. A yes stays true until the session that asked has ended: of sealed packs only a collection takes
// chunks away, and only those that the index has forgotten before, after waiting for the sessions that ran then.
func (s *Store) holds(ctx context.Context, id chunk.ID, at chunk.Place) bool {
	dir, ok := s.dirs.GetIfPresent(at.Pack)
	if !ok {
		var err error
		dir, err = s.dirs.Get(context.WithoutCancel(ctx), at.Pack, otter.LoaderFunc[uint32, []dirPlace](s.loadDirectory))
		if err != nil {
			s.log.Warn("a pack's directory cannot be read, storing the chunk once more", "pack", at.Pack, "err", err)
			return false
		}
	}
	i, ok := slices.BinarySearchFunc(dir, at.Offset, func(e dirPlace, offset uint32) int {
		return int(int64(e.offset) - int64(offset))
	})
	if !ok || dir[i].id != id || dir[i].stored != at.Stored {
		return false
	}
	rec, err := s.damage.record(ctx, packKey{pack.Data, at.Pack})
	_, bad := rec.Find(id, at)
	return err == nil && !bad
}

// loadDirectory returns an empty directory for a pack that is missing or damaged, so that it is looked at and told of
// once, not once for each of its chunks. That is not so for a number that may be given out yet: the pack comes to be.
func (s *Store) loadDirectory(ctx context.Context, number uint32) ([]dirPlace, error) {
	var out []dirPlace
	err := s.packs.use(ctx, packKey{pack.Data, number}, func(p *pack.Reader) error {
		entries, err := p.Directory()
		for _, e := range entries {
			out = append(out, dirPlace{e.Place.Offset, e.Place.Stored, e.Digest.ID()})
		}
		return err
	})
	if err != nil && unusable(err) && number <= s.opened {
		s.log.Error("the index or a parent names a pack that cannot be used, its chunks are stored again as they are met",
			"pack", number, "err", err)
		return nil, nil
	}
	return out, err
}
