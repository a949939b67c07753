package chunkstore

import (
	"context"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// removedPrefix is the folder of records of removed points. A record stays there until a collection has seen that nobody
// reads the point any more: it alone says what the point needs.
const removedPrefix = "removed/"

func removedName(id PointID) string { return removedPrefix + string(id) }

// RemovePoint removes a point. What only it used is spare from then on: Collect gives the space back, except of what
// somebody still reads. A point that is locked is errs.Denied.
func (s *Store) RemovePoint(ctx context.Context, id PointID) error {
	const op = "remove point"
	if !id.Valid() {
		return errs.Text(op, string(id), errs.Invalid, "a point's ID is 16 lower-case hexadecimal digits")
	}
	s.retain.Lock()
	defer s.retain.Unlock()
	if err := s.mayRemove(ctx, id); err != nil {
		return err
	}
	if err := s.keepRemoved(ctx, id); err != nil {
		return errs.Wrap(op, string(id), err)
	}
	if err := s.b.Remove(ctx, pointName(id)); err != nil {
		return errs.Wrap(op, string(id), err)
	}
	// Its lock is over. One that stays behind locks nothing.
	if err := s.b.Remove(ctx, lockPrefix+string(id)); err != nil && !errs.Is(err, errs.NotFound) {
		s.log.Warn("the lock of a removed point is left", "point", string(id), "err", err)
	}
	return nil
}

// keepRemoved copies a record to where those of removed points lie. One that cannot be read cannot be copied: then, and
// on a full disk, the point is removed all the same if nobody reads it.
func (s *Store) keepRemoved(ctx context.Context, id PointID) error {
	raw, err := readObject(ctx, s.b, pointName(id), pointMaxSize)
	if err == nil {
		_, err = decodePoint(s.key.PointKey(), id, raw)
	}
	if err == nil {
		err = s.b.Put(ctx, removedName(id), raw)
	}
	if err == nil || errs.Is(err, errs.Exists) { // a removal that was cut short has copied it
		return nil
	}
	if !errs.Is(err, errs.NoSpace) && !errs.Is(err, errs.Corrupt) {
		return err
	}
	leased, lerr := s.leases.leased(id)
	if lerr != nil {
		return lerr
	}
	if leased {
		return errs.New("note what is still read of point", string(id), errs.KindOf(err), err).
			WithNext("End what reads the point (a mount, a server, a restore), then remove it.")
	}
	return nil
}

// pointIDs lists the records in a folder.
func (r *Reader) pointIDs(ctx context.Context, prefix string) ([]PointID, error) {
	infos, err := r.b.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	ids := make([]PointID, 0, len(infos))
	for _, i := range infos {
		if id := PointID(strings.TrimPrefix(i.Name, prefix)); id.Valid() {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
