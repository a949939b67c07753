package fuzztest

import (
	"fmt"
	"runtime"
	"testing"
)

// verdict is a test that notes whether it failed.
type verdict struct {
	testing.TB
	failed string
}

func (v *verdict) Helper() {}
func (v *verdict) Fatalf(format string, args ...any) {
	v.failed = fmt.Sprintf(format, args...)
}

func TestBounded(t *testing.T) {
	var sink []byte
	for _, c := range []struct {
		allocates, n, fixed, perByte int
		fails                        bool
	}{
		{0, 0, 0, 0, false},
		{1 << 20, 10, 1 << 20, 0, false},
		{1 << 20, 1 << 10, 0, 1 << 10, false},
		{2 << 20, 10, 1 << 20, 1, true},
		{1 << 30, 48, 1 << 20, 100, true},
	} {
		v := &verdict{TB: t}
		Bounded(v, c.n, c.fixed, c.perByte, func() { sink = make([]byte, c.allocates) })
		runtime.KeepAlive(sink)
		if (v.failed != "") != c.fails {
			t.Errorf("%+v: %q", c, v.failed)
		}
		sink = nil
	}
	// Small pieces count as well.
	v, pieces := &verdict{TB: t}, [][]byte{}
	Bounded(v, 0, 0, 0, func() {
		for range 100_000 {
			pieces = append(pieces, make([]byte, 64))
		}
	})
	if v.failed == "" {
		t.Error("6 MB in small pieces were not seen")
	}
}
