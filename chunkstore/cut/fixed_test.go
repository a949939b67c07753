package cut

import (
	"fmt"
	"testing"
)

func TestFixedCutsAtCells(t *testing.T) {
	const k = 1 << 10
	for _, c := range []struct {
		off, n int64
		want   []int64
	}{
		{0, 64 * k, []int64{64 * k}},
		{0, 4 * k, []int64{4 * k}},
		{60 * k, 8 * k, []int64{4 * k, 4 * k}},
		{128 * k, 132 * k, []int64{64 * k, 64 * k, 4 * k}},
		{0, 0, nil},
	} {
		var got []int64
		for _, p := range pieces(Fixed64K, c.off, make([]byte, c.n)) {
			got = append(got, p.n)
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("Cut(%d, %d bytes) = %v, want %v", c.off, c.n, got, c.want)
		}
	}
}
