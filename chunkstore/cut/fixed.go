package cut

// Fixed cuts at every multiple of its size and nowhere else. Zeros are pieces of their own only where a whole piece is.
type Fixed struct{ size int64 }

// Fixed64K is the cutter named "fixed-64k".
var Fixed64K = Fixed{size: 64 << 10}

var _ Cutter = Fixed{}

// Name implements Cutter.
func (Fixed) Name() string { return "fixed-64k" }

// Next implements Cutter. A span that begins inside a cell gets a shorter piece there.
func (f Fixed) Next(off int64, data []byte) (n int, final bool) {
	checkSpan(off, data)
	rest := f.size - off%f.size
	return int(min(rest, int64(len(data)))), rest <= int64(len(data))
}

// Resume implements Cutter: at the beginning of the cell.
func (f Fixed) Resume(zeros, off int64) int64 { return max(zeros, off-off%f.size) }
