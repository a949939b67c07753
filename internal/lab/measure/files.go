package measure

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// CopySparse copies a file, which becomes writable for its owner and gets holes where there are zeros. What had the name
// before is replaced by a new file.
func CopySparse(ctx context.Context, from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if _, err := proc.Run(ctx, "cp", "--sparse=always", "--no-preserve=all", from, to); err != nil {
		return err
	}
	return os.Chmod(to, 0o600)
}

const piece = 1 << 20

// SameBytes tells whether two files are equal, holes read as zeros; errs.Corrupt if they are not.
func SameBytes(a, b string) error {
	fa, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fb.Close()
	bufA, bufB := make([]byte, piece), make([]byte, piece)
	for {
		na, errA := io.ReadFull(fa, bufA)
		nb, errB := io.ReadFull(fb, bufB)
		if na != nb || !bytes.Equal(bufA[:na], bufB[:nb]) {
			return errs.Text("compare", b, errs.Corrupt, "it differs from "+a)
		}
		if errA == io.EOF && errB == io.EOF || errors.Is(errA, io.ErrUnexpectedEOF) && errors.Is(errB, io.ErrUnexpectedEOF) {
			return nil
		}
		if err := errors.Join(errA, errB); err != nil {
			return err
		}
	}
}
