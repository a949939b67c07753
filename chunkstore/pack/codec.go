package pack

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
)

// Codec says how frames are compressed. Numbers never change.
type Codec uint8

// The codecs.
const (
	None   Codec = 0
	Zstd   Codec = 1 // smallest; fastest level, for compression bounds the speed of a first backup
	S2     Codec = 2 // half the CPU of Zstd and a third more space
	codecs Codec = 3 // how many there are
)

// String returns the codec's name as configuration spells it.
func (c Codec) String() string {
	if c < codecs {
		return [codecs]string{"none", "zstd", "s2"}[c]
	}
	return fmt.Sprintf("codec %d", uint8(c))
}

// zstdWindow is ample for frames of 64 KiB; the library's default would clear and carry several MiB for each encoder.
const zstdWindow = 256 << 10

// rawShift sets what compression must save to be kept: 1/16 of a frame. Less is not worth a decode at every read.
const rawShift = 4

// encoderPool pools the encoders of one level.
func encoderPool(level zstd.EncoderLevel) *sync.Pool {
	return &sync.Pool{New: func() any {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithWindowSize(zstdWindow),
			zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic("pack: zstd encoder: " + err.Error()) // the options are constants
		}
		return e
	}}
}

var (
	encoders     = encoderPool(zstd.SpeedFastest)
	bestEncoders = encoderPool(zstd.SpeedBestCompression)
	decoders     = sync.Pool{New: func() any {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			panic("pack: zstd decoder: " + err.Error()) // the options are constants
		}
		return d
	}}
	// tryouts are buffers for one frame being compressed; s2 wants room for its worst case, a sixth more.
	tryouts = sync.Pool{New: func() any { return new([chunk.FrameSize + chunk.FrameSize/4]byte) }}
	// outputs are buffers that frames are decoded into: see decodeRoom.
	outputs = sync.Pool{New: func() any { return new([decodeRoom]byte) }}
	// payloads are pooled by how many frames they hold: a backup has hundreds of chunks on their way at once, most of
	// them of one frame.
	payloads [maxFrames + 1]sync.Pool
)

// payload is the buffer behind a Compressed: its frames, one behind the other.
type payload struct{ frames []byte }

func newPayload(frames int) *payload {
	if p, ok := payloads[frames].Get().(*payload); ok {
		return p
	}
	return &payload{make([]byte, frames*chunk.FrameSize)}
}

// Compressed is a chunk ready to be encrypted and appended. It holds a buffer until Release.
type Compressed struct {
	codec  Codec
	raw    uint16
	plain  uint32
	length [maxFrames]uint32
	buf    *payload
}

// Compress cuts plain into frames and compresses each of them. A frame that would not shrink by at least 1/16 stays as
// it is. plain is not kept. It panics if plain is empty or larger than chunk.MaxSize: the cutter promises neither.
func Compress(codec Codec, plain []byte) Compressed {
	return compress(codec, plain, func(dst, frame []byte) []byte { return encodeFrame(codec, dst, frame) })
}

// CompressBest is Compress with Zstd at its best level: about a tenth smaller than at the fastest, in ten times the
// time, and decoded as fast. An encoder takes some 40 MiB.
func CompressBest(plain []byte) Compressed {
	e := bestEncoders.Get().(*zstd.Encoder)
	defer bestEncoders.Put(e)
	return compress(Zstd, plain, func(dst, frame []byte) []byte { return e.EncodeAll(frame, dst) })
}

func compress(codec Codec, plain []byte, encode func(dst, frame []byte) []byte) Compressed {
	if len(plain) == 0 || len(plain) > chunk.MaxSize || codec >= codecs {
		panic(fmt.Sprintf("pack: Compress of %d bytes with %v", len(plain), codec))
	}
	c := Compressed{codec: codec, plain: uint32(len(plain)), buf: newPayload(framesOf(len(plain)))}
	tryout := tryouts.Get().(*[chunk.FrameSize + chunk.FrameSize/4]byte)
	defer tryouts.Put(tryout)
	at := 0
	for i := range framesOf(len(plain)) {
		frame := plain[i*chunk.FrameSize : min(len(plain), (i+1)*chunk.FrameSize)]
		out := encode(tryout[:0], frame)
		if out == nil || len(out) > len(frame)-max(1, len(frame)>>rawShift) {
			out = frame
			c.raw |= 1 << i
		}
		c.length[i] = uint32(copy(c.buf.frames[at:], out))
		at += len(out)
	}
	return c
}

// encodeFrame returns frame compressed, in dst where it fits, or nil if the codec does nothing.
func encodeFrame(codec Codec, dst, frame []byte) []byte {
	switch codec {
	case Zstd:
		e := encoders.Get().(*zstd.Encoder)
		defer encoders.Put(e)
		return e.EncodeAll(frame, dst)
	case S2:
		return s2.Encode(dst[:cap(dst)], frame)
	}
	return nil
}

// PlainLen returns the bytes before compression.
func (c *Compressed) PlainLen() int { return int(c.plain) }

// StoredLen returns the bytes the chunk takes in a pack, without padding: Place.Stored.
func (c *Compressed) StoredLen() int {
	n := groupSize
	for _, l := range c.length[:framesOf(int(c.plain))] {
		n += int(l) + tagSize
	}
	return n
}

// Release gives the buffer back. c must not be used afterwards. Releasing twice does nothing.
func (c *Compressed) Release() {
	if c.buf != nil {
		payloads[framesOf(int(c.plain))].Put(c.buf)
		c.buf = nil
	}
}

// decodeRoom is the room that a frame is decoded in. With a few bytes to spare behind it zstd's decoder copies in strides
// of 16 bytes without looking where the end is.
const decodeRoom = chunk.FrameSize + 64

var errDecode = errors.New("a frame does not decode to what its header says")

// decodeFrame appends the plain bytes of a frame to dst: exactly plain of them, or it fails.
func decodeFrame(codec Codec, dst, frame []byte, plain int) ([]byte, error) {
	room := outputs.Get().(*[decodeRoom]byte) // a bomb has nowhere to go
	defer outputs.Put(room)
	var out []byte
	var err error
	switch codec {
	case Zstd:
		d := decoders.Get().(*zstd.Decoder)
		out, err = d.DecodeAll(frame, room[:0])
		decoders.Put(d)
	case S2:
		var n int
		if n, err = s2.DecodedLen(frame); err == nil && n == plain {
			out, err = s2.Decode(room[:plain], frame)
		}
	}
	if err != nil || len(out) != plain {
		return dst, errDecode
	}
	return append(dst, out...), nil
}
