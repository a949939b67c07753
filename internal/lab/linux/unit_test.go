package linux

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/debian"
)

func TestModulesAreLoadedBehindWhatTheyNeed(t *testing.T) {
	deps := []byte("k/a-b.ko: k/c.ko k/d.ko\nk/c.ko: k/d.ko\nk/d.ko:\nk/unused.ko: k/d.ko\n")
	got, err := loadOrder(deps, []byte("k/in-side.ko\n"), []string{"a_b", "in_side", "d"})
	if want := []string{"k/d.ko", "k/c.ko", "k/a-b.ko"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if _, err := loadOrder(deps, nil, []string{"in_side"}); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "in_side") {
		t.Errorf("a driver that the kernel does not have: %v", err)
	}
}

// entries reads an archive as the kernel does: name → mode, or content for files.
func entries(t *testing.T, b []byte) map[string]string {
	t.Helper()
	found := map[string]string{}
	field := func(i int) int {
		n, err := strconv.ParseInt(string(b[6+8*i:14+8*i]), 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return int(n)
	}
	aligned := func(n int) int { return (n + 3) &^ 3 }
	for len(b) > 0 {
		if string(b[:6]) != "070701" {
			t.Fatalf("no header but %q", b[:6])
		}
		mode, size, nameEnd := field(1), field(6), 110+field(11)
		name := string(b[110 : nameEnd-1])
		if name == "TRAILER!!!" {
			return found
		}
		begin := aligned(nameEnd)
		found[name] = strconv.FormatInt(int64(mode), 8)
		if mode&modeFile != 0 {
			found[name] = string(b[begin : begin+size])
		}
		b = b[aligned(begin+size):]
	}
	t.Fatal("there is no end")
	return nil
}

func TestTheArchiveIsWhatTheKernelReads(t *testing.T) {
	a := newArchive()
	a.file("/usr/lib/x/odd", 0o644, []byte("12345"))
	a.file("/usr/lib/x/odd", 0o644, []byte("a second one"))
	a.file("/usr/even", 0o755, []byte("1234"))
	got := entries(t, a.bytes())
	want := map[string]string{
		"dev": "40755", "dev/console": "20600", "dev/null": "20666", "usr": "40755", "usr/lib": "40755", "usr/lib/x": "40755",
		"usr/lib/x/odd": "12345", "usr/even": "1234",
	}
	for name, is := range want {
		if got[name] != is {
			t.Errorf("%s is %q, want %q", name, got[name], is)
		}
	}
	if len(got) != len(want) {
		t.Errorf("entries: %v", got)
	}
}

// TestAProgramComesWithItsLibraries takes a program that every Debian has.
func TestAProgramComesWithItsLibraries(t *testing.T) {
	const program = "/bin/dd"
	if loader, err := interpreter(program); err != nil || loader == "" {
		t.Skipf("this machine's %s has no dynamic linker (%q, %v)", program, loader, err)
	}
	a := newArchive()
	if err := addProgram(a, program); err != nil {
		t.Fatal(err)
	}
	found := entries(t, a.bytes())
	libc := false
	for name := range found {
		libc = libc || strings.HasPrefix(filepath.Base(name), "libc.so")
	}
	if found[program[1:]] == "" || !libc {
		t.Errorf("libc is there: %v; the program has %d bytes", libc, len(found[program[1:]]))
	}
	if err := addProgram(a, "/no/such/program"); !errs.Is(err, errs.NotFound) {
		t.Errorf("no such program: %v", err)
	}
}

func TestAnAgentThatIsNotStaticIsRefused(t *testing.T) {
	if loader, err := interpreter("/bin/dd"); err != nil || loader == "" {
		t.Skip("this machine has no dynamic linker")
	}
	if _, err := os.Stat(debugfs); err != nil {
		t.Skip("e2fsprogs is not installed; `make test` installs it")
	}
	_, err := Build(t.Context(), Options{Dir: t.TempDir(), Agent: "/bin/dd", Disk: debian.Disk{Raw: "/none"}})
	if !errs.Is(err, errs.Unsupported) || !strings.Contains(errs.NextStep(err), "CGO_ENABLED=0") {
		t.Errorf("error %v", err)
	}
}
