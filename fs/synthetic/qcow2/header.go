package qcow2

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Bits of the three feature masks.
const (
	incompatDirty    = 1 << 0
	incompatCorrupt  = 1 << 1
	incompatDataFile = 1 << 2
	incompatCompress = 1 << 3
	incompatExtL2    = 1 << 4
	incompatKnown    = 1<<5 - 1

	autoclearBitmaps = 1 << 0

	extEnd     = 0
	extBitmaps = 0x23852875
)

const (
	compressDeflate = 0
	compressZstd    = 1
)

// header is the part of the first cluster that a reader needs.
type header struct {
	version       uint32
	bits          int
	size          int64
	l1Entries     int64
	l1            int64
	compression   byte
	length        int64
	autoclear     uint64
	hasBitmapsExt bool
	bitmaps       bitmapExt
}

// encodeHeader returns the header with an end-of-extensions record: all of the first cluster but zeros.
func encodeHeader(y *layout) []byte {
	b := make([]byte, headerOurs+8)
	be := binary.BigEndian
	be.PutUint32(b[0:], magic)
	be.PutUint32(b[4:], 3)
	// 8: backing file offset 8 bytes, 16: its length 4 bytes. None.
	be.PutUint32(b[20:], uint32(y.bits))
	be.PutUint64(b[24:], uint64(y.size))
	// 32: encryption. None.
	be.PutUint32(b[36:], uint32(y.l1Size))
	be.PutUint64(b[40:], uint64(y.l1))
	be.PutUint64(b[48:], uint64(y.refTable))
	be.PutUint32(b[56:], uint32(y.refTableClusters()))
	// 60: snapshots, 64: their offset. None. 72, 80, 88: incompatible, compatible, autoclear features. None.
	be.PutUint32(b[96:], refcountOrder)
	be.PutUint32(b[100:], headerOurs)
	// 104: compression type deflate, 7 zeros. 112: end of extensions.
	return b
}

// parseHeader reads the fields from the first bytes of a file and refuses what this reader cannot do. It checks what
// can be checked without the file's size.
func parseHeader(b []byte) (header, error) {
	be := binary.BigEndian
	if len(b) < 4 || be.Uint32(b) != magic {
		return header{}, errs.Text(opOpen, "", errs.Invalid, "this is not a qcow2 file: it has another magic number")
	}
	if len(b) < headerV2 {
		return header{}, corrupt(opOpen, "the file ends within the header")
	}
	h := header{version: be.Uint32(b[4:]), length: headerV2}
	if h.version != 2 && h.version != 3 {
		return header{}, unsupported(fmt.Sprintf("version %d of the format", h.version),
			"Convert the image with: qemu-img convert -O qcow2 -o compat=1.1 OLD NEW")
	}
	if be.Uint64(b[8:]) != 0 && be.Uint32(b[16:]) != 0 {
		return header{}, unsupported("an image with a backing file",
			"Holdfast reads only self-contained images: flatten it with: qemu-img convert -O qcow2 OLD NEW")
	}
	if be.Uint32(b[32:]) != 0 {
		return header{}, unsupported("an encrypted image",
			"Decrypt it first: qemu-img convert with the secret for the old image and none for the new one.")
	}
	cb, size := be.Uint32(b[20:]), be.Uint64(b[24:])
	if cb < minClusterBits || cb > maxClusterBits {
		return header{}, corrupt(opOpen, fmt.Sprintf("cluster bits %d are not within %d to %d", cb, minClusterBits, maxClusterBits))
	}
	h.bits, h.size = int(cb), int64(size)
	h.l1Entries, h.l1 = int64(be.Uint32(b[36:])), int64(be.Uint64(b[40:]))
	if err := h.checkL1(size); err != nil {
		return header{}, err
	}
	if h.version == 3 {
		return h, h.parseV3(b)
	}
	return h, nil
}

