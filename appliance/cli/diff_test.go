package cli

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestPointDiff changes a disk in known places and asks what changed, roughly and exactly.
func TestPointDiff(t *testing.T) {
	b := newBox(t)
	file := b.disk("disk.raw", 1, 4*mib)
	size := int64(7*mib + 513)
	one := b.imports(file, "web").Point
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for off, content := range map[int64][]byte{mib + 100: []byte("x"), 2 * mib: noise(7, 64<<10), 3 * mib: make([]byte, 128<<10), 6 * mib: []byte("y")} {
		if _, err := f.WriteAt(content, off); err != nil {
			t.Fatal(err)
		}
	}
	two := b.imports(file, "web").Point

	var exact, rough, none []diffJSON
	b.json(&exact, "point", "diff", one, two, "--exact")
	want := []rangeJSON{{mib, 4096, "data"}, {2 * mib, 64 << 10, "data"}, {3 * mib, 128 << 10, "zero"}, {6 * mib, 4096, "data"}}
	if len(exact) != 1 || !reflect.DeepEqual(exact[0].Ranges, want) || exact[0].Changed != 200<<10 || exact[0].Data != 72<<10 {
		t.Fatalf("exactly: %+v", exact)
	}
	if d := exact[0]; d.From != one || d.To != two || d.Disk != 0 || *d.SizeA != size || *d.SizeB != size {
		t.Errorf("exactly: %+v", d)
	}
	b.json(&rough, "point", "diff", one, two, "--disk", "0")
	if len(rough) != 1 || rough[0].Changed < 200<<10 || rough[0].Changed > 2*mib {
		t.Fatalf("roughly: %+v", rough)
	}
	for _, w := range want {
		if !covered(w, rough[0].Ranges) {
			t.Errorf("%+v is not in %+v", w, rough[0].Ranges)
		}
	}
	b.json(&none, "point", "diff", two, two)
	if len(none) != 1 || len(none[0].Ranges) != 0 || none[0].Ranges == nil || none[0].Changed != 0 {
		t.Errorf("a point and itself: %+v", none)
	}
	out := b.ok("point", "diff", "web@2026", two)
	if !strings.Contains(out, "no difference") {
		t.Errorf("a point and itself: %q", out)
	}
	out = b.ok("point", "diff", one, two, "--exact")
	for _, line := range []string{"DISK  OFFSET   LENGTH  NOW\n", "0     3145728  131072  zero\n", "Disk 0: 200.0 KiB in 4 ranges, of it data 72.0 KiB\n"} {
		if !strings.Contains(out, line) {
			t.Errorf("the table has no line %q:\n%s", line, out)
		}
	}
}

// covered tells whether a range lies in others.
func covered(r rangeJSON, in []rangeJSON) bool {
	for at := r.Off; at < r.Off+r.Len; at += 4096 {
		found := false
		for _, g := range in {
			found = found || g.Off <= at && at < g.Off+g.Len
		}
		if !found {
			return false
		}
	}
	return true
}

// TestPointDiffOfUnequalPoints: disks that have grown or shrunk, and that only one of the points has.
func TestPointDiffOfUnequalPoints(t *testing.T) {
	b := newBox(t)
	small, large := b.file("small", noise(1, mib)), b.file("large", append(noise(1, mib), noise(2, 5000)...))
	one, two := b.imports(small, "web").Point, b.imports(large, "web").Point
	other := b.imports(large, "other", "--disk", "3").Point

	diff := func(args ...string) (out []diffJSON) {
		t.Helper()
		b.json(&out, append([]string{"point", "diff"}, args...)...)
		return out
	}
	if d := diff(one, two, "--exact")[0]; len(d.Ranges) != 1 || d.Ranges[0] != (rangeJSON{mib, 5000, "data"}) || *d.SizeA != mib || *d.SizeB != mib+5000 {
		t.Errorf("grown: %+v", d)
	}
	if out := diff(two, one, "--exact"); out[0].Changed != 0 || *out[0].SizeB != mib {
		t.Errorf("shrunk: %+v", out)
	}
	if text := b.ok("point", "diff", one, two); !strings.Contains(text, "it had 1048576 bytes and has 1053576") {
		t.Errorf("grown: %q", text)
	}
	if out := diff(one, other); len(out) != 2 || out[0].Disk != 0 || out[0].SizeB != nil || len(out[0].Ranges) != 0 || out[1].Disk != 3 || out[1].SizeA != nil || out[1].Data != mib+5000 {
		t.Errorf("points of other disks: %+v", out)
	}
	b.fails(exitNotFound, []string{"point", "diff", one, other, "--disk", "0"}, "does not hold that disk")
	b.fails(exitNotFound, []string{"point", "diff", one, "nobody@latest"}, "nobody")
	b.fails(exitUsage, []string{"point", "diff", one}, "two points")
}
