package chunkstore

import (
	"context"
	"strings"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
)

// sweep takes away what a writer that was killed between writing a record and naming it has left. Nobody refers to it,
// and since every record has a name of its own, nobody would ever write over it.
func (s *Store) sweep(ctx context.Context) error {
	w, ok := s.b.(backend.Sweeper)
	if !ok {
		return nil
	}
	for _, prefix := range []string{pointPrefix, removedPrefix} {
		if err := w.Sweep(ctx, strings.TrimSuffix(prefix, "/")); err != nil {
			return err
		}
	}
	return nil
}
