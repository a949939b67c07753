package bench

import (
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// checkEvery is which answers are verified.
const checkEvery = 16

// reading is what came of reading pieces of the disk.
type reading struct {
	took  time.Duration
	each  []time.Duration
	bytes int64
	sums  map[int]uint32 // by the piece's place in the work
}

func newReading(n int) reading {
	return reading{each: make([]time.Duration, 0, n), sums: make(map[int]uint32, n/checkEvery+1)}
}

// note keeps one answer.
func (r *reading) note(index int, sent time.Time, data []byte) {
	r.each = append(r.each, time.Since(sent))
	r.bytes += int64(len(data))
	if index%checkEvery == 0 {
		r.sums[index] = crc32.Checksum(data, castagnoli)
	}
}

// verify compares the sums with the file.
func (r *reading) verify(work []byteRange, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var buf [window]byte
	for i, sum := range r.sums {
		p := buf[:work[i].n]
		if _, err := f.ReadAt(p, work[i].off); err != nil {
			return err
		}
		if crc32.Checksum(p, castagnoli) != sum {
			return errs.Text("verify", fmt.Sprintf("bytes %d to %d", work[i].off, work[i].end()), errs.Corrupt, "other bytes came than the file has")
		}
	}
	return nil
}

// sample returns the figures of a reading.
func (r *reading) sample() sample {
	slices.Sort(r.each)
	return sample{seconds: r.took.Seconds(), ops: len(r.each), bytes: r.bytes,
		p50: r.each[len(r.each)/2], p99: r.each[len(r.each)*99/100]}
}

// pattern is a way to read.
type pattern struct {
	name  string
	depth int
	work  []byteRange
}