// checkL1 holds the size of the disk and the L1 table against each other.
func (h *header) checkL1(size uint64) error {
	switch {
	case h.l1Entries*8 > maxL1Bytes:
		return corrupt(opOpen, fmt.Sprintf("the L1 table claims %d entries, more than qemu allows", h.l1Entries))
	case size > uint64(h.l1Entries)<<(2*h.bits-3):
		return corrupt(opOpen, fmt.Sprintf("a disk of %d bytes does not fit an L1 table of %d entries", size, h.l1Entries))
	case h.l1 < 0 || h.l1&(1<<h.bits-1) != 0:
		return corrupt(opOpen, fmt.Sprintf("the L1 table's offset %#x is not at a cluster", uint64(h.l1)))
	}
	return nil
}

// parseV3 reads what version 3 added.
func (h *header) parseV3(b []byte) error {
	be := binary.BigEndian
	if len(b) < headerV3Min {
		return corrupt(opOpen, "the file ends within the header")
	}
	incompat := be.Uint64(b[72:])
	h.autoclear = be.Uint64(b[88:])
	h.length = int64(be.Uint32(b[100:]))
	switch {
	case h.length < headerV3Min || h.length > 1<<h.bits || h.length%8 != 0:
		return corrupt(opOpen, fmt.Sprintf("the header claims to be %d bytes long", h.length))
	case be.Uint32(b[96:]) > 6:
		return corrupt(opOpen, fmt.Sprintf("refcount order %d is above 6", be.Uint32(b[96:])))
	case incompat&^incompatKnown != 0:
		return unsupported(fmt.Sprintf("feature bit %d, which this version does not know",
			bits.TrailingZeros64(incompat&^incompatKnown)),
			"Convert the image with: qemu-img convert -O qcow2 -o compat=1.1 OLD NEW")
	case incompat&incompatDataFile != 0:
		return unsupported("an image with an external data file",
			"Bring the data into the image with: qemu-img convert -O qcow2 OLD NEW")
	case incompat&incompatExtL2 != 0:
		return unsupported("an image with extended L2 entries",
			"Convert the image with: qemu-img convert -O qcow2 -o extended_l2=off OLD NEW")
	case incompat&incompatCorrupt != 0:
		return corrupt(opOpen, "qemu has marked the image as corrupt")
	}
	// incompatDirty only says that refcounts may be too low; nothing here reads refcounts.
	if h.length > headerV3Min {
		if len(b) <= headerV3Min {
			return corrupt(opOpen, "the file ends within the header")
		}
		h.compression = b[104]
	}
	if (h.compression != compressDeflate) != (incompat&incompatCompress != 0) {
		return corrupt(opOpen, "the compression type and its feature bit contradict each other")
	}
	if h.compression > compressZstd {
		return unsupported(fmt.Sprintf("compression type %d", h.compression),
			"Convert the image with: qemu-img convert -O qcow2 OLD NEW")
	}
	return nil
}

// parseExtensions reads the records behind the header, area being the rest of the first cluster.
func (h *header) parseExtensions(area []byte) error {
	for len(area) >= 8 {
		kind := binary.BigEndian.Uint32(area)
		n := int64(binary.BigEndian.Uint32(area[4:]))
		area = area[8:]
		if kind == extEnd {
			return nil
		}
		if n > int64(len(area)) {
			return corrupt(opOpen, fmt.Sprintf("header extension %#x claims %d bytes, more than the cluster has", kind, n))
		}
		if kind == extBitmaps {
			x, err := parseBitmapExt(area[:n])
			if err != nil {
				return err
			}
			h.bitmaps, h.hasBitmapsExt = x, true
		}
		area = area[min((n+7)&^7, int64(len(area))):]
	}
	return nil
}

const opOpen = "open qcow2 image"

// corrupt returns the error for a file whose parts contradict each other.
func corrupt(op, what string) *errs.Error {
	return errs.Text(op, "", errs.Corrupt, what).
		WithNext("Look at a copy with: qemu-img check -r all COPY; the original is left as it is.")
}

func unsupported(what, next string) error {
	return errs.Text(opOpen, "", errs.Unsupported, what+" is more than this reader can do").WithNext(next)
}
