package qcow2

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// zstdWindow bounds what a damaged frame can make the decoder allocate; qemu's streams stay at 2 MiB or a cluster.
const zstdWindow = 8 << 20

// readCompressed fills p from the cluster that the L2 entry raw describes, from byte in of it.
func (m *Image) readCompressed(p []byte, raw uint64, in int64) error {
	b, ok := m.plain.get(raw)
	if !ok {
		var err error
		if b, err = m.unpack(raw); err != nil {
			return err
		}
		m.plain.put(raw, b)
	}
	copy(p, b[in:])
	return nil
}

// unpack reads and unpacks one compressed cluster. Its entry holds the offset in the low bits, which need no alignment,
// and above it how many further 512-byte sectors hold packed bytes; the last ones may be beyond the end of the file.
func (m *Image) unpack(raw uint64) ([]byte, error) {
	offsetBits := 62 - (m.h.bits - 8)
	host := int64(raw & (1<<offsetBits - 1))
	sectors := int64(raw&(flagCompressed-1)>>offsetBits) + 1
	end := min(host&^511+sectors*512, m.fileSize)
	if host >= end {
		return nil, corrupt(opWalk, fmt.Sprintf("a compressed cluster is said to lie at %#x, outside the file", host))
	}
	packed := make([]byte, end-host)
	if err := m.readHost(packed, host); err != nil {
		return nil, err
	}
	out := make([]byte, m.ClusterSize())
	if err := m.inflate(out, packed); err != nil {
		return nil, corrupt(opWalk, fmt.Sprintf("the compressed cluster at %#x cannot be unpacked: %v", host, err))
	}
	return out, nil
}

// inflate fills out. What follows in packed is padding.
func (m *Image) inflate(out, packed []byte) error {
	if m.h.compression == compressDeflate {
		d, ok := flaters.Get().(io.Reader)
		if !ok {
			d = flate.NewReader(bytes.NewReader(packed))
		} else if err := d.(flate.Resetter).Reset(bytes.NewReader(packed), nil); err != nil {
			return err
		}
		defer flaters.Put(d)
		_, err := io.ReadFull(d, out)
		return err
	}
	d, ok := zstders.Get().(*zstd.Decoder)
	if !ok {
		var err error
		// One goroutine: the decoder then reads no further than it is asked to, and owns nothing that needs a Close.
		d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return err
		}
	}
	defer zstders.Put(d)
	if err := d.Reset(bytes.NewReader(packed)); err != nil {
		return err
	}
	_, err := io.ReadFull(d, out)
	return err
}

// Decoders are worth keeping: each holds tables and a window.
var flaters, zstders sync.Pool
