package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func sum(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// fields returns the names in a JSON object, sorted; of an array those of its first object.
func fields(t *testing.T, doc json.RawMessage) []string {
	t.Helper()
	var list []json.RawMessage
	if json.Unmarshal(doc, &list) == nil {
		if len(list) == 0 {
			return nil
		}
		doc = list[0]
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(doc, &m); err != nil {
		t.Fatalf("%v in %s", err, doc)
	}
	return slices.Sorted(maps.Keys(m))
}

func TestEveryCommandInBothForms(t *testing.T) {
	b := newBox(t)
	first := b.imports(b.disk("disk.raw", 1, 2*mib), "web")
	b.imports(b.disk("disk.raw", 1, 2*mib), "web")
	point, out := first.Point, b.path("out")
	for _, tc := range []struct {
		args   string
		fields string // of the document
		table  []string
	}{
		{"version", "version", []string{"holdfast test"}},
		{"disk import " + b.disk("other.raw", 2, mib) + " --vm db",
			"data_bytes dedup_ratio disk incremental known_bytes new_bytes point read_bytes seconds size_bytes stored_bytes vm",
			[]string{"Point", "Machine", "db, disk 0", "Read", "New", "Stored", "Data to stored"}},
		{"point list", "disks point time vm", []string{"POINT", "VM", "TIME", "DISKS", point, "web", "2026-09-14 02:00:00Z"}},
		{"point show " + point, "disks labels point time vm", []string{point, "web", "5.0 MiB", "root"}},
		{"point show --sha256 " + point, "disks labels point time vm", []string{"sha256", sum(t, b.path("disk.raw"))}},
		{"point export " + point + " --force --to " + out, "disk file format point seconds size_bytes", []string{"Wrote disk 0", out}},
		{"store status", "compact_packs compression created cutter damage damaged_points data_bytes dedup_ratio digest disk_bytes free_bytes " +
			"logical_bytes pack_bytes packs points scrub store unfinished_packs uuid", []string{"Points", "Stored", "Free", "Format"}},
		{"store verify", "bytes chunks disks fault_count faults healed lifted packs pages points quarantined", []string{"No damage was found."}},
		{"store verify " + point, "bytes chunks disks fault_count faults healed lifted packs pages points quarantined", []string{"1 point with"}},
		{"store verify --quick", "bytes chunks disks fault_count faults healed lifted packs pages points quarantined", []string{"No damage was found.", "not read"}},
	} {
		args := strings.Fields(tc.args)
		var doc json.RawMessage
		b.json(&doc, args...)
		if got := strings.Join(fields(t, doc), " "); got != tc.fields {
			t.Errorf("%s: fields %s\nwant %s", tc.args, got, tc.fields)
		}
		table := b.ok(args...)
		for _, w := range tc.table {
			if !strings.Contains(table, w) {
				t.Errorf("%s: %q is missing in\n%s", tc.args, w, table)
			}
		}
	}
	var removed struct{ Point string }
	if b.json(&removed, "point", "rm", point); removed.Point != point {
		t.Errorf("removed %q", removed.Point)
	}
	if got := b.ok("point", "rm", "web@latest"); !strings.Contains(got, "of web") {
		t.Errorf("rm says %q", got)
	}
}

// TestImportNumbers holds what a second import of a changed disk costs.
func TestImportNumbers(t *testing.T) {
	b := newBox(t)
	file := b.disk("disk.raw", 1, 4*mib)
	size := int64(7*mib + 513)
	one := b.imports(file, "web")
	if one.Size != size || one.New != 4*mib || one.Read < 4*mib || one.Read > 4*mib+4096 || one.Stored < 4*mib || one.Parent != "" || one.Data != 4*mib {
		t.Errorf("first import: %+v", one)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	copy(content[mib:], noise(9, 64<<10))
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(content[mib:mib+64<<10], mib); err != nil {
		t.Fatal(err)
	}
	two := b.imports(file, "web")
	// What changed, with the rest of the chunks that it lies in: at most one of 256 KiB on either side.
	if two.New < 64<<10 || two.New > 576<<10 || two.Known != 4*mib-two.New || two.Stored < two.New || two.Stored > two.New+16<<10 || two.Parent != one.Point {
		t.Errorf("second import: %+v", two)
	}
	used := storeBytes(t, b.store)
	three := b.imports(file, "web")
	if grown := storeBytes(t, b.store) - used; three.New != 0 || three.Stored != grown {
		t.Errorf("third import: %+v, and the store grew by %d bytes", three, grown)
	}
	other := b.imports(file, "other", "--disk", "3")
	if other.New != 0 || other.Parent != "" || other.Disk != 3 {
		t.Errorf("the same disk of another machine: %+v", other)
	}
	var list []struct {
		Point, VM, Time string
		Disks           []struct {
			Disk int
			Size int64 `json:"size_bytes"`
			Data int64 `json:"data_bytes"`
			Root string
		}
	}
	b.json(&list, "point", "list")
	if len(list) != 4 || list[0].Time != "2026-09-14T02:00:00Z" || list[3].Disks[0].Disk != 3 || list[3].Disks[0].Size != size ||
		len(list[0].Disks[0].Root) != 64 || list[1].Disks[0].Root != list[2].Disks[0].Root || list[0].Disks[0].Root == list[1].Disks[0].Root {
		t.Errorf("points: %+v", list)
	}
	b.clean(one.Point, two.Point, three.Point, other.Point)
}

// storeBytes is the length of all files that an import adds to, the index without its state and growing logs left out:
// those are counted by what is written into them.
func storeBytes(t *testing.T, dir string) (n int64) {
	t.Helper()
	for _, sub := range []string{"data", "meta", "points"} {
		err := filepath.WalkDir(filepath.Join(dir, sub), func(_ string, e os.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				info, ierr := e.Info()
				if ierr != nil {
					return ierr
				}
				n += info.Size()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func TestExportGivesBackTheDisk(t *testing.T) {
	b := newBox(t)
	file := b.disk("disk.raw", 1, 5*mib)
	b.imports(file, "web")
	b.imports(b.disk("two.raw", 2, mib), "web", "--disk", "1")
	want := sum(t, file)
	raw, qcow, back := b.path("out.raw"), b.path("out.qcow2"), b.path("back.raw")
	args := []string{"point", "export", b.points()[0], "--to", raw}
	b.ok(args...)
	if got := sum(t, raw); got != want {
		t.Errorf("raw: %s, want %s", got, want)
	}
	st, err := os.Stat(raw)
	if err != nil {
		t.Fatal(err)
	}
	if used := usedBytes(st); st.Mode().Perm() != 0o600 || used > 5*mib+128<<10 {
		t.Errorf("raw: mode %v, %d bytes used", st.Mode(), used)
	}
	b.fails(exitConflict, args, raw, "--force")
	b.file("out.raw", []byte("old"))
	b.ok(append(args, "--force")...)
	if got := sum(t, raw); got != want {
		t.Error("replaced: another digest")
	}
	b.ok("point", "export", b.points()[0], "--to", qcow, "--format", "qcow2")
	b.imports(qcow, "copy")
	b.ok("point", "export", "copy@latest", "--to", back)
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// A qcow2 image's disk has whole sectors.
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(bytes.TrimRight(got, "\x00"), bytes.TrimRight(source, "\x00")) || len(got)-len(source) >= 4096 {
		t.Errorf("through qcow2: %v, %d bytes", err, len(got))
	}
	b.fails(exitNotFound, []string{"point", "export", "web@latest", "--to", b.path("x"), "--disk", "0"}, "does not hold that disk", "It holds: 1.")
}

func TestHelpExistsForEveryCommand(t *testing.T) {
	b := boxAt(t, t.TempDir())
	for _, c := range []string{
		"", "init", "disk", "disk import", "point", "point list", "point show", "point rm", "point export", "point serve", "mount",
		"store", "store status", "store verify", "version", "manager", "manager add", "manager list", "manager show", "manager rm", "vm", "vm list",
		"vm show", "backup", "backup run", "restore", "restore instant", "session", "session list", "session show", "session migrate",
		"session release", "session keep", "point keep", "task", "task list", "task show", "task watch", "task cancel",
	} {
		out := b.ok(append(strings.Fields(c), "--help")...)
		if !strings.Contains(out, "Usage:") || !strings.Contains(out, "holdfast "+c) || strings.Contains(out, "\n\n\n") {
			t.Errorf("help of %q:\n%s", c, out)
		}
	}
	if out := b.ok(); !strings.Contains(out, "Available Commands:") {
		t.Errorf("without arguments:\n%s", out)
	}
}

func TestCommandLinesThatMakeNoSense(t *testing.T) {
	b := newBox(t)
	for _, c := range []string{
		"nonsense", "pont list", "point", "point nonsense", "point list x", "point show", "point show a b", "disk", "disk import",
		"disk import a b --vm x", "store verify a b", "store nonsense", "init", "mount", "mount a b", "version x", "point list --nonsense",
		"point list -o xml", "point serve x", "point serve x --nfs 127.0.0.1:0 --format vmdk", "point serve x --nfs 127.0.0.1:0 --overlay d",
		"point serve x --nfs 127.0.0.1:0 --allow nonsense", "point serve x --nfs 127.0.0.1:0 --disk one", "point export x",
		"point export x --to y --format vmdk", "disk import f", "point show --sha256=maybe x", "manager", "manager add", "manager add x", "manager show",
		"manager rm", "manager list x", "vm", "vm show", "vm list x", "backup", "backup run", "backup run a b", "backup run x --strategy full",
		"restore", "restore web", "restore instant", "restore instant x --format vdi", "session", "session nonsense", "session show", "session release",
		"session keep", "point keep", "point keep x", "point keep x --overlay d --format vdi", "session migrate", "task", "task watch", "task show a b", "task cancel", "vm list --store x --nonsense",
	} {
		b.fails(exitUsage, strings.Fields(c))
	}
	b.fails(exitUsage, []string{"pont"}, "did you mean point")
	delete(b.env, "HOLDFAST_STORE")
	b.fails(exitUsage, []string{"point", "list"}, "--store", "HOLDFAST_STORE")
	b.ok("point", "list", "--store", b.store)
}

func TestSizesAndTimesForPeople(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 10 << 30: "10.0 GiB", 1 << 62: "4.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// usedBytes is what a file takes on its disk.
func usedBytes(st os.FileInfo) int64 { return st.Sys().(*syscall.Stat_t).Blocks * 512 }
