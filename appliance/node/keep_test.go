package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/fs/overlay"
	"github.com/holdfast-backup/holdfast/fs/synthetic"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// randomDisk is a disk of which about half is data, in stretches of some clusters.
func randomDisk(seed uint64, size int) []byte {
	r := rand.New(rand.NewPCG(seed, 5))
	b := make([]byte, size)
	for at := 0; at < size; {
		n := min(size-at, 4096*(1+r.IntN(64)))
		if r.IntN(2) == 0 {
			for i := range b[at : at+n] {
				b[at+i] = byte(r.Uint32())
			}
		}
		at += n
	}
	return b
}

// stored keeps disks as a point.
func stored(t *testing.T, s *chunkstore.Store, disks ...[]byte) *chunkstore.Point {
	t.Helper()
	x := s.Begin(noon, map[string]string{appliance.LabelVM: "web"}, []byte(`{"version":1,"vm_name":"web"}`))
	defer x.Abort()
	for i, d := range disks {
		if err := x.Ingest(t.Context(), i, memory(d), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	p, err := x.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// whileServed opens the overlay of a disk, as Serve does, for as long as f runs.
func whileServed(t *testing.T, s *chunkstore.Store, o ServeOptions, number int, f func(w *overlay.Overlay)) {
	t.Helper()
	v, err := openOverlays(s.Reader, &o)
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.Image(o.Point, number)
	if err != nil {
		t.Fatal(err)
	}
	base, err := synthetic.New(img, o.Format)
	if err != nil {
		t.Fatal(err)
	}
	w, err := v.open(t.Context(), &o, number, base)
	if err != nil {
		t.Fatal(err)
	}
	f(w)
	if err := v.close(); err != nil {
		t.Fatal(err)
	}
}

// content reads a disk of a point.
func content(t *testing.T, s *chunkstore.Store, id string, number int) []byte {
	t.Helper()
	p, err := s.Point(t.Context(), chunkstore.PointID(id))
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.Image(p, number)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, img.Size())
	if n, err := img.ReadAt(t.Context(), got, 0); n != len(got) {
		t.Fatalf("%d of %d bytes, %v", n, len(got), err)
	}
	return got
}

// asHost lets a program change the file that a host sees, and brings what it changed into the overlay.
func asHost(t *testing.T, w *overlay.Overlay, change func(file string)) {
	t.Helper()
	before := make([]byte, w.Size())
	if n, err := w.ReadAt(t.Context(), before, 0); n != len(before) {
		t.Fatal(n, err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, before, 0o600); err != nil {
		t.Fatal(err)
	}
	change(file)
	after, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(after); at += 4096 {
		block := after[at:min(at+4096, len(after))]
		if at+len(block) <= len(before) && bytes.Equal(block, before[at:at+len(block)]) {
			continue
		}
		if err := w.WriteAt(t.Context(), block, int64(at), false); err != nil {
			t.Fatal(err)
		}
	}
	if len(after) < len(before) {
		if err := w.Truncate(t.Context(), int64(len(after))); err != nil {
			t.Fatal(err)
		}
	}
}

func qemuIO(t *testing.T, file string, commands ...string) {
	t.Helper()
	args := []string{"-f", "qcow2", "-d", "unmap"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if out, err := exec.Command("qemu-io", append(args, file)...).CombinedOutput(); err != nil || bytes.Contains(out, []byte("failed")) {
		t.Fatalf("%q: %v\n%s", commands, err, out)
	}
}

// TestKeepRaw holds new points to a model of what was written to raw disks, of sizes on and off the grid.
func TestKeepRaw(t *testing.T) {
	for _, size := range []int{20 << 20, 9<<20 + 4096*3 + 1000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := newStore(t)
			r := rand.New(rand.NewPCG(uint64(size), 6))
			disk := randomDisk(1, size)
			p := stored(t, s, disk, randomDisk(2, 1<<20))
			o := ServeOptions{Point: p, Format: synthetic.FormatRaw, Writable: true, Overlay: filepath.Join(t.TempDir(), "o")}
			want := bytes.Clone(disk)
			keepAndCheck := func(places int) *KeepResult {
				t.Helper()
				return keepChecked(t, s, KeepOptions{Point: p, Overlay: o.Overlay, Now: noon}, want, places)
			}
			whileServed(t, s, o, 0, func(*overlay.Overlay) {})
			if res := keepAndCheck(0); res.Stored > 64<<10 || res.VM != "web" {
				t.Errorf("nothing was written: %+v", res)
			}
			whileServed(t, s, o, 0, func(w *overlay.Overlay) {
				if err := w.WriteAt(t.Context(), []byte("one place"), 7<<20+9, true); err != nil {
					t.Fatal(err)
				}
				copy(want[7<<20+9:], "one place")
			})
			if res := keepAndCheck(1); res.Written != 4096 || res.New == 0 {
				t.Errorf("one block was written: %+v", res)
			}
			whileServed(t, s, o, 0, func(w *overlay.Overlay) {
				for range 40 {
					off := r.IntN(size - 5000)
					data := randomDisk(r.Uint64(), 1+r.IntN(5000))
					if err := w.WriteAt(t.Context(), data, int64(off), false); err != nil {
						t.Fatal(err)
					}
					copy(want[off:], data)
				}
				if err := w.WriteZeroes(t.Context(), 1<<20+5, 2<<20); err != nil {
					t.Fatal(err)
				}
				clear(want[1<<20+5 : 3<<20+5])
			})
			keepAndCheck(-1)
			resizeAndKeep(t, s, o, want)
		})
	}
}

// resizeAndKeep has the host make the disk longer; then it is cut, and made longer again over what was there.
func resizeAndKeep(t *testing.T, s *chunkstore.Store, o ServeOptions, want []byte) {
	t.Helper()
	k := KeepOptions{Point: o.Point, Overlay: o.Overlay, Now: noon}
	var grown []byte
	whileServed(t, s, o, 0, func(w *overlay.Overlay) {
		if err := w.WriteAt(t.Context(), []byte("appended"), w.Size()+4096*3+1, true); err != nil {
			t.Fatal(err)
		}
		grown = make([]byte, w.Size())
		copy(grown, want)
		copy(grown[len(grown)-8:], "appended")
	})
	keepChecked(t, s, k, grown, -1)
	whileServed(t, s, o, 0, func(w *overlay.Overlay) {
		for _, n := range []int64{5<<20 + 100, 8 << 20} {
			if err := w.Truncate(t.Context(), n); err != nil {
				t.Fatal(err)
			}
		}
	})
	keepChecked(t, s, k, append(bytes.Clone(want[:5<<20+100]), make([]byte, 3<<20-100)...), -1)
}

// keepChecked keeps an overlay of the first of two disks. What was looked at for it is bounded by the places that were
// written to; places below 0 is no bound.
func keepChecked(t *testing.T, s *chunkstore.Store, o KeepOptions, want []byte, places int) *KeepResult {
	t.Helper()
	res, err := KeepOverlay(t.Context(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, s, res.Point, 0); !bytes.Equal(got, want) {
		t.Fatalf("the new point's disk has %d bytes, %d wanted, or others", len(got), len(want))
	}
	p, err := s.Point(t.Context(), chunkstore.PointID(res.Point))
	if err != nil {
		t.Fatal(err)
	}
	if p.Disks[1].Root.Digest != o.Point.Disks[1].Root.Digest {
		t.Error("a disk that nobody wrote to has changed")
	}
	if p.Labels[appliance.LabelParent] != string(o.Point.ID) || p.Labels[appliance.LabelStrategy] != appliance.StrategyKeep ||
		string(p.Config) != string(o.Point.Config) || fmt.Sprint(res.Disks) != "[0]" {
		t.Errorf("labels %v, configuration %s, disks %v", p.Labels, p.Config, res.Disks)
	}
	// A write cuts the chunks around it anew, of at most 256 KiB each.
	if read := res.New + res.Known; places >= 0 && read > int64(places)<<20 {
		t.Errorf("%d bytes were looked at for %d places that were written to", read, places)
	}
	return res
}

// TestKeepQcow2 lets qemu write to the image that a host sees: in place, with clusters that move, resized, with a bitmap.
func TestKeepQcow2(t *testing.T) {
	if _, err := exec.LookPath("qemu-io"); err != nil {
		if os.Getenv(realParts) == "1" {
			t.Fatal("qemu-io is missing: install the Debian package qemu-utils")
		}
		t.Skip("qemu-io is missing; `make test` installs it and runs this test")
	}
	for _, size := range []int{12 << 20, 9<<20 + 4096*3 + 1000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := newStore(t)
			disk := randomDisk(3, size)
			p := stored(t, s, disk, randomDisk(4, 1<<20))
			o := ServeOptions{Point: p, Format: synthetic.FormatQcow2, Writable: true, Overlay: filepath.Join(t.TempDir(), "o")}
			want := bytes.Clone(disk)
			host := func(change func(file string)) {
				whileServed(t, s, o, 0, func(w *overlay.Overlay) { asHost(t, w, change) })
			}
			kept := func(places int) {
				t.Helper()
				keepChecked(t, s, KeepOptions{Point: p, Overlay: o.Overlay, Now: noon}, want, places)
			}
			fill := func(v byte, off, n int) string {
				copy(want[off:off+n], bytes.Repeat([]byte{v}, n))
				return fmt.Sprintf("write -P %d %d %d", v, off, n)
			}
			host(func(string) {})
			kept(0)
			host(func(file string) {
				qemuIO(t, file, fill(1, 4<<20+512, 512), fill(2, 65536*50, 65536*2), fill(3, 5<<20, 4096))
			})
			kept(4)
			host(func(file string) { // freed places are used again for other clusters
				clear(want[2<<20 : 4<<20])
				qemuIO(t, file, fmt.Sprintf("discard %d %d", 2<<20, 2<<20))
				qemuIO(t, file, fill(4, 3<<20+65536, 65536), fill(5, 2<<20+512, 65536*3))
			})
			kept(-1)
			host(func(file string) {
				grown := (len(want)+4095)/4096*4096 + 3<<20
				if out, err := exec.Command("qemu-img", "resize", "-q", "-f", "qcow2", file, fmt.Sprint(grown)).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				want = append(want, make([]byte, grown-len(want))...)
				if out, err := exec.Command("qemu-img", "bitmap", "--add", "-f", "qcow2", file, "b0").CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				qemuIO(t, file, fill(6, grown-70000, 70000), fill(7, 100, 0x10000-100))
			})
			kept(-1)
		})
	}
}

func TestKeepRefuses(t *testing.T) {
	s := newStore(t)
	p, other := stored(t, s, randomDisk(5, 1<<20)), stored(t, s, randomDisk(6, 1<<20))
	o := ServeOptions{Point: p, Format: synthetic.FormatRaw, Writable: true, Overlay: filepath.Join(t.TempDir(), "o")}
	points := func() int { all, _ := s.Points(t.Context()); return len(all) }
	before := points()
	try := func(what string, k KeepOptions, want errs.Kind) {
		t.Helper()
		if _, err := KeepOverlay(t.Context(), s, k); !errs.Is(err, want) || points() != before {
			t.Errorf("%s: %v, %d points", what, err, points())
		}
	}
	k := KeepOptions{Point: p, Overlay: o.Overlay, Now: noon}
	try("no overlay", k, errs.NotFound)
	whileServed(t, s, o, 0, func(w *overlay.Overlay) {
		if err := w.WriteAt(t.Context(), []byte("x"), 0, true); err != nil {
			t.Fatal(err)
		}
		try("while it is served", k, errs.Busy)
	})
	wrong := k
	wrong.Point = other
	try("another point", wrong, errs.Stale)
	named := k
	named.VM = "a\nb"
	try("a name with a line break", named, errs.Invalid)
	asked := k
	asked.Format = synthetic.FormatQcow2
	try("a format that it does not have", asked, errs.NotFound)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := KeepOverlay(ctx, s, k); !errors.Is(err, context.Canceled) || points() != before {
		t.Errorf("canceled: %v", err)
	}
	o.Format = synthetic.FormatQcow2
	whileServed(t, s, o, 0, func(*overlay.Overlay) {})
	try("two histories", k, errs.Invalid)
	// What qemu left is no image any more.
	whileServed(t, s, o, 0, func(w *overlay.Overlay) {
		if err := w.WriteAt(t.Context(), make([]byte, 4096), 0, true); err != nil {
			t.Fatal(err)
		}
	})
	try("no qcow2 image any more", asked, errs.Invalid)
	asked.Format = synthetic.FormatRaw
	if _, err := KeepOverlay(t.Context(), s, asked); err != nil {
		t.Errorf("with the format that is meant: %v", err)
	}
}
