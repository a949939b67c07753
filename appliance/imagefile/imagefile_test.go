package imagefile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

func noise(seed byte, n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(out)
	return out
}

// sparse writes pieces of noise at offsets and leaves the rest of size bytes to be a hole.
func sparse(t *testing.T, size int64, pieces map[int64]int) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for off, n := range pieces {
		if _, err := f.WriteAt(noise(1, n), off); err != nil {
			t.Fatal(err)
		}
	}
	return name
}

func opened(t *testing.T, name string, format Format) *Source {
	t.Helper()
	s, err := Open(name, format)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// extents returns what the source says, and checks that it covers the disk in order.
func extents(t *testing.T, s *Source) []chunkstore.Extent {
	t.Helper()
	var all []chunkstore.Extent
	pos := int64(0)
	err := s.Extents(t.Context(), func(e chunkstore.Extent) error {
		if e.Off != pos || e.Len <= 0 {
			t.Fatalf("extent %+v at %d", e, pos)
		}
		pos += e.Len
		if n := len(all) - 1; n >= 0 && all[n].Kind == e.Kind {
			all[n].Len += e.Len
		} else {
			all = append(all, e)
		}
		return nil
	})
	if err != nil || pos != s.Size() {
		t.Fatalf("extents end at %d of %d: %v", pos, s.Size(), err)
	}
	return all
}

// disk puts a disk together from a source and what was there before.
func disk(t *testing.T, s *Source, before []byte) []byte {
	t.Helper()
	out := make([]byte, s.Size())
	for _, e := range extents(t, s) {
		switch e.Kind {
		case chunkstore.ExtentData:
			if n, err := s.ReadAt(t.Context(), out[e.Off:e.Off+e.Len], e.Off); int64(n) != e.Len {
				t.Fatalf("read %+v: %d, %v", e, n, err)
			}
		case chunkstore.ExtentUnchanged:
			copy(out[e.Off:e.Off+e.Len], before[e.Off:])
		}
	}
	return out
}

func amount(all []chunkstore.Extent, kind chunkstore.ExtentKind) (n int64) {
	for _, e := range all {
		if e.Kind == kind {
			n += e.Len
		}
	}
	return n
}

func TestRaw(t *testing.T) {
	for name, tc := range map[string]struct {
		size   int64
		pieces map[int64]int
		data   int64 // at most, with what a file system rounds up
	}{
		"one byte":        {1, map[int64]int{0: 1}, 1},
		"odd":             {4097, map[int64]int{0: 4097}, 4097},
		"only a hole":     {10 * mib, nil, 0},
		"hole, then data": {10 * mib, map[int64]int{9 * mib: mib}, mib},
		"data, then hole": {10*mib + 1, map[int64]int{0: mib}, mib},
		"holes between":   {20*mib + 513, map[int64]int{mib: mib, 5 * mib: 64 * kib, 20*mib + 512: 1}, mib + 64*kib + 64*kib},
	} {
		t.Run(name, func(t *testing.T) {
			file := sparse(t, tc.size, tc.pieces)
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := opened(t, file, Auto)
			if s.Format() != Raw || s.Size() != tc.size {
				t.Errorf("%s of %d bytes", s.Format(), s.Size())
			}
			before := s.ReadBytes()
			data := amount(extents(t, s), chunkstore.ExtentData)
			if data > tc.data+8*kib {
				t.Errorf("%d bytes are data, want about %d", data, tc.data)
			}
			if !bytes.Equal(disk(t, s, nil), want) {
				t.Error("other bytes than in the file")
			}
			if got := s.ReadBytes() - before; got != data || before > 4 {
				t.Errorf("%d bytes counted after %d, want %d", got, before, data)
			}
			if err := s.Unchanged(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRawThatLooksLikeQcow2(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, append([]byte("QFI\xfb"), noise(1, 8*kib)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := opened(t, file, Raw); s.Size() != 8*kib+4 {
		t.Errorf("size %d", s.Size())
	}
	if _, err := Open(file, Auto); err == nil {
		t.Error("garbage was taken for qcow2")
	}
}

func TestStopsWhenAsked(t *testing.T) {
	s := opened(t, sparse(t, 10*mib, map[int64]int{0: mib, 5 * mib: mib}), Raw)
	stop := errors.New("enough")
	if err := s.Extents(t.Context(), func(chunkstore.Extent) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("extents: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Extents(ctx, func(chunkstore.Extent) error { return nil }); !errs.Is(err, errs.Canceled) {
		t.Errorf("canceled extents: %v", err)
	}
	if _, err := s.ReadAt(ctx, make([]byte, 10), 0); !errs.Is(err, errs.Canceled) {
		t.Errorf("canceled read: %v", err)
	}
	if used, why, err := s.UseBitmap("x", 1); used || why == "" || err != nil {
		t.Errorf("bitmap of a raw file: %v, %q, %v", used, why, err)
	}
}

// TestBlockDevice reads a device, whose holes nobody tells.
func TestBlockDevice(t *testing.T) {
	file := sparse(t, 8*mib, map[int64]int{mib: mib})
	if os.Geteuid() != 0 {
		missing(t, "root, to make a loop device")
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		missing(t, fmt.Sprintf("a loop device: %v, %s", err, out))
	}
	dev := strings.TrimSpace(string(out))
	defer func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}()
	s, err := Open(dev, Auto)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if s.Size() != 8*mib || !bytes.Equal(disk(t, s, nil), want) {
		t.Error("other bytes than on the device")
	}
}

// missing skips a test, or fails it where everything must be there.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("HOLDFAST_REAL_PARTS") == "1" && !strings.Contains(what, "loop device:") { // containers have none
		t.Fatal("this test needs " + what)
	}
	t.Skip("needs " + what)
}

func TestChangedFiles(t *testing.T) {
	for name, change := range map[string]func(f string) error{
		"written": func(f string) error { return os.WriteFile(f, []byte("x"), 0o600) },
		"grown":   func(f string) error { return os.Truncate(f, 2*mib) },
		"replaced": func(f string) error {
			return errors.Join(os.WriteFile(f+"2", noise(1, mib), 0o600), os.Rename(f+"2", f))
		},
	} {
		file := sparse(t, mib, map[int64]int{0: mib})
		s := opened(t, file, Auto)
		if err := change(file); err != nil {
			t.Fatal(err)
		}
		if err := s.Unchanged(); !errs.Is(err, errs.Stale) || errs.NextStep(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
