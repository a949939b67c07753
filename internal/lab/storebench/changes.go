package storebench

import (
	"errors"
	"math"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

// stretch is a part of a file in bytes.
type stretch struct{ off, n int64 }

const (
	grain = 4 << 10
	// nearby is how far the small changes of one group lie apart at most: a group is a table of a database, or a folder.
	nearby    = 16 << 20
	groupSize = 16
)

// rewrite writes over a part of a disk's data, as a server does between two backups: half of it in runs of 64 KiB to
// 1 MiB, as when packages are upgraded, and half in runs of 1 to 16 blocks of 4 KiB, in groups that lie near each other.
//
// What is written is new to every store and compresses as the disk does: it is data from elsewhere on the disk under a
// substitution of its bytes, another one in every run, which leaves lengths and distances of repetitions and the
// frequencies of bytes as they are. Zero stays zero.
func rewrite(name string, percent int, seed uint64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := dataOf(f)
	if err != nil {
		return err
	}
	var blocks []int64
	for _, s := range data {
		for off := (s.off + grain - 1) / grain * grain; off+grain <= s.off+s.n; off += grain {
			blocks = append(blocks, off)
		}
	}
	c := changes{f: f, random: rand.New(rand.NewPCG(seed, 7)), blocks: blocks, done: make([]bool, len(blocks))}
	budget := len(blocks) * percent / 100
	if err := c.spread(budget/2, 16, 256, 1); err != nil {
		return err
	}
	if err := c.spread(budget-c.count, 1, 16, groupSize); err != nil {
		return err
	}
	return f.Close()
}

// changes is a rewrite under way.
type changes struct {
	f      *os.File
	random *rand.Rand
	blocks []int64 // where the data is, a block each, in order
	done   []bool  // which of them are rewritten
	count  int
}

// spread rewrites n blocks in runs of least to most, the shorter ones being as likely as they are shorter, in groups.
func (c *changes) spread(n, least, most, group int) error {
	for end := c.count + n; c.count < end; {
		middle := c.random.IntN(len(c.blocks))
		for range group {
			if c.count >= end {
				break
			}
			at := middle
			if group > 1 {
				at = min(max(middle+c.random.IntN(nearby/grain)-nearby/grain/2, 0), len(c.blocks)-1)
			}
			length := float64(least) * math.Pow(float64(most)/float64(least), c.random.Float64())
			if err := c.run(at, min(int(math.Round(length)), end-c.count)); err != nil {
				return err
			}
		}
	}
	return nil
}

// run rewrites up to n blocks from one on, as far as they lie in a row and are not rewritten yet.
func (c *changes) run(at, n int) error {
	end := at
	for end < min(at+n, len(c.blocks)) && !c.done[end] && c.blocks[end]-c.blocks[at] == int64(end-at)*grain {
		end++
	}
	if end == at {
		return nil
	}
	var letters [256]byte
	for i, p := range c.random.Perm(255) {
		letters[i+1] = byte(p + 1)
	}
	buf := make([]byte, grain)
	from := c.random.IntN(len(c.blocks))
	for i := at; i < end; i++ {
		if _, err := c.f.ReadAt(buf, c.blocks[(from+i-at)%len(c.blocks)]); err != nil {
			return err
		}
		for k := range buf {
			buf[k] = letters[buf[k]]
		}
		if _, err := c.f.WriteAt(buf, c.blocks[i]); err != nil {
			return err
		}
		c.done[i] = true
		c.count++
	}
	return nil
}

// dataOf returns where a sparse file has data.
func dataOf(f *os.File) ([]stretch, error) {
	var all []stretch
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
		all = append(all, stretch{start, off - start})
	}
}
