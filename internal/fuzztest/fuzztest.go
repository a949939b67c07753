// Package fuzztest holds fuzz targets to bounded memory: a decoder that believes a length in its input allocates
// gigabytes for a few bytes, and does not panic.
//
// What is counted is everything that is allocated during a call, also what is given back at once: a bound on that is a
// bound on what is held. The runtime's own count lags by the spans that it hands out, some tens of KiB, and other
// goroutines count too, so bounds need some air.
package fuzztest

import (
	"runtime/metrics"
	"testing"
)

// air is added to every bound, in bytes.
const air = 256 << 10

// Bounded runs f, which works on an input of n bytes, and fails the test if it allocates more than fixed bytes and
// perByte for each byte of the input.
func Bounded(t testing.TB, n, fixed, perByte int, f func()) {
	t.Helper()
	before := allocated()
	f()
	got, limit := allocated()-before, uint64(air+fixed+n*perByte)
	if got > limit {
		t.Fatalf("%d bytes of input make it allocate %d bytes, over %d", n, got, limit)
	}
}

// allocated returns the bytes that were ever allocated on the heap.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
