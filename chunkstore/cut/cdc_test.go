package cut

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
)

// inBlocks gives the lengths of pieces as the format's page does.
func inBlocks(ps []piece) string {
	var out []string
	for _, p := range ps {
		out = append(out, fmt.Sprint(p.n/chunk.Grid))
	}
	return strings.Join(out, " ")
}

// vectors are those of docs/format/cutting.md. They never change: a chunk that was cut in another way is another chunk,
// and a store would keep everything a second time.
var vectors = []struct {
	off  int64
	data []byte
	want string
}{
	{0, words(512, [2]int{0, 512}),
		"58 14 11 5 10 5 26 4 8 27 22 15 7 23 51 31 6 6 10 11 9 18 7 17 29 23 4 38 7 8 2"},
	{924 * chunk.Grid, words(512, [2]int{0, 30}, [2]int{31, 33}, [2]int{40, 512}),
		"30 1 2 7 18 14 11 5 10 2 29 4 8 27 22 15 7 23 51 31 6 6 10 11 9 18 7 17 29 23 4 38 7 8 2"},
	{0, bytes.Repeat([]byte{1}, 100*chunk.Grid), "64 36"},
	{0, bytes.Repeat([]byte{0x20}, 10*chunk.Grid), "4 4 2"},
}

// hashes of blocks, as the page has them.
var hashes = []struct {
	block []byte
	want  uint64
}{
	{words(1, [2]int{0, 1}), 0x7e4f8a7fbfb6dcb3},
	{bytes.Repeat([]byte{1}, chunk.Grid), 0x40d4d8a9314dfcd8},
	{bytes.Repeat([]byte{0x20}, chunk.Grid), 0x00b8124fc7111d2d},
}

func TestCDCVectors(t *testing.T) {
	page, err := os.ReadFile("../../docs/format/cutting.md")
	if err != nil {
		t.Fatal(err)
	}
	told := strings.Join(strings.Fields(string(page)), " ")
	for _, h := range hashes {
		if got := xxh3.Hash(h.block); got != h.want {
			t.Errorf("the hash of a block that begins with %x is %016x, want %016x", h.block[:8], got, h.want)
		}
		if text := fmt.Sprintf("%016x", h.want); !strings.Contains(told, text) {
			t.Errorf("the page does not tell of %s", text)
		}
	}
	for _, v := range vectors {
		if got := inBlocks(pieces(CDC{}, v.off, v.data)); got != v.want {
			t.Errorf("at %d: cut into\n%s, want\n%s", v.off, got, v.want)
		}
		if !strings.Contains(told, " "+v.want+" ") {
			t.Errorf("the page does not tell of %s", v.want)
		}
	}
	if first := hex.EncodeToString(vectors[0].data[:16]); !strings.Contains(told, first) {
		t.Errorf("the page does not tell of %s", first)
	}
}

// TestCDCSizes: the bounds that are the package's promise, and the average of content that is nowhere equal.
func TestCDCSizes(t *testing.T) {
	for seed := range uint64(20) {
		data := disk(rand.New(rand.NewPCG(seed, 4)), 3000)
		for _, p := range pieces(CDC{}, 0, data) {
			part := data[p.off:p.end()]
			if allZero(part[:chunk.Grid]) {
				if !allZero(part) {
					t.Fatalf("seed %d: the zeros %v are not", seed, p)
				}
				continue
			}
			for at := 0; at < len(part); at += chunk.Grid {
				if allZero(part[at:][:chunk.Grid]) {
					t.Fatalf("seed %d: block %d of the chunk %v is zeros", seed, at/chunk.Grid, p)
				}
			}
			natural := p.end()%Window == 0 || p.end() == int64(len(data)) || allZero(data[p.end():][:chunk.Grid])
			if p.n > 256<<10 || p.n < 16<<10 && !natural {
				t.Fatalf("seed %d: a chunk %v", seed, p)
			}
		}
	}
	const blocks = 8 << 10
	n := len(pieces(CDC{}, 0, words(blocks, [2]int{0, blocks})))
	if average := blocks * 4 / n; average < 60 || average > 68 {
		t.Errorf("chunks of %d KiB on average, want about 64", average)
	}
}

// TestCDCFindsMovedContent: content that lies some blocks further on is cut into the same chunks again, but for those
// around the windows' edges.
func TestCDCFindsMovedContent(t *testing.T) {
	const blocks = 8 << 10
	data := words(blocks, [2]int{0, blocks})
	have := map[string]bool{}
	for _, p := range pieces(CDC{}, 0, data) {
		have[string(data[p.off:p.end()])] = true
	}
	for _, shift := range []int64{1, 2, 3, 15, 16, 100, 511, 1000, 1023} {
		moved := int64(0)
		for _, p := range pieces(CDC{}, shift*chunk.Grid, data) {
			part := data[p.off-shift*chunk.Grid : p.end()-shift*chunk.Grid]
			if have[string(part)] {
				moved += p.n
			}
		}
		if share := float64(moved) / float64(len(data)); share < 0.9 {
			t.Errorf("moved by %d blocks, %.0f %% is cut as it was", shift, share*100)
		}
	}
}

// TestCDCMeetsAgain: one block changes in the middle of a window; mostly after a chunk or two the rest is cut as it was.
func TestCDCMeetsAgain(t *testing.T) {
	data := words(1024, [2]int{0, 1024})
	late := 0
	for seed := range 60 {
		at := 100 + seed*12
		changed := bytes.Clone(data)
		for i := range chunk.Grid {
			changed[at*chunk.Grid+i] ^= byte(seed + 1)
		}
		old, now := pieces(CDC{}, 0, data), pieces(CDC{}, 0, changed)
		for len(old) > 0 && len(now) > 0 && old[len(old)-1] == now[len(now)-1] {
			old, now = old[:len(old)-1], now[:len(now)-1]
		}
		if len(now) > 0 && now[len(now)-1].end() > int64(at+3*64)*chunk.Grid {
			late++
		}
	}
	if late > 2 {
		t.Errorf("%d of 60 changes were still felt three chunks later", late)
	}
}

func BenchmarkCDC(b *testing.B) {
	data := words(1024, [2]int{0, 1024})
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		Cut(CDC{}, 0, data, func(int) {})
	}
}
