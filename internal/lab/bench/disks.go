package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/measure"
)

// byteRange is a part of a file.
type byteRange struct{ off, n int64 }

func (r byteRange) end() int64 { return r.off + r.n }

const (
	grain  = 4 << 10
	window = 1 << 20
)

// makeDisks makes the disk and two changed versions of it.
func (b *bed) makeDisks(ctx context.Context) error {
	b.base, b.changed, b.edited = b.path("base.raw"), b.path("changed.raw"), b.path("edited.raw")
	if b.opts.Disk == "" {
		if err := smallDisk(b.base); err != nil {
			return err
		}
	} else if err := measure.CopySparse(ctx, b.opts.Disk, b.base); err != nil {
		return err
	}
	for seed, name := range []string{b.changed, b.edited} {
		if err := measure.CopySparse(ctx, b.base, name); err != nil {
			return err
		}
		if err := rewrite(name, b.effort.changes, uint64(seed)+1); err != nil {
			return errs.Wrap("rewrite a part of", name, err)
		}
	}
	return nil
}

// smallDisk makes up a disk of 96 MiB with 32 MiB of half compressible data.
func smallDisk(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(96 << 20); err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, window)
	for i := range int64(32) {
		fill(buf, random)
		if _, err := f.WriteAt(buf, i*3*window); err != nil {
			return err
		}
	}
	return f.Close()
}

// fill makes data of which each second half of 64 bytes compresses away, and no two blocks are equal.
func fill(buf []byte, random *rand.ChaCha8) {
	for i := 0; i < len(buf); i += 64 {
		_, _ = random.Read(buf[i : i+32]) // never fails
		copy(buf[i+32:i+64], "thirty-two bytes that repeat....")
	}
}

// rewrite writes over a part of a disk's data: half of it in runs of 1 MiB, as a package upgrade does, and half in
// pieces of 16 KiB anywhere, as a database does. What is written is new to every store.
func rewrite(name string, percent int, seed uint64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := dataRanges(f)
	if err != nil {
		return err
	}
	var key [32]byte
	binary.LittleEndian.PutUint64(key[8:], seed)
	content, place := rand.NewChaCha8(key), rand.New(rand.NewPCG(seed, 7))
	budget := total(data) * int64(percent) / 200
	for _, n := range []int64{window, 16 << 10} {
		spots := cut(data, n, true)
		for _, i := range place.Perm(len(spots))[:min(len(spots), int(max(1, budget/n)))] {
			buf := make([]byte, n)
			fill(buf, content)
			if _, err := f.WriteAt(buf, spots[i].off); err != nil {
				return err
			}
		}
	}
	return f.Close()
}

// dataRanges returns where a sparse file has data.
func dataRanges(f *os.File) ([]byteRange, error) {
	var all []byteRange
	for off := int64(0); ; {
		start, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		if off, err = f.Seek(start, unix.SEEK_HOLE); err != nil {
			return nil, err
		}
		all = append(all, byteRange{start, off - start})
	}
}

func total(ranges []byteRange) (sum int64) {
	for _, r := range ranges {
		sum += r.n
	}
	return sum
}

// cut returns the aligned pieces of n bytes that lie in ranges: wholly, or in part.
func cut(ranges []byteRange, n int64, wholly bool) []byteRange {
	var all []byteRange
	next := int64(0) // the first piece that was not taken yet
	for _, r := range ranges {
		first, end := r.off/n*n, (r.end()+n-1)/n*n
		if wholly {
			first, end = (r.off+n-1)/n*n, r.end()/n*n
		}
		for off := max(first, next); off < end; off += n {
			all = append(all, byteRange{off, n})
			next = off + n
		}
	}
	return all
}

// scattered returns count random pieces of n bytes from the data. The same seed gives the same pieces.
func scattered(data []byteRange, n int64, count int, seed uint64) []byteRange {
	spots, random := cut(data, n, true), rand.New(rand.NewPCG(seed, 11))
	picked := make([]byteRange, count)
	for i := range picked {
		picked[i] = spots[random.IntN(len(spots))]
	}
	return picked
}

// sequential returns the data as pieces of 1 MiB, in order.
func (b *bed) sequential() []byteRange {
	size := int64(0)
	if last := len(b.data) - 1; last >= 0 {
		size = b.data[last].end()
	}
	all := cut(b.data, window, false)
	all = slices.DeleteFunc(all, func(r byteRange) bool { return r.end() > size })
	if n := b.effort.maxMiB; n > 0 && n < len(all) {
		all = all[:n]
	}
	return all
}
