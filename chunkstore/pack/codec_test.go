package pack

import (
	"bytes"
	"errors"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
)

func TestCompressKeepsWhatDoesNotShrink(t *testing.T) {
	mixed := append(content(1, chunk.FrameSize, 8), content(2, chunk.FrameSize, 1)...)
	for _, codec := range []Codec{Zstd, S2} {
		c := Compress(codec, mixed)
		if c.raw != 1 || c.length[0] != chunk.FrameSize || c.length[1] > chunk.FrameSize*15/16 {
			t.Errorf("%v: raw %b, lengths %v", codec, c.raw, c.length)
		}
		c.Release()
		c.Release()
	}
	for _, n := range []int{0, chunk.MaxSize + 1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Compress of %d bytes does not panic", n)
				}
			}()
			Compress(None, make([]byte, n))
		}()
	}
}

// TestBombs feeds frames that decode to more than their header says.
func TestBombs(t *testing.T) {
	big := make([]byte, 1<<20)
	zbig := encodeFrame(Zstd, nil, big)
	for _, c := range []struct {
		codec Codec
		frame []byte
	}{{Zstd, zbig}, {S2, encodeFrame(S2, nil, big)}, {Zstd, append(bytes.Clone(zbig), zbig...)}, {Zstd, nil}, {S2, nil}, {S2, []byte{0xff, 0xff, 0xff, 0xff, 0x7f}}, {None, []byte("x")}} {
		dst := make([]byte, 0, chunk.MaxSize)
		if _, err := decodeFrame(c.codec, dst, c.frame, chunk.FrameSize); !errors.Is(err, errDecode) {
			t.Errorf("%v: %v", c.codec, err)
		}
	}
}
