package imagefile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
)

const point = chunkstore.PointID("0123456789abcdef")

// image makes a qcow2 image with 4 MiB of data on a disk, and a bitmap for what changes from then on.
type image struct {
	t    *testing.T
	name string
}

func newImage(t *testing.T, size string) image {
	t.Helper()
	if err := parts.Need([]parts.Part{{Path: "qemu-img", Package: "qemu-utils"}, {Path: "qemu-io", Package: "qemu-utils"}}); err != nil {
		missing(t, err.Error()+": "+errs.NextStep(err))
	}
	m := image{t, filepath.Join(t.TempDir(), "disk.qcow2")}
	m.img("create", "-q", "-f", "qcow2", m.name, size)
	m.io("write -P 0x11 1M 4M")
	return m
}

func (m image) img(args ...string) {
	m.t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		m.t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
	}
}

func (m image) bitmap(args ...string) {
	m.t.Helper()
	m.img(append(append([]string{"bitmap"}, args...), m.name, BitmapName(point))...)
}

func (m image) io(commands ...string) {
	m.t.Helper()
	args := []string{"-f", "qcow2"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := exec.Command("qemu-io", append(args, m.name)...).CombinedOutput()
	if crash := commands[len(commands)-1] == "abort"; (err == nil) == crash {
		m.t.Fatalf("qemu-io %q: %v\n%s", commands, err, out)
	}
}

// raw is the disk as qemu reads it.
func (m image) raw() []byte {
	m.t.Helper()
	name := m.name + ".raw"
	m.img("convert", "-f", "qcow2", "-O", "raw", m.name, name)
	b, err := os.ReadFile(name)
	if err != nil {
		m.t.Fatal(err)
	}
	return b
}

func TestQcow2(t *testing.T) {
	m := newImage(t, "20M")
	s := opened(t, m.name, Auto)
	if s.Format() != Qcow2 || s.Size() != 20*mib {
		t.Errorf("%s of %d bytes", s.Format(), s.Size())
	}
	before := s.ReadBytes()
	if !bytes.Equal(disk(t, s, nil), m.raw()) {
		t.Error("other bytes than qemu reads")
	}
	if got := s.ReadBytes() - before; got < 4*mib || got > 4*mib+512*kib {
		t.Errorf("%d bytes counted", got)
	}
	if n := amount(extents(t, s), chunkstore.ExtentData); n != 4*mib {
		t.Errorf("%d bytes are data", n)
	}
	if used, why, err := s.UseBitmap(point, 20*mib); used || !strings.Contains(why, "no bitmap") || err != nil {
		t.Errorf("without a bitmap: %v, %q, %v", used, why, err)
	}
	if err := s.Unchanged(); err != nil {
		t.Error(err)
	}
}

// TestBitmap reads only what a bitmap says has changed.
func TestBitmap(t *testing.T) {
	m := newImage(t, "64M")
	m.bitmap("--add")
	before := m.raw()
	m.io("write -P 0x22 2M 64k", "write -z 3M 128k", "write -P 0x33 40M 4k", "discard 4M 64k")
	s := opened(t, m.name, Auto)
	used, why, err := s.UseBitmap(point, 64*mib)
	if !used || err != nil {
		t.Fatalf("%q, %v", why, err)
	}
	read := s.ReadBytes()
	all := extents(t, s)
	if n := amount(all, chunkstore.ExtentData); n != 64*kib+64*kib {
		t.Errorf("%d bytes are data: %+v", n, all)
	}
	if n := amount(all, chunkstore.ExtentUnchanged); n < 63*mib {
		t.Errorf("%d bytes are unchanged: %+v", n, all)
	}
	if !bytes.Equal(disk(t, s, before), m.raw()) {
		t.Error("other bytes than qemu reads")
	}
	if got := s.ReadBytes() - read; got < 128*kib || got > mib {
		t.Errorf("%d bytes counted", got)
	}
}

// TestBitmapsThatAreNotBelieved falls back to reading everything.
func TestBitmapsThatAreNotBelieved(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func(m image)
		size int64
		why  string
	}{
		"absent":   {func(image) {}, 20 * mib, "no bitmap named holdfast-0123456789abcdef"},
		"another":  {func(m image) { m.img("bitmap", "--add", m.name, BitmapName("fedcba9876543210")) }, 20 * mib, "no bitmap named"},
		"disabled": {func(m image) { m.bitmap("--add"); m.bitmap("--disable") }, 20 * mib, "disabled"},
		"in use":   {func(m image) { m.bitmap("--add"); m.io("write 0 64k", "abort") }, 20 * mib, "not closed properly"},
		"written by somebody who knows no bitmaps": {func(m image) { m.bitmap("--add"); m.clearAutoclear() }, 20 * mib, "no bitmap named"},
		"shrunk": {func(m image) { m.bitmap("--add"); m.img("resize", "-q", "--shrink", m.name, "10M") }, 20 * mib, "smaller than it was"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newImage(t, "20M")
			tc.do(m)
			s := opened(t, m.name, Auto)
			if used, why, err := s.UseBitmap(point, tc.size); used || err != nil || !strings.Contains(why, tc.why) {
				t.Errorf("%v, %q, %v", used, why, err)
			}
			if n := amount(extents(t, s), chunkstore.ExtentUnchanged); n != 0 {
				t.Errorf("%d bytes are said to be unchanged", n)
			}
			if !bytes.Equal(disk(t, s, nil), m.raw()) {
				t.Error("other bytes than qemu reads")
			}
		})
	}
}

// clearAutoclear does what programs do that write to an image without knowing its bitmaps.
func (m image) clearAutoclear() {
	m.t.Helper()
	f, err := os.OpenFile(m.name, os.O_RDWR, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(binary.BigEndian.AppendUint64(nil, 0), 88); err != nil {
		m.t.Fatal(err)
	}
}

// TestBitmapOfAGrownDisk reads what was added as well, whatever the bitmap says of it.
func TestBitmapOfAGrownDisk(t *testing.T) {
	for _, old := range []int64{20 * mib, 20*mib + 512, 20*mib - 64*kib + 4*kib} {
		m := newImage(t, fmt.Sprint(old))
		m.bitmap("--add")
		before := m.raw()
		m.img("resize", "-q", m.name, "40M")
		m.io("write -P 0x44 30M 64k", "write -P 0x55 1M 4k", fmt.Sprintf("write -P 0x66 %d 1k", old-512))
		s := opened(t, m.name, Auto)
		used, why, err := s.UseBitmap(point, old)
		if !used || err != nil {
			t.Fatalf("%d: %q, %v", old, why, err)
		}
		if !bytes.Equal(disk(t, s, before), m.raw()) {
			t.Errorf("%d: other bytes than qemu reads", old)
		}
		for _, e := range extents(t, s) {
			if e.Kind == chunkstore.ExtentUnchanged && e.Off+e.Len > old {
				t.Errorf("%d: %+v is unchanged", old, e)
			}
		}
	}
}

func TestBackingFileIsRefused(t *testing.T) {
	m := newImage(t, "20M")
	top := m.name + ".top"
	m.img("create", "-q", "-f", "qcow2", "-b", m.name, "-F", "qcow2", top)
	if _, err := Open(top, Auto); !errs.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "backing file") || errs.NextStep(err) == "" {
		t.Errorf("%v", err)
	}
}
