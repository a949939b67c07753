package index

import (
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
)

var storeA = [16]byte{1, 2, 3, 15: 0xaa}

func open(tb testing.TB, dir string, o Options) *Index {
	tb.Helper()
	x, err := Open(dir, storeA, o)
	if err != nil {
		tb.Fatal(err)
	}
	return x
}

func randomID(r *rand.Rand) (id chunk.ID) {
	for i := range id {
		id[i] = byte(r.Uint32())
	}
	id[0] |= 1
	return id
}

func placeOf(i int) chunk.Place {
	return chunk.Place{Pack: uint32(i/1000) + 1, Offset: uint32(i % 1000 * 100), Stored: uint32(i%4096) + 64}
}
