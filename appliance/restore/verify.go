package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-backup/holdfast/appliance/ovirt/imageio"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// verify sees that what was written is there. The host's view of the image is compared with the point's: where one has
// data and the other zeros, the bytes decide. So nothing that was lost, and nothing that was not ours, goes unseen, and
// hardly a byte is read. full also reads all data back and compares it.
func verify(ctx context.Context, src Source, img Target, full bool) error {
	const op = "verify the upload"
	if err := img.Extents(ctx, false, func(e imageio.Extent) error { return compareExtent(ctx, src, img, e) }); err != nil {
		return errs.Wrap(op, "", err)
	}
	if !full {
		return nil
	}
	err := crowd(ctx, src, func(x run) bool { return x.data }, func(ctx context.Context, x run, buf []byte) error {
		want, got := buf[:x.n], make([]byte, x.n)
		if err := readFull(ctx, src, want, x.off); err != nil {
			return err
		}
		if err := readFull(ctx, img, got, x.off); err != nil {
			return err
		}
		if !bytes.Equal(want, got) {
			return differs(x.off, x.n)
		}
		return nil
	})
	return errs.Wrap(op, "", err)
}

func differs(off, n int64) error {
	return errs.Text("compare with the point", "", errs.Corrupt, fmt.Sprintf("the uploaded disk differs from the restore point in the %d bytes at %d", n, off)).
		WithNext("The storage or the way to it changed what was written: see the host's logs before trying again.")
}

// compareExtent compares an extent of the image with the point's.
func compareExtent(ctx context.Context, src Source, img Target, e imageio.Extent) error {
	n := min(e.Length, src.Size()-e.Start) // the rest, less than a sector, was never written
	if n <= 0 {
		return nil
	}
	var buf []byte
	var failed error
	err := src.Extents(ctx, e.Start, n, func(off, n int64, data bool) bool {
		if data != e.Zero { // both have data, or both zeros
			return true
		}
		var r reader = img // it has data where the point has none, because its grain is coarser: zeros have to be in it
		if e.Zero {
			r = src // it has none where the point has, because zeros were written: they have to be in that
		}
		if buf == nil {
			buf = make([]byte, piece)
		}
		for n > 0 && failed == nil {
			p := buf[:min(n, piece)]
			if failed = readFull(ctx, r, p, off); failed == nil && !isZero(p) {
				failed = differs(off, int64(len(p)))
			}
			off, n = off+int64(len(p)), n-int64(len(p))
		}
		return failed == nil
	})
	return errors.Join(failed, err)
}

// isZero tells whether all bytes are zero.
func isZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

var zeros [64 << 10]byte
