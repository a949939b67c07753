package cut

import (
	"fmt"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func pieces(c Cutter, off, n int64) []int {
	var out []int
	Cut(c, off, make([]byte, n), func(n int) { out = append(out, n) })
	return out
}

func TestFixedCutsAtCells(t *testing.T) {
	const k = 1 << 10
	for _, c := range []struct {
		off, n int64
		want   []int
	}{
		{0, 64 * k, []int{64 * k}},
		{0, 4 * k, []int{4 * k}},
		{60 * k, 8 * k, []int{4 * k, 4 * k}},
		{128 * k, 132 * k, []int{64 * k, 64 * k, 4 * k}},
		{0, 0, nil},
	} {
		if got := pieces(Fixed64K, c.off, c.n); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("Cut(%d, %d bytes) = %v, want %v", c.off, c.n, got, c.want)
		}
	}
}

// TestLaws holds every cutter to the package's invariants on spans of many shapes.
func TestLaws(t *testing.T) {
	for off := int64(0); off < 2*Window; off += 13 * chunk.Grid {
		for _, n := range []int64{chunk.Grid, 17 * chunk.Grid, Window, Window + chunk.Grid} {
			pos := off
			for _, p := range pieces(Fixed64K, off, n) {
				if p <= 0 || p%chunk.Grid != 0 || p > chunk.MaxSize || pos/Window != (pos+int64(p)-1)/Window {
					t.Fatalf("span %d+%d: piece %d at %d breaks an invariant", off, n, p, pos)
				}
				pos += int64(p)
			}
			if pos != off+n {
				t.Fatalf("span %d+%d: pieces end at %d", off, n, pos)
			}
		}
	}
}

func TestByName(t *testing.T) {
	if c, err := ByName("fixed-64k"); err != nil || c.Name() != "fixed-64k" {
		t.Fatalf("ByName(fixed-64k) = %v, %v", c, err)
	}
	if _, err := ByName("from-the-future"); !errs.Is(err, errs.Unsupported) {
		t.Fatalf("unknown cutter: %v", err)
	}
}
