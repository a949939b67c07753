package keys

import "testing"

// BenchmarkUnwrap is what every command that opens a store pays.
func BenchmarkUnwrap(b *testing.B) {
	blob, err := Wrap(testMaster, []byte("x"), Work)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Unwrap(blob, []byte("x")); err != nil {
			b.Fatal(err)
		}
	}
}
