package fsx_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/fsx"
)

// file makes a file of random bytes.
func file(t *testing.T, size int) string {
	t.Helper()
	content := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(content) // it cannot fail
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestASoundFileSystemPasses(t *testing.T) {
	for _, o := range []fsx.Options{
		{Mode: fsx.Buffered, Seed: 1}, {Mode: fsx.Buffered, Seed: 2, KeepSize: true},
		{Mode: fsx.Direct, Seed: 3, Align: 4096, KeepSize: true}, {Mode: fsx.Both, Seed: 4, Align: 4096, KeepSize: true},
	} {
		t.Run(fmt.Sprint(o.Mode, o.KeepSize), func(t *testing.T) {
			o.Path, o.Operations, o.MaxSize = file(t, 1<<20), 2000, 2<<20
			if o.Mode != fsx.Buffered {
				f, err := os.OpenFile(o.Path, os.O_RDWR|unix.O_DIRECT, 0)
				if errors.Is(err, unix.EINVAL) {
					t.Skip("the file system of temporary files has no O_DIRECT")
				}
				if err != nil {
					t.Fatal(err)
				}
				_ = f.Close()
			}
			r, err := fsx.Run(o)
			if err != nil {
				t.Fatal(err)
			}
			total := 0
			for _, n := range r.Operations {
				total += n
			}
			info, err := os.Stat(o.Path)
			if err != nil || info.Size() != r.Size || o.KeepSize && r.Size != 1<<20 {
				t.Errorf("size %d, the report says %d, %v", info.Size(), r.Size, err)
			}
			if total < 2000 || r.BytesRead == 0 || r.BytesWritten == 0 || r.Operations["read"] == 0 || r.Operations["write"] == 0 {
				t.Errorf("report %+v", r)
			}
			if (r.Operations["truncate"] == 0) != o.KeepSize || (r.Operations["map write"] == 0) != (o.Mode == fsx.Direct) {
				t.Errorf("operations %v", r.Operations)
			}
		})
	}
}

// TestWhatIsWrongIsFound does to the file what a broken file system would.
func TestWhatIsWrongIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(*os.File) error
		says string
	}{
		"a byte changes": {func(f *os.File) error {
			var b [1]byte
			if _, err := f.ReadAt(b[:], 4711); err != nil {
				return err
			}
			b[0] ^= 0x80
			_, err := f.WriteAt(b[:], 4711)
			return err
		}, "byte 0x1267 is "},
		"the file is cut short": {func(f *os.File) error { return f.Truncate(8191) }, ""},
		"it grows":              {func(f *os.File) error { return f.Truncate(1<<20 + 1) }, "should be 1048576"},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, 1<<20)
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			_, err = fsx.Run(fsx.Options{
				Path: path, Mode: fsx.Buffered, Seed: 5, Operations: 1000, MaxSize: 1 << 20, KeepSize: true,
				Step: func(n int) {
					if n == 999 {
						if err := c.harm(f); err != nil {
							t.Error(err)
						}
					}
				},
			})
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "seed 5") {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestRunsAreRepeatable(t *testing.T) {
	var sums [2]string
	for i := range sums {
		path := file(t, 1<<16)
		if _, err := fsx.Run(fsx.Options{Path: path, Mode: fsx.Buffered, Seed: 6, Operations: 500, MaxSize: 1 << 18}); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = string(content)
	}
	if sums[0] != sums[1] {
		t.Error("two runs of one seed leave different files")
	}
}

func TestATooLargeFileIsRefused(t *testing.T) {
	_, err := fsx.Run(fsx.Options{Path: file(t, 100), Mode: fsx.Buffered, MaxSize: 99})
	if !errs.Is(err, errs.Invalid) {
		t.Errorf("error %v", err)
	}
}
